"""scripts/simulate.py: results that other work reads, seeds that are kept, mistakes that are named."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest

from ltrr.config import construct, find_class, read_settings
from ltrr.learners.relevance import RelevanceLearner
from tests.helpers import script
from tests.simulation.worlds import simulation_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return simulation_config(tmp_path)


def test_a_policy_is_simulated_beside_what_it_is_compared_with(music: Path, config: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "tiny", tmp_path / "out"
    shutil.copytree(music, data)
    if not (data / "qrels" / "dev.tsv").exists():
        shutil.copy(data / "qrels" / "train.tsv", data / "qrels" / "dev.tsv")
    flags = ("--config", config, "--data", data, "--out", out, "--budgets", 3, 5, "--passes", 1, 3)
    done = script("scripts/simulate.py", *flags, "--seeds", 2)
    results = json.loads((out / "results.json").read_text())
    assert results["seeds"] == 2
    for part in ("gap_closed", "cost_saved"):
        assert list(results[part]) == ["K=3", "K=5"]
        for cell in results[part].values():
            assert set(cell) == {"mean", "low", "high"}
            assert cell["low"] <= cell["mean"] <= cell["high"]
    rules = {"threshold", "range-scaled", "mass, 0.02", "mass, 0.05", "mass, 0.1", "mass, 0.2", "largest gap"}
    rules |= {"calibration"} & {*results["systems"]}
    assert set(results["systems"]) == {"title", "all", "rrf", "convex", "slots", "oracle", "policy"} | rules
    for budget in ("K=3", "K=5"):
        recall = {name: told[budget]["mean"] for name, told in results["systems"].items()}
        assert recall["oracle"] >= max(recall["policy"] - 0.05, recall[results["base"][budget]])
    assert [(r["clicks"], r["passes"], r["K"]) for r in results["all"]] == [
        (clicks, passes, k) for k in (3, 5) for clicks in ("simulated", "perfect") for passes in (1, 3)
    ]
    assert (out / "table.md").read_text() in done.stdout
    assert all((out / f"{name}.png").stat().st_size > 1000 for name in ("frontier", "regret"))
    made = {path: path.stat().st_mtime_ns for path in (out / "seeds").glob("*.npz")}
    assert len(made) == 8
    script("scripts/simulate.py", *flags, "--seeds", 2)
    assert {path: path.stat().st_mtime_ns for path in (out / "seeds").glob("*.npz")} == made
    assert json.loads((out / "results.json").read_text()) == results
    for flag in ("--shuffle", "--cascade"):  # other worlds, other outcomes
        script("scripts/simulate.py", *flags, "--seeds", 2, "--no-perfect", flag)
        other = json.loads((out / "results.json").read_text())
        assert other["systems"]["convex"] == results["systems"]["convex"]
        assert other["gap_closed"] != results["gap_closed"]


@pytest.mark.parametrize("name", ["simulate.yaml", "experiments/policy_catalogue.yaml", "experiments/arms.yaml"])
def test_the_configs_that_come_along_construct(name: str) -> None:
    settings = read_settings(ROOT / "configs" / name, [])
    spec = dict(settings.policy["learner"])
    learner = construct("policy.learner", find_class("policy.learner", spec.pop("class")), spec)
    assert isinstance(learner, RelevanceLearner)
    for name, arm in settings.arms.items():
        assert arm is not None
        arguments = {key: value for key, value in arm.items() if key not in ("class", "tune", "model")}
        cls = find_class(name, arm["class"])
        injected = {"encoder": object()} if "encoder" in inspect.signature(cls).parameters else {}
        assert callable(construct(name, cls, arguments | injected).search)


def test_mistakes_are_named(music: Path, config: Path, tmp_path: Path) -> None:
    flags = ("--config", config, "--out", tmp_path / "out")
    assert "data.path" in script("scripts/simulate.py", *flags, check=False).stderr
    wrong = script("scripts/simulate.py", *flags, "--data", music, "--budgets", 0, check=False)
    assert "--budgets" in wrong.stderr
    wrong = script("scripts/simulate.py", *flags, "--data", music, "--split", "tset", check=False)
    assert "tset" in wrong.stderr
    assert not (tmp_path / "out").exists()


def test_other_worlds_are_simulated(music: Path, config: Path, tmp_path: Path) -> None:
    """Folds test every judged query once; an arm may join or fall silent; any explorer can be drawn with."""
    flags = ("--config", config, "--data", music, "--budgets", 3, "--seeds", 1, "--no-perfect")
    judged = {line.split("\t")[0] for path in (music / "qrels").glob("*.tsv") for line in path.open()} - {"query-id"}
    told = {}
    for name, more in {
        "folds": ("--folds", 3, "--policy.explore", "{class: ltrr.policies.explorers.UCB, width: 0.5}"),
        "joins": ("--change", "joins:all", "--passes", 1, 2, "--weights"),
        "leaves": ("--change", "leaves:all", "--passes", 1, 2, "--learn", "dev"),
    }.items():
        script("scripts/simulate.py", *flags, "--out", tmp_path / name, *more)
        told[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert told["folds"]["queries"] == len(judged)
    assert told["joins"]["systems"]["all"]["K=3"]["mean"] > 0 == told["leaves"]["systems"]["all"]["K=3"]["mean"]
    assert [row["passes"] for row in told["leaves"]["all"]] == [1, 2]
    learned, fixed = (told["joins"]["systems"][name]["K=3"]["mean"] for name in ("weights by query", "convex"))
    assert abs(learned - fixed) < 0.1
    assert "weights by query" not in told["folds"]["systems"]
    for more, message in (
        (("--change", "joins:nobody"), "nobody"),
        (("--learn", "test"), "neither teach"),
        (("--shuffle", "--change", "joins:all"), "one of them at a time"),
        (("--budgets", 13), "policy.num"),
    ):
        wrong = script("scripts/simulate.py", *flags, "--out", tmp_path / "w", *more, check=False)
        assert (wrong.returncode, message in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False)


def test_a_run_is_tracked(music: Path, config: Path, tmp_path: Path) -> None:
    """The logger of --logger gets the curves and the figures."""
    logger = "{class: pytorch_lightning.loggers.CSVLogger, version: one}"
    flags = ("--config", config, "--data", music, "--out", tmp_path / "out", "--budgets", 3, "--seeds", 1)
    script("scripts/simulate.py", *flags, "--no-perfect", "--logger", logger)
    (written,) = (tmp_path / "out").rglob("metrics.csv")
    text = written.read_text()
    assert "K=3/policy" in text
    assert "K=3/gap closed" in text


def test_other_queries_are_searched_anew(music: Path, config: Path, tmp_path: Path) -> None:
    """What is kept of searches and seeds belongs to these queries and what is known of them, not to names alone."""
    data = tmp_path / "tiny"
    shutil.copytree(music, data)
    flags = ("--config", config, "--data", data, "--budgets", 3, "--seeds", 1, "--no-perfect", "--price", "train")
    script("scripts/simulate.py", *flags, "--out", tmp_path / "a")
    before = json.loads((tmp_path / "a" / "results.json").read_text())
    path = data / "queries.jsonl"
    asked = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    path.write_text("\n".join(json.dumps(q | {"text": q["text"] + " love"}) for q in asked) + "\n", "utf-8")
    script("scripts/simulate.py", *flags, "--out", tmp_path / "b")
    after = json.loads((tmp_path / "b" / "results.json").read_text())
    assert after["systems"]["convex"] != before["systems"]["convex"]
    done = script("scripts/simulate.py", *flags, "--folds", 3, "--log", "--out", tmp_path / "c", check=False)
    assert "--folds, --log" in done.stderr


LEARNERS = {
    "linucb": ("ltrr.learners.linucb.LinUCB", "ltrr.policies.explorers.UCB"),
    "lints": ("ltrr.learners.linucb.LinUCB", "ltrr.policies.explorers.Thompson"),
    "router": ("ltrr.learners.router.SupervisedRouter", "ltrr.policies.explorers.EpsilonGreedy"),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_other_learners_and_explorers_are_overrides(music: Path, config: Path, tmp_path: Path, name: str) -> None:
    """Thompson's propensities are estimates, which a simulation that logs none may allow."""
    learner, explorer = LEARNERS[name]
    flags = ("--config", config, "--data", music, "--budgets", 3, "--seeds", 1, "--no-perfect", "--out", tmp_path / "o")
    flags += ("--policy.learner", f"{{class: {learner}}}", "--policy.explore.class", explorer)
    if name == "lints":
        refused = script("scripts/simulate.py", *flags, check=False)
        assert "estimated: true" in refused.stderr
        flags += ("--policy.estimated", "true")
    script("scripts/simulate.py", *flags)
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert 0 < results["systems"]["policy"]["K=3"]["mean"] <= results["systems"]["oracle"]["K=3"]["mean"] + 0.05


OWN = """
import numpy as np

from ltrr.types import Decision


class ByLength:
    '''Lets twice as many candidates through as the query has words.'''

    id = "by length"

    def __init__(self, arms, depths):
        self._depths = [depths.get(arm, 0) for arm in arms]

    def decide(self, queries, features):
        cut = np.array([2 * len(query.text.split()) for query in queries], np.int32)
        depths = np.tile(np.array(self._depths, np.int32), (len(queries), 1))
        return Decision(depths, cut, np.ones(len(queries)), np.ones((len(queries), len(self._depths) + 1)))
"""


def test_a_policy_of_one_s_own_is_simulated(music: Path, config: Path, tmp_path: Path, monkeypatch) -> None:
    """It has no budget, learns nothing and knows no other price, so it is scored at its one mean cut."""
    (tmp_path / "own_policy.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    flags = ("--config", config, "--data", music, "--budgets", 3, "--seeds", 1, "--out", tmp_path / "out")
    script("scripts/simulate.py", *flags, "--no-perfect", "--policy", "{class: own_policy.ByLength}")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    test = {line.split("\t")[0] for line in (music / "qrels" / "test.tsv").open()} - {"query-id"}
    queries = [json.loads(line) for line in (music / "queries.jsonl").read_text("utf-8").splitlines()]
    lengths = [2 * len(query["text"].split()) for query in queries if query["_id"] in test]
    (row,) = results["all"]
    assert row["mean_cut"] == pytest.approx(sum(lengths) / len(lengths))
    assert row["gap_closed_at_K"] is None
    assert 0 < row["recall"]["mean"] < 1
    wrong = script("scripts/simulate.py", *flags, "--policy", "{class: own_policy.ByLength}", "--log", check=False)
    assert "does not learn from rounds" in wrong.stderr
