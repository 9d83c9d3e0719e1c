"""Explorers: from the estimated values of decisions to the probabilities with which they are drawn.

Knows values and deviations; knows nothing about decisions, queries or learners. `Softmax`, `SquareCB`, `EpsilonGreedy`
and `UCB` compute exact probabilities; `Thompson` estimates them by Monte-Carlo (`exact` is False).
Legend: Q queries, N decisions, S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


class Explorer(ABC):
    """Computes probabilities of decisions from their values."""

    exact: ClassVar[bool] = True  # whether probabilities are computed, not estimated
    unsure: ClassVar[bool] = False  # whether it needs deviations

    @property
    def random_share(self) -> float | None:
        """Share of queries that draw uniformly where all others take the best; None for other ways to explore."""
        return None

    @abstractmethod
    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        """Probabilities (Q, N), rows sum to 1, from values (Q, N), higher is better, and their deviations (Q, N)."""


@dataclass(frozen=True)
class Softmax(Explorer):
    """P ∝ exp(value / temperature), mixed with a uniform floor (Boltzmann exploration)."""

    temperature: float = 0.02
    floor: float = 0.05  # share of queries that draw uniformly, 0 to 1

    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        weights = values - values.max(axis=1, keepdims=True)
        weights /= self.temperature  # in place: a batch of 3,000 decisions takes megabytes
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=1, keepdims=True)
        return _floored(weights, self.floor)


@dataclass(frozen=True)
class SquareCB(Explorer):
    """Inverse-gap weighting: P = 1 / (N + γ · gap to the best); the best gets the rest (Foster & Rakhlin 2020)."""

    gamma: float = 1000.0
    floor: float = 0.0

    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        best = values.argmax(axis=1)
        out = 1.0 / (values.shape[1] + self.gamma * (values.max(axis=1, keepdims=True) - values))
        each = np.arange(len(values))
        out[each, best] = 0.0
        out[each, best] = 1.0 - out.sum(axis=1)
        return _floored(out, self.floor)


@dataclass(frozen=True)
class EpsilonGreedy(Explorer):
    """The best decision, except for a share epsilon of queries that draw uniformly; 0 = greedy."""

    epsilon: float = 0.1

    @property
    def random_share(self) -> float:
        return self.epsilon

    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        return _floored(_greedy(values), self.epsilon)


@dataclass(frozen=True)
class UCB(Explorer):
    """The decision with the largest value + width · deviation (Li et al. 2010), mixed with a uniform floor."""

    width: float = 1.0
    floor: float = 0.05
    unsure: ClassVar[bool] = True

    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        return _floored(_greedy(values + self.width * _needed(deviations)), self.floor)


@dataclass
class Thompson(Explorer):
    """Share of posterior draws in which each decision is best (Thompson 1933), by Monte-Carlo, with a uniform floor.

    Decisions are drawn independently although their values share parameters, so it explores more than exact sampling.
    """

    samples: int = 256
    floor: float = 0.05
    seed: int = 0
    exact: ClassVar[bool] = False
    unsure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        deviations = _needed(deviations)
        wins = np.zeros(values.shape)
        each = np.arange(len(values))
        for _ in range(self.samples):
            wins[each, (values + deviations * self._rng.standard_normal(values.shape)).argmax(axis=1)] += 1
        return _floored(wins / self.samples, self.floor)


def _greedy(values: np.ndarray) -> np.ndarray:
    out = np.zeros(values.shape)
    out[np.arange(len(values)), values.argmax(axis=1)] = 1.0
    return out


def _floored(probabilities: np.ndarray, share: float) -> np.ndarray:
    if not 0 <= share <= 1:
        raise ValueError(f"policy.explore: a share of {share} is not within 0 and 1")
    probabilities *= 1 - share  # in place: callers pass arrays of their own
    probabilities += share / probabilities.shape[1]
    return probabilities


def _needed(deviations: np.ndarray | None) -> np.ndarray:
    if deviations is None:
        raise ValueError("policy.explore: this explorer needs deviations, which this learner does not give")
    return deviations
