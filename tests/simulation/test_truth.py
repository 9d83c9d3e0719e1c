"""Recall of systems that do not learn, against plain loops."""

from __future__ import annotations

import numpy as np

from ltrr.fusion import ReciprocalRankFusion
from ltrr.policies.rules import RangeScaled, SameCut
from ltrr.simulation.truth import fitted_order, recall_by_cut, recall_by_mean, recall_of_slots, rules_of
from tests.simulation.worlds import ARMS, ORDER, random_pools


def test_recall_is_that_of_the_first_candidates_of_each_system() -> None:
    pools = random_pools()
    recall = recall_by_cut(pools.fused(ORDER), 20)
    assert set(recall) == {*ARMS, "rrf", "convex"}
    rankings = {"convex": ORDER.rank(pools.queries, pools.pool).docs}
    rankings["rrf"] = ReciprocalRankFusion().rank(pools.queries, pools.pool).docs
    for a, arm in enumerate(ARMS):
        order = np.argsort(pools.pool.ranks[:, :, a], axis=1)  # NaN is last
        ranked = np.take_along_axis(pools.pool.docs, order, 1)
        rankings[arm] = np.where(np.sort(np.isnan(pools.pool.ranks[:, :, a]), axis=1), -1, ranked)
    for name in ("convex", *ARMS):
        for q, docs in enumerate(rankings[name].tolist()):
            wanted = {doc for doc, grade in zip(pools.pool.docs[q], pools.grades[q], strict=True) if grade}
            found = [len(wanted & {doc for doc in docs[:cut] if doc >= 0}) for cut in range(1, 21)]
            np.testing.assert_allclose(recall[name][q], found)


def test_slots_are_chosen_on_dev_and_filled_for_test() -> None:
    """Only arm `a` knows the answers, so it gets all slots."""
    dev, test = (random_pools(seed=seed).fused(ORDER) for seed in (0, 1))
    alone = recall_by_cut(test, 12)["a"]
    np.testing.assert_allclose(recall_of_slots(dev, test, ORDER, 7), alone[:, 6])


def test_the_fitted_order_trusts_the_arm_that_knows() -> None:
    weights = fitted_order(random_pools(300)).weights
    assert weights["a"] > weights["b"]


def test_a_rule_has_its_best_price_for_every_mean() -> None:
    pools = random_pools().fused(ORDER)
    given = {"arms": pools.pool.arms[:-1], "depths": {}, "budget": 1.0, "num": 12}
    same = recall_by_mean(SameCut(**given), pools, 12)
    np.testing.assert_allclose(same[:, 0], recall_by_cut(pools, 12)["convex"][:, 0])
    np.testing.assert_allclose(same[:, -1], recall_by_cut(pools, 12)["convex"][:, -1])
    rule = RangeScaled(**given)
    found, worth = recall_by_mean(rule, pools, 12), rule.worth(pools.queries, pools.pool).worth
    for price in (0.9, 0.6, 0.3):
        cut = np.maximum((worth >= price).sum(axis=1), 1)
        mean = cut.mean()
        by_cut = recall_by_cut(pools, 12)["convex"]
        reached = np.take_along_axis(by_cut, cut[:, None] - 1, 1).mean()
        low = int(mean)
        assert found[:, low - 1].mean() - 1e-9 <= reached <= found[:, min(low, 11)].mean() + 1e-9
    assert {*rules_of(pools, 12)} >= {"threshold", "range-scaled", "largest gap", "calibration"}
