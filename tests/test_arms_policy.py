"""Arms that are switched off before retrieval: what a choice loses, who may be spared, and what is logged of it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest import ROOT
from test_rounds import ONE_CPU

from ltrr.cli import TrainingCLI
from ltrr.core import Rounds
from ltrr.data.rounds import write_rounds
from ltrr.models.arms import ArmsModule, contributions
from ltrr.models.bandit import BanditModule
from ltrr.policy.actions import best, price_for
from ltrr.policy.arms import ArmPolicy, arm_table, choices
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


def test_choices_are_all_but_none() -> None:
    assert choices(2).tolist() == [[True, False], [False, True], [True, True]]
    table, place = arm_table(ARMS, {"words": 50, "people": 20}, {"people": 3.0}, cut=10)
    assert (choices(2)[place] == (table.depths > 0)).all()
    assert table.costs.tolist() == [1.0, 3.0, 4.0]
    assert table.depths.max(axis=0).tolist() == [50, 20]
    assert set(table.cuts) == {10}


def test_a_choice_loses_what_the_others_alone_would_have_ranked_too_low() -> None:
    module = ArmsModule(cut=2)
    rounds, _ = world(50)
    module.refit(rounds, 0, Teacher())
    lost = module.lost(Known(rounds.query, rounds.candidates))
    rank, share = (
        rounds.candidates[:, :, [rounds.names[1].index(f"{arm}_{what}") for arm in ARMS]] for what in ("rank", "share")
    )
    for q in range(50):
        found = []
        for choice in choices(2):
            score = ((share[q] + 0.1 * (rank[q] > 0)) * WEIGHTS * choice).sum(axis=1)
            left = [m for m in np.argsort(-score) if (rank[q, m] > 0)[choice].any()][:2]
            found.append(sum(rounds.candidates[q, m, -1] for m in left))
        np.testing.assert_allclose(lost[q], found[-1] - np.array(found), atol=1e-6)


def test_what_arms_gave_to_the_fused_score_is_found_out() -> None:
    rng = np.random.default_rng(0)
    returned = rng.random((20, 30, 3)) < 0.6
    shares = rng.random((20, 30, 3)) * returned
    scale, floor = rng.random((20, 1, 3)) + 0.5, rng.random((20, 1, 3))  # of each query, as scaling makes them
    gave = returned * (scale * shares + floor)
    found = contributions((gave.sum(axis=2) + 0.3).astype(np.float32), shares.astype(np.float32), returned)
    np.testing.assert_allclose(found, gave, atol=1e-4)


def test_it_learns_who_may_be_spared(learned: ArmsModule) -> None:
    """At half of all arms' cost the right arm runs for nearly everybody, where the better arm alone serves 7 in 10."""
    rounds, person = world(1_000, seed=1)
    table, place = arm_table(ARMS, dict.fromkeys(ARMS, 10), {})
    values = learned.values(rounds.query[:, :2])[:, place]
    lost = learned.lost(Known(rounds.query, rounds.candidates))[:, place]
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
    np.testing.assert_allclose(module.values(rounds.query[:, :2]), learned.values(rounds.query[:, :2]), atol=1e-6)
    module._teachers = [Teacher()]
    module._fused, module._shares = learned._fused, learned._shares[::-1]
    module._returned = learned._returned[::-1]  # the arms have changed places
    before = module.deviations(rounds.query[:1, :2])
    module.update(rounds)
    values = module.values(rounds.query[:, :2])
    assert (values[person, 0] > values[person, 1]).mean() > 0.95
    assert (module.deviations(rounds.query[:1, :2]) < before).all()


def test_what_is_drawn_can_be_computed_again(learned: ArmsModule) -> None:
    rounds, _ = world(4_000, seed=3)
    policy = ArmPolicy(
        ARMS, {"words": 50, "people": 20}, learned, cut=10, costs={}, budget=1.5, price=0.1, explorer=Softmax(), seed=0
    )
    expected = policy.probabilities(rounds.query[:, :2], 0.1)
    decision = policy.decide(rounds.query[:, :2])
    drawn = [np.flatnonzero((policy.table.depths == row).all(axis=1))[0] for row in decision.depths]
    np.testing.assert_allclose(decision.propensity, expected[np.arange(4_000), drawn])
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 4_000, expected.mean(axis=0), atol=0.03)
    off = decision.depths == 0
    on = expected @ (policy.table.depths > 0)
    np.testing.assert_allclose(decision.marginals[:, :2], np.where(off, 1 - on, on))
    np.testing.assert_allclose(decision.marginals[:, 2], 1)


def test_the_price_finds_the_budget(learned: ArmsModule) -> None:
    """The right arm for everybody would cost 1.6."""
    rounds, _ = world(1_000, seed=4)
    options = {"costs": {"people": 3.0}, "budget": 1.3, "price": 0.0, "explorer": Softmax(), "seed": 0}
    policy = ArmPolicy(ARMS, dict.fromkeys(ARMS, 10), learned, cut=10, **options)
    policy.adapts = True
    each = np.array([1.0, 3.0])
    costs = [((policy.decide(rounds.query[:, :2]).depths > 0) @ each).mean() for _ in range(100)]
    assert costs[0] > 1.5
    assert np.mean(costs[50:]) == pytest.approx(1.3, abs=0.03)


def test_some_queries_run_all_arms_and_any_explorer_serves(learned: ArmsModule) -> None:
    rounds, _ = world(50, seed=5)
    options = {"costs": {}, "budget": 1.0, "price": 1.0, "explorer": EpsilonGreedy(0.0), "shadow": 0.1}
    policy = ArmPolicy(ARMS, dict.fromkeys(ARMS, 10), learned, cut=10, **options)
    found = policy.probabilities(rounds.query[:, :2], 1.0)
    np.testing.assert_allclose(found[:, -1], 0.1)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    unsure = ArmPolicy(ARMS, dict.fromkeys(ARMS, 10), learned, cut=10, **options | {"explorer": UCB(100.0)})
    assert (unsure.probabilities(rounds.query[:, :2], 1.0) != found).any()
    table, _ = arm_table(ARMS, {"words": 10, "people": 0}, {})
    assert table.depths.tolist() == [[10, 0]]  # an arm without a depth never runs


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
    assert np.abs(module.values(rounds.query[:, :2])[:, -1]).max() < 1e-5
