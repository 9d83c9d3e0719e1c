"""The dense arm: equals brute force, resumes encoding, refuses what is not its own."""

import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ltrr.arms.dense import Dense
from ltrr.data.beir import Corpus, Document
from ltrr.index.manifest import IndexMissing, IndexRefused
from ltrr.protocols import Arm
from ltrr.types import Query

PROJECT = Path(__file__).parents[2]
DIMENSION, SHARD = 16, 10


class HashEncoder:
    """Sum of a random vector a word, the same in every process; logs what it encodes, one line a call."""

    def __init__(self, log: Path | None = None, pause: float = 0.0, id: str = "hash-1") -> None:
        self.id, self._log, self._pause = id, log, pause

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        time.sleep(self._pause)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(" ".join(text.split()[-1] for text in texts) + "\n")
        vectors = np.stack([sum(map(_word, text.split())) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _word(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIMENSION)


def corpus_of(num: int, extra: str = "") -> Corpus:
    return Corpus.from_documents(
        Document(
            f"d{i}",
            f"title{i % 7}",
            f"text{i % 11} {extra} row{i}",
            {"mood": [f"mood{i % 3}", f"tone{i % 5}"], "year": 1980 + i},  # a number is never encoded by default
        )
        for i in range(num)
    )


def dense(encoder: HashEncoder | None = None, **options) -> Dense:
    return Dense(encoder or HashEncoder(), **{"shard": SHARD, "text_fields": (), **options})


def queries_of(*texts: str) -> list[Query]:
    return [Query(f"q{i}", text) for i, text in enumerate(texts)]


QUERIES = queries_of("title3", "text5 row27", "mood1 tone4")


@pytest.mark.parametrize("text_fields", [(), ("mood",), None])
def test_search_is_brute_force(tmp_path, text_fields):
    corpus, arm = corpus_of(47), dense(text_fields=text_fields)
    assert isinstance(arm, Arm)
    arm.build(corpus, tmp_path)
    found = arm.open(corpus, tmp_path).search(QUERIES, 10)

    texts = [f"{d.title} {d.text} {'' if text_fields == () else ' '.join(d.metadata['mood'])}" for d in corpus]
    scores = HashEncoder().encode([q.text for q in QUERIES]) @ HashEncoder().encode(texts).T
    np.testing.assert_array_equal(found.docs, np.argsort(-scores, axis=1)[:, :10])
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :10], atol=1e-6)


def test_a_query_without_text_returns_padding(tmp_path):
    corpus, arm = corpus_of(20), dense()
    arm.build(corpus, tmp_path)
    arm.open(corpus, tmp_path)
    found = arm.search(queries_of("", "title3", " \t"), 5)
    assert (found.docs[[0, 2]] == -1).all()
    assert np.isneginf(found.scores[[0, 2]]).all()
    np.testing.assert_array_equal(found.docs[1], arm.search(queries_of("title3"), 5).docs[0])
    assert not arm.embed(queries_of("", "title3"))[0].any()
    assert (arm.search(queries_of(""), 5).docs == -1).all()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.arms.test_dense import HashEncoder, corpus_of, dense
dense(HashEncoder(Path(sys.argv[2]), pause=0.1)).build(corpus_of(95), Path(sys.argv[1]))
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
        content[-50] ^= 1  # a byte of the third shard, as a power cut may leave it
        (work / "20.npz").write_bytes(content)
        done -= {20}
    with pytest.raises(IndexMissing):
        dense().open(corpus_of(95), root)

    log.unlink()
    dense(HashEncoder(log)).build(corpus_of(95), root)
    probe, *calls = log.read_text().splitlines()
    assert probe == "row0"  # asked for the dimension
    expected = [start for start in range(0, 95, SHARD) if start not in done]
    assert calls == [" ".join(f"row{i}" for i in range(start, min(start + SHARD, 95))) for start in expected]

    dense().build(corpus_of(95), tmp_path / "uninterrupted")
    resumed, whole = (dense().open(corpus_of(95), r).search(QUERIES, 95) for r in (root, tmp_path / "uninterrupted"))
    np.testing.assert_array_equal(resumed.docs, whole.docs)
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    assert not (root / ".work").exists()


def test_partial_work_of_another_corpus_is_not_used(tmp_path):
    class Dies(HashEncoder):
        def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
            if texts[0].endswith("row20"):
                raise KeyboardInterrupt
            return super().encode(texts)

    with pytest.raises(KeyboardInterrupt):
        dense(Dies()).build(corpus_of(30), tmp_path)
    dense(HashEncoder(tmp_path / "log")).build(corpus_of(30, extra="other"), tmp_path)
    assert len((tmp_path / "log").read_text().splitlines()) == 1 + 3  # the probe and every shard


@pytest.mark.parametrize(
    ("corpus", "arm", "reason"),
    [
        (corpus_of(31), dense(), "corpus: built from"),
        (corpus_of(30), dense(HashEncoder(id="hash-2")), "model: built from 'hash-1', asked for 'hash-2'"),
        (corpus_of(30), dense(kind="hnsw"), "config .*: built with"),
        (corpus_of(30), dense(text_fields=["mood"]), "config text_fields"),
    ],
)
def test_another_origin_is_refused(tmp_path, corpus, arm, reason):
    dense().build(corpus_of(30), tmp_path)
    with pytest.raises(IndexRefused, match=reason):
        arm.open(corpus, tmp_path)
    dense(shard=3, ef_search=99).open(corpus_of(30), tmp_path)  # these change nothing in the file


def test_mistakes_are_refused_before_encoding(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(ValueError, match=r"text_fields: no field 'moood' in the corpus; there are .*mood"):
        dense(HashEncoder(log), text_fields=["moood"]).build(corpus_of(30), tmp_path)
    with pytest.raises(ValueError, match="kind: flat"):
        dense(HashEncoder(log), kind="ivf").build(corpus_of(30), tmp_path)
    assert len(log.read_text().splitlines()) <= 1
