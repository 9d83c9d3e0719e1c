"""The sparse arm: equals a scipy product, resumes encoding, refuses what is not its own."""

import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from ltrr.arms.sparse import Splade
from ltrr.data.beir import Corpus, Document
from ltrr.index.manifest import IndexMissing, IndexRefused
from ltrr.protocols import Arm
from ltrr.types import Query, Sparse

PROJECT = Path(__file__).parents[2]
SIZE, SHARD = 500, 10


class WordEncoder:
    """A word is two terms with weights of its own (queries: other weights), "nothing" is none; logs what it encodes,
    one line a call."""

    def __init__(self, log: Path | None = None, pause: float = 0.0, id: str = "words-1") -> None:
        self.id, self._log, self._pause = id, log, pause

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Sparse:
        time.sleep(self._pause)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(" ".join(text.split()[-1] for text in texts) + "\n")
        rows = []
        for text in texts:
            row: dict[int, float] = {}
            for word in text.replace("nothing", "").split():
                random = np.random.default_rng(zlib.crc32(word.encode()))
                row |= dict(zip(random.integers(SIZE, size=2).tolist(), random.random(4)[2 * is_query :], strict=False))
            rows.append(sorted(row.items()))
        pairs = [pair for row in rows for pair in row]
        return Sparse(
            np.cumsum([0, *map(len, rows)], dtype=np.int64),
            np.array([term for term, _ in pairs], np.uint32),
            np.array([value for _, value in pairs], np.float32),
        )


def corpus_of(num: int, extra: str = "") -> Corpus:
    """Every twentieth document has no terms."""
    return Corpus.from_documents(
        Document(f"d{i}", "nothing", "", {})
        if i % 20 == 19
        else Document(
            f"d{i}", f"title{i % 7}", f"text{i % 11} {extra} row{i}", {"mood": [f"mood{i % 3}"], "year": 1980}
        )
        for i in range(num)
    )


def splade(encoder: WordEncoder | None = None, **options) -> Splade:
    return Splade(encoder or WordEncoder(), **{"shard": SHARD, "text_fields": (), **options})


def queries_of(*texts: str) -> list[Query]:
    return [Query(f"q{i}", text) for i, text in enumerate(texts)]


QUERIES = queries_of("title3", "text5 row27", "mood1 title2")


def product(texts: list[str]) -> np.ndarray:
    """(Q, N) dot products by scipy."""
    vectors = (WordEncoder().encode([q.text for q in QUERIES], is_query=True), WordEncoder().encode(texts))
    queries, documents = (csr_array((v.values, v.terms, v.ptr), shape=(len(v.ptr) - 1, SIZE)) for v in vectors)
    return (queries @ documents.T).toarray()


@pytest.mark.parametrize("text_fields", [(), ("mood",), None])
def test_search_is_a_sparse_product(tmp_path, text_fields):
    corpus, arm = corpus_of(47), splade(text_fields=text_fields)
    assert isinstance(arm, Arm)
    arm.build(corpus, tmp_path)
    found = arm.open(corpus, tmp_path).search(QUERIES, 10)

    mood = [" ".join(d.metadata.get("mood", ())) if text_fields != () else "" for d in corpus]
    scores = product([f"{d.title} {d.text} {words}" for d, words in zip(corpus, mood, strict=True)])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    best = np.take_along_axis(scores, order, 1)
    assert (best > 0).sum() > 15
    np.testing.assert_array_equal(found.docs, np.where(best > 0, order, -1))  # what shares no term is no candidate
    np.testing.assert_allclose(found.scores, np.where(best > 0, best, -np.inf), rtol=1e-6)


def test_a_query_without_text_or_without_terms_returns_padding(tmp_path):
    corpus, arm = corpus_of(20), splade()
    arm.build(corpus, tmp_path)
    arm.open(corpus, tmp_path)
    found = arm.search(queries_of("", "title3", " \t", "nothing"), 5)
    assert (found.docs[[0, 2, 3]] == -1).all()
    assert np.isneginf(found.scores[[0, 2, 3]]).all()
    assert found.docs[1, 0] >= 0
    np.testing.assert_array_equal(found.docs[1], arm.search(queries_of("title3"), 5).docs[0])
    assert (arm.search(queries_of(""), 5).docs == -1).all()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.arms.test_sparse import WordEncoder, corpus_of, splade
splade(WordEncoder(Path(sys.argv[2]), pause=0.1)).build(corpus_of(95), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("torn", [False, True], ids=["killed", "killed and a shard torn"])
def test_a_killed_build_resumes(tmp_path, torn):
    root, log = tmp_path / "root", tmp_path / "log"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root), str(log)], cwd=PROJECT)
    while len(list(root.glob(".work/*/*.sha256"))) < 4:  # in the midst of encoding
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    (work,) = root.glob(".work/*")
    done = {int(seal.stem) for seal in work.glob("*.sha256")}
    assert 4 <= len(done) < 10
    if torn:
        content = bytearray((work / "20.npz").read_bytes())
        content[len(content) // 2] ^= 1  # a byte of the third shard, as a power cut may leave it
        (work / "20.npz").write_bytes(content)
        done -= {20}
    with pytest.raises(IndexMissing):
        splade().open(corpus_of(95), root)

    log.unlink()
    splade(WordEncoder(log)).build(corpus_of(95), root)
    expected = [range(start, min(start + SHARD, 95)) for start in range(0, 95, SHARD) if start not in done]
    words = ["nothing" if i % 20 == 19 else f"row{i}" for i in range(95)]
    assert log.read_text().splitlines() == [" ".join(words[i] for i in rows) for rows in expected]

    splade().build(corpus_of(95), tmp_path / "uninterrupted")
    resumed, whole = (splade().open(corpus_of(95), r).search(QUERIES, 95) for r in (root, tmp_path / "uninterrupted"))
    np.testing.assert_array_equal(resumed.docs, whole.docs)
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    assert not (root / ".work").exists()


@pytest.mark.parametrize(
    ("corpus", "arm", "reason"),
    [
        (corpus_of(31), splade(), "corpus: built from"),
        (corpus_of(30), splade(WordEncoder(id="words-2")), "model: built from 'words-1', asked for 'words-2'"),
        (corpus_of(30), splade(text_fields=["mood"]), "config text_fields"),
    ],
)
def test_another_origin_is_refused(tmp_path, corpus, arm, reason):
    splade().build(corpus_of(30), tmp_path)
    with pytest.raises(IndexRefused, match=reason):
        arm.open(corpus, tmp_path)
    splade(shard=3).open(corpus_of(30), tmp_path)  # this changes nothing in the file


def test_partial_work_of_another_encoder_is_not_used(tmp_path):
    class Dies(WordEncoder):
        def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Sparse:
            if texts[0].endswith("row20"):
                raise KeyboardInterrupt
            return super().encode(texts)

    with pytest.raises(KeyboardInterrupt):
        splade(Dies()).build(corpus_of(30), tmp_path)
    splade(WordEncoder(tmp_path / "log", id="words-2")).build(corpus_of(30), tmp_path)
    assert len((tmp_path / "log").read_text().splitlines()) == 3  # every shard


def test_an_unknown_text_field_is_refused_before_encoding(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(ValueError, match=r"text_fields: no field 'moood' in the corpus; there are .*mood"):
        splade(WordEncoder(log), text_fields=["moood"]).build(corpus_of(30), tmp_path)
    assert not log.exists()
