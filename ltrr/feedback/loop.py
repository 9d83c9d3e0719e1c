"""From the event store to what learns from it: events go to disk first, then to every learner in the store's order.

Knows the store, learners by protocol and their snapshots; knows nothing about what they learn. Learners follow the
store, so events of other processes reach them, too, and a restart gives what went on online: the newest snapshot, and
the events after it.

    <folder>/<seq of the last impression>-<of the last action>/<learner>.npz
"""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, Self

from ltrr.feedback.events import Action, Impression
from ltrr.feedback.evidence import Did, Seen
from ltrr.feedback.store import EventStore


class Learner(Protocol):
    """What learns from events, in whatever order they come; the same event twice changes nothing."""

    def take(self, seen: Sequence[Seen], did: Sequence[Did]) -> None: ...

    def erase(self, customer: str) -> None:
        """Takes back what a customer taught."""
        ...

    def compact(self) -> None:
        """Forgets what is of no use any more."""
        ...

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


class Loop:
    """Keeps learners up to date with a store. All methods may be called by many threads.

    Args:
        learners: by name; they know nothing yet.
        rows: entity -> corpus row; what is not there is left out.
        folder: of snapshots, made for these learners, this corpus and this store; None = every start replays all.
    """

    def __init__(
        self, store: EventStore, learners: Mapping[str, Learner], rows: Mapping[str, int], folder: Path | None = None
    ) -> None:
        self._store, self._learners, self._rows, self._folder = store, dict(learners), rows, folder
        self._lock = threading.RLock()
        self._at = self._saved = (0, 0)  # seq of the last impression and action that learners have; that are saved
        self._saving = False
        self._stop, self._keeper = threading.Event(), None
        self._restore()
        self.catch_up()

    def record(self, events: Sequence[Impression | Action]) -> None:
        """Returns when the events are on disk and learned. ValueError names one that cannot be stored.

        While a snapshot is made they are learned when it is done, so that nobody waits for it.
        """
        self._store.append(events)
        if not self._saving:
            self.catch_up()

    def catch_up(self) -> None:
        """Learns what the store has and learners have not."""
        with self._lock:
            shown, acted = self._at
            for batch in self._store.shown(shown):
                self._give([self._seen(row) for row in batch], [])
                self._at = shown, acted = batch[-1].seq, acted
            for batch in self._store.acted(acted):
                self._give([], [self._did(row) for row in batch])
                self._at = shown, acted = shown, batch[-1].seq

    def erase(self, customer: str) -> tuple[int, int]:
        """Removes a customer's events from the store, from learners and from snapshots; (impressions, actions).

        Other processes on the same store learn of it when they are started again, without their snapshots.
        """
        with self._lock:
            self.catch_up()
            removed = self._store.erase(customer)
            for learner in self._learners.values():
                learner.erase(customer)
            self._saved = (-1, -1)
            self.snapshot()
        return removed

    def snapshot(self) -> None:
        """Compacts learners and saves them, whole or not at all; nothing where nothing is new."""
        with self._lock:
            if self._folder is None or self._at == self._saved:
                return
            self._saving = True
            try:
                self._save(self._folder)
            finally:
                self._saving = False
            self._saved = self._at
            self.catch_up()

    def keep(self, every: timedelta, days: float | None = None) -> None:
        """From now on, in the background: catches up, removes events older than `days`, snapshots."""
        self._keeper = threading.Thread(target=self._keep, args=(every, days), name="ltrr-keeper", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """A last snapshot. The store stays open."""
        self._stop.set()
        if self._keeper:
            self._keeper.join()
        self.snapshot()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep(self, every: timedelta, days: float | None) -> None:
        while not self._stop.wait(every.total_seconds()):
            try:
                self.catch_up()
                if days is not None:
                    self._store.expire(datetime.now(UTC) - timedelta(days=days))
                self.snapshot()
            except Exception as error:  # a full disk, a database that is away: the next time
                warnings.warn(f"snapshot of what was learned: {error}", stacklevel=2)

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{self._at[0]}-{self._at[1]}"
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
            whole = Path(temporary) / "whole"
            whole.mkdir()
            for name, learner in self._learners.items():
                learner.compact()
                learner.save(whole / f"{name}.npz")
            if target.exists():  # of before an erasure
                target.rename(Path(temporary) / target.name)
            whole.rename(target)
            for path in folder.glob("[0-9]*-[0-9]*"):
                if path != target:
                    path.rename(Path(temporary) / path.name)  # and so removed

    def _restore(self) -> None:
        found = [path for path in self._folder.glob("[0-9]*-[0-9]*")] if self._folder else []
        if not found:
            return
        newest = max(found, key=lambda path: tuple(map(int, path.name.split("-"))))
        shown, acted = map(int, newest.name.split("-"))
        last = self._store.last()
        if shown > last[0] or acted > last[1]:
            warnings.warn(f"{newest}: knows events that the store has not; learning anew from the store", stacklevel=3)
            return
        if any(not (newest / f"{name}.npz").exists() for name in self._learners):
            return  # a learner is new
        for name, learner in self._learners.items():
            learner.load(newest / f"{name}.npz")
        self._at = self._saved = shown, acted

    def _give(self, seen: list[Seen], did: list[Did]) -> None:
        for learner in self._learners.values():
            learner.take(seen, did)

    def _seen(self, row: object) -> Seen:
        _, name, customer, session, time, query, _, shown = row  # type: ignore[misc]
        return Seen(name, session or name, customer or "", time, query, [self._rows.get(e, -1) for e in shown])

    def _did(self, row: object) -> Did:
        _, name, impression, entity, kind, time, seconds = row  # type: ignore[misc]
        return Did(name, impression, self._rows.get(entity, -1), kind, time, seconds)
