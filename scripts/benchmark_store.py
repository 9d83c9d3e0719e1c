"""Events a second into the store, against raw inserts of the same rows in groups of the same size, in the same run.

python scripts/benchmark_store.py [--num 40000] [--repeats 5] [--out runs/store] [--postgres postgresql+psycopg://USER@HOST/DATABASE]

    store   EventStore of one process: threads append 1 to 16 events at a time (an impression of ten entities and five
            arms to half an action), and one submits as many and looks at the futures later
    raw     one thread: the rows ready, the driver's executemany, a commit after as many as the store's mean group

Both one after the other, --repeats times; figures are those of the median ratio. SQLite is a file with
synchronous=FULL. Without --postgres a server of its own is started in a temporary folder, where Debian's package is
installed. Both are on the disk of TMPDIR.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path

from ltrr.cli.arguments import main
from ltrr.feedback.events import Action, Allocation, Impression
from ltrr.feedback.schema import ACTIONS, IMPRESSIONS, METADATA, open_database, row_of
from ltrr.feedback.store import EventStore
from ltrr.types import Context

_ARMS = ("lexical", "structured", "dense", "sparse", "memory")
_THREADS = 15  # that append; one more loads in bulk
_AHEAD = 64  # batches that the loader leaves open


@contextmanager
def postgres_server(options: str = "") -> Iterator[str]:
    """URL of a PostgreSQL server on a socket in a temporary folder. FileNotFoundError where there is no pg_ctl."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)])
    control = shutil.which("pg_ctl", path=path)
    if control is None:
        raise FileNotFoundError("PostgreSQL is absent: no pg_ctl (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        who = {}
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            shutil.chown(folder, "postgres", "postgres")
            who = {"user": "postgres", "group": "postgres", "extra_groups": []}

        def run(*command: str) -> None:
            done = subprocess.run(
                [control, "-D", f"{folder}/data", *command], cwd=folder, capture_output=True, text=True, **who
            )
            if done.returncode:
                raise OSError(f"pg_ctl {command[0]}: {done.stdout}{done.stderr}")

        run("init", "-o", "-U postgres -A trust -E UTF8 --locale=C -N")
        try:
            run("start", "-w", "-l", f"{folder}/log", "-o", f"-k {folder} -c listen_addresses='' {options}")
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            with suppress(OSError):
                run("stop", "-m", "immediate")


def events(rng: random.Random, num: int) -> list[Impression | Action]:
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


def store(url: str, num: int = 40_000) -> dict[str, float]:
    """events_per_s, raw_per_s, their ratio and the mean group, of `num` events into an empty database.

    ValueError: it has events. Its tables are dropped and made again before the raw inserts.
    """
    rng = random.Random(0)
    made, sizes = deque(events(rng, num)), (1 + rng.randrange(16) for _ in range(num))
    batches = deque([[made.popleft() for _ in range(min(size, len(made)))] for size in sizes if made])
    rows = [(event, row_of(event)) for batch in batches for event in batch]  # for raw
    with EventStore(url) as opened:
        if any(opened.shown()) or any(opened.acted()):
            raise ValueError("benchmark_store: this database has events; name an empty one")

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
    raw = _raw(url, rows, group)
    return {"events_per_s": speed, "raw_per_s": raw, "ratio": speed / raw, "mean_group": group}


def _raw(url: str, rows: list[tuple[Impression | Action, tuple]], group: int) -> float:
    """Rows a second by the driver alone, into the same tables, empty again."""
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


def median(found: list[dict[str, float]]) -> dict[str, float]:
    """The run with the median ratio; the range of ratios."""
    ordered = sorted(found, key=lambda one: one["ratio"])
    return ordered[len(found) // 2] | {"lowest ratio": ordered[0]["ratio"], "highest ratio": ordered[-1]["ratio"]}


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=40_000, help="events a database (default 40000)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--postgres", help="URL of an empty database (default: a server of its own)")
    parser.add_argument("--out", type=Path, default=Path("runs/store"), help="folder (default runs/store)")
    flags = parser.parse_args()
    results = {"num": flags.num, "repeats": flags.repeats}
    with tempfile.TemporaryDirectory() as folder:
        results["sqlite"] = median([store(f"sqlite:///{folder}/{n}.db", flags.num) for n in range(flags.repeats)])
    try:
        with nullcontext(flags.postgres) if flags.postgres else postgres_server() as url:
            results["postgresql"] = median([store(url, flags.num) for _ in range(flags.repeats)])
    except FileNotFoundError as error:
        print(f"postgresql: {error}")
    text = json.dumps(results, indent=2)
    print(text)
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(run)
