"""A policy that lets arms run and then decides for each query how many candidates are ranked.

Knows features, what each cut is believed to be worth, and a price per candidate; does not know what learns the values
or how arms work. It logs features as it saw them and the propensity of its draw.
Legend: Q queries, A arms, M candidates looked at = cuts, F features of a query, C of a candidate, R logged rounds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy

import numpy as np

from ltrr.policies.explorers import EpsilonGreedy, Explorer
from ltrr.policies.features import ContextFeatures, arms_of, check_learned, pool_features, pool_names
from ltrr.policies.fixed import FixedPolicy
from ltrr.policies.price import Price, best, price_for
from ltrr.policies.table import Table
from ltrr.protocols import (
    CutLearner,
    Exploring,
    Policy,
    Priced,
    PricedFromLog,
    Replay,
    Replayable,
    Uncertain,
    offers,
)
from ltrr.types import Decision, Pool, Query, RetrievalFeatures, Revised, Rounds


class CutPolicy:
    """Delegates arm depths to `before` and chooses how many candidates to rank for each query.

    Args:
        arms: the arms' names, in the funnel's order.
        learner: of values of cuts (`ltrr.learners`); one that has not learned yet believes what `usual_values` says.
        depths: arm -> candidates to draw, 0 = off.
        budget: mean candidates that are ranked for a query, ≥ 1.
        before: decides before retrieval which arms run and how deep; None = `depths` for every query.
        explore: draws cuts; None = the best one. Its probabilities must be exact.
        estimated: lets probabilities be estimates, as those of Thompson are; propensities are then NaN, which no event
            store takes. For simulations, which log none.
        num: M, the deepest cut; None = the learner's.
        features: what it looks at before retrieval.
        seed: of draws; None = another each time.

    Errors: ValueError for a learner of other arms, features or depths, and for an explorer without exact probabilities.
    """

    def __init__(
        self,
        arms: Sequence[str],
        learner: CutLearner,
        depths: Mapping[str, int],
        *,
        budget: float,
        before: Policy | None = None,
        explore: Explorer | None = None,
        estimated: bool = False,
        num: int | None = None,
        features: ContextFeatures | None = None,
        seed: int | None = None,
    ) -> None:
        self.features = features or ContextFeatures(())
        self._fitted = bool(learner.columns[1])
        self._num = learner.num if self._fitted else num or 60
        if not 1 <= budget <= self._num:
            raise ValueError(f"policy.budget: {budget:g} candidates are not from 1 to {self._num}, the deepest cut")
        if explore and not (explore.exact or estimated):
            raise ValueError(
                f"policy.explore: propensities of {type(explore).__name__} are estimates, and logged ones must be "
                "exact; use Softmax, SquareCB, EpsilonGreedy or UCB here, or `estimated: true` in a simulation"
            )
        whole = {arm: depths.get(arm, 0) for arm in arms}
        query, each = pool_names(arms, self._num)
        self._columns = tuple(f.name for f in (*self.features.columns, *query)), tuple(f.name for f in each)
        if self._fitted:
            check_learned("policy.model", learner, self._columns, arms, whole, arms_of(learner.columns[1]))
        self.learner, self._budget = learner, budget
        self._before = before or FixedPolicy(arms, depths, self._num)
        self._depths = [*whole.values()] if before is None else None
        self.id = f"cut {learner.id[:12]}" + (f", {before.id}" if before is not None else "")
        self._explorer = explore or EpsilonGreedy(0.0)
        self._table = Table.of({"all": [self._num]}, range(1, self._num + 1))
        self._price = Price(budget, name="candidates")
        self._rng, self._lock = np.random.default_rng(seed), threading.Lock()

    # -- deciding

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        """features (Q, F), known before retrieval."""
        return self._before.decide(queries, features)

    def revise(self, queries: Sequence[Query], features: np.ndarray, pool: Pool, decision: Decision) -> Revised:
        """Draws the cut. Its propensity, given the arms that ran, is the decision's last marginal.

        Returns all that was looked at, (Q, F + M · C), to be logged.
        """
        seen = pool_features(pool, self._num)
        known = RetrievalFeatures(np.concatenate([features, seen.query], axis=1), seen.candidates)
        values = self.values(known)
        with self._lock:
            price = self._price.value
            _, cuts = self._table.draw(self.probabilities(known, values, price), self._rng)
            self._price.spend(cuts.cut)
        marginals = decision.marginals.copy()
        drawn = cuts.propensity if self._explorer.exact else np.full(len(features), np.nan)
        marginals[:, -1] = drawn
        logged = np.concatenate([known.query, known.candidates.reshape(len(features), -1)], axis=1)
        prices = {**(decision.prices or {}), self._price.name: price}
        return Revised(logged, Decision(decision.depths, cuts.cut, decision.propensity * drawn, marginals, prices))

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M) what cuts are believed to be worth, in recall."""
        if self._fitted:
            return self.learner.values(known)
        return np.tile(usual_values(self._num), (len(known.query), 1))

    def probabilities(self, known: RetrievalFeatures, values: np.ndarray, price: float) -> np.ndarray:
        """(Q, M) probability of each cut, at a price per candidate."""
        deviations = None
        if self._explorer.unsure:
            deviations = np.ones_like(values)
            if self._fitted:
                uncertain = offers(self.learner, Uncertain)
                deviations = uncertain.deviations(known) if uncertain is not None else None
        return self._explorer.probabilities(values - price * self._table.costs, deviations)

    def greedy(self) -> CutPolicy:
        """The same policy, at the same prices, without exploring."""
        other, before = copy(self), offers(self._before, Exploring)
        other._rng = np.random.default_rng(0)  # its draws take none from this policy's
        other._explorer = EpsilonGreedy(0.0)
        other._before = before.greedy() if before is not None else self._before
        other._price = Price(self._budget, start=self._price.value, name=self._price.name)
        return other

    # -- prices

    @property
    def prices(self) -> dict[str, float]:
        """The price of a candidate, in recall, and those of `before`."""
        before = offers(self._before, Priced)
        return {**(before.prices if before is not None else {}), self._price.name: self._price.value}

    def find_prices(
        self, queries: Sequence[Query], features: np.ndarray, retrieve: Callable[[Policy], Pool]
    ) -> dict[str, float]:
        """At which the best cuts of what the arms bring for these queries have the budget as their mean.

        Which arms run decides what candidates are worth, so prices of `before` are found, and set, first.
        """
        greedy = self.greedy()
        before, prices = offers(greedy._before, Priced), {}
        if before is not None:
            prices |= before.find_prices(queries, features, retrieve)
            before.set_prices(prices)
        seen = pool_features(retrieve(greedy._before), self._num)
        known = RetrievalFeatures(np.concatenate([features, seen.query], axis=1), seen.candidates)
        return prices | {"candidates": price_for(self.values(known), self._table.costs, self._budget)}

    def set_prices(self, prices: Mapping[str, float], label: str = "") -> None:
        """Takes what `find_prices` gave."""
        if (before := offers(self._before, Priced)) is not None:
            before.set_prices(prices, label)
        self._price = Price(self._budget, start=prices["candidates"], name=f"candidates {label}".strip())

    def follow(self, logged: Mapping[str, float]) -> None:
        """From now on prices follow what is spent, from where they were when they were last logged."""
        if (before := offers(self._before, Priced)) is not None:
            before.follow(logged)
        self._price.follow(logged)

    def cuts_at(self, features: np.ndarray, prices: Sequence[float]) -> np.ndarray:
        """(Q, P) best cuts at other prices per candidate; features as `revise` returned them."""
        values = self.values(self._known(features))
        return np.stack([best(values, self._table.costs, price) + 1 for price in prices], axis=1)

    # -- learning

    def rounds(self, features: np.ndarray, rows: np.ndarray, cut: np.ndarray, clicks: np.ndarray) -> Rounds:
        """Rounds over U queries from what `revise` returned for them, pages in fused order up to the cut."""
        known = self._known(features)
        depths = None if self._depths is None else np.array(self._depths)
        return Rounds(rows, known.query, known.candidates, cut, clicks, self._columns, depths=depths)

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """The learner learns anew from all rounds."""
        self.learner.refit(rounds, seed)
        self._fitted = True

    def update(self, rounds: Rounds) -> None:
        """The learner learns from further rounds, once it was fitted."""
        if self._fitted:
            self.learner.update(rounds)

    # -- off-policy estimation

    def replay(self, queries: Sequence[Query], features: Sequence[Sequence[float]], decision: Decision) -> Replay:
        """How likely each cut is drawn at today's price, for the logged choice of arms.

        Without `before`, arms count as they were drawn: the weight of a round is that of its cut alone.
        Errors: ValueError where `before` cannot replay.
        """
        seen, known = self._logged(features)
        known &= (decision.cut >= 1) & (decision.cut <= self._num)
        values = self.values(seen)
        target = self.probabilities(seen, values, self._price.value)  # (R, M)
        action = np.clip(decision.cut, 1, self._num) - 1
        propensity, cut = decision.marginals[:, -1], target @ self._table.costs
        some = values[:, np.unique(np.geomspace(1, self._num, 5).astype(int)) - 1]
        if (before := offers(self._before, Replayable)) is not None:
            arms = before.replay(queries, features, decision)
            joint = target[np.arange(len(action)), action] * arms.target
            return Replay(joint, None, propensity * arms.propensity, known & arms.known, cut, some)
        if self._depths is None:
            name = type(self._before).__name__
            raise ValueError(
                f"policy.before: {name} does not offer `Replayable` (ltrr/protocols.py); leave `before` out"
            )
        return Replay(target, action, propensity, known, cut, some)

    def price_from(self, features: Sequence[Sequence[float]]) -> None:
        """Sets the prices of `before`, then that at which the best cuts of logged rounds have the budget as their mean.

        A round counts with the candidates that its logged arms brought, also where `before` would run others.
        """
        if (before := offers(self._before, PricedFromLog)) is not None:
            before.price_from(features)
        seen, known = self._logged(features)
        if not known.any():
            raise ValueError("policy: no round of the log has the features that its cuts are chosen by")
        price = price_for(self.values(seen)[known], self._table.costs, self._budget)
        self._price = Price(self._budget, start=price, name=self._price.name)

    def _logged(self, features: Sequence[Sequence[float]]) -> tuple[RetrievalFeatures, np.ndarray]:
        """Features of R logged rounds, and (R,) whether a round has this policy's; NaN where it has not."""
        size = len(self._columns[0]) + self._num * len(self._columns[1])
        known = np.array([len(row) == size for row in features])
        rows = [row if ok else [np.nan] * size for row, ok in zip(features, known, strict=True)]
        return self._known(np.array(rows, np.float32).reshape(len(rows), size)), known

    def _known(self, features: np.ndarray) -> RetrievalFeatures:
        """(U, F + M · C) features as they were logged, told apart."""
        width = len(self._columns[0])
        return RetrievalFeatures(features[:, :width], features[:, width:].reshape(len(features), self._num, -1))


def usual_values(num: int) -> np.ndarray:
    """(M,) values of cuts before anything is known: relevance falls with 1 / rank."""
    return np.cumsum(1 / np.arange(1, num + 1)) / np.sum(1 / np.arange(1, num + 1))
