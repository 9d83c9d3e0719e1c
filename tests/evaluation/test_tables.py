"""An experiment's folder is whole, and its table is the printed one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ltrr.evaluation.groups import by_group
from ltrr.evaluation.plots import curves
from ltrr.evaluation.tables import markdown, write_experiment


def test_a_table_has_a_rule_for_text_and_numbers() -> None:
    lines = markdown(["name", "n", "note"], [["a", 1, "x"]], text=(0, 2))
    assert lines == ["| name | n | note |", "| --- | ---: | --- |", "| a | 1 | x |"]


def test_an_experiment_is_written_and_printed(tmp_path, capsys) -> None:
    points = {"0": {"mean": 0.5, "low": 0.4, "high": 0.6}, "10": {"mean": 0.6, "low": 0.5, "high": 0.7}}
    write_experiment(tmp_path / "out", {"a": [1]}, ["| x |"], curve=curves({"all": points}, "rounds", "R@10"))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == {"a": [1]}
    assert (tmp_path / "out" / "table.md").read_text() == "| x |\n"
    assert (tmp_path / "out" / "curve.png").stat().st_size > 1000
    assert capsys.readouterr().out.startswith("| x |\n")


def test_groups_are_compared_with_the_baseline() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((3, 40))
    systems = {"without": {"m": base}, "better": {"m": base + 0.2}}
    half = np.arange(40) < 20
    used = {"better": np.broadcast_to(half, (3, 40))}
    groups = {"all": half | ~half, "rest": ~half}
    results, rows = by_group(systems, groups, baseline="without", subset=("used", "m", used))
    cells = results["all"]["rounds"]
    assert cells["without"]["m"]["p"] == 1.0
    assert cells["better"]["m"]["p"] < 0.001
    assert cells["better"]["used"]["share"] == 0.5
    assert cells["better"]["used"]["m"]["mean"] == pytest.approx((base + 0.2)[:, :20].mean())
    assert "used" not in results["rest"]["rounds"]["better"]
    assert [row[:3] for row in rows] == [[g, n, s] for g, n in (("all", 40), ("rest", 20)) for s in systems]
    assert {len(row) for row in rows} == {7}  # group, n, system, mean, p, share, mean of the subset
