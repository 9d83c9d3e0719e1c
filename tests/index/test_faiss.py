"""FAISS against numpy's brute force, on clustered unit vectors."""

import faiss
import numpy as np
import pytest

from ltrr.index.faiss import FaissIndex, Kind, Spec
from ltrr.types import Candidates, top_k

DIMENSION = 32

faiss.omp_set_num_threads(1)  # small batches: threads that wait for each other cost more than they bring


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:  # (N, D): enough to train a product quantiser
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(250, DIMENSION))
    return unit(centres[rng.integers(250, size=10_000)] + 0.7 * rng.normal(size=(10_000, DIMENSION)))


@pytest.fixture(scope="module")
def queries(vectors) -> np.ndarray:
    rng = np.random.default_rng(2)
    return unit(vectors[rng.integers(len(vectors), size=200)] + 0.1 * rng.normal(size=(200, DIMENSION)))


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> Candidates:
    docs = np.tile(np.arange(len(vectors), dtype=np.int32), (len(queries), 1))
    return top_k(docs, queries @ vectors.T, k)


def recall(found: Candidates, wanted: Candidates) -> float:
    pairs = zip(found.docs, wanted.docs, strict=True)
    return float(np.mean([np.isin(theirs, ours).mean() for ours, theirs in pairs]))


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_flat_is_brute_force(vectors, queries, k):
    found, wanted = FaissIndex.build(vectors, Spec()).search(queries, k), brute_force(vectors, queries, k)
    assert found.docs.dtype == np.int32
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    differing = found.docs != wanted.docs  # only where two sums differ in the last bit
    assert (wanted.scores - np.sum(queries[:, None] * vectors[found.docs], axis=2))[differing].max(initial=0) < 1e-6
    assert differing.mean() < 0.01


def test_ties_go_by_row(vectors, queries):
    twins = np.repeat(vectors[:50], 8, axis=0)
    found = FaissIndex.build(twins, Spec()).search(vectors[:50], 5)
    np.testing.assert_array_equal(found.docs, np.arange(50)[:, None] * 8 + np.arange(5))


@pytest.mark.parametrize(
    ("spec", "least"),
    [(Spec("ivf"), 0.9), (Spec("hnsw", m=16), 0.9), (Spec("pq", pq_bytes=8), 0.5)],
    ids=lambda value: value.kind if isinstance(value, Spec) else "",
)
def test_approximations_find_most(tmp_path, vectors, queries, spec, least):
    index = FaissIndex.build(vectors, spec)
    found = index.search(queries, 10)
    assert recall(found, brute_force(vectors, queries, 10)) >= least

    index.save(tmp_path)
    loaded = FaissIndex.load(tmp_path, spec)
    assert (len(loaded), loaded.dimension) == vectors.shape
    np.testing.assert_array_equal(loaded.search(queries, 10).docs, found.docs)
    np.testing.assert_array_equal(loaded.search(queries, 10).scores, found.scores)


def test_search_options_take_effect_without_a_rebuild(tmp_path, vectors, queries):
    narrow, wide = Spec("ivf", nlist=100, nprobe=1), Spec("ivf", nlist=100, nprobe=100)
    assert narrow.built() == wide.built() != Spec("ivf", nlist=101).built()
    FaissIndex.build(vectors, narrow).save(tmp_path)
    exact = brute_force(vectors, queries, 50)
    assert recall(FaissIndex.load(tmp_path, narrow).search(queries, 50), exact) < 0.999
    assert recall(FaissIndex.load(tmp_path, wide).search(queries, 50), exact) > 0.999  # every list = exact


def test_a_memmap_gives_the_same_index(tmp_path, vectors, queries):
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    one, other = (FaissIndex.build(source, Spec("ivf")).search(queries, 10) for source in (vectors, mapped))
    np.testing.assert_array_equal(one.docs, other.docs)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_fewer_than_k_are_padded(vectors, queries, kind: Kind):
    found = FaissIndex.build(vectors[:60], Spec(kind)).search(queries, 100)
    assert found.docs.shape == (len(queries), 100)
    pad = found.docs == -1
    assert pad[:, 60:].all()
    assert not pad[:, 0].any()
    assert (np.isneginf(found.scores) == pad).all()
    assert FaissIndex.build(vectors[:60], Spec(kind)).search(queries[:0], 5).docs.shape == (0, 5)


@pytest.mark.parametrize(
    ("num", "spec", "message"),
    [
        (38, Spec("ivf"), r"ivf learns 1 centroids.* 38 vectors; set kind: flat"),
        (1000, Spec("ivf", nlist=26), r"nlist to at most 25 \(0 chooses it\), or set kind: flat"),
        (9983, Spec("pq", pq_bytes=8), r"pq learns 256 centroids.* 9983 vectors; set kind: flat"),
        (10_000, Spec("pq", nlist=257, pq_bytes=8), r"nlist to at most 256"),
        (10_000, Spec("pq", pq_bytes=5), r"pq_bytes: 5 does not divide the dimension 32.*\[1, 2, 4, 8, 16, 32\]"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_fix(vectors, num, spec, message):
    with pytest.raises(ValueError, match=message):
        FaissIndex.build(vectors[:num], spec)


@pytest.mark.parametrize(("option", "value"), [("kind", "annoy"), ("nlist", -1), ("m", 2), ("pq_bytes", 0)])
def test_an_option_out_of_range_is_named(option, value):
    with pytest.raises(ValueError, match=f"{option}: '?{value}"):
        Spec(**{option: value})


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [Spec(), Spec("ivf"), Spec("pq", pq_bytes=16)], ids=lambda spec: spec.kind)
def test_gpu_agrees_with_cpu(tmp_path, monkeypatch, vectors, queries, spec):
    if not faiss.get_num_gpus():
        pytest.skip("FAISS sees no GPU (faiss-cpu, or no device)")
    FaissIndex.build(vectors, spec).save(tmp_path)
    there = FaissIndex.load(tmp_path, spec).search(queries, 10)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    here = FaissIndex.load(tmp_path, spec).search(queries, 10)
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-3)
    assert recall(there, here) > 0.99
