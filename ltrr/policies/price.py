"""Prices of candidates and arms: the value λ that a unit of cost must bring, so that mean cost meets a budget.

Knows costs and values; does not know queries, features or learners. Legend: Q queries, N decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

_STEP = 0.02  # of the logarithm of a price, for one query that costs one budget too much
_SLOWS = 2_000  # queries after which steps are a 1.4th of the first, then ever smaller
_LEAST = 1e-6  # λ that a price of 0 starts from when it has to rise
_TINY = 1e-12


class Price:
    """A price λ, moved by dual ascent so that the mean cost meets a budget.

    It moves by factors, because useful prices differ by powers of ten: a step that suits one costs recall at another.

    Args:
        budget: mean cost per query.
        start: initial λ, ≥ 0.
        step: change of log λ for a query that costs one budget too much; it falls with the square root of the queries.
        name: key of the price in logs; prices of other budgets, costs or queries need other names.
    """

    def __init__(self, budget: float, *, start: float = 0.0, step: float = _STEP, name: str = "price") -> None:
        self.value, self.name, self.follows = start, name, False
        self._budget, self._step, self._seen = budget, step, 0

    def follow(self, logged: Mapping[str, float]) -> None:
        """Makes λ follow spending from now on, starting at its last logged value."""
        self.follows = True
        self.value = logged.get(self.name, self.value)

    def spend(self, costs: np.ndarray) -> None:
        """Moves λ by the costs (Q,) of some queries, if it follows spending."""
        if self.follows:
            self.update(costs)

    def update(self, costs: np.ndarray) -> None:
        """Moves λ by the costs (Q,) of some queries."""
        over = float(np.sum(costs / self._budget - 1.0))
        self.value *= math.exp(min(self._step * over / math.sqrt(1 + self._seen / _SLOWS), 1.0))
        if over > 0:
            self.value = max(self.value, _LEAST)
        self._seen += len(costs)


def best(values: np.ndarray, costs: np.ndarray, price: float) -> np.ndarray:
    """Decisions (Q,) with the largest value − λ·cost, ties to the cheapest; values (Q, N), costs (N,) ascending."""
    return np.argmax(values - price * costs, axis=1)


def price_for(values: np.ndarray, costs: np.ndarray, budget: float, name: str = "policy.budget") -> float:
    """Lowest λ at which the best decisions cost at most `budget` on average; values (Q, N) of logged queries.

    0 if the best decisions at λ = 0 already do. Errors: ValueError with the budget's name if even the cheapest
    decisions cost more.
    """
    return least_price(lambda price: float(costs[best(values, costs, price)].mean()), costs.min(), budget, name)


def least_price(
    mean_cost: Callable[[float], float], cheapest: float, budget: float, name: str, steps: int = 50
) -> float:
    """Like `price_for`, for any policy: mean_cost maps λ to a mean cost that falls to `cheapest`."""
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
