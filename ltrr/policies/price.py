"""Prices of candidates and arms: the value λ that a unit of cost must bring, so that mean cost meets a budget.

Knows costs and values; does not know queries, features or learners. Legend: Q queries, N decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

_STEP = 0.01  # step of a price that starts at 0
_SETTLED = 1_000  # queries that a logged price counts as, so that it moves slowly
_TINY = 1e-12


class Price:
    """A price λ, moved by dual ascent so that the mean cost meets a budget.

    Args:
        budget: mean cost per query.
        start: initial λ, ≥ 0.
        step: change of λ for a cost that is one budget too high; divided by the square root of the number of queries.
            None = equal to `start`, or 0.01 if that is 0.
        name: key of the price in logs; prices of other budgets, costs or queries need other names.
    """

    def __init__(self, budget: float, *, start: float = 0.0, step: float | None = None, name: str = "price") -> None:
        self.value, self.name, self.follows = start, name, False
        self._budget, self._step, self._seen = budget, step or start or _STEP, 0

    def follow(self, logged: Mapping[str, float]) -> None:
        """Makes λ follow spending from now on, starting at its last logged value."""
        self.follows = True
        if self.name in logged:
            self.value, self._seen = logged[self.name], _SETTLED

    def spend(self, costs: np.ndarray) -> None:
        """Moves λ by the costs (Q,) of some queries, if it follows spending."""
        if self.follows:
            self.update(costs)

    def update(self, costs: np.ndarray) -> None:
        """Moves λ by the costs (Q,) of some queries."""
        self._seen += len(costs)
        over = float(np.sum(costs / self._budget - 1.0))
        self.value = max(0.0, self.value + self._step * over / self._seen**0.5)


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
