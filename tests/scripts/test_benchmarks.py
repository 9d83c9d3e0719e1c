"""The benchmark runner as a user runs it: one JSON line a figure, ratios to cases of the same run, helpful errors."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers import script

RUN = "scripts/benchmarks/run.py"


def rows_of(text: str) -> dict[tuple[str, str], dict]:
    """(benchmark, case) -> row of JSON lines; no case comes twice."""
    rows = [json.loads(line) for line in text.splitlines()]
    by_case = {(row["benchmark"], row["case"]): row for row in rows}
    assert len(by_case) == len(rows)
    return by_case


def test_each_figure_is_one_json_line_on_stdout_and_in_the_file(music: Path, fast_config: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "new" / "rows.jsonl", ("arms", "funnel", "memory", "store.sqlite")
    flags = ("--config", fast_config, "--data", music, "--events", 3000, "--repeats", 2, "--out", out)
    printed = script(RUN, *names, *flags).stdout
    assert out.read_text() == printed
    rows = rows_of(printed)
    assert {benchmark for benchmark, _ in rows} == {
        *("arms.latency", "funnel.overhead", "funnel.fusion", "memory.replay", "store.sqlite")
    }
    for (benchmark, _), row in rows.items():
        assert row["value"] > 0 or row["case"].startswith("funnel less arms")
        assert {"unit", "device", "cores"} <= row.keys()
        if "ratio" in row:  # every ratio can be checked against rows of the same run
            peer = rows[benchmark, row["ratio_to"]]
            assert (row["unit"], row["ratio"]) == (peer["unit"], row["value"] / peer["value"])
    for arm in ("lexical", "structured", "popular"):
        assert rows["arms.latency", f"{arm}, median"]["value"] <= rows["arms.latency", f"{arm}, p95"]["value"]
    assert rows["arms.latency", "lexical, median"]["ratio_to"] == "bm25s, median"
    # The funnel of this config fuses two arms: popular is not searched.
    alone = {case for benchmark, case in rows if benchmark == "funnel.overhead" and "alone" in case}
    assert alone == {"lexical alone, median", "structured alone, median", "arms alone, median of sums"}
    assert rows["funnel.overhead", "funnel, median"]["ratio_to"] == "arms alone, median of sums"

    assert rows["memory.replay", "events"]["value"] == 3000
    assert rows["memory.replay", "pairs"]["value"] > 1000
    timed = ("replay", "lookup, median", "lookup, p99", "snapshot", "restart", "peak memory")
    assert {("memory.replay", case) for case in timed} <= rows.keys()
    cases = ("lowest ratio of 2 runs", "highest ratio of 2 runs", "store", "raw inserts", "mean group")
    assert {("store.sqlite", case) for case in cases} <= rows.keys()

    again = script(RUN, "store.sqlite", "--events", 30, "--repeats", 1, "--out", out).stdout
    assert out.read_text() == printed + again  # a second run is appended


def test_benchmarks_are_listed_with_what_they_measure() -> None:
    lines = script(RUN, "--list").stdout.splitlines()
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    names = [line.split()[0] for line in lines]
    assert {"funnel.overhead", "policy.decide", "store.postgresql", "encoders.splade_head"} <= set(names)
    listed = script(RUN, "funnel", "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [name for name in names if name.startswith("funnel.")]


def test_mistakes_are_named_before_anything_runs() -> None:
    wrong = script(RUN, "store", "funel", check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'funnel'" in wrong.stderr
    wrong = script(RUN, "store", "funnel", check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--data: is not set, and funnel.overhead" in wrong.stderr
