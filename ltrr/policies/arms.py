"""A policy that decides, before retrieval, which arms run and how deep they are drawn.

Knows features, the predicted loss of each choice of arms (`ltrr.policies.arm_choices`) and a price; does not know what
learns the losses. Legend: Q queries, A arms, P heads, F features, R logged rounds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Protocol

import numpy as np

from ltrr.policies.arm_choices import Costs, Drawing, feasible_arms
from ltrr.policies.explorers import EpsilonGreedy, Explorer
from ltrr.policies.features import ContextFeatures, check_learned
from ltrr.policies.price import Price
from ltrr.protocols import Policy, Replay
from ltrr.types import Decision, Pool, Query


class ArmLosses(Protocol):
    """A learner of what each choice of arms loses (`ltrr.learners.arm_loss`)."""

    id: str  # of the weights
    shallow: tuple[int, ...]  # depths between off and an arm's whole depth, ascending
    columns: tuple[tuple[str, ...], tuple[str, ...]]  # names of features; arms
    depths: list[int] | None  # to which all arms were drawn in what it learned from

    def losses(self, features: np.ndarray) -> np.ndarray:
        """(Q, P) recall that each head loses; features (Q, F)."""
        ...


class ArmPolicy:
    """Runs each arm at one of its depths or not at all, and lets all that they bring through.

    Args:
        arms: the arms' names, in the funnel's order.
        learner: of these arms.
        depths: arm -> whole depth; 0 = it never runs.
        budget: mean cost of the arms that run for a query.
        costs: arm -> cost where it runs, above or equal 0; 1 where it is not named.
        drawn_cost: of each candidate that an arm draws.
        cap: cost that no query may exceed; None = there is no cap.
        cut: candidates of the union that go on, ≥ 1.
        explore: draws choices; None = the best one.
        shadow: share of queries for which all arms run where choices are explored.
        features: what it looks at.
        seed: of draws; None = another each time.

    Errors: ValueError for a learner of other arms, features or depths, and for an explorer that needs deviations.
    """

    def __init__(
        self,
        arms: Sequence[str],
        learner: ArmLosses,
        depths: Mapping[str, int],
        *,
        budget: float,
        costs: Mapping[str, float] | None = None,
        drawn_cost: float = 0.0,
        cap: float | None = None,
        cut: int = 100,
        explore: Explorer | None = None,
        shadow: float = 0.02,
        features: ContextFeatures | None = None,
        seed: int | None = None,
    ) -> None:
        self.features = features or ContextFeatures(())
        whole = {arm: depths.get(arm, 0) for arm in arms}
        names = tuple(feature.name for feature in self.features.columns)
        check_learned("policy.model", learner, (names, tuple(arms)), arms, whole)
        self.id = f"arms {learner.id[:12]}"
        self.learner, self._budget = learner, budget
        self._how = Drawing(explore, shadow) if explore else Drawing(EpsilonGreedy(0.0))
        self._choices = feasible_arms(whole, learner.shallow, Costs(costs or {}, drawn_cost, cap), cut)
        self._choices.check(self._how)
        self._price = Price(budget, name="arms")
        self._rng, self._lock = np.random.default_rng(seed), threading.Lock()

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        """features (Q, F)."""
        losses = self.learner.losses(features)
        with self._lock:
            price = self._price.value
            decision, costs = self._choices.draw(losses, price, self._how, self._rng)
            self._price.spend(costs)
        return decision._replace(prices={self._price.name: price})

    def greedy(self) -> ArmPolicy:
        """The same policy, at the same price, without exploring."""
        other = copy(self)
        other._how = Drawing(EpsilonGreedy(0.0))
        other._rng = np.random.default_rng(0)  # its draws take none from this policy's
        other._price = Price(self._budget, start=self._price.value, name=self._price.name)
        return other

    @property
    def prices(self) -> dict[str, float]:
        """The price of a unit of arms' cost, in recall."""
        return {self._price.name: self._price.value}

    def find_prices(
        self, queries: Sequence[Query], features: np.ndarray, retrieve: Callable[[Policy], Pool]
    ) -> dict[str, float]:
        """At which the best choices for these queries cost at most the budget on average; features (Q, F)."""
        return {"arms": self._choices.price(self.learner.losses(features), self._budget)}

    def set_prices(self, prices: Mapping[str, float], label: str = "") -> None:
        """Takes what `find_prices` gave."""
        self._price = Price(self._budget, start=prices["arms"], name=f"arms {label}".strip())

    def follow(self, logged: Mapping[str, float]) -> None:
        """From now on the price follows what is spent, from where it was when it was last logged."""
        self._price.follow(logged)

    def replay(self, queries: Sequence[Query], features: Sequence[Sequence[float]], decision: Decision) -> Replay:
        """How likely these depths are drawn at today's price; features start with this policy's."""
        losses, known = self._losses(features)
        target, choice = self._choices.likelihood(losses, decision.depths, self._price.value, self._how)
        propensity = decision.propensity / decision.marginals[:, -1]  # the cut's is given the arms
        return Replay(target, None, propensity, known & choice, np.full(len(target), float(self._choices.cut)))

    def price_from(self, features: Sequence[Sequence[float]]) -> None:
        """Sets the price at which the best choices for logged queries cost at most the budget on average."""
        losses, known = self._losses(features)
        if not known.any():
            raise ValueError("policy: no round of the log has the features that its arms are chosen by")
        self.set_prices({"arms": self._choices.price(losses[known], self._budget)})

    def _losses(self, features: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
        """(R, P) losses of R logged rounds, and (R,) whether a round has this policy's features, which come first."""
        num = len(self.features.columns)
        known = np.array([len(row) >= num for row in features])
        rows = [[*row[:num]] if ok else [np.nan] * num for row, ok in zip(features, known, strict=True)]
        return self.learner.losses(np.array(rows, np.float32).reshape(len(rows), num)), known
