"""scripts/experiments/rank_costs.py: quality after ranking at a policy's cuts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltrr.encoders.cross_encoder import CrossEncoderModule, cross_encoder_network
from tests.helpers import script
from tests.simulation.worlds import simulation_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return simulation_config(tmp_path)


def test_what_a_policy_saves_the_ranker(music: Path, config: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """Quality after ranking at the policy's cuts, beside the same cut for all; scores are kept."""
    CrossEncoderModule(cross_encoder_network(str(tiny_backbone), max_length=32)).export(tmp_path / "export")
    flags = ("--config", config, "--data", music, "--out", tmp_path / "out", "--budgets", 3, "--seeds", 2)
    script("scripts/simulate.py", *flags, "--no-perfect")
    flags = ("--policy", tmp_path / "out", "--ranker", tmp_path / "export", "--out", tmp_path / "ranked")
    done = script("scripts/experiments/rank_costs.py", *flags, "--queries", 10)
    results = json.loads((tmp_path / "ranked" / "results.json").read_text())
    (row,) = results["rows"]
    assert results["queries"] == 10
    assert row["share"] == pytest.approx(row["mean"] / 12)
    gain = row["policy"]["mean"] - row["fixed"]["mean"]
    assert row["gain"]["mean"] == pytest.approx(gain)
    assert row["quality"] == pytest.approx(results["quality"] + row["policy"]["mean"])
    assert results["fixed"]["12"] == pytest.approx(results["quality"])
    assert (tmp_path / "ranked" / "table.md").read_text() in done.stdout
    assert len([*(tmp_path / "ranked" / "scores").rglob("*.npz")]) == 2
    wrong = script("scripts/experiments/rank_costs.py", "--policy", tmp_path, *flags[2:], check=False)
    assert "cuts.npz" in wrong.stderr
