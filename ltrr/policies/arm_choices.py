"""Choices of arms and depths: their costs, predicted losses and probabilities of being drawn.

Knows the predicted losses of choices and the costs of arms; does not know features or learners. Up to MOST choices are
listed, so the best choice and propensities are exact. With more, the best is searched greedily and exploration is
uniform, so propensities are exact too.
Legend: Q queries, A arms, L levels of depth (0 = off, L − 1 = the arm's whole depth), N choices, P heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ltrr.policies.explorers import Explorer
from ltrr.policies.price import least_price, price_for
from ltrr.policies.table import MOST, Table, greedy
from ltrr.types import Decision

FEW = 256  # up to this many choices have a head each; beyond, arms and pairs of arms do
_PRICED = 200  # at most, for setting the price of greedy choices
_STEPS = 15  # bisection steps for that price


def choices(num_arms: int, num_levels: int = 2) -> np.ndarray:
    """Levels (N, A) of all choices with at least one arm; the last has all arms at their whole depth."""
    numbers = np.arange(1, num_levels**num_arms)
    return numbers[:, None] // num_levels ** np.arange(num_arms) % num_levels


def design(levels: np.ndarray, num_levels: int) -> np.ndarray:
    """Design matrix (B, P) from head losses to the losses of choices (B, A).

    One head per choice if there are at most FEW, else main effects of arms plus pairwise interactions.
    """
    num_arms = levels.shape[1]
    if (most := num_levels**num_arms - 1) <= FEW:
        return np.eye(most)[levels @ num_levels ** np.arange(num_arms) - 1]
    less = (levels[:, :, None] == np.arange(num_levels - 1)).astype(float)  # (B, A, L − 1) below the whole depth
    one, other = np.triu_indices(num_arms, 1)
    pairs = less[:, one, :, None] * less[:, other, None, :]
    return np.concatenate([less.reshape(len(levels), -1), pairs.reshape(len(levels), -1)], axis=1)


class Drawing(NamedTuple):
    """How choices are drawn."""

    explorer: Explorer
    shadow: float = 0.0  # share of queries on which all arms run at their whole depths, if the cap allows it


@dataclass(frozen=True)
class Costs:
    """Costs of arms. Raises ValueError for a cost below 0.

    Args:
        run: arm -> cost of running it; 1 if absent.
        drawn: cost of each candidate that an arm retrieves.
        cap: largest cost of one query's arms; None = no cap.
    """

    run: Mapping[str, float]
    drawn: float = 0.0
    cap: float | None = None

    def __post_init__(self) -> None:
        if (least := min(self.run.values(), default=0.0)) < 0 or self.drawn < 0:
            raise ValueError(f"policy.arms_costs, arms_drawn_cost: {min(least, self.drawn):g} is below 0")


class ListedArms:
    """All choices in a table, cheapest first; ranked candidates cost nothing.

    Args:
        levels: arm -> its depths above 0, ascending; empty = it never runs.
        cut: candidates of the union that go to the ranker.
        num_levels: levels of depth that the learner distinguishes.
    """

    def __init__(self, levels: Mapping[str, Sequence[int]], costs: Costs, cut: int, num_levels: int) -> None:
        most = min([cut, *(min(depths) for depths in levels.values() if depths)])  # so that one arm alone can fill it
        with_off = {arm: [0, *depths] for arm, depths in levels.items()}
        table = Table.of(
            with_off, [most], arm_costs=_run(levels, costs), candidate_cost=0.0, drawn_cost=costs.drawn, cap=costs.cap
        )
        self.table, self.cut = replace(table, cuts=np.full(len(table), cut, np.int32)), cut
        self._whole = bool((table.depths[-1] == [max(depths) for depths in with_off.values()]).all())
        self._design = design(levels_of(self.table.depths, levels, num_levels), num_levels)  # (N, P)

    def check(self, how: Drawing) -> None:
        """Raises ValueError for an explorer that needs deviations, which policies of arms do not have."""
        if how.explorer.unsure:
            raise ValueError(
                f"policy.explore: {type(how.explorer).__name__} needs deviations, which policies of arms do not give; "
                "use Softmax, SquareCB or EpsilonGreedy"
            )

    def values(self, losses: np.ndarray) -> np.ndarray:
        """Expected recall of each choice less that of all arms, (Q, N); losses (Q, P)."""
        return -losses @ self._design.T

    def probabilities(self, losses: np.ndarray, price: float, how: Drawing) -> np.ndarray:
        """Probability of each choice of the table at a price, (Q, N); losses (Q, P)."""
        net_values = self.values(losses) - price * self.table.costs
        probabilities, shadow = how.explorer.probabilities(net_values), how.shadow * self._whole
        probabilities *= 1 - shadow
        probabilities[:, -1] += shadow
        return probabilities

    def draw(
        self, losses: np.ndarray, price: float, how: Drawing, rng: np.random.Generator
    ) -> tuple[Decision, np.ndarray]:
        """Draws a decision for each query; returns it with the costs (Q,). losses (Q, P)."""
        drawn, decision = self.table.draw(self.probabilities(losses, price, how), rng)
        return decision, self.table.costs[drawn]

    def likelihood(
        self, losses: np.ndarray, depths: np.ndarray, price: float, how: Drawing
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probability of drawing depths (Q, A), and whether they are a choice, (Q,) each; losses (Q, P)."""
        rows = {row.tobytes(): n for n, row in enumerate(self.table.depths)}
        at = np.array([rows.get(row.tobytes(), -1) for row in depths.astype(np.int32)], int)
        probabilities = self.probabilities(losses, price, how)[np.arange(len(at)), at]
        return np.where(at >= 0, probabilities, 0.0), at >= 0

    def price(self, losses: np.ndarray, budget: float) -> float:
        """Lowest price at which the best choices cost at most the budget on average; losses (Q, P) of some queries."""
        return price_for(self.values(losses), self.table.costs, budget, "policy.arms_budget")


class UnlistedArms:
    """Too many choices to list: the best is searched greedily and exploration draws uniformly, with exact propensities.

    Arguments as for ListedArms. Supports only the explorer EpsilonGreedy, and no cap.
    """

    def __init__(self, levels: Mapping[str, Sequence[int]], costs: Costs, cut: int, num_levels: int) -> None:
        if costs.cap is not None:
            raise ValueError(f"policy.arms_cap: not with more than {MOST:,} choices of depths; have fewer levels")
        self._depths = [np.array([0, *depths]) for depths in levels.values()]
        run = _run(levels, costs)
        self._costs = [(d > 0) * run[arm] + costs.drawn * d for arm, d in zip(levels, self._depths, strict=True)]
        self._levels = [np.array([*range(len(d) - 1), num_levels - 1] if len(d) > 1 else [0]) for d in self._depths]
        self.cut, self._num_levels = cut, num_levels
        self._sizes = np.array([len(arm) for arm in self._depths])
        self._num_choices = float(np.prod(self._sizes.astype(float))) - 1

    def check(self, how: Drawing) -> float:
        """Returns the explorer's random share. Raises ValueError unless it has one within 0 and 1."""
        if (share := how.explorer.random_share) is None:
            raise ValueError(
                f"policy.explore: {type(how.explorer).__name__} needs a list of choices, and these are more than "
                f"{MOST:,}; use EpsilonGreedy, or fewer depths"
            )
        if not 0 <= share <= 1:
            raise ValueError(f"policy.explore: a share of {share} is not within 0 and 1")
        return share

    def _best(self, losses: np.ndarray, price: float) -> np.ndarray:
        """Searches the best choices greedily: (Q, A) indexes into the arms' depths; losses (Q, P)."""

        def gain(places: np.ndarray, lost: np.ndarray) -> np.ndarray:
            levels = np.stack([arm_levels[at] for arm_levels, at in zip(self._levels, places.T, strict=True)], axis=1)
            return np.where((places > 0).any(axis=1), -design(levels, self._num_levels) @ lost, -np.inf)

        deepest = np.array([len(arm_levels) - 1 for arm_levels in self._depths])
        return np.stack([greedy(lambda p, lost=lost: gain(p, lost), self._costs, price, deepest) for lost in losses])

    def draw(
        self, losses: np.ndarray, price: float, how: Drawing, rng: np.random.Generator
    ) -> tuple[Decision, np.ndarray]:
        """Draws a decision for each query; returns it with the costs (Q,). losses (Q, P)."""
        best, sizes, shares = self._best(losses, price), self._sizes, self._shares(how)
        whole, num = sizes - 1, len(best)
        kind = rng.choice(3, num, p=shares)  # 0 = the best, 1 = uniform, 2 = all arms
        uniform_draw = rng.integers(0, sizes, (num, len(sizes)))
        while (none := ~uniform_draw.any(axis=1)).any():  # draw again if no arm runs
            uniform_draw[none] = rng.integers(0, sizes, (none.sum(), len(sizes)))
        at = np.select([kind[:, None] == 0, kind[:, None] == 1], [best, uniform_draw], whole)
        uniform = (self._num_choices + 1) / sizes - (at == 0)  # number of choices with each arm at its drawn level
        joint = self._joint(at, best, shares)
        marginals = np.einsum("k,kqa->qa", shares, np.stack([at == best, uniform / self._num_choices, at == whole]))
        depths = np.stack([arm[place] for arm, place in zip(self._depths, at.T, strict=True)], axis=1)
        cost = np.sum([arm[place] for arm, place in zip(self._costs, at.T, strict=True)], axis=0)
        marginals = np.concatenate([np.clip(marginals, joint[:, None], 1.0), np.ones((num, 1))], axis=1)
        return Decision(depths.astype(np.int32), np.full(num, self.cut, np.int32), joint, marginals), cost

    def likelihood(
        self, losses: np.ndarray, depths: np.ndarray, price: float, how: Drawing
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probability of drawing depths (Q, A), and whether they are a choice, (Q,) each; losses (Q, P)."""
        levels = [arm == column[:, None] for arm, column in zip(self._depths, depths.T, strict=True)]  # A × (Q, L)
        at = np.stack([level.argmax(axis=1) for level in levels], axis=1)
        choice = np.all([level.any(axis=1) for level in levels], axis=0) & at.any(axis=1)
        return np.where(choice, self._joint(at, self._best(losses, price), self._shares(how)), 0.0), choice

    def _shares(self, how: Drawing) -> np.ndarray:
        """Shares of queries (3,): the best choice, a uniform one, all arms."""
        share = self.check(how)
        return np.array([(1 - how.shadow) * (1 - share), (1 - how.shadow) * share, how.shadow])

    def _joint(self, at: np.ndarray, best: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Probability (Q,) of places (Q, A) in the arms' depths; best (Q, A) likewise."""
        uniform = np.full(len(at), 1 / self._num_choices)
        return shares @ np.stack([(at == best).all(axis=1), uniform, (at == self._sizes - 1).all(axis=1)])

    def price(self, losses: np.ndarray, budget: float) -> float:
        """Price at which greedy choices cost at most the budget on average over a sample of losses (Q, P)."""
        losses = losses[:: -(-len(losses) // _PRICED)]

        def mean_cost(price: float) -> float:
            return float(sum(arm[at].mean() for arm, at in zip(self._costs, self._best(losses, price).T, strict=True)))

        cheapest = min(float(arm[1:].min()) for arm in self._costs if len(arm) > 1)
        return least_price(mean_cost, cheapest, budget, "policy.arms_budget", _STEPS)


Choices = ListedArms | UnlistedArms


def feasible_arms(depths: Mapping[str, int], shallow: Sequence[int], costs: Costs, cut: int = 1) -> Choices:
    """Builds the choices of a policy: listed if there are at most MOST, else unlisted.

    Args:
        depths: arm -> its whole depth, 0 = it never runs; in the learner's order.
        shallow: further depths, used by every arm that can run deeper (`ArmLossLearner.shallow`).
        cut: candidates of the union that go to the ranker.
    """
    if unknown := costs.run.keys() - depths.keys():
        raise ValueError(f"policy.arms_costs: there is no arm {min(unknown)!r}; the arms are {', '.join(depths)}")
    levels = {arm: [*(s for s in shallow if s < most), most] if most else [] for arm, most in depths.items()}
    listed = int(np.prod([1.0 + len(arm_depths) for arm_depths in levels.values()])) <= MOST
    return (ListedArms if listed else UnlistedArms)(levels, costs, cut, len(shallow) + 2)


def levels_of(depths: np.ndarray, levels: Mapping[str, Sequence[int]], num_levels: int) -> np.ndarray:
    """Converts depths (N, A) to levels (N, A): 0 = off, L − 1 = the deepest, others in order."""
    out = np.zeros(depths.shape, int)
    for a, arm_depths in enumerate(levels.values()):
        for place, depth in enumerate(arm_depths):
            out[depths[:, a] == depth, a] = num_levels - 1 if place == len(arm_depths) - 1 else place + 1
    return out


def _run(levels: Mapping[str, Sequence[int]], costs: Costs) -> dict[str, float]:
    return {arm: float(costs.run.get(arm, 1.0)) for arm in levels}
