"""The sparse engine, against a scipy dot product and filters in Python; sealed folders stay as they are."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from ltrr.index.manifest import IndexRefused
from ltrr.index.qdrant import Batch, SparseEngine, Where
from ltrr.types import Candidates, Sparse

N, WIDTH = 400, 30
RNG = np.random.default_rng(0)
# Values 1 to 3 in about 6 of 30 dimensions: scores tie nearly everywhere, also at the k-th; some points are empty.
VALUES = RNG.integers(1, 4, (N, WIDTH)) * (RNG.random((N, WIDTH)) < 0.2).astype(float)
VALUES[::50] = 0
MATRIX = sp.csr_matrix(VALUES)
TAGS = [sorted(RNG.choice(8, RNG.integers(0, 4), replace=False).tolist()) for _ in range(N)]
YEARS = np.where(RNG.random(N) < 0.2, np.nan, RNG.integers(1960, 1990, N)).astype(float)
SCALE = 2**27  # dimensions over the whole range of uint32


def points(first: int, last: int) -> Batch:
    part = MATRIX[first:last]
    vectors = Sparse(
        part.indptr.astype(np.int64), (part.indices * SCALE).astype(np.uint32), part.data.astype(np.float32)
    )
    return Batch(range(first, last), vectors, TAGS[first:last], {"year": YEARS[first:last]})


def vectors_of(seed: int, num: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    terms = [rng.choice(WIDTH, rng.integers(1, 5), replace=False).astype(np.uint32) for _ in range(num)]
    return [(t * np.uint32(SCALE), rng.choice([0.25, 0.5, 1.0], len(t)).astype(np.float32)) for t in terms]


def slow_search(
    vectors: list[tuple[np.ndarray, np.ndarray]], k: int, where: list[Where | None] | None = None
) -> Candidates:
    """Scores of all points, of which those that share a dimension and satisfy the filter are sorted."""
    docs, scores = [], []
    for i, (terms, values) in enumerate(vectors):
        query = np.zeros(WIDTH)
        query[terms // SCALE] = values
        dots = MATRIX @ query
        allowed = [row for row in np.flatnonzero(dots).tolist() if where is None or fits(where[i], row)]
        docs.append(np.array(allowed, np.int32))
        scores.append(dots[allowed])
    return Candidates.from_lists(docs, scores, k)


def fits(where: Where | None, row: int) -> bool:
    return where is None or (
        all(set(group) & set(TAGS[row]) for group in where.any_of)
        and all(low <= YEARS[row] <= high for _, low, high in where.between)
    )


def assert_same(found: Candidates, expected: Candidates) -> None:
    np.testing.assert_array_equal(found.docs, expected.docs)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a sealed engine of N points, written in two batches."""
    root = tmp_path_factory.mktemp("sparse")
    assert SparseEngine.create(root / "engine", [points(0, 150), points(150, N)]) == N
    return root


@pytest.fixture(scope="module")
def engine(root: Path) -> SparseEngine:
    return SparseEngine.open(root / "engine", root, N)


@pytest.mark.parametrize("k", [1, 10, 100, N, 3 * N])
def test_search_is_brute_force_with_ties_by_row(engine: SparseEngine, k: int) -> None:
    vectors = vectors_of(k, 40)
    expected = slow_search(vectors, k)
    assert_same(engine.search(vectors, k), expected)
    if k == 10:  # the case that an engine gets wrong: a tie that the k-th rank cuts
        longer = slow_search(vectors, k + 1)
        assert (longer.scores[:, k - 1] == longer.scores[:, k]).mean() > 0.5


@pytest.mark.parametrize("k", [5, 50])
def test_filters_are_those_of_python(engine: SparseEngine, k: int) -> None:
    cases = [
        None,
        Where(),
        Where(any_of=((3,),)),
        Where(any_of=((1, 2, 99),)),
        Where(any_of=((1, 2), (5,))),
        Where(between=(("year", 1970, 1975),)),
        Where(between=(("year", 1970, np.inf),)),
        Where(any_of=((0, 4),), between=(("year", 1965.5, 1980),)),
        Where(any_of=((99,),)),
        Where(between=(("year", 1980, 1970),)),
    ]
    vectors = vectors_of(1, 5 * len(cases))
    where = cases * 5
    expected = slow_search(vectors, k, where)
    assert_same(engine.search(vectors, k, where), expected)
    answered = (expected.docs >= 0).any(axis=1).reshape(5, -1).any(axis=0)
    assert answered.tolist() == [True] * 8 + [False] * 2  # the cases test what they should


def test_empty_vectors_and_missing_terms_are_padding(engine: SparseEngine) -> None:
    nothing = np.empty(0, np.uint32), np.empty(0, np.float32)
    unknown = np.array([WIDTH * SCALE + 5], np.uint32), np.ones(1, np.float32)
    [vector] = vectors_of(2, 1)
    found = engine.search([nothing, vector, unknown, nothing], 4)
    np.testing.assert_array_equal(found.docs[[0, 2, 3]], -1)
    assert np.isneginf(found.scores[[0, 2, 3]]).all()
    assert_same(Candidates(found.docs[1:2], found.scores[1:2]), slow_search([vector], 4))
    assert engine.search([nothing, nothing], 4).docs.shape == (2, 4)
    assert engine.search([], 4).docs.shape == (0, 4)


def test_one_query_is_answered_as_in_a_batch(engine: SparseEngine) -> None:
    vectors = vectors_of(3, 20)
    batch = engine.search(vectors, 10)
    for i, vector in enumerate(vectors):
        assert_same(engine.search([vector], 10), Candidates(batch.docs[[i]], batch.scores[[i]]))


def checksums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_readers_leave_the_sealed_folder_as_it_was(root: Path) -> None:
    before = checksums(root / "engine")
    vectors = vectors_of(4, 5)
    for _ in range(2):  # a second reader of the same process, while the first is open
        engine = SparseEngine.open(root / "engine", root, N)
        assert_same(engine.search(vectors, 10), slow_search(vectors, 10))
    assert checksums(root / "engine") == before


_READER = """
import sys
from pathlib import Path
import numpy as np
from ltrr.index.qdrant import SparseEngine
root = Path(sys.argv[1])
engine = SparseEngine.open(root / "engine", root, int(sys.argv[2]))
print("open", flush=True)
sys.stdin.readline()  # until the other has it open, too
query = np.arange(6, dtype=np.uint32) * np.uint32(sys.argv[3]), np.ones(6, np.float32)
print(engine.search([query], 10).docs[0].tolist())
"""


def test_two_processes_read_one_sealed_folder(root: Path) -> None:
    command = [sys.executable, "-c", _READER, str(root), str(N), str(SCALE)]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
    answers = [reader.communicate("go\n", timeout=60)[0].strip() for reader in readers]  # both are open now
    query = np.arange(6, dtype=np.uint32) * np.uint32(SCALE), np.ones(6, np.float32)
    assert answers == [str(slow_search([query], 10).docs[0].tolist())] * 2


def test_missing_points_are_refused(root: Path) -> None:
    with pytest.raises(IndexRefused, match=f"{N} points, the manifest says {N + 1}"):
        SparseEngine.open(root / "engine", root, N + 1)


def test_points_without_payload(tmp_path: Path) -> None:
    bare = points(0, 60)._replace(tags=None, numbers=None)
    assert SparseEngine.create(tmp_path / "engine", [bare]) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    kept = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*"))
    assert kept < 8 << 20  # the engine reserves 130 MiB for so few
    vectors = vectors_of(5, 3)
    found = SparseEngine.open(tmp_path / "engine", tmp_path, 60).search(vectors, N)
    expected = slow_search(vectors, N)
    for i in range(3):
        kept = expected.docs[i][(expected.docs[i] >= 0) & (expected.docs[i] < 60)]
        np.testing.assert_array_equal(found.docs[i][: len(kept)], kept)
        assert (found.docs[i][len(kept) :] == -1).all()
