"""Memory at size: replay of a million events from the store, lookups among a million pairs, snapshots.

python scripts/benchmark_memory.py [--events 1000000] [--out runs/benchmark_memory]

    write     that many events into a new SQLite store, in bulk (three impressions of ten entities to two clicks)
    replay    a new Loop reads them all and teaches memory (words only: encoding queries is the encoder's cost)
    lookup    one query at a time, half of them remembered, half like some; of known customers
    snapshot  compaction and saving, during which a search waits; loading it again

Queries are Zipf distributed over 120,000 of two to four words, so that there are more than a million pairs.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ltrr.arms.memory import Memory
from ltrr.cli.arguments import main
from ltrr.data.beir import Corpus, open_dataset
from ltrr.feedback.events import Action, Impression
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.files import atomic_write
from ltrr.types import Context, Query

_START = datetime(2026, 1, 1, tzinfo=UTC)
_QUERIES, _ENTITIES, _CUSTOMERS, _WORDS = 120_000, 20_000, 50_000, 8_000
_BATCH = 5_000  # events given to the store at once


def titles(folder: Path, rng: np.random.Generator) -> Corpus:
    words = rng.zipf(1.3, (_ENTITIES, 3)) % _WORDS
    lines = [
        json.dumps({"_id": f"e{i}", "title": " ".join(f"w{w}" for w in row), "text": ""}) for i, row in enumerate(words)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "w1"}))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\te0\t1\n")
    return open_dataset(folder).corpus


def events(rng: np.random.Generator, asked: list[str], num: int) -> list[Impression | Action]:
    """About `num` events; a query brings the same thirty entities, ten at a time."""
    out: list[Impression | Action] = []
    n = 0
    popular = rng.zipf(1.15, num) % _QUERIES
    while len(out) < num:
        query = int(popular[n])
        near = (query * 7919 + np.arange(30) * 131) % _ENTITIES
        shown = tuple(f"e{row}" for row in rng.permutation(near)[:10])
        when = _START + timedelta(seconds=20 * n)
        who = Context(f"c{rng.integers(_CUSTOMERS)}")
        out.append(Impression(f"i{n}", when, asked[query], shown, session=f"s{n // 2}", context=who))
        if rng.random() < 2 / 3:
            out.append(Action(f"a{n}", f"i{n}", shown[int(rng.integers(4))], "click", when + timedelta(seconds=3)))
        n += 1
    return out[:num]


def measure(num: int, folder: Path) -> dict[str, float]:
    rng = np.random.default_rng(0)
    corpus = titles(folder, rng)
    words = rng.zipf(1.3, (_QUERIES, 4)) % _WORDS
    lengths = rng.integers(2, 5, _QUERIES)
    asked = [" ".join(f"w{w}" for w in row[:length]) for row, length in zip(words, lengths, strict=True)]
    url = f"sqlite:///{folder}/events.db"
    found: dict[str, float] = {"events": num}
    made = events(rng, asked, num)
    start = time.perf_counter()
    with EventStore(url) as store:
        for at in tqdm(range(0, num, _BATCH), "write", unit="batch"):
            store.append(made[at : at + _BATCH])
        found["write_s"] = time.perf_counter() - start
        del made
        memory = Memory(corpus)
        start = time.perf_counter()
        loop = Loop(store, {"memory": memory}, memory.rows, folder / "learned")
        found |= {"replay_s": time.perf_counter() - start, "pairs": len(memory)}
        found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.perf_counter()
        memory.search([Query("q", "w1 w2")], 10)
        found["first_lookup_s"] = time.perf_counter() - start  # queries that are new get their words indexed
        spent = []
        for query in rng.integers(0, _QUERIES, 2_000).tolist():
            text = asked[query] if query % 2 else f"{asked[query]} w{rng.integers(_WORDS)}"
            one = [Query("q", text, Context(f"c{rng.integers(_CUSTOMERS)}"))]
            start = time.perf_counter()
            memory.search(one, 100)
            spent.append(time.perf_counter() - start)
        found["lookup_median_ms"], found["lookup_p99_ms"] = (1e3 * np.quantile(spent, [0.5, 0.99])).tolist()
        start = time.perf_counter()
        loop.snapshot()
        found["snapshot_s"] = time.perf_counter() - start
        start = time.perf_counter()
        again = Memory(corpus)
        Loop(store, {"memory": again}, again.rows, folder / "learned")
        found["restart_s"] = time.perf_counter() - start
        assert len(again) == len(memory)
    return found


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_memory"))
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(flags.events, Path(folder))
    text = json.dumps({name: round(value, 3) for name, value in found.items()}, indent=1)
    flags.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(flags.out / "results.json") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(run)
