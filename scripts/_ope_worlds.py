"""Worlds in which the value of a policy is known, for scripts/ope.py --simulate."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, softmax

from ltrr.evaluation import estimate as ope

_TRUTH = 200_000  # contexts over which a simulated policy's true value is taken
OVERLAPS = {"high": 0.5, "middle": 0.0, "low": -0.4}  # how much of the target's preferences the logger has
_ACTIONS, _FEATURES, _PARTS, _LEVELS = 10, 5, 3, 4


def contextual(overlap: str, size: int, seed: int) -> tuple[ope.Logged, np.ndarray, float]:
    """A log of Bernoulli rewards, its contexts, and the target's true value. "deterministic" is a greedy logger."""
    rng = np.random.default_rng([seed, size, len(overlap)])
    taste = rng.normal(size=(_FEATURES, _ACTIONS))
    guess = taste + rng.normal(size=taste.shape)  # what the target believes
    other = rng.normal(size=taste.shape)  # what the logger believes beside
    contexts = rng.normal(size=(size + _TRUTH, _FEATURES))
    wish = contexts[:size] @ (OVERLAPS.get(overlap, 0.5) * guess + other / 2)
    logger = 0.9 * softmax(wish, axis=1) + 0.1 / _ACTIONS
    if overlap == "deterministic":
        logger = np.eye(_ACTIONS)[wish.argmax(axis=1)]
    log, truth = drawn(rng, logger, softmax(contexts @ guess, axis=1), expit(contexts @ taste / 2 - 1.0))
    return log, contexts[:size], truth


def slates(size: int, seed: int) -> tuple[ope.Logged, np.ndarray, float]:
    """A log of decisions with three parts whose rewards add up; a budget couples the parts in the logger."""
    rng = np.random.default_rng([seed, size])
    parts = np.stack(np.meshgrid(*[np.arange(_LEVELS)] * _PARTS, indexing="ij"), axis=-1).reshape(-1, _PARTS)
    levels = np.concatenate([np.eye(_LEVELS)[part] for part in parts.T], axis=1)  # (N, P · levels)
    taste = rng.normal(size=(_FEATURES, levels.shape[1]))
    contexts = rng.normal(size=(size + _TRUTH // 10, _FEATURES))
    rates = (expit(contexts @ taste + rng.uniform(size=levels.shape[1])) @ levels.T) / _PARTS
    over = np.abs(parts.sum(axis=1) - parts.sum(axis=1).mean())
    logger = np.tile(0.9 * softmax(-2 * over) + 0.1 / len(parts), (size, 1))
    log, truth = drawn(rng, logger, softmax(contexts @ taste @ levels.T / 2, axis=1), rates)
    taken = levels[log.action].reshape(size, _PARTS, _LEVELS)
    by_logger, by_target = (((p @ levels).reshape(taken.shape) * taken).sum(axis=2) for p in (logger, log.target))
    return log._replace(parts=parts, marginals=by_logger, target_marginals=by_target), contexts[:size], truth


def drawn(rng: Any, logger: np.ndarray, target: np.ndarray, rates: np.ndarray) -> tuple[ope.Logged, float]:
    """One draw and one reward for each row of `logger`; the rows beyond say what the target is truly worth."""
    num, each = len(logger), np.arange(len(logger))
    ladder = np.cumsum(logger, axis=1)
    action = (rng.random(num)[:, None] * ladder[:, -1:] >= ladder).sum(axis=1)
    reward = (rng.random(num) < rates[each, action]).astype(float)
    truth = float((target[num:] * rates[num:]).sum(axis=1).mean())
    return ope.Logged(reward, logger[each, action], target[:num], action, logger=logger), truth


def shuffled(logged: ope.Logged, rng: np.random.Generator) -> ope.Logged:
    """The null: rewards dealt anew among the rounds that ran as drawn, so that no target gains over the logger.

    Rewards and not contexts: with contexts shuffled a target keeps what it gains by actions that are good everywhere.
    """
    ran = logged.executed if logged.executed is not None else np.ones(len(logged.reward), bool)
    keep, reward = np.flatnonzero(ran), logged.reward.copy()
    reward[keep] = reward[rng.permutation(keep)]
    return logged._replace(reward=reward)
