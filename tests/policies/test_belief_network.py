"""A belief's network learns from what is shown, tells of queries that nobody asked, and is logged as it read."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.feedback.evidence.tally import Tally
from ltrr.learners.prior import PriorLearner
from ltrr.policies.belief import Belief
from ltrr.policies.features import ContextFeatures, Feature, Group
from ltrr.policies.shown import ShownPairs
from ltrr.simulation.pools import JudgedPools
from ltrr.simulation.stream import Customers, Stream, play
from ltrr.types import Pool, Query

ARMS, MOST, QUERIES = ("words", "meaning"), 8, 300
KIND = ContextFeatures(
    [Group((Feature("kind", "0 or 1"),), lambda queries: np.array([[int(q.id) % 2] for q in queries]))]
)
GIVEN = {"arms": ARMS, "depths": dict.fromkeys(ARMS, MOST), "budget": 3.0, "num": MOST}


@pytest.fixture(scope="module")
def pools() -> JudgedPools:
    """Whether `words` or `meaning` is right depends on a feature of the query; the fused score says neither."""
    rng = np.random.default_rng(0)
    ranks = np.stack([np.argsort(rng.random((QUERIES, MOST)), axis=1) for _ in ARMS], axis=2)
    kind = np.arange(QUERIES) % 2
    grades = (np.take_along_axis(ranks, kind[:, None, None], 2)[:, :, 0] == 0).astype(float)
    scores = 1 / (1.0 + ranks)
    order = np.argsort(-scores.sum(axis=2), axis=1, kind="stable")
    ranks, scores = (np.take_along_axis(part, order[:, :, None], 1) for part in (ranks, scores))
    place = np.broadcast_to(np.arange(MOST)[:, None], (QUERIES, MOST, 1))
    docs = np.arange(QUERIES * MOST, dtype=np.int32).reshape(QUERIES, MOST)
    pool = Pool(
        (*ARMS, "fused"),
        np.take_along_axis(docs, order, 1),
        np.concatenate([ranks, place], axis=2).astype(np.float32),
        np.concatenate([scores, scores.sum(axis=2, keepdims=True)], axis=2),
    )
    queries = [Query(str(i), f"query {i}") for i in range(QUERIES)]
    ones = np.ones(QUERIES)
    return JudgedPools(queries, KIND(queries), pool, np.take_along_axis(grades, order, 1), 1, ones, ones.astype(int))


def test_queries_that_nobody_asked_gain(pools: JudgedPools) -> None:
    known, new = pools.some(np.arange(200)), pools.some(np.arange(200, QUERIES))
    rng = np.random.default_rng(1)
    stream = Stream(rng.integers(200, size=2_500), np.zeros(2_500, int), 1)
    found = {}
    for name, learner in (("plain", None), ("network", PriorLearner(hidden=16, shrink=50.0))):
        belief = Belief(**GIVEN, evidence=Tally(), learner=learner, features=KIND, seed=1)
        play(belief, known, stream, Customers())
        odds = belief.odds(new.queries, new.pool, new.features)[0]
        first = np.take_along_axis(new.grades, odds.argmax(axis=1)[:, None], 1)
        found[name] = first.mean()
    assert found["network"] > found["plain"] + 0.15


def test_what_was_read_is_logged_and_gives_the_same(pools: JudgedPools) -> None:
    some = pools.some(np.arange(5))
    belief = Belief(**GIVEN, evidence=Tally(), learner=PriorLearner(hidden=8), features=KIND, seed=1)
    logged = belief.revise(some.queries, some.features, some.pool, belief.decide(some.queries, some.features)).features
    assert belief._learner is not None
    query, each = belief._learner.columns
    assert logged.shape == (5, len(query) + MOST * len(each))
    np.testing.assert_array_equal(logged[:, :1], some.features)
    for ours, theirs in zip(
        belief.odds(some.queries, some.pool, logged), belief.odds(some.queries, some.pool), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_network_of_other_arms_or_features_is_refused(pools: JudgedPools) -> None:
    learner = PriorLearner(hidden=8)
    Belief(**GIVEN, evidence=Tally(), learner=learner, features=KIND)
    Belief(**GIVEN, evidence=Tally(), learner=learner, features=KIND)
    with pytest.raises(ValueError, match="other features"):
        Belief(**GIVEN, evidence=Tally(), learner=learner)
    with pytest.raises(ValueError, match="arms"):
        Belief(**GIVEN | {"arms": ("words",), "depths": {"words": MOST}}, evidence=Tally(), learner=learner)


def test_an_arm_that_is_not_there_says_nothing(pools: JudgedPools) -> None:
    some = pools.some(np.arange(5))
    belief = Belief(**GIVEN, evidence=Tally(), learner=PriorLearner(hidden=8), features=KIND, seed=1)
    one = Pool(("words", "fused"), some.pool.docs, some.pool.ranks[:, :, [0, 2]], some.pool.scores[:, :, [0, 2]])
    silent = some.pool.ranks.copy(), some.pool.scores.copy()
    for part in silent:
        part[:, :, 1] = np.nan
    whole = Pool(some.pool.arms, some.pool.docs, *silent)
    fixed = belief.decide(some.queries, some.features)
    ours, theirs = (belief.revise(some.queries, some.features, pool, fixed).features for pool in (one, whole))
    np.testing.assert_array_equal(ours, theirs)


def test_heed_0_is_the_prior_alone(pools: JudgedPools) -> None:
    some = pools.some(np.arange(50))
    belief = Belief(**GIVEN, evidence=Tally(), heed=0.0, seed=1)
    before = belief.odds(some.queries, some.pool)[0].copy()
    play(belief, some, Stream(np.arange(500) % 50, np.zeros(500, int), 1), Customers())
    calibrated = belief.prior(some.pool)[0]  # fitted on clicks
    np.testing.assert_array_equal(belief.odds(some.queries, some.pool)[0], calibrated)
    assert not np.array_equal(before, calibrated)


def test_pairs_without_evidence_are_forgotten() -> None:
    pairs = ShownPairs()
    for text in ("seen", "not"):
        pairs.add(text, np.array([3, 5]), np.full((2, 4), len(text)), np.ones((2, 1)))
    pairs.add("seen", np.array([5]), np.zeros((1, 4)), np.zeros((1, 1)))  # as it was shown first
    inputs, columns, evidence = pairs.with_evidence(lambda text, rows, x: (text == "seen") * rows * x[:, 0])
    np.testing.assert_array_equal(inputs, np.full((2, 4), 4))
    np.testing.assert_array_equal(evidence, [3, 5])
    assert columns.shape == (2, 1)
    assert len(pairs) == 2
