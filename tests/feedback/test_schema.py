"""Every field comes back, the database itself refuses what cannot be, migrations make the declared tables."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from ltrr.feedback import schema
from ltrr.feedback.events import Action, Impression
from ltrr.feedback.schema import ACTIONS, IMPRESSIONS, METADATA, micros, row_of
from ltrr.feedback.store import EventStore
from ltrr.types import Context
from tests.feedback.test_store import FULL, NOW, click, flat, ids, shown

pytest_plugins = ["tests.event_databases"]


def test_every_field_comes_back(store, hold):
    plain = Impression("plain", NOW, "", ())
    assert not [f.name for f in fields(Impression)[3:] if getattr(FULL, f.name) == getattr(plain, f.name)]
    naive = replace(plain, id="naive", context=Context(time=datetime(2026, 1, 5)))
    old = replace(plain, id="old", time=datetime(1969, 12, 31, 23, 59, 59, 999999, UTC))
    played = Action("p", "full", "b", "play", NOW, 31.7)
    store.append([FULL, played, plain, naive, old, click(1, 1)])
    assert flat(store.impressions()) == [(1, FULL), (2, plain), (3, naive), (4, old)]
    assert flat(store.actions()) == [(1, played), (2, click(1, 1))]
    query = FULL.normalised, FULL.query
    assert flat(store.shown())[0] == (1, "full", "c", "s", micros(NOW), *query, ["b", "愛", 'c"\\'])
    assert flat(store.acted())[0] == (1, "p", "full", "b", "play", micros(NOW), 31.7)
    with hold() as connection:
        columns = connection.execute(sa.select(IMPRESSIONS.c.customer, IMPRESSIONS.c.policy, IMPRESSIONS.c.propensity))
        assert columns.first() == ("c", "linucb-3", 1 / 3)


def test_the_database_itself_refuses(store, hold):
    good = dict(zip(IMPRESSIONS.c.keys()[1:], row_of(shown(1)), strict=True)) | {"shown": ["a"], "body": {}}
    did = dict(zip(ACTIONS.c.keys()[1:], row_of(click(1, 1)), strict=True))
    bad = [(IMPRESSIONS, good | {"propensity": p}) for p in (0.0, 1.0000001, -0.5, float("nan"), None)]
    bad += [(ACTIONS, did | {"kind": "buy"}), (ACTIONS, did | {"seconds": -1.0})]
    for table, row in bad:
        with pytest.raises(IntegrityError), hold() as connection:
            connection.execute(sa.insert(table).values(**row))
    with hold() as connection:
        connection.execute(sa.insert(IMPRESSIONS).values(**good))
        connection.execute(sa.insert(ACTIONS).values(**did))
    assert len(ids(store)) == 2


def test_migrations_make_the_declared_tables_and_open_what_is_there(url, hold):
    with EventStore(url) as store:
        store.append([shown(1)])
    with EventStore(url) as store, hold() as connection:
        assert ids(store) == ["i1"]
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA) == []
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ValueError, match="schema '9999' of a newer ltrr"):
        EventStore(url)


def test_a_database_without_explored_candidates_is_migrated(url, hold, monkeypatch):
    """What is read from it explored none, and new pages may."""
    upgrade = schema.command.upgrade
    monkeypatch.setattr(schema.command, "upgrade", lambda config, _: upgrade(config, "0002"))
    old = dict(zip(IMPRESSIONS.c.keys()[1:], row_of(replace(FULL, id="old")), strict=True))
    old = {name: value for name, value in old.items() if not name.startswith("explored")}
    into = f"INSERT INTO impressions ({', '.join(old)}) VALUES ({', '.join(f':{name}' for name in old)})"
    with hold() as connection:
        connection.execute(sa.text(into), old)
    monkeypatch.undo()
    with EventStore(url) as store, hold() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "0003"
        (null,) = connection.execute(sa.select(IMPRESSIONS.c.explored_propensity)).all()
    with EventStore(url) as store:
        store.append([FULL])
        none = replace(FULL, id="old", explored=None, explored_place=-1, explored_propensity=1.0)
        assert flat(store.impressions()) == [(1, none), (2, FULL)]
    assert null == (None,)


def test_a_migration_in_one_go(url, hold, monkeypatch):
    monkeypatch.setattr(schema.command, "upgrade", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        EventStore(url)
    monkeypatch.undo()
    with EventStore(url) as store:  # nothing half made is in the way
        store.append([shown(1)])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("events.db", "no database URL"),
        ("mysql://u:secret@h/d", r"'mysql://u:\*\*\*@h/d' is not sqlite:///FILE or postgresql"),
        ("sqlite://", "is not sqlite:///FILE"),
        ("sqlite:///:memory:", "is not sqlite:///FILE"),
        ("sqlite+aiosqlite:///x.db", "is not sqlite:///FILE"),
        ("postgresql+psycopg://u:secret@/d?host=/nowhere", r"u:\*\*\*@/d\?host=.* cannot be opened|needs psycopg"),
    ],
)
def test_urls_that_lead_nowhere(bad, message):
    with pytest.raises(ValueError, match=message) as refusal:
        EventStore(bad)
    assert "secret" not in str(refusal.value)


def test_what_is_no_database_or_has_no_driver(tmp_path, monkeypatch):
    (tmp_path / "x.db").write_text("no database, but some text that is long enough to be looked at" * 20)
    with pytest.raises(ValueError, match=r"x\.db' cannot be opened: file is not a database"):
        EventStore(f"sqlite:///{tmp_path}/x.db")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"pip install 'ltrr\[scale\]'"):
        EventStore("postgresql+psycopg://u@h/d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "a\0b"}, "it has a NUL"),
        ({"shown": ("愛", "\ud800"), "scores": (), "ranks": (), "explored_place": 0}, "surrogates not allowed"),
        ({"features": (float("inf"), float("nan"))}, "a score, feature or price is not finite"),
        ({"marginals": (), "ranks": (), "models": {"a": object()}}, "Unable to serialize"),
        ({"context": Context("c" * 201)}, "at most 200 characters"),
    ],
)
def test_what_no_database_holds_is_refused_at_once_and_whole(store, change, message):
    with pytest.raises(ValueError, match=f"impression 'full' cannot be stored: .*{message}"):
        store.submit([shown(1), replace(FULL, **change)])
    assert ids(store) == []


def test_features_may_be_unknown(store):
    store.append([replace(FULL, features=(0.5, float("nan"), -1.0))])
    ((_, found),) = next(iter(store.impressions()))
    assert found.features == pytest.approx((0.5, float("nan"), -1.0), nan_ok=True)


def test_a_commit_is_on_disk(store):
    """Whatever the server's own setting, which is `off` here."""
    sqlite = store._engine.name == "sqlite"
    question, answer = ("PRAGMA synchronous", 2) if sqlite else ("SHOW synchronous_commit", "on")
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql(question).scalar() == answer
        if sqlite:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
