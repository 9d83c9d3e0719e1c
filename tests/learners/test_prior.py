"""The neural prior starts as the calibration, learns from clicks what scores do not say, and stays if pairs are few."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from scipy.special import expit

from ltrr.cli.fit import TrainingCLI
from ltrr.feedback.evidence.cells import NUM
from ltrr.learners.exports import load_learner
from ltrr.learners.prior import PriorLearner, counts_of
from ltrr.learners.rounds_data import write_rounds
from ltrr.policies.features import pool_features, pool_names
from ltrr.types import Pool, RetrievalFeatures, Rounds
from tests.helpers import ROOT

ARMS, MOST, QUERIES = ("words", "meaning"), 6, 400
CONTEXT = ("kind",)

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on small data


def known_of(seed: int = 0) -> tuple[RetrievalFeatures, np.ndarray]:
    """Queries of two kinds: one's relevant candidate is the first of `words`, the other's that of `meaning`."""
    rng = np.random.default_rng(seed)
    ranks = np.stack([np.argsort(rng.random((QUERIES, MOST)), axis=1) for _ in ARMS], axis=2)
    scores = 1 / (1.0 + ranks)
    fused = scores.sum(axis=2)
    order = np.argsort(-fused, axis=1, kind="stable")
    ranks, scores = (np.take_along_axis(part, order[:, :, None], 1) for part in (ranks, scores))
    fused = np.take_along_axis(fused, order, 1)
    place = np.broadcast_to(np.arange(MOST), fused.shape)
    docs = np.tile(np.arange(MOST, dtype=np.int32), (QUERIES, 1))
    whole = np.concatenate([ranks, place[:, :, None]], axis=2), np.concatenate([scores, fused[:, :, None]], axis=2)
    seen = pool_features(Pool((*ARMS, "fused"), docs, *whole), MOST)
    kind = rng.integers(0, 2, QUERIES)
    relevant = np.take_along_axis(ranks, kind[:, None, None], 2)[:, :, 0] == 0
    query = np.concatenate([kind[:, None], seen.query], axis=1).astype(np.float32)
    return RetrievalFeatures(query, seen.candidates), relevant


def names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    query, each = pool_names(ARMS, MOST)
    return (*CONTEXT, *(f.name for f in query)), tuple(f.name for f in each)


def logged(known: RetrievalFeatures, relevant: np.ndarray, passes: int = 4, seed: int = 1) -> Rounds:
    """Pages in random order; every place is looked at with 1 / rank, noise is .1."""
    rng = np.random.default_rng(seed)
    row = np.tile(np.arange(len(relevant)), passes)
    place = np.argsort(rng.random((len(row), MOST)), axis=1).astype(np.int16)
    clicks = rng.random(place.shape) < np.where(relevant[row], 0.9, 0.1) / (1 + place)
    return Rounds(row, known.query, known.candidates, np.full(len(row), MOST), clicks, names(), place)


@pytest.fixture(scope="module")
def learned() -> PriorLearner:
    known, relevant = known_of()
    learner = PriorLearner(hidden=16, steps=300)
    learner.refit(logged(known, relevant))
    return learner


def test_it_starts_as_the_calibration() -> None:
    known, relevant = known_of()
    learner = PriorLearner(hidden=8)
    learner.columns = names()
    inputs = learner.inputs(known)
    assert not learner.correction(inputs, np.zeros(inputs.shape[:2])).any()
    learner.prepare(logged(known, relevant))  # the networks' last layers start at 0
    assert not learner.correction(learner.inputs(known), np.zeros(inputs.shape[:2])).any()


def test_it_learns_from_clicks_which_arm_to_believe_for_which_query(learned: PriorLearner) -> None:
    known, relevant = known_of(seed=5)  # other queries
    odds = learned._calibrated(known.candidates)
    after = expit(odds + learned.correction(learned.inputs(known), odds))
    assert after[relevant].mean() > 1.2 * expit(odds)[relevant].mean()
    assert after[~relevant].mean() < expit(odds)[~relevant].mean()


def test_few_pairs_change_nothing() -> None:
    known, relevant = known_of()
    learner = PriorLearner(hidden=8, shrink=1e6)
    learner.refit(logged(known, relevant))
    odds = learner._calibrated(known.candidates)
    assert np.abs(learner.correction(learner.inputs(known), odds)).max() < 0.05


def test_what_was_seen_is_counted_by_cell() -> None:
    known, relevant = known_of()
    rounds = logged(known, relevant)
    counts, (row, candidate, cells, clicked), shows = counts_of(rounds)
    assert counts.sum() == rounds.clicks.size
    clicks = np.stack([rounds.clicks[rounds.row == q].sum(axis=0) for q in range(QUERIES)])
    np.testing.assert_array_equal(counts[:, :, 0], clicks)
    one = (row == 7) & (candidate == 2)
    np.testing.assert_array_equal(counts[7, 2, 1:], np.bincount(cells[one & ~clicked], minlength=NUM))
    assert shows.clicks.sum() == rounds.clicks.sum()
    assert cells[(row == 0)].max() < NUM


def test_an_export_gives_the_same(learned: PriorLearner, tmp_path) -> None:
    learned.export(tmp_path)
    again = load_learner(str(tmp_path))
    known, _ = known_of(seed=5)
    odds = learned._calibrated(known.candidates)
    np.testing.assert_array_equal(
        again.correction(again.inputs(known), odds), learned.correction(learned.inputs(known), odds)
    )
    assert (again.calibration, again.num, again.columns) == (learned.calibration, MOST, names())
    (tmp_path / "prior.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="no prior that this ltrr can read"):
        load_learner(str(tmp_path))


def test_an_arm_may_say_nothing(learned: PriorLearner) -> None:
    known, _ = known_of(seed=5)
    at = names()[1].index("meaning_rank")
    silent = known.candidates.copy()
    silent[:, :, at] = 0.0
    inputs = learned.inputs(RetrievalFeatures(known.query, silent))
    assert np.isfinite(learned.correction(inputs, np.zeros(inputs.shape[:2]))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"networks": 0}, "networks"), ({"hidden": 2}, "hidden"), ({"steps": 0}, "steps"), ({"shrink": -1.0}, "shrink")],
)
def test_arguments_that_make_no_sense_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PriorLearner(**arguments)


def test_train_py_fits_it_and_exports_it(tmp_path) -> None:
    known, relevant = known_of()
    write_rounds(tmp_path / "r.npz", logged(known, relevant))
    given = [f"--config={ROOT / 'configs' / 'policy.yaml'}", f"--data.path={tmp_path / 'r.npz'}"]
    given += [f"--trainer.default_root_dir={tmp_path}", "--id=x", "--trainer.accelerator=cpu"]
    given += ["--trainer.logger=false"]
    made = TrainingCLI(
        ["fit", *given, "--trainer.enable_progress_bar=false", "--model.hidden=8", "--data.batch_size=64"]
    )
    module = load_learner(str(tmp_path / "x" / "export"))
    odds = module._calibrated(known.candidates)
    np.testing.assert_allclose(
        module.correction(module.inputs(known), odds), made.model.correction(made.model.inputs(known), odds), atol=1e-5
    )
    assert made.trainer.callback_metrics["val_likelihood"] > 0.005  # nats a pair above the calibration
    assert yaml.safe_load((tmp_path / "x" / "config.yaml").read_text())["model"]["init_args"]["hidden"] == 8
    assert json.loads((tmp_path / "x" / "export" / "prior.json").read_text())["options"]["networks"] == 4
