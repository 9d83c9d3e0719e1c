"""Arms that are switched off before retrieval: what a choice loses, who may be spared, and what is logged of it."""

from __future__ import annotations

import shutil
from itertools import product

import numpy as np
import pytest
from conftest import ROOT
from test_rounds import ONE_CPU

from ltrr.cli import TrainingCLI
from ltrr.core import Candidates, Rounds
from ltrr.data.rounds import write_rounds
from ltrr.fuse import ConvexFusion, union
from ltrr.models.arms import ArmsModule, Gave, contributions, drawn_to
from ltrr.models.bandit import BanditModule
from ltrr.policy.actions import Price, best, price_for
from ltrr.policy.arms import (
    ArmPolicy,
    Believed,
    Costs,
    Exploring,
    ListedArms,
    UnlistedArms,
    choices,
    design,
    feasible_arms,
)
from ltrr.policy.explore import UCB, EpsilonGreedy, Softmax
from ltrr.policy.features import Known, pool_names

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on small data

ARMS, NUM, WEIGHTS = ("words", "people"), 6, (0.6, 0.4)


class Teacher(BanditModule):
    """Knows what is relevant: the column of that name says so."""

    def relevance(self, known: Known) -> np.ndarray:
        return known.candidates[:, :, -1].astype(float)


def world(num: int, seed: int = 0) -> tuple[Rounds, np.ndarray]:
    """Rounds, and (R,) whether a query names a person: then only `people` finds what is relevant, else only `words`."""
    rng = np.random.default_rng(seed)
    of_query, each = pool_names(ARMS, NUM)
    person = rng.random(num) < 0.3
    names = ("person", "noise", *(f.name for f in of_query)), (*(f.name for f in each), "relevant")
    query = np.zeros((num, len(names[0])), np.float32)
    query[:, 0], query[:, 1] = person, rng.normal(size=num)
    candidates = np.zeros((num, NUM, len(names[1])), np.float32)
    finder = np.where(person, 1, 0)
    place = rng.integers(NUM, size=num)
    for arm, name in enumerate(ARMS):
        returned = rng.random((num, NUM)) < 0.5
        returned[np.arange(num), place] = finder == arm
        share = rng.random((num, NUM)) * returned
        share[np.arange(num), place] = 1.0 * (finder == arm)
        candidates[:, :, names[1].index(f"{name}_rank")] = returned / 2
        candidates[:, :, names[1].index(f"{name}_share")] = share
        candidates[:, :, names[1].index("fused")] += WEIGHTS[arm] * (share + 0.1 * returned) + 0.01
    candidates[np.arange(num), place, -1] = 1.0
    clicks = np.zeros((num, NUM), bool)
    return Rounds(np.arange(num), query, candidates, np.full(num, NUM), clicks, names), person


@pytest.fixture(scope="module")
def learned() -> ArmsModule:
    module = ArmsModule(cut=3, epochs=10)
    module.refit(world(2_000)[0], 0, Teacher())
    return module


def listed(depths: dict[str, int], costs: Costs | None = None, shallow: tuple[int, ...] = ()) -> ListedArms:
    feasible = feasible_arms(depths, shallow, costs or Costs({}), cut=10)
    assert isinstance(feasible, ListedArms)
    return feasible


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

    def variances(self, features: np.ndarray) -> np.ndarray:
        raise AssertionError("no explorer asked")


def test_more_choices_than_can_be_listed_are_found_greedily() -> None:
    """7 arms of 5 levels: 78,124. Losses add up here, so greedy choices are the best; propensities are exact."""
    arms = {f"arm{i}": 40 for i in range(7)}
    feasible = feasible_arms(arms, Believes.shallow, Costs({"arm0": 2.0}, drawn=0.02), cut=10)
    assert isinstance(feasible, UnlistedArms)
    learner, features = Believes(7), np.ones((1, 1))
    losses, price = learner.losses(features), 0.3
    decision, cost = feasible.draw(
        Believed(losses), price, Exploring(EpsilonGreedy(0.0)), rng := np.random.default_rng(0)
    )
    depths, run = np.array([0, 5, 10, 20, 40]), np.array([2.0] + [1.0] * 6)
    own = -np.concatenate([losses[0, :28].reshape(7, 4), np.zeros((7, 1))], axis=1)
    own -= price * ((depths > 0) * run[:, None] + 0.02 * depths)
    assert decision.depths[0].tolist() == depths[own.argmax(axis=1)].tolist()
    assert cost[0] == pytest.approx(((decision.depths[0] > 0) * run + 0.02 * decision.depths[0]).sum())
    assert decision.propensity[0] == 1.0
    many = np.tile(losses, (40_000, 1))
    monkey = feasible._best(losses, price)
    feasible._best = lambda losses, price: np.repeat(monkey, len(losses), axis=0)  # 40,000 times the same
    drawn, _ = feasible.draw(Believed(many), price, Exploring(EpsilonGreedy(0.4), shadow=0.1), rng)
    assert drawn.depths.any(axis=1).all()
    same, whole = (drawn.depths == decision.depths).all(axis=1), (drawn.depths == 40).all(axis=1)
    listed = 5**7 - 1
    for which, wanted in ((same, 0.54 + 0.36 / listed), (whole, 0.1 + 0.36 / listed)):
        assert which.mean() == pytest.approx(wanted, abs=0.01)
        np.testing.assert_allclose(drawn.propensity[which], wanted)
    np.testing.assert_allclose(drawn.propensity[~same & ~whole], 0.36 / listed)
    for a in range(7):
        for level in depths:
            at = drawn.depths[:, a] == level
            assert at.mean() == pytest.approx(drawn.marginals[at, a].mean(), abs=0.012)
    with pytest.raises(ValueError, match="use EpsilonGreedy"):
        feasible.check(Exploring(Softmax()))
    with pytest.raises(ValueError, match="arms_cap"):
        feasible_arms(arms, Believes.shallow, Costs({}, cap=3.0))


@pytest.mark.parametrize(("epsilon", "shadow"), [(0.4, 0.1), (1.0, 0.0), (0.0, 0.3)])
def test_propensities_of_what_is_not_listed_are_those_of_a_list(epsilon: float, shadow: float) -> None:
    """Three arms, one of which never runs and one without the deepest level between: all choices by hand."""
    levels = {"a": [5, 10, 40], "b": [], "c": [5, 8]}
    feasible = UnlistedArms(levels, Costs({}, drawn=0.02), 10, 4)
    losses = np.random.default_rng(0).random((1, design(np.ones((1, 3), int), 4).shape[1]))
    how = Exploring(EpsilonGreedy(epsilon), shadow)
    every = [row for row in product([0, 5, 10, 40], [0], [0, 5, 8]) if any(row)]
    greedy, _ = feasible.draw(Believed(losses), 0.01, Exploring(EpsilonGreedy(0.0)), np.random.default_rng(0))
    best = tuple(greedy.depths[0].tolist())
    assert len(every) == len(ListedArms(levels, Costs({}, drawn=0.02), 10, 4).table) == 11
    share = {row: (1 - shadow) * (epsilon / 11 + (1 - epsilon) * (row == best)) for row in every}
    share[40, 0, 8] += shadow
    drawn, _ = feasible.draw(Believed(np.repeat(losses, 3_000, axis=0)), 0.01, how, np.random.default_rng(1))
    rows = [tuple(row) for row in drawn.depths.tolist()]
    assert {row for row in every if share[row] > 0.01} <= {*rows}
    np.testing.assert_allclose(drawn.propensity, [share[row] for row in rows], atol=1e-12)
    for a in range(3):
        marginal = [sum(p for other, p in share.items() if other[a] == row[a]) for row in rows]
        np.testing.assert_allclose(drawn.marginals[:, a], marginal, atol=1e-12)


def test_greedy_choices_are_never_dearer_than_need_be() -> None:
    """The cheapest arm is the dearest at its whole depth, which greedy steps from there would drop first."""
    levels = {"a": [5, 200], **{f"b{i}": [5, 40] for i in range(4)}}
    feasible = UnlistedArms(levels, Costs({"a": 0.5}, drawn=0.01), 10, 3)
    losses = np.random.default_rng(0).random((20, design(np.ones((1, 5), int), 3).shape[1])) / 100
    price = feasible.price(losses, 0.6)
    how = Exploring(EpsilonGreedy(0.0)), np.random.default_rng(0)
    assert feasible.draw(Believed(losses), price, *how)[1].mean() <= 0.6
    with pytest.raises(ValueError, match=r"policy\.arms_budget: 0\.5 is below"):
        feasible.price(losses, 0.5)
    for times in (0.1, 1000.0):  # whatever unit costs have
        scaled = UnlistedArms(levels, Costs({name: times for name in levels}, drawn=0.01 * times), 10, 3)
        price = scaled.price(losses, 2.5 * times)
        cost = scaled.draw(Believed(losses), price, *how)[1].mean()
        assert 1.5 * times < cost <= 2.5 * times


def test_the_price_of_greedy_choices_keeps_the_budget() -> None:
    feasible = feasible_arms({f"arm{i}": 40 for i in range(7)}, Believes.shallow, Costs({}, drawn=0.02), cut=10)
    learner = Believes(7)
    losses = learner.losses(np.random.default_rng(0).random((60, 1)))
    price = feasible.price(losses, 5.0)
    _, costs = feasible.draw(Believed(losses), price, Exploring(EpsilonGreedy(0.0)), np.random.default_rng(0))
    assert 4.5 < costs.mean() <= 5.0


@pytest.mark.parametrize("shallow", [(), (1,), (1, 2)])
def test_a_choice_loses_what_the_others_alone_would_have_ranked_too_low(shallow) -> None:
    """Also where arms are drawn less deep; arms' ranks in this world are 2."""
    module = ArmsModule(cut=2, shallow=shallow)
    rounds, _ = world(50)
    module.refit(rounds, 0, Teacher())
    lost = module.lost(Known(rounds.query, rounds.candidates))
    rank, share = (
        rounds.candidates[:, :, [rounds.names[1].index(f"{arm}_{what}") for arm in ARMS]] for what in ("rank", "share")
    )
    for q in range(50):
        found = []
        for levels in choices(2, len(shallow) + 2):
            depths = np.array([0, *shallow, 100])[levels]
            drawn = (rank[q] > 0) & (1 / np.maximum(rank[q], 1e-3) <= depths)
            score = ((share[q] + 0.1) * WEIGHTS * drawn).sum(axis=1)
            left = [m for m in np.argsort(-score, kind="stable") if drawn[m].any()][:2]
            found.append(sum(rounds.candidates[q, m, -1] for m in left))
        np.testing.assert_allclose(lost[q], found[-1] - np.array(found), atol=1e-6)


def test_what_arms_gave_to_the_fused_score_is_found_out() -> None:
    rng = np.random.default_rng(0)
    returned = rng.random((20, 30, 3)) < 0.6
    shares = rng.random((20, 30, 3)) * returned
    scale, floor = rng.random((20, 1, 3)) + 0.5, rng.random((20, 1, 3))  # of each query, as scaling makes them
    gave = returned * (scale * shares + floor)
    found = contributions((gave.sum(axis=2) + 0.3).astype(np.float32), shares.astype(np.float32), returned)
    np.testing.assert_allclose(found.level, floor[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.slope, scale[:, 0], atol=1e-4)


def test_what_a_shallower_arm_would_give_is_told_from_a_deep_draw() -> None:
    """As the fused order scales it, where all of the arm's candidates are looked at; nearly so where some are not."""
    num = 40
    scores = -np.sort(-(np.random.default_rng(1).random((30, num)) ** 2) - 0.1, axis=1)
    docs = np.tile(np.arange(num, dtype=np.int32), (30, 1))
    order = ConvexFusion({"words": 1.0})

    def fused(depth: int) -> np.ndarray:
        pool = union({"words": Candidates(docs, scores.astype(np.float32)).cut(np.full(30, depth))})
        found, out = order.rank((), pool), np.full((30, num), np.nan)
        np.put_along_axis(out, found.docs[:, :depth].astype(int), found.scores[:, :depth], 1)
        return out

    shares = (scores / scores[:, :1]).astype(np.float32)[:, :, None]
    reciprocal = np.tile(1 / np.arange(1.0, num + 1), (30, 1))[:, :, None]
    gave = contributions(fused(num).astype(np.float32), shares, reciprocal > 0)
    gave = Gave(-gave.slope * shares[:, -1], gave.slope)  # the last gives nothing
    found = np.full((30, 1), float(num))
    for depth in (5, 20, num, 100):
        np.testing.assert_allclose(
            drawn_to(depth, gave, shares, reciprocal, found)[:, :, 0], fused(min(depth, num)), atol=2e-3
        )
    seen = np.arange(num) % 3 > 0  # of ten, the sixth to the ninth but one
    added = Gave(np.zeros((30, 1)), np.full((30, 1), 3.0))  # as it is, not scaled
    np.testing.assert_allclose(
        drawn_to(10, added, shares, reciprocal, found)[:, :10, 0], 3 * shares[:, :10, 0], rtol=1e-6
    )
    part = drawn_to(10, gave, shares * seen[:, None], reciprocal * seen[:, None], found)[:, seen, 0]
    assert np.nanmean(np.abs(part - fused(10)[:, seen])) < 0.03
    assert (np.isnan(part) == np.isnan(fused(10)[:, seen])).all()


def test_it_learns_who_may_be_spared(learned: ArmsModule) -> None:
    """At half of all arms' cost the right arm runs for nearly everybody, where the better arm alone serves 7 in 10."""
    rounds, person = world(1_000, seed=1)
    feasible = listed(dict.fromkeys(ARMS, 10))
    table, values = feasible.table, feasible.values(learned.losses(rounds.query[:, :2]))
    lost = -feasible.values(learned.lost(Known(rounds.query, rounds.candidates)))
    chosen = best(values, table.costs, price_for(values, table.costs, 1.0))
    assert table.costs[chosen].mean() <= 1.0
    each = np.arange(len(person))
    assert lost[each, chosen].mean() < 0.1 * lost[:, :2].mean(axis=0).min()
    assert np.abs(values[:, -1]).max() < 1e-5  # all arms lose nothing
    np.testing.assert_allclose(values.mean(axis=0), -lost.mean(axis=0), atol=0.05)


def test_heads_learn_what_has_changed(learned: ArmsModule, tmp_path) -> None:
    learned.export(tmp_path)
    module = ArmsModule.load(tmp_path)
    assert module.id
    assert module.columns == (("person", "noise"), ARMS)
    rounds, person = world(3_000, seed=2)
    np.testing.assert_allclose(module.losses(rounds.query[:, :2]), learned.losses(rounds.query[:, :2]), atol=1e-6)
    module._teachers = [Teacher()]
    module._fused, module._shares, module._found = learned._fused, learned._shares[::-1], learned._found
    module._returned = learned._returned[::-1]  # the arms have changed places
    before = module.variances(rounds.query[:1, :2])
    module.update(rounds)
    losses = module.losses(rounds.query[:, :2])
    assert (losses[person, 0] < losses[person, 1]).mean() > 0.95
    assert (module.variances(rounds.query[:1, :2]) < before).all()


def test_what_is_drawn_can_be_computed_again(learned: ArmsModule) -> None:
    rounds, _ = world(4_000, seed=3)
    feasible, how = listed({"words": 50, "people": 20}), Exploring(Softmax())
    policy = ArmPolicy(feasible, learned, price=Price(1.5, start=0.1, name="arms x"), how=how, seed=0)
    expected = feasible.probabilities(Believed(learned.losses(rounds.query[:, :2])), 0.1, how)
    decision = policy.decide(rounds.query[:, :2])
    assert decision.prices == {"arms x": 0.1}
    drawn = [np.flatnonzero((feasible.table.depths == row).all(axis=1))[0] for row in decision.depths]
    np.testing.assert_allclose(decision.propensity, expected[np.arange(4_000), drawn])
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4_000, expected.mean(axis=0), atol=0.03)
    off = decision.depths == 0
    on = expected @ (feasible.table.depths > 0)
    np.testing.assert_allclose(decision.marginals[:, :2], np.where(off, 1 - on, on))
    np.testing.assert_allclose(decision.marginals[:, 2], 1)


def test_the_price_finds_the_budget(learned: ArmsModule) -> None:
    """The right arm for everybody would cost 1.6."""
    rounds, _ = world(1_000, seed=4)
    feasible = listed(dict.fromkeys(ARMS, 10), Costs({"people": 3.0}))
    policy = ArmPolicy(feasible, learned, price=Price(1.3), how=Exploring(Softmax()), seed=0)
    policy.price.follow({})
    each = np.array([1.0, 3.0])
    costs = [((policy.decide(rounds.query[:, :2]).depths > 0) @ each).mean() for _ in range(100)]
    assert costs[0] > 1.5
    assert np.mean(costs[50:]) == pytest.approx(1.3, abs=0.03)


def test_some_queries_run_all_arms_and_any_explorer_serves(learned: ArmsModule, monkeypatch) -> None:
    rounds, _ = world(50, seed=5)
    feasible, losses = listed(dict.fromkeys(ARMS, 10)), learned.losses(rounds.query[:, :2])
    found = feasible.probabilities(Believed(losses), 1.0, Exploring(EpsilonGreedy(0.0), shadow=0.1))
    np.testing.assert_allclose(found[:, -1], 0.1)
    capped = listed(dict.fromkeys(ARMS, 10), Costs({}, cap=1.0))  # all arms cost more: there are no such pages
    shown = capped.probabilities(Believed(losses), 1.0, Exploring(EpsilonGreedy(0.0), shadow=0.1))
    np.testing.assert_allclose(shown.max(axis=1), 1.0)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    monkeypatch.setattr(learned, "variances", lambda features: np.tile([0.0, 0.0, 1.0], (len(features), 1)))
    bold = ArmPolicy(feasible, learned, price=Price(1.0, start=1.0), how=Exploring(UCB(100.0, floor=0.0)))
    assert bold.decide(rounds.query[:, :2]).depths.all()
    shy = ArmPolicy(feasible, learned, price=Price(1.0, start=1.0), how=Exploring(EpsilonGreedy(0.0)))
    assert not shy.decide(rounds.query[:, :2]).depths.all(axis=1).any()
    assert listed({"words": 10, "people": 0}).table.depths.tolist() == [[10, 0]]  # one without a depth never runs


def test_mistakes_are_named(learned: ArmsModule, tmp_path) -> None:
    rounds, _ = world(20)
    with pytest.raises(ValueError, match=r"model\.teacher"):
        ArmsModule().prepare(rounds)
    with pytest.raises(ValueError, match="_rank"):
        ArmsModule().refit(rounds._replace(names=(("a",), ("b",))), 0, Teacher())
    with pytest.raises(ValueError, match="no arms"):
        ArmsModule.load(tmp_path)
    with pytest.raises(ValueError, match=r"model\.cut"):
        ArmsModule(cut=0)
    with pytest.raises(ValueError, match=r"model\.shallow"):
        ArmsModule(shallow=[30, 10])
    teacher = Teacher()
    teacher.columns = (("another",), ("column",))
    with pytest.raises(ValueError, match="other columns"):
        ArmsModule().refit(rounds, 0, teacher)


def test_train_py_learns_it_from_a_file(tmp_path) -> None:
    """From logged rounds and the policy of cuts that was learned from them, which it does not need any more."""
    rounds, _ = world(400)
    write_rounds(tmp_path / "r.npz", rounds)
    teacher = BanditModule(hidden=4, epochs=1)
    teacher.refit(rounds)
    (tmp_path / "teacher").mkdir()
    teacher.export(tmp_path / "teacher")
    given = [f"--config={ROOT / 'configs' / 'arms_policy.yaml'}", f"--data.path={tmp_path / 'r.npz'}", "--id=x"]
    given += [f"--trainer.default_root_dir={tmp_path}", f"--model.teacher={tmp_path / 'teacher'}"]
    made = TrainingCLI(["fit", *given, *ONE_CPU, "--trainer.max_epochs=2"])
    assert "val_explained" in made.trainer.callback_metrics
    shutil.rmtree(tmp_path / "teacher")
    module = ArmsModule.load(tmp_path / "x" / "export")
    assert module.columns == (("person", "noise"), ARMS)
    assert np.abs(module.losses(rounds.query[:, :2])[:, -1]).max() < 1e-5
