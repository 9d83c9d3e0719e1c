"""Files of version 0.1 load with today's code and give the values that 0.1 gave. v0_1/README.md: how they were made.

Legend: Q queries, M candidates looked at.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from ltrr.arms.dense import Dense
from ltrr.arms.memory import Memory
from ltrr.cli.fit import TrainingCLI
from ltrr.config import RENAMED, ConfigError, current_path, find_class
from ltrr.data.beir import Dataset, open_dataset
from ltrr.feedback.events import normalised
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.fusion import ConvexFusion
from ltrr.learners.arm_loss import ArmLossLearner
from ltrr.learners.fusion_weights import FusionWeightsLearner
from ltrr.learners.relevance import RelevanceLearner
from ltrr.learners.rounds_data import read_rounds
from ltrr.policies.explorers import Softmax
from ltrr.policies.features import RetrievalFeatures
from ltrr.policies.history import History
from ltrr.system.system import System, open_systems
from tests.compat.v0_1.common import WordHashes, as_json

V0_1 = Path(__file__).parent / "v0_1"
EXPORTS = V0_1 / "exports"
EXPECTED = json.loads((V0_1 / "expected.json").read_text(encoding="utf-8"))
FIXED = ("--policy.model", "null", "--policy.arms_model", "null")
BLOCK = 1 << 20  # bytes


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_dataset(V0_1 / "data", query_fields=["customer", "locale", "time", "device"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """What 0.1 cached. Engines reserve space that they do not use: blocks of zeros become holes."""
    folder = tmp_path_factory.mktemp("v0_1")
    with zipfile.ZipFile(V0_1 / "cache.zip") as archive:
        for name in archive.namelist():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, path.open("wb") as file:
                while block := packed.read(BLOCK):
                    if block.count(0) == len(block):
                        file.seek(len(block), os.SEEK_CUR)
                    else:
                        file.write(block)
                file.truncate()
    return folder / "cache"


@pytest.fixture
def store(tmp_path):
    shutil.copy(V0_1 / "events.db", tmp_path)
    with EventStore(f"sqlite:///{tmp_path}/events.db") as opened:
        yield opened


def open_system(cache: Path, *overrides: str) -> System:
    """The system of 0.1's config."""
    return open_systems(V0_1 / "funnel.yaml", ["--data.path", str(V0_1 / "data"), "--cache", str(cache), *overrides])[0]


def same(values, expected, rtol: float = 1e-5, atol: float = 0.0) -> None:
    """Equal but for rounding; null stands for infinities and NaN."""
    values, expected = np.asarray(values, float), np.array(expected, float)
    np.testing.assert_allclose(np.where(np.isfinite(values), values, np.nan), expected, rtol, atol)


def known() -> RetrievalFeatures:
    rounds = read_rounds(V0_1 / "rounds.npz")
    return RetrievalFeatures(rounds.query, rounds.candidates)


# -- rounds and exports


def test_rounds() -> None:
    rounds = read_rounds(V0_1 / "rounds.npz")
    assert {
        "num": len(rounds.row),
        "clicks": rounds.clicks.sum(axis=0).tolist(),
        "names": as_json(rounds.names),
    } == EXPECTED["rounds"]


def test_an_export_of_a_policy_of_cuts() -> None:
    learner = RelevanceLearner.load(EXPORTS / "bandit")
    same(learner.values(known())[:6], EXPECTED["bandit"]["values"])
    same(learner.deviations(known())[:6], EXPECTED["bandit"]["deviations"])


def test_an_export_of_a_policy_of_arms() -> None:
    learner = ArmLossLearner.load(EXPORTS / "arms")
    losses = learner.losses(known().query[:6, : len(learner.columns[0])])
    same(losses, EXPECTED["arms"]["losses"], atol=1e-6)


def test_an_export_of_fusion_weights() -> None:
    learner = FusionWeightsLearner.load(EXPORTS / "fusion")
    assert learner.order(known())[:6].tolist() == EXPECTED["fusion"]["order"]


# -- indexes


@pytest.mark.parametrize("name", ["words", "structured"])
def test_an_index_folder_of_an_engine(cache: Path, data: Dataset, name: str) -> None:
    """The arm of the old config opens the old folder: its key is the same, and nothing is built anew."""
    system = open_system(cache, *FIXED)
    found = system.arm(name).search(data.split("test").queries, 5)
    assert system.indexes.identity(name) == EXPECTED["indexes"][name]
    assert found.docs.tolist() == EXPECTED["search"][name]["docs"]
    same(found.scores, EXPECTED["search"][name]["scores"])


def test_an_index_folder_of_faiss(cache: Path, data: Dataset) -> None:
    arm = Dense(WordHashes(), kind="hnsw", m=4).open(data.corpus, cache / "dense")
    found = arm.search(data.split("test").queries, 5)
    assert found.docs.tolist() == EXPECTED["search"]["dense"]["docs"]
    same(found.scores, EXPECTED["search"]["dense"]["scores"])


# -- events, and what was learned from them


def test_an_event_database(store: EventStore) -> None:
    """Everything that 0.1 wrote is read back, whatever fields later versions add."""
    impressions = [as_json(one) for batch in store.impressions() for _, one in batch]
    actions = [as_json(one) for batch in store.actions() for _, one in batch]
    assert store.id == EXPECTED["store"]
    assert actions == EXPECTED["actions"]
    assert [
        {name: one[name] for name in old} for one, old in zip(impressions, EXPECTED["impressions"], strict=True)
    ] == EXPECTED["impressions"]
    assert len(store.erasures(0)) == 1


def test_snapshots_of_learners(data: Dataset) -> None:
    memory = Memory(data.corpus, distinct=1)
    memory.load(V0_1 / "learned" / "12-16" / "memory.npz")
    found = memory.search(data.queries, 5)
    assert found.docs.tolist() == EXPECTED["memory"]["docs"]
    same(found.scores, EXPECTED["memory"]["scores"])
    observed = [[row, text, pytest.approx(score)] for row, text, score in EXPECTED["memory"]["observed"]]
    assert as_json(memory.observed()) == observed


def test_a_folder_of_snapshots(store: EventStore, data: Dataset, tmp_path: Path, recwarn) -> None:
    """A service goes on from it: Loop warns where it cannot use a snapshot, and adds its own where something is new."""
    shutil.copytree(V0_1 / "learned", tmp_path / "learned")
    memory = Memory(data.corpus, distinct=1)
    rows = {entity: row for row, entity in enumerate(data.corpus.ids)}
    with Loop(store, {"memory": memory}, rows, tmp_path / "learned"):
        same(memory.search(data.queries, 5).scores, EXPECTED["memory"]["scores"])
    assert [path.name for path in (tmp_path / "learned").iterdir()] == ["12-16"]
    assert not [warning for warning in recwarn if "learning anew" in str(warning.message)]


def test_a_history(data: Dataset) -> None:
    kinds = {"title": "lexical", "words": "lexical", "structured": "structured"}
    history = History(
        kinds, normalised, lambda queries: WordHashes().encode([f"{q.text} ." for q in queries]), most=100
    )
    history.load(V0_1 / "history.npz")
    same(history.features(data.split("test").queries), EXPECTED["history"])


# -- configs


def test_a_funnel_config_with_a_fixed_policy(cache: Path, data: Dataset) -> None:
    """Its ranker's class path is of 0.1 too, though it waits for a model."""
    with pytest.warns(DeprecationWarning, match=r"ltrr\.rankers\.cross_encoder\.CrossEncoderRanker"):
        system = open_system(cache, *FIXED)
    assert system.drawn == ["title", "words", "structured"]
    page = system.funnel().search(data.split("test").queries, 5)
    assert page.decision.cut.tolist() == [8] * len(page.queries)


def test_a_funnel_config_with_a_learned_policy(cache: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The section of keys (model, arms_model, budget, explore, …) draws as it did, with the same propensities."""
    models = ["--policy.model", str(EXPORTS / "bandit"), "--policy.arms_model", str(EXPORTS / "arms")]
    models += ["--cache", str(cache / "as 0.1")]
    # 0.1 took fitted weights whatever they reached.
    monkeypatch.setattr(
        ConvexFusion, "choose", lambda pool, grades, arms, *_: (ConvexFusion.fit(pool, grades, arms)[0], "")
    )
    with pytest.warns(DeprecationWarning, match=r"ltrr\.policies\.explorers\.Softmax"):
        funnel = open_system(cache, *models).funnel(seed=0)
    drawn = funnel.draw(data.split("test").queries)
    assert drawn.fused.docs.tolist() == EXPECTED["funnel"]["docs"]
    same(drawn.fused.scores, EXPECTED["funnel"]["scores"])
    assert drawn.decision.depths.tolist() == EXPECTED["funnel"]["depths"]
    assert drawn.decision.cut.tolist() == EXPECTED["funnel"]["cut"]
    same(drawn.decision.propensity, EXPECTED["funnel"]["propensity"])
    same(drawn.decision.marginals, EXPECTED["funnel"]["marginals"])


@pytest.mark.filterwarnings("ignore")  # Lightning's, on batches of tests
def test_a_training_config_of_a_policy(tmp_path: Path) -> None:
    """Old class paths choose the module and its data; the same seed learns the same again."""
    given = ["fit", f"--config={V0_1 / 'policy.yaml'}", f"--data.path={V0_1 / 'rounds.npz'}", "--id=again"]
    with pytest.warns(DeprecationWarning, match=r"ltrr\.learners\.relevance\.RelevanceLearner"):
        TrainingCLI([*given, f"--trainer.default_root_dir={tmp_path}"])
    values = RelevanceLearner.load(tmp_path / "again" / "export").values(known())[:6]
    same(values, EXPECTED["bandit"]["values"], rtol=1e-3)
    config = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["class_path"] == "ltrr.learners.relevance.RelevanceLearner"


@pytest.mark.parametrize(
    "given",
    [
        [f"--config={V0_1 / 'dense.yaml'}"],
        ["--model=ltrr.models.dense.DenseModule", "--model.network=ltrr.models.dense.dense_network"],
        [
            "--model",
            "ltrr.models.dense.DenseModule",
            "--model.network",
            "{class_path: ltrr.models.dense.dense_network}",
        ],
    ],
)
def test_class_paths_for_training(given: list[str], capsys) -> None:
    """In a file, on the command line, and in YAML on the command line."""
    with pytest.warns(DeprecationWarning, match=r"ltrr\.encoders\.bi_encoder\.D"), contextlib.suppress(SystemExit):
        TrainingCLI(["fit", *given, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["class_path"] == "ltrr.encoders.bi_encoder.DenseModule"
    assert model["init_args"]["network"]["class_path"] == "ltrr.encoders.bi_encoder.dense_network"


# -- renamed paths


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_path_leads_to_what_there_is(old: str, new: str) -> None:
    module, _, name = new.rpartition(".")
    if name[0].islower():
        importlib.import_module(new)
    else:
        assert hasattr(importlib.import_module(module), name)


def test_a_class_is_found_by_its_old_path() -> None:
    with pytest.warns(DeprecationWarning, match=r"ltrr\.policy\.explore\.Softmax has moved: write ltrr\.policies"):
        assert find_class("policy.explore", "ltrr.policy.explore.Softmax") is Softmax
    with pytest.warns(DeprecationWarning, match="RelevanceLearner"):
        assert find_class("", "ltrr.models.bandit.BanditModule") is RelevanceLearner


def test_a_path_that_never_was_is_refused(recwarn) -> None:
    for wrong in ("ltrr.policy.nowhere.Softmax", "ltrr.policy", "mine.Arm", ""):
        assert current_path(wrong) == wrong
        with pytest.raises(ConfigError, match=f"cannot import '{wrong}'"):
            find_class("arms.a", wrong)
    assert not recwarn
