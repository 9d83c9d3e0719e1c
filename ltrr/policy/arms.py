"""A policy that decides, before retrieval, which arms run.

Knows features, what each choice of arms is expected to lose, and what arms cost; knows nothing about what learns that.
Legend: Q queries, A arms, N = 2^A − 1 choices of arms, F features.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from ltrr.core import Decision, Feedback
from ltrr.policy.actions import Price, Table
from ltrr.policy.explore import Explorer


def choices(num_arms: int) -> np.ndarray:
    """(2^A − 1, A) bool, which arms run; the last is all of them."""
    numbers = np.arange(1, 2**num_arms)
    return (numbers[:, None] >> np.arange(num_arms)[None] & 1).astype(bool)


class Losses(Protocol):
    """What a learner believes before retrieval."""

    def values(self, features: np.ndarray) -> np.ndarray:
        """(Q, N) expected recall of each of `choices`, less that of all arms; features (Q, F)."""
        ...

    def deviations(self, features: np.ndarray) -> np.ndarray:
        """(Q, N) posterior deviations of `values`, for explorers that need them."""
        ...


class ArmPolicy:
    """Arms at their depths or off, all that they bring is let through.

    Args:
        arms: the arms' names, in the funnel's order, those that may be off; depths: arm -> candidates to draw.
        learner: of these arms, in this order.
        cut: candidates of the union that go on.
        costs: arm -> cost where it runs, 1 where it is not named.
        budget: mean cost of arms a query; price: λ at the start, what a unit of cost must bring in recall.
        explorer: of choices.
        id: of the learner's weights.
        shadow: share of queries for which all arms run, from which the learner can learn.
        seed: of draws; None = another each time.
    """

    def __init__(
        self,
        arms: Sequence[str],
        depths: Mapping[str, int],
        learner: Losses,
        *,
        cut: int,
        costs: Mapping[str, float],
        budget: float,
        price: float,
        explorer: Explorer,
        id: str = "",
        shadow: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self.id = f"arms {id[:12]}"
        self.table, self._place = arm_table(arms, depths, costs, cut)
        self._learner, self._explorer, self._shadow, self.adapts = learner, explorer, shadow, False
        self._price = Price(budget, start=price)
        self._rng, self._lock = np.random.default_rng(seed), threading.Lock()

    def decide(self, features: np.ndarray) -> Decision:
        """features (Q, F)."""
        with self._lock:
            drawn, decision = self.table.draw(self.probabilities(features, self._price.value), self._rng)
            if self.adapts:
                self._price.update(self.table.costs[drawn])
        return decision

    def probabilities(self, features: np.ndarray, price: float) -> np.ndarray:
        """(Q, N) of each decision of the table, at a price."""
        values, deviations = self._learner.values(features)[:, self._place], None
        if self._explorer.unsure:
            deviations = self._learner.deviations(features)[:, self._place]
        probabilities = (1 - self._shadow) * self._explorer.probabilities(values - price * self.table.costs, deviations)
        probabilities[:, -1] += self._shadow  # all arms
        return probabilities

    def update(self, feedback: Sequence[Feedback]) -> None:
        """Nothing here: whoever teaches the learner reads the events."""


def arm_table(
    arms: Sequence[str], depths: Mapping[str, int], costs: Mapping[str, float], cut: int = 1
) -> tuple[Table, np.ndarray]:
    """The decisions, the cheapest first and all arms last, and which of `choices` each is (N,). Candidates are free."""
    levels = {arm: [0, depth] if (depth := depths.get(arm, 0)) else [0] for arm in arms}
    each = {arm: 1.0 for arm in arms} | dict(costs)
    most = min([cut, *(max(own) for own in levels.values() if max(own))])  # one arm alone can fill it
    table = Table.of(levels, [most], arm_costs=each, candidate_cost=0.0)
    number = (table.depths > 0) @ (1 << np.arange(len(arms)))
    return replace(table, cuts=np.full(len(table), cut, np.int32)), number - 1
