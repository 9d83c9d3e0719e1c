"""The folder of generated queries and the script that writes it: whole shards, resumed after a kill, else refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltrr.config import ConfigError
from ltrr.data.beir import Corpus, Document, open_dataset
from ltrr.data.expansions import Expansion, ExpansionWriter, expansion_id, read_expansions
from ltrr.data.lines import DataError
from ltrr.encoders.doc2query import doc2query_network
from tests.helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import expand  # pyright: ignore[reportMissingImports]
from expand import Texts, generate, judge  # pyright: ignore[reportMissingImports]

SHARD, NUM = 10, 95


class FakeGenerator:
    """Three queries a document, made of its last word; logs what it is asked, one line a call."""

    def __init__(self, log: Path | None = None, pause: float = 0.0, id: str = "fake-1") -> None:
        self.id, self._log, self._pause = id, log, pause

    def sample(self, texts: Sequence[str], num_queries: int, *, seed: int, **sampling: Any) -> list[list[tuple]]:
        time.sleep(self._pause)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(" ".join(text.split()[-1] for text in texts) + "\n")
        words = [text.split()[-1] for text in texts]
        return [[(f"{word} ask{i + seed}", -1.5 * (i + 1), i + 2) for i in range(num_queries)] for word in words]


class FakeScorer:
    """A number that follows from the pair; counts the pairs."""

    def __init__(self, id: str = "scorer-1") -> None:
        self.id, self.pairs = id, 0

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        self.pairs += len(queries)
        return np.array([relevance_of(q, d) for q, d in zip(queries, documents, strict=True)], np.float32)


def relevance_of(query: str, document: str) -> float:
    return zlib.crc32(f"{query}|{document}".encode()) % 10_007 / 1000


def corpus_of(num: int = NUM, extra: str = "") -> Corpus:
    return Corpus.from_documents(Document(f"d{i}", f"title{i}", f"text {extra} row{i}", {}) for i in range(num))


def writer_of(folder: Path, corpus: Corpus | None = None, **options: Any) -> ExpansionWriter:
    given = {"model": "fake-1", "settings": {"num_queries": 3, "seed": 0}, "shard": SHARD, **options}
    return ExpansionWriter(folder, corpus or corpus_of(), **given)


def write(folder: Path, corpus: Corpus | None = None, generator: FakeGenerator | None = None) -> ExpansionWriter:
    """All shards of a folder, not sealed yet."""
    corpus = corpus or corpus_of()
    writer = writer_of(folder, corpus)
    generate(writer, Texts(corpus), generator or FakeGenerator(), 3, seed=0)
    return writer


def test_what_is_read_is_what_was_generated(tmp_path):
    write(tmp_path).finish()
    found = read_expansions(tmp_path, corpus_of())
    assert len(found) == NUM
    assert list(found) == [[f"row{i} ask{j}" for j in range(3)] for i in range(NUM)]
    unknown: Any = pytest.approx(math.nan, nan_ok=True)
    assert found.of(37) == [Expansion(f"row37 ask{j}", -1.5 * (j + 1), j + 2, unknown) for j in range(3)]
    pairs = list(found.pairs())
    assert [row for row, _ in pairs] == [i for i in range(NUM) for _ in range(3)]
    assert [e.query for _, e in pairs] == [query for several in found for query in several]
    with pytest.raises(IndexError, match="row 95"):
        found[NUM]
    line = json.loads((tmp_path / "000000030.jsonl").read_text().splitlines()[7])
    assert line == {"_id": "d37", "queries": found[37], "likelihoods": [-1.5, -3.0, -4.5], "tokens": [2, 3, 4]}


def test_documents_without_queries_and_odd_characters_keep_their_rows(tmp_path):
    corpus = corpus_of(5)
    writer = writer_of(tmp_path, corpus, shard=2)
    several = [[], [Expansion("two\u2028lines\nand 東京", -1.0, 3)], [], [], [Expansion('quote "it"', -2.0, 1)]]
    for rows in writer.missing():
        writer.write(rows, several[rows.start : rows.stop])
    writer.finish()
    assert list(read_expansions(tmp_path, corpus)) == [[e.query for e in row] for row in several]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from tests.data.test_expansions import FakeGenerator, write
write(Path(sys.argv[1]), generator=FakeGenerator(Path(sys.argv[2]), pause=0.05)).finish()
"""


def test_a_killed_run_keeps_whole_shards_and_goes_on(tmp_path):
    folder, log = tmp_path / "out", tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(log)], cwd=ROOT, env=environment)
    while len(list(folder.glob("0*.jsonl"))) < 4:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = sorted(int(path.stem) for path in folder.glob("0*.jsonl"))
    assert 4 <= len(done) < 10
    for start in done:  # whole, whatever moment it was
        assert len(writer_of(folder).read(range(start, start + SHARD))) == SHARD
    with pytest.raises(DataError, match="not finished\n  Fix: run the same"):
        read_expansions(folder, corpus_of())

    log.unlink()
    write(folder, generator=FakeGenerator(log)).finish()
    expected = [start for start in range(0, NUM, SHARD) if start not in done]
    assert log.read_text().splitlines() == [
        " ".join(f"row{i}" for i in range(start, min(start + SHARD, NUM))) for start in expected
    ]
    write(tmp_path / "unbroken").finish()
    assert expansion_id(folder) == expansion_id(tmp_path / "unbroken")
    assert list(read_expansions(folder, corpus_of())) == list(read_expansions(tmp_path / "unbroken", corpus_of()))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"model": "fake-2"}, "model: made with 'fake-1', asked for 'fake-2'"),
        ({"corpus": corpus_of(extra="other")}, "corpus: made with"),
        ({"settings": {"num_queries": 4, "seed": 0}}, "num_queries: made with 3, asked for 4"),
        ({"settings": {"num_queries": 3, "seed": 1}}, "seed: made with 0, asked for 1"),
        ({"shard": 20}, "shard: made with 10, asked for 20"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, options, key):
    write(tmp_path)
    with pytest.raises(DataError, match=key) as refusal:
        writer_of(tmp_path, **options)
    assert "another folder, or delete this one" in str(refusal.value)


def test_readers_refuse_what_is_not_theirs_or_damaged(tmp_path):
    with pytest.raises(DataError, match=r"no manifest.json in it\n  Make it: python scripts/expand.py"):
        read_expansions(tmp_path / "nothing", corpus_of())
    write(tmp_path).finish()
    with pytest.raises(DataError, match="corpus: made with"):
        read_expansions(tmp_path, corpus_of(extra="other"))
    shard = tmp_path / "000000020.jsonl"
    whole = shard.read_text()
    shard.write_text(whole.replace("ask1", "ask7", 1))
    found = read_expansions(tmp_path, corpus_of())
    assert found[19] == [f"row19 ask{j}" for j in range(3)]
    with pytest.raises(DataError, match=r"000000020.jsonl: altered since it was written"):
        found[20]
    shard.unlink()
    with pytest.raises(DataError, match=r"000000020.jsonl: missing"):
        read_expansions(tmp_path, corpus_of())
    write(tmp_path).finish()  # the fix that the message names
    assert shard.read_text() == whole
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="not of this version"):
        read_expansions(tmp_path, corpus_of())
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_expansions(tmp_path, corpus_of())


def test_the_filter_keeps_the_best_share_of_all_queries(tmp_path):
    writer, scorer = write(tmp_path), FakeScorer()
    writer.finish()
    everything, texts = expansion_id(tmp_path), Texts(corpus_of())
    judge(writer, texts, scorer)
    writer.finish(keep=0.7)
    found = read_expansions(tmp_path, corpus_of())
    scores = np.array([[relevance_of(f"row{i} ask{j}", texts[i]) for j in range(3)] for i in range(NUM)])
    least = np.sort(scores.ravel())[::-1][round(0.7 * scores.size) - 1]
    assert list(found) == [[f"row{i} ask{j}" for j in range(3) if scores[i, j] >= least] for i in range(NUM)]
    assert len({len(several) for several in found}) > 2  # the threshold is one for all documents
    np.testing.assert_allclose([e.relevance for e in found.of(1)], scores[1][scores[1] >= least], atol=1e-4)
    assert found.id == expansion_id(tmp_path) != everything

    assert scorer.pairs == 3 * NUM
    again = writer_of(tmp_path)
    judge(again, texts, scorer)
    again.finish(keep=0.3)
    assert scorer.pairs == 3 * NUM  # another share scores nothing again
    assert sum(map(len, read_expansions(tmp_path, corpus_of()))) == pytest.approx(0.3 * 3 * NUM, abs=2)
    assert expansion_id(tmp_path) != found.id
    again.finish()
    assert sum(map(len, read_expansions(tmp_path, corpus_of()))) == 3 * NUM  # no filter, nothing filtered
    with pytest.raises(DataError, match="filter: made with 'scorer-1', asked for 'scorer-2'"):
        judge(writer_of(tmp_path), texts, FakeScorer("scorer-2"))


def test_a_killed_filter_goes_on(tmp_path):
    class Dies(FakeScorer):
        def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
            if documents[0].endswith("row40"):
                raise KeyboardInterrupt
            return super().score(queries, documents)

    texts = Texts(corpus_of())
    with pytest.raises(KeyboardInterrupt):
        judge(write(tmp_path), texts, Dies())
    scorer = FakeScorer()
    writer = writer_of(tmp_path)
    judge(writer, texts, scorer)
    assert scorer.pairs == 3 * (NUM - 40)
    writer.finish(keep=1.0)
    assert sum(map(len, read_expansions(tmp_path, corpus_of()))) == 3 * NUM


def test_a_finished_folder_is_not_finished_while_it_is_rewritten(tmp_path):
    """A reader must never take a folder whose shards are being judged for a whole one."""
    write(tmp_path).finish()
    writer = writer_of(tmp_path)
    assert writer.unscored("scorer-1")
    with pytest.raises(DataError, match="not finished"):
        read_expansions(tmp_path, corpus_of())


def test_the_script(music, fast_config, tiny_backbone, tmp_path, monkeypatch, capsys):
    """From a model's export to a folder that reads back; a wrong argument is named before anything is written."""
    doc2query_network(str(tiny_backbone), max_length=32).save(tmp_path / "export")

    def run(*flags: object) -> None:
        given = (
            "--config",
            fast_config,
            "--model",
            tmp_path / "export",
            "--data",
            music,
            "--num_queries",
            2,
            "--top_k",
            0,
        )
        sizes = ("--max_query_length", 4, "--max_length", 16, "--shard", 20)
        monkeypatch.setattr(sys, "argv", ["expand.py", *map(str, (*given, *sizes, *flags))])
        expand.run()

    run("--out", tmp_path / "out")
    corpus = open_dataset(music).corpus
    assert f"{len(corpus)} documents in" in capsys.readouterr().out
    found = read_expansions(tmp_path / "out", corpus)
    assert len(found) == len(corpus)
    assert 0 < sum(map(len, found)) <= 2 * len(corpus)
    with pytest.raises(DataError, match="seed: made with 0, asked for 1"):
        run("--out", tmp_path / "out", "--seed", 1)
    with pytest.raises(ConfigError, match="--out"):
        run()
