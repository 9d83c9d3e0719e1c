"""Updates Bayesian heads from served pages; the network below them (the trunk) changes only at a refit.

Knows impressions, clicks and sums; knows nothing about networks or decisions. A round adds a weighted sum of outer
products (precision) and of features (moment), so heads do not depend on the order of rounds. A click that arrives after
its round was learned is added later; an erased customer's rounds are subtracted. Heads swap atomically: readers see the
old or the new ones, never a mix. Times are microseconds since 1970.
Legend: H heads, D features of a head, B candidates that were shown, K shown entities.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ltrr.feedback.events import Reward
from ltrr.feedback.evidence.ledger import microseconds, worth
from ltrr.feedback.rounds import Names, known_of
from ltrr.feedback.store import EventStore
from ltrr.files import atomic_write
from ltrr.types import ActionRow, ImpressionRow, Rounds

_GRACE = microseconds(timedelta(days=7))  # how long an action waits for its impression, and a round for late actions


class Model(Protocol):
    """A trunk with linear heads (`ltrr.learners.relevance.RelevanceLearner`)."""

    heads: Any  # has `state()` (means (H, D), covariances (H, D, D)) and `restored(state)`

    @property
    def columns(self) -> Names: ...

    @property
    def num(self) -> int: ...

    def observations(self, rounds: Rounds) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per shown candidate: features (B, D), head (B,), weight (B,), and targets without and with a click (B, 2)."""
        ...


class _Round(NamedTuple):
    """The evidence of one round; arrays list the shown candidates in fused order."""

    seen: ImpressionRow
    rows: np.ndarray  # (K,) corpus rows
    features: np.ndarray  # (K, D) float32, the trunk's outputs
    heads: np.ndarray  # (K,)
    weights: np.ndarray  # (K,)
    targets: np.ndarray  # (K, 2) without and with a click
    clicked: np.ndarray  # (K,) bool


class OnlineHeads:
    """Learner of a `Loop`: updates a model's heads with the rounds that this policy served.

    Rounds of other policies are skipped, because a trunk fitted on them (with `scripts/events.py rounds`) would count
    them twice. For named customers each round's evidence is kept (1.7 kB per ten shown candidates), so that it can be
    subtracted at an erasure.

    Args:
        model: its heads are the prior.
        store: event store, which holds the logged features.
        policy: name of the policy, as logged in impressions.
        wait: delay after a page before missing clicks count; later clicks still count, within the reward's window.
        most: most pages that wait; beyond, the oldest are learned early.
    """

    def __init__(
        self,
        model: Model,
        store: EventStore,
        policy: str,
        *,
        wait: timedelta = timedelta(minutes=10),
        most: int = 10_000,
    ) -> None:
        self._model, self._store, self._policy = model, store, policy
        self._wait, self._most, self._reward = microseconds(wait), most, Reward()
        prior = model.heads.state()
        self._prior = np.linalg.inv(prior["covariances"])  # (H, D, D)
        self._pull = np.einsum("hij,hj->hi", self._prior, prior["means"])  # (H, D)
        self._precision, self._moment = np.zeros_like(self._prior), np.zeros_like(self._pull)  # sums over rounds
        self._now = 0
        self._waiting: dict[str, ImpressionRow] = {}
        self._queue: list[tuple[int, str]] = []  # heap of (time, impression id) of waiting impressions
        self._pending: dict[str, dict[str, ActionRow]] = defaultdict(dict)  # impression not yet learned -> actions
        self._learned: dict[str, _Round] = {}
        self.left_out: Counter[str] = Counter()  # reason -> rounds skipped since the start

    def take(self, seen: Sequence[ImpressionRow], did: Sequence[ActionRow]) -> None:
        """Learns the rounds whose wait is over, and late clicks on rounds learned before."""
        for s in seen:
            if s.id not in self._learned and s.id not in self._waiting:
                self._waiting[s.id] = s._replace(query="", session="")
                heapq.heappush(self._queue, (s.time, s.id))
                self._now = max(self._now, s.time)
        for d in did:
            self._pending[d.impression][d.id] = d
        due = []
        while self._queue and (self._queue[0][0] <= self._now - self._wait or len(self._queue) > self._most):
            due.append(self._waiting.pop(heapq.heappop(self._queue)[1]))
        touched = self._learn(due)
        for name in {*(d.impression for d in did), *(s.id for s in due)} & self._learned.keys():
            touched |= self._click(self._learned[name], self._pending.pop(name, {}).values())
        self._refresh(touched)

    def customers(self) -> list[str]:
        """Names of customers whose rounds are learned or waiting."""
        return [*{s.customer for s in (*self._waiting.values(), *(r.seen for r in self._learned.values()))} - {""}]

    def erase(self, customer: str) -> None:
        """Subtracts a customer's rounds and drops the waiting ones."""
        impressions = [i for i, r in self._learned.items() if r.seen.customer == customer]
        self._refresh({head for i in impressions for head in self._add(self._learned.pop(i), -1.0)})
        for name in [name for name, s in self._waiting.items() if s.customer == customer]:
            del self._waiting[name]
            self._pending.pop(name, None)
        self._queue = sorted((s.time, s.id) for s in self._waiting.values())  # a sorted list is a heap

    def compact(self) -> None:
        """Drops the evidence kept of anonymous rounds older than a week, and stale actions; sums stay."""
        old = self._now - _GRACE
        self._learned = {i: r for i, r in self._learned.items() if r.seen.customer or r.seen.time >= old}
        for name in [name for name, actions in self._pending.items() if name not in self._waiting]:
            if all(d.time < old for d in self._pending[name].values()):
                del self._pending[name]

    def save(self, path: Path) -> None:
        """Writes one npz file without objects, atomically."""
        rounds = [*self._learned.values()]
        actions = [d for of in self._pending.values() for d in of.values()]
        events = [[r.seen for r in rounds], [*self._waiting.values()], actions]
        arrays: dict[str, Any] = {"precision": self._precision, "moment": self._moment, "now": self._now}
        arrays |= {"counts": np.array([len(r.rows) for r in rounds], int)}
        arrays |= {name: np.concatenate([getattr(r, name) for r in rounds]) for name in _Round._fields[1:] if rounds}
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, text=np.frombuffer(json.dumps(events).encode(), np.uint8), **arrays)

    def load(self, path: Path) -> None:
        """Restores the state that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self._precision, self._moment, self._now = arrays["precision"], arrays["moment"], int(arrays["now"])
        learned, waiting, actions = json.loads(arrays["text"].tobytes())
        ends = np.cumsum(arrays["counts"])[:-1]
        parts = zip(*(np.split(arrays[name], ends) for name in _Round._fields[1:] if learned), strict=True)
        self._learned = {
            seen[0]: _Round(ImpressionRow(*seen), *part) for seen, part in zip(learned, parts, strict=True)
        }
        self._waiting = {fields[0]: ImpressionRow(*fields) for fields in waiting}
        self._queue = sorted((s.time, s.id) for s in self._waiting.values())
        self._pending.clear()
        for d in (ActionRow(*fields) for fields in actions):
            self._pending[d.impression][d.id] = d
        self._refresh(set(range(len(self._moment))))

    # -- sums and heads

    def _learn(self, due: Sequence[ImpressionRow]) -> set[int]:
        """Adds rounds as if nothing had been clicked; returns the heads that changed."""
        stored = {i.id: i for i in self._store.named([s.id for s in due])} if due else {}
        kept, columns = [], []
        for s in due:
            if (impression := stored.get(s.id)) is None:
                parsed = "gone"
            elif impression.policy != self._policy:
                parsed = "of another policy"
            else:
                parsed = known_of(impression, self._model.columns, self._model.num)
            if isinstance(parsed, str):
                self.left_out[parsed] += 1
                self._pending.pop(s.id, None)
            else:
                kept.append(s)
                columns.append(parsed)
        if not kept:
            return set()
        query, candidates, place = map(np.stack, zip(*columns, strict=True))
        rounds = Rounds(np.arange(len(kept)), query, candidates, np.zeros(len(kept), int), place < -1, place=place)
        parts = self._model.observations(rounds)
        ends = np.cumsum([len(s.rows) for s in kept])[:-1]
        touched = set()
        for s, positions, features, heads, weights, targets in zip(
            kept, place, *(np.split(part, ends) for part in parts), strict=True
        ):
            rows = np.array(s.rows)[positions[positions >= 0]]
            silent = np.zeros(len(rows), bool)
            self._learned[s.id] = _Round(s, rows, features.astype(np.float32), heads, weights, targets, silent)
            touched |= self._add(self._learned[s.id], 1.0)
        return touched

    def _add(self, r: _Round, sign: float) -> set[int]:
        weighted = r.features * (sign * r.weights)[:, None]
        targets = np.where(r.clicked, r.targets[:, 1], r.targets[:, 0])
        for head in (touched := {*r.heads.tolist()}):
            selected = r.heads == head
            self._precision[head] += weighted[selected].T @ r.features[selected]
            self._moment[head] += targets[selected] @ weighted[selected]
        return touched

    def _click(self, r: _Round, actions: Iterable[ActionRow]) -> set[int]:
        """Adds clicks that are new on a learned round; returns the heads that changed."""
        rewarded = [row for row, value in worth(self._reward, r.seen, actions).items() if value > 0]
        new = np.isin(r.rows, rewarded) & ~r.clicked
        added = (r.weights * (r.targets[:, 1] - r.targets[:, 0]))[:, None] * r.features
        np.add.at(self._moment, r.heads[new], added[new])
        r.clicked[new] = True
        return {*r.heads[new].tolist()}

    def _refresh(self, touched: set[int]) -> None:
        """Recomputes these heads from the prior and the sums, and swaps them in."""
        if heads := sorted(touched):
            state = {name: value.copy() for name, value in self._model.heads.state().items()}
            state["covariances"][heads] = np.linalg.inv(self._prior[heads] + self._precision[heads])
            moment = self._pull[heads] + self._moment[heads]
            state["means"][heads] = np.einsum("hij,hj->hi", state["covariances"][heads], moment)
            self._model.heads = self._model.heads.restored(state)
