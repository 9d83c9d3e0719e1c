"""Finds nearest vectors by inner product with FAISS: exactly, or with one of three approximate indexes.

Knows vectors and rows; knows nothing about texts, models or manifests.
Legend: N vectors, D dimensions, Q queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import faiss
import numpy as np

from ltrr.types import Candidates, top_k

Kind = Literal["flat", "ivf", "hnsw", "pq"]

FILE = "vectors.faiss"
POINTS_PER_CENTROID = 39  # with fewer, FAISS warns that its k-means needs more training points
SAMPLE_PER_CENTROID = 256  # the most that FAISS's k-means uses
CODES = 256  # centroids per byte of a product quantiser
ADD_AT_ONCE = 65_536  # vectors copied out of a memmap at a time
BATCH = 16  # least number of queries for which flat search is one matrix product
SCORES_AT_ONCE = 1 << 25  # most scores held in memory by such a search
GPU_MAX_K = 2048


@dataclass(frozen=True)
class Spec:
    """Options of a vector index. Each kind ignores the options that it does not use.

    kind: flat = exact, 4·D bytes per vector; ivf = exact scores within the nearest inverted lists; hnsw = a graph,
        fastest on CPU, more memory; pq = ivf with vectors compressed to pq_bytes each (product quantisation).
    nlist: number of inverted lists of ivf and pq, 1 to N / 39; 0 = 4·√N within that bound.
    nprobe: lists searched per query, 1 to nlist (2,048 on a GPU); 0 = nlist / 16, at least 64. More = better, slower.
    m: links per node of hnsw, 4 to 64.
    ef_construction: candidates considered when hnsw links a node, m to 500.
    ef_search: candidates considered when hnsw searches, 16 to 1,000; at least k are used.
    pq_bytes: bytes per vector of pq, a divisor of D; at most 96 on a GPU.

    nprobe and ef_search may change without a rebuild. Raises ValueError for an option out of range.
    """

    kind: Kind = "flat"
    nlist: int = 0
    nprobe: int = 0
    m: int = 32
    ef_construction: int = 200
    ef_search: int = 128
    pq_bytes: int = 48

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(get_args(Kind))}")
        ranges = {"nlist": 0, "nprobe": 0, "m": 4, "ef_construction": 1, "ef_search": 1, "pq_bytes": 1}
        for name, least in ranges.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is below {least}; see the ranges of FaissIndex's Spec")

    def built(self) -> dict[str, Any]:
        """Returns the options fixed in the index file, so that a manifest can refuse others."""
        used = {"flat": (), "ivf": ("nlist",), "hnsw": ("m", "ef_construction"), "pq": ("nlist", "pq_bytes")}
        return {"kind": self.kind, **{name: getattr(self, name) for name in used[self.kind]}}

    def num_lists(self, num_vectors: int, dimension: int) -> int:
        """Returns nlist of ivf or pq for (N, D), 0 for other kinds; raises ValueError if N or D is unsuitable."""
        if self.kind not in ("ivf", "pq"):
            return 0
        if self.kind == "pq" and dimension % self.pq_bytes:
            divisors = [size for size in range(1, dimension + 1) if dimension % size == 0]
            raise ValueError(f"pq_bytes: {self.pq_bytes} does not divide the dimension {dimension}; take of {divisors}")
        most, least = num_vectors // POINTS_PER_CENTROID, CODES if self.kind == "pq" else 1
        if (centroids := max(self.nlist, least)) > most:
            fewer = f"set nlist to at most {most} (0 chooses it), or " if most >= least else ""
            raise ValueError(
                f"kind: {self.kind} learns {centroids} centroids, {POINTS_PER_CENTROID} vectors each, from a total of "
                f"{num_vectors} vectors; {fewer}set kind: flat, which is exact and learns nothing"
            )
        return self.nlist or min(int(4 * num_vectors**0.5), most)


class FaissIndex:
    """A vector index. Searches on all GPUs that FAISS sees (hnsw stays on the CPU); files hold the CPU index."""

    def __init__(self, index: Any, spec: Spec) -> None:
        """Use `build` or `load`. index: a trained FAISS CPU index of inner products."""
        if spec.kind in ("ivf", "pq"):
            index.nprobe = min(spec.nprobe or max(64, index.nlist // 16), index.nlist)
        elif spec.kind == "hnsw":
            index.hnsw.efSearch = spec.ef_search
        on_gpu = spec.kind != "hnsw" and faiss.get_num_gpus() > 0
        self._cpu = index
        self._fastest = faiss.index_cpu_to_all_gpus(index) if on_gpu else index
        self._max_k = GPU_MAX_K if on_gpu else index.ntotal
        plain = spec.kind == "flat" and not on_gpu and index.ntotal > 0
        self._flat = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(-1, index.d) if plain else None

    @classmethod
    def build(cls, vectors: np.ndarray, spec: Spec) -> Self:
        """Builds an index of (N, D) float32 unit vectors, or a memmap of them; vector i becomes document i.

        Raises ValueError if N is too small to train the spec, or pq_bytes does not divide D.
        """
        index = _empty(spec, *vectors.shape)
        if not index.is_trained:
            centroids = max(index.nlist, CODES)
            index.train(_sample(vectors, centroids * SAMPLE_PER_CENTROID))
        for start in range(0, len(vectors), ADD_AT_ONCE):
            index.add(np.ascontiguousarray(vectors[start : start + ADD_AT_ONCE], np.float32))
        return cls(index, spec)

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> Self:
        """Loads the index that `save` wrote; only nprobe and ef_search may differ from the spec it was built with."""
        return cls(faiss.read_index(str(folder / FILE)), spec)

    def save(self, folder: Path) -> None:
        """Writes one file into the folder."""
        faiss.write_index(self._cpu, str(folder / FILE))

    def __len__(self) -> int:
        return self._cpu.ntotal

    @property
    def dimension(self) -> int:
        """D."""
        return self._cpu.d

    def search(self, queries: np.ndarray, k: int) -> Candidates:
        """Finds the (Q, k) rows with the greatest inner product with (Q, D) queries, padded if there are fewer."""
        if self._flat is not None and len(queries) >= BATCH:
            return self._product(np.ascontiguousarray(queries, np.float32), k)
        width = min(k, len(self))
        index = self._fastest if width <= self._max_k else self._cpu
        scores, docs = index.search(np.ascontiguousarray(queries, np.float32), width)  # (Q, width)
        return top_k(docs.astype(np.int32), np.where(docs < 0, -np.inf, scores).astype(np.float32), k)

    def _product(self, queries: np.ndarray, k: int) -> Candidates:
        """Searches a flat index with numpy, whose matrix product is several times faster than in FAISS's wheels."""
        assert self._flat is not None
        rows = np.arange(len(self), dtype=np.int32)
        step = max(1, SCORES_AT_ONCE // max(len(self), 1))
        parts = [
            top_k(np.broadcast_to(rows, (len(part), len(rows))), part @ self._flat.T, k)
            for part in (queries[start : start + step] for start in range(0, len(queries), step))
        ]
        return Candidates(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _empty(spec: Spec, num_vectors: int, dimension: int) -> Any:
    """Makes an untrained FAISS index for (N, D)."""
    nlist = spec.num_lists(num_vectors, dimension)
    metric = faiss.METRIC_INNER_PRODUCT

    def hnsw() -> Any:
        index = faiss.IndexHNSWFlat(dimension, spec.m, metric)
        index.hnsw.efConstruction = spec.ef_construction
        return index

    make: dict[str, Callable[[], Any]] = {
        "flat": lambda: faiss.IndexFlatIP(dimension),
        "ivf": lambda: faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, nlist, metric),
        "hnsw": hnsw,
        "pq": lambda: faiss.IndexIVFPQ(faiss.IndexFlatIP(dimension), dimension, nlist, spec.pq_bytes, 8, metric),
    }
    return make[spec.kind]()


def _sample(vectors: np.ndarray, size: int) -> np.ndarray:
    """Samples at most `size` vectors, in row order, with a fixed seed."""
    if len(vectors) > size:
        vectors = vectors[np.sort(np.random.default_rng(0).choice(len(vectors), size, replace=False))]
    return np.ascontiguousarray(vectors, np.float32)
