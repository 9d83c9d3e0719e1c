"""A table of all feasible decisions (depths of the arms, cut of the fused union, cost), from which policies draw.

Knows numbers of candidates, costs and values; knows nothing about queries, features or learners. All decisions are
listed, so the best one, the normaliser, and joint and marginal propensities are exact.
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

MOST = 20_000  # most decisions in a table; beyond, `greedy` searches without listing


@dataclass(frozen=True, eq=False)
class Table:
    """N feasible decisions, cheapest first."""

    depths: np.ndarray  # (N, A) int32, 0 = the arm is off
    cuts: np.ndarray  # (N,) int32, at most the sum of depths
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
        """Lists all combinations of levels and cuts whose arms can fill the cut and that cost at most `cap`.

        Args:
            levels: arm -> its possible depths; 0 = off.
            cuts: possible numbers of candidates for the ranker, ≥ 1.
            arm_costs: arm -> cost of running it; 0 if absent.
            candidate_cost: of each ranked candidate; drawn_cost: of each that an arm retrieves.
            cap: largest cost of one query; None = no cap.

        Errors: ValueError naming the wrong argument, and for more than MOST combinations.
        """
        for name, depths in {**levels, "cuts": cuts}.items():
            lowest = 1 if name == "cuts" else 0
            if not depths or min(depths) < lowest or len(set(depths)) < len(depths):
                raise ValueError(f"policy.{name}: {list(depths)} are not distinct numbers from {lowest} up")
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
        """Level of each part of a decision among all L levels (N, A + 1), and its indicator matrix (N, L)."""
        parts, levels, num = [*self.depths.T, self.cuts], [], 0
        for part in parts:
            values, level = np.unique(part, return_inverse=True)
            levels.append(level + num)
            num += len(values)
        level = np.stack(levels, axis=1)
        return level, (level[:, :, None] == np.arange(num)).any(axis=1).astype(float)

    def draw(self, probabilities: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Decision]:
        """Draws rows of the table (Q,) from probabilities (Q, N); returns them with the decisions and propensities."""
        ladder = np.cumsum(probabilities, axis=1)
        drawn = (rng.random(len(ladder))[:, None] * ladder[:, -1:] < ladder).argmax(axis=1)
        return drawn, self.decision(drawn, probabilities)

    def decision(self, chosen: np.ndarray, probabilities: np.ndarray) -> Decision:
        """Decisions at rows (Q,) of the table, with joint and marginal propensities under probabilities (Q, N)."""
        each, (level, having) = np.arange(len(chosen)), self._levels
        marginals = np.take_along_axis(probabilities @ having, level[chosen], 1)
        joint = probabilities[each, chosen]
        return Decision(self.depths[chosen], self.cuts[chosen], joint, np.clip(marginals, joint[:, None], 1.0))


def greedy(
    gain: Callable[[np.ndarray], np.ndarray], costs: Sequence[np.ndarray], price: float, start: np.ndarray
) -> np.ndarray:
    """Searches one query's decision greedily: changes one part, or switches to it alone, while the best change gains.

    Args:
        gain: levels (B, P) of P parts -> values (B,) of those decisions, -inf if infeasible.
        costs: costs of each part's levels; they add up over parts.
        start: (P,) levels.

    Returns: (P,) levels. Optimal if gains add up over parts; never worse than any one part with the others at level 0.
    """
    parts = np.repeat(np.arange(len(costs)), [len(part) for part in costs])
    levels = np.concatenate([np.arange(len(part)) for part in costs])
    cost = np.concatenate([np.asarray(part, float) for part in costs])

    def net(decisions: np.ndarray) -> np.ndarray:
        return gain(decisions) - price * sum(np.asarray(part)[at] for part, at in zip(costs, decisions.T, strict=True))

    best, value = np.array(start), float(net(np.array(start)[None])[0])
    while True:
        tries = np.concatenate([np.repeat(best[None], len(cost), axis=0), np.zeros((len(cost), len(best)), int)])
        tries[np.arange(2 * len(cost)), np.tile(parts, 2)] = np.tile(levels, 2)
        values = net(tries)
        if values.max() <= value + 1e-12:
            return best
        best, value = tries[int(values.argmax())], float(values.max())
