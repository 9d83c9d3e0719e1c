"""kill -9: what was acknowledged is there, once; what was not is there whole or not at all.

Writers are forks of the test; each notes an append, of an impression and an action, in a file after it returned.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import select
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from sqlalchemy.event import listen

from ltrr.feedback.events import Action, Impression
from ltrr.feedback.schema import open_database
from ltrr.feedback.store import EventStore
from tests.feedback.test_store import NOW, click, flat, shown

pytest_plugins = ["tests.event_databases"]
FORK = multiprocessing.get_context("fork")
TIMES = pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
SHOWN = tuple(f"entity-{n}" for n in range(200))  # so that a commit takes some pages


def pair(name: str) -> list[Impression | Action]:
    """The same again for the same name."""
    return [replace(shown(name), shown=SHOWN), replace(click(name, name), time=NOW)]


def append_until(store: EventStore, noted: Path, stop: Path, name: str, first: int = 0) -> None:
    with open(noted, "ab", buffering=0) as notes:
        for n in itertools.count(first):
            if stop.exists():
                return
            store.append(pair(f"{name}-{n}"))
            notes.write(f"{name}-{n}\n".encode())


def one_writer(url: str, noted: Path, stop: Path, name: str) -> None:
    """It begins at 0 again when it is started again: whoever does not know tries again."""
    with EventStore(url) as store:
        append_until(store, noted, stop, name)


def four_threads(url: str, noted: Path, stop: Path, name: str, pipe: int) -> None:
    """Says in the pipe that a commit begins."""
    with EventStore(url) as store:
        listen(store._engine, "commit", lambda _: os.write(pipe, b"."))
        threads = [
            threading.Thread(target=append_until, args=(store, noted.with_suffix(f".{t}"), stop, f"{name}-{t}"))
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def wait(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise TimeoutError("a writer does nothing")


def start(target: Callable, *args) -> BaseProcess:
    process = FORK.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def check(url: str, notes: list[Path]) -> int:
    """What is noted is there; all is there once and whole. How many were noted."""
    acknowledged = {line for path in notes for line in path.read_text().split("\n")[:-1]}
    with EventStore(url) as store:
        rounds = flat(store.rounds())
    stored = [impression.id[1:] for _, impression, _ in rounds]
    assert len(stored) == len(set(stored))
    assert acknowledged - set(stored) == set()
    for _, impression, actions in rounds:
        assert [impression, *actions] == pair(impression.id[1:])
    engine = open_database(url)
    if engine.name == "sqlite":
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    engine.dispose()
    return len(acknowledged)


@TIMES
def test_four_writers_and_one_is_killed(url, tmp_path, times):
    rng = random.Random()
    num = 0
    for turn in range(times):
        stop, notes = tmp_path / f"stop-{turn}", [tmp_path / f"{turn}-{w}" for w in range(4)]
        writers = [start(one_writer, url, path, stop, path.name) for path in notes]  # all open, and make, the database
        wait(lambda notes=notes: all(path.exists() and path.stat().st_size for path in notes))
        time.sleep(rng.uniform(0, 0.1))
        writers[0].kill()
        writers[0].join()
        sizes = [path.stat().st_size for path in notes[1:]]
        wait(
            lambda notes=notes, old=sizes: all(p.stat().st_size > size for p, size in zip(notes[1:], old, strict=True))
        )
        again = tmp_path / f"{turn}-again"
        writers[0] = start(one_writer, url, again, stop, notes[0].name)
        wait(lambda again=again, old=notes[0]: again.exists() and again.stat().st_size > old.stat().st_size)
        stop.touch()
        for writer in writers:
            writer.join(60)
            assert writer.exitcode == 0
        notes.append(again)
        num = check(url, [path for path in tmp_path.glob("[0-9]*-*")])
    assert num >= 5 * times


@TIMES
def test_one_process_is_killed_in_its_commit(url, tmp_path, times):
    rng = random.Random()
    EventStore(url).close()
    for turn in range(times):
        reader, writer = os.pipe()
        process = start(four_threads, url, tmp_path / f"{turn}-x", tmp_path / "never", f"{turn}", writer)
        os.close(writer)
        for _ in range(rng.randrange(10, 40)):  # commits
            assert select.select([reader], [], [], 60)[0]
            assert os.read(reader, 1)
        time.sleep(rng.choice((0, rng.uniform(0, 0.002), rng.uniform(0, 0.02))))
        process.kill()
        process.join()
        os.close(reader)
        assert process.exitcode == -9
        assert check(url, list(tmp_path.glob("*-x.*"))) > 5 * turn
