"""The experiment on click models, at its full size for one seed and at a small one."""

from __future__ import annotations

import json

import pytest

from tests.helpers import script


def test_a_small_run_writes_its_figures(tmp_path):
    flags = ("--seeds", 1, "--impressions", 5_000, "--out", tmp_path)
    done = script("scripts/experiments/click_models.py", *flags)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["impressions"], len(results["seeds"])) == (5_000, 1)
    assert (tmp_path / "table.md").read_text() in done.stdout


@pytest.mark.slow
def test_the_script_recovers_all_within_two_hundredths(tmp_path):
    script("scripts/experiments/click_models.py", "--seeds", 1, "--out", tmp_path, timeout=600)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["impressions"] == 200_000
    mismatch = results["worst_error"].pop("mismatch")
    assert len(results["worst_error"]) == 7
    assert max(max(errors) for errors in results["worst_error"].values()) <= 0.02
    assert mismatch[0] > 0.05
    assert (tmp_path / "click_models.png").exists()
