"""What shops do, tuned: a candidate's score is raised by its own click rate for this very query.

Knows scores and counts of shows and clicks; does not know probabilities of relevance. The baseline that a policy which
learns from clicks has to beat. Legend: Q queries, M candidates that are looked at, B cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltrr.feedback.evidence.cells import Looks, ShowEvidence, usual_looks
from ltrr.feedback.evidence.tally import Tally
from ltrr.policies.worth import ReservedPlace, WorthPolicy, fused_scores, range_scaled
from ltrr.types import Pool, Query, Worth


class ClickBoost(WorthPolicy):
    """Keeps candidates whose range-scaled score and smoothed click rate together are at least the price.

    value = scaled + weight · (strength · usual · scaled + clicks − noise · looks) / (strength + looks)

    Args:
        weight: of the click rate, ≥ 0. strength: looks that the usual rate counts as, above 0.
        usual: click rate of a query's best candidate before anything was clicked.
        looks: how customers look at a page and how often they click on what they do not want.
        evidence: shows and clicks; None = none yet.
        explore: one candidate below the cut; None = nothing is explored.
        num: M. seed: of what is explored.
    """

    name = "click boost"

    def __init__(
        self,
        arms: Sequence[str],
        depths: Mapping[str, int],
        *,
        budget: float,
        weight: float = 20.0,
        strength: float = 2.0,
        usual: float = 0.6,
        looks: Looks | None = None,
        evidence: ShowEvidence | None = None,
        explore: ReservedPlace | None = ReservedPlace(),  # noqa: B008
        num: int = 100,
        seed: int | None = None,
    ) -> None:
        for name, value, good in (("weight", weight, weight >= 0), ("strength", strength, strength > 0)):
            if not good:
                raise ValueError(f"policy.{name}: {value} is too low")
        super().__init__(arms, depths, budget=budget, num=num, explore=explore, seed=seed)
        self._weight, self._strength, self._usual = weight, strength, usual
        self._looks, self._evidence = looks or usual_looks(), Tally() if evidence is None else evidence

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """The boosted score, in its own order."""
        scores, real = fused_scores(pool, self._num)
        scaled, looks = range_scaled(scores, real), self._looks.examined
        weights = np.stack([np.append(1.0, 0 * looks), np.append(1.0, looks)])
        clicks, looks = np.moveaxis(self._evidence.weigh(queries, pool.docs[:, : self._num], weights), 2, 0)
        wanted = np.maximum(clicks - self._looks.noise * looks, 0.0)
        rate = (self._strength * self._usual * scaled + wanted) / (self._strength + looks)
        values = np.where(real, scaled + self._weight * rate, -np.inf)
        order = np.argsort(-values, axis=1, kind="stable")
        values = np.take_along_axis(values, order, 1)
        return Worth(values, order, values)

    def online(self, store: Any, policy: str) -> Any:
        """What a loop feeds: the evidence."""
        return self._evidence
