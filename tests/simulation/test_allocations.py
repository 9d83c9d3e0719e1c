"""Static baselines against what plain loops find."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ltrr.fusion import ConvexFusion, take, union
from ltrr.policies.table import Table
from ltrr.simulation import allocations
from ltrr.simulation.allocations import best_slots, outcomes, slot_order
from ltrr.types import Candidates

ARMS = ("a", "b", "c")


@pytest.fixture(scope="module")
def pool():
    """30 queries, lists of 4 to 10 of 25 documents; arm c says nothing about every fifth query."""
    rng = np.random.default_rng(0)
    found = {}
    for arm in ARMS:
        docs = np.stack([rng.permutation(25)[:10] for _ in range(30)]).astype(np.int32)
        empty = np.arange(10) >= np.where((arm == "c") & (np.arange(30) % 5 == 0), 0, rng.integers(4, 11, 30))[:, None]
        scores = np.where(empty, -np.inf, -np.sort(-rng.random((30, 10)), axis=1)).astype(np.float32)
        found[arm] = Candidates(np.where(empty, -1, docs), scores)
    return union(found)


@pytest.fixture(scope="module")
def grades(pool):
    return (np.random.default_rng(1).random(pool.docs.shape) < 0.2) * (pool.docs >= 0)


def by_hand(ranks, slots):
    """One query: arm after arm, its best that nobody took."""
    taken = []
    for arm, num in enumerate(slots):
        own = [place for place in np.argsort(ranks[:, arm]) if not np.isnan(ranks[place, arm]) and place not in taken]
        taken += own[:num]
    return taken


def test_arms_fill_their_places_with_what_is_not_taken(pool):
    for slots in ((3, 2, 4), (0, 5, 1), (9, 9, 9)):
        found = slot_order(pool.ranks, slots)
        assert found.shape == (30, sum(slots))
        for q in range(30):
            expected = by_hand(pool.ranks[q], slots)
            assert found[q].tolist() == expected + [-1] * (sum(slots) - len(expected))


def test_the_best_allocation_is_the_best_of_all(pool, grades):
    positives = grades.sum(axis=1) + 1
    for num in (1, 4, 7):
        recall = {}
        for slots in product(range(num + 1), repeat=3):
            if sum(slots) == num:
                hits = [grades[q, by_hand(pool.ranks[q], slots)].sum() for q in range(30)]
                recall[slots] = np.mean(hits / positives)
        slots, value = best_slots(pool.ranks, grades > 0, np.maximum(positives, 1), num)
        assert value == pytest.approx(max(recall.values()))
        assert recall[slots] == pytest.approx(value)


def test_too_many_allocations_are_given_in_portions(pool, grades, monkeypatch):
    monkeypatch.setattr(allocations, "MOST", 10)
    slots, value = best_slots(pool.ranks, grades > 0, np.maximum(grades.sum(axis=1), 1), 7)
    assert sum(slots) == 7
    assert {n % 2 for n in slots} == {0, 1}  # portions of two, and one that is left
    found = slot_order(pool.ranks, slots)
    hits = [grades[q, found[q][found[q] >= 0]].sum() for q in range(30)]
    assert value == pytest.approx(np.mean(hits / np.maximum(grades.sum(axis=1), 1)))


def test_outcomes_are_those_of_the_arms_drawn_so_deep(pool, grades):
    """Every decision of the table, against the union of cut lists in the fused order."""
    order = ConvexFusion({"a": 0.5, "b": 0.3, "c": 0.2})
    table = Table.of({"a": (0, 3, 10), "b": (0, 2), "c": (0, 10)}, (1, 4, 30), candidate_cost=1.0)
    positives = grades.sum(axis=1) + 1
    found = outcomes(table, pool, order, grades > 0, np.maximum(positives, 1))
    assert found.shape == (30, len(table))
    for n, (depths, cut) in enumerate(zip(table.depths, table.cuts, strict=True)):
        drawn = {}
        for arm, name in enumerate(ARMS):
            ranks = np.where(pool.ranks[:, :, arm] < depths[arm], pool.ranks[:, :, arm], np.nan)
            lists = [np.flatnonzero(~np.isnan(row)) for row in ranks]
            scores = [pool.scores[q, own, arm] for q, own in enumerate(lists)]
            drawn[name] = Candidates.from_lists([pool.docs[q, own] for q, own in enumerate(lists)], scores, 10)
        ordered = order.rank((), union(drawn)).first(cut)
        told = pool._replace(ranks=grades[:, :, None], scores=grades[:, :, None])
        hits = np.nansum(take(told, ordered).scores, axis=(1, 2))
        np.testing.assert_allclose(found[:, n], hits / positives, rtol=1e-6)
