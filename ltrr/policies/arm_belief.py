"""A belief that also decides, before retrieval, which arms a query needs.

Knows what all arms returned the last time that they all ran for a query, and what the belief makes of it now; does not
know how arms search. Candidates and arms are paid from one budget, at one price.
Legend: Q queries, A arms, S sets of arms, M candidates that are looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple, Self

import numpy as np
from scipy.special import expit

from ltrr.data.beir import Corpus
from ltrr.feedback.events import normalised
from ltrr.feedback.evidence.cells import ShowEvidence
from ltrr.policies.belief import Belief
from ltrr.policies.features import ContextFeatures, of_arms
from ltrr.policies.price import least_price
from ltrr.policies.rules import by_value
from ltrr.policies.worth import ReservedPlace
from ltrr.protocols import LearnedPrior, Policy
from ltrr.types import Decision, Pool, Query, Revised

_REMEMBERED = 20_000  # queries
_MOST_ARMS = 8  # all sets of arms are listed


class _Brought(NamedTuple):
    """What all arms brought for a query."""

    docs: np.ndarray  # (M,) corpus rows
    by: np.ndarray  # (M, A) bool: which arms returned each
    prior: np.ndarray  # (M,) log odds


class ArmBelief(Belief):
    """Runs the set of arms with the most expected recall above its cost, then orders and cuts like `Belief`.

    A set is worth the candidates that it returns and the belief would rank, of those that all arms brought the last
    time they all ran for this query. A query for which they never all ran gets all arms, because their agreement says
    most of what is known of it. Candidates and arms must be worth the same price, which keeps their mean cost at the
    budget. Further arguments are those of `Belief`.

    Args:
        costs: arm -> cost of running it, in candidates that could be ranked for it; 1 where it is not named.
        budget: mean cost of a query: candidates, explored ones among them, and arms.
        shadow: share of queries for which all arms run.

    Errors: ValueError names an arm that is not there, a cost below 0, a share that is none, or more than 8 arms.
    """

    name = "arm belief"

    def __init__(
        self,
        arms: Sequence[str],
        depths: Mapping[str, int],
        *,
        budget: float,
        costs: Mapping[str, float] | None = None,
        shadow: float = 0.05,
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
        num: int = 100,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            arms,
            depths,
            budget=budget,
            calibration=calibration,
            levels=levels,
            coupling=coupling,
            explore=explore,
            eta=eta,
            evidence=evidence,
            corpus=corpus,
            learner=learner,
            features=features,
            heed=heed,
            num=num,
            seed=seed,
        )
        for arm, cost in (costs or {}).items():
            if arm not in arms:
                raise ValueError(f"policy.costs: there is no arm {arm!r}; the arms are {', '.join(arms)}")
            if cost < 0:
                raise ValueError(f"policy.costs.{arm}: {cost} is below 0")
        if not 0 < shadow <= 1:
            raise ValueError(f"policy.shadow: {shadow} is not above 0 and at most 1; only pages of all arms teach")
        if len(arms) > _MOST_ARMS:
            raise ValueError(f"policy: {len(arms)} arms are more than {_MOST_ARMS}, whose sets are all listed")
        self._depths = np.array([depths.get(arm, 0) for arm in arms], np.int32)
        some = [np.array(one, bool) for one in product((False, True), repeat=len(arms))]
        able = [one for one in some if one.any() and not (one & (self._depths == 0)).any()]
        self._sets = np.stack(sorted(able, key=np.count_nonzero))  # (S, A), the last = all arms
        self._costs = self._sets @ np.array([(costs or {}).get(arm, 1.0) for arm in arms])  # (S,)
        self._shadow = shadow
        self._brought: OrderedDict[str, _Brought] = OrderedDict()

    # -- before retrieval

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        """The best set of arms, or, in a share of queries, all of them."""
        last, price = len(self._sets) - 1, self._price.value
        best = np.array([self._best(query, price) for query in queries])
        with self._lock:
            drawn = self._rng.random(len(queries)) < self._shadow
        chosen = np.where(drawn, last, best)
        ran = self._sets[chosen]
        both = (best == last)[:, None]
        each = np.where(drawn[:, None], self._shadow, 1 - self._shadow)
        same = self._sets[best] == self._sets[last]  # arms that run either way
        marginals = np.where(both | same, 1.0, each)
        joint = np.where(both, 1.0, each)[:, 0]
        depths = np.where(ran, self._depths, 0).astype(np.int32)
        cut = np.full(len(queries), self._num, np.int32)
        return Decision(depths, cut, joint, np.concatenate([marginals, np.ones((len(queries), 1))], axis=1))

    def _best(self, query: Query, price: float) -> int:
        """Number of the set with the highest gain above its cost; all arms where they never all ran."""
        brought = self._brought.get(normalised(query.text))
        if brought is None:
            return len(self._sets) - 1
        return int(np.argmax(self._gain(query, brought, price) - price * self._costs))

    def _gain(self, query: Query, brought: _Brought, price: float) -> np.ndarray:
        """(S,) expected recall above the price of the candidates that each set returns and the belief would rank."""
        real = (brought.docs >= 0)[None]
        pool = Pool(("fused",), brought.docs[None], *[np.zeros((1, len(brought.docs), 1))] * 2)
        said, gain = self._said([query], pool)
        odds = self._coupled(brought.prior[None], said @ self.weights, real)
        worth, order, _ = by_value(np.where(real, expit(odds) * gain, -np.inf))
        assert order is not None
        above = np.maximum(worth[0] - price, 0.0)
        returned = (self._sets[:, None] & brought.by[order[0]]).any(axis=2)  # (S, M)
        return returned @ np.where(np.isfinite(above), above, 0.0)

    def greedy(self) -> Self:
        """The same policy, at the same price, without exploring candidates or arms."""
        other = super().greedy()
        other._shadow = 0.0
        return other

    # -- after retrieval

    def revise(self, queries: Sequence[Query], features: np.ndarray, pool: Pool, decision: Decision) -> Revised:
        """Orders and cuts; remembers what was brought where all arms ran."""
        revised = super().revise(queries, features, pool, decision)
        ranks = of_arms(pool, self._arms).ranks[:, : self._num, :-1]
        whole = (decision.depths > 0).sum(axis=1) == self._sets[-1].sum()
        for q in np.flatnonzero(whole).tolist():
            text = normalised(queries[q].text)
            said = self._recent.get((text, queries[q].context.customer or ""))
            if said is not None and len(said.docs) == min(pool.docs.shape[1], self._num):
                by = np.isfinite(ranks[q])
                self._keep_latest(self._brought, text, _Brought(said.docs, by, said.prior), _REMEMBERED)
        return revised

    def _adjusted(self, queries: Sequence[Query], pool: Pool, prior: np.ndarray) -> np.ndarray:
        """Where some arms were off, candidates have the log odds that they had when all ran: scores were others."""
        out, ranks = prior, of_arms(pool, self._arms).ranks[:, :, :-1]
        for q, query in enumerate(queries):
            ran = np.isfinite(ranks[q]).any(axis=0)
            brought = self._brought.get(normalised(query.text))
            if brought is None or (ran | ~self._sets[-1]).all():
                continue
            order = np.argsort(brought.docs)
            docs = pool.docs[q, : self._num]
            place = order[np.minimum(np.searchsorted(brought.docs, docs, sorter=order), len(order) - 1)]
            known = (brought.docs[place] == docs) & (docs >= 0)
            out = out.copy() if out is prior else out
            out[q, known] = brought.prior[place[known]]
        return out

    def _charged(self, cut: np.ndarray, decision: Decision) -> np.ndarray:
        """(Q,) candidates and arms."""
        ran = decision.depths > 0
        which = (self._sets[None] == ran[:, None]).all(axis=2).argmax(axis=1)
        return cut + self._costs[which]

    def find_prices(
        self, queries: Sequence[Query], features: np.ndarray, retrieve: Callable[[Policy], Pool]
    ) -> dict[str, float]:
        """At which the mean cost is the budget where the cheapest arm runs; it follows what is spent from then on."""
        worth = self.worth(queries, retrieve(self), features).worth
        cheapest = float(self._costs.min())

        def cost(price: float) -> float:
            return float(np.maximum((worth >= price).sum(axis=1), 1).mean()) + cheapest

        return {"candidates": least_price(cost, cost(np.inf), self._budget, "policy.budget")}
