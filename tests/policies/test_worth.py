"""Rules say what they are defined to say and keep budgets; what is explored has the propensity that is logged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ltrr.policies.belief import Belief
from ltrr.policies.boost import ClickBoost
from ltrr.policies.rules import Calibrated, LargestGap, RangeScaled, SameCut, SoftmaxMass, Threshold
from ltrr.policies.worth import ReservedPlace
from ltrr.types import Pool, Query

RNG = np.random.default_rng(0)
NUM, WIDTH = 400, 30
RULES = [SameCut, Threshold, RangeScaled, SoftmaxMass, LargestGap, Calibrated]


def pool(num: int = NUM) -> Pool:
    """In fused order; queries have from 3 to all candidates, some scores are equal or below 0."""
    scores = -np.sort(-RNG.normal(0, RNG.random((num, 1)), (num, WIDTH)), axis=1)
    scores[0] = 0.5
    docs = np.stack([RNG.permutation(200)[:WIDTH] for _ in range(num)]).astype(np.int32)
    absent = np.arange(WIDTH) >= RNG.integers(3, WIDTH + 1, num)[:, None]
    docs[absent] = -1
    scores = np.where(absent, np.nan, scores)
    ranks = np.where(absent, np.nan, np.arange(WIDTH))
    return Pool(("all", "fused"), docs, *(np.stack([part] * 2, axis=2).astype(np.float32) for part in (ranks, scores)))


POOL, QUERIES = pool(), [Query(str(i), f"query {i}") for i in range(NUM)]
FEATURES = np.zeros((NUM, 0), np.float32)


def made(cls: type, budget: float = 6.0, **options: Any) -> Any:
    return cls(["all"], {"all": WIDTH}, budget=budget, num=WIDTH, **options)


def priced(policy: Any) -> Any:
    policy.set_prices(policy.find_prices(QUERIES, FEATURES, lambda _: POOL))
    return policy


@pytest.mark.parametrize("cls", [*RULES, ClickBoost, Belief])
@pytest.mark.parametrize("budget", [2.0, 6.0, 11.0])
def test_a_price_holds_the_mean_and_worth_never_rises(cls: type, budget: float) -> None:
    policy = priced(made(cls, budget, **({"explore": None} if cls in (ClickBoost, Belief) else {})))
    worth = policy.worth(QUERIES, POOL).worth
    real = POOL.docs >= 0
    assert (worth[:, 1:] <= worth[:, :-1] + 1e-12).all()
    assert ((worth == -np.inf).sum(axis=1) == (~real).sum(axis=1)).all()
    revised = policy.revise(QUERIES, FEATURES, POOL, policy.decide(QUERIES, FEATURES))
    cut = revised.decision.cut
    assert budget - 1.1 <= cut.mean() <= budget
    assert (cut >= 1).all()
    assert (cut <= np.maximum(real.sum(axis=1), 1)).all()
    if cls not in (SameCut, LargestGap):
        assert cut.mean() == pytest.approx(budget, abs=0.05)


def test_rules_are_what_they_are_called() -> None:
    scores, real = POOL.scores[:, :, -1], POOL.docs >= 0
    for cls, value in ((Threshold, np.exp(scores)), (RangeScaled, None)):
        policy = priced(made(cls))
        price = policy.prices["candidates"]
        cut = policy.revise(QUERIES, FEATURES, POOL, policy.decide(QUERIES, FEATURES)).decision.cut
        if value is None:
            low, high = np.nanmin(scores, axis=1)[:, None], np.nanmax(scores, axis=1)[:, None]
            value = np.where(high > low, (scores - low) / np.where(high > low, high - low, 1), 1.0)
        assert (cut == np.maximum((np.where(real, value, -1) >= price - 1e-7).sum(axis=1), 1)).mean() > 0.99
    mass = made(SoftmaxMass, temperature=0.3).worth(QUERIES, POOL).worth
    assert mass[:, 0] == pytest.approx(1.0)
    gap = made(LargestGap)
    worth = gap.worth(QUERIES[1:], Pool(POOL.arms, POOL.docs[1:], POOL.ranks[1:], POOL.scores[1:])).worth
    fall = np.nan_to_num(scores[1:, :-1] - scores[1:, 1:], nan=0.0)
    assert ((worth >= 1.0).sum(axis=1) == fall.argmax(axis=1) + 1).all()  # at a price of 1, exactly above the gap


def test_explored_candidates_are_below_the_cut_with_the_propensity_that_is_logged() -> None:
    policy = priced(made(Belief, explore=ReservedPlace(0.3, among=4, place=1), seed=0))
    cost, counted = 0.0, []
    for _ in range(60):
        revised = policy.revise(QUERIES, FEATURES, POOL, policy.decide(QUERIES, FEATURES))
        decision, order = revised.decision, revised.order
        explored = decision.explored >= 0
        place = (order.docs == decision.explored[:, None]).argmax(axis=1)
        assert (place[explored] >= decision.cut[explored]).all()
        assert (place[explored] < decision.cut[explored] + 4).all()
        assert (decision.explored_place[explored] == 1).all()
        room = np.clip((POOL.docs >= 0).sum(axis=1) - decision.cut, 0, 4)
        expected = np.where(room == 0, 1.0, np.where(explored, 0.3 / np.maximum(room, 1), 0.7))
        np.testing.assert_allclose(decision.explored_propensity, expected)
        assert not explored[room == 0].any()
        counted.append(explored[room > 0].mean())
        cost += float((decision.cut + explored).mean()) / 60
    assert np.mean(counted) == pytest.approx(0.3, abs=0.01)
    assert cost == pytest.approx(6.0, abs=0.1)  # what is explored is within the budget
    assert policy.greedy().revise(QUERIES, FEATURES, POOL, policy.decide(QUERIES, FEATURES)).decision.explored is None


def test_a_price_that_follows_brings_the_mean_back() -> None:
    policy = made(RangeScaled)
    policy.set_prices({"candidates": 0.95})
    policy.follow({})
    cuts = []
    for start in range(0, 40 * NUM, 20):  # as a service asks: few queries at a time
        some = np.arange(start, start + 20) % NUM
        part = Pool(POOL.arms, POOL.docs[some], POOL.ranks[some], POOL.scores[some])
        queries, features = [QUERIES[i] for i in some.tolist()], FEATURES[some]
        cuts.append(policy.revise(queries, features, part, policy.decide(queries, features)).decision.cut.mean())
    assert cuts[0] < 4
    assert np.mean(cuts[-400:]) == pytest.approx(6.0, abs=0.2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(SameCut, 0.5), "policy.budget: 0.5 candidates"),
        (lambda: made(SoftmaxMass, temperature=0.0), "policy.temperature"),
        (lambda: made(LargestGap, within=0), "policy.within"),
        (lambda: made(Calibrated, calibration=[1.0, 2.0]), "policy.calibration: 2 numbers"),
        (lambda: made(ClickBoost, weight=-1.0), "policy.weight"),
        (lambda: ReservedPlace(share=1.0), "policy.explore.share"),
        (lambda: ReservedPlace(among=0), "policy.explore.among"),
    ],
)
def test_arguments_that_make_no_sense_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_arm_that_is_drawn_with_weight_0_can_be_explored() -> None:
    docs = np.array([[1, 2, 3, 4, 5, 6]], np.int32)
    ranks = np.full((1, 6, 3), np.nan)
    ranks[0, :, 0] = ranks[0, :, 2] = np.arange(6)
    ranks[0, [1, 5, 3, 4], 1] = [0, 1, 2, 3]  # the new arm's first is ranked already
    pool = Pool(("old", "new", "fused"), docs, ranks, np.nan_to_num(5 - ranks))
    explore, rng = ReservedPlace(0.6, 2, arm="new"), np.random.default_rng(0)
    drawn = [explore.draw(np.array([2]), docs, pool, rng) for _ in range(3_000)]
    rows, counts = np.unique([int(row[0]) for row, _ in drawn], return_counts=True)
    assert rows.tolist() == [-1, 3, 4, 5, 6]  # two below the cut; of the new arm 6 and, as 4 is there, 5
    np.testing.assert_allclose(counts / 3_000, [0.4, *[0.15] * 4], atol=0.03)
    assert all(p[0] == pytest.approx(0.4 if row[0] < 0 else 0.15) for row, p in drawn)
    with pytest.raises(ValueError, match=r"policy.explore.arm: there is no arm 'newer'; the arms are: old, new"):
        ReservedPlace(arm="newer").draw(np.array([2]), docs, pool, rng)
