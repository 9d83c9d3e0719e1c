"""simulate --stream: the contract of results.json on a small data set, kept rounds, and mistakes that are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.helpers import script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    settings = yaml.safe_load((ROOT / "configs" / "stream.yaml").read_text())
    del settings["arms"]["dense"]
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump(settings | {"cache": str(tmp_path / "cache")}))
    return path


def test_the_command_writes_its_contract_and_goes_on_where_it_was(music: Path, config: Path, tmp_path: Path) -> None:
    flags = ("--stream", "--config", config, "--data", music, "--zipf", 1.0, "--rounds", 400, "--mean-cut", 3)
    script("scripts/simulate.py", *flags, "--seeds", 1, "--out", tmp_path / "out")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "rounds").glob("*.npz")}
    done = script("scripts/simulate.py", *flags, "--seeds", 2, "--out", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    names = {"fixed", "rule", "prior", "boost", "belief", "threshold", "scaled", "gap"}
    assert {*results} >= {"settings", "strata", "paired"}
    assert [*results["strata"]] == ["all", "0", "1-9", "10-49", "50+", "by-query", "test"]
    for stratum in results["strata"].values():
        assert {*stratum} == {"share", "systems"}
        for figures in stratum["systems"].values():
            assert {*figures} == {"recall", "success", "cost"}
    whole = results["strata"]["all"]["systems"]
    assert names <= {*whole}
    assert whole["rule"] == whole[results["settings"]["rule"]]
    assert all(figures["cost"] <= 3.3 for figures in whole.values())
    assert {"belief-rule", "belief-boost"} <= {*results["paired"]}
    assert {"mean", "low", "high"} <= {*results["paired"]["belief-rule"]}
    assert results["settings"]["fused_order"]
    assert "belief-rule" in done.stdout
    assert (tmp_path / "out" / "stream.png").stat().st_size > 1_000
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())


def test_other_worlds_and_texts_are_played(music: Path, config: Path, tmp_path: Path) -> None:
    flags = ("--stream", "--config", config, "--data", music, "--rounds", 300, "--mean-cut", 3, "--seeds", 1)
    change = ("--change", "dies:structured", "--at", 100, "--duplicates", 0.5, "--cascade", "--delay", 3)
    script("scripts/simulate.py", *flags, *change, "--out", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["settings"]["change"], results["settings"]["change_at"]) == ("dies:structured", 100)
    assert "rule" in results["rounds_until_above"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rounds", 0), "--rounds: 0 is below 1"),
        (("--mean-cut", 500), "policy.budget"),
        (("--noise", 3), "customers.noise: 3.0"),
        (("--change", "drfit"), "did you mean 'drift'"),
        (("--at", 5), "--at: 5 is not a round"),
        (("--duplicates", 2), "--duplicates: 2.0"),
        (("--stream.systems", "{}"), "stream.systems: names no system"),
    ],
)
def test_mistakes_are_named(flags: tuple, message: str, music: Path, config: Path, tmp_path: Path) -> None:
    done = script(
        "scripts/simulate.py",
        "--stream",
        "--config",
        config,
        "--data",
        music,
        "--out",
        tmp_path / "o",
        *flags,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
