"""The event store: appends events durably and without duplicates; reads them in order, erases and exports them.

Knows queues, transactions and tables; does not know what events mean. One writer thread with one connection commits all
waiting events in one transaction (group commit), so that many callers share one fsync.
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

_RECENT = 10_000  # newest impressions that `latest` searches
_GROUP = 2000  # events per transaction, and rows per read
_WAITS = (0.05, 0.2, 1.0, 3.0)  # seconds before each retry of a transaction
Impressions = Iterator[list[tuple[int, Impression]]]  # batches, each event with its seq
Actions = Iterator[list[tuple[int, Action]]]
Rounds = Iterator[list[tuple[int, Impression, list[Action]]]]
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_ARROW = {"seq": pa.int64(), "time": pa.timestamp("us", "UTC"), "shown": pa.list_(pa.string())}
_ARROW |= {"propensity": pa.float64(), "explored_propensity": pa.float64(), "seconds": pa.float64()}
_ARROW |= {"explored_place": pa.int64()}  # all other columns are text


class _Job(NamedTuple):
    future: Future
    events: Sequence[tuple[Impression | Action, tuple]] = ()  # events with their rows
    task: Callable[[sa.Connection], object] | None = None  # runs alone in its transaction


class EventStore:
    """Stores impressions and actions in SQLite or PostgreSQL, for many threads and processes.

    Clients choose event ids. An event sent again with the same content is ignored; with other content the first is kept
    (counted in `conflicts`, with one warning). `seq` follows the order of commits to a table, so a reader that
    continues after its last `seq` misses nothing. Actions may arrive before their impression, late or twice.

    Args:
        url: sqlite:///FILE or postgresql+psycopg://... (extra `scale`). Raises ValueError if it cannot be opened.
    """

    def __init__(self, url: str = "sqlite:///runs/events.db"):
        self.conflicts = 0  # events sent again with other content
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
        """Returns when all events are on disk. If it raises, some may be missing: retry with the same ids.

        Raises ValueError naming an event that cannot be stored; RuntimeError if the store is closed or its writer died.
        """
        self.submit(events).result()

    def submit(self, events: Sequence[Impression | Action]) -> Future[None]:
        """Like `append`, but returns a future at once; waiting events are held in memory."""
        return self._queue(_Job(Future(), [(event, row_of(event)) for event in events]))

    def impressions(self, since: datetime = _FIRST, until: datetime = _LAST, after: int = 0) -> Impressions:
        """Yields batches of (seq, impression) with seq > after and since <= time < until, by seq."""
        for rows in self._rows(IMPRESSIONS, after, since, until):
            yield [(row.seq, impression_of(row)) for row in rows]

    def actions(self, since: datetime = _FIRST, until: datetime = _LAST, after: int = 0) -> Actions:
        """Yields batches of (seq, action), with the filters of `impressions`."""
        for rows in self._rows(ACTIONS, after, since, until):
            yield [(row.seq, action_of(row)) for row in rows]

    def rounds(self, since: datetime = _FIRST, until: datetime = _LAST, after: int = 0) -> Rounds:
        """Yields batches of (seq, impression, all actions on it so far); the filters apply to impressions."""
        for batch in self.impressions(since, until, after):
            found = defaultdict(list)
            wanted = sa.select(ACTIONS).where(ACTIONS.c.impression.in_([impression.id for _, impression in batch]))
            with self._engine.connect() as connection:
                for row in connection.execute(wanted.order_by(ACTIONS.c.seq)):
                    found[row.impression].append(action_of(row))
            yield [(seq, impression, found[impression.id]) for seq, impression in batch]

    def named(self, ids: Sequence[str]) -> list[Impression]:
        """Returns the stored impressions with these ids, in no order."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(IMPRESSIONS).where(IMPRESSIONS.c.id.in_(ids)))
            return [impression_of(row) for row in rows]

    def shown(self, after: int = 0, *, sources: bool = False) -> Iterator[Sequence[sa.Row]]:
        """Yields batches of (seq, id, customer, session, time in microseconds, normalised, query, shown) by seq.

        sources: append the arms and the ranks at which they returned each entity, as JSON texts of `body`.
        """
        names = ("seq", "id", "customer", "session", "time", "normalised", "query", "shown")
        body = [IMPRESSIONS.c.body[name].as_string() for name in ("arms", "ranks")] if sources else []
        return self._rows(IMPRESSIONS, after, names=names, more=body)

    def acted(self, after: int = 0) -> Iterator[Sequence[sa.Row]]:
        """Yields batches of (seq, id, impression, entity, kind, time in microseconds, seconds) by seq."""
        return self._rows(ACTIONS, after, names=("seq", "id", "impression", "entity", "kind", "time", "seconds"))

    def last(self) -> tuple[int, int]:
        """Last seq assigned to an impression and to an action, including removed ones; 0 = none yet."""
        sql = "SELECT coalesce(last_value, 0) FROM pg_sequences WHERE sequencename = '{}_seq_seq'"
        if self._engine.dialect.name == "sqlite":
            sql = "SELECT seq FROM sqlite_sequence WHERE name = '{}'"
        with self._engine.connect() as connection:
            found = [connection.exec_driver_sql(sql.format(table.name)).scalar() for table in (IMPRESSIONS, ACTIONS)]
        return found[0] or 0, found[1] or 0

    def erasures(self, after: int = 0) -> list[tuple[int, str]]:
        """Returns (seq, `digest_of` the customer) of erasures, by seq."""
        wanted = sa.select(ERASURES.c.seq, ERASURES.c.customer).where(ERASURES.c.seq > after).order_by(ERASURES.c.seq)
        with self._engine.connect() as connection:
            return [(row.seq, row.customer) for row in connection.execute(wanted)]

    def erase(self, customer: str) -> tuple[int, int]:
        """Removes a customer's impressions and the actions on them; returns counts of both. Exports do not change.

        The erasure itself is recorded (`erasures`) by a digest of the name.
        """

        def theirs(connection: sa.Connection) -> tuple[int, int]:
            connection.execute(sa.insert(ERASURES).values(customer=digest_of(customer)))
            return _remove(IMPRESSIONS, IMPRESSIONS.c.customer == customer, connection)

        return self._queue(_Job(Future(), task=theirs)).result()

    def expire(self, before: datetime) -> tuple[int, int]:
        """Removes impressions older than `before` with their actions, and older actions; returns counts of both.

        Works in small transactions, so that writers can proceed.
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
        """Writes a new folder of Parquet, <table>/day=<UTC day>/part-<n>.parquet, atomically.

        Columns are those of the tables, with `body` as JSON text. Events written during the export may be included.
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
        """Commits submitted events and closes the database."""
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
        job.future.set_running_or_notify_cancel()  # from now on it cannot be cancelled
        with self._wake:
            if self._closed or not self._writer.is_alive():  # the writer is not alive in a forked process
                raise RuntimeError(f"event store {self._engine.url!r}: closed, or its writer is dead; open another")
            self._jobs.append(job)
            self._wake.notify()
        return job.future

    def latest(self, policy: str) -> Impression | None:
        """The policy's latest stored impression, or None if the last _RECENT impressions are of other policies."""
        wanted = sa.select(IMPRESSIONS).order_by(IMPRESSIONS.c.seq.desc()).limit(1)
        last = sa.select(sa.func.max(IMPRESSIONS.c.seq)).scalar_subquery()
        wanted = wanted.where(IMPRESSIONS.c.policy == policy, IMPRESSIONS.c.seq > last - _RECENT)
        with self._engine.connect() as connection:
            row = connection.execute(wanted).first()
        return impression_of(row) if row else None

    def _write(self, connection: sa.Connection) -> None:
        """Writer thread: commits waiting jobs and resolves their futures. Ends on close or an unexpected error."""
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
        """Waits for jobs; returns one task, or waiting appends up to about _GROUP events; empty = closed and done."""
        group: list[_Job] = []
        num = 0
        with self._wake:
            self._wake.wait_for(lambda: self._jobs or self._closed)
            while self._jobs and num < _GROUP and not (group and (self._jobs[0].task or group[0].task)):
                group.append(self._jobs.popleft())
                num += len(group[-1].events)
        return group

    def _commit(self, connection: sa.Connection, group: list[_Job]) -> None:
        """Commits a group of jobs. A database error fails all of them; an error of one job fails only that job."""
        for wait in (*_WAITS, None):
            try:
                with connection.begin():
                    result = group[0].task(connection) if group[0].task else None
                    again = self._insert_all(connection, group)
            except Exception as error:
                passing = isinstance(error, exc.OperationalError) or getattr(error, "connection_invalidated", False)
                if passing and wait is not None:  # locked or restarting; repeated ids are harmless
                    time.sleep(wait)
                    continue
                for job in group:
                    if passing or len(group) == 1:
                        job.future.set_exception(error)
                    else:
                        self._commit(connection, [job])
                return
            self.commits += 1
            if group[0].task and self._engine.dialect.name == "sqlite":  # removed rows are also in the write-ahead log
                connection.connection.dbapi_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore
            if again and not self.conflicts:
                with suppress(UserWarning):  # if warnings are errors, the writer must survive
                    warnings.warn(f"event {again[0]!r} came again with other content; the first is kept", stacklevel=2)
            self.conflicts += len(again)
            for job in group:
                job.future.set_result(result)
            return

    def _insert_all(self, connection: sa.Connection, group: list[_Job]) -> list[str]:
        """Inserts events; returns ids of those already stored with other content."""
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
        """Yields batches by seq, each in its own transaction, so that a slow reader holds no lock."""
        wanted = sa.select(*table.c[*(names or table.c.keys())], *more).order_by(table.c.seq).limit(_GROUP)
        if (since, until) != (_FIRST, _LAST):  # + 0 avoids the index on time, with which every batch would be sorted
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
    """Deletes rows of a table, and actions on deleted impressions; returns counts (impressions, actions)."""
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
