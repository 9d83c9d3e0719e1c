"""Choices of arms and depths: their costs, their predicted losses, and the probability with which each is drawn.

Knows what each choice is expected to lose and what arms cost; does not know features or what learns them. Up to MOST
choices are listed, so best choices and propensities are exact. Beyond that the best is found greedily and exploring is
uniform, so propensities are exact there too.
Legend: Q queries, A arms, L levels of depth (0 = off, L − 1 = the arm's whole depth), N choices, P heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ltrr.policies.explorers import EpsilonGreedy, Explorer
from ltrr.policies.price import least_price, price_for
from ltrr.policies.table import MOST, Table, greedy
from ltrr.types import Decision

FEW = 256  # choices that have a head each; where there are more, arms and pairs of arms have heads
_PRICED = 200  # queries on which the price of greedy choices is set
_STEPS = 15  # of bisection, likewise


def choices(num_arms: int, num_levels: int = 2) -> np.ndarray:
    """(N, A) levels of all choices in which some arm runs; the last is all arms at their whole depth."""
    numbers = np.arange(1, num_levels**num_arms)
    return numbers[:, None] // num_levels ** np.arange(num_arms) % num_levels


def design(levels: np.ndarray, num_levels: int) -> np.ndarray:
    """(B, P) design matrix from head losses to the losses of choices (B, A).

    One head per choice where choices are few, else main effects of arms plus pairwise interactions.
    """
    num_arms = levels.shape[1]
    if (most := num_levels**num_arms - 1) <= FEW:
        return np.eye(most)[levels @ num_levels ** np.arange(num_arms) - 1]
    less = (levels[:, :, None] == np.arange(num_levels - 1)).astype(float)  # (B, A, L − 1) than its whole depth
    one, other = np.triu_indices(num_arms, 1)
    pairs = less[:, one, :, None] * less[:, other, None, :]
    return np.concatenate([less.reshape(len(levels), -1), pairs.reshape(len(levels), -1)], axis=1)


class Drawing(NamedTuple):
    """How choices are drawn."""

    explorer: Explorer
    shadow: float = 0.0  # share of queries for which all arms run at their whole depths, if the cap lets them


@dataclass(frozen=True)
class Costs:
    """What arms cost.

    Args:
        run: arm -> cost where it runs, 1 where it is not named.
        drawn: of each candidate that an arm draws.
        cap: that the arms of no query may exceed; None = there is none.
    """

    run: Mapping[str, float]
    drawn: float = 0.0
    cap: float | None = None

    def __post_init__(self) -> None:
        if (least := min(self.run.values(), default=0.0)) < 0 or self.drawn < 0:
            raise ValueError(f"policy.arms_costs, arms_drawn_cost: {min(least, self.drawn):g} is below 0")


class ListedArms:
    """All choices, the cheapest first and all arms last; candidates are free.

    Args:
        levels: arm -> its depths, ascending, beside 0; none = it never runs.
        cut: candidates of the union that go on.
        num_levels: of the learner.
    """

    def __init__(self, levels: Mapping[str, Sequence[int]], costs: Costs, cut: int, num_levels: int) -> None:
        most = min([cut, *(min(own) for own in levels.values() if own)])  # one arm alone can fill it
        own = {arm: [0, *depths] for arm, depths in levels.items()}
        table = Table.of(
            own, [most], arm_costs=_run(levels, costs), candidate_cost=0.0, drawn_cost=costs.drawn, cap=costs.cap
        )
        self.table = replace(table, cuts=np.full(len(table), cut, np.int32))
        self._whole = bool((table.depths[-1] == [max(depths) for depths in own.values()]).all())
        self._design = design(levels_of(self.table.depths, levels, num_levels), num_levels)  # (N, P)

    def check(self, how: Drawing) -> None:
        """ValueError for an explorer of what is uncertain: losses are not learned click by click."""
        if how.explorer.unsure:
            raise ValueError(
                f"policy.explore: {type(how.explorer).__name__} needs deviations, which policies of arms do not give; "
                "use Softmax, SquareCB or EpsilonGreedy"
            )

    def values(self, losses: np.ndarray) -> np.ndarray:
        """(Q, N) expected recall of each choice, less that of all arms; losses (Q, P)."""
        return -losses @ self._design.T

    def probabilities(self, losses: np.ndarray, price: float, how: Drawing) -> np.ndarray:
        """(Q, N) of each choice of the table, at a price; losses (Q, P)."""
        worth = self.values(losses) - price * self.table.costs
        probabilities, shadow = how.explorer.probabilities(worth), how.shadow * self._whole
        probabilities *= 1 - shadow
        probabilities[:, -1] += shadow
        return probabilities

    def draw(
        self, losses: np.ndarray, price: float, how: Drawing, rng: np.random.Generator
    ) -> tuple[Decision, np.ndarray]:
        """A decision for each query, and (Q,) its cost; losses (Q, P)."""
        drawn, decision = self.table.draw(self.probabilities(losses, price, how), rng)
        return decision, self.table.costs[drawn]

    def rows(self, depths: np.ndarray) -> np.ndarray:
        """(Q,) places in the table of depths (Q, A), −1 = not a choice."""
        numbers = {row.tobytes(): n for n, row in enumerate(self.table.depths)}
        return np.array([numbers.get(row.tobytes(), -1) for row in depths.astype(np.int32)], int)

    def price(self, losses: np.ndarray, budget: float) -> float:
        """At which the best choices for these queries cost at most the budget in the mean."""
        return price_for(self.values(losses), self.table.costs, budget, "policy.arms_budget")


class UnlistedArms:
    """More choices than can be listed: the best is looked for greedily, others are drawn uniformly.

    So propensities are exact here too. Arguments as of ListedArms; explorers are EpsilonGreedy alone, without a cap.
    """

    def __init__(self, levels: Mapping[str, Sequence[int]], costs: Costs, cut: int, num_levels: int) -> None:
        if costs.cap is not None:
            raise ValueError(f"policy.arms_cap: not with more than {MOST:,} choices of depths; have fewer levels")
        self._depths = [np.array([0, *own]) for own in levels.values()]
        run = _run(levels, costs)
        self._costs = [(own > 0) * run[arm] + costs.drawn * own for arm, own in zip(levels, self._depths, strict=True)]
        self._own = [np.array([*range(len(own) - 1), num_levels - 1] if len(own) > 1 else [0]) for own in self._depths]
        self._cut, self._num_levels = cut, num_levels

    def check(self, how: Drawing) -> EpsilonGreedy:
        """The explorer; ValueError for another one."""
        if not isinstance(how.explorer, EpsilonGreedy):
            raise ValueError(
                f"policy.explore: {type(how.explorer).__name__} needs a list of choices, and these are more than "
                f"{MOST:,}; use EpsilonGreedy, or fewer depths"
            )
        if not 0 <= how.explorer.epsilon <= 1:
            raise ValueError(f"policy.explore: a share of {how.explorer.epsilon} is not within 0 and 1")
        return how.explorer

    def _best(self, losses: np.ndarray, price: float) -> np.ndarray:
        """(Q, A) places in the arms' depths, of losses (Q, P)."""

        def gain(places: np.ndarray, lost: np.ndarray) -> np.ndarray:
            levels = np.stack([own[at] for own, at in zip(self._own, places.T, strict=True)], axis=1)
            return np.where((places > 0).any(axis=1), -design(levels, self._num_levels) @ lost, -np.inf)

        deepest = np.array([len(own) - 1 for own in self._depths])
        return np.stack([greedy(lambda p, lost=lost: gain(p, lost), self._costs, price, deepest) for lost in losses])

    def draw(
        self, losses: np.ndarray, price: float, how: Drawing, rng: np.random.Generator
    ) -> tuple[Decision, np.ndarray]:
        """A decision for each query, and (Q,) its cost; losses (Q, P)."""
        any_share = self.check(how).epsilon
        best, sizes = self._best(losses, price), np.array([len(own) for own in self._depths])
        whole, num = sizes - 1, len(best)
        shares = np.array([(1 - how.shadow) * (1 - any_share), (1 - how.shadow) * any_share, how.shadow])
        kind = rng.choice(3, num, p=shares)  # the best, any, all arms
        any_of = rng.integers(0, sizes, (num, len(sizes)))
        while (none := ~any_of.any(axis=1)).any():  # no arm at all is no choice
            any_of[none] = rng.integers(0, sizes, (none.sum(), len(sizes)))
        at = np.select([kind[:, None] == 0, kind[:, None] == 1], [best, any_of], whole)
        feasible = float(np.prod(sizes.astype(float))) - 1
        uniform = (feasible + 1) / sizes - (at == 0)  # choices that have an arm at that level
        joint = shares @ np.stack([(at == best).all(axis=1), np.full(num, 1 / feasible), (at == whole).all(axis=1)])
        marginals = np.einsum("k,kqa->qa", shares, np.stack([at == best, uniform / feasible, at == whole]))
        depths = np.stack([own[place] for own, place in zip(self._depths, at.T, strict=True)], axis=1)
        cost = np.sum([own[place] for own, place in zip(self._costs, at.T, strict=True)], axis=0)
        marginals = np.concatenate([np.clip(marginals, joint[:, None], 1.0), np.ones((num, 1))], axis=1)
        return Decision(depths.astype(np.int32), np.full(num, self._cut, np.int32), joint, marginals), cost

    def price(self, losses: np.ndarray, budget: float) -> float:
        """At which greedy choices for some of these queries cost at most the budget in the mean."""
        losses = losses[:: -(-len(losses) // _PRICED)]

        def mean_cost(price: float) -> float:
            return float(sum(own[at].mean() for own, at in zip(self._costs, self._best(losses, price).T, strict=True)))

        cheapest = min(float(own[1:].min()) for own in self._costs if len(own) > 1)
        return least_price(mean_cost, cheapest, budget, "policy.arms_budget", _STEPS)


Choices = ListedArms | UnlistedArms


def feasible_arms(depths: Mapping[str, int], shallow: Sequence[int], costs: Costs, cut: int = 1) -> Choices:
    """What a policy chooses from.

    Args:
        depths: arm -> its whole depth, 0 = it never runs. In the learner's order.
        shallow: further depths of all arms that are less deep (`Losses.shallow`).
        cut: candidates of the union that go on.
    """
    if unknown := costs.run.keys() - depths.keys():
        raise ValueError(f"policy.arms_costs: there is no arm {min(unknown)!r}; the arms are {', '.join(depths)}")
    levels = {arm: [*(s for s in shallow if s < most), most] if most else [] for arm, most in depths.items()}
    listed = int(np.prod([1.0 + len(own) for own in levels.values()])) <= MOST
    return (ListedArms if listed else UnlistedArms)(levels, costs, cut, len(shallow) + 2)


def levels_of(depths: np.ndarray, levels: Mapping[str, Sequence[int]], num_levels: int) -> np.ndarray:
    """(N, A) levels of depths (N, A): 0 off, the deepest L − 1, those between in order."""
    out = np.zeros(depths.shape, int)
    for a, own in enumerate(levels.values()):
        for place, depth in enumerate(own):
            out[depths[:, a] == depth, a] = num_levels - 1 if place == len(own) - 1 else place + 1
    return out


def _run(levels: Mapping[str, Sequence[int]], costs: Costs) -> dict[str, float]:
    return {arm: float(costs.run.get(arm, 1.0)) for arm in levels}
