"""Calibrates fused scores: P(relevant) of a candidate from its score, its distance to the first and its rank.

Knows scores and gains; does not know queries, arms or policies. Four numbers, so a few dozen judged queries are enough.
Legend: Q queries, M candidates in fused order, N candidates of all queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit

UNFITTED = (0.0, 3.0, -0.7, -0.5)  # weights where nothing is known: odds fall with rank and distance to the first
COUPLING = 6.0  # the most that it is, either way
_RIDGE = 1e-3 * np.array([1.0, 1.0, 1.0, 0.0])  # of the weights, so that separable scores keep finite ones


def columns(scores: np.ndarray) -> np.ndarray:
    """(Q, M, 4) what the calibration reads, from fused scores (Q, M)."""
    rank = np.broadcast_to(np.log(np.arange(1, scores.shape[1] + 1)), scores.shape)
    return np.stack([scores, scores - scores[:, :1], rank, np.ones_like(scores)], axis=2)


def log_odds(scores: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """(Q, M) log odds of being relevant, from fused scores (Q, M) and 4 weights."""
    score, below_first, log_rank, one = weights
    rank = np.log(np.arange(1, scores.shape[1] + 1))
    return (score + below_first) * scores - below_first * scores[:, :1] + (log_rank * rank + one)


def fit(scores: np.ndarray, real: np.ndarray, gains: np.ndarray) -> list[float]:
    """The 4 weights with the highest likelihood (logistic regression).

    Args:
        scores: (Q, M) fused scores. real: (Q, M) bool, False on pads.
        gains: (Q, M) in [0, 1].

    Errors: ValueError where no candidate is relevant, or every one is.
    """
    x, y = columns(scores)[real], gains[real].astype(np.float64)  # (N, 4), (N,)
    mean = float(y.mean()) if len(y) else 0.0
    if not 0 < mean < 1:
        raise ValueError("calibration: needs candidates that are relevant and candidates that are not")
    scaled, centre, spread = _standard(x)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = scaled @ w
        value = np.mean(np.logaddexp(0, z) - y * z) + _RIDGE @ w**2 / 2
        return float(value), scaled.T @ (expit(z) - y) / len(y) + _RIDGE * w

    start = np.array([0.0, 0.0, 0.0, logit(mean)])
    return _unscaled(minimize(loss, start, jac=True, method="L-BFGS-B").x, centre, spread)


def fit_clicks(
    x: np.ndarray, offset: np.ndarray, clicks: np.ndarray, examined: np.ndarray, attraction: float, noise: float
) -> list[float]:
    """The 4 weights under which clicks on shown candidates are likeliest.

    P(click) = examined · (noise + (attraction − noise) · P(wanted)), P(wanted) = sigmoid(x · weights + offset).

    Args:
        x: (N, 4) `columns` of what was shown. offset: (N,) log odds that other evidence gave.
        clicks: (N,) bool. examined: (N,) probability that it was looked at.
    """
    scaled, centre, spread = _standard(x)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        p = expit(scaled @ w + offset)
        rate = np.clip(examined * (noise + (attraction - noise) * p), 1e-9, 1 - 1e-9)
        slope = examined * (attraction - noise) * p * (1 - p)
        value = -np.mean(np.where(clicks, np.log(rate), np.log1p(-rate)))
        gradient = -(np.where(clicks, slope / rate, -slope / (1 - rate)) @ scaled) / len(scaled)
        return float(value + _RIDGE @ w**2 / 2), gradient + _RIDGE * w

    start = np.append(np.zeros(3), -1.0)
    return _unscaled(minimize(loss, start, jac=True, method="L-BFGS-B").x, centre, spread)


def fit_coupling(odds: np.ndarray, real: np.ndarray, gains: np.ndarray) -> float:
    """What one more relevant candidate than expected adds to the log odds of each other candidate of the query.

    Far below 0 where a query wants one thing, above 0 where queries that want much are hard to tell from others. By
    pseudo-likelihood (Besag 1975): each candidate given all others.

    odds (Q, M) before anything was clicked; real (Q, M) bool; gains (Q, M) in [0, 1].
    """
    p = np.where(real, expit(odds), 0.0)
    surprise = np.where(real, gains - p, 0.0)
    others = (surprise.sum(axis=1, keepdims=True) - surprise)[real]
    offset, y = odds[real], gains[real].astype(np.float64)

    def loss(beta: float) -> float:
        z = offset + beta * others
        return float(np.mean(np.logaddexp(0, z) - y * z))

    found: Any = minimize_scalar(loss, bounds=(-COUPLING, COUPLING), method="bounded")
    return rounded([found.x])[0]


def _standard(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns (N, 4) of mean 0 and deviation 1 but for the last, which is constant; with their means and deviations."""
    centre, spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
    centre[3], spread[3] = 0.0, 1.0
    return (x - centre) / spread, centre, spread


def _unscaled(w: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> list[float]:
    """Weights of the columns as they were before `_standard`."""
    w = w / spread
    w[3] -= centre[:3] @ w[:3]
    return rounded(w)


def rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    """Five significant digits: what is fitted with other threads is the same, and so are keys of what depends on it."""
    return [float(f"{value:.5g}") for value in values]
