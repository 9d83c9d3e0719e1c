"""The event store keeps what it acknowledged, once, and gives it back in order. Kills: test_store_kill.py."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from ltrr.feedback import schema
from ltrr.feedback import store as store_module
from ltrr.feedback.events import Action, Allocation, Impression, digest_of
from ltrr.feedback.schema import IMPRESSIONS, impression_of, micros, row_of
from ltrr.feedback.store import EventStore
from ltrr.types import Context

pytest_plugins = ["tests.event_databases"]

NOW = datetime(2026, 1, 5, 12, 0, 0, 123457, UTC)
EAST = timezone(timedelta(hours=5, minutes=30))
FULL = Impression(
    id="full",
    time=NOW.astimezone(EAST),
    query="Béyond  “Love” 愛 \U0001f3b5",
    shown=("b", "愛", 'c"\\'),
    scores=(0.1 + 0.2, -1e-300, 3),
    ranks=((0, None), (None, 7), (None, None)),
    session="s",
    context=Context("c", "en-GB", datetime(2026, 1, 5, 17, tzinfo=EAST), "phone", {"type": "song", "a": "b"}),
    arms=("x", "y"),
    features=(1 / 3, 1e17),
    action_features=((0.5,), (2.5,)),
    drawn=Allocation((50, 10), 40),
    executed=Allocation((50, 0), 40),
    prices={"candidates, 10 a query": 0.01},
    propensity=1 / 3,
    marginals=(0.1, 1.0, 5e-9),
    policy="linucb-3",
    models={"ranker": "abc", "dense": "d"},
    explored="愛",
    explored_place=1,
    explored_propensity=0.7,
)


def shown(n: int | str, customer: str | None = "c", after: float = 0) -> Impression:
    return Impression(f"i{n}", NOW + timedelta(seconds=after), "love", ("a", "b"), context=Context(customer))


def click(n: int | str, impression: int | str, after: float = 1) -> Action:
    return Action(f"a{n}", f"i{impression}", "a", "click", NOW + timedelta(seconds=after))


def flat(batches) -> list:
    return [item for batch in batches for item in batch]


def ids(store: EventStore) -> list[str]:
    return [row.id for row in flat(store.shown())] + [row.id for row in flat(store.acted())]


def test_the_same_event_again_is_silent_and_other_content_is_not(store, recwarn):
    store.append([FULL, FULL, click(1, 1)])
    store.append([replace(FULL, context=replace(FULL.context, attributes={"a": "b", "type": "song"})), click(1, 1)])
    assert store.conflicts == 0
    assert not recwarn
    with pytest.warns(UserWarning, match="'full' came again with other content"):
        store.append([replace(FULL, query="other"), shown(2)])
    store.append([click(1, 2)])
    assert store.conflicts == 2
    assert not [w for w in recwarn if "came again" in str(w.message)]  # once
    assert [event for _, event in flat(store.impressions()) + flat(store.actions())] == [FULL, shown(2), click(1, 1)]


def test_actions_come_when_they_like(store):
    store.append([click(1, 1)])
    store.append([shown(1), click(2, 1, after=1e6), shown(2)])
    store.append([click(1, 1), click(3, "never")])
    expected = [(1, shown(1), [click(1, 1), click(2, 1, after=1e6)]), (2, shown(2), [])]
    assert flat(store.rounds()) == expected


def test_a_bad_event_takes_no_other_down(store, hold):
    bad = shown("bad")
    object.__setattr__(bad, "propensity", 2.0)  # the database finds it
    with hold():
        futures = [store.submit(events) for events in ([shown(1)], [shown(2)], [bad, shown(3)], [click(4, 1)])]
    assert [type(future.exception(30)) for future in futures] == [type(None)] * 2 + [IntegrityError, type(None)]
    assert ids(store) == ["i1", "i2", "a4"]  # an append is whole or not at all
    store.append([shown(3)])


def test_many_threads_share_commits(store, hold):
    with hold():
        futures = [store.submit([shown(n)]) for n in range(500)]
    for future in futures:
        assert future.result(30) is None
    assert store.commits <= 2  # one that waited for the lock, one of all that came meanwhile
    threads = [
        threading.Thread(target=lambda t=t: [store.append([click(f"{t}-{n}", n)]) for n in range(10)])
        for t in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids(store))) == len(ids(store)) == 660


def test_acknowledged_after_the_commit_in_order_of_commits(store, hold):
    with hold() as connection:
        row = dict(zip(IMPRESSIONS.c.keys()[1:], row_of(shown("first")), strict=True)) | {"shown": [], "body": {}}
        connection.execute(sa.insert(IMPRESSIONS).values(**row))
        future = store.submit([shown("second")])
        with pytest.raises(TimeoutError):
            future.result(0.2)
        assert ids(store) == []  # a reader who saw the second first would never see the first
    future.result(30)
    assert [(row.seq, row.id) for row in flat(store.shown())] == [(1, "ifirst"), (2, "isecond")]


def test_a_cancelled_future_is_written_all_the_same(store):
    future = store.submit([shown(1)])
    assert not future.cancel()
    store.append([shown(2)])
    assert ids(store) == ["i1", "i2"]


def test_locks_and_lost_connections_pass(url, hold, monkeypatch):
    monkeypatch.setitem(schema._PREPARE, "sqlite", (*schema._PREPARE["sqlite"], "PRAGMA busy_timeout = 1"))
    with EventStore(url) as store:
        if url.startswith("sqlite"):
            with hold():
                future = store.submit([shown(1)])
                with pytest.raises(TimeoutError):
                    future.result(0.2)  # tried more than once by now
        else:
            with hold() as connection:
                future = store.submit([shown(1)])
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
        future.result(30)
        monkeypatch.setattr(store_module, "_WAITS", (0.01,))
        monkeypatch.setattr(store, "_insert", dict.fromkeys(store._insert, "INSERT INTO nowhere VALUES (1)"))
        first, second = store.submit([shown(2)]), store.submit([shown(3)])
        assert isinstance(first.exception(30), DBAPIError)
        assert isinstance(second.exception(30), DBAPIError)  # everyone who waits is told
        monkeypatch.undo()
        assert ids(store) == ["i1"]


def test_closed_and_dead_stores_refuse(url, monkeypatch):
    store = EventStore(url)
    futures = [store.submit([shown(n)]) for n in range(50)]
    store.close()
    store.close()
    assert [future.result(0) for future in futures] == [None] * 50  # committed before it closed
    with pytest.raises(RuntimeError, match="closed"):
        store.append([shown(51)])
    with EventStore(url) as store:
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        monkeypatch.setattr(store, "_commit", lambda *_: sys.exit())
        with pytest.raises(RuntimeError, match="its writer died"):
            store.append([shown(52)])
        with pytest.raises(RuntimeError, match="closed, or its writer is dead"):
            store.append([shown(53)])
        assert len(ids(store)) == 50


def test_reading_goes_on_where_it_was(store, monkeypatch):
    monkeypatch.setattr(store_module, "_GROUP", 3)
    store.append([event for n in range(10) for event in (shown(n, after=n), click(n, n, after=n))])
    assert [len(batch) for batch in store.shown()] == [3, 3, 3, 1]
    assert [len(batch) for batch in store.rounds()] == [3, 3, 3, 1]
    assert [row.id for row in flat(store.shown(after=7))] == ["i7", "i8", "i9"]
    assert list(store.acted(after=10)) == []
    some = {"since": NOW + timedelta(seconds=2), "until": NOW + timedelta(seconds=8), "after": 4}
    assert flat(store.impressions(**some)) == [(n + 1, shown(n, after=n)) for n in range(4, 8)]
    assert flat(store.actions(**some)) == [(n + 1, click(n, n, after=n)) for n in range(4, 8)]
    assert [(seq, did[0].id) for seq, _, did in flat(store.rounds(**some))] == [(n + 1, f"a{n}") for n in range(4, 8)]


def test_erasing_a_customer(store, url):
    secret = replace(shown(2, "gone"), query="mygreatsecret")
    store.append([shown(1), click(1, 1), secret, click(2, 2), click(3, 2), shown(3, None)])
    assert store.erase("gone") == (1, 2)
    assert store.erase("gone") == (0, 0)
    assert ids(store) == ["i1", "i3", "a1"]
    store.append([shown(4)])
    assert [row.seq for row in flat(store.shown())] == [1, 3, 4]
    assert store.last() == (4, 3)
    assert [digest for _, digest in store.erasures()] == [digest_of("gone")] * 2
    assert store.erasures(after=2) == []
    if url.startswith("sqlite"):  # nor in the log of a store that is open
        file = Path(url.removeprefix("sqlite:///"))
        assert not any(b"mygreatsecret" in path.read_bytes() for path in file.parent.glob(f"{file.name}*"))
    store.close()
    if url.startswith("sqlite"):
        file = Path(url.removeprefix("sqlite:///"))
        assert [f.name for f in file.parent.iterdir()] == [file.name]
        assert b"mygreatsecret" not in file.read_bytes()


def test_what_is_old_expires_while_others_write(store, monkeypatch):
    monkeypatch.setattr(store_module, "_GROUP", 4)
    store.append([event for n in range(20) for event in (shown(n, after=n), click(n, n, after=n + 5))])
    store.append([click("orphan", "never", after=0)])
    future = store.submit([shown("new", after=100)])
    assert store.expire(NOW + timedelta(seconds=10)) == (10, 11)
    future.result(30)
    assert ids(store) == [*(f"i{n}" for n in range(10, 20)), "inew", *(f"a{n}" for n in range(10, 20))]
    assert store.expire(NOW + timedelta(seconds=10)) == (0, 0)


def test_export_is_whole_and_comes_back(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_GROUP", 4)
    days = [shown(n, after=86_400 * (n % 3)) for n in range(10)]
    store.append([FULL, *days, click(1, 1)])
    out = tmp_path / "exports" / "january"
    store.export(out)
    read = {}
    for file in sorted(out.rglob("*.parquet")):
        read[str(file.parent.relative_to(out))] = pq.ParquetFile(file).read().to_pylist()
    days_of = {f"impressions/day=2026-01-0{d}" for d in (5, 6, 7)}
    assert set(read) == {*days_of, "actions/day=2026-01-05"}
    rows = [row for name in sorted(days_of) for row in read[name]]
    back = [
        (
            r["seq"],
            impression_of(SimpleNamespace(**r | {"time": micros(r["time"]), "body": json.loads(r["body"])})),
        )
        for r in rows
    ]
    assert sorted(back, key=lambda pair: pair[0]) == flat(store.impressions())
    assert read["actions/day=2026-01-05"][0]["time"] == NOW + timedelta(seconds=1)
    with pytest.raises(ValueError, match="january is there already"):
        store.export(out)
    monkeypatch.setattr(store_module, "_arrow", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.export(tmp_path / "exports" / "february")
    assert [path.name for path in out.parent.iterdir()] == ["january"]  # no half
