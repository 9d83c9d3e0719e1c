"""Memory's answers after a long random stream are those of version 0.1, before evidence became a package of its own.

`memory_frozen.json` holds them, written by the code before that change (commit f794934) with this file in its tree:

    PYTHONPATH=. python tests/arms/test_memory_frozen.py > tests/arms/memory_frozen.json
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltrr.arms.memory import Memory
from ltrr.data.beir import Corpus, open_dataset
from ltrr.data.expansions import Expansion, ExpansionWriter
from ltrr.feedback.events import Action, Impression
from ltrr.types import Context, Query

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
WORDS = ["love", "song", "tune", "river", "golden", "summer", "winter", "night", "echo", "zorp", "tale", "my"]
SETTINGS: dict[str, dict[str, Any]] = {
    "words": {"budget": 100.0, "credit": 0.7, "alike": 0.47},
    "meaning": {"distinct": 2, "half_life": 20.0, "neighbours": 500, "alike": 0.43, "sharpness": 3.0, "predicted": 0.8},
    "itself": {"neighbours": 0, "cap": 1.5, "strength": 0.5, "examination": [0.9, 0.6, 0.3]},
}


class Meanings:
    """An encoder of bags of letters, so that words with the same letters are alike."""

    id = "letters"

    def encode(self, texts, *, is_query: bool = False) -> np.ndarray:
        out = np.zeros((len(texts), 26), np.float32)
        for i, text in enumerate(texts):
            for letter in text:
                out[i, ord(letter) % 26] += 1
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def write_corpus(folder: Path) -> Corpus:
    rng = np.random.default_rng(0)
    titles = [" ".join(rng.choice(WORDS, 2)) for _ in range(16)]
    lines = [json.dumps({"_id": f"d{i}", "title": title, "text": ""}) for i, title in enumerate(titles)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "love"}))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    return open_dataset(folder).corpus


def write_expansions(folder: Path, corpus: Corpus) -> str:
    writer = ExpansionWriter(folder, corpus, model="m", settings={}, shard=16)
    for rows in writer.missing():
        writer.write(rows, [[Expansion(corpus[row].title, -1.0 - row / 8, 4)] for row in rows])
    writer.finish()
    return str(folder)


def stream(num: int) -> list[Impression | Action]:
    """Sessions of one to three queries; clicks, plays and dismissals, many late, some before their impression."""
    rng = np.random.default_rng(7)
    events: list[tuple[float, Impression | Action]] = []
    for n in range(num):
        time = START + timedelta(minutes=40 * (n // 3) + 3 * (n % 3))
        customer = f"c{min(rng.geometric(0.25), 9)}" if rng.random() < 0.9 else None
        if n % 3 == 0 or rng.random() < 0.2:
            who = Context(customer)
        words = rng.choice(WORDS, 1 + rng.integers(2), replace=False)
        shown = tuple(f"d{row}" for row in rng.choice(18, 6, replace=False))  # two are not in the corpus
        events.append((n, Impression(f"i{n}", time, " ".join(words), shown, session=f"s{n // 3}", context=who)))
        for place, entity in enumerate(shown):
            if rng.random() < 0.35:
                kind = str(rng.choice(["click", "favourite", "play", "dismiss"], p=[0.6, 0.1, 0.2, 0.1]))
                later = time + timedelta(minutes=float(rng.exponential(30)))
                action = Action(f"a{n}-{place}", f"i{n}", entity, kind, later, 40.0 if kind == "play" else None)  # type: ignore[arg-type]
                events.append((n + float(rng.normal(1, 3)), action))
    return [event for _, event in sorted(events, key=lambda pair: pair[0])]


def ask(memory: Memory) -> list[list[list[float]]]:
    """For each query and customer, the rows and scores of the ten best."""
    texts = [*WORDS, *(f"{a} {b}" for a, b in pairwise(WORDS)), "Golden  RIVER song!", "unheard"]
    queries = [Query("q", text, Context(customer)) for text in texts for customer in (None, "c1", "c4", "new")]
    found = memory.search(queries, 10)
    real = [docs >= 0 for docs in found.docs]
    return [
        [docs[some].tolist(), scores[some].astype(float).round(8).tolist()]
        for docs, scores, some in zip(found.docs, found.scores, real, strict=True)
    ]


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """Answers of a memory for each of SETTINGS, at five points of its life."""
    corpus = write_corpus(folder)
    expansion = write_expansions(folder / "expansions", corpus)
    events, out = stream(900), {}
    for name, settings in SETTINGS.items():
        encoder = Meanings() if name == "meaning" else None
        options: dict[str, Any] = settings | ({"expansion": expansion} if name != "words" else {})
        memory, again = Memory(corpus, encoder, **options), Memory(corpus, encoder, **options)
        got: dict[str, Any] = {}
        for start in range(0, 1500, 25):
            memory.observe(events[start : start + 25])
        got["stream"] = ask(memory)
        memory.save(folder / "memory.npz")
        memory.compact()
        memory.erase("c1")
        got["erased"] = ask(memory)
        again.load(folder / "memory.npz")
        again.observe(events[1400:])
        got["restored"] = ask(again)
        again.observe([Impression("late", START + timedelta(days=200), "love", ("d1",), context=Context("c1"))])
        again.compact()
        got["decayed"] = ask(again)
        got["observed"] = [[row, text, round(score, 8)] for row, text, score in sorted(again.observed())]
        out[name] = got
    return out


@pytest.fixture(scope="module")
def now(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return answers(tmp_path_factory.mktemp("frozen"))


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_are_those_of_before(now, name):
    frozen = json.loads((Path(__file__).parent / "memory_frozen.json").read_text())[name]
    assert [pair[:2] for pair in now[name]["observed"]] == [pair[:2] for pair in frozen["observed"]]
    scores = [score for *_, score in frozen["observed"]]
    assert [score for *_, score in now[name]["observed"]] == pytest.approx(scores, abs=1e-6)
    for point in ("stream", "erased", "restored", "decayed"):
        assert sum(len(rows) for rows, _ in frozen[point]) > 100, point
        for (rows, values), (rows_then, values_then) in zip(now[name][point], frozen[point], strict=True):
            assert dict(zip(rows, values, strict=True)) == pytest.approx(
                dict(zip(rows_then, values_then, strict=True)), abs=1e-6
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(answers(Path(temporary)), separators=(",", ":")))
