"""Fixed cuts, hindsight and what lies between; intervals over groups."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ltrr.evaluation.regret import (
    Chosen,
    at_mean,
    cost_saved,
    fixed,
    gap_closed,
    mean_of,
    oracle,
    query_groups,
)
from ltrr.simulation.truth import recall_of
from ltrr.types import Query


@pytest.fixture
def recall() -> np.ndarray:
    rng = np.random.default_rng(0)
    grades = rng.random((40, 6)) < np.array([0.5, 0.3, 0.2, 0.2, 0.1, 0.1])
    return recall_of(grades > 0, (grades > 0).sum(axis=1) + rng.integers(0, 2, 40))


def test_recall_counts_all_positives():
    found = recall_of(np.array([[0, 2, 0, 1], [0, 0, 0, 0]]) > 0, np.array([4, 0]))
    np.testing.assert_allclose(found, [[0, 0.25, 0.25, 0.5], [0, 0, 0, 0]])


def test_between_two_cuts_a_share_of_queries_has_one_more(recall):
    np.testing.assert_allclose(fixed(recall, 3.0), recall[:, 2])
    np.testing.assert_allclose(fixed(recall, 3.25), 0.75 * recall[:, 2] + 0.25 * recall[:, 3])
    np.testing.assert_allclose(fixed(recall, 99.0), recall[:, 5])


def test_hindsight_is_the_best_of_all_choices():
    rng = np.random.default_rng(1)
    small = recall_of(rng.random((4, 4)) < 0.4, np.full(4, 2))
    outcomes = [
        (np.mean(cuts), np.mean([small[q, c - 1] for q, c in enumerate(cuts)]))
        for cuts in product(range(1, 5), repeat=4)
    ]
    for mean in (1.0, 1.5, 2.0, 3.0, 4.0):
        reachable = max(value for cost, value in outcomes if cost <= mean)
        assert oracle(small, mean).mean() >= reachable - 1e-12
        assert oracle(small, mean).mean() <= oracle(small, 4.0).mean() + 1e-12
    assert oracle(small, 4.0).mean() == pytest.approx(small[:, -1].mean())
    assert oracle(small, 1.0).mean() == pytest.approx(small[:, 0].mean())


def chosen(recall, cuts):
    cuts = np.asarray(cuts).reshape(len(recall), -1)
    return Chosen(cuts.astype(float), np.take_along_axis(recall, cuts - 1, 1))


def test_a_fixed_cut_closes_nothing_and_hindsight_all(recall):
    groups = np.arange(40)
    same = gap_closed(recall, recall, [chosen(recall, np.full(40, 3))] * 2, groups)
    assert same == pytest.approx((0, 0, 0))
    needed = 1 + recall.argmax(axis=1)  # all that can be found, at the least cost
    whole = gap_closed(recall, recall, [chosen(recall, needed)], groups)
    assert whole.mean == pytest.approx(1.0)
    assert whole.low <= 1.0 <= whole.high + 1e-9


def test_base_and_hindsight_belong_to_the_draw(recall):
    """As far as the whole sample's, taken draw by draw from scratch; hard queries do not make the policy look good."""
    rng = np.random.default_rng(3)
    groups = rng.integers(12, size=40)
    seeds = [chosen(recall, rng.integers(1, 7, 40)) for _ in range(3)]
    found, draws = gap_closed(recall, recall, seeds, groups), []
    for _ in range(400):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in rng.integers(groups.max() + 1, size=12)])
        drawn = [seeds[i] for i in rng.integers(3, size=3)]
        means = [c.cuts[rows].mean() for c in drawn]
        same = [fixed(recall[rows], mean).mean() for mean in means]
        gained = [c.recall[rows].mean() - s for c, s in zip(drawn, same, strict=True)]
        possible = [oracle(recall[rows], mean).mean() - s for mean, s in zip(means, same, strict=True)]
        draws.append(sum(gained) / sum(possible))
    np.testing.assert_allclose(found[1:], np.quantile(draws, [0.025, 0.975]), atol=0.1 * (max(draws) - min(draws)))
    easy = np.arange(40) % 2 == 0  # queries that want one, queries that want six: all at the cut that they need
    wanted = np.where(easy[:, None], np.ones(6), np.arange(1, 7) / 6)
    whole = gap_closed(wanted, wanted, [chosen(wanted, np.where(easy, 1, 6))], np.arange(40))
    assert whole == pytest.approx((1, 1, 1))


def test_a_policy_is_compared_at_a_given_mean(recall):
    every = np.tile(np.arange(1, 7), (40, 1))
    between = at_mean(chosen(recall, every), 2.25)
    np.testing.assert_allclose(between.cuts, 2.25)
    np.testing.assert_allclose(between.recall[:, 0], fixed(recall, 2.25))
    np.testing.assert_allclose(at_mean(chosen(recall, every), 3.0).recall[:, 0], recall[:, 2])
    with pytest.raises(ValueError, match="only 1 to 6"):
        at_mean(chosen(recall, every), 7.0)


def test_what_is_saved_is_read_off_the_frontier(recall):
    groups = np.arange(40)
    every = np.tile(np.arange(1, 7), (40, 1))  # the frontier of fixed cuts saves nothing
    assert cost_saved(recall, [chosen(recall, every)], groups, 4).mean == pytest.approx(0.0, abs=1e-9)
    needed = np.minimum(1 + recall.argmax(axis=1)[:, None], every)
    found = cost_saved(recall, [chosen(recall, needed)], groups, 4)
    assert found.low <= found.mean <= found.high
    assert found.mean > 0.1
    assert cost_saved(recall, [chosen(recall, np.ones((40, 2), int))], groups, 4).mean == 0.0  # never gets there


def test_intervals_are_wider_where_queries_come_in_groups():
    values = np.repeat(np.random.default_rng(2).random(20), 10)[None]
    alone, grouped = mean_of(values, np.arange(200)), mean_of(values, np.repeat(np.arange(20), 10))
    assert alone.mean == grouped.mean == pytest.approx(values.mean())
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_queries_that_want_the_same_stay_together():
    queries = [
        Query(str(i), text) for i, text in enumerate(["star wars", "starwars film", "star wars 2", "alien", "x"])
    ]
    qrels = {"0": {"a": 1, "b": 1}, "1": {"a": 1, "b": 1, "z": 0}, "2": {"a": 1}, "3": {"a": 1, "c": 1}, "4": {"q": 1}}
    groups = query_groups(queries, qrels)
    assert groups[0] == groups[1] == groups[2]
    assert len({groups[0], groups[3], groups[4]}) == 3
