"""A policy that decides the same for every query.

Knows numbers of candidates; does not know queries or arms' insides. Legend: Q queries, A arms, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ltrr.types import Decision, Query


class FixedPolicy:
    """The same depths and cut for every query, with propensity 1.

    Args:
        arms: the arms' names, in the funnel's order.
        depths: arm -> candidates to draw, ≥ 0 (0 = off); an arm that is not named is off.
        cut: candidates of the union that go to the ranker, ≥ 1.
    """

    id = "fixed"

    def __init__(self, arms: Sequence[str], depths: Mapping[str, int], cut: int = 100):
        for name, depth in depths.items():
            if name not in arms:
                raise ValueError(f"policy.depths: there is no arm {name!r}; the arms are: {', '.join(arms)}")
            if depth < 0:
                raise ValueError(f"policy.depths.{name}: {depth} is below 0; 0 turns the arm off")
        if cut < 1:
            raise ValueError(f"policy.cut: {cut} is below 1; at least one candidate must be ranked")
        self._depths = np.array([depths.get(name, 0) for name in arms], np.int32)
        self._cut = cut

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        """Looks at no feature."""
        num_queries, num_arms = len(queries), len(self._depths)
        return Decision(
            np.tile(self._depths, (num_queries, 1)),
            np.full(num_queries, self._cut, np.int32),
            np.ones(num_queries),
            np.ones((num_queries, num_arms + 1)),
        )
