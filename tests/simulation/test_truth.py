"""Recall of systems that do not learn, against plain loops."""

from __future__ import annotations

import numpy as np

from ltrr.fusion import ReciprocalRankFusion
from ltrr.simulation.truth import fitted_order, recall_by_cut, recall_of_slots
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
