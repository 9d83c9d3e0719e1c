"""The belief: for every candidate of a query, how likely it is what customers want, from its scores and their clicks.

The prior is the calibration of the fused score, and what a network that learns from the same shows adds to it. Every
show adds to the log odds what it says under the present belief
about how customers look (`ltrr.feedback.evidence.cells`), which is estimated from the same shows and never given. The
order, the cut at a price and the explanation read the same numbers.
Knows calibrations and evidence; does not know arms, customers or events.
Legend: Q queries, M candidates that are looked at, B cells, W kinds of evidence.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
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
    Foretelling,
    ShowEvidence,
    cells_of,
    clicks_on,
    fit_looks,
    usual_looks,
)
from ltrr.feedback.evidence.tally import Tally
from ltrr.policies.calibration import columns, fit, fit_clicks, fit_coupling, log_odds, rounded
from ltrr.policies.evidence import CorpusEvidence
from ltrr.policies.features import ContextFeatures, arms_of, check_learned, of_arms, pool_features, pool_names
from ltrr.policies.rules import Calibrated, by_value
from ltrr.policies.shown import ShownPairs
from ltrr.policies.worth import ReservedPlace, fused_scores
from ltrr.protocols import LearnedPrior, offers
from ltrr.types import ActionRow, Decision, ImpressionRow, Pool, Query, RetrievalFeatures, Revised, Worth

_FIRST_FIT = 1_000  # shows of candidates before looks are estimated; again whenever there are half as many more
_GROWTH = 1.5
_UNJUDGED = ((1.0, 0.7), (0.4, 0.3))  # gains and shares of what is wanted, where nothing is judged
_LEVELS = 4  # at most
_STEPS = 4
_USUAL = 0.3 * np.append((ALIKE[1:] + ALIKE[:-1]) / 2, 0.98) ** 2  # weights of queries alike before anything is learned
_FORETOLD = 1.0  # weight of what generated queries foretell before anything is learned
_CERTAIN = 12.0  # log odds that a query's own shows say of one candidate, at most
_STEP = 0.05  # of the weights of evidence
_FIRST_LESSON = 3_000  # shows of candidates before the network learns; again whenever they have doubled
_TELLING = 2.0  # log odds of a click from which exploring has its whole share
_FALLEN = 0.1  # own evidence that counts less is as good as none
_FITTED = 5_000  # latest pages from which a calibration is fitted
_RECENT = 4_096  # decisions, and pages that wait for clicks, that are remembered
_PATIENCE = 600_000_000  # microseconds in which clicks come


class _Said(NamedTuple):
    """What evidence said of one query's candidates when it was decided."""

    docs: np.ndarray  # (M,) corpus rows
    prior: np.ndarray  # (M,) log odds
    network: np.ndarray  # (M,) the part of the prior that the network added
    inputs: np.ndarray | None  # (M, I) what the network read
    said: np.ndarray  # (M, W)
    gain: np.ndarray  # (M,) if it is wanted
    scores: np.ndarray  # (M,) fused


class _Read(NamedTuple):
    """What the network read of one query's pool, and what it made of it."""

    by: tuple[LearnedPrior, tuple[float, ...]]  # the network and the calibration
    inputs: np.ndarray  # (1, M, I)
    added: np.ndarray  # (1, M) log odds


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
        eta: a place is looked at with rank^-eta, and clicks' noise stays as assumed; null = all is estimated.
        evidence: shows and clicks; None = what customers of this corpus do, under the rules of trust.
        corpus: of the entities; None = evidence without trust, for simulations.
        learner: the network (`ltrr.learners.prior.PriorLearner`), new or an export's; None = the calibration alone. It
            goes on learning from what is shown, and features are logged as it read them.
        features: what the network reads beside the fused union.
        heed: how much evidence counts at most; 0 = the prior alone, for comparisons.
        same_cut: whether all queries get as many candidates, for comparisons.
        num: M. seed: of what is explored.

    Errors: ValueError for a learner of other arms, features or depths.
    """

    name = "belief"
    revision = 2  # of what it makes of the same rounds; simulations kept from others are not used

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
        eta: float | None = None,
        evidence: ShowEvidence | None = None,
        corpus: Corpus | None = None,
        learner: LearnedPrior | None = None,
        features: ContextFeatures | None = None,
        heed: float = 1.0,
        same_cut: bool = False,
        num: int = 100,
        seed: int | None = None,
    ) -> None:
        super().__init__(arms, depths, budget=budget, calibration=calibration, num=num, explore=explore, seed=seed)
        self.features = features or ContextFeatures(())
        query, each = pool_names(arms, num)
        columns = tuple(f.name for f in (*self.features.columns, *query)), tuple(f.name for f in each)
        if learner is not None and learner.columns[1]:
            check_learned("policy.model", learner, columns, arms, depths, arms_of(learner.columns[1]))
            self._calibration = self._calibration if calibration is not None else learner.calibration
        elif learner is not None:
            learner.columns = columns
        self._arms = arms
        self._learner, self._columns, self._pairs, self._lesson = learner, columns, ShownPairs(), _FIRST_LESSON
        self._coupling, self._usual_share = coupling, None if explore is None else explore.share
        self._calibrates, self._kept, self._refit = calibration is None, 0, _FIRST_FIT
        self._shown: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []  # pages, for the calibration
        if evidence is None:
            evidence = Tally() if corpus is None else CorpusEvidence(corpus)
        self._evidence = evidence
        foretelling = offers(evidence, Foretelling)
        self._foretelling = foretelling if foretelling is not None and foretelling.foretells else None
        self._heaviest = heed
        self.weights = np.minimum([1.0, *_USUAL, *[_FORETOLD] * (self._foretelling is not None)], heed)
        self._squares = np.ones(len(self.weights))  # of gradients
        self._looked_at: OrderedDict[bytes, np.ndarray] = OrderedDict()  # what was seen -> features as logged
        self._read: OrderedDict[bytes, _Read] = OrderedDict()  # features as logged -> what the network made of them
        self._recent: OrderedDict[tuple[str, str], _Said] = OrderedDict()
        self._waiting: OrderedDict[str, _Page] = OrderedDict()
        self._now = 0  # time of the latest event
        self._estimates, self._due, self._same_cut = eta is None, _FIRST_FIT, same_cut
        if levels is None:
            levels = _UNJUDGED if calibration is None else ((1.0, 1.0),)
        self._start = usual_looks(1.0 if eta is None else eta, levels=levels)
        self.looks = self._start

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """What candidates add to expected recall, in order of the gain that is expected of them."""
        odds, gain, real = self.odds(queries, pool, features)
        worth = by_value(np.where(real, expit(odds) * gain, -np.inf))
        if self._same_cut:
            by_rank = 1 / np.arange(1, worth.worth.shape[1] + 1)
            worth = worth._replace(worth=np.where(worth.worth > -np.inf, by_rank, -np.inf))
        return worth

    def odds(
        self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(Q, M) log odds of being wanted, (Q, M) gains if they are, and (Q, M) bool: which candidates are none."""
        calibrated, real = self.prior(pool)
        network, inputs = self._corrected(queries, pool, features, calibrated)
        prior = self._adjusted(queries, pool, calibrated + network)
        said, gain = self._said(queries, pool)
        scores = pool.scores[:, : self._num, -1]
        for q, query in enumerate(queries):
            read = None if inputs is None else inputs[q]
            docs = pool.docs[q, : self._num]
            made_of = _Said(docs, prior[q], network[q], read, said[q], gain[q], scores[q])
            self._keep_latest(self._recent, (normalised(query.text), query.context.customer or ""), made_of)
        return self._coupled(prior, said @ self.weights, real), gain, real

    def _adjusted(self, queries: Sequence[Query], pool: Pool, prior: np.ndarray) -> np.ndarray:
        """(Q, M) log odds before evidence; a subclass may know better than the scores of what ran."""
        return prior

    def _corrected(
        self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None, calibrated: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(Q, M) log odds that the network adds, and (Q, M, I) what it read; features as in `decide`, or as logged."""
        if self._learner is None:
            return np.zeros_like(calibrated), None
        logged = self._logged(queries, self.features(queries) if features is None else features, pool)
        key, by = logged.tobytes(), (self._learner, self._calibration)
        if (known := self._read.get(key)) is not None and known.by == by:
            return known.added, known.inputs
        width = len(self._columns[0])
        candidates = logged[:, width:].reshape(len(logged), self._num, -1)[:, : calibrated.shape[1]]
        inputs = self._learner.inputs(RetrievalFeatures(logged[:, :width], candidates))
        added = self._learner.correction(inputs, calibrated)
        if len(queries) == 1:
            self._keep_latest(self._read, key, _Read(by, inputs, added))
        return added, inputs

    def _logged(self, queries: Sequence[Query], features: np.ndarray, pool: Pool) -> np.ndarray:
        """(Q, F + M · C) features as they are logged; those of before retrieval (Q, F) get the pool's.

        A query that recurs mostly finds what it found before: its latest features are kept.
        """
        if features.shape[1] > len(self.features.columns):
            return features
        key = features.tobytes() + pool.scores.tobytes() if len(queries) == 1 else b""
        if (known := self._looked_at.get(key)) is not None:
            return known
        seen = pool_features(of_arms(pool, self._arms), self._num)
        logged = np.concatenate([features, seen.query, seen.candidates.reshape(len(features), -1)], axis=1)
        if key:
            self._keep_latest(self._looked_at, key, logged)
        return logged

    def _keep_latest(self, kept: OrderedDict[Any, Any], key: Any, value: Any, most: int = _RECENT) -> None:
        with self._lock:  # a service decides in many threads
            kept[key] = value
            kept.move_to_end(key)
            if len(kept) > most:
                kept.popitem(last=False)

    def revise(self, queries: Sequence[Query], features: np.ndarray, pool: Pool, decision: Decision) -> Revised:
        """Orders and cuts; with a network, all that it looked at is to be logged."""
        logged = features if self._learner is None else self._logged(queries, features, pool)
        return super().revise(queries, logged, pool, decision)

    def _coupled(self, prior: np.ndarray, evidence: np.ndarray, real: np.ndarray) -> np.ndarray:
        """(Q, M) log odds with evidence, which tells of a query's other candidates, too (mean field)."""
        odds = prior + evidence
        if self._coupling and evidence.any():
            before = np.where(real, expit(prior), 0.0)
            surprise = np.zeros_like(before)
            for _ in range(_STEPS):
                surprise = (surprise + np.where(real, expit(odds), 0.0) - before) / 2
                odds = prior + evidence + self._coupling * (surprise.sum(axis=1, keepdims=True) - surprise)
        return odds

    def calibrate(self, pool: Pool, gains: np.ndarray) -> dict[str, Any]:
        """Constructor arguments from judged queries: a pool in fused order, and gains (Q, K) in [0, 1]."""
        scores, real = fused_scores(pool, self._num)
        gains = gains[:, : self._num]
        wanted = (real & (gains > 0)).astype(np.float64)
        weights = fit(scores, real, wanted)
        coupling = fit_coupling(log_odds(scores, weights), real, wanted)
        return {"calibration": weights, "levels": levels_of(gains[wanted > 0]), "coupling": coupling}

    def _said(self, queries: Sequence[Query], pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """(Q, M, W) log odds from what was shown for the query itself, and for each group of queries like it.

        The last is what generated queries foretell, where the evidence has any.

        With (Q, M) the gain that is expected of each candidate if it is wanted.
        """
        docs = pool.docs[:, : self._num]
        own, gain = self.looks.read(self._evidence.weigh(queries, docs, self.looks.log_ratios()))
        near = self._evidence.near(queries, docs, self.looks.usual_ratios())
        said = [np.clip(own, -_CERTAIN, _CERTAIN)[:, :, None], near]
        if self._foretelling is not None:
            said.append(self._foretelling.foretold(queries, docs)[:, :, None])
        return np.concatenate(said, axis=2), gain

    def explain(self, query: Query, pool: Pool) -> dict[str, np.ndarray]:
        """What is believed of each candidate, in the belief's order, (M,) each; log odds add up to `odds`.

        `row`: of the corpus; `prior` (the calibration), `network`, `own shows`, `queries alike`, `generated
        queries` (where there are any), `found elsewhere`: log odds; `wanted`: probability; `gain`: if it is wanted;
        `worth`: what it adds to expected recall; `ranked`: whether that is worth the price.
        """
        prior, real = self.prior(pool)
        network = self._corrected([query], pool, None, prior)[0]
        said = self._said([query], pool)[0][0] * self.weights
        odds, gain, _ = self.odds([query], pool)
        worth, order, _ = by_value(np.where(real, expit(odds) * gain, -np.inf))
        assert order is not None
        shown = order[0, : int(real.sum())]
        own, alike, foretold = said[:, 0], said[:, 1 : 1 + GROUPS].sum(axis=1), said[:, 1 + GROUPS :].sum(axis=1)
        columns = {"row": pool.docs[0, : self._num], "prior": prior[0], "network": network[0]}
        columns |= {
            "own shows": own,
            "queries alike": alike,
            **({"generated queries": foretold} if self._foretelling is not None else {}),
            "found elsewhere": odds[0] - prior[0] - network[0] - own - alike - foretold,
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
        own, *near = self.weights[: 1 + GROUPS].round(3).tolist()
        return {
            "own evidence counts": own,
            "queries alike count": dict(zip([f"from {least:g}" for least in ALIKE], near, strict=True)),
            **({"generated queries count": round(self.weights[-1], 3)} if self._foretelling is not None else {}),
            "looked at, by place": self.looks.examined[:RANGES].round(3).tolist(),
            "looked at below a click": self.looks.examined[RANGES:].round(3).tolist(),
            "attraction": round(self.looks.attraction, 3),
            "noise": round(self.looks.noise, 3),
            "gain and share of each level": self.looks.levels.round(3).tolist(),
            "pairs that teach the neural prior": len(self._pairs) if self._learner is not None else None,
            "candidates shown": int(self._evidence.shown),
            "fallen back to the prior": self._fallen(),
        }

    def _fallen(self) -> str | None:
        """Why evidence counts for nothing; None where it counts."""
        if self.weights[0] >= _FALLEN:
            return None
        if not self._heaviest:
            return "heed is 0: evidence is not to count"
        return f"clicks were foretold no better with a query's own evidence: its weight fell to {self.weights[0]:.2f}"

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
            page = self._waiting.popitem(last=False)[1]
            if self._evidence.trusts(page.impression.customer):
                self._weigh(page)

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
        read = columns(np.nan_to_num(said.scores)[None])[0, place]
        if self._calibrates:
            self._keep(read, said.network[place] + features @ self.weights, clicks, cells)
        inputs = np.zeros((len(place), 0)) if said.inputs is None else said.inputs[place]
        self._pairs.add(page.impression.query, rows[known], inputs, read)
        p = expit(said.prior[place] + features @ self.weights)
        liking = (looks.attraction - looks.noise) * said.gain[place]  # beyond noise
        rise = liking * p * (1 - p)  # of the click rate, if looked at, by log odds
        rate = looks.noise + liking * p
        examined = looks.examined[cells]
        gradient = np.where(clicks, rise / rate, -examined * rise / (1 - examined * rate)) @ features
        self._squares += gradient**2
        self.weights = np.clip(self.weights + _STEP * gradient / np.sqrt(self._squares), 0.0, self._heaviest)

    def _keep(self, x: np.ndarray, offset: np.ndarray, clicks: np.ndarray, cells: np.ndarray) -> None:
        """Keeps what was shown, from which the calibration is fitted now and then where nothing is judged."""
        self._shown.append((x, offset, clicks, cells))
        self._kept += len(clicks)
        if self._kept < self._refit:
            return
        self._refit = int(self._kept * _GROWTH)
        self._shown = self._shown[-_FITTED:]
        x, offset, clicks, cells = (np.concatenate(column) for column in zip(*self._shown, strict=True))
        looks = self.looks
        if 0 < clicks.sum() < len(clicks):
            self._calibration = tuple(fit_clicks(x, offset, clicks, looks.examined[cells], looks.usual(), looks.noise))

    def _teach(self) -> None:
        """The network goes on learning from all pairs that were shown and are remembered; decisions go on meanwhile."""

        heed = self.weights[0] if self._heaviest else 1.0

        def said(text: str, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
            own, _ = self.looks.read(self._evidence.weigh([Query("", text)], rows[None], self.looks.log_ratios()))
            prior, evidence = (x @ self._calibration)[None], np.clip(own, -_CERTAIN, _CERTAIN) * heed
            return np.clip(self._coupled(prior, evidence, np.ones(prior.shape, bool)) - prior, -_CERTAIN, _CERTAIN)[0]

        inputs, x, evidence = self._pairs.with_evidence(said)
        if len(evidence):
            learner = deepcopy(self._learner)
            assert learner is not None
            learner.learn(inputs, x @ self._calibration, evidence)
            self._learner = learner

    def learned(self) -> None:
        """Estimates again how customers look, once half as many more candidates were shown as at the last estimate.

        The network learns whenever they have doubled.
        """
        if self._estimates and self._evidence.shown >= self._due:
            self._due = int(self._evidence.shown * _GROWTH)
            shown = self._evidence.shows()
            prior = self._pairs.priors(shown, self._calibration)
            self.looks = fit_looks(shown, self._start, prior=prior)
            if (
                self._usual_share is not None and self._explore is not None
            ):  # clicks that say little are not worth exploring for
                tells = min(1.0, float(self.looks.usual_ratios()[0]) / _TELLING)
                self._explore = replace(self._explore, share=self._usual_share * tells)
        if self._learner is not None and self._evidence.shown >= self._lesson:
            self._lesson = 2 * int(self._evidence.shown)
            self._teach()


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
