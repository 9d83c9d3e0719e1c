"""Rules that cut the fused order without learning from clicks: what every learning policy has to beat.

Knows fused scores; does not know arms, customers or evidence. Each rule is one number a budget, its price, which is set
on queries without looking at judgements; the calibration's four numbers are fitted on judged queries.
Legend: Q queries, M candidates that are looked at, in fused order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from ltrr.policies.calibration import UNFITTED, fit, log_odds
from ltrr.policies.worth import ReservedPlace, WorthPolicy, fused_scores, range_scaled
from ltrr.types import Pool, Query, Worth


class SameCut(WorthPolicy):
    """The same number of candidates for every query."""

    name = "same cut"

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """1 / rank, so that a price is a rank."""
        scores, real = fused_scores(pool, self._num)
        return Worth(np.where(real, 1 / np.arange(1, scores.shape[1] + 1), -np.inf))


class Threshold(WorthPolicy):
    """Candidates whose fused score is at least the price."""

    name = "threshold"

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """exp(score): prices are above 0, scores need not be."""
        scores, real = fused_scores(pool, self._num)
        return Worth(np.where(real, np.exp(np.clip(scores, -500, 500)), -np.inf))


class RangeScaled(WorthPolicy):
    """Candidates whose score, scaled to the range of the query's own scores, is at least the price."""

    name = "range-scaled threshold"

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """0 for the last candidate that is looked at, 1 for the first."""
        scores, real = fused_scores(pool, self._num)
        return Worth(np.where(real, range_scaled(scores, real), -np.inf))


class SoftmaxMass(WorthPolicy):
    """The fewest candidates that have a share of the softmax of the query's scores.

    Args:
        temperature: of the softmax over scores that are scaled to the query's own range; above 0.
    """

    name = "softmax mass"

    def __init__(
        self, arms: Sequence[str], depths: Mapping[str, int], *, budget: float, temperature: float = 0.1, num: int = 100
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"policy.temperature: {temperature} is not above 0")
        super().__init__(arms, depths, budget=budget, num=num)
        self._temperature = temperature

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """The share that this candidate and all below it have."""
        scores, real = fused_scores(pool, self._num)
        mass = np.where(real, np.exp((range_scaled(scores, real) - 1) / self._temperature), 0.0)
        below = np.cumsum(mass[:, ::-1], axis=1)[:, ::-1]
        return Worth(np.where(real, below / np.maximum(below[:, :1], 1e-300), -np.inf))


class LargestGap(WorthPolicy):
    """Candidates above the largest gap between neighbouring scores ("adaptive k"), and as many below as the budget has.

    Args:
        within: the gap is one of the first so many.
    """

    name = "largest gap"

    def __init__(
        self, arms: Sequence[str], depths: Mapping[str, int], *, budget: float, within: int = 30, num: int = 100
    ) -> None:
        if within < 1:
            raise ValueError(f"policy.within: {within} is below 1")
        super().__init__(arms, depths, budget=budget, num=num)
        self._within = within

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """exp of the places up to the gap, so that a price moves all cuts alike; wider gaps move first."""
        scores, real = fused_scores(pool, self._num)
        fall = np.where(real[:, 1:], scores[:, :-1] - scores[:, 1:], 0.0)[:, : self._within]
        if not fall.shape[1]:
            return Worth(np.where(real, 1.0, -np.inf))
        width = fall.max(axis=1) / np.maximum(fall.sum(axis=1), 1e-12)
        places = fall.argmax(axis=1)[:, None] + width[:, None] - np.arange(scores.shape[1])
        return Worth(np.where(real, np.exp(places), -np.inf))


class Calibrated(WorthPolicy):
    """Candidates that add enough to the recall that is expected, by a calibration of the fused score.

    Args:
        calibration: 4 weights (`ltrr.policies.calibration`); null = fitted on judged queries.
    """

    name = "calibration"

    def __init__(
        self,
        arms: Sequence[str],
        depths: Mapping[str, int],
        *,
        budget: float,
        calibration: Sequence[float] | None = None,
        num: int = 100,
        explore: ReservedPlace | None = None,
        seed: int | None = None,
    ) -> None:
        if calibration is not None and len(calibration) != len(UNFITTED):
            raise ValueError(f"policy.calibration: {len(calibration)} numbers, not {len(UNFITTED)}")
        super().__init__(arms, depths, budget=budget, num=num, explore=explore, seed=seed)
        self._calibration = UNFITTED if calibration is None else tuple(calibration)

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """What candidates add to expected recall, in order of P(relevant)."""
        odds, real = self.prior(pool)
        return by_value(np.where(real, expit(odds), -np.inf))

    def prior(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """(Q, M) log odds of being relevant, and (Q, M) bool: which candidates are none."""
        scores, real = fused_scores(pool, self._num)
        return log_odds(scores, self._calibration), real

    def calibrate(self, pool: Pool, gains: np.ndarray) -> dict[str, Any]:
        """Constructor arguments from judged queries: a pool in fused order, and gains (Q, K) in [0, 1]."""
        scores, real = fused_scores(pool, self._num)
        return {"calibration": fit(scores, real, gains[:, : self._num])}


def by_value(values: np.ndarray) -> Worth:
    """Candidates in order of the values (Q, M) that they are expected to bring, -inf on pads.

    A candidate adds to recall what it brings, as a part of all that is expected: v / (1 + all others' v).
    """
    order = np.argsort(-values, axis=1, kind="stable")
    values = np.take_along_axis(values, order, 1)
    real = np.where(values > -np.inf, values, 0.0)
    total = real.sum(axis=1, keepdims=True)
    return Worth(np.where(values > -np.inf, real / (1 + total - real), -np.inf), order, values)
