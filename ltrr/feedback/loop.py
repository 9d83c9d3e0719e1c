"""Brings events from the store to learners: each event goes to disk first, then to every learner in the store's order.

Knows the store, learners by protocol and their snapshots; does not know what they learn. Learners follow the store, so
events of other processes reach them, too. A restart reads the newest snapshot and the events after it, which gives the
same state as learning online.

    <folder>/<seq of the last impression>-<of the last action>/<learner>.npz
                                                             /loop.json  the store's id, the last erasure's seq
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from ltrr.feedback.events import Action, Impression, digest_of
from ltrr.feedback.store import EventStore
from ltrr.protocols import Learning
from ltrr.types import ActionRow, ImpressionRow


class Loop:
    """Keeps learners up to date with a store. All methods may be called by many threads.

    Args:
        learners: by name; they know nothing yet.
        rows: entity -> corpus row; entities without one are left out.
        folder: of snapshots, made for these learners, this corpus and this store; None = every start replays all.
        sources: whether learners get to know which arms returned each candidate; a replay takes half as long again.
    """

    def __init__(
        self,
        store: EventStore,
        learners: Mapping[str, Learning],
        rows: Mapping[str, int],
        folder: Path | None = None,
        *,
        sources: bool = False,
    ) -> None:
        self._store, self._learners, self._rows, self._folder = store, dict(learners), rows, folder
        self._sources = sources
        self._lock = threading.RLock()
        self._at = self._saved = (0, 0)  # seq of the last impression and action that learners have; that are saved
        self._erased = 0  # seq of the last erasure that learners have
        self._saving = False
        self._stop, self._keeper = threading.Event(), None
        self._restore()
        self.catch_up()

    def record(self, events: Sequence[Impression | Action]) -> None:
        """Returns when the events are on disk and learned. Raises ValueError naming an event that cannot be stored.

        During a snapshot, which takes seconds, events are learned only afterwards, so that callers do not wait.
        """
        self._store.append(events)
        if not self._saving:
            self.catch_up()

    def catch_up(self) -> None:
        """Applies new erasures, then passes the store's new events to the learners."""
        with self._lock:
            if erased := self._store.erasures(self._erased):
                digests = {digest for _, digest in erased}
                for learner in self._learners.values():
                    for name in [name for name in learner.customers() if digest_of(name) in digests]:
                        learner.erase(name)
                self._erased, self._saved = erased[-1][0], (-1, -1)
            shown, acted = self._at
            for batch in self._store.shown(shown, sources=self._sources):
                self._give([self._impression(row) for row in batch], [])
                self._at = shown, acted = batch[-1].seq, acted
            for batch in self._store.acted(acted):
                self._give([], [self._action(row) for row in batch])
                self._at = shown, acted = shown, batch[-1].seq

    def erase(self, customer: str) -> tuple[int, int]:
        """Removes a customer's events from the store, learners and snapshots; returns counts (impressions, actions).

        Other processes on the same store follow when they next catch up, or when they start.
        """
        with self._lock:
            self.catch_up()
            removed = self._store.erase(customer)
            self.snapshot()
        return removed

    def snapshot(self) -> None:
        """Compacts and saves the learners, atomically; does nothing if nothing is new."""
        with self._lock:
            self.catch_up()
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
        """Starts a background thread that catches up, removes events older than `days`, and snapshots."""
        if every <= timedelta(0):
            raise ValueError(f"serve.snapshot_s: {every.total_seconds():g} is not above 0")
        if days is not None and not 0 < days < 100_000:
            raise ValueError(f"serve.keep_days: {days:g} is not above 0 (null = keep all)")
        self._keeper = threading.Thread(target=self._keep, args=(every, days), name="ltrr-keeper", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Stops the background thread and takes a last snapshot. The store stays open."""
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
            except Exception as error:  # such as a full disk or an unreachable database: retry next time
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
            state = {"store": self._store.id, "erasures": self._erased}
            (whole / "loop.json").write_text(json.dumps(state), encoding="utf-8")
            if target.exists():  # written before an erasure
                target.rename(Path(temporary) / target.name)
            whole.rename(target)
            for path in folder.glob("[0-9]*-[0-9]*"):
                if path != target:
                    path.rename(Path(temporary) / path.name)  # removed with the temporary folder

    def _restore(self) -> None:
        if self._folder is None:
            return
        for path in self._folder.glob(".new-*"):  # left by a killed process
            shutil.rmtree(path, ignore_errors=True)
        newest = max(self._folder.glob("[0-9]*-[0-9]*"), key=_seqs, default=None)
        if newest is None:
            return
        shown, acted = _seqs(newest)
        last = self._store.last()
        try:
            state = json.loads((newest / "loop.json").read_text(encoding="utf-8"))
            if state["store"] != self._store.id or shown > last[0] or acted > last[1]:
                raise ValueError("made for another store, or for a later state of this one")
            paths = {name: newest / f"{name}.npz" for name in self._learners}
            for path in paths.values():
                with np.load(path, allow_pickle=False) as file:
                    for name in file.files:
                        file[name]  # read it all before a learner changes
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            warnings.warn(f"{newest}: not used, learning anew from the store: {error}", stacklevel=4)
            return
        for name, path in paths.items():
            self._learners[name].load(path)
        self._at = self._saved = shown, acted
        self._erased = int(state["erasures"])

    def _give(self, impressions: list[ImpressionRow], actions: list[ActionRow]) -> None:
        for name, learner in self._learners.items():
            try:
                learner.take(impressions, actions)
            except Exception as error:  # a failing learner must not stop searches or other learners
                first = next(iter([*impressions, *actions])).id
                warnings.warn(f"{name} could not learn from {first!r} and what came with it: {error!r}", stacklevel=3)

    def _impression(self, row: Any) -> ImpressionRow:
        _, name, customer, session, time, query, _, shown, *sources = row
        rows = [self._rows.get(entity, -1) for entity in shown]
        arms, bits = (_names(sources[0]), _bits(sources[1])) if sources else ((), ())
        return ImpressionRow(name, session or name, customer or "", time, query, rows, arms, bits)

    def _action(self, row: Any) -> ActionRow:
        _, name, impression, entity, kind, time, seconds = row
        return ActionRow(name, impression, self._rows.get(entity, -1), kind, time, seconds)


def _seqs(snapshot: Path) -> tuple[int, int]:
    shown, acted = map(int, snapshot.name.split("-"))
    return shown, acted


@lru_cache(64)
def _names(arms: str) -> tuple[str, ...]:
    return tuple(json.loads(arms))


def _bits(ranks: str) -> list[int]:
    """`ImpressionRow.returned_by` from compact JSON like [[0,null],[7,3]]; lists of lists would take twice as long."""
    rows = ranks[2:-2].split("],[") if len(ranks) > 2 else []
    return [sum([1 << a for a, rank in enumerate(row.split(",")) if rank not in ("null", "")]) for row in rows]
