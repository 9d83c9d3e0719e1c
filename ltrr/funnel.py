"""The whole flow, top to bottom: query -> features -> decision -> arms -> union -> cut -> ranker -> page.

Knows the order of the steps and nothing about how any of them works: arms, policy, fused order, ranker and features are
injected. Legend: Q queries, K candidates, A arms, F context features.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ltrr.fusion import take, union
from ltrr.protocols import AfterRetrieval, Arm, Policy, Ranker
from ltrr.types import Candidates, Decision, Page, Pool, Query

FUSED = "fused"  # the pool that is ranked says so of the fused order, as of an arm: its last column


def no_features(queries: Sequence[Query]) -> np.ndarray:
    """(Q, 0), for policies that look at nothing."""
    return np.zeros((len(queries), 0), np.float32)


class Retrieved(NamedTuple):
    """What retrieval brought, before the ranker."""

    features: np.ndarray  # (Q, F)
    decision: Decision
    pool: Pool  # the cut of the union in fused order; arms and FUSED
    fused: Candidates  # (Q, K) the same candidates with their fused scores


class FusedOrder:
    """A Ranker of what was drawn: the order it has. Fusing a cut pool again would scale its scores differently."""

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        """(Q, K) all of the pool."""
        return Candidates(pool.docs, np.where(pool.docs >= 0, pool.scores[:, :, -1], -np.inf))


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
        drawn = self.draw(queries)
        return self._page(queries, drawn, self.rank(queries, drawn).first(k))

    def draw(self, queries: Sequence[Query]) -> Retrieved:
        """The candidates that are ranked, in fused order."""
        # 1) What is known before retrieval.
        features = self._features(queries)  # (Q, F)

        # 2) Which arms run, how deep, and how many candidates are ranked.
        decision = self.policy.decide(features)

        # 3) Ask the arms that are on, only for the queries for which they are.
        found = {
            name: self._ask(arm, queries, decision.depths[:, a]) for a, (name, arm) in enumerate(self.arms.items())
        }

        # 4) Their union in fused order. A policy that looks at it may decide the cut anew.
        pool = union(found)
        fused = self._order.rank(queries, pool)
        if isinstance(self.policy, AfterRetrieval):
            features, decision = self.policy.revise(features, in_order(pool, fused), decision)

        # 5) The cut.
        fused = fused.cut(decision.cut)
        return Retrieved(features, decision, in_order(pool, fused), fused)

    def rank(self, queries: Sequence[Query], drawn: Retrieved) -> Candidates:
        """6) What was drawn in the ranker's order, (Q, K); its first candidates are the page."""
        return self._ranker.rank(queries, drawn.pool) if self._ranker else drawn.fused

    def rank_stages(self, queries: Sequence[Query], drawn: Retrieved) -> Sequence[Candidates | None]:
        """For evaluation, (Q, K) each: unranked; the ranker's own order, where it mixes the two; what is served."""
        if self._ranker is None:
            return None, None, drawn.fused
        mixed = getattr(self._ranker, "rank_and_alone", None)
        if mixed is None:
            return drawn.fused, None, self.rank(queries, drawn)
        whole, alone = mixed(queries, drawn.pool)
        return drawn.fused, alone, whole

    @staticmethod
    def _ask(arm: Arm, queries: Sequence[Query], depths: np.ndarray) -> Candidates:
        """One arm's candidates, (Q, deepest); rows of queries for which it is off are padding."""
        deepest = int(depths.max())
        on = np.flatnonzero(depths)
        out = Candidates.empty(len(queries), deepest)
        if len(on):
            found = arm.search([queries[i] for i in on.tolist()], deepest).cut(depths[on])
            out.docs[on], out.scores[on] = found
        return out

    def _page(self, queries: Sequence[Query], drawn: Retrieved, shown: Candidates) -> Page:
        impressions = [str(uuid.uuid4()) for _ in queries]
        ranks = take(drawn.pool, shown).ranks[:, :, :-1]  # arms alone
        return Page(impressions, queries, drawn.features, drawn.decision, shown, tuple(self.arms), ranks)


def in_order(pool: Pool, fused: Candidates) -> Pool:
    """A pool's candidates in fused order, which becomes its last column."""
    pool = take(pool, fused)
    real = pool.docs >= 0
    ranks = np.where(real, np.arange(pool.docs.shape[1], dtype=np.float32), np.nan)[:, :, None]
    scores = np.where(real, fused.scores, np.nan)[:, :, None]
    joined = [np.concatenate(pair, axis=2) for pair in ((pool.ranks, ranks), (pool.scores, scores))]
    return Pool((*pool.arms, FUSED), pool.docs, *joined)
