"""What is lost with arms off: hulls, mixtures and prices against all choices."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.policies.arm_choices import Costs, ListedArms, feasible_arms
from ltrr.simulation.arms import Choices, mixed, recall_of_choices, static_hull, taken
from ltrr.simulation.truth import recall_by_cut
from tests.simulation.worlds import DEPTHS, ORDER, random_pools

COSTS = np.array([1.0, 1.0, 2.0, 3.0])


def test_recall_of_a_choice_is_that_of_its_arms() -> None:
    pools = random_pools()
    choices = feasible_arms(DEPTHS, [], Costs({}), 5)
    assert isinstance(choices, ListedArms)
    found = recall_of_choices(choices.table, pools, ORDER, [2, 5])
    whole, alone = recall_by_cut(pools.fused(ORDER), 5), recall_by_cut(pools.without(["b"]).fused(ORDER), 5)
    (only,) = np.flatnonzero((choices.table.depths == [8, 0]).all(axis=1))  # `a` alone
    for cut in (2, 5):
        np.testing.assert_allclose(found[cut][:, -1], whole["convex"][:, cut - 1])
        np.testing.assert_allclose(found[cut][:, only], alone["convex"][:, cut - 1])


def test_no_mixture_beats_the_hull() -> None:
    rng = np.random.default_rng(0)
    costs = np.sort(rng.integers(1, 8, 20)).astype(float)
    recall = rng.random((50, 20))
    means = recall.mean(axis=0)
    hull = static_hull(costs, means)
    for a in range(20):
        for b in range(20):
            for share in (0.0, 0.3, 1.0):
                cost = share * costs[a] + (1 - share) * costs[b]
                if cost >= costs[hull[0]]:
                    reached = mixed(costs, recall, hull, cost).mean()
                    assert reached >= share * means[a] + (1 - share) * means[b] - 1e-9


def test_the_best_values_are_bought_first() -> None:
    rng = np.random.default_rng(1)
    recall = np.sort(rng.random((200, 4)), axis=1)
    choices = Choices(COSTS, recall, recall)
    chosen = choices.at_cost(recall, recall, 2.0)
    assert COSTS[chosen].mean() <= 2.0
    assert taken(recall, chosen).mean() > mixed(COSTS, recall, choices.hull, 2.0).mean()
    spared = choices.within_loss(recall, recall, 0.05)
    assert recall[:, -1].mean() - taken(recall, spared).mean() <= 0.05
    assert COSTS[spared].mean() < choices.static_within_loss(0.05) < 3.0
    curves = choices.frontiers([recall])
    assert curves["policy"][0].tolist() == pytest.approx([3.0, recall[:, -1].mean()])
    assert curves["static"][-1].tolist() == pytest.approx([3.0, recall[:, -1].mean()])
