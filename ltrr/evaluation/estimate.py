"""Off-policy evaluation: what a target policy would have earned, from rounds that another policy, the logger, decided.

Knows rewards, probabilities and weights; knows nothing about queries, arms or where logs lie. An estimate is a mean of
terms m + f(w)·(r − q): reward r, weight w = target's probability / logger's, a model's q of the logged action and m of
the target. Rounds in which something else ran than was drawn are left out and counted. What the logger never did cannot
be known from its log: such an estimate has no interval and says why (`notes`).
Legend: R rounds, N actions (places in a table of decisions), P parts of an action (depth of each arm, the cut), D
features, L levels of all parts together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.linalg import pinv
from scipy.stats import t as student

from ltrr.learners.linear import BayesianHeads

NAMES = ("dm", "ips", "snips", "clipped-ips", "dr", "clipped-dr", "shrunk-dr", "pi", "snpi")
_MODELLED, _SLATES = {"dm", "dr", "clipped-dr", "shrunk-dr"}, {"pi", "snpi"}
_PROBABILITIES = {"propensity", "marginals", "target", "target_marginals", "logger"}
_SURE = 1 - 1e-9  # a propensity from which nothing else could have been drawn
_MISSING = 0.01  # share of the target's probability that may lie where the logger never goes
_EFFECTIVE = 30  # rounds below which a mean says little
_CHUNK = 2_000  # rounds whose (L, L) matrices are in memory at once


class Logged(NamedTuple):
    """R logged rounds and what the target would have done in them. Fields that are not needed are None."""

    reward: np.ndarray  # (R,)
    propensity: np.ndarray  # (R,) in (0, 1], of the logged action under the logger
    target: np.ndarray  # (R, N) the target's probabilities, or (R,) its probability of the logged action alone
    action: np.ndarray | None = None  # (R,) the logged action; needed with (R, N)
    logger: np.ndarray | None = None  # (R, N) the logger's probabilities, where they are known
    model: np.ndarray | None = None  # (R, N) predicted rewards, of a model that has not seen the round
    parts: np.ndarray | None = None  # (N, P) level of each part of each action
    marginals: np.ndarray | None = None  # (R, P) in (0, 1], of the logged action's parts under the logger
    target_marginals: np.ndarray | None = None  # (R, P) of the same parts under the target
    executed: np.ndarray | None = None  # (R,) bool, what was drawn is what ran; None = always
    groups: np.ndarray | None = None  # (R,) sessions whose rounds are not independent; None = all are


class Support(NamedTuple):
    """Whether the log can tell about the target."""

    missing: float  # of the target's probability, on what the logger never does; at least, where `logger` is None
    weight: float  # mean weight, which is 1 where the logger goes wherever the target does and propensities are right
    width: float  # to each side of it, its 99.9 % interval
    deterministic: bool  # the logger never had a choice, and the target differs from it
    notes: tuple[str, ...]  # why it cannot; empty = it can


class Estimate(NamedTuple):
    """A mean reward a round, or a difference of two.

    The 95 % interval is Student's t on the terms (on their sums by group), with as many degrees of freedom as there are
    effective rounds: in closed form it costs nothing beside the estimate, and it is wider where few weights decide. Not
    inside: the bias of clipping and shrinking, and what a direct method's model has wrong.
    """

    value: float
    error: float  # standard error
    low: float  # −inf where there is no support
    high: float
    effective: float  # rounds, (Σ w)² / Σ w² (Kish 1965)
    largest: float  # weight
    zero: float  # share of rounds with weight 0
    rounds: int
    left_out: int  # rounds in which something else ran than was drawn
    notes: tuple[str, ...]  # why it is not to be trusted; empty = nothing speaks against it


def available(logged: Logged) -> tuple[str, ...]:
    """Names of the estimators for which the log has all columns."""
    lacking = set() if logged.target.ndim == 2 and logged.model is not None else {*_MODELLED}
    whole = logged.parts is not None and logged.logger is not None and logged.target.ndim == 2
    if not whole and (logged.marginals is None or logged.target_marginals is None):
        lacking |= _SLATES
    return tuple(name for name in NAMES if name not in lacking)


def estimate(logged: Logged, name: str, *, limit: float | None = None, shrink: float | None = None) -> Estimate:
    """The target's value by one of NAMES.

    dm: direct method, the model alone. ips: inverse propensity scores (Horvitz & Thompson 1952). snips: divided by the
    mean weight (Swaminathan & Joachims 2015). dr: doubly robust (Dudík et al. 2011). clipped-…: weights at most
    `limit`. shrunk-dr: weights λw / (w² + λ), λ = `shrink` (optimistic shrinkage, Su et al. 2020). pi: pseudo-inverse
    for slates (Swaminathan et al. 2017), whose reward is a sum over parts; exact for any logger from `parts` and
    `logger`, from `marginals` only where the logger draws its parts independently. snpi: by the mean weight, likewise.

    Args:
        limit: largest weight; None = √R (Ionides 2008), so that clipping's bias falls as logs grow.
        shrink: λ, from 0 (dm) to ∞ (dr); None = R, which halves a weight of √R.

    Errors: ValueError naming the field that is wrong, or missing for this estimator.
    """
    log, left_out = _checked(logged, name)
    return _estimate(log, *_terms(log, name, limit, shrink), left_out)


def gain(
    logged: Logged, name: str, over: Logged | None = None, *, limit: float | None = None, shrink: float | None = None
) -> Estimate:
    """The target's value less the logger's, round by round; or less that of `over`, the log with another target."""
    log, left_out = _checked(logged, name)
    terms, weights, notes = _terms(log, name, limit, shrink)
    if over is None:
        return _estimate(log, terms - log.reward, weights, notes, left_out)
    other = _checked(over, name)[0]
    if not np.array_equal(other.reward, log.reward):
        raise ValueError("over.reward: is not that of the log; give the same log with another target")
    less, _, more = _terms(other, name, limit, shrink)
    return _estimate(log, terms - less, weights, (*notes, *(note for note in more if note not in notes)), left_out)


def support(logged: Logged, name: str = "ips") -> Support:
    """Whether the log can tell about the target, for estimators of joint weights or, for pi, of parts."""
    log, _ = _checked(logged, name)
    return _support(log, name, _weights(log, name))


def cross_fitted(
    logged: Logged, features: np.ndarray, *, folds: int = 5, precision: float = 1.0, seed: int = 0
) -> Logged:
    """The log with `model`: each round's rewards (R, N) as predicted from other folds; a group is in one fold.

    Ridge regression of every action on [1, features] (R, D), drawn towards the mean reward with `precision` rounds'
    worth. The direct method is as good as this model; doubly robust estimators need no good one.
    """
    _checked(logged._replace(model=None), "ips")
    if logged.target.ndim != 2 or logged.action is None:
        raise ValueError("logged.target: a model needs all actions' probabilities, (R, N), and logged.action")
    _shape("features", features, (len(logged.reward), None))
    unique, member = np.unique(range(len(features)) if logged.groups is None else logged.groups, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(unique)) % folds)[member]
    inputs = np.concatenate([np.ones((len(features), 1)), features], axis=1)
    model = np.empty((len(features), logged.target.shape[-1]))
    for f in range(folds):
        train = _executed(logged) & (fold != f)
        prior = np.zeros((model.shape[-1], inputs.shape[-1]))
        prior[:, 0] = logged.reward[train].mean()
        heads = BayesianHeads(prior, precision)
        heads.update(inputs[train], logged.reward[train], np.ones(train.sum()), logged.action[train])
        model[fold == f] = inputs[fold == f] @ heads.means.T
    return logged._replace(model=model)


def shuffled(logged: Logged, rng: np.random.Generator) -> Logged:
    """A null: rewards dealt anew among the rounds that ran as drawn, so that no target gains over the logger.

    Contexts stay: with contexts shuffled, a target keeps its gain from actions that are good in every context.
    """
    rows, reward = np.flatnonzero(_executed(logged)), logged.reward.copy()
    reward[rows] = reward[rng.permutation(rows)]
    return logged._replace(reward=reward)


def joint_weights(logged: Logged) -> np.ndarray:
    """(R,) the target's probability of the logged action over the logger's."""
    return _of_logged(logged) / logged.propensity


def _support(log: Logged, name: str, weights: np.ndarray) -> Support:
    missing = _missing(log, name)
    deterministic = bool((log.propensity >= _SURE).all()) and missing > 1e-6
    mean, error, num = _mean(log, weights)
    if log.logger is not None and name not in _SLATES:  # then the weights' variance is known, too
        variance = (log.target**2 / np.where(log.logger > 0, log.logger, np.inf)).sum(axis=1) - 1
        error = max(error, float(np.sqrt(max(variance.mean(), 0.0) / len(weights))))
    width = _student(0.9995, num, weights) * error + 1e-9
    notes = []
    if deterministic:
        notes.append(f"the logger is deterministic (all propensities are 1), the target differs by {missing:.1%}")
    elif missing > _MISSING:
        notes.append(f"{missing:.1%} of the target's probability lies where the logger never goes")
    if abs(mean - 1) > width:
        notes.append(f"the mean weight is {mean:.3f}, not 1: support is missing, or propensities are wrong")
    return Support(missing, mean, width, deterministic, tuple(notes))


def _terms(log: Logged, name: str, limit: float | None, shrink: float | None) -> tuple[np.ndarray, np.ndarray, tuple]:
    """(R,) terms whose mean is the estimate, the (R,) weights in them, and what speaks against their support."""
    weights = _weights(log, name)
    num, notes = len(weights), _support(log, name, weights).notes
    if name.startswith("clipped"):
        weights = np.minimum(weights, np.sqrt(num) if limit is None else limit)
    elif name == "shrunk-dr":
        strength = float(num) if shrink is None else shrink
        weights = weights * strength / (weights**2 + strength) if strength > 0 else np.zeros(num)
    elif name in ("snips", "snpi"):
        total = weights.sum() or np.nan
        value = weights @ log.reward / total
        return value + weights * (log.reward - value) / (total / num), weights, notes
    if log.model is None or name not in _MODELLED:
        return weights * log.reward, weights, notes
    expected = (log.target * log.model).sum(axis=1)
    if name == "dm":
        return expected, np.ones(num), notes
    return expected + weights * (log.reward - log.model[np.arange(num), log.action]), weights, notes


def _estimate(log: Logged, terms: np.ndarray, weights: np.ndarray, notes: tuple[str, ...], left_out: int) -> Estimate:
    value, error, num = _mean(log, terms)
    width = np.inf if notes else _student(0.975, num, weights) * error
    effective = _effective(weights)
    if effective < _EFFECTIVE:
        notes += (f"only {effective:.1f} effective rounds of {len(terms):,}",)
    seen = effective, float(weights.max()), float((weights == 0).mean()), len(terms), left_out
    return Estimate(value, error, value - width, value + width, *seen, notes)


def _mean(log: Logged, terms: np.ndarray) -> tuple[float, float, int]:
    """Mean of (R,) terms, its standard error clustered by group, and how many groups there are."""
    centred = terms - terms.mean()
    if log.groups is not None:
        centred = np.bincount(np.unique(log.groups, return_inverse=True)[1], weights=centred)
    num = len(centred)
    return float(terms.mean()), float(np.sqrt((centred**2).sum() * num / max(num - 1, 1)) / len(terms)), num


def _student(share: float, num: int, weights: np.ndarray) -> float:
    return float(student.ppf(share, max(min(num, _effective(weights)) - 1, 1.0)))


def _effective(weights: np.ndarray) -> float:
    square = float((weights**2).sum())
    return float(weights.sum()) ** 2 / square if square else 0.0


def _of_logged(log: Logged) -> np.ndarray:
    return log.target if log.target.ndim == 1 else log.target[np.arange(len(log.reward)), log.action]


def _weights(log: Logged, name: str) -> np.ndarray:
    """(R,) of actions; for slates 1ᵀ_action Γ⁺ q: Γ = E[1 1ᵀ] under the logger, q = E[1] under the target, 1 the (L,)
    levels of an action. With parts drawn independently that is Σ_p target's marginal / logger's − (P − 1).
    """
    if name not in _SLATES:
        return joint_weights(log)
    if log.parts is None or log.logger is None or log.action is None:
        assert log.target_marginals is not None  # _checked
        assert log.marginals is not None  # _checked
        return (log.target_marginals / log.marginals).sum(axis=1) - (log.marginals.shape[1] - 1)
    levels = np.concatenate(_levels(log.parts), axis=1)  # (N, L)
    pairs = (levels[:, :, None] * levels[:, None, :]).reshape(len(levels), -1)
    out = np.empty(len(log.reward))
    for start in range(0, len(out), _CHUNK):
        rows = slice(start, start + _CHUNK)
        gram = (log.logger[rows] @ pairs).reshape(-1, levels.shape[1], levels.shape[1])
        inverse = pinv(gram, rcond=1e-9, hermitian=True)
        out[rows] = np.einsum("rl,rlm,rm->r", levels[log.action[rows]], inverse, log.target[rows] @ levels)
    return out


def _levels(parts: np.ndarray) -> list[np.ndarray]:
    """P arrays (N, levels), 1 where an action's part has that level."""
    return [(column[:, None] == np.unique(column)).astype(float) for column in parts.T]


def _missing(log: Logged, name: str) -> float:
    """Of the target's probability, or of parts' the most; a lower bound where the logger's is not known."""
    if log.logger is None or (name in _SLATES and log.parts is None):
        logger, target = log.propensity, _of_logged(log)
        if name in _SLATES and log.marginals is not None and log.target_marginals is not None:
            logger, target = log.marginals, log.target_marginals
        return float(((logger >= _SURE) * np.clip(1 - target, 0, None)).mean(axis=0).max())
    pairs = [(log.target, log.logger)]
    if name in _SLATES and log.parts is not None:
        pairs = [(log.target @ levels, log.logger @ levels) for levels in _levels(log.parts)]
    return max(float((target * (logger <= 0)).sum(axis=1).mean()) for target, logger in pairs)


def _executed(log: Logged) -> np.ndarray:
    return np.ones(len(log.reward), bool) if log.executed is None else log.executed


def _checked(logged: Logged, name: str) -> tuple[Logged, int]:
    """The rounds that ran as drawn, and how many did not. Errors: ValueError naming the field."""
    if name not in NAMES:
        raise ValueError(f"estimator {name!r} is none of {', '.join(NAMES)}")
    num, wide = len(logged.reward), logged.target.ndim == 2
    actions = logged.target.shape[-1] if wide else 0  # then there is nothing to compare (R, N) with
    rows, table = (num,), (num, actions)
    shapes = dict.fromkeys(Logged._fields, rows) | {"target": table if wide else rows, "parts": (actions, None)}
    shapes |= {"logger": table, "model": table, "marginals": (num, None)}
    shapes["target_marginals"] = (num, None) if logged.marginals is None else logged.marginals.shape
    given = {field: values for field, values in logged._asdict().items() if values is not None}
    for field, values in given.items():
        _shape(f"logged.{field}", values, shapes[field])
        if not (fine := np.isfinite(values) if values.dtype.kind == "f" else np.ones(1, bool)).all():
            raise ValueError(f"logged.{field}: row {np.argwhere(~fine)[0][0]} is not finite; leave such rounds out")
    for field in [f for f in given if f in _PROBABILITIES]:
        values, drawn = given[field], field in ("propensity", "marginals")
        if (bad := (values > 1 + 1e-9) | (values < 0) | (drawn & (values == 0))).any():
            where = tuple(np.argwhere(bad)[0])
            bounds = "(0, 1]: what was drawn had a probability above 0" if drawn else "[0, 1]"
            raise ValueError(f"logged.{field}: row {where[0]} is {values[where]:g}, not within {bounds}")
        if field in ("target", "logger") and values.ndim == 2 and (off := abs(values.sum(axis=1) - 1) > 1e-6).any():
            raise ValueError(f"logged.{field}: row {off.argmax()} sums to {values[off.argmax()].sum():g}, not 1")
    action = given.get("action", np.array([-1]))
    if wide and not ((action >= 0) & (action < actions)).all():
        raise ValueError(f"logged.action: is missing or not within 0 and the {actions} columns of logged.target")
    if name not in available(logged):
        needs = "model (`cross_fitted` makes one)" if name in _MODELLED else "marginals of both, or parts and logger"
        raise ValueError(f"logged.{needs.split()[0]}: {name} needs {needs}, with target (R, N)")
    keep = _executed(logged)
    if keep.sum() < 2:
        raise ValueError(f"logged.executed: {keep.sum()} rounds ran as drawn; at least 2 are needed")
    log = logged._replace(**{field: values[keep] for field, values in given.items() if field != "parts"})
    if log.logger is not None and log.action is not None:
        told = log.logger[np.arange(len(log.reward)), log.action]
        if (off := abs(told - log.propensity) > 1e-6).any():
            pair = f"{log.propensity[off.argmax()]:g} where logger has {told[off.argmax()]:g}"
            raise ValueError(f"logged.propensity: row {off.argmax()} of what ran has {pair}")
    return log, int(num - keep.sum())


def _shape(what: str, values: np.ndarray, shape: tuple[int | None, ...]) -> None:
    if len(values.shape) != len(shape) or any(s not in (None, v) for s, v in zip(shape, values.shape, strict=True)):
        raise ValueError(f"{what}: shape {values.shape} is not {str(shape).replace('None', 'any')}")
