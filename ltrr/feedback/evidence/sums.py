"""Evidence of pairs of a query and an entity, summed by customer, bounded, decayed, on top of predicted scores.

Knows numbers of queries, rows and customers; knows nothing about events, positions or rewards. Sums are additive, so
the order in which evidence comes changes nothing. Legend: E increments, P pairs, C slots: one a (pair, customer).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from ltrr.feedback.evidence.columns import Column, Numbers

_REFERENCE = 20_000 * 86_400_000_000  # microseconds; decay is counted from here (2024-10-04): a decayed sum stays a sum
_LOW = 0xFFFFFFFF
_NONE = 1e-9  # rounding; evidence is larger


class Increments(NamedTuple):
    """Evidence that is added to what is there."""

    queries: np.ndarray  # (E,) int64
    rows: np.ndarray  # (E,) int64
    customers: np.ndarray  # (E,) int64
    times: np.ndarray  # (E,) int64 microseconds since 1970
    values: np.ndarray  # (E, 2) successes, trials

    @classmethod
    def difference(cls, new: Increments, old: Increments) -> Increments:
        """What leads from `old` to `new`."""
        queries, rows, customers, times = (np.concatenate(pair) for pair in zip(new[:4], old[:4], strict=True))
        return cls(queries, rows, customers, times, np.concatenate([new.values, -old.values]))


class Sums:
    """What is known of each (query, entity).

    Args:
        cap: the most trials or successes of one customer that count for one pair.
        budget: trials of one customer, decayed, that count for others in all; of who has more, each counts a half, a
            quarter, ... so that they come to no more, and that customer is none of the distinct ones.
        half_life: after which evidence counts half.
        distinct: customers with a success that a pair needs before others may see it.
    """

    def __init__(
        self, *, cap: float = 3.0, budget: float = 300.0, half_life: timedelta = timedelta(days=90), distinct: int = 3
    ) -> None:
        self._distinct = distinct
        self._cap, self._budget, self._half_life = cap, budget, half_life / timedelta(microseconds=1)
        self.now = 0  # the latest event's time
        self.queries: list[str] = []  # normalised; "" = forgotten
        self.pairs_of: list[list[int]] = []  # query -> pairs
        self.succeeded = array("i")  # queries in the order of their first success
        self._has_succeeded: set[int] = set()
        self._agreed, self._predicted = Column(np.int32), Column(np.bool_)  # of queries: pairs with enough; any prior
        self._own: dict[int, set[int]] = {}  # customer -> queries with a success of theirs
        self._customers: list[str] = []  # "" = unknown
        self._query_of: dict[str, int] = {}
        self._customer_of: dict[str, int] = {}
        self._pair_of = Numbers()  # query << 32 | row -> pair
        self._slot_of = Numbers()  # pair << 32 | customer -> slot
        self._pair_query, self._pair_row, self._prior = Column(np.int64), Column(np.int32), Column(np.float64)
        self._total = Column(np.float64, 2)  # of pairs: successes and trials as of _REFERENCE
        self._clickers = Column(np.int32)  # of pairs: distinct customers with a success
        self._slot_pair, self._slot_customer = Column(np.int64), Column(np.int64)
        self._raw = Column(np.float64, 4)  # of slots: successes, trials, and both as of _REFERENCE
        self._used = Column(np.float64, 2)  # of slots: what of the latter counts for others
        self._counted = Column(np.int32)  # of slots: 1 = has a success
        self._trials = Column(np.float64)  # of customers, as of _REFERENCE
        self._halvings = Column(np.int32)  # of customers: how often what counts was halved

    # -- names and numbers

    def query(self, text: str) -> int:
        """Number of a normalised query, new ones included."""
        number = self._query_of.setdefault(text, len(self.queries))
        if number == len(self.queries):
            self.queries.append(text)
            self.pairs_of.append([])
            self._agreed.grow(len(self.queries))
            self._predicted.grow(len(self.queries))
        return number

    def find(self, text: str) -> int | None:
        """Number of a normalised query, None = not remembered."""
        return self._query_of.get(text)

    def customer(self, name: str) -> int:
        """Number of a customer, new ones included; "" = unknown."""
        number = self._customer_of.setdefault(name, len(self._customers))
        if number == len(self._customers):
            self._customers.append(name)
        return number

    def customers(self) -> list[str]:
        """Names that are known."""
        return [name for name in self._customer_of if name]

    # -- in

    def predict(self, queries: Sequence[str], rows: Sequence[int], scores: Sequence[float]) -> None:
        """Predicted scores in [0, 1] of pairs, the means of their priors; the larger where one comes twice."""
        keys = [self.query(query) << 32 | row for query, row in zip(queries, rows, strict=True)]
        pairs = self._pairs(np.array(keys, np.int64))
        np.maximum.at(self._prior.values, pairs, np.asarray(scores, np.float64))
        self._predicted.values[self._pair_query.values[pairs]] = True

    def add(self, evidence: Increments) -> None:
        """Adds increments to slots, and slots to pairs."""
        keys, inverse = np.unique(evidence.queries << 32 | evidence.rows, return_inverse=True)
        pairs = self._pairs(keys)[inverse]
        keys, inverse = np.unique(pairs << 32 | evidence.customers, return_inverse=True)
        slots = self._slots(keys)
        decayed = evidence.values * (2.0 ** ((evidence.times - _REFERENCE) / self._half_life))[:, None]
        for i, column in enumerate((*evidence.values.T, *decayed.T)):
            self._raw.values[slots, i] += np.bincount(inverse, column, len(slots))
        self._trials.grow(len(self._customers))
        np.add.at(self._trials.values, evidence.customers, decayed[:, 1])
        self._settle(np.union1d(slots, self._halved()))

    def erase(self, customer: str) -> None:
        """Takes back a customer's evidence; forgets the name, and queries that no other evidence or prior holds."""
        number = self._customer_of.pop(customer, None)
        if number is None:
            return
        slots = np.flatnonzero(self._slot_customer.values == number)
        self._raw.values[slots] = 0.0
        self._trials.values[number] = 0.0
        self._settle(slots)
        self._customers[number] = ""
        self._own.pop(number, None)
        for query in np.unique(self._pair_query.values[self._slot_pair.values[slots]]).tolist():
            pairs = np.array(self.pairs_of[query])
            if (self._prior.values[pairs] == 0).all() and (self._total.values[pairs] < _NONE).all():
                del self._query_of[self.queries[query]]
                self.queries[query], self.pairs_of[query] = "", []

    # -- out

    def rows(self, pairs: np.ndarray) -> np.ndarray:
        """(P,) corpus rows."""
        return self._pair_row.values[pairs]

    def visible(self, queries: np.ndarray, customer: str | None, *, predicted: bool) -> np.ndarray:
        """(M,) bool: whether a customer may see any pair of these queries: agreed on, their own or predicted ones."""
        out = self._agreed.values[queries] > 0
        if predicted:
            out |= self._predicted.values[queries]
        own = self._own.get(self._customer_of.get(customer, -1)) if customer else None
        return out | np.isin(queries, [*own]) if own else out

    def agreed(self) -> tuple[np.ndarray, list[str]]:
        """(P,) pairs that enough customers agree on, and their queries."""
        pairs = np.flatnonzero(self._clickers.values >= self._distinct)
        return pairs, [self.queries[query] for query in self._pair_query.values[pairs].tolist()]

    def scores(self, pairs: np.ndarray, customer: str | None, predicted: np.ndarray, *, strength: float) -> np.ndarray:
        """(P,) means in [0, 1] of Beta posteriors, evidence decayed to now, as a customer may see it.

        predicted: (P,) 1 = with its prior's mean, 0 = without. strength: of the prior, in trials. A pair with successes
        of too few customers shows each customer their own evidence only.
        """
        evidence = self._total.values[pairs]  # (P, 2)
        private = np.flatnonzero(self._clickers.values[pairs] < self._distinct)
        evidence[private] = 0.0
        number = self._customer_of.get(customer) if customer else None
        if number is not None:
            slots = self._slot_of.find(pairs[private] << 32 | number)
            own = slots >= 0
            evidence[private[own]] = self._capped(slots[own])
        successes, trials = (evidence * 2.0 ** (-(self.now - _REFERENCE) / self._half_life)).T
        return np.clip((strength * predicted * self._prior.values[pairs] + successes) / (strength + trials), 0.0, 1.0)

    def __len__(self) -> int:
        """Pairs."""
        return len(self._pair_of)

    # -- snapshots

    def state(self, least: float = 0.0) -> dict[str, np.ndarray]:
        """All of it as arrays without objects, numbered anew, without what holds no more than `least` evidence."""
        age = 2.0 ** (-(self.now - _REFERENCE) / self._half_life)
        slots = np.flatnonzero(self._raw.values[:, 2:].max(axis=1) * age > max(least, _NONE))
        live = self._prior.values > 0
        live[self._slot_pair.values[slots]] = True
        pairs = np.flatnonzero(live)
        queries, pair_query = np.unique(self._pair_query.values[pairs], return_inverse=True)
        customers, slot_customer = np.unique(self._slot_customer.values[slots], return_inverse=True)
        return {
            "now": np.array(self.now),
            "queries": _encoded([self.queries[q] for q in queries.tolist()]),
            "customers": _encoded([self._customers[c] for c in customers.tolist()]),
            "pair_query": pair_query,
            "rows": self._pair_row.values[pairs],
            "prior": self._prior.values[pairs],
            "slot_pair": np.searchsorted(pairs, self._slot_pair.values[slots]),
            "slot_customer": slot_customer,
            "raw": self._raw.values[slots],
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Fills empty sums from `state`."""
        assert not self.queries
        self.now = int(state["now"])
        queries = np.array([self.query(text) for text in _decoded(state["queries"])], np.int64)
        pairs = self._pairs(queries[state["pair_query"]] << 32 | state["rows"])
        self._prior.values[pairs] = state["prior"]
        self._predicted.values[self._pair_query.values[pairs[state["prior"] > 0]]] = True
        customers = np.array([self.customer(name) for name in _decoded(state["customers"])], np.int64)
        slots = self._slots(pairs[state["slot_pair"]] << 32 | customers[state["slot_customer"]])
        self._raw.values[slots] = state["raw"]
        self._trials.grow(len(self._customers))
        np.add.at(self._trials.values, self._slot_customer.values[slots], state["raw"][:, 3])
        self._halved()
        self._settle(slots)

    # -- how

    def _pairs(self, keys: np.ndarray) -> np.ndarray:
        """Pairs of keys, new ones included."""
        pairs, new = self._pair_of.add(keys)
        for column in (self._pair_query, self._pair_row, self._prior, self._total, self._clickers):
            column.grow(len(self._pair_of))
        self._pair_query.values[pairs[new]] = keys[new] >> 32
        self._pair_row.values[pairs[new]] = keys[new] & _LOW
        for key, pair in zip(keys[new].tolist(), pairs[new].tolist(), strict=True):
            self.pairs_of[key >> 32].append(pair)
        return pairs

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        """Slots of keys (unique), new ones included."""
        slots, new = self._slot_of.add(keys)
        for column in (self._slot_pair, self._slot_customer, self._raw, self._used, self._counted):
            column.grow(len(self._slot_of))
        self._slot_pair.values[slots[new]] = keys[new] >> 32
        self._slot_customer.values[slots[new]] = keys[new] & _LOW
        return slots

    def _capped(self, slots: np.ndarray) -> np.ndarray:
        """(C, 2) what counts of slots as of _REFERENCE, for their customers."""
        raw = self._raw.values[slots]
        part = np.minimum(1.0, self._cap / np.maximum(raw[:, :2].max(axis=1, initial=0.0), _NONE))
        return raw[:, 2:] * part[:, None]

    def _halved(self) -> np.ndarray:
        """Slots of customers who have come above or below a multiple of their budget, which is noted."""
        self._halvings.grow(len(self._customers))
        now = self._trials.values * 2.0 ** (-(self.now - _REFERENCE) / self._half_life)
        halvings = np.ceil(np.log2(np.maximum(now / self._budget, 1.0))).astype(np.int32)
        changed = np.flatnonzero(halvings != self._halvings.values)
        self._halvings.values[changed] = halvings[changed]
        return np.flatnonzero(np.isin(self._slot_customer.values, changed)) if len(changed) else changed

    def _settle(self, slots: np.ndarray) -> None:
        """Brings pairs up to date with slots (unique), each bounded by the cap."""
        raw, pairs = self._raw.values[slots], self._slot_pair.values[slots]
        halvings = self._halvings.values[self._slot_customer.values[slots]]
        used = self._capped(slots) * 0.5 ** halvings[:, None]
        np.add.at(self._total.values, pairs, used - self._used.values[slots])
        self._used.values[slots] = used
        for query in np.unique(self._pair_query.values[pairs[raw[:, 0] > _NONE]]).tolist():
            if query not in self._has_succeeded:
                self._has_succeeded.add(query)
                self.succeeded.append(query)
        known = self._slot_customer.values[slots] != self._customer_of.get("", -1)
        counted = ((raw[:, 0] > _NONE) & known & (halvings == 0)).astype(np.int32)
        each = np.unique(pairs)
        before = self._clickers.values[each] >= self._distinct
        np.add.at(self._clickers.values, pairs, counted - self._counted.values[slots])
        self._counted.values[slots] = counted
        after = self._clickers.values[each] >= self._distinct
        np.add.at(self._agreed.values, self._pair_query.values[each], after.astype(np.int32) - before)
        good = (raw[:, 0] > _NONE) & known
        own = self._slot_customer.values[slots[good]].tolist(), self._pair_query.values[pairs[good]].tolist()
        for customer, query in zip(*own, strict=True):
            self._own.setdefault(customer, set()).add(query)


def _encoded(texts: Sequence[str]) -> np.ndarray:
    """Texts as the bytes of a JSON list."""
    return np.frombuffer(json.dumps(texts).encode(), np.uint8)


def _decoded(data: np.ndarray) -> list[str]:
    return json.loads(data.tobytes())
