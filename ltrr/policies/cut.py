"""A policy that lets arms run and then decides, query by query, how many candidates are ranked.

Knows features, values and the table of cuts; knows nothing about what learns the values or about arms' insides. It logs
features as it saw them and the propensity of what it drew.
Legend: Q queries, A arms, M candidates looked at, F and C features.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ltrr.policies.arms import ArmPolicy
from ltrr.policies.explorers import Explorer
from ltrr.policies.features import RetrievalFeatures, pool_features
from ltrr.policies.price import Price
from ltrr.policies.table import Table
from ltrr.protocols import Policy
from ltrr.types import Decision, Pool


class Values(Protocol):
    """What a learner believes."""

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M) expected recall of the first 1 to M candidates."""
        ...

    def deviations(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M) posterior deviations of `values`, for explorers that need them."""
        ...


class CutPolicy:
    """Depths as another policy has them, a cut for each query.

    Args:
        before: decides, before retrieval, which arms run and how deep.
        learner: of values.
        num: M, the deepest cut.
        price: of a candidate. From `adapt()` on it follows what was drawn; until then all queries pay the same.
        explorer: of cuts.
        id: of the learner's weights.
        seed: of draws; None = another each time.
    """

    def __init__(
        self,
        before: Policy,
        learner: Values,
        *,
        num: int,
        price: Price,
        explorer: Explorer,
        id: str = "",
        seed: int | None = None,
    ) -> None:
        self.id = f"depth {id[:12]}" + (f", {before.id}" if isinstance(before, ArmPolicy) else "")
        self._before, self.learner, self._num, self._explorer = before, learner, num, explorer
        self._table = Table.of({"all": [num]}, range(1, num + 1))
        self.price = price
        self._rng, self._lock = np.random.default_rng(seed), threading.Lock()

    def adapt(self, logged: Mapping[str, float] | None = None) -> None:
        """From now on prices follow what is spent: a service serves other queries than those that set them.

        logged: prices of this policy's last decision, from which they go on where they have the same name.
        """
        for policy in (self, self._before):
            if isinstance(policy, CutPolicy | ArmPolicy):
                policy.price.follow(logged or {})

    def decide(self, features: np.ndarray) -> Decision:
        """features (Q, F), known before retrieval."""
        return self._before.decide(features)

    def revise(self, features: np.ndarray, pool: Pool, decision: Decision) -> tuple[np.ndarray, Decision]:
        """After the arms ran: all that was looked at, (Q, F + M · C), and the decision with its cut drawn.

        Its last marginal is the cut's propensity given the arms that ran.

        pool: the whole union in fused order, which is its last column.
        """
        seen = pool_features(pool, self._num)
        known = RetrievalFeatures(np.concatenate([features, seen.query], axis=1), seen.candidates)
        believed = self.believed(known)
        with self._lock:
            price = self.price.value
            _, cuts = self._table.draw(self.probabilities(believed, price), self._rng)
            self.price.spend(cuts.cut)
        marginals = decision.marginals.copy()
        marginals[:, -1] = cuts.propensity
        whole = np.concatenate([known.query, known.candidates.reshape(len(features), -1)], axis=1)
        prices = {**(decision.prices or {}), self.price.name: price}
        return whole, Decision(decision.depths, cuts.cut, decision.propensity * cuts.propensity, marginals, prices)

    def believed(self, known: RetrievalFeatures) -> tuple[np.ndarray, np.ndarray | None]:
        """(Q, M) values of cuts, and their deviations where the explorer needs them."""
        return self.learner.values(known), self.learner.deviations(known) if self._explorer.unsure else None

    def probabilities(self, believed: tuple[np.ndarray, np.ndarray | None], price: float) -> np.ndarray:
        """(Q, M) of each cut, at a price."""
        return self._explorer.probabilities(believed[0] - price * self._table.costs, believed[1])
