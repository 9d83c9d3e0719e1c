"""Recall of systems that do not learn, for every cut: each arm, their fusions, rules, and slots reserved for each arm.

Knows judged pools in fused order, and rules; does not know policies that learn. Legend: Q queries, M cuts (1 to M
candidates), A arms.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from ltrr.fusion import ConvexFusion, reciprocal_ranks
from ltrr.policies.rules import Calibrated, LargestGap, RangeScaled, SoftmaxMass, Threshold
from ltrr.policies.worth import WorthPolicy
from ltrr.protocols import Ranker, Weighted, offers
from ltrr.simulation.allocations import best_slots, slot_order
from ltrr.simulation.pools import JudgedPools, widened

ORDER = "convex"  # the fused order that is cut
_TEMPERATURES = (0.02, 0.05, 0.1, 0.2)


def fitted_order(pools: JudgedPools) -> ConvexFusion:
    """The fused order for these queries."""
    return ConvexFusion.fit(pools.pool, pools.grades, pools.pool.arms)[0]


def recall_of(gains: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Recall of the first 1 to M candidates (Q, M); gains (Q, M) in the order that is cut, total (Q,) relevant ones."""
    return np.cumsum(gains, axis=1) / np.where(total > 0, total, 1)[:, None]


def recall_by_cut(pools: JudgedPools, num: int) -> dict[str, np.ndarray]:
    """System -> (Q, M) recall of its first 1 to `num` candidates: each arm alone, reciprocal ranks, the fused order."""
    pool, gains = pools.pool, pools.gains
    keys = {name: pool.ranks[:, :, a] for a, name in enumerate(pool.arms[:-1])}
    keys["rrf"] = -reciprocal_ranks(pool._replace(arms=pool.arms[:-1], ranks=pool.ranks[:, :, :-1]))
    keys[ORDER] = pool.ranks[:, :, -1]
    recall = {}
    for name, key in keys.items():
        places = np.argsort(np.where(pool.docs >= 0, key, np.inf), axis=1, kind="stable")  # NaN, not returned, is last
        returned = np.isfinite(np.take_along_axis(key, places, 1))
        ranked = widened(np.take_along_axis(gains, places, 1) * returned, num, 0.0)
        recall[name] = recall_of(ranked, pools.positives)
    return recall


def rules_of(train: JudgedPools, num: int) -> dict[str, WorthPolicy]:
    """Rules that cut the fused order; the calibration's numbers are fitted on train queries. num: M."""
    arms = train.pool.arms[:-1]
    given = {"arms": arms, "depths": dict.fromkeys(arms, 0), "budget": 1.0, "num": num}
    rules: dict[str, WorthPolicy] = {"threshold": Threshold(**given), "range-scaled": RangeScaled(**given)}
    rules |= {f"mass, {t:g}": SoftmaxMass(**given, temperature=t) for t in _TEMPERATURES}
    rules["largest gap"] = LargestGap(**given)
    with suppress(ValueError):  # nothing that was retrieved is relevant, or all of it
        rules["calibration"] = Calibrated(**given, **Calibrated(**given).calibrate(train.pool, train.gains))
    return rules


def recall_by_mean(rule: WorthPolicy, pools: JudgedPools, num: int) -> np.ndarray:
    """(Q, M) recall of each query where the price is such that these queries have 1 to M candidates on average.

    So a rule has the best price that it can have; no judgement is looked at.
    """
    worth, order, _ = rule.worth(pools.queries, pools.pool, pools.features)
    gains = pools.gains if order is None else np.take_along_axis(pools.gains, order, 1)
    recall = recall_of(widened(gains, num, 0.0), pools.positives)
    worth = widened(worth, num, -np.inf)
    rank = np.empty(worth[:, 1:].size, np.int64)  # of each candidate below the first, among those of all queries
    rank[np.argsort(-worth[:, 1:], axis=None, kind="stable")] = np.arange(len(rank))
    rank = rank.reshape(len(worth), -1)
    out = np.empty_like(recall)
    for more in range(num):  # candidates beside the first, on average
        cut = (rank < more * len(worth)).sum(axis=1)
        out[:, more] = np.take_along_axis(recall, cut[:, None], 1)[:, 0]
    return out


def recall_of_slots(dev: JudgedPools, test: JudgedPools, order: Ranker, num: int) -> np.ndarray:
    """(Q,) recall of test queries where each arm has the slots, of `num`, that find most for dev queries.

    Arms fill their slots one after the other, first those that weigh most in the fused order.
    """
    weighted = offers(order, Weighted)
    weights = weighted.weights if weighted is not None else {}
    names = dev.pool.arms[:-1]
    arms = sorted(range(len(names)), key=lambda a: -weights.get(names[a], 0.0))
    slots, _ = best_slots(dev.pool.ranks[:, :, arms], dev.gains, dev.positives, num)
    places = slot_order(test.pool.ranks[:, :, arms], slots)
    gains = np.where(places >= 0, np.take_along_axis(test.gains, places, 1), 0.0)
    return gains.sum(axis=1) / test.positives
