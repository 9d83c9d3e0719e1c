"""Where a candidate stood when it was shown: cells that a model of how customers look tells apart.

A cell is a range of places, and whether anything above was clicked: customers who found what they wanted look at less.
Counts by cell keep evidence apart from what is believed about looking, so a better belief counts for old evidence too.
Knows places and clicks; does not know queries, candidates or customers.
Legend: B cells, G groups of neighbours, K places of a page, P pairs of a query and a candidate.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from scipy.special import expit, logit

from ltrr.types import ActionRow, ImpressionRow, Query

_FIRST = np.array([0, 1, 2, 3, 5, 10, 20])  # first place of each range
RANGES = len(_FIRST)
NUM = 2 * RANGES  # B
ALIKE = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.97])  # least similarity of each group of neighbours
GROUPS = len(ALIKE)  # G
MOST = 4.0  # log odds that one neighbour says of one candidate, either way
_HELD = 50.0  # pairs' worth of trust that scores are calibrated
_LAST = 1_000  # places beyond are in the last range
_RANGE_OF = np.searchsorted(_FIRST, np.arange(_LAST), side="right") - 1  # place -> its range


class Shows(NamedTuple):
    """What was shown, in all: what an estimate of how customers look is made from."""

    clicked: np.ndarray  # (P,) clicks of each pair
    silences: np.ndarray  # (P, B) its shows without a click
    clicks: np.ndarray  # (B,) clicks of all pairs
    texts: Sequence[str] = ()  # normalised queries
    query: np.ndarray | None = None  # (P,) which of `texts`
    rows: np.ndarray | None = None  # (P,) corpus rows


class ShowEvidence(Protocol):
    """Counts of shows and clicks, for everybody or as the customer who asks may see them."""

    @property
    def shown(self) -> float:
        """Candidates that were shown, in all."""
        ...

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None: ...

    def weigh(self, queries: Sequence[Query], rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(Q, K, W) sums of counts by weights (W, 1 + B): of a click, of a show without one in each cell."""
        ...

    def near(self, queries: Sequence[Query], rows: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """(Q, K, G) log odds that remembered queries like each one have for its candidates, by group of similarity.

        ratios: (1 + B,) of a click, of a show without one in each cell. Each neighbour says at most `MOST`.
        """
        ...

    def trusts(self, customer: str) -> bool:
        """Whether a page of this customer may move what is believed of all."""
        ...

    def shows(self) -> Shows:
        """All that was shown."""
        ...


@runtime_checkable
class Foretelling(Protocol):
    """Evidence that may also hold predictions of what documents are wanted for."""

    @property
    def foretells(self) -> bool: ...

    def foretold(self, queries: Sequence[Query], rows: np.ndarray) -> np.ndarray:
        """(Q, K) log odds, at least 0, that predictions give to candidates."""
        ...


def clicks_on(rows: Sequence[int], clicked: Collection[int]) -> np.ndarray:
    """(K,) bool: which corpus rows of a page were clicked."""
    return np.fromiter((row in clicked for row in rows), bool, len(rows))


def group_of(similarity: np.ndarray) -> np.ndarray:
    """Groups of similarities, -1 = not alike."""
    return np.searchsorted(ALIKE, similarity, side="right") - 1


def cells_of(clicked: np.ndarray, place: np.ndarray | None = None, start: np.ndarray | None = None) -> np.ndarray:
    """(K,) cells of the places of a page, or of several pages one after the other.

    clicked (K,) bool. place (K,), start (K,): of several pages, each place on its page and where that page starts in K.
    """
    above = np.cumsum(clicked) - clicked
    if place is None or start is None:
        place = np.arange(len(clicked))
    elif len(above):
        above = above - above[start]
    return _RANGE_OF[np.minimum(place, _LAST - 1)] + RANGES * (above > 0)


class Looks(NamedTuple):
    """What is believed about customers: a click needs a look and, then, attraction or noise.

    What is relevant may be so to different degrees: a level with gain g attracts with noise + (attraction − noise) · g.
    """

    examined: np.ndarray  # (B,) P(looked at) in a cell
    attraction: float  # P(click | looked at, of gain 1)
    noise: float  # P(click | looked at, not relevant), below `attraction`
    levels: np.ndarray = np.ones((1, 2))  # (L, 2) gain of each level, and its share of what is relevant

    def clicked(self) -> np.ndarray:
        """(L,) P(click | looked at) at each level."""
        return self.noise + (self.attraction - self.noise) * self.levels[:, 0]

    def usual(self) -> float:
        """P(click | looked at) of what is relevant, over all levels."""
        return float(self.levels[:, 1] @ self.clicked())

    def log_ratios(self) -> np.ndarray:
        """(L, 1 + B) what a click, and what a show without one in each cell, says for a level against irrelevance."""
        return np.stack([self._ratios(rate) for rate in self.clicked().tolist()])

    def usual_ratios(self) -> np.ndarray:
        """(1 + B,) the same for what is relevant, over all levels."""
        return self._ratios(self.usual())

    def _ratios(self, rate: float) -> np.ndarray:
        silence = np.log1p(-self.examined * rate) - np.log1p(-self.examined * self.noise)
        return np.append(np.log(rate / self.noise), silence)

    def read(self, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log odds (...) of being relevant that evidence gives, and the gain (...) expected if it is.

        ratios: (..., L) log likelihood of the evidence at each level against irrelevance.
        """
        if len(self.levels) == 1:
            return ratios[..., 0], np.full(ratios.shape[:-1], self.levels[0, 0])
        with np.errstate(divide="ignore"):
            each = ratios + np.log(self.levels[:, 1])
        highest = each.max(axis=-1, keepdims=True)
        likely = np.exp(each - highest)
        total = likely.sum(axis=-1)
        return highest[..., 0] + np.log(total), likely @ self.levels[:, 0] / total


def usual_looks(
    eta: float = 1.0, attraction: float = 0.9, noise: float = 0.1, levels: Sequence[Sequence[float]] = ((1.0, 1.0),)
) -> Looks:
    """What is believed before anything was seen: place k is looked at with (k + 1)^-eta, whatever was clicked."""
    last = np.append(_FIRST[1:] - 1, 2 * _FIRST[-1])
    each = np.array([np.mean(np.arange(a + 1.0, b + 2.0) ** -eta) for a, b in zip(_FIRST, last, strict=True)])
    return Looks(np.tile(each, 2), attraction, noise, np.array(levels, np.float64))


def fit_looks(
    shown: Shows,
    start: Looks,
    *,
    prior: np.ndarray | None = None,
    strength: float = 50.0,
    steps: int = 30,
) -> Looks:
    """Estimates how customers look from what was shown, with EM; a pair is irrelevant or relevant at one level.

    Only products of looking and liking are observed, so the first place, where nothing is above, counts as always
    looked at. Pairs that were shown at several places, as explored ones are, tell the two apart. Scores tell relevance
    better than weak clicks do, so attraction and noise are estimated with them, and so is how far scores are right.
    Looks are then estimated without scores, which promise too much deep down a page.

    Args:
        shown: all shows.
        start: believed beforehand, with the weight of `strength` looks a cell; its levels keep their gains.
        prior: (P,) log odds of being relevant that scores give, NaN = unknown; None = all alike.

    Returns: the estimate. Source of the steps: EM for click models (Chuklin et al. 2015, chapter 4), with classes.
    """
    if prior is None:
        return _fit(shown, start, None, None, strength, steps)
    scored = _fit(shown, start, prior, None, strength, steps)
    return _fit(shown, start, None, (scored.attraction, scored.noise), strength, steps)


def _fit(
    shown: Shows,
    start: Looks,
    prior: np.ndarray | None,
    held: tuple[float, float] | None,  # attraction and noise
    strength: float,
    steps: int,
) -> Looks:
    """The steps of EM."""
    clicked, silences = shown.clicked.astype(np.float64), shown.silences.astype(np.float64)
    shows, gains = shown.clicks + silences.sum(axis=0), start.levels[:, 0]
    looks = start if held is None else start._replace(attraction=held[0], noise=held[1])
    x, line = _scored(prior, len(clicked)), np.array([0.0, 1.0])  # odds of being relevant: a line over those of scores
    for _ in range(steps):
        said = clicked[:, None] * looks.log_ratios()[:, 0] + silences @ looks.log_ratios()[:, 1:].T  # (P, L)
        with np.errstate(divide="ignore"):
            odds = (x @ line)[:, None] + np.log(looks.levels[:, 1])
            each = np.concatenate([odds + said, np.zeros((len(said), 1))], axis=1)
        weights = np.exp(each - each.max(axis=1, keepdims=True))
        weights = (weights / weights.sum(axis=1, keepdims=True)).T  # (L + 1, P): levels, then what is irrelevant
        # Expected looks without a click: of a silent show of something that attracts with rate c, e(1 - c) / (1 - ec).
        rates = np.append(looks.clicked(), looks.noise)[:, None]
        silent = looks.examined * (1 - rates) / np.maximum(1 - looks.examined * rates, 1e-9)  # (L + 1, B)
        looked_silent = (weights @ silences) * silent
        looked = shown.clicks + looked_silent.sum(axis=0)  # (B,)
        examined = (looked + strength * start.examined) / (shows + strength)
        examined[0] = 1.0
        hits, seen = weights @ clicked, weights @ clicked + looked_silent.sum(axis=1)  # (L + 1,)
        noise = float(np.clip((hits[-1] + strength * start.noise) / (seen[-1] + strength), 1e-3, 0.95))
        # Least squares of the levels' click rates on their gains, with the start as `strength` looks at gain 1.
        above = gains @ (hits[:-1] - noise * seen[:-1]) + strength * (start.attraction - noise)
        attraction = noise + above / (gains**2 @ seen[:-1] + strength)
        of_level = weights[:-1].sum(axis=1)
        line = _line(x, weights[:-1].sum(axis=0), line)
        shares = of_level + strength * start.levels[:, 1]
        levels = np.stack([gains, shares / shares.sum()], axis=1)
        if held is not None:
            attraction, noise = held
        looks = Looks(np.clip(examined, 1e-3, 1.0), float(np.clip(attraction, noise + 0.02, 0.98)), noise, levels)
    return looks


def _scored(prior: np.ndarray | None, num: int) -> np.ndarray:
    """(P, 2) one, and log odds; those that are unknown are the mean of the others."""
    if prior is None or not (known := np.isfinite(prior)).any():
        return np.stack([np.ones(num), np.zeros(num)], axis=1)
    return np.stack([np.ones(num), np.where(known, prior, prior[known].mean())], axis=1)


def _line(x: np.ndarray, relevant: np.ndarray, line: np.ndarray) -> np.ndarray:
    """A logistic regression of P(relevant) (P,) on x (P, 2), two Newton steps from `line`; its slope is held near 1."""
    for _ in range(2):
        p = expit(x @ line)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag([1e-3, _HELD])
        gradient = x.T @ (relevant - p) - np.array([0.0, _HELD * (line[1] - 1)])
        line = line + np.clip(np.linalg.solve(hessian, gradient), -1.0, 1.0)
    return line


def odds_of(rate: float) -> float:
    """Log odds of a probability, away from 0 and 1."""
    return float(logit(np.clip(rate, 1e-6, 1 - 1e-6)))
