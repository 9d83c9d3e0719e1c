"""Policies that score what each candidate adds, its worth, and rank those whose worth is at least a price.

Knows pools, prices and how one candidate below the cut is explored; does not know where a worth comes from: a subclass
says it, from scores (`rules`), from clicks (`boost`) or from a belief (`belief`).
Legend: Q queries, A arms, K candidates of the union, M of them that are looked at, F features.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np

from ltrr.policies.fixed import FixedPolicy
from ltrr.policies.price import Price, least_price
from ltrr.protocols import Policy
from ltrr.types import Candidates, Decision, Pool, Query, Revised, Worth


@dataclass(frozen=True)
class ReservedPlace:
    """Explores one candidate below the cut at a reserved place of the page, whatever the ranker says.

    A share of the queries show one of the first `among` candidates below the cut, each equally likely; so the
    propensity of what happened is exact.

    Args:
        share: of the queries, 0 to 1.
        among: candidates below the cut.
        place: on the page, 0 = first. Customers look there most, and what stands below moves down by one.
        arm: its first `among` candidates that are not ranked are explored, too, such as those of an arm that is drawn
            with weight 0 because nobody knows yet what it is worth.

    Errors: ValueError names the argument that makes no sense.
    """

    share: float = 0.2
    among: int = 5
    place: int = 0
    arm: str | None = None

    def __post_init__(self) -> None:
        for name, good, fix in (
            ("share", 0 <= self.share < 1, "from 0 to below 1"),
            ("among", self.among >= 1, "at least 1"),
            ("place", self.place >= 0, "at least 0"),
        ):
            if not good:
                raise ValueError(f"policy.explore.{name}: {getattr(self, name)} is not {fix}")

    def draw(
        self, cut: np.ndarray, docs: np.ndarray, pool: Pool, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(Q,) corpus row that is explored, -1 = none, and the propensity of that.

        cut (Q,); docs (Q, M) the order, pad -1; pool: of the same queries.
        """
        place = cut[:, None] + np.arange(self.among)
        rows = np.take_along_axis(docs, np.minimum(place, docs.shape[1] - 1), 1)
        rows = np.where(place < docs.shape[1], rows, -1)  # (Q, among), pads last
        if self.arm is not None:
            rows = np.stack([self._with_arm(*each) for each in zip(rows, cut, docs, self._brought(pool), strict=True)])
        room = (rows >= 0).sum(axis=1)
        drawn, uniform = rng.random((2, len(cut)))
        explores = (drawn < self.share) & (room > 0)
        each = np.where(explores, self.share / np.maximum(room, 1), np.where(room > 0, 1 - self.share, 1.0))
        return np.where(explores, rows[np.arange(len(rows)), (uniform * room).astype(np.int64)], -1), each

    def _brought(self, pool: Pool) -> list[np.ndarray]:
        """Q lists of the rows that the arm returned, best first."""
        if self.arm not in pool.arms:
            raise ValueError(f"policy.explore.arm: there is no arm {self.arm!r}; the arms are: {', '.join(pool.arms)}")
        ranks = pool.ranks[:, :, pool.arms.index(self.arm)]
        order = np.argsort(ranks, axis=1)  # NaN last
        counts = np.isfinite(ranks).sum(axis=1).tolist()
        return [docs[places[:num]] for docs, places, num in zip(pool.docs, order, counts, strict=True)]

    def _with_arm(self, rows: np.ndarray, cut: int, docs: np.ndarray, brought: np.ndarray) -> np.ndarray:
        """(2 · among,) rows and those of the arm that are neither ranked nor among them, pads last."""
        more = brought[~np.isin(brought, np.append(docs[:cut], rows))][: self.among]
        found = np.append(rows[rows >= 0], more)
        return np.append(found, np.full(2 * self.among - len(found), -1))


class WorthPolicy(ABC):
    """Lets all arms run, and ranks the candidates that are worth the price of one; at least one for each query.

    The price holds the mean number of candidates, explored ones among them, at the budget.

    Args:
        arms: the arms' names, in the funnel's order.
        depths: arm -> candidates to draw, 0 = off.
        budget: mean candidates that a query's page costs, ≥ 1.
        num: M, the deepest cut.
        explore: one candidate below the cut; None = nothing is explored.
        seed: of what is explored; None = another each time.

    Errors: ValueError for a budget that no price holds.
    """

    name = "worth"  # of the policy, in logs

    def __init__(
        self,
        arms: Sequence[str],
        depths: Mapping[str, int],
        *,
        budget: float,
        num: int = 100,
        explore: ReservedPlace | None = None,
        seed: int | None = None,
    ) -> None:
        if not 1 <= budget <= num:
            raise ValueError(f"policy.budget: {budget:g} candidates are not from 1 to {num}, the deepest cut")
        self._before, self._num, self._budget, self._explore = FixedPolicy(arms, depths, num), num, budget, explore
        self._price = Price(budget, name="candidates")
        self._rng, self._lock = np.random.default_rng(seed), threading.Lock()

    @property
    def id(self) -> str:
        """Names the policy in logs."""
        return self.name

    @property
    def budget(self) -> float:
        """Mean candidates of a query's page."""
        return self._budget

    @abstractmethod
    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """Of the first M candidates of a pool in fused order, its last column; features (Q, F) as in `decide`."""

    # -- deciding

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        """All arms, as deep as `depths` says."""
        return self._before.decide(queries, features)

    def revise(self, queries: Sequence[Query], features: np.ndarray, pool: Pool, decision: Decision) -> Revised:
        """Cuts where a candidate is no longer worth its price; the features that were given are logged."""
        worth, order, values = self.worth(queries, pool, features)
        docs = pool.docs[:, : worth.shape[1]] if order is None else np.take_along_axis(pool.docs, order, 1)
        explored = place = propensity = None
        with self._lock:
            price = self._price.value
            cut = np.maximum((worth >= price).sum(axis=1), 1).astype(np.int32)
            spent = cut
            if self._explore is not None:
                explored, propensity = self._explore.draw(cut, docs, pool, self._rng)
                spent = cut + (explored >= 0)
                place = np.where(explored >= 0, self._explore.place, -1).astype(np.int32)
                explored = explored.astype(np.int32)
            self._price.spend(self._charged(spent, decision))
        decision = decision._replace(
            cut=cut,
            prices={**(decision.prices or {}), self._price.name: price},
            explored=explored,
            explored_place=place,
            explored_propensity=propensity,
        )
        if order is None or values is None:
            return Revised(features, decision)
        return Revised(features, decision, Candidates(docs, np.where(docs >= 0, values, -np.inf).astype(np.float32)))

    def _charged(self, cut: np.ndarray, decision: Decision) -> np.ndarray:
        """(Q,) what is paid from the budget; cut (Q,) candidates, explored ones among them."""
        return cut

    def greedy(self) -> Self:
        """The same policy, at the same price, without exploring."""
        other = copy(self)
        other._explore, other._lock = None, threading.Lock()
        other._price = Price(self._budget, start=self._price.value, name=self._price.name)
        return other

    # -- prices

    @property
    def prices(self) -> dict[str, float]:
        """The least worth of a candidate that is ranked."""
        return {self._price.name: self._price.value}

    def find_prices(
        self, queries: Sequence[Query], features: np.ndarray, retrieve: Callable[[Policy], Pool]
    ) -> dict[str, float]:
        """At which the mean cut of these queries, with what is explored, is the budget."""
        worth = self.worth(queries, retrieve(self), features).worth
        share = self._explore.share if self._explore is not None else 0.0
        real = (worth > -np.inf).sum(axis=1)

        def cost(price: float) -> float:
            cut = np.maximum((worth >= price).sum(axis=1), 1)
            return float((cut + share * (cut < real)).mean())

        return {"candidates": least_price(cost, cost(np.inf), self._budget, "policy.budget")}

    def set_prices(self, prices: Mapping[str, float], label: str = "") -> None:
        """Takes what `find_prices` gave."""
        self._price = Price(self._budget, start=prices["candidates"], name=f"candidates {label}".strip())

    def follow(self, logged: Mapping[str, float]) -> None:
        """From now on the price follows what is spent, from where it was when it was last logged."""
        self._price.follow(logged)


def fused_scores(pool: Pool, num: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, M) fused scores of the first `num` candidates, 0 on pads, and (Q, M) bool: which are none."""
    real = pool.docs[:, :num] >= 0
    return np.where(real, pool.scores[:, :num, -1], 0.0).astype(np.float64), real


def range_scaled(scores: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(Q, M) scores between 0, a query's lowest, and 1, its highest; all 1 where they are equal, 0 on pads."""
    high = np.where(real, scores, -np.inf).max(axis=1, keepdims=True)
    low = np.where(real, scores, np.inf).min(axis=1, keepdims=True)
    flat = ~(high - low > 1e-12)
    width = np.where(flat, 1.0, high - low)
    return np.where(real, np.where(flat, 1.0, (scores - np.where(flat, 0.0, low)) / width), 0.0)
