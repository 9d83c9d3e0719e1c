"""Sums the evidence of pairs of a query and a candidate by customer: bounded, decayed, on top of predicted scores.

Knows numbers of queries, corpus rows, customers and arms; does not know events, positions or rewards. Sums are
additive, so the order in which evidence comes changes nothing.
Legend: E increments, P pairs, A arms, B cells, C slots: one for each (pair, customer).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple, Self

import numpy as np

from ltrr.feedback.evidence.cells import NUM, Shows
from ltrr.feedback.evidence.columns import Column, Numbers

_REFERENCE = 20_000 * 86_400_000_000  # microseconds; decay is counted from here (2024-10-04): a decayed sum stays a sum
_LOW = 0xFFFFFFFF
_NONE = 1e-9  # rounding; evidence is larger
_MOST_ARMS = 62  # bits of `Increments.returned_by`


class Increments(NamedTuple):
    """Evidence to be added."""

    queries: np.ndarray  # (E,) int64
    rows: np.ndarray  # (E,) int64
    customers: np.ndarray  # (E,) int64
    times: np.ndarray  # (E,) int64 microseconds since 1970
    returned_by: np.ndarray  # (E,) int64, bit a is set if arm a returned the candidate
    values: np.ndarray  # (E, 2) successes, trials
    cells: np.ndarray  # (E,) int64 cell in which it was shown (`cells`), -1 = it was not
    shows: np.ndarray  # (E,) 1, or -1 where a show is taken back

    @classmethod
    def difference(cls, new: Self, old: Self) -> Self:
        """The increments that lead from `old` to `new`."""
        return cls(*map(np.concatenate, zip(new, old._replace(values=-old.values, shows=-old.shows), strict=True)))


class Counts(NamedTuple):
    """Evidence of pairs, decayed to now, as one customer may see it; all arrays have the same shape, here (P,).

    Successes and trials count for everybody where at least `distinct` customers had a success; elsewhere a customer
    sees only their own. Failures count for everybody where at least `distinct` customers had none. The numbers of
    customers are for deciding whom to trust; they count private pairs, too.
    """

    prior: np.ndarray  # (P,) predicted score in [0, 1], 0 = none
    successes: np.ndarray  # (P,) debiased, at most `cap` a customer
    trials: np.ndarray  # (P,) expected number of looks, likewise
    failures: np.ndarray  # (P,) the part of all trials that comes from customers without a success
    succeeded: np.ndarray  # (P,) int32 distinct customers with a success
    failed: np.ndarray  # (P,) int32 distinct customers who looked and had no success

    def mean(self, strength: float, predicted: np.ndarray | float = 1.0) -> np.ndarray:
        """(P,) means in [0, 1] of Beta posteriors.

        strength: of the prior, in trials. predicted: (P,) 1 = the prior has its mean, 0 = it has mean 0.
        """
        mean = (strength * predicted * self.prior + self.successes) / (strength + self.trials)
        return np.clip(mean, 0.0, 1.0)


class _Layer:
    """Decayed evidence: all of it, or the part of candidates that one arm returned."""

    def __init__(self) -> None:
        self.raw = Column(np.float64, 2)  # (C, 2) successes and trials as of _REFERENCE
        self.total = Column(np.float64, 3)  # (P, 3) successes, trials, and trials of customers without a success


class Sums:
    """Evidence of each (query, candidate).

    Args:
        cap: the most trials or successes of one customer that count for one pair.
        budget: the most trials of one customer, decayed, that count for others in all. Of a customer with more, each
            counts a half, a quarter, ..., so that they stay within the budget, and that customer is not a distinct one.
        half_life: after which evidence counts half.
        distinct: customers with a success that a pair needs before others may see it.
        sources: whether to keep evidence by arm too, in 16 bytes for each arm and slot.
        cells: whether to keep shows by cell too, in 112 bytes for each slot and each pair.
    """

    def __init__(
        self,
        *,
        cap: float = 3.0,
        budget: float = 300.0,
        half_life: timedelta = timedelta(days=90),
        distinct: int = 3,
        sources: bool = False,
        cells: bool = False,
    ) -> None:
        self._distinct, self.sources, self.cells = distinct, sources, cells
        self._cap, self._budget, self._half_life = cap, budget, half_life / timedelta(microseconds=1)
        self.now = 0  # the latest event's time
        self.queries: list[str] = []  # normalised; "" = forgotten
        self.pairs_of: list[array] = []  # query -> pairs
        self.succeeded = array("i")  # queries in the order of their first success
        self._has_succeeded: set[int] = set()
        self._agreed, self._predicted = Column(np.int32), Column(np.bool_)  # of queries: pairs with enough; any prior
        self._successes_of: dict[int, set[int]] = {}  # customer -> queries with a success of theirs
        self._customers: list[str] = []  # "" = unknown
        self.arms: list[str] = []  # A names, in the order in which they came
        self._query_of: dict[str, int] = {}
        self._customer_of: dict[str, int] = {}
        self._arm_of: dict[str, int] = {}
        self._pair_of = Numbers()  # query << 32 | row -> pair
        self._slot_of = Numbers()  # pair << 32 | customer -> slot
        self._pair_query, self._pair_row, self._prior = Column(np.int64), Column(np.int32), Column(np.float64)
        self._people = Column(np.int32, 2)  # of pairs: distinct customers with a success, and with looks alone
        self._slot_pair, self._slot_customer = Column(np.int64), Column(np.int64)
        self._raw = Column(np.float64, 2)  # of slots: successes and trials, not decayed
        self._layers = [_Layer()]  # all evidence, then that of each arm
        # Shows by cell, decayed: (…, B) without a success, then (…, B) with one; of slots, and what counts of pairs.
        self._shows = Column(np.float32, 2 * NUM), Column(np.float32, 2 * NUM)
        self.shown = 0.0  # candidates, in all, not decayed
        self._share = Column(np.float64)  # of slots: the part of a layer's `raw` that counts for others
        self._counted = Column(np.int8, 2)  # of slots: their part of `_people`
        self._trials = Column(np.float64)  # of customers, as of _REFERENCE
        self._halvings = Column(np.int32)  # of customers: how often what counts was halved

    # -- names and numbers

    def query(self, text: str) -> int:
        """Number of a normalised query, which may be new."""
        number = self._query_of.setdefault(text, len(self.queries))
        if number == len(self.queries):
            self.queries.append(text)
            self.pairs_of.append(array("i"))
            self._agreed.grow(len(self.queries))
            self._predicted.grow(len(self.queries))
        return number

    def customer(self, name: str) -> int:
        """Number of a customer, who may be new; "" = unknown."""
        number = self._customer_of.setdefault(name, len(self._customers))
        if number == len(self._customers):
            self._customers.append(name)
        return number

    def arm(self, name: str) -> int:
        """Number of an arm, which may be new. ValueError: there are too many."""
        number = self._arm_of.setdefault(name, len(self.arms))
        if number == len(self.arms):
            if number == _MOST_ARMS:
                raise ValueError(f"evidence: arm {name!r} is one too many; evidence is kept for {_MOST_ARMS} arms")
            self.arms.append(name)
            self._layers.append(_Layer())
            self._grow()
        return number

    def find_query(self, text: str) -> int:
        """Number of a normalised query, -1 = not remembered."""
        return self._query_of.get(text, -1)

    def find_customer(self, name: str | None) -> int:
        """Number of a customer, -1 = unknown."""
        return self._customer_of.get(name, -1) if name else -1

    def find_pairs(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(P,) pairs of queries and corpus rows, both (P,); -1 = not remembered, or an unknown query or row."""
        known = (queries >= 0) & (rows >= 0)
        pairs = np.full(len(queries), -1, np.int64)
        pairs[known] = self._pair_of.find(queries[known].astype(np.int64) << 32 | rows[known])
        return pairs

    def spent(self, name: str) -> float:
        """Decayed trials of a customer as a share of the budget; unknown ones are one customer together."""
        number = self._customer_of.get(name, -1)
        if number < 0 or number >= len(self._trials.values):
            return 0.0
        return float(self._trials.values[number]) * 2.0 ** (-(self.now - _REFERENCE) / self._half_life) / self._budget

    def customers(self) -> list[str]:
        """Names that are known."""
        return [name for name in self._customer_of if name]

    # -- in

    def predict(self, queries: Sequence[str], rows: Sequence[int], scores: Sequence[float]) -> None:
        """Sets predicted scores in [0, 1], the means of priors; of a pair that comes twice the larger counts."""
        keys = [self.query(query) << 32 | row for query, row in zip(queries, rows, strict=True)]
        pairs = self._pairs(np.array(keys, np.int64))
        np.maximum.at(self._prior.values, pairs, np.asarray(scores, np.float64))
        self._predicted.values[self._pair_query.values[pairs]] = True

    def predicted(self) -> tuple[list[str], list[int], list[float]]:
        """Queries, rows and scores of all predictions, as `predict` takes them."""
        pairs = np.flatnonzero(self._prior.values > 0)
        texts = [self.queries[query] for query in self._pair_query.values[pairs].tolist()]
        return texts, self.rows(pairs).tolist(), self._prior.values[pairs].tolist()

    def priors(self, pairs: np.ndarray) -> np.ndarray:
        """(P,) predicted scores of pairs (P,)."""
        return self._prior.values[pairs]

    @property
    def foretells(self) -> bool:
        """Whether anything was predicted."""
        return bool(self._predicted.values.any())

    def add(self, evidence: Increments) -> None:
        """Adds increments to slots, and slots to pairs."""
        keys, inverse = np.unique(evidence.queries << 32 | evidence.rows, return_inverse=True)
        pairs = self._pairs(keys)[inverse]
        keys, inverse = np.unique(pairs << 32 | evidence.customers, return_inverse=True)
        slots = self._slots(keys)
        decayed = evidence.values * (2.0 ** ((evidence.times - _REFERENCE) / self._half_life))[:, None]  # (E, 2)
        self._trials.grow(len(self._customers))
        np.add.at(self._trials.values, evidence.customers, decayed[:, 1])
        touched = np.union1d(slots, self._halved())
        before = self._counting(touched)
        self._raw.values[slots] += _sums(inverse, evidence.values, len(slots))
        for number, layer in enumerate(self._layers):
            part = decayed if number == 0 else decayed * (evidence.returned_by >> (number - 1) & 1)[:, None]
            layer.raw.values[slots] += _sums(inverse, part, len(slots))
        if self.cells:
            self._add_shows(evidence, slots[inverse])
        self._settle(touched, before)

    def erase(self, customer: str) -> None:
        """Takes back a customer's evidence; forgets the name, and queries that no other evidence or prior holds."""
        number = self._customer_of.pop(customer, None)
        if number is None:
            return
        slots = np.flatnonzero(self._slot_customer.values == number)
        before = self._counting(slots)
        self._raw.values[slots] = 0.0
        for layer in self._layers:
            layer.raw.values[slots] = 0.0
        if self.cells:
            self._shows[0].values[slots] = 0.0
        self._trials.values[number] = 0.0
        self._settle(slots, before)
        self._customers[number] = ""
        self._successes_of.pop(number, None)
        for query in np.unique(self._pair_query.values[self._slot_pair.values[slots]]).tolist():
            pairs = np.array(self.pairs_of[query])
            total = self._layers[0].total.values[pairs]
            if (self._prior.values[pairs] == 0).all() and (total < _NONE).all():
                del self._query_of[self.queries[query]]
                self.queries[query], self.pairs_of[query] = "", array("i")

    # -- out

    def rows(self, pairs: np.ndarray) -> np.ndarray:
        """(P,) corpus rows."""
        return self._pair_row.values[pairs]

    def visible(self, queries: np.ndarray, customer: int, *, predicted: bool) -> np.ndarray:
        """(M,) bool: whether a customer may see any pair of these queries: agreed on, their own or predicted ones."""
        mask = self._agreed.values[queries] > 0
        if predicted:
            mask |= self._predicted.values[queries]
        successes = self._successes_of.get(customer)
        return mask | np.isin(queries, [*successes]) if successes else mask

    def agreed(self) -> tuple[np.ndarray, list[str]]:
        """(P,) pairs that enough customers agree on, and their queries."""
        pairs = np.flatnonzero(self._people.values[:, 0] >= self._distinct)
        return pairs, [self.queries[query] for query in self._pair_query.values[pairs].tolist()]

    def counts(self, pairs: np.ndarray, customers: np.ndarray) -> Counts:
        """Evidence of pairs (P,) as customers (P,), -1 = unknown, may see it."""
        prior, people = self._prior.values[pairs], self._people.values[pairs]
        return Counts(*(prior, *self._evidence(0, pairs, customers), *people.T))

    def by_arm(self, pairs: np.ndarray, customers: np.ndarray) -> np.ndarray:
        """(P, A, 3) successes, trials and failures as in `counts`, where each arm returned the candidate."""
        values = np.zeros((len(pairs), len(self.arms), 3))
        for arm in range(len(self.arms)):
            values[:, arm] = self._evidence(1 + arm, pairs, customers).T
        return values

    def silences(self, pairs: np.ndarray, customers: np.ndarray) -> np.ndarray:
        """(P, B) shows without a success by cell, where `counts` shows trials or failures to these customers (P,)."""
        values = self._shows[1].values[pairs, :NUM].astype(np.float64)
        private = np.flatnonzero((self._people.values[pairs] < self._distinct).all(axis=1))
        values[private] = 0.0
        private = private[customers[private] >= 0]
        slots = self._slot_of.find(pairs[private] << 32 | customers[private])
        private, slots = private[slots >= 0], slots[slots >= 0]
        values[private] = self._shows[0].values[slots, :NUM] * self._capped(slots)[:, None]
        return values * 2.0 ** (-(self.now - _REFERENCE) / self._half_life)

    def all_shows(self) -> Shows:
        """All shows that count, decayed: what an estimate of how customers look is made from."""
        age = 2.0 ** (-(self.now - _REFERENCE) / self._half_life)
        silences, clicks = np.split(self._shows[1].values.astype(np.float64) * age, 2, axis=1)
        clicked = self._layers[0].total.values[:, 0] * age
        return Shows(
            clicked, silences, clicks.sum(axis=0), [*self.queries], self._pair_query.values, self._pair_row.values
        )

    def __len__(self) -> int:
        """Pairs."""
        return len(self._pair_of)

    # -- snapshots

    def state(self, least: float = 0.0) -> dict[str, np.ndarray]:
        """All sums as arrays without objects, renumbered, without slots of no more than `least` trials."""
        age = 2.0 ** (-(self.now - _REFERENCE) / self._half_life)
        decayed = self._layers[0].raw.values
        slots = np.flatnonzero(decayed.max(axis=1, initial=0.0) * age > max(least, _NONE))
        live = self._prior.values > 0
        live[self._slot_pair.values[slots]] = True
        pairs = np.flatnonzero(live)
        queries, pair_query = np.unique(self._pair_query.values[pairs], return_inverse=True)
        customers, slot_customer = np.unique(self._slot_customer.values[slots], return_inverse=True)
        return {
            "now": np.array(self.now),
            "queries": _encoded([self.queries[q] for q in queries.tolist()]),
            "customers": _encoded([self._customers[c] for c in customers.tolist()]),
            "arms": _encoded(self.arms),
            "pair_query": pair_query,
            "rows": self._pair_row.values[pairs],
            "prior": self._prior.values[pairs],
            "slot_pair": np.searchsorted(pairs, self._slot_pair.values[slots]),
            "slot_customer": slot_customer,
            "raw": np.concatenate([self._raw.values[slots], decayed[slots]], axis=1),  # (C, 4)
            "by_arm": np.stack([layer.raw.values[slots] for layer in self._layers], axis=1)[:, 1:],  # (C, A, 2)
            **({"shows": self._shows[0].values[slots]} if self.cells else {}),  # (C, 2 B)
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Fills empty sums from `state`; in one of before evidence was kept by arm, no arm has any."""
        assert not self.queries
        self.now = int(state["now"])
        queries = np.array([self.query(text) for text in _decoded(state["queries"])], np.int64)
        pairs = self._pairs(queries[state["pair_query"]] << 32 | state["rows"])
        self._prior.values[pairs] = state["prior"]
        self._predicted.values[self._pair_query.values[pairs[state["prior"] > 0]]] = True
        customers = np.array([self.customer(name) for name in _decoded(state["customers"])], np.int64)
        slots = self._slots(pairs[state["slot_pair"]] << 32 | customers[state["slot_customer"]])
        self._raw.values[slots], decayed = np.split(state["raw"], 2, axis=1)
        self._layers[0].raw.values[slots] = decayed
        if self.sources and "arms" in state:
            for name, values in zip(_decoded(state["arms"]), np.moveaxis(state["by_arm"], 1, 0), strict=True):
                self.arm(name)
                self._layers[-1].raw.values[slots] = values
        if self.cells and "shows" not in state:
            raise ValueError("evidence: this snapshot has no shows by cell; they are learned anew from the store")
        if self.cells:
            self._shows[0].values[slots] = state["shows"]
            self.shown = float(state["shows"].sum())
        self._trials.grow(len(self._customers))
        np.add.at(self._trials.values, self._slot_customer.values[slots], decayed[:, 1])
        self._halved()
        self._settle(slots, self._counting(slots))

    # -- how

    def _pairs(self, keys: np.ndarray) -> np.ndarray:
        """Pairs of keys, which may be new."""
        pairs, new = self._pair_of.add(keys)
        self._grow()
        self._pair_query.values[pairs[new]] = keys[new] >> 32
        self._pair_row.values[pairs[new]] = keys[new] & _LOW
        for key, pair in zip(keys[new].tolist(), pairs[new].tolist(), strict=True):
            self.pairs_of[key >> 32].append(pair)
        return pairs

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        """Slots of keys (unique), which may be new."""
        slots, new = self._slot_of.add(keys)
        self._grow()
        self._slot_pair.values[slots[new]] = keys[new] >> 32
        self._slot_customer.values[slots[new]] = keys[new] & _LOW
        return slots

    def _grow(self) -> None:
        """Makes room for all pairs and slots in each layer."""
        totals, raws = zip(*((layer.total, layer.raw) for layer in self._layers), strict=True)
        for column in (self._pair_query, self._pair_row, self._prior, self._people, *totals):
            column.grow(len(self._pair_of))
        for column in (self._slot_pair, self._slot_customer, self._raw, self._share, self._counted, *raws):
            column.grow(len(self._slot_of))
        if self.cells:
            self._shows[0].grow(len(self._slot_of))
            self._shows[1].grow(len(self._pair_of))

    def _add_shows(self, evidence: Increments, slots: np.ndarray) -> None:
        """Counts shows by cell; slots (E,)."""
        shown, silent = evidence.cells >= 0, evidence.values[:, 0] == 0
        self.shown += float(evidence.shows[shown].sum())
        which = np.flatnonzero(shown)
        decay = 2.0 ** ((evidence.times[which] - _REFERENCE) / self._half_life)
        columns = evidence.cells[which] + np.where(silent[which], 0, NUM)
        np.add.at(self._shows[0].values, (slots[which], columns), evidence.shows[which] * decay)

    def _evidence(self, layer: int, pairs: np.ndarray, customers: np.ndarray) -> np.ndarray:
        """(3, P) successes, trials and failures of a layer, as customers may see them (`Counts`)."""
        values = self._layers[layer].total.values[pairs]  # (P, 3)
        few = self._people.values[pairs] < self._distinct  # (P, 2)
        values[few[:, 0], :2] = 0.0
        values[few[:, 1], 2] = 0.0
        private = np.flatnonzero(few[:, 0] & (customers >= 0))
        slots = self._slot_of.find(pairs[private] << 32 | customers[private])
        private, slots = private[slots >= 0], slots[slots >= 0]
        values[private, :2] = self._layers[layer].raw.values[slots] * self._capped(slots)[:, None]
        return values.T * 2.0 ** (-(self.now - _REFERENCE) / self._half_life)

    def _capped(self, slots: np.ndarray) -> np.ndarray:
        """(C,) parts of slots' evidence that the cap lets count for their customers."""
        return np.minimum(1.0, self._cap / np.maximum(self._raw.values[slots].max(axis=1, initial=0.0), _NONE))

    def _halved(self) -> np.ndarray:
        """Slots of customers who have come above or below a multiple of their budget, which is noted."""
        self._halvings.grow(len(self._customers))
        now = self._trials.values * 2.0 ** (-(self.now - _REFERENCE) / self._half_life)
        halvings = np.ceil(np.log2(np.maximum(now / self._budget, 1.0))).astype(np.int32)
        changed = np.flatnonzero(halvings != self._halvings.values)
        self._halvings.values[changed] = halvings[changed]
        return np.flatnonzero(np.isin(self._slot_customer.values, changed)) if len(changed) else changed

    def _counting(self, slots: np.ndarray) -> list[np.ndarray]:
        """(C, 3) for each layer, then (C, 2 B) shows: what of slots (unique) is in their pairs' totals."""
        share, failed = self._share.values[slots, None], self._counted.values[slots, 1:]  # (C, 1)
        counting = [layer.raw.values[slots] * share for layer in self._layers]  # (C, 2)
        counted = [np.concatenate([values, values[:, 1:] * failed], axis=1) for values in counting]
        return [*counted, self._shows[0].values[slots] * share] if self.cells else counted

    def _settle(self, slots: np.ndarray, before: Sequence[np.ndarray]) -> None:
        """Brings pairs up to date with slots (unique), each bounded by the cap; `before`: `_counting` of old slots."""
        raw, pairs, customers = (
            self._raw.values[slots],
            self._slot_pair.values[slots],
            self._slot_customer.values[slots],
        )
        halvings, known = self._halvings.values[customers], customers != self._customer_of.get("", -1)
        success, looked = raw.T > _NONE
        counted = np.stack([success, looked & ~success], axis=1) & (known & (halvings == 0))[:, None]  # (C, 2)
        each = np.unique(pairs)
        agreed = self._people.values[each, 0] >= self._distinct
        _add_at(self._people.values, pairs, counted - self._counted.values[slots])
        change = (self._people.values[each, 0] >= self._distinct) - agreed.astype(np.int32)
        np.add.at(self._agreed.values, self._pair_query.values[each], change)
        self._share.values[slots], self._counted.values[slots] = self._capped(slots) * 0.5**halvings, counted
        totals = [layer.total for layer in self._layers] + [self._shows[1]] * self.cells
        for total, old, new in zip(totals, before, self._counting(slots), strict=True):
            _add_at(total.values, pairs, new - old)
        for query in np.unique(self._pair_query.values[pairs[success]]).tolist():
            if query not in self._has_succeeded:
                self._has_succeeded.add(query)
                self.succeeded.append(query)
        own = success & known
        for customer, query in zip(customers[own].tolist(), self._pair_query.values[pairs[own]].tolist(), strict=True):
            self._successes_of.setdefault(customer, set()).add(query)


def _add_at(values: np.ndarray, places: np.ndarray, change: np.ndarray) -> None:
    """Adds change (E, N) to values at places (E,), which may repeat; column by column, as numpy is slow at rows."""
    for column, part in zip(values.T, change.T, strict=True):
        np.add.at(column, places, part)


def _sums(groups: np.ndarray, values: np.ndarray, num: int) -> np.ndarray:
    """(G, N) sums of values (E, N) by their groups (E,), numbered below G = `num`."""
    return np.stack([np.bincount(groups, column, num) for column in values.T], axis=1)


def _encoded(texts: Sequence[str]) -> np.ndarray:
    """Texts as the bytes of a JSON list."""
    return np.frombuffer(json.dumps(texts).encode(), np.uint8)


def _decoded(data: np.ndarray) -> list[str]:
    return json.loads(data.tobytes())
