"""Prices of candidates and arms: what a unit of cost must bring, so that mean cost meets a budget.

Knows costs and values; does not know queries, features or learners. Legend: Q queries, N decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

_STEP = 0.01  # of a price that starts at 0
_SETTLED = 1_000  # queries after which a price that was logged counts as found
_TINY = 1e-12


class Price:
    """λ, what a unit of cost must bring, found by dual ascent so that the mean cost comes to a budget.

    Args:
        budget: mean cost a query.
        start: λ at the beginning, ≥ 0.
        step: how far λ moves for a cost that is one budget too high; it falls with the square root of time. None = as
            far as it is at the start.
        name: in logs; prices of other budgets, costs or queries have other ones.
    """

    def __init__(self, budget: float, *, start: float = 0.0, step: float | None = None, name: str = "price") -> None:
        self.value, self.name, self.follows = start, name, False
        self._budget, self._step, self._seen = budget, step or start or _STEP, 0

    def follow(self, logged: Mapping[str, float]) -> None:
        """From now on λ follows what is spent, from where it was when it was last logged."""
        self.follows = True
        if self.name in logged:
            self.value, self._seen = logged[self.name], _SETTLED

    def spend(self, costs: np.ndarray) -> None:
        """Moves λ after some queries' costs (Q,), if it follows them."""
        if self.follows:
            self.update(costs)

    def update(self, costs: np.ndarray) -> None:
        """Moves λ."""
        self._seen += len(costs)
        over = float(np.sum(costs / self._budget - 1.0))
        self.value = max(0.0, self.value + self._step * over / self._seen**0.5)


def best(values: np.ndarray, costs: np.ndarray, price: float) -> np.ndarray:
    """(Q,) places of the largest value − λ·cost, the cheapest of equals; values (Q, N), costs (N,) ascending."""
    return np.argmax(values - price * costs, axis=1)


def price_for(values: np.ndarray, costs: np.ndarray, budget: float, name: str = "policy.budget") -> float:
    """The least λ at which the best decisions cost at most `budget` in the mean, from (Q, N) values of logged queries.

    0 where even free choice costs less. Errors: ValueError with the budget's name where the cheapest ones cost more.
    """
    return least_price(lambda price: float(costs[best(values, costs, price)].mean()), costs.min(), budget, name)


def least_price(
    mean_cost: Callable[[float], float], cheapest: float, budget: float, name: str, steps: int = 50
) -> float:
    """The same for any way to decide: λ -> mean cost, which falls to the cheapest decision's."""
    if cheapest > budget:
        raise ValueError(f"{name}: {budget:g} is below the cheapest decision's cost, {cheapest:g}")
    if mean_cost(0.0) <= budget:
        return 0.0
    high = 1.0
    while mean_cost(high) > budget:
        high *= 2
    while mean_cost(high / 2) <= budget and high > _TINY:
        high /= 2
    low = high / 2
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(middle) > budget else (low, middle)
    return high
