"""results.py fills pages, index and README from runs, and keeps the figures of steps that were not run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT, script

PAGES = ROOT / "docs/results"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Copies of the pages and README."""
    shutil.copytree(PAGES, tmp_path / "results")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path / "results"


def write(docs: Path, runs: Path) -> None:
    script("scripts/results.py", "--runs", runs, "--out", docs, "--readme", docs.parent / "README.md")


def texts(docs: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in [*docs.glob("*.md"), docs.parent / "README.md"]}


def test_committed_pages_are_those_that_the_script_writes_without_runs(docs: Path, tmp_path: Path) -> None:
    before = texts(docs)
    write(docs, tmp_path / "runs")
    assert texts(docs) == before


def test_a_measured_step_changes_its_page_and_goals_only(docs: Path, tmp_path: Path) -> None:
    runs, before = tmp_path / "runs", texts(docs)
    systems = {name: {"nDCG@10": 0.5, "R@100": 0.93} for name in ("lexical", "dense", "rrf", "convex")}
    tuned = {"lexical": {"on": "train", "parameters": {"k1": 1.2}}}
    (runs / "scifact/plots").mkdir(parents=True)
    (runs / "costs").mkdir()
    (runs / "scifact/plots/quality.png").write_bytes(b"png")
    (runs / "scifact/results.json").write_text(json.dumps({"systems": systems, "tuned": tuned}))
    (runs / "scifact/table.md").write_text(
        "# scifact, test\n\n| system | nDCG@10 |\n| --- | ---: |\n| lexical | 0.5 |\n"
    )
    (runs / "costs/scifact.json").write_text(json.dumps({"seconds": 90, "resumed": False, "commit": "abc1234"}))
    write(docs, runs)
    after = texts(docs)

    page = after["scifact.md"]
    title, question = before["scifact.md"].splitlines()[:3:2]
    assert page.startswith(f"{title}\n\n{question}")  # written by hand
    assert "| scifact | 1.5 | abc1234 |" in page
    assert "Met: 1 of 5." in page
    assert "\n\n| system | nDCG@10 |\n| --- | ---: |\n| lexical | 0.5 |\n\n- lexical: on train: `" in page
    assert "0.6801" not in page  # the old figure
    assert "](plots/scifact-quality.png)" in page
    assert (docs / "plots/scifact-quality.png").read_bytes() == b"png"
    assert "| [SciFact lexical nDCG@10](scifact.md) | 0.5 | >= 0.678 |" in after["index.md"]
    assert after["README.md"].count("| SciFact lexical nDCG@10 | 0.5 | >= 0.678 |") == 2  # a headline, and missed now
    assert {name for name in after if after[name] != before[name]} == {
        "scifact.md",
        "index.md",
        "costs.md",
        "README.md",
    }


def test_rows_of_benchmarks_become_a_table_and_the_last_row_of_a_case_counts(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "runs/store").mkdir(parents=True)
    rows = [
        {"case": "raw inserts", "value": 24000.0, "unit": "events/s"},
        {"case": "store", "value": 7.0, "unit": "events/s"},  # the file also holds an earlier run
        {"case": "store", "value": 6000.0, "unit": "events/s", "ratio": 0.25, "ratio_to": "raw inserts"},
    ]
    lines = [json.dumps({"benchmark": "store.sqlite", **row, "device": "cpu", "cores": 2}) for row in rows]
    (tmp_path / "runs/store/rows.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "runs/store/results.json").write_text('{"sqlite": {"ratio": 0.1}}')  # of version 0.1
    write(docs, tmp_path / "runs")
    page = texts(docs)["store.md"]
    raw, store = "| raw inserts | 2.4e+04 | events/s |  |  |", "| store | 6000 | events/s | 0.25 | raw inserts |"
    assert f"| --- |\n| store.sqlite {raw}\n| store.sqlite {store}\n\n<!-- end -->" in page
    assert "| events a second, SQLite | 6000 | >= 5000 |" in page
    assert "| of raw inserts, SQLite | 0.25 | >= 0.5 |" in page
    assert "| of raw inserts, PostgreSQL | 0.5113 | >= 0.5 |" in page  # not in these results: as it was measured


def test_every_goal_has_a_page_a_unique_name_and_a_figure() -> None:
    goals = yaml.safe_load((PAGES / "goals.yaml").read_text(encoding="utf-8"))
    assert len({goal["name"] for goal in goals}) == len(goals)
    for goal in goals:
        page = (PAGES / f"{goal['figure'].partition('/')[0]}.md").read_text(encoding="utf-8")
        assert f"| {goal['name']} |" in page


@pytest.mark.parametrize(
    ("figure", "options", "value"),
    [
        ("step/a/b", {}, 2.0),
        ("step/a/b", {"minus": "step/a/c"}, -3.0),
        ("step/a/b", {"complement": True}, -1.0),
        ("step/a/b", {"inverse": True}, 0.5),
        ("step/a/*", {"pick": "max"}, 5.0),
        ("step/a/!c", {"pick": "max"}, 2.0),
        ("step/rows/-1/x", {}, 7.0),
        ("step/rows/n=1,w=high|low/x", {"pick": "min"}, 3.0),
    ],
)
def test_a_goal_reads_the_figure_at_its_path(monkeypatch, figure: str, options: dict, value: float) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from results import Goal

    rows = [
        {"n": n, "w": w, "x": x} for n, w, x in ((1, "high", 4.0), (1, "low", 3.0), (1, "no", 1.0), (2, "low", 7.0))
    ]
    results = {"step": {"a": {"b": 2.0, "c": 5.0}, "rows": rows}}
    goal = Goal("name", figure, "within .5 of 1", **options)
    assert goal.value(results) == value
    assert goal.met(1.25)
    assert not goal.met(1.75)
    assert not goal.met(None)
    with pytest.raises(KeyError):
        goal._replace(figure="step/rows/n=9/x").value(results)
    with pytest.raises(KeyError):
        goal.value({"step": {}})
