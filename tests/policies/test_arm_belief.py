"""A belief that chooses arms runs what a query needs, says how likely that was, and holds one budget for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ltrr.feedback.evidence.tally import Tally
from ltrr.fusion import ConvexFusion, union
from ltrr.policies.arm_belief import ArmBelief
from ltrr.simulation.pools import JudgedPools
from ltrr.simulation.stream import Arms, Customers, Stream, play
from ltrr.types import ActionRow, Candidates, Decision, ImpressionRow, Pool, Query, Revised

ARMS, MOST, QUERIES = ("cheap", "dear"), 6, 40
COSTS = {"cheap": 1.0, "dear": 3.0}
GIVEN: dict[str, Any] = {"arms": ARMS, "depths": dict.fromkeys(ARMS, MOST), "num": 12, "costs": COSTS, "seed": 1}
GIVEN |= {"calibration": [4.0, 0.0, -0.5, -2.0]}
ORDER = ConvexFusion({"cheap": 0.5, "dear": 0.5})
NONE = np.zeros((1, 0))


@pytest.fixture(scope="module")
def pools() -> JudgedPools:
    """The first half of the queries wants the second of `cheap`, the others the second of `dear`; none is in both."""
    docs = np.arange(QUERIES * 2 * MOST, dtype=np.int32).reshape(QUERIES, 2, MOST)
    scores = np.broadcast_to(np.linspace(1, 0.1, MOST, dtype=np.float32), (QUERIES, MOST))
    pool = union({arm: Candidates(docs[:, a], scores) for a, arm in enumerate(ARMS)})
    wanted = np.where(np.arange(QUERIES) < QUERIES // 2, docs[:, 0, 1], docs[:, 1, 1])
    queries = [Query(str(i), f"query {i}") for i in range(QUERIES)]
    ones = np.ones(QUERIES)
    grades = (pool.docs == wanted[:, None]).astype(int)
    return JudgedPools(queries, np.zeros((QUERIES, 0)), pool, grades, 1, ones, ones.astype(int)).fused(ORDER)


def served(policy: ArmBelief, pools: JudgedPools, q: int) -> tuple[Decision, Revised, Pool]:
    one = pools.some(np.array([q]))
    decision = policy.decide(one.queries, NONE)
    pool = one.retrieved(decision.depths, ORDER).pool
    return decision, policy.revise(one.queries, NONE, pool, decision), pool


def teach(policy: ArmBelief, q: int, row: int, times: int = 5) -> None:
    for n in range(times):
        impression = ImpressionRow(f"{q}-{n}", f"{q}-{n}", f"c{n}", n, f"query {q}", [row])
        policy.online(None, "").take([impression], [ActionRow(f"a{q}-{n}", f"{q}-{n}", row, "click", n, None)])


def test_a_query_gets_the_arm_that_brings_what_it_wants(pools: JudgedPools) -> None:
    policy = ArmBelief(**GIVEN, budget=4.0, evidence=Tally(), shadow=1e-9)
    policy.set_prices({"candidates": 0.1})
    for q in (0, QUERIES - 1):
        decision, revised, _ = served(policy, pools, q)
        assert (decision.depths == MOST).all()  # nothing is known of it yet
        wanted = int(pools.pool.docs[q, pools.grades[q].argmax()])
        teach(policy, q, wanted)
        decision, revised, _ = served(policy, pools, q)
        assert (decision.depths[0] > 0).tolist() == [q == 0, q > 0]
        assert revised.order is not None
        assert revised.order.docs[0, 0] == wanted


def test_the_propensity_is_that_of_the_draw(pools: JudgedPools) -> None:
    policy = ArmBelief(**GIVEN, budget=4.0, evidence=Tally(), shadow=0.3)
    policy.set_prices({"candidates": 0.1})
    served(policy, pools, 0)
    teach(policy, 0, int(pools.pool.docs[0, pools.grades[0].argmax()]))
    drawn = [policy.decide([pools.queries[0]], NONE) for _ in range(4_000)]
    whole = np.array([(decision.depths > 0).all() for decision in drawn])
    assert whole.mean() == pytest.approx(0.3, abs=0.03)
    for decision, everything in zip(drawn[:50], whole[:50], strict=True):
        assert decision.propensity[0] == pytest.approx(0.3 if everything else 0.7)
        np.testing.assert_allclose(decision.marginals[0], [1.0, 0.3 if everything else 0.7, 1.0])


def test_where_an_arm_was_off_candidates_keep_the_odds_that_they_had(pools: JudgedPools) -> None:
    policy = ArmBelief(**GIVEN, budget=4.0, evidence=Tally(), shadow=1e-9)
    policy.set_prices({"candidates": 0.1})
    served(policy, pools, 0)
    one = pools.some(np.array([0]))
    whole = policy.odds(one.queries, one.pool)[0][0]
    part = one.retrieved(np.array([[MOST, 0]]), ORDER).pool
    odds = policy.odds(one.queries, part)[0][0]
    real = part.docs[0] >= 0
    place = [pools.pool.docs[0].tolist().index(doc) for doc in part.docs[0, real].tolist()]
    np.testing.assert_allclose(odds[real], whole[place])


def test_candidates_and_arms_share_a_budget(pools: JudgedPools) -> None:
    stream = Stream(np.arange(6_000) % QUERIES, np.zeros(6_000, int), 1)
    policy = ArmBelief(**GIVEN, budget=4.0, evidence=Tally())
    played = play(policy, pools, stream, Customers(), arms=Arms(ARMS, np.array([*COSTS.values()]), ORDER))
    assert played.cost[2_000:].mean() == pytest.approx(4.0, rel=0.1)  # arms are dear, so steps are coarse
    assert played.recall[2_000:].mean() > 0.9  # with all arms no budget would be left for candidates
    assert played.cost[:QUERIES].min() > 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"costs": {"dense": 1.0}}, "no arm 'dense'"),
        ({"costs": {"dear": -1.0}}, "below 0"),
        ({"shadow": 0.0}, "shadow"),
        ({"arms": tuple("abcdefghi"), "depths": {}, "costs": {}}, "9 arms"),
    ],
)
def test_arguments_that_make_no_sense_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArmBelief(**GIVEN | change, budget=4.0, evidence=Tally())
