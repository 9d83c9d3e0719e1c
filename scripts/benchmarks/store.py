"""Events a second into the store, against raw inserts of the same rows in groups of the same size.

Threads append 1 to 16 events at a time (an impression of ten entities and five arms to half an action), and one thread
submits as many and reads the futures later. The peer is one thread with the rows ready: the driver's executemany, and a
commit after as many rows as the store's mean group. Each follows the other --repeats times. SQLite is a file with
synchronous=FULL; both databases lie on the disk of TMPDIR.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import NamedTuple

from postgres import postgres_server
from registry import Options, Row, benchmark

from ltrr.feedback.events import Action, Allocation, Impression
from ltrr.feedback.schema import ACTIONS, IMPRESSIONS, METADATA, open_database, row_of
from ltrr.feedback.store import EventStore
from ltrr.types import Context

_ARMS = ("lexical", "structured", "dense", "sparse", "memory")
_THREADS = 15  # that append; one more loads in bulk
_AHEAD = 64  # batches that the loader leaves open
_EVENTS, _REPEATS = 40_000, 5


class _Speed(NamedTuple):
    """One run."""

    store: float  # events/s
    raw: float  # events/s
    group: int  # mean events of a commit of the store


@benchmark()
def sqlite(options: Options) -> Iterator[Row]:
    """Events/s into SQLite, against raw inserts; the run with the median ratio counts (--events, --repeats)."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _rows(options, (f"sqlite:///{folder}/{n}.db" for n in range(options.repeats or _REPEATS)))


@benchmark()
def postgresql(options: Options) -> Iterator[Row]:
    """Events/s into PostgreSQL, likewise; skipped where it is not installed and --postgres names no database."""
    try:
        with nullcontext(options.postgres) if options.postgres else postgres_server() as url:
            yield from _rows(options, (url for _ in range(options.repeats or _REPEATS)))
    except FileNotFoundError as error:
        print(f"store.postgresql: {error}", file=sys.stderr)


def _rows(options: Options, urls: Iterable[str]) -> Iterator[Row]:
    runs = sorted((_run(url, options.events or _EVENTS) for url in urls), key=lambda run: run.store / run.raw)
    median = runs[len(runs) // 2]
    raw = Row("raw inserts", median.raw, "events/s")
    yield raw
    yield Row("store", median.store, "events/s").against(raw)
    for which, run in (("lowest", runs[0]), ("highest", runs[-1])):
        yield Row(f"{which} ratio of {len(runs)} runs", run.store / run.raw, "ratio")
    yield Row("mean group", median.group, "events")


def _events(rng: random.Random, num: int) -> list[Impression | Action]:
    """Two impressions, an action, and so on."""
    out: list[Impression | Action] = []
    now = datetime.now(UTC)
    for n in range(num):
        shown = [f"entity-{rng.randrange(1_000_000):06d}" for _ in range(10)]
        if n % 3 == 2:
            out.append(Action(str(uuid.uuid4()), out[-1].id, shown[0], "click", now))
            continue
        ranks = [tuple(rng.randrange(100) if rng.random() < 0.5 else None for _ in _ARMS) for _ in shown]
        out.append(
            Impression(
                id=str(uuid.uuid4()),
                time=now,
                query=f"{rng.choice(('sad', 'new', 'live'))} songs {rng.randrange(5000)}",
                shown=tuple(dict.fromkeys(shown)),
                scores=tuple(rng.random() for _ in dict.fromkeys(shown)),
                ranks=tuple(ranks[: len(set(shown))]),
                session=f"s{rng.randrange(100_000)}",
                context=Context(f"c{rng.randrange(10_000)}", "en-GB", device="phone"),
                arms=_ARMS,
                features=tuple(rng.random() for _ in range(16)),
                drawn=Allocation((50,) * 5, 100),
                propensity=0.25,
                marginals=(0.5,) * 6,
                policy="fixed-1",
            )
        )
    return out


def _run(url: str, num: int) -> _Speed:
    """Writes `num` events into an empty database; drops and creates its tables again before the raw inserts.

    Errors: ValueError if the database has events.
    """
    rng = random.Random(0)
    remaining, sizes = deque(_events(rng, num)), (1 + rng.randrange(16) for _ in range(num))
    batches = deque([[remaining.popleft() for _ in range(min(size, len(remaining)))] for size in sizes if remaining])
    rows = [(event, row_of(event)) for batch in batches for event in batch]  # for raw
    with EventStore(url) as opened:
        if any(opened.shown()) or any(opened.acted()):
            raise ValueError("--postgres: this database has events; name an empty one")

        def appends() -> None:
            with suppress(IndexError):
                while True:
                    opened.append(batches.popleft())

        def loads() -> None:
            waiting = deque()
            with suppress(IndexError):
                while True:
                    waiting.append(opened.submit(batches.popleft()))
                    if len(waiting) > _AHEAD:
                        waiting.popleft().result()
            for future in waiting:
                future.result()

        threads = [threading.Thread(target=appends) for _ in range(_THREADS)] + [threading.Thread(target=loads)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        speed, group = num / (time.perf_counter() - start), round(num / opened.commits)
    return _Speed(speed, _raw(url, rows, group), group)


def _raw(url: str, rows: list[tuple[Impression | Action, tuple]], group: int) -> float:
    """Events/s of the driver alone, into the same tables, emptied before and after."""
    engine = open_database(url)
    with engine.execution_options(write=True).begin() as connection:
        METADATA.drop_all(connection, [IMPRESSIONS, ACTIONS])
        METADATA.create_all(connection, [IMPRESSIONS, ACTIONS])
    mark = "?" if engine.dialect.name == "sqlite" else "%s"
    inserts = []
    for table, kind in ((IMPRESSIONS, Impression), (ACTIONS, Action)):
        names = table.c.keys()[1:]
        inserts.append(
            (f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join([mark] * len(names))})", kind)
        )
    groups = [rows[start : start + group] for start in range(0, len(rows), group)]
    split = [
        [(sql, [row for event, row in some if isinstance(event, kind)]) for sql, kind in inserts] for some in groups
    ]
    connection = engine.raw_connection()
    cursor = connection.cursor()
    start = time.perf_counter()
    for some in split:
        if engine.dialect.name == "sqlite":
            cursor.execute("BEGIN IMMEDIATE")
        for sql, values in some:
            cursor.executemany(sql, values)
        connection.commit()
    spent = time.perf_counter() - start
    for table in (IMPRESSIONS, ACTIONS):
        cursor.execute(f"DELETE FROM {table.name}")
    connection.commit()
    connection.close()
    engine.dispose()
    return len(rows) / spent
