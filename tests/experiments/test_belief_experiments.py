"""scripts/experiments/{new_arm,belief_attack,fusion}.py: what goals read, on a small data set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    settings = yaml.safe_load((ROOT / "configs" / "stream.yaml").read_text())
    settings["arms"]["dense"] = {"class": "ltrr.arms.lexical.Lexical", "tune": False}  # no torch
    settings["stream"]["systems"]["belief"].pop("learner")
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump(settings | {"cache": str(tmp_path / "cache")}))
    return path


def flags(config: Path, music: Path, out: Path, *more: str) -> list[str]:
    return ["script", "--config", str(config), "--data", str(music), "--out", str(out), "--seeds", "2", *more]


def test_new_arms_are_estimated_beside_the_truth(
    config: Path, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.experiments import new_arm

    monkeypatch.setattr(sys, "argv", flags(config, music, tmp_path / "out", "--rounds", "500"))
    new_arm.run()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    cases = {(row["case"], row["arm"]): row for row in results["cases"]}
    assert {case for case, _ in cases} == {"shadow", "unseen", "deeper"}
    for (case, _), row in cases.items():
        if case != "unseen":
            assert row["error"] < 0.3
            assert row["refused"] < 1
    assert "true_gain" in results["rows"][0]
    assert (tmp_path / "out" / "estimates.png").stat().st_size


def test_attacks_on_a_belief_are_measured(
    config: Path, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.experiments import belief_attack

    monkeypatch.setattr("ltrr.simulation.belief_attack._VIEWS", 2)
    more = ("--rounds", "100", "--events", "100")
    monkeypatch.setattr(sys, "argv", flags(config, music, tmp_path / "out", *more))
    belief_attack.run()
    attacks = json.loads((tmp_path / "out" / "results.json").read_text())["attacks"]
    assert {*attacks} == {"demote", "promote", "views"}
    for measures in attacks.values():
        assert {len(values) for values in measures.values()} == {2}
        assert {"other_top_ten_by_evidence", "success_fall", "success_fall_by_round"} <= {*measures}
    assert "promote" in (tmp_path / "out" / "table.md").read_text()


def test_orders_without_judgements_are_compared(
    config: Path, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.experiments import fusion

    monkeypatch.setattr(
        sys, "argv", ["fusion.py", "--config", str(config), "--data", str(music), "--out", str(tmp_path / "out")]
    )
    fusion.run()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"rrf", "equal weights, zscore", "fitted on train"} <= {row["order"] for row in results["rows"]}
    assert results["mean"]["rrf"] == results["worst"]["rrf"] == 0
    assert {"equal weights, minmax", "equal weights, zscore"} <= {*results["worst"]}
