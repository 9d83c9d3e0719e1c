"""The belief: for every candidate of a query, how likely it is what customers want, from its scores and their clicks.

The prior is the calibration of the fused score. Every show adds to the log odds what it says under the present belief
about how customers look (`ltrr.feedback.evidence.cells`), which is estimated from the same shows and never given. The
order, the cut at a price and the explanation read the same numbers.
Knows calibrations and evidence; does not know arms, customers or events.
Legend: Q queries, M candidates that are looked at, B cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from ltrr.data.beir import Corpus
from ltrr.feedback.evidence.cells import Looks, ShowEvidence, fit_looks, usual_looks
from ltrr.feedback.evidence.evidence import Evidence
from ltrr.feedback.evidence.tally import Tally
from ltrr.policies.calibration import fit, fit_coupling, log_odds
from ltrr.policies.rules import Calibrated, by_value
from ltrr.policies.worth import ReservedPlace, fused_scores
from ltrr.types import ActionRow, ImpressionRow, Pool, Query, Worth

_FIRST_FIT = 1_000  # shows of candidates before looks are estimated; again whenever there are half as many more
_GROWTH = 1.5
_STEPS = 4


class Belief(Calibrated):
    """Ranks the candidates that add enough to the recall that is expected, by all that is known of this query.

    Args:
        calibration: of the prior, 4 weights; null = fitted on judged queries.
        coupling: what one more relevant candidate than expected adds to the log odds of all others of its query.
        explore: one candidate below the cut; None = nothing is explored.
        looks: how customers look; None = estimated, starting at 1 / rank.
        evidence: shows and clicks; None = what customers of this corpus do, under the rules of trust.
        corpus: gives each entity its row; None = evidence without trust, for simulations.
        distinct: customers who have to agree before others see what they taught, for success as for failure.
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
        coupling: float = 0.0,
        explore: ReservedPlace | None = ReservedPlace(),  # noqa: B008
        looks: Looks | None = None,
        evidence: ShowEvidence | None = None,
        corpus: Corpus | None = None,
        distinct: int = 3,
        num: int = 100,
        seed: int | None = None,
    ) -> None:
        super().__init__(arms, depths, budget=budget, calibration=calibration, num=num, explore=explore, seed=seed)
        self._coupling = coupling
        self._evidence = _evidence(corpus, distinct) if evidence is None else evidence
        self._estimates, self._due = looks is None, _FIRST_FIT
        self.looks = looks or usual_looks()
        self._ratios = self.looks.log_ratios()[None]

    def worth(self, queries: Sequence[Query], pool: Pool) -> Worth:
        """What candidates add to expected recall, in order of P(wanted)."""
        odds, real = self.odds(queries, pool)
        return by_value(np.where(real, expit(odds), -np.inf))

    def odds(self, queries: Sequence[Query], pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """(Q, M) log odds of being wanted, and (Q, M) bool: which candidates are none."""
        prior, real = self.prior(pool)
        evidence = self._evidence.weigh(queries, pool.docs[:, : self._num], self._ratios)[:, :, 0]
        odds = prior + evidence
        if self._coupling and evidence.any():
            before = np.where(real, expit(prior), 0.0)
            surprise = np.zeros_like(before)
            for _ in range(_STEPS):  # what is found tells of all others, by mean field
                surprise = (surprise + np.where(real, expit(odds), 0.0) - before) / 2
                odds = prior + evidence + self._coupling * (surprise.sum(axis=1, keepdims=True) - surprise)
        return odds, real

    def calibrate(self, pool: Pool, gains: np.ndarray) -> dict[str, Any]:
        """Constructor arguments from judged queries: a pool in fused order, and gains (Q, K) in [0, 1]."""
        scores, real = fused_scores(pool, self._num)
        gains = gains[:, : self._num]
        weights = fit(scores, real, gains)
        return {"calibration": weights, "coupling": fit_coupling(log_odds(scores, weights), real, gains)}

    # -- learning

    def online(self, store: Any, policy: str) -> Taught:
        """What a loop feeds."""
        return Taught(self, self._evidence)

    def learned(self) -> None:
        """Estimates anew how customers look, where enough was shown since the last time."""
        if self._estimates and self._evidence.shown >= self._due:
            self._due = int(self._evidence.shown * _GROWTH)
            self.looks = fit_looks(self._evidence.shows(), usual_looks())
            self._ratios = self.looks.log_ratios()[None]


class Taught:
    """Feeds a belief's evidence (the protocol `Learning`); methods beside `take` need evidence that knows customers."""

    def __init__(self, belief: Belief, evidence: Any) -> None:
        self._belief, self._evidence = belief, evidence

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None:
        """Learns from the rows of an event store; now and then how customers look is estimated anew."""
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
        """Writes all evidence to one file without objects."""
        self._evidence.save(path)

    def load(self, path: Path) -> None:
        """Continues from what `save` wrote."""
        self._evidence.load(path)
        self._belief.learned()


def _evidence(corpus: Corpus | None, distinct: int) -> ShowEvidence:
    if corpus is None:
        return Tally()
    rows = {entity: row for row, entity in enumerate(corpus.ids)}
    return Evidence(rows, (), distinct=distinct, neighbours=0, cells=True)
