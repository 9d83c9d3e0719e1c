"""The figures that the experiment on arrivals writes, in a tiny world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import ROOT, script


def test_the_simulation_writes_its_contract(music: Path, tmp_path: Path) -> None:
    """In a tiny world: what it measures, of which systems, and that exploring shows more of what is new."""
    config = tmp_path / "fresh.yaml"
    config.write_text(
        f"cache: {tmp_path / 'cache'}\n"
        "arms:\n"
        "  lexical: {class: ltrr.arms.lexical.Lexical, tune: false}\n"
        "  memory: {class: ltrr.arms.memory.Memory}\n"
        "  fresh: {class: ltrr.arms.fresh.Fresh, newest: 2}\n"
        "fusion: {arms: [lexical, memory], weights: {lexical: 1.0}}\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    done = script(
        "scripts/experiments/arrivals.py", "--config", config, "--data", music, "--out", out,
        "--rounds", 60, "--seeds", 2, "--slots", 1.0, "--new", 0.4,
    )  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert list(results["systems"]) == ["nothing learned", "without", "1"]
    assert list(results["differences"]) == ["1"]
    measures = set(results["systems"]["without"])
    assert measures == set(results["systems"]["1"]) == set(results["differences"]["1"])
    assert {"new_slots", "new_once", "new_thrice", "new_R@10_test", "clicks", "nDCG@10_shown", "distinct"} <= measures
    for cells in results["systems"].values():
        assert all(cell["low"] <= cell["mean"] <= cell["high"] for cell in cells.values())
    for measure, cell in results["differences"]["1"].items():
        means = [results["systems"][name][measure]["mean"] for name in ("1", "without")]
        assert cell["mean"] == pytest.approx(means[0] - means[1])
    assert results["differences"]["1"]["new_once"]["mean"] > 0
    assert (out / "fresh.png").exists()
    assert "the explorer" in (out / "table.md").read_text()
    assert "| measure | nothing learned | without | 1 | 1 − without |" in done.stdout
    wrong = script("scripts/experiments/arrivals.py", "--config", config, "--data", music, "--seeds", 1, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "--seeds 1" in wrong.stderr
    assert (ROOT / "configs/fresh.yaml").exists()
