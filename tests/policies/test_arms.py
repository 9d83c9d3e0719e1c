"""Arms that are switched off before retrieval: what a choice loses, who may be spared, and what is logged of it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ltrr.learners.arm_loss import ArmLossLearner
from ltrr.policies.arm_choices import Costs, Drawing, ListedArms, UnlistedArms, choices, design, feasible_arms
from ltrr.policies.arms import ArmPolicy
from ltrr.policies.explorers import UCB, EpsilonGreedy, Softmax
from ltrr.policies.features import ContextFeatures, Feature, Group
from ltrr.policies.price import best, price_for
from ltrr.types import RetrievalFeatures
from tests.learners.test_arm_loss import ARMS, Teacher, world

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on small data


@pytest.fixture(scope="module")
def learned() -> ArmLossLearner:
    module = ArmLossLearner(cut=3, epochs=10)
    module.refit(world(2_000)[0], 0, Teacher())
    return module


def listed(depths: dict[str, int], costs: Costs | None = None, shallow: tuple[int, ...] = ()) -> ListedArms:
    feasible = feasible_arms(depths, shallow, costs or Costs({}), cut=10)
    assert isinstance(feasible, ListedArms)
    return feasible


def policy_of(learner: ArmLossLearner, price: float, **options) -> ArmPolicy:
    """Of both arms at their whole depth, at this price."""
    columns = tuple(Feature(name, "") for name in learner.columns[0])
    features = ContextFeatures([Group(columns, lambda queries: np.zeros((len(queries), len(columns))))])
    policy = ArmPolicy(ARMS, learner, dict.fromkeys(ARMS, 100), cut=10, features=features, shadow=0.0, **options)
    policy.set_prices({"arms": price}, "x")
    return policy


def test_choices_are_all_but_none() -> None:
    assert choices(2).tolist() == [[1, 0], [0, 1], [1, 1]]
    assert choices(2, 3).tolist()[:4] == [[1, 0], [2, 0], [0, 1], [1, 1]]
    feasible = listed({"words": 50, "people": 20}, Costs({"people": 3.0}))
    assert feasible.table.costs.tolist() == [1.0, 3.0, 4.0]
    assert feasible.table.depths.max(axis=0).tolist() == [50, 20]
    assert set(feasible.table.cuts) == {10}
    losses = np.array([[0.1, 0.2, 0.0]])
    np.testing.assert_allclose(feasible.values(losses), -losses)


def test_arms_may_be_drawn_less_deep_and_a_query_costs_no_more_than_its_cap() -> None:
    """people's whole depth is below 30, so it has a level less; costs are of what runs and of what is drawn."""
    costs = Costs({"people": 3.0}, drawn=0.1)
    feasible = listed({"words": 50, "people": 20}, costs, shallow=(10, 30))
    wanted = {(a, b) for a in (0, 10, 30, 50) for b in (0, 10, 20)} - {(0, 0)}
    rows = feasible.table.depths.tolist()
    assert {tuple(row) for row in rows} == wanted
    assert len(rows) == len(wanted)
    paid = [(a > 0) + 3.0 * (b > 0) + 0.1 * (a + b) for a, b in rows]
    np.testing.assert_allclose(feasible.table.costs, paid)
    losses = np.arange(15.0)[None]  # of choices(2, 4): words first, its whole depth is level 3, that of people too
    number = {0: 0, 10: 1, 30: 2, 50: 3}, {0: 0, 10: 1, 20: 3}
    heads = [number[0][a] + 4 * number[1][b] - 1 for a, b in rows]
    np.testing.assert_allclose(feasible.values(losses)[0], -losses[0][heads])
    capped = listed({"words": 50, "people": 20}, Costs({"people": 3.0}, 0.1, cap=5.0), shallow=(10, 30))
    assert capped.table.costs.tolist() == [cost for cost in sorted(paid) if cost <= 5.0]
    with pytest.raises(ValueError, match="arms_cap"):
        listed({"words": 50}, Costs({}, cap=0.5))
    with pytest.raises(ValueError, match="is below 0"):
        Costs({"words": -1.0})
    with pytest.raises(ValueError, match="is below 0"):
        Costs({}, drawn=-1.0)
    with pytest.raises(ValueError, match="no arm 'sparse'"):
        listed({"words": 50}, Costs({"sparse": 1.0}))


def test_many_choices_are_made_of_arms_and_pairs_of_arms() -> None:
    levels = choices(6, 3)
    made = design(levels, 3)
    assert made.shape == (728, 6 * 2 + 15 * 4)
    assert not made[-1].any()  # all arms lose nothing
    rng = np.random.default_rng(0)
    alone, both = rng.random((6, 2)), rng.random((6, 6, 2, 2))
    lost = []
    for row in levels:
        short = [(a, level) for a, level in enumerate(row) if level < 2]
        lost.append(sum(alone[one] for one in short))
        lost[-1] += sum(both[a, b, m, n] for i, (a, m) in enumerate(short) for b, n in short[i + 1 :])
    found, _, rank, _ = np.linalg.lstsq(made, np.array(lost), rcond=None)
    assert rank == made.shape[1]
    np.testing.assert_allclose(made @ found, lost, atol=1e-9)


class Believes:
    """Losses that add up over arms, at random by query."""

    shallow = (5, 10, 20)

    def __init__(self, num_arms: int) -> None:
        self.size = design(np.zeros((1, num_arms), int), 5).shape[1]

    def losses(self, features: np.ndarray) -> np.ndarray:
        out = np.zeros((len(features), self.size))
        alone = np.random.default_rng(1).random((len(features), self.size)) * features[:, :1]
        num = 4 * 7  # arms' own heads come first: off, and the three depths
        out[:, :num] = -np.sort(-alone[:, :num].reshape(len(features), -1, 4), axis=2).reshape(len(features), -1)
        return out


def test_more_choices_than_can_be_listed_are_found_greedily() -> None:
    """7 arms of 5 levels: 78,124. Losses add up here, so greedy choices are the best; propensities are exact."""
    arms = {f"arm{i}": 40 for i in range(7)}
    feasible = feasible_arms(arms, Believes.shallow, Costs({"arm0": 2.0}, drawn=0.02), cut=10)
    assert isinstance(feasible, UnlistedArms)
    learner, features = Believes(7), np.ones((1, 1))
    losses, price = learner.losses(features), 0.3
    decision, cost = feasible.draw(losses, price, Drawing(EpsilonGreedy(0.0)), rng := np.random.default_rng(0))
    depths, run = np.array([0, 5, 10, 20, 40]), np.array([2.0] + [1.0] * 6)
    own = -np.concatenate([losses[0, :28].reshape(7, 4), np.zeros((7, 1))], axis=1)
    own -= price * ((depths > 0) * run[:, None] + 0.02 * depths)
    assert decision.depths[0].tolist() == depths[own.argmax(axis=1)].tolist()
    assert cost[0] == pytest.approx(((decision.depths[0] > 0) * run + 0.02 * decision.depths[0]).sum())
    assert decision.propensity[0] == 1.0
    many = np.tile(losses, (40_000, 1))
    monkey = feasible._best(losses, price)
    feasible._best = lambda losses, price: np.repeat(monkey, len(losses), axis=0)  # 40,000 times the same
    drawn, _ = feasible.draw(many, price, Drawing(EpsilonGreedy(0.4), shadow=0.1), rng)
    assert drawn.depths.any(axis=1).all()
    same, whole = (drawn.depths == decision.depths).all(axis=1), (drawn.depths == 40).all(axis=1)
    listed = 5**7 - 1
    for which, wanted in ((same, 0.54 + 0.36 / listed), (whole, 0.1 + 0.36 / listed)):
        assert which.mean() == pytest.approx(wanted, abs=0.01)
        np.testing.assert_allclose(drawn.propensity[which], wanted)
    np.testing.assert_allclose(drawn.propensity[~same & ~whole], 0.36 / listed)
    how = Drawing(EpsilonGreedy(0.4), shadow=0.1)
    likely, choice = feasible.likelihood(many, drawn.depths, price, how)
    np.testing.assert_array_equal(likely, drawn.propensity)
    assert choice.all()
    strange = np.array([[0] * 7, [7, *[0] * 6]])  # no arm, and a depth that is none
    assert [part.tolist() for part in feasible.likelihood(many[:2], strange, price, how)] == [[0, 0], [False, False]]
    for a in range(7):
        for level in depths:
            at = drawn.depths[:, a] == level
            assert at.mean() == pytest.approx(drawn.marginals[at, a].mean(), abs=0.012)
    with pytest.raises(ValueError, match="use EpsilonGreedy"):
        feasible.check(Drawing(Softmax()))
    with pytest.raises(ValueError, match="arms_cap"):
        feasible_arms(arms, Believes.shallow, Costs({}, cap=3.0))


@pytest.mark.parametrize(("epsilon", "shadow"), [(0.4, 0.1), (1.0, 0.0), (0.0, 0.3)])
def test_propensities_of_what_is_not_listed_are_those_of_a_list(epsilon: float, shadow: float) -> None:
    """Three arms, one of which never runs and one without the deepest level between: all choices by hand."""
    levels = {"a": [5, 10, 40], "b": [], "c": [5, 8]}
    feasible = UnlistedArms(levels, Costs({}, drawn=0.02), 10, 4)
    losses = np.random.default_rng(0).random((1, design(np.ones((1, 3), int), 4).shape[1]))
    how = Drawing(EpsilonGreedy(epsilon), shadow)
    every = [row for row in product([0, 5, 10, 40], [0], [0, 5, 8]) if any(row)]
    greedy, _ = feasible.draw(losses, 0.01, Drawing(EpsilonGreedy(0.0)), np.random.default_rng(0))
    best = tuple(greedy.depths[0].tolist())
    assert len(every) == len(ListedArms(levels, Costs({}, drawn=0.02), 10, 4).table) == 11
    share = {row: (1 - shadow) * (epsilon / 11 + (1 - epsilon) * (row == best)) for row in every}
    share[40, 0, 8] += shadow
    drawn, _ = feasible.draw(np.repeat(losses, 3_000, axis=0), 0.01, how, np.random.default_rng(1))
    rows = [tuple(row) for row in drawn.depths.tolist()]
    assert {row for row in every if share[row] > 0.01} <= {*rows}
    np.testing.assert_allclose(drawn.propensity, [share[row] for row in rows], atol=1e-12)
    for a in range(3):
        marginal = [sum(p for other, p in share.items() if other[a] == row[a]) for row in rows]
        np.testing.assert_allclose(drawn.marginals[:, a], marginal, atol=1e-12)
    rows = ListedArms(levels, Costs({}, drawn=0.02), 10, 4)
    for each in (feasible, rows):
        likely, choice = each.likelihood(np.repeat(losses, 11, axis=0), np.array(every), 0.01, how)
        np.testing.assert_allclose(likely, [share[row] for row in every], atol=1e-12)
        assert choice.all()


def test_greedy_choices_are_never_dearer_than_need_be() -> None:
    """The cheapest arm is the dearest at its whole depth, which greedy steps from there would drop first."""
    levels = {"a": [5, 200], **{f"b{i}": [5, 40] for i in range(4)}}
    feasible = UnlistedArms(levels, Costs({"a": 0.5}, drawn=0.01), 10, 3)
    losses = np.random.default_rng(0).random((20, design(np.ones((1, 5), int), 3).shape[1])) / 100
    price = feasible.price(losses, 0.6)
    how = Drawing(EpsilonGreedy(0.0)), np.random.default_rng(0)
    assert feasible.draw(losses, price, *how)[1].mean() <= 0.6
    with pytest.raises(ValueError, match=r"policy\.arms_budget: 0\.5 is below"):
        feasible.price(losses, 0.5)
    for times in (0.1, 1000.0):  # whatever unit costs have
        scaled = UnlistedArms(levels, Costs({name: times for name in levels}, drawn=0.01 * times), 10, 3)
        price = scaled.price(losses, 2.5 * times)
        cost = scaled.draw(losses, price, *how)[1].mean()
        assert 1.5 * times < cost <= 2.5 * times


def test_the_price_of_greedy_choices_keeps_the_budget() -> None:
    feasible = feasible_arms({f"arm{i}": 40 for i in range(7)}, Believes.shallow, Costs({}, drawn=0.02), cut=10)
    learner = Believes(7)
    losses = learner.losses(np.random.default_rng(0).random((60, 1)))
    price = feasible.price(losses, 5.0)
    _, costs = feasible.draw(losses, price, Drawing(EpsilonGreedy(0.0)), np.random.default_rng(0))
    assert 4.5 < costs.mean() <= 5.0


def test_it_learns_who_may_be_spared(learned: ArmLossLearner) -> None:
    """At half of all arms' cost the right arm runs for nearly everybody, where the better arm alone serves 7 in 10."""
    rounds, person = world(1_000, seed=1)
    feasible = listed(dict.fromkeys(ARMS, 10))
    table, values = feasible.table, feasible.values(learned.losses(rounds.query[:, :2]))
    lost = -feasible.values(learned.lost(RetrievalFeatures(rounds.query, rounds.candidates)))
    chosen = best(values, table.costs, price_for(values, table.costs, 1.0))
    assert table.costs[chosen].mean() <= 1.0
    each = np.arange(len(person))
    assert lost[each, chosen].mean() < 0.1 * lost[:, :2].mean(axis=0).min()
    assert np.abs(values[:, -1]).max() < 1e-5  # all arms lose nothing
    np.testing.assert_allclose(values.mean(axis=0), -lost.mean(axis=0), atol=0.05)


def test_what_is_drawn_can_be_computed_again(learned: ArmLossLearner) -> None:
    rounds, _ = world(4_000, seed=3)
    feasible, how = listed(dict.fromkeys(ARMS, 100)), Drawing(Softmax())
    policy = policy_of(learned, 0.1, budget=1.5, explore=Softmax(), seed=0)
    expected = feasible.probabilities(learned.losses(rounds.query[:, :2]), 0.1, how)
    decision = policy.decide([], rounds.query[:, :2])
    assert decision.prices == {"arms x": 0.1}
    drawn = [np.flatnonzero((feasible.table.depths == row).all(axis=1))[0] for row in decision.depths]
    np.testing.assert_allclose(decision.propensity, expected[np.arange(4_000), drawn])
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4_000, expected.mean(axis=0), atol=0.03)
    off = decision.depths == 0
    on = expected @ (feasible.table.depths > 0)
    np.testing.assert_allclose(decision.marginals[:, :2], np.where(off, 1 - on, on))
    np.testing.assert_allclose(decision.marginals[:, 2], 1)


def test_the_price_finds_the_budget(learned: ArmLossLearner) -> None:
    """The right arm for everybody would cost 1.6."""
    rounds, _ = world(1_000, seed=4)
    policy = policy_of(learned, 0.0, budget=1.3, costs={"people": 3.0}, explore=Softmax(), seed=0)
    policy.follow({})
    each = np.array([1.0, 3.0])
    costs = [((policy.decide([], rounds.query[:, :2]).depths > 0) @ each).mean() for _ in range(100)]
    assert costs[0] > 1.5
    assert np.mean(costs[50:]) == pytest.approx(1.3, abs=0.03)


def test_some_queries_run_all_arms(learned: ArmLossLearner) -> None:
    rounds, _ = world(50, seed=5)
    feasible, losses = listed(dict.fromkeys(ARMS, 10)), learned.losses(rounds.query[:, :2])
    found = feasible.probabilities(losses, 1.0, Drawing(EpsilonGreedy(0.0), shadow=0.1))
    np.testing.assert_allclose(found[:, -1], 0.1)
    capped = listed(dict.fromkeys(ARMS, 10), Costs({}, cap=1.0))  # all arms cost more: there are no such pages
    shown = capped.probabilities(losses, 1.0, Drawing(EpsilonGreedy(0.0), shadow=0.1))
    np.testing.assert_allclose(shown.max(axis=1), 1.0)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    with pytest.raises(ValueError, match=r"policy\.explore: UCB needs deviations"):
        feasible.check(Drawing(UCB()))
    shy = policy_of(learned, 1.0, budget=1.0)
    assert not shy.decide([], rounds.query[:, :2]).depths.all(axis=1).any()
    assert listed({"words": 10, "people": 0}).table.depths.tolist() == [[10, 0]]  # one without a depth never runs
