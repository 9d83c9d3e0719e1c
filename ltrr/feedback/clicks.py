"""Click models: simulate clicks from grades, and estimate examination and attraction from logs.

Knows positions, clicks and pairs (numbers of a query and an entity together); knows nothing about events, arms or
memory (numpy and the standard library only). A click needs examination (the customer looked) and attraction (they
liked it): P(click) = P(examined) · attraction. The models differ in examination. Pads are at the end of a page.
Legend: R rounds (pages), K positions (0 = top), P pairs, I iterations.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np

_TOLERANCE = 0.01  # an estimation stops when a step adds less than this to the log posterior of the whole log
_TINY = 1e-300  # keeps logarithms and quotients of impossible events finite


@dataclass(frozen=True, slots=True)
class PositionBased:
    """Position k is examined with probability examination[k], whatever was clicked (Richardson et al. 2007)."""

    examination: tuple[float, ...]  # K

    def __post_init__(self) -> None:
        if not self.examination or not all(0 <= e <= 1 for e in self.examination):
            raise ValueError(f"examination: {self.examination} are not probabilities, one a position")

    @classmethod
    def power(cls, num_positions: int, eta: float) -> Self:
        """Examination (1 / (k + 1))^eta: 0 = everything is examined, 1 = usual, 2 = steep (Joachims et al. 2017)."""
        return cls(tuple((1 / np.arange(1, num_positions + 1)) ** eta))


@dataclass(frozen=True, slots=True)
class Cascade:
    """Positions are examined from the top until the customer stops (Craswell et al. 2008; Chapelle & Zhang 2009).

    Special cases: satisfaction 1 and abandonment 0 give Craswell's cascade; abandonment 0 gives the dependent click
    model with one parameter (Guo et al. 2009); satisfaction 1 − γ(1 − σ) and abandonment 1 − γ give the DBN with
    satisfaction σ for all entities and perseverance γ.
    """

    satisfaction: float  # P(stops | examined and clicked)
    abandonment: float  # P(stops | examined and not clicked)
    attraction: float = 0.5  # mean over examined entities, used for entities whose attraction is unknown

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is no probability")


ClickModel = PositionBased | Cascade
Model = TypeVar("Model", PositionBased, Cascade)
_MODELS: dict[str, type[ClickModel]] = {"position_based": PositionBased, "cascade": Cascade}


class Clicks(NamedTuple):
    """Clicks and examinations on R pages; False on pads."""

    clicks: np.ndarray  # (R, K) bool
    examined: np.ndarray  # (R, K) bool


class Fit(NamedTuple, Generic[Model]):
    """An estimated model. `converged` is False if max_iter was reached first."""

    model: Model
    attraction: np.ndarray  # (P,) in [0, 1]
    objective: np.ndarray  # (I,) log posterior: log-likelihood + log prior of attractions; never falls
    converged: bool


def attraction_of(grades: np.ndarray, *, highest: int, noise: float = 0.0) -> np.ndarray:
    """Attraction (R, K): noise + (1 − noise)(2^grade − 1)/(2^highest − 1), so grade 0 has P(click | examined) = noise.

    Args:
        grades: (R, K); pads are NaN or below 0, and NaN in the result.
        highest: the data set's highest grade, not this batch's. Raises ValueError if a grade is above it.
    """
    real = grades >= 0
    if (grades[real] > highest).any():
        raise ValueError(f"highest: {highest} is below grade {grades[real].max()}; give the data set's highest grade")
    gain = (np.exp2(np.where(real, grades, 0.0)) - 1) / (2.0**highest - 1)
    return np.where(real, noise + (1 - noise) * gain, np.nan)


def simulate(model: ClickModel, attraction: np.ndarray, rng: np.random.Generator) -> Clicks:
    """Simulates clicks on pages with attraction (R, K), NaN = pad. Raises ValueError if a page is too long."""
    real = ~np.isnan(attraction)
    attracted, looks = rng.random(real.shape) < attraction, rng.random(real.shape)  # NaN (a pad) compares False
    if isinstance(model, PositionBased):
        examined = (looks < _examination(model, attraction.shape[1])) & real
        return Clicks(attracted & examined, examined)
    examined, looking = np.zeros_like(real), np.ones(len(real), bool)
    for k in range(real.shape[1]):
        examined[:, k] = looking & real[:, k]
        looking = looking & (looks[:, k] >= np.where(attracted[:, k], model.satisfaction, model.abandonment))
    return Clicks(attracted & examined, examined)


def examination_of(model: ClickModel, clicks: np.ndarray, attraction: np.ndarray | None = None) -> np.ndarray:
    """P(examined | model, the page's clicks) of each position, (R, K); 0 on pads.

    Memory counts these as trials: Σ clicks / Σ examination estimates a pair's attraction. Position-based:
    examination[k], whatever was clicked; a click is a success in part of a trial, so few rounds may exceed 1.
    Cascade: 1 down to the last click; below it, the posterior given no further clicks, which depends on attraction.

    Args:
        clicks: (R, K) bool.
        attraction: (R, K) in [0, 1], NaN = pad; None = no pads, and model.attraction everywhere.
    """
    if attraction is None:
        attraction = np.full(clicks.shape, model.attraction if isinstance(model, Cascade) else 1.0)
    real = ~np.isnan(attraction)
    if isinstance(model, PositionBased):
        return np.where(real, _examination(model, clicks.shape[1]), 0.0)
    return _cascade_posterior(model, clicks.T, np.where(real, attraction, 0.0).T)[0].T * real


def fit_position_based(
    pairs: np.ndarray, clicks: np.ndarray, prior: tuple[float, float] = (0.1, 0.4), max_iter: int = 5_000
) -> Fit[PositionBased]:
    """Estimates examination by position and attraction by pair with EM (Chuklin et al. 2015, chapter 4).

    Only products of the two are observed, so position 0 is assumed to be always examined: examination is relative to it
    (at most 1), and attraction is P(click at the top). The objective is concave in the logarithms of both, so the start
    does not matter. Needs memory for several (P, K) float64.

    Args:
        pairs: (R, K) int numbers from 0 of (query, entity), −1 = pad.
        clicks: (R, K) bool.
        prior: clicks and non-clicks, both above 0, added to each pair; keeps rare pairs away from 0 and 1.

    Errors: ValueError naming the positions that no chain of clicked pairs links to position 0.
    """
    shown, clicked = _counts(pairs, clicks)
    _check_linked(shown, clicked)
    missed = shown - clicked  # (P, K)
    clicked_at, shown_at = clicked.sum(axis=0), shown.sum(axis=0)  # (K,)
    successes, trials = clicked.sum(axis=1) + prior[0], shown.sum(axis=1) + sum(prior)  # (P,)
    examination, attraction = np.linspace(1.0, 0.1, len(shown_at)), successes / trials
    objective = [-np.inf]
    for _ in range(max_iter):
        silent = np.maximum(1 - attraction[:, None] * examination, _TINY)  # (P, K) P(not clicked)
        likelihood = clicked_at @ _log(examination) + successes @ _log(attraction) + (missed * np.log(silent)).sum()
        objective.append(likelihood + prior[1] * _log(1 - attraction).sum())
        if objective[-1] - objective[-2] < _TOLERANCE:
            break
        unsure = missed / silent
        looked = clicked_at + examination * ((1 - attraction) @ unsure)  # (K,) expected examinations
        liked = successes + attraction * (unsure @ (1 - examination))  # (P,) expected attractions
        examination, attraction = np.minimum(looked / shown_at, 1.0), liked / trials  # rounding may exceed 1
        examination[0] = 1.0
    model = PositionBased(tuple(examination.tolist()))
    return Fit(model, attraction, np.array(objective[1:]), len(objective) <= max_iter)


def fit_cascade(
    pairs: np.ndarray, clicks: np.ndarray, prior: tuple[float, float] = (0.1, 0.4), max_iter: int = 500
) -> Fit[Cascade]:
    """Estimates satisfaction, abandonment and attraction by pair with EM over the position where the customer stopped.

    Arguments as for `fit_position_based`. Errors: ValueError if no clicked pair appears at two positions.
    """
    shown, clicked_at = _counts(pairs, clicks)
    if not ((shown[clicked_at.any(axis=1)] > 0).sum(axis=1) > 1).any():
        raise ValueError("no pair that was clicked appears at two positions; log pages whose order varies")
    real = np.ascontiguousarray(pairs.T >= 0)  # (K, R)
    pair, clicked = np.where(real, pairs.T, 0), clicks.T & real
    below = [at & real[1:] for at in (clicked[:-1], ~clicked[:-1])]  # clicks, non-clicks with a position below
    last = np.logical_or.accumulate(clicked[::-1])[::-1]  # a click stands here or below
    stays = np.array([(at & last[1:]).sum() for at in below])  # certainly continued
    successes = clicked_at.sum(axis=1) + prior[0]  # (P,)
    failures = np.bincount(pair[last & ~clicked], minlength=len(shown)) + prior[1]  # (P,) surely examined, no click
    model, attraction = Cascade(0.5, 0.1), successes / (shown.sum(axis=1) + sum(prior))
    objective = [-np.inf]
    for _ in range(max_iter):
        examined, tail = _cascade_posterior(model, clicked, np.where(real, attraction[pair], 0.0))
        likelihood = stays @ _log(1 - np.array([model.satisfaction, model.abandonment])) + _log(tail).sum()
        objective.append(likelihood + successes @ _log(attraction) + failures @ _log(1 - attraction))
        if objective[-1] - objective[-2] < _TOLERANCE:
            break
        examined *= real
        attraction = successes / (np.bincount(pair.ravel(), examined.ravel(), len(shown)) + sum(prior))
        stops = [1 - examined[1:].sum(where=at) / examined[:-1].sum(where=at) for at in below]
        model = Cascade(*np.clip(stops, 0.0, 1.0).tolist(), attraction=float(clicked.sum() / examined.sum()))
    return Fit(model, attraction, np.array(objective[1:]), len(objective) <= max_iter)


def save(model: ClickModel, path: str | Path) -> None:
    """Writes JSON: {"model": name, parameter: value}."""
    name = next(name for name, known in _MODELS.items() if isinstance(model, known))
    Path(path).write_text(json.dumps({"model": name} | asdict(model), indent=1) + "\n", encoding="utf-8")


def load(path: str | Path) -> ClickModel:
    """Reads what `save` wrote. Raises ValueError naming the file if it holds no known model."""
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    if (name := values.pop("model", None)) not in _MODELS:
        raise ValueError(f"{path}: model {name!r} is none of {', '.join(_MODELS)}")
    return PositionBased(tuple(values["examination"])) if name == "position_based" else Cascade(**values)


def _examination(model: PositionBased, num_positions: int) -> np.ndarray:
    """Examination (K,) of a page. Raises ValueError if the page has more positions than the model."""
    if num_positions > len(model.examination):
        raise ValueError(f"examination: {len(model.examination)} positions, but a page of {num_positions}")
    return np.asarray(model.examination[:num_positions])


def _cascade_posterior(model: Cascade, clicked: np.ndarray, attraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(examined | clicks) (K, R) and P(no click after the last one) (R,), from clicks and attraction (K, R), pads 0.

    Backward: silent[k] = P(no click from k on | k examined) = (1 − a)(stop + (1 − stop) silent[k + 1]).
    Forward: a customer who clicks later continued; otherwise P(continued) = (1 − stop) silent / (stop + (1 − stop)
    silent).
    """
    num_positions, num_rounds = clicked.shape
    silent, examined = np.ones((2, num_positions + 1, num_rounds))
    for k in reversed(range(num_positions)):
        silent[k] = (1 - attraction[k]) * (model.abandonment + (1 - model.abandonment) * silent[k + 1])
    last = np.zeros((num_positions + 1, num_rounds), bool)  # a click stands here or below
    last[:-1] = np.logical_or.accumulate(clicked[::-1])[::-1]
    tail = silent[0]
    for k in range(num_positions):
        stop = np.where(clicked[k], model.satisfaction, model.abandonment)
        on = (1 - stop) * silent[k + 1]
        tail = np.where(clicked[k] & ~last[k + 1], stop + on, tail)
        examined[k + 1] = examined[k] * np.where(last[k + 1], 1.0, on / np.maximum(stop + on, _TINY))
    return examined[:-1], tail


def _counts(pairs: np.ndarray, clicks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts how often each pair was shown and clicked at each position, (P, K) each."""
    shape, real = (int(pairs.max(initial=0)) + 1, pairs.shape[1]), pairs >= 0
    cells = (pairs * shape[1] + np.arange(shape[1]))[real]
    shown, clicked = (np.bincount(cells, weights, shape[0] * shape[1]) for weights in (None, clicks[real]))
    return shown.reshape(shape), clicked.reshape(shape)


def _check_linked(shown: np.ndarray, clicked: np.ndarray) -> None:
    """Raises ValueError unless clicked pairs link all positions; pairs without clicks say nothing about positions."""
    there = (shown[clicked.any(axis=1)] > 0).astype(np.float64)
    shared = there.T @ there > 0  # (K, K)
    linked = np.arange(len(shared)) == 0
    for _ in range(len(shared)):
        linked = linked | shared[linked].any(axis=0)
    if not linked.all():
        raise ValueError(
            f"positions {np.flatnonzero(~linked).tolist()}: no chain of pairs that were clicked and appear at several "
            "positions links them to position 0, so looking cannot be told from liking; log pages whose order varies"
        )


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, _TINY))
