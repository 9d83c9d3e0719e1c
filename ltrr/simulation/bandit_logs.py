"""Simulates logs of a policy in worlds where the value of another policy, the target, is known.

Knows probabilities and rewards; does not know estimators, queries or arms. Actions have no meaning here.
Legend: R rounds, N actions, D features, P parts of an action, L levels of all parts together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, softmax

OVERLAPS = {"high": 0.5, "middle": 0.0, "low": -0.4}  # how much of the target's preferences the logger shares
_TRUTH = 200_000  # contexts over which the target's value is averaged
_ACTIONS, _FEATURES, _PARTS, _LEVELS = 10, 5, 3, 4


class BanditLog(NamedTuple):
    """R simulated rounds; fields are named as in `ltrr.evaluation.estimate.Logged`."""

    reward: np.ndarray  # (R,) 0 or 1
    propensity: np.ndarray  # (R,) of the logged action
    target: np.ndarray  # (R, N) probabilities under the target
    action: np.ndarray  # (R,)
    logger: np.ndarray  # (R, N) probabilities under the logger
    parts: np.ndarray | None = None  # (N, P) level of each part of each action
    marginals: np.ndarray | None = None  # (R, P) of the logged action's parts under the logger
    target_marginals: np.ndarray | None = None  # (R, P) of the same parts under the target


class World(NamedTuple):
    """A log, its contexts, and the target's true mean reward."""

    log: BanditLog
    contexts: np.ndarray  # (R, D)
    truth: float


def contextual(overlap: str, size: int, seed: int) -> World:
    """Simulates `size` rounds of single actions.

    overlap: one of OVERLAPS, or "deterministic" for a logger that always takes its best action.
    """
    rng = np.random.default_rng([seed, size, len(overlap)])
    taste = rng.normal(size=(_FEATURES, _ACTIONS))
    guess = taste + rng.normal(size=taste.shape)  # what the target believes
    other = rng.normal(size=taste.shape)  # what the logger believes beside
    contexts = rng.normal(size=(size + _TRUTH, _FEATURES))
    wish = contexts[:size] @ (OVERLAPS.get(overlap, 0.5) * guess + other / 2)  # (R, N)
    logger = 0.9 * softmax(wish, axis=1) + 0.1 / _ACTIONS
    if overlap == "deterministic":
        logger = np.eye(_ACTIONS)[wish.argmax(axis=1)]
    log, truth = _draw(rng, logger, softmax(contexts @ guess, axis=1), expit(contexts @ taste / 2 - 1.0))
    return World(log, contexts[:size], truth)


def slates(size: int, seed: int) -> World:
    """Simulates `size` rounds of actions of three parts, whose rewards add up; a budget couples the logger's parts."""
    rng = np.random.default_rng([seed, size])
    parts = np.stack(np.meshgrid(*[np.arange(_LEVELS)] * _PARTS, indexing="ij"), axis=-1).reshape(-1, _PARTS)  # (N, P)
    levels = np.concatenate([np.eye(_LEVELS)[part] for part in parts.T], axis=1)  # (N, L)
    taste = rng.normal(size=(_FEATURES, levels.shape[1]))
    contexts = rng.normal(size=(size + _TRUTH // 10, _FEATURES))
    rates = (expit(contexts @ taste + rng.uniform(size=levels.shape[1])) @ levels.T) / _PARTS
    over = np.abs(parts.sum(axis=1) - parts.sum(axis=1).mean())
    logger = np.tile(0.9 * softmax(-2 * over) + 0.1 / len(parts), (size, 1))
    log, truth = _draw(rng, logger, softmax(contexts @ taste @ levels.T / 2, axis=1), rates)
    taken = levels[log.action].reshape(size, _PARTS, _LEVELS)
    by_logger, by_target = (((p @ levels).reshape(taken.shape) * taken).sum(axis=2) for p in (logger, log.target))
    log = log._replace(parts=parts, marginals=by_logger, target_marginals=by_target)
    return World(log, contexts[:size], truth)


def _draw(
    rng: np.random.Generator, logger: np.ndarray, target: np.ndarray, rates: np.ndarray
) -> tuple[BanditLog, float]:
    """Draws an action and a reward for each row of `logger`; the target's value is averaged over the rows beyond."""
    num, each = len(logger), np.arange(len(logger))
    ladder = np.cumsum(logger, axis=1)
    action = (rng.random(num)[:, None] * ladder[:, -1:] >= ladder).sum(axis=1)
    reward = (rng.random(num) < rates[each, action]).astype(float)
    truth = float((target[num:] * rates[num:]).sum(axis=1).mean())
    return BanditLog(reward, logger[each, action], target[:num], action, logger), truth
