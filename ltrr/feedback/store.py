"""The event store: what was appended is on disk when append returns, once, and can be read in order, erased, exported.

Knows queues, transactions and tables; knows nothing about what events mean. One writer thread with one connection puts
all that waits into one transaction (group commit), so that many callers share one fsync.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Condition, Thread
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.dataset
import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy import exc

from ltrr.feedback.events import Action, Impression, digest_of
from ltrr.feedback.schema import (
    ACTIONS,
    ERASURES,
    IMPRESSIONS,
    STORE,
    action_of,
    impression_of,
    micros,
    open_database,
    row_of,
)

_RECENT = 10_000  # impressions among which the latest of a policy is looked for
_GROUP = 2000  # events of a transaction, and rows of a read
_WAITS = (0.05, 0.2, 1.0, 3.0)  # seconds before a transaction is tried again
Impressions = Iterator[list[tuple[int, Impression]]]  # batches, each event with its seq
Actions = Iterator[list[tuple[int, Action]]]
Rounds = Iterator[list[tuple[int, Impression, list[Action]]]]
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_ARROW = {"seq": pa.int64(), "time": pa.timestamp("us", "UTC"), "shown": pa.list_(pa.string())}
_ARROW |= {"propensity": pa.float64(), "seconds": pa.float64()}  # all other columns are text


class _Job(NamedTuple):
    future: Future
    events: Sequence[tuple[Impression | Action, tuple]] = ()  # with their rows
    task: Callable[[sa.Connection], object] | None = None  # alone in its transaction


class EventStore:
    """Impressions and actions in SQLite or PostgreSQL; for many threads and many processes.

    An event's id is its client's: sent again with the same content it is silent, with other content the first is kept
    (counted in `conflicts`, said once). `seq` is the order of commits to a table: whoever has read up to one misses
    nothing when going on after it. Actions may come before their impression, late or twice.

    Args:
        url: sqlite:///FILE or postgresql+psycopg://... (extra `scale`); ValueError says what is wrong with it.
    """

    def __init__(self, url: str = "sqlite:///runs/events.db"):
        self.conflicts = 0  # events that came again with other content
        self.commits = 0  # transactions
        self._engine = open_database(url)
        mark, self._insert = "?" if self._engine.dialect.name == "sqlite" else "%s", {}
        for table in (IMPRESSIONS, ACTIONS):
            names = table.c.keys()[1:]
            into = f"{table.name} ({', '.join(names)}) VALUES ({', '.join([mark] * len(names))})"
            self._insert[table] = f"INSERT INTO {into} ON CONFLICT (id) DO NOTHING"
        with self._engine.connect() as reading:
            self.id: str = reading.execute(sa.select(STORE.c.id)).scalar_one()
        self._jobs: deque[_Job] = deque()
        self._wake = Condition()  # guards _jobs and _closed
        self._closed = False
        connection = self._engine.connect().execution_options(write=True)
        self._writer = Thread(target=self._write, args=(connection,), name="ltrr-events", daemon=True)
        self._writer.start()

    def append(self, events: Sequence[Impression | Action]) -> None:
        """Returns when all are on disk. Where it raises none is known to be: try again with the same ids.

        ValueError names an event that no database can hold. RuntimeError: the store is closed, its writer is dead.
        """
        self.submit(events).result()

    def submit(self, events: Sequence[Impression | Action]) -> Future[None]:
        """The same for who waits later. It never blocks: what waits is in memory."""
        return self._queue(_Job(Future(), [(event, row_of(event)) for event in events]))

    def impressions(self, since: datetime = _FIRST, until: datetime = _LAST, after: int = 0) -> Impressions:
        """Batches of (seq, impression), by seq from above `after`, of since <= time < until."""
        for rows in self._rows(IMPRESSIONS, after, since, until):
            yield [(row.seq, impression_of(row)) for row in rows]

    def actions(self, since: datetime = _FIRST, until: datetime = _LAST, after: int = 0) -> Actions:
        """Batches of (seq, action), likewise."""
        for rows in self._rows(ACTIONS, after, since, until):
            yield [(row.seq, action_of(row)) for row in rows]

    def rounds(self, since: datetime = _FIRST, until: datetime = _LAST, after: int = 0) -> Rounds:
        """Batches of (seq, impression, all actions on it so far); the filters are the impressions'."""
        for batch in self.impressions(since, until, after):
            found = defaultdict(list)
            wanted = sa.select(ACTIONS).where(ACTIONS.c.impression.in_([impression.id for _, impression in batch]))
            with self._engine.connect() as connection:
                for row in connection.execute(wanted.order_by(ACTIONS.c.seq)):
                    found[row.impression].append(action_of(row))
            yield [(seq, impression, found[impression.id]) for seq, impression in batch]

    def named(self, ids: Sequence[str]) -> list[Impression]:
        """The impressions of these ids that are there, in no order."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(IMPRESSIONS).where(IMPRESSIONS.c.id.in_(ids)))
            return [impression_of(row) for row in rows]

    def shown(self, after: int = 0, *, sources: bool = False) -> Iterator[Sequence[sa.Row]]:
        """Batches of (seq, id, customer, session, time in microseconds, normalised, query, shown) by seq.

        sources: followed by the arms and the ranks at which they returned each entity, as `body` has them: JSON texts.
        """
        names = ("seq", "id", "customer", "session", "time", "normalised", "query", "shown")
        body = [IMPRESSIONS.c.body[name].as_string() for name in ("arms", "ranks")] if sources else []
        return self._rows(IMPRESSIONS, after, names=names, more=body)

    def acted(self, after: int = 0) -> Iterator[Sequence[sa.Row]]:
        """Batches of (seq, id, impression, entity, kind, time in microseconds, seconds), likewise."""
        return self._rows(ACTIONS, after, names=("seq", "id", "impression", "entity", "kind", "time", "seconds"))

    def last(self) -> tuple[int, int]:
        """The last seq that was given to an impression and to an action, removed ones included; 0 = none yet."""
        sql = "SELECT coalesce(last_value, 0) FROM pg_sequences WHERE sequencename = '{}_seq_seq'"
        if self._engine.dialect.name == "sqlite":
            sql = "SELECT seq FROM sqlite_sequence WHERE name = '{}'"
        with self._engine.connect() as connection:
            found = [connection.exec_driver_sql(sql.format(table.name)).scalar() for table in (IMPRESSIONS, ACTIONS)]
        return found[0] or 0, found[1] or 0

    def erasures(self, after: int = 0) -> list[tuple[int, str]]:
        """(seq, digest_of the customer) of erasures, in their order."""
        wanted = sa.select(ERASURES.c.seq, ERASURES.c.customer).where(ERASURES.c.seq > after).order_by(ERASURES.c.seq)
        with self._engine.connect() as connection:
            return [(row.seq, row.customer) for row in connection.execute(wanted)]

    def erase(self, customer: str) -> tuple[int, int]:
        """Removes a customer's impressions and the actions on them; how many of each. Exports are left as they are.

        That there was an erasure stays noted (`erasures`), the name does not.
        """

        def theirs(connection: sa.Connection) -> tuple[int, int]:
            connection.execute(sa.insert(ERASURES).values(customer=digest_of(customer)))
            return _remove(IMPRESSIONS, IMPRESSIONS.c.customer == customer, connection)

        return self._queue(_Job(Future(), task=theirs)).result()

    def expire(self, before: datetime) -> tuple[int, int]:
        """Removes impressions older than `before` with their actions, and older actions; how many of each.

        In small transactions, so that writing goes on.
        """
        removed = [(0, 0)]
        for table in (IMPRESSIONS, ACTIONS):
            old = sa.select(table.c.time).where(table.c.time < micros(before)).order_by(table.c.time).limit(_GROUP)
            last = sa.select(sa.func.max(old.subquery().c.time)).scalar_subquery()
            step = partial(_remove, table, table.c.time <= last)
            while any(some := self._queue(_Job(Future(), task=step)).result()):
                removed.append(some)
        impressions, actions = map(sum, zip(*removed, strict=True))
        return impressions, actions

    def export(self, folder: Path) -> None:
        """Writes a new folder of Parquet, <table>/day=<UTC day>/part-<n>.parquet, whole or not at all.

        Columns are the tables', `body` as JSON text. Writing goes on; events that come meanwhile may be in it.
        """
        if folder.exists():
            raise ValueError(f"export: {folder} is there already; name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            whole = Path(temporary) / "whole"
            for table in (IMPRESSIONS, ACTIONS):
                (whole / table.name).mkdir(parents=True)
                schema = pa.schema([(column.name, _ARROW.get(column.name, pa.string())) for column in table.c])
                pyarrow.dataset.write_dataset(
                    (_arrow(rows, schema) for rows in self._rows(table, 0)),
                    whole / table.name,
                    schema=schema.append(pa.field("day", pa.date32())),
                    format="parquet",
                    partitioning=["day"],
                    partitioning_flavor="hive",
                    max_partitions=100_000,
                )
            for file in whole.rglob("*.parquet"):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            whole.rename(folder)

    def close(self) -> None:
        """Commits what was submitted and closes the database."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._writer.join()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _queue(self, job: _Job) -> Future:
        job.future.set_running_or_notify_cancel()  # it cannot be cancelled any more
        with self._wake:
            if self._closed or not self._writer.is_alive():  # not alive: in a fork
                raise RuntimeError(f"event store {self._engine.url!r}: closed, or its writer is dead; open another")
            self._jobs.append(job)
            self._wake.notify()
        return job.future

    def latest(self, policy: str) -> Impression | None:
        """The page of this policy that was stored last; none where the last _RECENT are of others."""
        wanted = sa.select(IMPRESSIONS).order_by(IMPRESSIONS.c.seq.desc()).limit(1)
        last = sa.select(sa.func.max(IMPRESSIONS.c.seq)).scalar_subquery()
        wanted = wanted.where(IMPRESSIONS.c.policy == policy, IMPRESSIONS.c.seq > last - _RECENT)
        with self._engine.connect() as connection:
            row = connection.execute(wanted).first()
        return impression_of(row) if row else None

    def _write(self, connection: sa.Connection) -> None:
        """The writer thread: takes what waits, commits it, answers. Ends when closed, or by what nobody expects."""
        group: list[_Job] = []
        try:
            with connection:
                while group := self._next():
                    self._commit(connection, group)
        finally:
            with self._wake:
                self._closed = True
            for job in (*group, *self._jobs):
                if not job.future.done():
                    job.future.set_exception(RuntimeError(f"event store {self._engine.url!r}: its writer died"))

    def _next(self) -> list[_Job]:
        """Waits for a job; all that wait until _GROUP events are reached, or one task. Empty: closed and all done."""
        group: list[_Job] = []
        num = 0
        with self._wake:
            self._wake.wait_for(lambda: self._jobs or self._closed)
            while self._jobs and num < _GROUP and not (group and (self._jobs[0].task or group[0].task)):
                group.append(self._jobs.popleft())
                num += len(group[-1].events)
        return group

    def _commit(self, connection: sa.Connection, group: list[_Job]) -> None:
        """One transaction. What is wrong with the database is told to all; what is wrong with one job, to that one."""
        for wait in (*_WAITS, None):
            try:
                with connection.begin():
                    result = group[0].task(connection) if group[0].task else None
                    again = self._insert_all(connection, group)
            except Exception as error:
                passing = isinstance(error, exc.OperationalError) or getattr(error, "connection_invalidated", False)
                if passing and wait is not None:  # locked, or the server restarts: the same ids again do no harm
                    time.sleep(wait)
                    continue
                for job in group:
                    if passing or len(group) == 1:
                        job.future.set_exception(error)
                    else:
                        self._commit(connection, [job])
                return
            self.commits += 1
            if group[0].task and self._engine.dialect.name == "sqlite":  # what was removed is in the log, too
                connection.connection.dbapi_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore
            if again and not self.conflicts:
                with suppress(UserWarning):  # where warnings are errors, the writer lives on
                    warnings.warn(f"event {again[0]!r} came again with other content; the first is kept", stacklevel=2)
            self.conflicts += len(again)
            for job in group:
                job.future.set_result(result)
            return

    def _insert_all(self, connection: sa.Connection, group: list[_Job]) -> list[str]:
        """Ids of events that were there with other content."""
        again = []
        for table, kind, build in ((IMPRESSIONS, Impression, impression_of), (ACTIONS, Action, action_of)):
            pairs = [pair for job in group for pair in job.events if isinstance(pair[0], kind)]
            if not pairs or connection.exec_driver_sql(self._insert[table], [r for _, r in pairs]).rowcount == len(
                pairs
            ):
                continue
            for start in range(0, len(pairs), _GROUP):
                events = [event for event, _ in pairs[start : start + _GROUP]]
                known = sa.select(table).where(table.c.id.in_([event.id for event in events]))
                stored = {row.id: build(row) for row in connection.execute(known)}
                again += [event.id for event in events if stored[event.id] != event]
        return again

    def _rows(
        self,
        table: sa.Table,
        after: int,
        since: datetime = _FIRST,
        until: datetime = _LAST,
        names: Sequence[str] = (),
        more: Sequence[sa.ColumnElement] = (),
    ) -> Iterator[Sequence[sa.Row]]:
        """By seq, each batch in a transaction of its own, so that a slow reader holds nothing."""
        wanted = sa.select(*table.c[*(names or table.c.keys())], *more).order_by(table.c.seq).limit(_GROUP)
        if (since, until) != (_FIRST, _LAST):  # + 0: not by the index of time, each batch would sort anew
            wanted = wanted.where(table.c.time + 0 >= micros(since), table.c.time + 0 < micros(until))
        while True:
            with self._engine.connect() as connection:
                rows = connection.execute(wanted.where(table.c.seq > after)).all()
            if rows:
                yield rows
            if len(rows) < _GROUP:
                return
            after = rows[-1].seq


def _remove(table: sa.Table, gone: sa.ColumnElement[bool], connection: sa.Connection) -> tuple[int, int]:
    """Deletes rows of a table, and the actions on them if they are impressions; (impressions, actions)."""
    if table is ACTIONS:
        return 0, connection.execute(sa.delete(ACTIONS).where(gone)).rowcount
    theirs = ACTIONS.c.impression.in_(sa.select(IMPRESSIONS.c.id).where(gone))
    actions = connection.execute(sa.delete(ACTIONS).where(theirs)).rowcount
    return connection.execute(sa.delete(IMPRESSIONS).where(gone)).rowcount, actions


def _arrow(rows: Sequence[sa.Row], schema: pa.Schema) -> pa.RecordBatch:
    columns: dict[str, Sequence] = dict(zip(schema.names, zip(*rows, strict=True), strict=True))
    if "body" in columns:
        columns["body"] = [to_json(body).decode() for body in columns["body"]]
    batch = pa.RecordBatch.from_pydict(columns, schema)
    return batch.append_column("day", batch["time"].cast(pa.date32()))
