"""The whole flow, top to bottom: query -> features -> decision -> arms -> union -> cut -> ranker -> page.

Knows the order of the steps and nothing about how any of them works: arms, policy, fused order, ranker and features are
injected. Legend: Q queries, K candidates, A arms, F context features.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ltrr.core import Arm, Candidates, Decision, Page, Policy, Query, Ranker
from ltrr.fuse import take, union


def no_features(queries: Sequence[Query]) -> np.ndarray:
    """(Q, 0), for policies that look at nothing."""
    return np.zeros((len(queries), 0), np.float32)


class Funnel:
    """Answers queries.

    Args:
        arms: name -> candidate generator, in the order that decisions and pools use.
        policy: decides each arm's depth and how many candidates are ranked.
        order: orders the union, of which the decision's `cut` best go on.
        ranker: orders those for the page; None = they stay in fused order.
        features: queries -> (Q, F) for the policy.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        policy: Policy,
        order: Ranker,
        ranker: Ranker | None = None,
        features: Callable[[Sequence[Query]], np.ndarray] = no_features,
    ):
        self.arms = dict(arms)
        self.policy = policy
        self._order, self._ranker, self._features = order, ranker, features

    def search(self, queries: Sequence[Query], k: int) -> Page:
        """The page of each query, k candidates deep. `queries` must not be empty."""
        # 1) What is known before retrieval.
        features = self._features(queries)  # (Q, F)

        # 2) Which arms run, how deep, and how many candidates are ranked.
        decision = self.policy.decide(features)

        # 3) Ask the arms that are on, only for the queries for which they are.
        drawn = {
            name: self._draw(arm, queries, decision.depths[:, a]) for a, (name, arm) in enumerate(self.arms.items())
        }

        # 4) Their union in fused order, cut.
        pool = union(drawn)
        fused = self._order.rank(queries, pool).cut(decision.cut)
        pool = take(pool, fused)

        # 5) Rank what is left, and show the best.
        ranked = self._ranker.rank(queries, pool) if self._ranker else fused
        shown = ranked.first(k)
        return self._page(queries, features, decision, take(pool, shown).ranks, shown)

    @staticmethod
    def _draw(arm: Arm, queries: Sequence[Query], depths: np.ndarray) -> Candidates:
        """One arm's candidates, (Q, deepest); rows of queries for which it is off are padding."""
        deepest = int(depths.max())
        on = np.flatnonzero(depths)
        out = Candidates.empty(len(queries), deepest)
        if len(on):
            found = arm.search([queries[i] for i in on.tolist()], deepest).cut(depths[on])
            out.docs[on], out.scores[on] = found
        return out

    def _page(
        self, queries: Sequence[Query], features: np.ndarray, decision: Decision, ranks: np.ndarray, shown: Candidates
    ) -> Page:
        impressions = [str(uuid.uuid4()) for _ in queries]
        return Page(impressions, queries, features, decision, shown, tuple(self.arms), ranks)
