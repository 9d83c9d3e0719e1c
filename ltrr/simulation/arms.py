"""What is lost with arms off, or drawn less deep: learned choices beside static ones, mixtures of two, and hindsight.

Knows a table of choices, its recall for judged queries and predicted values; does not know what predicts them.
Legend: Q queries, N choices of arms, the cheapest first and all arms last; S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ltrr.policies.price import best, price_for
from ltrr.policies.table import Table
from ltrr.protocols import Ranker
from ltrr.simulation.allocations import outcomes
from ltrr.simulation.pools import JudgedPools

PRICES = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 80)])


class Choices(NamedTuple):
    """Costs of choices and, for one number of ranked candidates, their recall on dev and on test queries."""

    costs: np.ndarray  # (N,) ascending
    dev: np.ndarray  # (Q, N)
    test: np.ndarray  # (Q, N)

    @property
    def hull(self) -> list[int]:
        """The choices that no mixture of others beats on dev."""
        return static_hull(self.costs, self.dev.mean(axis=0))

    def at_cost(self, dev: np.ndarray, test: np.ndarray, cost: float) -> np.ndarray:
        """(Q,) choices for test queries at the price at which those for dev cost so much; values (Q, N) of each."""
        return best(test, self.costs, price_for(dev, self.costs, cost))

    def within_loss(self, dev: np.ndarray, test: np.ndarray, loss: float) -> np.ndarray:
        """(Q,) choices for test queries at the highest price at which those for dev lose no more recall than `loss`."""
        enough = self.dev[:, -1].mean() - loss
        good = [p for p in PRICES if taken(self.dev, best(dev, self.costs, p)).mean() >= enough]
        return best(test, self.costs, max(good, default=0.0))

    def static_within_loss(self, loss: float) -> float:
        """The least cost of static choices, or of two mixed, that lose no more recall than `loss` on dev."""
        enough, most = self.dev[:, -1].mean() - loss, self.costs[-1]
        tried = np.linspace(self.costs[self.hull[0]], most, 400)
        good = [cost for cost in tried if mixed(self.costs, self.dev, self.hull, cost).mean() >= enough]
        return float(min(good, default=most))

    def frontiers(self, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Curves (P, 2) of mean cost and recall: learned choices at other prices, and static ones mixed.

        values: (Q, N) of test queries, one a seed.
        """
        chosen = [[best(each, self.costs, price) for price in PRICES] for each in values]
        policy = [[(self.costs[c].mean(), taken(self.test, c).mean()) for c in seed] for seed in chosen]
        costs, hull = np.linspace(self.costs[self.hull[0]], self.costs[-1], 100), self.hull
        static = [(cost, mixed(self.costs, self.test, hull, cost).mean()) for cost in costs]
        return {"policy": np.mean(policy, axis=0), "static": np.array(static)}


def recall_of_choices(table: Table, pools: JudgedPools, order: Ranker, cuts: Sequence[int]) -> dict[int, np.ndarray]:
    """Ranked candidates -> (Q, N) recall of each choice of arms in a table, of whose cuts none is looked at."""
    decisions = Table(
        np.repeat(table.depths, len(cuts), axis=0),
        np.tile(np.array(cuts, np.int32), len(table)),
        np.repeat(table.costs, len(cuts)),
    )
    recall = outcomes(decisions, pools.pool, order, pools.gains, pools.positives)
    return {cut: recall[:, i :: len(cuts)] for i, cut in enumerate(cuts)}


def taken(recall: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(Q,) recall (Q, N) of the chosen (Q,)."""
    return np.take_along_axis(recall, chosen[:, None], 1)[:, 0]


def static_hull(costs: np.ndarray, recall: np.ndarray) -> list[int]:
    """Choices that no mixture of others beats, by (N,) costs ascending and (N,) mean recall."""
    hull: list[int] = []
    for n in range(len(costs)):
        if hull and recall[n] <= recall[hull[-1]]:
            continue
        if hull and costs[n] == costs[hull[-1]]:
            hull.pop()
        while len(hull) > 1 and _slope(costs, recall, hull[-2], n) >= _slope(costs, recall, hull[-2], hull[-1]):
            hull.pop()
        hull.append(n)
    return hull


def _slope(costs: np.ndarray, recall: np.ndarray, a: int, b: int) -> float:
    return (recall[b] - recall[a]) / (costs[b] - costs[a])


def mixed(costs: np.ndarray, recall: np.ndarray, hull: Sequence[int], cost: float) -> np.ndarray:
    """(Q,) recall where a share of queries has one choice of the hull and the rest the next, at that mean cost."""
    upper = next((i for i, n in enumerate(hull) if costs[n] >= cost), len(hull) - 1)
    a, b = hull[max(upper - 1, 0)], hull[upper]
    share = 1.0 if a == b else float(np.clip((cost - costs[a]) / (costs[b] - costs[a]), 0, 1))
    return (1 - share) * recall[:, a] + share * recall[:, b]
