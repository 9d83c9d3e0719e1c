"""The belief: for every candidate of a query, how likely it is what customers want, from its scores and their clicks.

The prior is the calibration of the fused score. Every show adds to the log odds what it says under the present belief
about how customers look (`ltrr.feedback.evidence.cells`), which is estimated from the same shows and never given. The
order, the cut at a price and the explanation read the same numbers.
Knows calibrations and evidence; does not know arms, customers or events.
Legend: Q queries, M candidates that are looked at, B cells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from ltrr.data.beir import Corpus
from ltrr.feedback.events import normalised
from ltrr.feedback.evidence.cells import (
    ALIKE,
    GROUPS,
    RANGES,
    Looks,
    ShowEvidence,
    cells_of,
    clicks_on,
    fit_looks,
    usual_looks,
)
from ltrr.feedback.evidence.tally import Tally
from ltrr.policies.calibration import columns, fit, fit_clicks, fit_coupling, log_odds, rounded
from ltrr.policies.evidence import CorpusEvidence
from ltrr.policies.rules import Calibrated, by_value
from ltrr.policies.worth import ReservedPlace, fused_scores
from ltrr.types import ActionRow, ImpressionRow, Pool, Query, Worth

_FIRST_FIT = 1_000  # shows of candidates before looks are estimated; again whenever there are half as many more
_GROWTH = 1.5
_UNJUDGED = ((1.0, 0.7), (0.4, 0.3))  # gains and shares of what is wanted, where nothing is judged
_LEVELS = 4  # at most
_STEPS = 4
_USUAL = 0.3 * np.append((ALIKE[1:] + ALIKE[:-1]) / 2, 0.98) ** 2  # weights of queries alike before anything is learned
_CERTAIN = 12.0  # log odds that a query's own shows say of one candidate, at most
_STEP, _HEAVIEST = 0.05, 1.0  # of the weights of evidence, which never counts more than its likelihood says
_TELLING = 2.0  # log odds of a click from which exploring has its whole share
_FALLEN = 0.1  # own evidence that counts less is as good as none
_FITTED = 5_000  # latest pages from which a calibration is fitted
_RECENT = 4_096  # decisions, and pages that wait for clicks, that are remembered
_PATIENCE = 600_000_000  # microseconds in which clicks come


class _Said(NamedTuple):
    """What evidence said of one query's candidates when it was decided."""

    docs: np.ndarray  # (M,) corpus rows
    prior: np.ndarray  # (M,) log odds
    said: np.ndarray  # (M, 1 + G)
    gain: np.ndarray  # (M,) if it is wanted
    scores: np.ndarray  # (M,) fused


class _Page(NamedTuple):
    """A page that waits for its clicks."""

    impression: ImpressionRow
    said: _Said
    clicked: set[int]


class Belief(Calibrated):
    """Ranks the candidates that add enough to the recall that is expected, by all that is known of this query.

    Args:
        calibration: of the prior, 4 weights; null = fitted on judged queries or, where none are, on clicks.
        levels: gain of each degree to which candidates are wanted, and its share; null = fitted with the calibration.
        coupling: what one more relevant candidate than expected adds to the log odds of all others of its query.
        explore: one candidate below the cut; None = nothing is explored.
        looks: how customers look; None = estimated, starting at 1 / rank.
        evidence: shows and clicks; None = what customers of this corpus do, under the rules of trust.
        corpus: of the entities; None = evidence without trust, for simulations.
        num: M. seed: of what is explored.
    """

    name = "belief"

    def __init__(
        self,
        arms: Sequence[str],
        depths: Mapping[str, int],
        *,
        budget: float,
        calibration: Sequence[float] | None = None,
        levels: Sequence[Sequence[float]] | None = None,
        coupling: float = 0.0,
        explore: ReservedPlace | None = ReservedPlace(),  # noqa: B008
        looks: Looks | None = None,
        evidence: ShowEvidence | None = None,
        corpus: Corpus | None = None,
        num: int = 100,
        seed: int | None = None,
    ) -> None:
        super().__init__(arms, depths, budget=budget, calibration=calibration, num=num, explore=explore, seed=seed)
        self._coupling, self._usual_share = coupling, None if explore is None else explore.share
        self._calibrates, self._kept, self._refit = calibration is None, 0, _FIRST_FIT
        self._shown: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []  # pages, for the calibration
        if evidence is None:
            evidence = Tally() if corpus is None else CorpusEvidence(corpus)
        self._evidence = evidence
        self.weights = np.append(1.0, _USUAL)
        self._squares = np.ones(1 + GROUPS)  # of gradients
        self._recent: OrderedDict[tuple[str, str], _Said] = OrderedDict()
        self._waiting: OrderedDict[str, _Page] = OrderedDict()
        self._now = 0  # time of the latest event
        self._estimates, self._due = looks is None, _FIRST_FIT
        if levels is None:
            levels = _UNJUDGED if calibration is None else ((1.0, 1.0),)
        self._start = usual_looks(levels=levels)
        self.looks = looks or self._start

    def worth(self, queries: Sequence[Query], pool: Pool) -> Worth:
        """What candidates add to expected recall, in order of the gain that is expected of them."""
        odds, gain, real = self.odds(queries, pool)
        return by_value(np.where(real, expit(odds) * gain, -np.inf))

    def odds(self, queries: Sequence[Query], pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(Q, M) log odds of being wanted, (Q, M) gains if they are, and (Q, M) bool: which candidates are none."""
        prior, real = self.prior(pool)
        said, gain = self._said(queries, pool)
        evidence = said @ self.weights
        odds = prior + evidence
        for q, query in enumerate(queries):
            scores = pool.scores[q, : self._num, -1]
            self._remember(query, _Said(pool.docs[q, : self._num], prior[q], said[q], gain[q], scores))
        if self._coupling and evidence.any():
            before = np.where(real, expit(prior), 0.0)
            surprise = np.zeros_like(before)
            for _ in range(_STEPS):  # what is found tells of all others, by mean field
                surprise = (surprise + np.where(real, expit(odds), 0.0) - before) / 2
                odds = prior + evidence + self._coupling * (surprise.sum(axis=1, keepdims=True) - surprise)
        return odds, gain, real

    def calibrate(self, pool: Pool, gains: np.ndarray) -> dict[str, Any]:
        """Constructor arguments from judged queries: a pool in fused order, and gains (Q, K) in [0, 1]."""
        scores, real = fused_scores(pool, self._num)
        gains = gains[:, : self._num]
        wanted = (real & (gains > 0)).astype(np.float64)
        weights = fit(scores, real, wanted)
        coupling = fit_coupling(log_odds(scores, weights), real, wanted)
        return {"calibration": weights, "levels": levels_of(gains[wanted > 0]), "coupling": coupling}

    def _said(self, queries: Sequence[Query], pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """(Q, M, 1 + G) log odds from what was shown for the query itself, and for each group of queries like it.

        With (Q, M) the gain that is expected of each candidate if it is wanted.
        """
        docs = pool.docs[:, : self._num]
        own, gain = self.looks.read(self._evidence.weigh(queries, docs, self.looks.log_ratios()))
        near = self._evidence.near(queries, docs, self.looks.usual_ratios())
        return np.concatenate([np.clip(own, -_CERTAIN, _CERTAIN)[:, :, None], near], axis=2), gain

    def explain(self, query: Query, pool: Pool) -> dict[str, np.ndarray]:
        """What is believed of each candidate, in the belief's order, (M,) each; log odds add up to `odds`.

        `row`: of the corpus; `prior`, `own shows`, `queries alike`, `found elsewhere`: log odds; `wanted`: probability;
        `gain`: if it is wanted;
        `worth`: what it adds to expected recall; `ranked`: whether that is worth the price.
        """
        prior, real = self.prior(pool)
        said = self._said([query], pool)[0][0] * self.weights
        odds, gain, _ = self.odds([query], pool)
        worth, order, _ = by_value(np.where(real, expit(odds) * gain, -np.inf))
        assert order is not None
        shown = order[0, : int(real.sum())]
        own, alike = said[:, 0], said[:, 1:].sum(axis=1)
        columns = {"row": pool.docs[0, : self._num], "prior": prior[0], "own shows": own, "queries alike": alike}
        columns |= {
            "found elsewhere": odds[0] - prior[0] - own - alike,
            "odds": odds[0],
            "wanted": expit(odds[0]),
            "gain": gain[0],
        }
        out = {name: values[shown] for name, values in columns.items()}
        price = self._price.value
        ranked = (worth[0, : len(shown)] >= price) | (np.arange(len(shown)) == 0)
        return out | {"worth": worth[0, : len(shown)], "ranked": ranked}

    def status(self) -> dict[str, Any]:
        """How much evidence counts and how customers are believed to look: what an operator wants to know."""
        own, *near = self.weights.round(3).tolist()
        return {
            "own evidence counts": own,
            "queries alike count": dict(zip([f"from {least:g}" for least in ALIKE], near, strict=True)),
            "looked at, by place": self.looks.examined[:RANGES].round(3).tolist(),
            "looked at below a click": self.looks.examined[RANGES:].round(3).tolist(),
            "attraction": round(self.looks.attraction, 3),
            "noise": round(self.looks.noise, 3),
            "gain and share of each level": self.looks.levels.round(3).tolist(),
            "fallen back to the prior": bool(self.weights[0] < _FALLEN),
        }

    # -- learning

    def online(self, store: Any, policy: str) -> Taught:
        """What a loop feeds."""
        return Taught(self, self._evidence)

    def compare(self, alike: Mapping[str, Sequence[tuple[str, float]]]) -> None:
        """Sets which queries are alike, for evidence that does not find them itself: normalised text -> others."""
        self._evidence.alike = alike  # type: ignore[attr-defined]

    def note(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow]) -> None:
        """Pages wait for their clicks; when these have had time to come, the weights of evidence move.

        Pages whose decision is no longer remembered are left out.
        """
        for impression in impressions:
            if (said := self._recent.get((impression.query, impression.customer))) is not None:
                self._waiting.setdefault(impression.id, _Page(impression, said, set()))
        for action in actions:
            if (page := self._waiting.get(action.impression)) is not None:
                page.clicked.add(action.row)
        self._now = max([self._now, *(i.time for i in impressions), *(a.time for a in actions)])
        while self._waiting:
            first = next(iter(self._waiting.values()))
            if first.impression.time > self._now - _PATIENCE and len(self._waiting) <= _RECENT:
                break
            self._weigh(self._waiting.popitem(last=False)[1])

    def _weigh(self, page: _Page) -> None:
        """Moves the weights of evidence by how well it foretold the clicks of a page, before they were evidence.

        One step up the log likelihood (AdaGrad, Duchi et al. 2011); a weight is at least 0, where evidence of this kind
        misleads.
        """
        said, looks = page.said, self.looks
        rows = np.fromiter(page.impression.rows, np.int64, len(page.impression.rows))
        clicks = clicks_on(page.impression.rows, page.clicked)
        cells = cells_of(clicks)
        order = np.argsort(said.docs)
        place = order[np.minimum(np.searchsorted(said.docs, rows, sorter=order), len(order) - 1)]
        known = said.docs[place] == rows
        place, clicks, cells = place[known], clicks[known], cells[known]
        features = said.said[place]
        if self._calibrates:
            self._keep(columns(np.nan_to_num(said.scores)[None])[0, place], features, clicks, cells)
        p = expit(said.prior[place] + features @ self.weights)
        liking = (looks.attraction - looks.noise) * said.gain[place]  # beyond noise
        rise = liking * p * (1 - p)  # of the click rate, if looked at, by log odds
        rate = looks.noise + liking * p
        examined = looks.examined[cells]
        gradient = np.where(clicks, rise / rate, -examined * rise / (1 - examined * rate)) @ features
        self._squares += gradient**2
        self.weights = np.clip(self.weights + _STEP * gradient / np.sqrt(self._squares), 0.0, _HEAVIEST)

    def _keep(self, x: np.ndarray, features: np.ndarray, clicks: np.ndarray, cells: np.ndarray) -> None:
        """Keeps what was shown, from which the calibration is fitted now and then where nothing is judged."""
        self._shown.append((x, features @ self.weights, clicks, cells))
        self._kept += len(clicks)
        if self._kept < self._refit:
            return
        self._refit = int(self._kept * _GROWTH)
        self._shown = self._shown[-_FITTED:]
        x, offset, clicks, cells = (np.concatenate(column) for column in zip(*self._shown, strict=True))
        looks = self.looks
        if 0 < clicks.sum() < len(clicks):
            self._calibration = tuple(fit_clicks(x, offset, clicks, looks.examined[cells], looks.usual(), looks.noise))

    def _remember(self, query: Query, said: _Said) -> None:
        key = normalised(query.text), query.context.customer or ""
        with self._lock:  # a service decides in many threads
            self._recent[key] = said
            self._recent.move_to_end(key)
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)

    def learned(self) -> None:
        """Estimates again how customers look, once half as many more candidates were shown as at the last estimate."""
        if self._estimates and self._evidence.shown >= self._due:
            self._due = int(self._evidence.shown * _GROWTH)
            self.looks = fit_looks(self._evidence.shows(), self._start)
            if (
                self._usual_share is not None and self._explore is not None
            ):  # clicks that say little are not worth exploring for
                tells = min(1.0, float(self.looks.usual_ratios()[0]) / _TELLING)
                self._explore = replace(self._explore, share=self._usual_share * tells)


class Taught:
    """Feeds a belief's evidence (the protocol `Learning`); methods beside `take` need evidence that knows customers."""

    def __init__(self, belief: Belief, evidence: Any) -> None:
        self._belief, self._evidence = belief, evidence

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None:
        """Learns from the rows of an event store; now and then how customers look is estimated anew."""
        self._belief.note(impressions, actions)
        self._evidence.take(impressions, actions)
        self._belief.learned()

    def customers(self) -> Iterable[str]:
        """Names of the customers from whom it learned."""
        return self._evidence.customers()

    def erase(self, customer: str) -> None:
        """Takes back what a customer taught; the estimate of how customers look, which is of all, stays."""
        self._evidence.erase(customer)

    def compact(self) -> None:
        """Drops evidence that has decayed."""
        self._evidence.compact()

    def save(self, path: Path) -> None:
        """Writes all evidence to one npz file, without pickled objects."""
        self._evidence.save(path)

    def load(self, path: Path) -> None:
        """Continues from what `save` wrote."""
        self._evidence.load(path)
        self._belief.learned()


def levels_of(gains: np.ndarray) -> list[list[float]]:
    """Gain and share of each level of what is relevant, from gains (N,) above 0; many values become `_LEVELS`."""
    values = np.unique(gains)
    if len(values) > _LEVELS:
        parts = np.array_split(np.sort(gains), _LEVELS)
        return [[*rounded([part.mean(), 1 / _LEVELS])] for part in parts]
    return [rounded([value, float(np.mean(gains == value))]) for value in values.tolist()]
