"""Logged rounds: what is written is read, what is damaged is named, and train.py learns a policy from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from ltrr.cli.fit import TrainingCLI
from ltrr.learners.relevance import RelevanceLearner
from ltrr.learners.rounds_data import LoggedRounds, read_rounds, write_rounds
from ltrr.types import RetrievalFeatures, Rounds
from tests.helpers import ROOT

NUM = 6
ONE_CPU = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on small data


@pytest.fixture
def rounds() -> Rounds:
    rng = np.random.default_rng(0)
    row = rng.integers(0, 80, 400)
    place = rng.integers(0, NUM, 80)
    each = np.stack([np.arange(NUM) == place[:, None], np.broadcast_to(np.arange(NUM), (80, NUM))], axis=2)
    query = rng.normal(size=(80, 3)).astype(np.float32)
    query[::7, 1] = np.nan
    cut = rng.integers(1, NUM + 1, 400)
    clicks = (np.arange(NUM) == place[row][:, None]) & (np.arange(NUM) < cut[:, None])
    return Rounds(row, query, each.astype(np.float32), cut, clicks, (("a", "b", "c"), ("hit", "rank")))


def test_what_is_written_is_read(rounds, tmp_path):
    write_rounds(tmp_path / "r.npz", rounds)
    found = read_rounds(tmp_path / "r.npz")
    assert (found.names, found.place) == (rounds.names, None)
    for old, new in zip(rounds[:5], found[:5], strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(found.places >= 0, np.arange(NUM) < rounds.cut[:, None])


def test_a_page_in_another_order_is_kept_and_taught(rounds, tmp_path):
    place = rounds.places[:, ::-1].copy()
    write_rounds(tmp_path / "r.npz", rounds._replace(place=place))
    np.testing.assert_array_equal(read_rounds(tmp_path / "r.npz").some(slice(3, 9)).places, place[3:9])
    data = LoggedRounds(str(tmp_path / "r.npz"), batch_size=400)
    data.setup()
    (batch,) = data.val_dataloader()
    mine = [int(i) for i in batch["ids"]]
    np.testing.assert_array_equal(batch["place"], place[mine])
    np.testing.assert_array_equal(batch["shown"], place[mine] >= 0)
    assert batch["tokens"] == (place[mine] >= 0).sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": np.full(400, 7)}, "cut is not within 1 and 6"),
        ({"row": np.full(400, 80)}, "row names queries"),
        ({"clicks": np.zeros((400, 5), bool)}, "clicks has shape"),
        ({"names": (("a",), ("hit", "rank"))}, "query has shape"),
        ({"place": np.full((400, 6), 6)}, "place is not within -1 and 5"),
        ({"place": np.full((400, 5), 0)}, "place has shape"),
    ],
)
def test_what_cannot_be_is_named(rounds, tmp_path, change, message):
    write_rounds(tmp_path / "r.npz", rounds._replace(**change))
    with pytest.raises(ValueError, match=message):
        read_rounds(tmp_path / "r.npz")


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "r.npz").write_text("no")
    with pytest.raises(ValueError, match=r"r\.npz holds no rounds"):
        read_rounds(tmp_path / "r.npz")
    with pytest.raises(ValueError, match="no file"):
        read_rounds(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"data\.path"):
        LoggedRounds()


def test_held_out_queries_are_not_learned_from(rounds, tmp_path):
    write_rounds(tmp_path / "r.npz", rounds)
    data = LoggedRounds(str(tmp_path / "r.npz"), batch_size=64)
    data.setup()
    seen = [
        {int(rounds.row[int(i)]) for batch in loader for i in batch["ids"]}
        for loader in (data.train_dataloader(), data.val_dataloader())
    ]
    assert seen[0].isdisjoint(seen[1])
    assert seen[0] | seen[1] == set(rounds.row.tolist())


def fit(path, root, *more):
    given = [
        f"--config={ROOT / 'configs' / 'cut_policy.yaml'}",
        f"--data.path={path}",
        f"--trainer.default_root_dir={root}",
    ]
    return TrainingCLI(["fit", *given, *ONE_CPU, *more])


def test_train_py_learns_a_policy_and_exports_it(rounds, tmp_path):
    write_rounds(tmp_path / "r.npz", rounds)
    made = fit(tmp_path / "r.npz", tmp_path, "--id=x", "--trainer.max_epochs=8", "--data.batch_size=32")
    run = tmp_path / "x"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "ckpt", "export"}
    assert (run / "ckpt" / "best.ckpt").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"] == 32
    module = RelevanceLearner.load(run / "export")
    known = RetrievalFeatures(rounds.query, rounds.candidates)
    np.testing.assert_allclose(module.values(known), made.model.values(known), rtol=1e-5)
    found = module.relevance(known)
    hit = rounds.candidates[:, :, 0] > 0
    assert found[hit].mean() > 3 * found[~hit].mean()
    assert json.loads((run / "export" / "policy.json").read_text())["columns"] == [["a", "b", "c"], ["hit", "rank"]]


def test_a_killed_fit_goes_on(rounds, tmp_path):
    write_rounds(tmp_path / "r.npz", rounds)
    shared = ["--data.batch_size=64", "--id=x"]
    fit(tmp_path / "r.npz", tmp_path / "whole", "--trainer.max_epochs=2", *shared)
    fit(tmp_path / "r.npz", tmp_path / "cut", "--trainer.max_epochs=1", *shared)
    (tmp_path / "cut" / "x" / "export").rename(tmp_path / "first")
    fit(tmp_path / "r.npz", tmp_path / "cut", "--trainer.max_epochs=2", "--ckpt_path=last", *shared)
    assert (tmp_path / "cut" / "x" / "export" / "policy.safetensors").exists()


def test_an_export_that_is_damaged_is_named(rounds, tmp_path):
    module = RelevanceLearner(hidden=4, epochs=1)
    module.refit(rounds)
    module.update(rounds.first(10))
    module.export(tmp_path)
    known = RetrievalFeatures(rounds.query, rounds.candidates)
    again = RelevanceLearner.load(tmp_path)
    np.testing.assert_array_equal(again.values(known), module.values(known))
    np.testing.assert_array_equal(again.deviations(known), module.deviations(known))
    (tmp_path / "policy.json").write_text(
        (tmp_path / "policy.json").read_text().replace('"version": 2', '"version": 9')
    )
    with pytest.raises(ValueError, match="version 9"):
        RelevanceLearner.load(tmp_path)
    with pytest.raises(ValueError, match="no policy"):
        RelevanceLearner.load(tmp_path / "none")
