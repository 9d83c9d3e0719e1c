"""The event store's tables, conversion between events and rows, and opening and migrating a database.

Knows SQL, dialects and migrations; knows nothing about queues, threads or the use of events. Fields used in queries
have columns; the rest of an impression is in `body`. Times are UTC in whole microseconds. `seq` grows in the order of
commits, also across processes, because a writer holds the database's only write lock until it commits.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import to_json
from sqlalchemy import event, exc

from ltrr.feedback.events import KINDS, Action, Allocation, Impression
from ltrr.types import Context


def _keys(table: str) -> list[Any]:
    return [
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("id", sa.Text, nullable=False),  # chosen by the client
        sa.Column("time", sa.BigInteger, nullable=False, index=True),
        sa.UniqueConstraint("id", name=f"uq_{table}_id"),
    ]


METADATA = sa.MetaData()
IMPRESSIONS = sa.Table(
    "impressions",
    METADATA,
    *_keys("impressions"),
    sa.Column("customer", sa.Text, index=True),
    sa.Column("session", sa.Text),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("query", "normalised", "policy")),
    sa.Column("propensity", sa.Double, nullable=False),
    sa.Column("shown", sa.JSON, nullable=False),  # entities, best first
    sa.Column("body", sa.JSON, nullable=False),  # all other fields
    sa.Column("explored", sa.Text),  # entity at a reserved place; null = none was explored
    sa.Column("explored_place", sa.Integer),  # null = none
    sa.Column("explored_propensity", sa.Double),  # null = 1
    sa.CheckConstraint("propensity > 0 AND propensity <= 1", name="ck_impressions_propensity"),
    sqlite_autoincrement=True,  # numbers are never reused
)
ACTIONS = sa.Table(
    "actions",
    METADATA,
    *_keys("actions"),
    sa.Column("impression", sa.Text, nullable=False, index=True),  # no foreign key: the action may arrive first
    *(sa.Column(name, sa.Text, nullable=False) for name in ("entity", "kind")),
    sa.Column("seconds", sa.Double),
    sa.CheckConstraint(f"kind IN {KINDS}", name="ck_actions_kind"),
    sa.CheckConstraint("seconds >= 0", name="ck_actions_seconds"),
    sqlite_autoincrement=True,
)

ERASURES = sa.Table(
    "erasures",
    METADATA,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("customer", sa.Text, nullable=False),  # digest_of the name
    sqlite_autoincrement=True,
)
STORE = sa.Table("store", METADATA, sa.Column("id", sa.Text, primary_key=True))  # one row

_ARRAYS = ("scores", "ranks", "arms", "features", "action_features", "marginals")  # of `body`: tuples in an Impression
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOCK = 0x6C747272  # "ltrr" in ASCII, the key of PostgreSQL's advisory lock
_PREPARE = {
    "sqlite": ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA secure_delete = ON"),
    "postgresql": (
        "SELECT set_config(name, 'on', false) FROM pg_settings WHERE (name, setting) = ('synchronous_commit', 'off')",
    ),
}  # commits reach the disk before they return; SQLite overwrites erased rows


def micros(time: datetime) -> int:
    """Converts a time with a zone to UTC microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def row_of(event: Impression | Action) -> tuple:
    """Converts an event to its table's columns except `seq`. Raises ValueError for what cannot be stored."""
    try:
        if isinstance(event, Action):
            texts = event.impression, event.entity, event.kind
            row = event.id, micros(event.time), *texts, event.seconds
        else:
            who = event.context
            texts = who.customer, event.session, event.query, event.normalised, event.policy
            body: dict[str, Any] = {name: getattr(event, name) for name in _ARRAYS}
            body |= {"drawn": event.drawn, "executed": event.executed, "models": dict(event.models)}
            body["prices"] = dict(event.prices)
            body |= {"locale": who.locale, "time": who.time and who.time.isoformat(), "device": who.device}
            body["attributes"] = dict(who.attributes)
            body["features"] = [None if math.isnan(x) else x for x in event.features]  # None = unknown
            rest = event.propensity, to_json(event.shown).decode(), to_json(body).decode()
            known = filter(None, body["features"])
            if not math.isfinite(sum(chain(event.scores, known, event.prices.values(), *event.action_features))):
                raise ValueError("a score, feature or price is not finite")
            explored = event.explored, None if event.explored is None else event.explored_place
            row = event.id, micros(event.time), *texts, *rest, *explored, event.explored_propensity
            if max(map(len, filter(None, (who.customer, event.session, event.policy))), default=0) > 200:
                raise ValueError("customer, session and policy have at most 200 characters")
            texts += event.shown
        joined = "".join(filter(None, (event.id, *texts)))
        if b"\0" in joined.encode():  # encode() raises for unpaired surrogates
            raise ValueError("it has a NUL character; remove it")
        return row
    except (TypeError, ValueError) as error:
        raise ValueError(f"{type(event).__name__.lower()} {event.id!r} cannot be stored: {error}") from error


def impression_of(row: Any) -> Impression:
    """Builds an impression from a row of `impressions` with parsed JSON."""
    body = row.body
    time = body["time"] and datetime.fromisoformat(body["time"])
    drawn, executed = (a and Allocation(tuple(a[0]), a[1]) for a in (body["drawn"], body["executed"]))
    return Impression(
        id=row.id,
        time=_EPOCH + timedelta(microseconds=row.time),
        query=row.query,
        shown=tuple(row.shown),
        session=row.session,
        context=Context(row.customer, body["locale"], time, body["device"], body["attributes"]),
        drawn=drawn,
        executed=executed,
        propensity=row.propensity,
        policy=row.policy,
        models=body["models"],
        prices=body.get("prices", {}),  # absent in older stores
        **{name: _tuples(body[name]) for name in _ARRAYS if name != "features"},
        features=tuple(math.nan if x is None else x for x in body["features"]),
        explored=row.explored,
        explored_place=-1 if row.explored_place is None else row.explored_place,
        explored_propensity=1.0 if row.explored_propensity is None else row.explored_propensity,
    )


def action_of(row: Any) -> Action:
    """Builds an action from a row of `actions`."""
    time = _EPOCH + timedelta(microseconds=row.time)
    return Action(row.id, row.impression, row.entity, row.kind, time, row.seconds)


def _tuples(values: list) -> tuple:
    return tuple(_tuples(value) if isinstance(value, list) else value for value in values)


def open_database(url: str) -> sa.Engine:
    """Opens the database of a URL, creating a file if needed, and applies all migrations.

    A connection with the execution option `write` holds the write lock from the start of each transaction.
    Raises ValueError for an unsupported URL, a missing driver, an unreachable server, or a schema of a newer ltrr.
    """
    try:
        where = sa.make_url(url)
        shown, kind = where.render_as_string(hide_password=True), where.get_backend_name()
        if where.drivername not in (*_PREPARE, "postgresql+psycopg") or where.database in (None, "", ":memory:"):
            raise ValueError(f"event store: {shown!r} is not sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE")
        if kind == "sqlite":
            Path(where.database).parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(where, connect_args={"isolation_level": None, "timeout": 10.0})  # s for a lock
        else:
            engine = sa.create_engine(where.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except exc.ArgumentError as error:
        raise ValueError("event store: this is no database URL; write sqlite:///runs/events.db") from error
    except ImportError as error:
        raise ValueError("event store: PostgreSQL needs psycopg: pip install 'ltrr[scale]'") from error

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        for setting in _PREPARE[kind]:
            connection.execute(setting)
        connection.commit()

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("write")
        if kind == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
        elif write:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")

    try:
        with engine.connect().execution_options(write=True) as connection, connection.begin():
            config, revision = migrations(connection), MigrationContext.configure(connection).get_current_revision()
            known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
            if revision not in (None, *known):
                raise ValueError(f"event store: {shown!r} has the schema {revision!r} of a newer ltrr: update this one")
            command.upgrade(config, "head")
    except exc.DBAPIError as error:
        raise ValueError(f"event store: {shown!r} cannot be opened: {error.orig}") from error
    return engine


def migrations(connection: sa.Connection) -> Config:
    """Alembic's configuration on a connection; create a migration with `command.revision(config, "title", True)`."""
    config = Config()
    config.set_main_option("script_location", "ltrr.feedback:migrations")
    config.attributes["connection"] = connection
    return config
