"""scripts/experiments/streams.py: rows with the keys that goals read, on a small data set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT


def test_rows_of_streams_have_what_goals_read(music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.experiments import streams

    settings = yaml.safe_load((ROOT / "configs" / "stream.yaml").read_text())
    settings["arms"]["dense"] = {"class": "ltrr.arms.lexical.Lexical", "tune": False}  # no torch
    (tmp_path / "stream.yaml").write_text(yaml.safe_dump(settings | {"cache": str(tmp_path / "cache")}))
    monkeypatch.setattr(streams, "CONFIG", tmp_path / "stream.yaml")
    monkeypatch.setattr(streams, "SETS", {"msrd": (music.name, "qrels")})
    monkeypatch.setattr(streams, "MAIN", [(1.0, 200, 5.0), (0.8, 100, 5.0)])
    monkeypatch.setattr(streams, "ROBUST", {key: streams.ROBUST[key] for key in ("cascade", "dies")})
    monkeypatch.setattr(streams, "_ARMS", streams._ARMS | {"rounds": 150})
    flags = ["streams.py", "--shared", str(music.parent), "--out", str(tmp_path / "out"), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", flags)
    streams.run()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["id"] for row in rows] == ["msrd-5", "msrd-few", "cascade", "dies"]
    for row in rows:
        assert {"mean", "low", "high"} <= {*row["paired"]["belief-rule"]}
        assert {*row["recall"]["all"]} == {*streams.SYSTEMS} - ({"network"} if row["id"] != "msrd-few" else set())
    assert {"mean", "low", "high"} <= {*rows[1]["paired_new"]["0"]["network-rule"]}
    (arms,) = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    assert {"belief", "lexical", "dense"} <= {*arms["systems"]}
    assert any("+" in name for name in arms["systems"])
    assert {"mean", "low", "high"} <= {*arms["over_best"]}
    assert "rule" in rows[-1]["rounds_until_above"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "customers stop at what they want" in table
    assert "Rounds after the change" in table


@pytest.mark.parametrize("key", ["msrd-5", "msrd-few", "msrd-arms", "cascade", "duplicates", "drift"])
def test_goals_name_rows_that_exist(key: str) -> None:
    goals = yaml.safe_load((ROOT / "docs" / "results" / "goals.yaml").read_text())
    assert any(key in goal["figure"] for goal in goals if goal["figure"].startswith("streams/"))
