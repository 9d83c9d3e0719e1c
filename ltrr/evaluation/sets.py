"""What another set of candidates would be worth, told from pages that showed others: may I switch this arm on?

Knows pages, propensities and how customers look; does not know arms, policies or stores. A set is worth the clicks that
it would get if customers looked at all of it. Of a round and a target set T,

    worth = Σ_{c in T} m(c)  +  Σ_{c in T that were shown} (click − e · m(c)) / (e · π)

is unbiased where every candidate of T could be shown (doubly robust, Dudík et al. 2011): m a model of clicks on what
is looked at, e the probability of a look at its place, π the probability that the round showed it: 1 inside the cut,
the logged propensity where it was explored. Candidates that are never shown have no such term; how many there are is
told by the mean of Σ 1 / π over those that were explored, which is the number of new ones where nothing is missing.
Legend: R rounds, S shown candidates, Q queries, M candidates of a query's order, B cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from ltrr.feedback.evidence.cells import NUM, RANGES, Looks, Shows, cells_of, clicks_on, fit_looks, usual_looks

_PLACES = np.array([1, 2, 3, 5, 10, 20, 50, 100])  # of the target's order: m is one number between two of these
_STRENGTH = 20.0  # looks' worth of the mean rate, in each of those numbers
_LEAST = 0.02  # a look is at least so likely
_TOLERATED = 0.1  # share of new candidates that may never be shown


class Pages(NamedTuple):
    """S shown candidates of R rounds."""

    asked: np.ndarray  # (R,) number of the query
    groups: np.ndarray  # (R,) sessions; rounds of different ones are independent
    round: np.ndarray  # (S,)
    row: np.ndarray  # (S,) corpus rows
    clicked: np.ndarray  # (S,) bool
    place: np.ndarray  # (S,) on the page, 0 = first
    cell: np.ndarray  # (S,) of that place (`ltrr.feedback.evidence.cells`)
    propensity: np.ndarray  # (S,) of being shown
    explored: np.ndarray  # (S,) bool: it would not have been shown without exploring


class Page(NamedTuple):
    """One round."""

    asked: int  # number of the query
    session: str
    rows: Sequence[int]  # shown, best first; -1 = not in the corpus
    clicked: frozenset[int]  # corpus rows
    explored: int = -1  # corpus row, -1 = none
    propensity: float = 1.0  # of that


class Target(NamedTuple):
    """The sets to be estimated."""

    rows: np.ndarray  # (Q, M) corpus rows in the target's order, pad -1
    size: np.ndarray  # (Q,) how many of them are in the set


class SetValue(NamedTuple):
    """Clicks a round, if all is looked at, of the target's sets, and their gain over the pages as they were.

    Intervals are of 95 %, Student's t over sessions; they do not know the error of the estimated looks. The upper ends
    count candidates that no page can show as clicked, the lower ends as not.
    """

    value: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    missing: float  # share of the candidates that no page can show, of those that are new
    rounds: int
    explored: int  # rounds that explored a candidate of the target's set
    notes: tuple[str, ...]  # why it is not to be trusted; empty = nothing speaks against it


def pages_of(rounds: Sequence[Page]) -> Pages:
    """Rounds in columns."""
    columns: list[tuple[np.ndarray, ...]] = []
    for number, page in enumerate(rounds):
        rows = np.fromiter(page.rows, np.int64, len(page.rows))
        clicks = clicks_on(page.rows, page.clicked)
        explored = (rows == page.explored) & (page.explored >= 0)
        propensity = np.where(explored, page.propensity, 1.0)
        place = np.arange(len(rows))
        columns.append((np.full(len(rows), number), rows, clicks, place, cells_of(clicks), propensity, explored))
    if not columns:
        raise ValueError("pages: there are none")
    shown = [np.concatenate(column) for column in zip(*columns, strict=True)]
    known = shown[1] >= 0
    asked = np.array([page.asked for page in rounds])
    groups = np.unique([page.session for page in rounds], return_inverse=True)[1]
    return Pages(asked, groups, *(column[known] for column in shown))


def looks_of(pages: Pages) -> Looks:
    """How customers look, estimated from the pages themselves; explored places tell looking and liking apart."""
    keys = pages.asked[pages.round] << 32 | pages.row
    pair = np.unique(keys, return_inverse=True)[1]
    silences = np.zeros((pair.max() + 1, NUM))
    np.add.at(silences, (pair[~pages.clicked], pages.cell[~pages.clicked]), 1.0)
    clicked = np.bincount(pair[pages.clicked], minlength=len(silences)).astype(float)
    clicks = np.bincount(pages.cell[pages.clicked], minlength=NUM).astype(float)
    return fit_looks(Shows(clicked, silences, clicks), usual_looks())


def set_value(pages: Pages, target: Target, looks: Looks | None = None) -> SetValue:
    """Estimates what a target's sets are worth.

    looks: how customers look; None = estimated from the pages.
    Errors: ValueError where a query of the pages has no row in the target, or fewer than two sessions were logged.
    """
    num = len(pages.asked)
    if pages.asked.max() >= len(target.rows):
        raise ValueError(f"target: query {pages.asked.max()} of the pages is not among its {len(target.rows)}")
    if len(np.unique(pages.groups)) < 2:
        raise ValueError("pages: at least two sessions are needed")
    looks = looks or looks_of(pages)
    examined = _examined(pages, looks)

    # 1) Where each shown candidate stands in the target's order, and which are in its sets.
    place = _places(pages, target.rows)
    inside = (place >= 0) & (place < target.size[pages.asked[pages.round]])

    # 2) The model: the click rate of what is looked at, by place in the target's order.
    step = np.where(place >= 0, np.searchsorted(_PLACES, place, side="right"), len(_PLACES) + 1)
    rates = _rates(step, pages.clicked, examined, len(_PLACES) + 2)
    modelled = np.cumsum(rates[np.searchsorted(_PLACES, np.arange(target.rows.shape[1]), side="right")])
    modelled = np.append(0.0, modelled)[target.size][pages.asked]  # (R,)

    # 3) Terms of each round, for the target and for the pages as they were.
    error = (pages.clicked - examined * rates[step]) / examined  # (S,)
    of_target = modelled + _sums(pages.round, inside * error / pages.propensity, num)
    kept = ~pages.explored
    of_pages = _sums(pages.round, kept * (rates[step] + error), num)

    # 4) What is missing.
    new = target.size[pages.asked] - _sums(pages.round, (inside & kept).astype(float), num)
    found = _sums(pages.round, inside * pages.explored / pages.propensity, num)
    missing = 1 - found.sum() / max(new.sum(), 1e-9)
    width = 2 * _spread(found - new * (1 - missing), pages.groups) / max(new.mean(), 1e-9)
    lost = max(missing, 0.0) * new.mean()
    notes = []
    if missing > _TOLERATED + width:
        notes.append(
            f"no page can show {missing:.0%} of the candidates that would be new; let the policy explore them "
            "(policy.explore.arm, or more of policy.explore.among)"
        )
    value, low, high = _interval(of_target, pages.groups, lost, bool(notes))
    gain, gain_low, gain_high = _interval(of_target - of_pages, pages.groups, lost, bool(notes))
    explored = int(np.count_nonzero(_sums(pages.round, (inside & pages.explored).astype(float), num)))
    return SetValue(value, low, high, gain, gain_low, gain_high, float(missing), num, explored, tuple(notes))


def _examined(pages: Pages, looks: Looks) -> np.ndarray:
    """(S,) how likely each place was looked at: looks of cells, interpolated between the mean places of their shows."""
    out, at = np.empty(len(pages.place)), np.log1p(pages.place)
    for half in (0, 1):  # nothing was clicked above; something was
        some = np.flatnonzero(pages.cell // RANGES == half)
        cells, which = np.unique(pages.cell[some], return_inverse=True)
        if len(some):
            centres = np.bincount(which, at[some]) / np.bincount(which)
            out[some] = np.exp(np.interp(at[some], centres, np.log(looks.examined[cells])))
    return np.maximum(out, _LEAST)


def _places(pages: Pages, rows: np.ndarray) -> np.ndarray:
    """(S,) place of each shown candidate in its query's order (Q, M), -1 = it has none."""
    query, place = np.nonzero(rows >= 0)
    keys = query << 32 | rows[query, place]
    order = np.argsort(keys)
    wanted = pages.asked[pages.round] << 32 | pages.row
    at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    return np.where(keys[order[at]] == wanted, place[order[at]], -1)


def _rates(step: np.ndarray, clicked: np.ndarray, examined: np.ndarray, num: int) -> np.ndarray:
    """(num,) click rates of what is looked at, drawn towards the rate of all."""
    clicks, looks = np.bincount(step, clicked, num), np.bincount(step, examined, num)
    return np.clip((clicks + _STRENGTH * clicks.sum() / looks.sum()) / (looks + _STRENGTH), 0.0, 1.0)


def _sums(groups: np.ndarray, values: np.ndarray, num: int) -> np.ndarray:
    return np.bincount(groups, values, num)


def _spread(terms: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of the mean of (R,) terms, by session."""
    sums = np.bincount(groups, terms - terms.mean())
    return float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(terms))


def _interval(terms: np.ndarray, groups: np.ndarray, lost: float, refused: bool) -> tuple[float, float, float]:
    """Mean, and the ends of its interval; those are infinite where it is refused."""
    width = np.inf if refused else float(student.ppf(0.975, groups.max())) * _spread(terms, groups) + lost
    mean = float(terms.mean())
    return mean, mean - width, mean + width
