"""Means with 95 % intervals: over queries and seeds together, or over seeds alone; does not know what is measured.

Legend: S seeds, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of_draws(cls, mean: float, draws: np.ndarray) -> Self:
        """The percentile interval of bootstrap draws."""
        low, high = np.quantile(draws, [0.025, 0.975])
        return cls(mean, float(low), float(high))

    def shown(self, digits: int = 3) -> str:
        """For tables: the mean with four digits, its ends with `digits`."""
        return f"{self.mean:.4f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def over_queries_and_seeds(values: np.ndarray, counted: np.ndarray | None = None, num_draws: int = 1_000) -> Interval:
    """Bootstrap interval that draws queries and seeds, both with replacement.

    values: (S, Q). counted: (S, Q) bool, the values in the mean; None = all.
    """
    rng, (num_seeds, num_queries) = np.random.default_rng(0), values.shape
    weights = np.ones(values.shape) if counted is None else counted.astype(float)
    draws = []
    for _ in range(num_draws):
        drawn = np.ix_(rng.integers(num_seeds, size=num_seeds), rng.integers(num_queries, size=num_queries))
        draws.append((values[drawn] * weights[drawn]).sum() / max(weights[drawn].sum(), 1e-9))
    return Interval.of_draws(float((values * weights).sum() / weights.sum()), np.array(draws))


def over_seeds(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of (S,) values, at least 2."""
    if len(values) < 2:
        raise ValueError(f"seeds: {len(values)}; an interval needs at least 2")
    mean, half = float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)
