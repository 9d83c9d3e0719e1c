"""Feasible decisions, listed once: depths of the arms, cut of the fused union, cost; which is drawn, and how likely.

Knows numbers of candidates, costs and values; knows nothing about queries, features or learners. Everything is exact
because everything is listed: the best decision, the normaliser, joint and marginal propensities.
Legend: Q queries, N decisions, A arms, L levels of all arms and of the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Self

import numpy as np

from ltrr.types import Decision

MOST = 20_000  # decisions that are listed; beyond, `greedy` finds one without listing them


@dataclass(frozen=True, eq=False)
class Table:
    """N feasible decisions, the cheapest first."""

    depths: np.ndarray  # (N, A) int32, 0 = the arm is off
    cuts: np.ndarray  # (N,) int32, at most the depths' sum
    costs: np.ndarray  # (N,)

    @classmethod
    def of(
        cls,
        levels: Mapping[str, Sequence[int]],
        cuts: Sequence[int],
        *,
        arm_costs: Mapping[str, float] | None = None,
        candidate_cost: float = 1.0,
        drawn_cost: float = 0.0,
        cap: float | None = None,
    ) -> Self:
        """All combinations of levels and cuts that some arm can fill and that cost no more than `cap`.

        Args:
            levels: arm -> depths it may be drawn to; 0 = it may be off.
            cuts: candidates that may go to the ranker, ≥ 1.
            arm_costs: arm -> cost where it runs; those not named cost nothing.
            candidate_cost: of each ranked candidate; drawn_cost: of each that an arm draws.
            cap: that no query may exceed.

        Errors: ValueError naming what is wrong, and for more than MOST combinations.
        """
        for name, depths in {**levels, "cuts": cuts}.items():
            least = 1 if name == "cuts" else 0
            if not depths or min(depths) < least or len(set(depths)) < len(depths):
                raise ValueError(f"policy.{name}: {list(depths)} are not different numbers from {least}")
        costs = {**dict.fromkeys(levels, 0.0), **(arm_costs or {})}
        if unknown := costs.keys() - levels.keys():
            raise ValueError(f"policy.costs: there is no arm {min(unknown)!r}; the arms are {', '.join(levels)}")
        size = int(np.prod([len(depths) for depths in levels.values()])) * len(cuts)
        if size > MOST:
            raise ValueError(f"policy.levels: {size:,} decisions are more than {MOST:,}; give fewer levels or cuts")
        rows = np.array(list(product(*levels.values(), cuts)), np.int32)
        depths, cut = rows[:, :-1], rows[:, -1]
        cost = (depths > 0) @ np.array([costs[name] for name in levels]) + candidate_cost * cut
        cost += drawn_cost * depths.sum(axis=1)
        filled = depths.sum(axis=1) >= cut
        if not filled.any():
            raise ValueError(f"policy.depths: no arm can fill a cut of {min(cuts)}")
        keep = filled & (cost <= (np.inf if cap is None else cap))
        if not keep.any():
            raise ValueError(f"policy.arms_cap: no decision costs {cap} or less, the cheapest {cost[filled].min():g}")
        order = np.flatnonzero(keep)[np.argsort(cost[keep], kind="stable")]
        return cls(depths[order], cut[order], cost[order])

    def __len__(self) -> int:
        return len(self.costs)

    @cached_property
    def _levels(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, A + 1) which of all L levels a decision's parts have, and (N, L) 1.0 where it has that level."""
        parts, levels, num = [*self.depths.T, self.cuts], [], 0
        for part in parts:
            own, level = np.unique(part, return_inverse=True)
            levels.append(level + num)
            num += len(own)
        level = np.stack(levels, axis=1)
        return level, (level[:, :, None] == np.arange(num)).any(axis=1).astype(float)

    def draw(self, probabilities: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Decision]:
        """(Q,) places in the table drawn from (Q, N) probabilities, and the decisions with their propensities."""
        ladder = np.cumsum(probabilities, axis=1)
        drawn = (rng.random(len(ladder))[:, None] * ladder[:, -1:] < ladder).argmax(axis=1)
        return drawn, self.decision(drawn, probabilities)

    def decision(self, chosen: np.ndarray, probabilities: np.ndarray) -> Decision:
        """The decisions at (Q,) places of the table, with joint and marginal propensities under (Q, N)."""
        each, (level, having) = np.arange(len(chosen)), self._levels
        marginals = np.take_along_axis(probabilities @ having, level[chosen], 1)
        joint = probabilities[each, chosen]
        return Decision(self.depths[chosen], self.cuts[chosen], joint, np.clip(marginals, joint[:, None], 1.0))


def greedy(
    gain: Callable[[np.ndarray], np.ndarray], costs: Sequence[np.ndarray], price: float, start: np.ndarray
) -> np.ndarray:
    """One query's decision where too many are feasible: changes whichever part gains most, while any change gains.

    Args:
        gain: (B, P) levels of P parts -> (B,) values of those decisions, -inf where one is not feasible.
        costs: of each part, those of its levels; they add up.
        start: (P,) levels.

    Returns: (P,) levels. The best of all where parts' gains add up; never worse than one part alone, others at level 0.
    """
    parts = np.repeat(np.arange(len(costs)), [len(own) for own in costs])
    levels = np.concatenate([np.arange(len(own)) for own in costs])
    cost = np.concatenate([np.asarray(own, float) for own in costs])

    def net(decisions: np.ndarray) -> np.ndarray:
        return gain(decisions) - price * sum(np.asarray(own)[at] for own, at in zip(costs, decisions.T, strict=True))

    at, value = np.array(start), float(net(np.array(start)[None])[0])
    while True:
        tries = np.concatenate([np.repeat(at[None], len(cost), axis=0), np.zeros((len(cost), len(at)), int)])
        tries[np.arange(2 * len(cost)), np.tile(parts, 2)] = np.tile(levels, 2)
        values = net(tries)
        if values.max() <= value + 1e-12:
            return at
        at, value = tries[int(values.argmax())], float(values.max())
