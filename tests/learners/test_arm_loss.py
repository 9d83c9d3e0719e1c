"""What arms, and their depths, are worth to a query: told from one deep draw, learned, kept."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ltrr.cli.fit import TrainingCLI
from ltrr.fusion import ConvexFusion, union
from ltrr.learners.arm_loss import ArmContributions, ArmLossLearner, contributions, drawn_to
from ltrr.learners.relevance import RelevanceLearner
from ltrr.learners.rounds_data import write_rounds
from ltrr.policies.arm_choices import choices
from ltrr.policies.features import pool_names
from ltrr.types import Candidates, RetrievalFeatures, Rounds
from tests.helpers import ROOT
from tests.learners.test_rounds_data import ONE_CPU

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on small data

ARMS, NUM, WEIGHTS = ("words", "people"), 6, (0.6, 0.4)


class Teacher(RelevanceLearner):
    """Knows what is relevant: the column of that name says so."""

    def relevance(self, known: RetrievalFeatures) -> np.ndarray:
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
    rounds = Rounds(np.arange(num), query, candidates, np.full(num, NUM), clicks, names, depths=np.array([100, 100]))
    return rounds, person


@pytest.fixture(scope="module")
def learned() -> ArmLossLearner:
    module = ArmLossLearner(cut=3, epochs=10)
    module.refit(world(2_000)[0], 0, Teacher())
    return module


@pytest.mark.parametrize("shallow", [(), (1,), (1, 2)])
def test_a_choice_loses_what_the_others_alone_would_have_ranked_too_low(shallow) -> None:
    """Also where arms are drawn less deep; arms' ranks in this world are 2."""
    module = ArmLossLearner(cut=2, shallow=shallow)
    rounds, _ = world(50)
    module.refit(rounds, 0, Teacher())
    lost = module.lost(RetrievalFeatures(rounds.query, rounds.candidates))
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
    np.testing.assert_allclose(gave.level, -gave.slope * shares[:, -1], atol=1e-3)  # the last gives nothing
    found = np.full((30, 1), float(num))
    for depth in (5, 20, num, 100):
        np.testing.assert_allclose(
            drawn_to(depth, gave, shares, reciprocal, found)[:, :, 0], fused(min(depth, num)), atol=2e-3
        )
    seen = np.arange(num) % 3 > 0  # of ten, the sixth to the ninth but one
    added = ArmContributions(np.zeros((30, 1)), np.full((30, 1), 3.0))  # as it is, not scaled
    np.testing.assert_allclose(
        drawn_to(10, added, shares, reciprocal, found)[:, :10, 0], 3 * shares[:, :10, 0], rtol=1e-6
    )
    part = drawn_to(10, gave, shares * seen[:, None], reciprocal * seen[:, None], found)[:, seen, 0]
    assert np.nanmean(np.abs(part - fused(10)[:, seen])) < 0.03
    assert (np.isnan(part) == np.isnan(fused(10)[:, seen])).all()


def test_an_export_comes_back(learned: ArmLossLearner, tmp_path) -> None:
    learned.export(tmp_path)
    module = ArmLossLearner.load(tmp_path)
    assert module.id
    assert module.columns == (("person", "noise"), ARMS)
    assert module.depths == [100, 100]
    query = world(300, seed=2)[0].query[:, :2]
    np.testing.assert_allclose(module.losses(query), learned.losses(query), atol=1e-6)


def test_mistakes_are_named(learned: ArmLossLearner, tmp_path) -> None:
    rounds, _ = world(20)
    with pytest.raises(ValueError, match=r"model\.teacher"):
        ArmLossLearner().prepare(rounds)
    with pytest.raises(ValueError, match="_rank"):
        ArmLossLearner().refit(rounds._replace(names=(("a",), ("b",))), 0, Teacher())
    with pytest.raises(ValueError, match="--all-arms"):
        ArmLossLearner().refit(rounds._replace(depths=None), 0, Teacher())
    with pytest.raises(ValueError, match="no arms"):
        ArmLossLearner.load(tmp_path)
    with pytest.raises(ValueError, match=r"model\.cut"):
        ArmLossLearner(cut=0)
    with pytest.raises(ValueError, match=r"model\.shallow"):
        ArmLossLearner(shallow=[30, 10])
    teacher = Teacher()
    teacher.columns = (("another",), ("column",))
    with pytest.raises(ValueError, match="other columns"):
        ArmLossLearner().refit(rounds, 0, teacher)


def test_train_py_learns_it_from_a_file(tmp_path) -> None:
    """From logged rounds and the policy of cuts that was learned from them, which it does not need any more."""
    rounds, _ = world(400)
    write_rounds(tmp_path / "r.npz", rounds)
    teacher = RelevanceLearner(hidden=4, epochs=1)
    teacher.refit(rounds)
    (tmp_path / "teacher").mkdir()
    teacher.export(tmp_path / "teacher")
    given = [f"--config={ROOT / 'configs' / 'arms_policy.yaml'}", f"--data.path={tmp_path / 'r.npz'}", "--id=x"]
    given += [f"--trainer.default_root_dir={tmp_path}", f"--model.teacher={tmp_path / 'teacher'}"]
    given += ["--model.shallow=[1]"]
    made = TrainingCLI(["fit", *given, *ONE_CPU, "--trainer.max_epochs=2"])
    assert "val_explained" in made.trainer.callback_metrics
    shutil.rmtree(tmp_path / "teacher")
    module = ArmLossLearner.load(tmp_path / "x" / "export")
    assert module.columns == (("person", "noise"), ARMS)
    assert module.shallow == (1,)
    assert module.losses(rounds.query[:, :2]).shape == (400, 3**2 - 1)
    assert np.abs(module.losses(rounds.query[:, :2])[:, -1]).max() < 1e-5
