"""The belief: for every candidate of a query, how likely it is what customers want, from its scores and their clicks.

The prior is the calibration of the fused score. Every show adds to the log odds what it says under the present belief
about how customers look (`ltrr.feedback.evidence.cells`), which is estimated from the same shows and never given. The
order, the cut at a price and the explanation read the same numbers.
Knows calibrations and evidence; does not know arms, customers or events.
Legend: Q queries, M candidates that are looked at, B cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from ltrr.feedback.evidence.cells import Looks, fit_looks, usual_looks
from ltrr.feedback.evidence.tally import Tally
from ltrr.policies.rules import Calibrated, by_value
from ltrr.policies.worth import ReservedPlace
from ltrr.types import ActionRow, ImpressionRow, Pool, Query, Worth

_FIRST_FIT = 1_000  # shows of candidates before looks are estimated; again whenever there are half as many more
_GROWTH = 1.5


class Belief(Calibrated):
    """Ranks the candidates that add enough to the recall that is expected, by all that is known of this query.

    Args:
        calibration: of the prior, 4 weights; null = fitted on judged queries.
        explore: one candidate below the cut; None = nothing is explored.
        looks: how customers look; None = estimated, starting at 1 / rank.
        evidence: shows and clicks; None = none yet.
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
        explore: ReservedPlace | None = ReservedPlace(),  # noqa: B008
        looks: Looks | None = None,
        evidence: Tally | None = None,
        num: int = 100,
        seed: int | None = None,
    ) -> None:
        super().__init__(arms, depths, budget=budget, calibration=calibration, num=num, explore=explore, seed=seed)
        self._evidence = Tally() if evidence is None else evidence
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
        return prior + self._evidence.weigh(queries, pool.docs[:, : self._num], self._ratios)[:, :, 0], real

    # -- learning

    def online(self, store: Any, policy: str) -> Belief:
        """What a loop feeds."""
        return self

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None:
        """Learns from the rows of an event store; now and then how customers look is estimated anew."""
        self._evidence.take(impressions, actions)
        if self._estimates and self._evidence.shows >= self._due:
            self._due = int(self._evidence.shows * _GROWTH)
            self.looks = fit_looks(self._evidence.pairs(), usual_looks())
            self._ratios = self.looks.log_ratios()[None]
