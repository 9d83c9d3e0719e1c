"""The learning loop: what a policy is asked, what it is taught, and what it then reaches."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.feedback.clicks import PositionBased
from ltrr.learners.linucb import LinUCB
from ltrr.policies.cut import CutPolicy
from ltrr.policies.explorers import Softmax, Thompson
from ltrr.policies.features import ContextFeatures, Feature, Group
from ltrr.policies.fixed import FixedPolicy
from ltrr.simulation.loop import Customers, features_of, frozen, learn, serve
from ltrr.simulation.splits import Parts, make_fold
from ltrr.types import Candidates, Revised
from tests.simulation.worlds import ARMS, DEPTHS, ORDER, random_pools

NUM = 10
PERFECT = Customers(PositionBased.power(NUM, 0.0), 0.0)
FEATURES = ContextFeatures(
    [Group((Feature("easy", "0 or 1"),), lambda queries: np.array([[q.text == "plain"] for q in queries]))]
)


@pytest.fixture(scope="module")
def fold():
    """700, 100 and 300 queries that teach, set prices and test; their features are those of FEATURES."""
    parts = [random_pools(num, seed) for num, seed in ((700, 1), (100, 2), (300, 3))]
    return make_fold(Parts(*(p._replace(features=FEATURES(p.queries)) for p in parts)), ORDER, NUM, [4])


def cuts(explore=None, budget: float = 4.0, **options) -> CutPolicy:
    learner = LinUCB([1.0], l2=10.0, noise=0.0)
    return CutPolicy(
        ARMS, learner, DEPTHS, budget=budget, explore=explore, num=NUM, features=FEATURES, seed=0, **options
    )


def rng():
    return np.random.default_rng(0)


def test_the_page_is_the_first_candidates_in_fused_order(fold) -> None:
    pools = fold.test.pools
    served = serve(FixedPolicy(ARMS, DEPTHS, 100), pools, ORDER, NUM)
    assert (served.cut == NUM).all()  # a page has no more
    np.testing.assert_allclose(served.recall, fold.test.recall["convex"])
    real = pools.pool.docs[:, :NUM] >= 0
    np.testing.assert_array_equal(served.grades[real], pools.grades[:, :NUM][real])
    assert np.isnan(served.grades[~real]).all()


def test_a_policy_may_order_the_candidates_itself(fold) -> None:
    class Backwards(FixedPolicy):
        def revise(self, queries, features, pool, decision):
            length = (pool.docs >= 0).sum(axis=1, keepdims=True)
            at = np.where(np.arange(pool.docs.shape[1]) < length, length - 1 - np.arange(pool.docs.shape[1]), -1)
            docs = np.where(at >= 0, np.take_along_axis(pool.docs, np.maximum(at, 0), 1), -1)
            scores = np.where(at >= 0, at.astype(np.float32), -np.inf)
            return Revised(features, decision, Candidates(docs.astype(np.int32), scores))

    served = serve(Backwards(ARMS, DEPTHS, 3), fold.test.pools, ORDER, NUM)
    for own, grades, docs in zip(served.grades, fold.test.pools.grades, fold.test.pools.pool.docs, strict=True):
        length = (docs >= 0).sum()
        assert own[: min(length, NUM)].tolist() == grades[:length][::-1][:NUM].tolist()


def test_arms_that_a_policy_leaves_off_bring_nothing(fold) -> None:
    """Arm `b` never knows more than others of the answer, which is `a`'s."""
    served = serve(FixedPolicy(ARMS, {"b": 8}, 10), fold.test.pools, ORDER, NUM)
    alone = make_fold(Parts(*[fold.test.pools.without(["a", "fused"]).drawn(np.array([0, 8]))] * 3), ORDER, NUM, [])
    np.testing.assert_allclose(served.recall, alone.test.recall["convex"])


def test_rounds_are_logged_and_counted(fold) -> None:
    policy = FixedPolicy(ARMS, DEPTHS, 4)
    (one, first), (two, log) = learn(policy, fold, PERFECT, num=NUM, passes=[1, 2], rng=rng())
    assert (one, two) == (1, 2)
    assert (len(first.row), len(log.row)) == (700, 1400)
    assert sorted(log.row[:700]) == sorted(log.row[700:]) == [*range(700)]
    np.testing.assert_allclose(log.recall, fold.train.recall["convex"][log.row, 3])
    relevant = fold.train.pools.grades[:, :NUM][log.row] > 0
    np.testing.assert_array_equal(log.clicks, relevant & (np.arange(NUM) < 4))  # perfect customers click on all of it


def test_it_learns_who_needs_more_and_holds_the_budget(fold) -> None:
    policy = cuts(Softmax(0.02, 0.1))
    ((_, log),) = learn(policy, fold, PERFECT, num=NUM, passes=[1], rng=rng())
    assert log.cut[300:].mean() == pytest.approx(4.0, abs=0.5)
    chosen, recall = frozen(policy, fold, NUM)
    assert chosen.shape == recall.shape == (300, 61)
    assert chosen[:, 0].mean() == pytest.approx(4.0, abs=0.8)  # the price is dev's
    easy = fold.test.pools.features[:, 0] == 1
    assert chosen[easy, 0].mean() < chosen[~easy, 0].mean() - 1
    fixed = fold.test.recall["convex"]
    assert recall[:, 0].mean() > np.interp(chosen[:, 0].mean(), np.arange(1, NUM + 1), fixed.mean(axis=0)) + 0.02
    np.testing.assert_allclose(np.take_along_axis(fixed, chosen - 1, 1), recall)


def test_testing_a_policy_leaves_its_prices(fold) -> None:
    """Those that dev sets belong to the frozen copy: the next pass goes on at those of the queries that teach."""
    policy = cuts(Softmax(0.02, 0.1))
    for _, _ in learn(policy, fold, PERFECT, num=NUM, passes=[1], rng=rng()):
        before = policy.prices
        frozen(policy, fold, NUM)
        assert policy.prices == before


def test_before_anything_is_learned_cuts_follow_usual_values(fold) -> None:
    chosen, _ = frozen(cuts(), fold, NUM)
    assert len({*chosen[:, 0].tolist()}) == 1
    assert chosen[0, 0] <= 4


def test_estimated_propensities_are_never_logged(fold) -> None:
    with pytest.raises(ValueError, match="estimated"):
        cuts(Thompson(8))
    policy = cuts(Thompson(8), estimated=True)
    pools = fold.test.pools
    decision = policy.decide(pools.queries, pools.features)
    revised = policy.revise(pools.queries, pools.features, pools.pool, decision).decision
    assert np.isnan(revised.propensity).all()
    assert np.isnan(revised.marginals[:, -1]).all()
    assert (revised.marginals[:, :-1] == 1).all()


def test_features_are_those_that_the_policy_asks_for(fold) -> None:
    queries = fold.test.pools.queries
    np.testing.assert_array_equal(features_of(cuts(), queries), FEATURES(queries))
    assert features_of(FixedPolicy(ARMS, DEPTHS), queries).shape == (300, 0)
