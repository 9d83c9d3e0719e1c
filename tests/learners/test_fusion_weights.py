"""Weights of the arms for each query: clicks teach which arm to trust, no evidence leaves the fixed order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltrr.cli.fit import TrainingCLI
from ltrr.learners.fusion_weights import FusionWeightsLearner
from ltrr.learners.rounds_data import batch_of, write_rounds
from ltrr.types import RetrievalFeatures, Rounds
from tests.helpers import ROOT

NUM, QUERIES = 8, 1000
NAMES = (("kind", "nothing"), ("real", "fused", "a_share", "b_share"))
ONE_CPU = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on small data


@pytest.fixture(scope="module")
def world():
    """Arm a is right about one half of the queries, b about the other; a column tells which. The fused order halves."""
    rng = np.random.default_rng(0)
    kind = rng.random(QUERIES) < 0.5
    shares = rng.random((QUERIES, NUM, 2))
    fused = shares.mean(axis=2)
    by_fused = np.argsort(-fused, axis=1)
    shares, fused = np.take_along_axis(shares, by_fused[:, :, None], 1), np.take_along_axis(fused, by_fused, 1)
    right = np.where(kind[:, None], shares[:, :, 0], shares[:, :, 1])
    query = np.stack([kind + rng.normal(0, 0.1, QUERIES), np.full(QUERIES, np.nan)], axis=1)
    each = np.concatenate([np.ones((QUERIES, NUM, 1)), fused[:, :, None], shares], axis=2)
    return RetrievalFeatures(query.astype(np.float32), each.astype(np.float32)), np.argmax(right, axis=1)


def logged(world, relevant, *, noise=0.1, passes=4, seed=1, place=None):
    """Pages of 3 to 8 candidates; place k is looked at with 1 / k."""
    known, rng = world[0], np.random.default_rng(seed)
    row = np.tile(np.arange(QUERIES), passes)
    cut = rng.integers(3, NUM + 1, len(row))
    rounds = Rounds(row, known.query, known.candidates, cut, np.zeros((len(row), NUM), bool), NAMES, place)
    looked = rng.random((len(row), NUM)) < 1 / (1 + np.maximum(rounds.places, 0))
    liked = (np.arange(NUM) == relevant[row][:, None]) | (rng.random((len(row), NUM)) < noise)
    return rounds._replace(clicks=looked & liked & (rounds.places >= 0))


def first(module, known, relevant, num=1):
    return (module.order(known)[:, :num] == relevant[:, None]).any(axis=1).mean()


@pytest.fixture(scope="module")
def learned(world):
    module = FusionWeightsLearner(penalty=0.05, lr=0.02)
    module.refit(logged(world, world[1]))
    return module


def test_nothing_learned_is_the_fixed_order(world):
    known, relevant = world
    module = FusionWeightsLearner()
    module.prepare(logged(world, relevant))
    np.testing.assert_array_equal(module.order(known), np.tile(np.arange(NUM), (QUERIES, 1)))
    silent = logged(world, relevant)
    module.refit(silent._replace(clicks=np.zeros_like(silent.clicks)))
    np.testing.assert_array_equal(module.order(known), np.tile(np.arange(NUM), (QUERIES, 1)))


def test_clicks_teach_which_arm_to_trust(world, learned):
    known, relevant = world
    fixed = (relevant == 0).mean()
    assert first(learned, known, relevant) > fixed + 0.25
    held = FusionWeightsLearner(penalty=1e4, lr=0.02)
    held.refit(logged(world, relevant))
    assert first(held, known, relevant) == pytest.approx(fixed, abs=0.05)


def test_clicks_are_debiased(world, learned):
    """Who takes every place for looked at trusts what stands high anyway."""
    known, relevant = world
    biased = FusionWeightsLearner(examination=[1.0], penalty=0.05, lr=0.02)
    biased.refit(logged(world, relevant))
    assert first(learned, known, relevant) > first(biased, known, relevant) + 0.05


def test_examination_is_of_the_place_on_the_page(world):
    """A ranker shows the last candidate first: its clicks say more of the place than of the candidate."""
    known, relevant = world
    place = np.tile(np.arange(NUM)[::-1], (4 * QUERIES, 1))
    rounds = logged(world, relevant, place=place)
    module = FusionWeightsLearner(penalty=0.05, lr=0.02)
    module.refit(rounds)
    wrong = FusionWeightsLearner(penalty=0.05, lr=0.02)
    wrong.refit(rounds._replace(place=None, cut=np.full(len(rounds.row), NUM)))
    assert first(module, known, relevant) > first(wrong, known, relevant) + 0.05


def test_what_was_cut_off_is_missing_and_blanks_are_last(world, learned):
    known, relevant = world
    rounds = logged(world, relevant).first(64)
    batch = batch_of(rounds, np.arange(64))
    loss = learned.training_step(batch)
    batch["clicks"] = torch.where(batch["shown"] > 0, batch["clicks"], 1.0)
    batch["candidates"] = torch.where(batch["shown"][:, :, None] > 0, batch["candidates"], 9.0)
    torch.testing.assert_close(learned.training_step(batch), loss)
    short = known.candidates.copy()
    short[:, 5:] = 0.0
    order = learned.order(RetrievalFeatures(known.query, short))
    assert (order[:, 5:] == [5, 6, 7]).all()


def test_the_same_rounds_and_seed_give_the_same_order_and_exports_come_back(world, tmp_path):
    rounds = logged(world, world[1], passes=1)
    state, found = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        module = FusionWeightsLearner(epochs=2, hidden=8)
        module.refit(rounds, seed)
        found.append(module.training_step(batch_of(rounds, np.arange(9))).item())
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)
    module.export(tmp_path)
    again = FusionWeightsLearner.load(tmp_path)
    np.testing.assert_array_equal(again.order(world[0]), module.order(world[0]))
    assert (again.columns, again.hparams["hidden"], len(again.id)) == (NAMES, 8, 64)
    (tmp_path / "fusion.json").write_text((tmp_path / "fusion.json").read_text().replace('sion": 2', 'sion": 9'))
    with pytest.raises(ValueError, match="version 9"):
        FusionWeightsLearner.load(tmp_path)


def test_train_py_learns_it_from_a_file(world, tmp_path):
    write_rounds(tmp_path / "r.npz", logged(world, world[1]))
    given = [f"--config={ROOT / 'configs' / 'fusion.yaml'}", f"--data.path={tmp_path / 'r.npz'}", "--id=x"]
    given += [f"--trainer.default_root_dir={tmp_path}", "--model.penalty=0.05", "--model.lr=0.02"]
    made = TrainingCLI(["fit", *given, *ONE_CPU, "--trainer.max_epochs=6"])
    assert made.trainer.callback_metrics["val_listwise"] < 0
    module = FusionWeightsLearner.load(tmp_path / "x" / "export")
    known, relevant = world
    assert first(module, known, relevant) > (relevant == 0).mean() + 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dropout": 2.0}, "dropout"), ({"penalty": -1.0}, "penalty"), ({"examination": [1.0, 0.0]}, "examination")],
)
def test_what_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FusionWeightsLearner(**arguments)


def test_rounds_without_shares_are_refused(world):
    rounds = logged(world, world[1], passes=1)
    with pytest.raises(ValueError, match="_share"):
        FusionWeightsLearner().refit(rounds._replace(names=(NAMES[0], ("real", "fused", "a", "b"))))
