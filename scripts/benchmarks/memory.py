"""Memory at size: replay of a million events from the store, lookups among a million pairs, snapshots.

Queries are Zipf distributed over 120,000 texts of two to four words, which makes more than a million pairs. Memory
compares words only: encoding queries is the encoder's cost.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from registry import Options, Row, benchmark
from timing import each_ms, seconds
from tqdm import tqdm

from ltrr.arms.memory import Memory
from ltrr.data.beir import Corpus, open_dataset
from ltrr.feedback.events import Action, Impression
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.types import Context, Query

_START = datetime(2026, 1, 1, tzinfo=UTC)
_QUERIES, _ENTITIES, _CUSTOMERS, _WORDS = 120_000, 20_000, 50_000, 8_000
_BATCH = 5_000  # events appended to the store at once
_LOOKUPS = 2_000


def _corpus(folder: Path, rng: np.random.Generator) -> Corpus:
    """Entities whose titles are three words."""
    words = rng.zipf(1.3, (_ENTITIES, 3)) % _WORDS
    lines = [
        json.dumps({"_id": f"e{i}", "title": " ".join(f"w{w}" for w in row), "text": ""}) for i, row in enumerate(words)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "w1"}))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\te0\t1\n")
    return open_dataset(folder).corpus


def _events(rng: np.random.Generator, texts: list[str], num: int) -> list[Impression | Action]:
    """`num` events; each query brings the same thirty entities, ten at a time."""
    out: list[Impression | Action] = []
    n = 0
    popular = rng.zipf(1.15, num) % _QUERIES
    while len(out) < num:
        query = int(popular[n])
        near = (query * 7919 + np.arange(30) * 131) % _ENTITIES
        shown = tuple(f"e{row}" for row in rng.permutation(near)[:10])
        when = _START + timedelta(seconds=20 * n)
        who = Context(f"c{rng.integers(_CUSTOMERS)}")
        out.append(Impression(f"i{n}", when, texts[query], shown, session=f"s{n // 2}", context=who))
        if rng.random() < 2 / 3:
            out.append(Action(f"a{n}", f"i{n}", shown[int(rng.integers(4))], "click", when + timedelta(seconds=3)))
        n += 1
    return out[:num]


@benchmark()
def replay(options: Options) -> Iterator[Row]:
    """Write, replay, lookups, snapshot and restart of a memory of --events (a million).

    A lookup asks one query of a known customer; half of the queries are remembered, half resemble one. A search waits
    during a snapshot.
    """
    rng, num = np.random.default_rng(0), options.events or 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = _corpus(folder, rng)
        words, lengths = rng.zipf(1.3, (_QUERIES, 4)) % _WORDS, rng.integers(2, 5, _QUERIES)
        texts = [" ".join(f"w{w}" for w in row[:length]) for row, length in zip(words, lengths, strict=True)]
        with EventStore(f"sqlite:///{folder}/events.db") as store:
            yield Row("events", num, "events")
            yield Row("write", _write(store, _events(rng, texts, num)), "s")
            memory = Memory(corpus)
            start = time.perf_counter()
            loop = Loop(store, {"memory": memory}, memory.rows, folder / "learned")
            yield Row("replay", time.perf_counter() - start, "s")
            yield Row("pairs", len(memory), "pairs")
            yield Row("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")
            # The first lookup indexes the words of new queries.
            yield Row("first lookup", seconds(lambda: memory.search([Query("q", "w1 w2")], 10)), "s")
            queries = []
            for number in rng.integers(0, _QUERIES, _LOOKUPS).tolist():
                text = texts[number] if number % 2 else f"{texts[number]} w{rng.integers(_WORDS)}"
                queries.append(Query("q", text, Context(f"c{rng.integers(_CUSTOMERS)}")))
            spent = each_ms(lambda query: memory.search([query], 100), queries)
            yield Row("lookup, median", float(np.median(spent)), "ms")
            yield Row("lookup, p99", float(np.quantile(spent, 0.99)), "ms")
            yield Row("snapshot", seconds(loop.snapshot), "s")
            restarted = Memory(corpus)
            spent = seconds(lambda: Loop(store, {"memory": restarted}, restarted.rows, folder / "learned"))
            yield Row("restart", spent, "s")
            assert len(restarted) == len(memory)


def _write(store: EventStore, events: list[Impression | Action]) -> float:
    """Seconds to append the events in batches."""

    def run() -> None:
        for at in tqdm(range(0, len(events), _BATCH), "write", unit="batch"):
            store.append(events[at : at + _BATCH])

    return seconds(run)
