"""Bayesian heads that learn from what is served, while their trunk stays as it is until it is refitted.

Knows impressions, clicks and sums; knows nothing about networks or decisions. What a round says is a weighted sum of
outer products (precision) and of features (moment), so heads are the same in whatever order rounds come, a click that
comes after its round was learned is added, and what a customer taught is subtracted. Heads are replaced as a whole:
who decides meanwhile sees the ones or the others. Times are microseconds since 1970.
Legend: H heads, D what they see, B candidates that were shown, K shown entities.
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

_GRACE = microseconds(timedelta(days=7))  # that an action waits for its impression, and a round for late actions


class Model(Protocol):
    """A trunk with linear heads (`ltrr.learners.relevance.RelevanceLearner`)."""

    heads: Any  # `state()`: means (H, D), covariances (H, D, D); `restored(state)`: heads of a state

    @property
    def columns(self) -> Names: ...

    @property
    def num(self) -> int: ...

    def observations(self, rounds: Rounds) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each candidate shown: features (B, D), its head, its weight, what a silence and a click say (B, 2)."""
        ...


class _Round(NamedTuple):
    """What a round said; arrays go in fused order of what was shown."""

    seen: ImpressionRow
    rows: np.ndarray  # (K,) corpus rows
    features: np.ndarray  # (K, D) float32, as the network gave them
    heads: np.ndarray  # (K,)
    weights: np.ndarray  # (K,)
    targets: np.ndarray  # (K, 2) of silence, of a click
    clicked: np.ndarray  # (K,) bool


class OnlineHeads:
    """Learner of a `Loop`: teaches a model's heads the rounds that this policy served.

    Rounds that another policy drew are left to `scripts/events.py rounds` and a fit of the trunk: a model that was
    fitted on them would count them twice. Of a customer who is known, what each round said is kept (1.7 kB for ten
    shown), to be taken back.

    Args:
        model: its heads are the prior.
        store: where features are.
        policy: name of what decides, as impressions have it.
        wait: after a page, before its silence counts; clicks that come later still count, within the reward's window.
        most: pages that wait; with more the oldest are learned sooner.
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
        self._precision, self._moment = np.zeros_like(self._prior), np.zeros_like(self._pull)  # what rounds said
        self._now = 0
        self._waiting: dict[str, ImpressionRow] = {}
        self._queue: list[tuple[int, str]] = []  # heap of (time, impression) of those
        self._did: dict[str, dict[str, ActionRow]] = defaultdict(dict)  # impression -> actions on what is not learned
        self._learned: dict[str, _Round] = {}
        self.left_out: Counter[str] = Counter()  # since the start: why, how many

    def take(self, seen: Sequence[ImpressionRow], did: Sequence[ActionRow]) -> None:
        """Learns what is due, and clicks on what was learned before."""
        for s in seen:
            if s.id not in self._learned and s.id not in self._waiting:
                self._waiting[s.id] = s._replace(query="", session="")
                heapq.heappush(self._queue, (s.time, s.id))
                self._now = max(self._now, s.time)
        for d in did:
            self._did[d.impression][d.id] = d
        due = []
        while self._queue and (self._queue[0][0] <= self._now - self._wait or len(self._queue) > self._most):
            due.append(self._waiting.pop(heapq.heappop(self._queue)[1]))
        touched = self._learn(due)
        for name in {*(d.impression for d in did), *(s.id for s in due)} & self._learned.keys():
            touched |= self._click(self._learned[name], self._did.pop(name, {}).values())
        self._refresh(touched)

    def customers(self) -> list[str]:
        """Names of whom it knows."""
        return [*{s.customer for s in (*self._waiting.values(), *(r.seen for r in self._learned.values()))} - {""}]

    def erase(self, customer: str) -> None:
        """Subtracts what a customer taught."""
        theirs = [i for i, r in self._learned.items() if r.seen.customer == customer]
        self._refresh({head for i in theirs for head in self._add(self._learned.pop(i), -1.0)})
        for name in [name for name, s in self._waiting.items() if s.customer == customer]:
            del self._waiting[name]
            self._did.pop(name, None)
        self._queue = sorted((s.time, s.id) for s in self._waiting.values())  # a sorted list is a heap

    def compact(self) -> None:
        """Forgets of rounds of a week ago what only a customer's erasure needs, where there is none to erase."""
        old = self._now - _GRACE
        self._learned = {i: r for i, r in self._learned.items() if r.seen.customer or r.seen.time >= old}
        for name in [name for name, did in self._did.items() if name not in self._waiting]:
            if all(d.time < old for d in self._did[name].values()):
                del self._did[name]

    def save(self, path: Path) -> None:
        """In one file without objects; whole or not at all."""
        rounds = [*self._learned.values()]
        did = [d for of in self._did.values() for d in of.values()]
        text = [[r.seen for r in rounds], [*self._waiting.values()], did]
        arrays: dict[str, Any] = {"precision": self._precision, "moment": self._moment, "now": self._now}
        arrays |= {"counts": np.array([len(r.rows) for r in rounds], int)}
        arrays |= {name: np.concatenate([getattr(r, name) for r in rounds]) for name in _Round._fields[1:] if rounds}
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, text=np.frombuffer(json.dumps(text).encode(), np.uint8), **arrays)

    def load(self, path: Path) -> None:
        """Goes on from what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self._precision, self._moment, self._now = arrays["precision"], arrays["moment"], int(arrays["now"])
        learned, waiting, did = json.loads(arrays["text"].tobytes())
        ends = np.cumsum(arrays["counts"])[:-1]
        parts = zip(*(np.split(arrays[name], ends) for name in _Round._fields[1:] if learned), strict=True)
        self._learned = {
            seen[0]: _Round(ImpressionRow(*seen), *part) for seen, part in zip(learned, parts, strict=True)
        }
        self._waiting = {fields[0]: ImpressionRow(*fields) for fields in waiting}
        self._queue = sorted((s.time, s.id) for s in self._waiting.values())
        self._did.clear()
        for d in (ActionRow(*fields) for fields in did):
            self._did[d.impression][d.id] = d
        self._refresh(set(range(len(self._moment))))

    # -- how

    def _learn(self, due: Sequence[ImpressionRow]) -> set[int]:
        """Adds rounds as if nothing had been clicked; the heads that this touches."""
        whole = {i.id: i for i in self._store.named([s.id for s in due])} if due else {}
        kept, columns = [], []
        for s in due:
            if (seen := whole.get(s.id)) is None:
                known = "gone"
            elif seen.policy != self._policy:
                known = "of another policy"
            else:
                known = known_of(seen, self._model.columns, self._model.num)
            if isinstance(known, str):
                self.left_out[known] += 1
                self._did.pop(s.id, None)
            else:
                kept.append(s)
                columns.append(known)
        if not kept:
            return set()
        query, candidates, place = map(np.stack, zip(*columns, strict=True))
        rounds = Rounds(np.arange(len(kept)), query, candidates, np.zeros(len(kept), int), place < -1, place=place)
        parts = self._model.observations(rounds)
        ends = np.cumsum([len(s.rows) for s in kept])[:-1]
        touched = set()
        for s, at, features, heads, weights, targets in zip(
            kept, place, *(np.split(part, ends) for part in parts), strict=True
        ):
            rows = np.array(s.rows)[at[at >= 0]]
            silent = np.zeros(len(rows), bool)
            self._learned[s.id] = _Round(s, rows, features.astype(np.float32), heads, weights, targets, silent)
            touched |= self._add(self._learned[s.id], 1.0)
        return touched

    def _add(self, r: _Round, sign: float) -> set[int]:
        weighted = r.features * (sign * r.weights)[:, None]
        targets = np.where(r.clicked, r.targets[:, 1], r.targets[:, 0])
        for head in (touched := {*r.heads.tolist()}):
            mine = r.heads == head
            self._precision[head] += weighted[mine].T @ r.features[mine]
            self._moment[head] += targets[mine] @ weighted[mine]
        return touched

    def _click(self, r: _Round, did: Iterable[ActionRow]) -> set[int]:
        """What was silent and is clicked now."""
        good = [row for row, value in worth(self._reward, r.seen, did).items() if value > 0]
        new = np.isin(r.rows, good) & ~r.clicked
        more = (r.weights * (r.targets[:, 1] - r.targets[:, 0]))[:, None] * r.features
        np.add.at(self._moment, r.heads[new], more[new])
        r.clicked[new] = True
        return {*r.heads[new].tolist()}

    def _refresh(self, touched: set[int]) -> None:
        """Heads of prior and sums."""
        if some := sorted(touched):
            state = {name: value.copy() for name, value in self._model.heads.state().items()}
            state["covariances"][some] = np.linalg.inv(self._prior[some] + self._precision[some])
            pulled = self._pull[some] + self._moment[some]
            state["means"][some] = np.einsum("hij,hj->hi", state["covariances"][some], pulled)
            self._model.heads = self._model.heads.restored(state)
