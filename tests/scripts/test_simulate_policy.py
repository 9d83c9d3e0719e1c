"""scripts/simulate.py: results that other work reads, seeds that are kept, mistakes that are named."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
import yaml

from ltrr.config import construct, find_class
from ltrr.encoders.cross_encoder import CrossEncoderModule, cross_encoder_network
from ltrr.learners.relevance import RelevanceLearner
from tests.helpers import script

ROOT = Path(__file__).parents[2]

CONFIG = """
model:
  class_path: ltrr.learners.relevance.RelevanceLearner
  init_args: {{hidden: 8, epochs: 1}}
data:
  path: null
  cache: {cache}
  arms:
    title: {{class: ltrr.arms.lexical.Lexical, tune: false, fields: {{title: {{sources: [title]}}}}}}
    all: {{class: ltrr.arms.lexical.Lexical, tune: false}}
  tune: [train]
  num_candidates: 12
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(CONFIG.format(cache=tmp_path / "cache"), encoding="utf-8")
    return path


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
    assert set(results["systems"]) == {"title", "all", "rrf", "convex", "slots", "oracle", "policy"}
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


def test_the_config_that_comes_along_constructs() -> None:
    settings = yaml.safe_load((ROOT / "configs" / "policy.yaml").read_text())
    spec = settings["model"]
    assert isinstance(construct("model", find_class("model", spec["class_path"]), spec["init_args"]), RelevanceLearner)
    for name, arm in settings["data"]["arms"].items():
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
        "folds": ("--folds", 3, "--explore", "{class: ltrr.policies.explorers.UCB, width: 0.5}"),
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
        (("--budgets", 13), "data.num_candidates"),
    ):
        wrong = script("scripts/simulate.py", *flags, "--out", tmp_path / "w", *more, check=False)
        assert (wrong.returncode, message in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False)


def test_a_run_is_tracked(music: Path, config: Path, tmp_path: Path) -> None:
    """The config's logger gets the curves and the figures."""
    logger = "{class_path: pytorch_lightning.loggers.CSVLogger, init_args: {version: one}}"
    flags = ("--config", config, "--data", music, "--out", tmp_path / "out", "--budgets", 3, "--seeds", 1)
    script("scripts/simulate.py", *flags, "--no-perfect", "--trainer.logger", logger)
    (written,) = (tmp_path / "out").rglob("metrics.csv")
    text = written.read_text()
    assert "K=3/policy" in text
    assert "K=3/gap closed" in text


def test_arms_that_are_spared_are_simulated(music: Path, config: Path, tmp_path: Path) -> None:
    """Beside static choices; what was learned is kept; the same model is fitted by train.py from logged rounds."""
    options = "{class_path: ltrr.learners.arm_loss.ArmLossLearner, init_args: {hidden: 4, epochs: 2}}"
    flags = ("--config", config, "--data", music, "--out", tmp_path / "out", "--budgets", 3, "--seeds", 2)
    flags += ("--costs", "{all: 2}", "--model", options)
    done = script("scripts/simulate_arms.py", *flags)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    row = results["K"]["3"]
    assert results["costs"] == [1, 2, 3]
    assert results["choices"] == ["title", "all", "title + all"]
    assert row["static"]["title + all"] == pytest.approx(row["full"])
    for each in row["rows"]:
        assert each["hindsight"] <= min(each["policy"]["mean"], each["static"]["mean"]) + 1e-9
        assert each["policy"]["low"] <= each["policy"]["mean"] <= each["policy"]["high"]
    assert set(row["saved_within_loss"]) == {"policy", "static"}
    assert all(0 <= told["saved"] < 1 for told in row["saved_within_loss"].values())
    assert (tmp_path / "out" / "table.md").read_text() in done.stdout
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "seeds").glob("*.npz")}
    assert len(made) == 2
    script("scripts/simulate_arms.py", *flags)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "seeds").glob("*.npz")} == made
    deep = ("--model.init_args.shallow", "[2]", "--drawn_cost", "0.01", "--out", tmp_path / "deep")
    script("scripts/simulate_arms.py", *flags, *deep)
    results = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert sorted(results["choices"]) == sorted(
        [f"title{t}" for t in ("", " to 2")]
        + [f"all{a}" for a in ("", " to 2")]
        + [f"title{t} + all{a}" for t in ("", " to 2") for a in ("", " to 2")]
    )
    assert results["costs"][-1] == pytest.approx(5.0)  # 1 + 2, and 2 times 100 candidates
    wrong = script("scripts/simulate_arms.py", *flags, "--costs", "{all: 0}", check=False)
    assert "--costs" in wrong.stderr


def test_what_a_policy_saves_the_ranker(music: Path, config: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """Quality after ranking at the policy's cuts, beside the same cut for all; scores are kept."""
    CrossEncoderModule(cross_encoder_network(str(tiny_backbone), max_length=32)).export(tmp_path / "export")
    flags = ("--config", config, "--data", music, "--out", tmp_path / "out", "--budgets", 3, "--seeds", 2)
    script("scripts/simulate.py", *flags, "--no-perfect")
    flags = ("--policy", tmp_path / "out", "--ranker", tmp_path / "export", "--out", tmp_path / "ranked")
    done = script("scripts/rank_costs.py", *flags, "--queries", 10)
    results = json.loads((tmp_path / "ranked" / "results.json").read_text())
    (row,) = results["rows"]
    assert results["queries"] == 10
    assert row["share"] == pytest.approx(row["mean"] / 12)
    gain = row["policy"]["mean"] - row["fixed"]["mean"]
    assert row["gain"]["mean"] == pytest.approx(gain)
    assert row["quality"] == pytest.approx(results["quality"] + row["policy"]["mean"])
    assert results["fixed"]["12"] == pytest.approx(results["quality"])
    assert (tmp_path / "ranked" / "table.md").read_text() in done.stdout
    assert len([*(tmp_path / "ranked" / "scores").rglob("*.npy")]) == 2
    wrong = script("scripts/rank_costs.py", "--policy", tmp_path, *flags[2:], check=False)
    assert "cuts.npz" in wrong.stderr


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
