"""How likely each decision is drawn, given what it is believed to be worth.

Knows values and deviations; knows nothing about decisions, queries or learners. `Softmax`, `SquareCB`, `EpsilonGreedy`
and `UCB` are exact; `Thompson` estimates its probabilities by Monte-Carlo, and says so (`exact`).
Legend: Q queries, N decisions, S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


class Explorer(ABC):
    """Probabilities of decisions."""

    exact: ClassVar[bool] = True  # whether they are computed, not estimated
    unsure: ClassVar[bool] = False  # whether it needs deviations

    @abstractmethod
    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        """(Q, N), rows sum to 1; values (Q, N), higher is better, deviations likewise."""


@dataclass(frozen=True)
class Softmax(Explorer):
    """P ∝ exp(value / temperature), mixed with a uniform floor (Boltzmann exploration)."""

    temperature: float = 0.02
    floor: float = 0.05  # of all queries, how many draw uniformly

    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        weights = values - values.max(axis=1, keepdims=True)
        weights /= self.temperature  # in place: 3,000 decisions of a batch are megabytes
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=1, keepdims=True)
        return _floored(weights, self.floor)


@dataclass(frozen=True)
class SquareCB(Explorer):
    """Inverse-gap weighting: P = 1 / (N + γ · gap to the best), the best has the rest (Foster & Rakhlin 2020)."""

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
    """The best, but for a share of queries that draw uniformly. 0 = greedy."""

    epsilon: float = 0.1

    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        return _floored(_greedy(values), self.epsilon)


@dataclass(frozen=True)
class UCB(Explorer):
    """The largest value + width · deviation (Li et al. 2010), but for a uniform floor."""

    width: float = 1.0
    floor: float = 0.05
    unsure: ClassVar[bool] = True

    def probabilities(self, values: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
        return _floored(_greedy(values + self.width * _needed(deviations)), self.floor)


@dataclass
class Thompson(Explorer):
    """How often each decision is best in draws from the posterior (Thompson 1933), by Monte-Carlo; a uniform floor.

    The draws of different decisions are independent, though their values share parameters: it explores more.
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
    probabilities *= 1 - share  # its own callers' arrays
    probabilities += share / probabilities.shape[1]
    return probabilities


def _needed(deviations: np.ndarray | None) -> np.ndarray:
    if deviations is None:
        raise ValueError("policy.explore: this explorer needs deviations, which this learner does not give")
    return deviations
