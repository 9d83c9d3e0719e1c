"""The whole flow, top to bottom: query -> features -> decision -> arms -> union -> cut -> ranker -> page.

Knows the order of the steps; does not know how any of them works: arms, policy, fused order and ranker are injected.
Legend: Q queries, K candidates, A arms, F context features.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ltrr.fusion import take, union
from ltrr.protocols import AfterRetrieval, Arm, Featured, Mixing, Policy, Ranker, offers
from ltrr.types import Candidates, Decision, Page, Pool, Query

FUSED = "fused"  # the name of a pool's last column, which holds the fused order beside the arms


class Retrieved(NamedTuple):
    """What retrieval brought, before the ranker."""

    features: np.ndarray  # (Q, F) all that the policy looked at
    decision: Decision
    union: Pool  # all candidates of the arms that ran, in no order
    pool: Pool  # the cut of the union in fused order; the arms and FUSED
    fused: Candidates  # (Q, K) the same candidates with their fused scores


class FusedOrder:
    """A Ranker that keeps the fused order of a pool. Fusing a cut pool again would scale its scores differently."""

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
    """

    def __init__(self, arms: Mapping[str, Arm], policy: Policy, order: Ranker, ranker: Ranker | None = None):
        self.arms = dict(arms)
        self.policy = policy
        self._order, self._ranker = order, ranker
        self._featured, self._after = offers(policy, Featured), offers(policy, AfterRetrieval)

    def search(self, queries: Sequence[Query], k: int) -> Page:
        """The page of each query, k candidates deep. `queries` must not be empty."""
        retrieved = self.draw(queries)
        return self._page(queries, retrieved, self.rank(queries, retrieved).first(k), k)

    def draw(self, queries: Sequence[Query]) -> Retrieved:
        """The candidates that are ranked, in fused order."""
        # 1) What the policy looks at before retrieval.
        none = np.zeros((len(queries), 0), np.float32)
        features = none if self._featured is None else self._featured.features(queries)  # (Q, F)

        # 2) Which arms run, how deep, and how many candidates are ranked.
        decision = self.policy.decide(queries, features)

        # 3) Ask the arms that are on, only for the queries for which they are.
        answers = {name: _ask(arm, queries, decision.depths[:, a]) for a, (name, arm) in enumerate(self.arms.items())}

        # 4) Their union in fused order.
        pool = union(answers)
        fused = self._order.rank(queries, pool)

        # 5) A policy that looks at it may decide the cut anew, and order the candidates itself.
        if self._after is not None:
            features, decision, own = self._after.revise(queries, features, in_order(pool, fused), decision)
            fused = fused if own is None else own

        # 6) The cut.
        fused = fused.cut(decision.cut)
        return Retrieved(features, decision, pool, in_order(pool, fused), fused)

    def rank(self, queries: Sequence[Query], retrieved: Retrieved) -> Candidates:
        """7) Retrieved candidates in the ranker's order, (Q, K); its first candidates are the page."""
        return self._ranker.rank(queries, retrieved.pool) if self._ranker else retrieved.fused

    def rank_stages(self, queries: Sequence[Query], retrieved: Retrieved, /) -> Sequence[Candidates | None]:
        """For evaluation, (Q, K) each: unranked; by the ranker's own scores, where it mixes the two; as served."""
        if self._ranker is None:
            return None, None, retrieved.fused
        mixing = offers(self._ranker, Mixing)
        if mixing is None:
            return retrieved.fused, None, self.rank(queries, retrieved)
        whole, alone = mixing.rank_and_alone(queries, retrieved.pool)
        return retrieved.fused, alone, whole

    def _page(self, queries: Sequence[Query], retrieved: Retrieved, shown: Candidates, k: int) -> Page:
        """8) The page, with the explored candidate, where there is one, at its reserved place."""
        shown, decision = reserve(shown, retrieved.decision, k)
        impressions = [str(uuid.uuid4()) for _ in queries]
        ranks = take(retrieved.union, shown).ranks
        return Page(impressions, queries, retrieved.features, decision, shown, tuple(self.arms), ranks)


def _ask(arm: Arm, queries: Sequence[Query], depths: np.ndarray) -> Candidates:
    """One arm's candidates, (Q, deepest); rows of queries for which it is off are padding."""
    deepest = int(depths.max())
    if (depths == deepest).all() and deepest:
        return arm.search(queries, deepest)
    on = np.flatnonzero(depths)
    out = Candidates.empty(len(queries), deepest)
    if len(on):
        out.docs[on], out.scores[on] = arm.search([queries[i] for i in on.tolist()], deepest).cut(depths[on])
    return out


def in_order(pool: Pool, fused: Candidates) -> Pool:
    """A pool's candidates in fused order, which becomes its last column."""
    pool = take(pool, fused)
    real = pool.docs >= 0
    ranks = np.where(real, np.arange(pool.docs.shape[1], dtype=np.float32), np.nan)[:, :, None]
    scores = np.where(real, fused.scores, np.nan)[:, :, None]
    joined = [np.concatenate(pair, axis=2) for pair in ((pool.ranks, ranks), (pool.scores, scores))]
    return Pool((*pool.arms, FUSED), pool.docs, *joined)


def reserve(shown: Candidates, decision: Decision, k: int) -> tuple[Candidates, Decision]:
    """The page with each query's explored candidate at its place, and the decision with the place that it got.

    Others keep their order, and those beyond the k-th leave the page. A page that is too short shows the explored
    candidate last. It takes the score of the candidate that it displaces, or of the last one, so scores stay sorted;
    alone on its page it has 0.

    shown (Q, K), K ≤ k; returns (Q, up to k).
    """
    if decision.explored is None or not (decision.explored >= 0).any():
        return shown, decision
    if decision.explored_place is None:
        raise ValueError("policy: explores candidates without `explored_place`; give the place of each on its page")
    explored, explores = decision.explored, np.flatnonzero(decision.explored >= 0)
    others = (shown.docs >= 0) & (shown.docs != explored[:, None])  # (Q, K)
    place = np.full(len(explored), -1, np.int32)
    place[explores] = np.minimum(decision.explored_place, np.minimum(others.sum(axis=1), k - 1))[explores]
    # 1) The others in their order; those from the explored candidate's place on move back by one.
    width = others.shape[1]
    order = np.pad(np.argsort(~others, axis=1, kind="stable"), [(0, 0), (0, 1)], constant_values=width)
    position = np.arange(min(width + 1, k))
    source = np.take_along_axis(order, position - ((place >= 0)[:, None] & (position > place[:, None])), 1)
    docs, scores = (
        np.take_along_axis(np.pad(np.where(others, part, pad), [(0, 0), (0, 1)], constant_values=pad), source, 1)
        for part, pad in ((shown.docs, -1), (shown.scores, -np.inf))
    )
    # 2) The explored candidate.
    at = place[explores]
    displaced, before = scores[explores, at], np.where(at > 0, scores[explores, at - 1], 0.0)
    scores[explores, at] = np.where(docs[explores, at] >= 0, displaced, before)
    docs[explores, at] = explored[explores]
    return Candidates(docs, scores), decision._replace(explored_place=place)
