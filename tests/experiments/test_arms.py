"""scripts/experiments/arms.py: its figures agree with each other, seeds are kept, mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import script
from tests.simulation.worlds import simulation_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return simulation_config(tmp_path)


def test_arms_that_are_spared_are_simulated(music: Path, config: Path, tmp_path: Path) -> None:
    """Beside static choices; what was learned is kept; the same model is fitted by train.py from logged rounds."""
    before = "{class: ltrr.policies.arms.ArmPolicy, learner: {class: ltrr.learners.arm_loss.ArmLossLearner, "
    before += "hidden: 4, epochs: 2}, costs: {all: 2}}"
    flags = ("--config", config, "--data", music, "--out", tmp_path / "out", "--budgets", 3, "--seeds", 2)
    flags += ("--policy.before", before)
    done = script("scripts/experiments/arms.py", *flags)
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
    script("scripts/experiments/arms.py", *flags)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "seeds").glob("*.npz")} == made
    deep = ("--policy.before.learner.shallow", "[2]", "--policy.before.drawn_cost", "0.01", "--out", tmp_path / "deep")
    script("scripts/experiments/arms.py", *flags, *deep)
    results = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert sorted(results["choices"]) == sorted(
        [f"title{t}" for t in ("", " to 2")]
        + [f"all{a}" for a in ("", " to 2")]
        + [f"title{t} + all{a}" for t in ("", " to 2") for a in ("", " to 2")]
    )
    assert results["costs"][-1] == pytest.approx(5.0)  # 1 + 2, and 2 times 100 candidates
    wrong = script("scripts/experiments/arms.py", *flags, "--policy.before.costs", "{all: 0}", check=False)
    assert "policy.before.costs" in wrong.stderr
