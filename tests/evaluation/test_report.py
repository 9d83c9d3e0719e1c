"""Significance tests and intervals against known answers, and a report that is whole and follows its contract."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import kstest, permutation_test

from ltrr.evaluation.report import (
    REPORTED,
    SystemResult,
    bootstrap_interval,
    holm,
    paired_randomisation,
    table,
    write_mean,
    write_report,
)
from ltrr.metrics import PerQuery, evaluate, read_run
from ltrr.types import Run


def test_p_is_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.gamma(0.5, size=(400, 2, 60))  # skewed: what a t-test would assume does not hold
    p = [paired_randomisation(a, b, num_samples=499, seed=seed) for seed, (a, b) in enumerate(pairs)]
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) < 0.08


def test_a_clear_difference_is_found_from_either_side() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(200)
    b = a + rng.normal(0.05, 0.1, 200)
    assert paired_randomisation(a, b) == paired_randomisation(b, a) == 1 / 10_001  # no flip reaches it, and p is not 0


@pytest.mark.parametrize("seed", range(4))
def test_p_agrees_with_all_flips_of_a_small_sample(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, (2, 11)) / 4 + [[0.2], [0.0]]  # coarse values: many flips tie with the observed sum

    def mean_difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(x - y, axis=axis)

    exact = permutation_test(
        (a, b), mean_difference, permutation_type="samples", n_resamples=2**11 + 1, vectorized=True
    ).pvalue
    assert paired_randomisation(a, b, num_samples=40_000) == pytest.approx(exact, abs=0.01)


def test_equal_systems_have_p_one() -> None:
    a = np.random.default_rng(0).random(50)
    assert paired_randomisation(a, a) == 1.0


def test_p_does_not_depend_on_how_many_flips_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(3).random((2, 64 - 8))  # 8 bytes of signs: the generator's word, whatever the block
    whole = paired_randomisation(a, b, num_samples=1_000)
    monkeypatch.setattr("ltrr.evaluation.report.BLOCK", 8 * 8 * 7)
    assert paired_randomisation(a, b, num_samples=1_000) == whole


def test_holm_as_computed_by_hand() -> None:
    # sorted .01 × 4, .02 × 3, .03 × 2 = .06 (not below .06), .04 × 1 = .04 -> kept at .06
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.beta(0.4, 0.6, (300, 100))  # mean .4, most of it near 0 and 1, as nDCG is
    bounds = np.array([bootstrap_interval(sample, num_samples=400, seed=n) for n, sample in enumerate(samples)])
    assert 0.91 < np.mean((bounds[:, 0] <= 0.4) & (bounds[:, 1] >= 0.4)) < 0.98
    narrow, wide = bootstrap_interval(samples[0], level=0.5), bootstrap_interval(samples[0], level=0.99)
    assert wide[0] < narrow[0] < samples[0].mean() < narrow[1] < wide[1]


def test_groups_stand_and_fall_together() -> None:
    """Every value ten times is no more evidence than once: the interval over groups is that of the values alone."""
    values = np.random.default_rng(0).random(40)
    repeated, groups = np.repeat(values, 10), np.repeat(np.arange(40), 10)
    assert bootstrap_interval(repeated, groups) == pytest.approx(bootstrap_interval(values))
    low, high = bootstrap_interval(repeated)
    wide_low, wide_high = bootstrap_interval(repeated, groups)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(np.sqrt(10), rel=0.15)


def systems(num_queries: int = 40) -> tuple[list[SystemResult], dict[str, Run]]:
    """`good` puts the positive earlier than `plain` does, `same` exactly where `plain` does."""
    rng = np.random.default_rng(0)
    ids = [f"q{number}" for number in range(num_queries)]
    qrels = {query: {"hit": 1, "miss": 0} for query in ids}
    place = rng.integers(2, 12, num_queries)
    runs: dict[str, Run] = {
        name: {
            query: {f"d{rank}" if rank != at else "hit": 20.0 - rank for rank in range(20)}
            for query, at in zip(ids, places, strict=True)
        }
        for name, places in (("plain", place), ("good", place // 3), ("same", place))
    }
    cost = {"plain": 0.5, "good": 6.0, "same": 0.5}
    results = [SystemResult(name, evaluate(run, qrels, REPORTED), cost[name]) for name, run in runs.items()]
    results[1].note = "tuned on train"
    return results, runs


def report(out: Path, results: list[SystemResult], runs: dict[str, Run], baseline: str = "plain", **tuned) -> dict:
    return write_report(
        out, dataset="toy", split="test", num_docs=21, results=results, baseline=baseline, runs=runs, tuned=tuned
    )


def test_results_json_follows_the_contract(tmp_path: Path) -> None:
    results, runs = systems()
    returned = report(tmp_path, results, runs, convex={"weights": np.array([0.5, 0.25], np.float32), "k": np.int64(3)})
    written = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert written == returned
    assert list(written) == ["dataset", "split", "num_queries", "num_docs", "systems", "baseline", "in_domain", "tuned"]
    assert (written["dataset"], written["split"], written["num_queries"], written["num_docs"]) == (
        "toy",
        "test",
        40,
        21,
    )
    assert list(written["systems"]) == ["plain", "good", "same"]
    for system in results:
        scores = written["systems"][system.name]
        assert list(scores) == [*REPORTED, "ms_per_query"]
        assert all(type(score) is float for score in scores.values())
        assert scores == pytest.approx({**system.per_query.mean(), "ms_per_query": system.ms_per_query})
    assert written["tuned"] == {"convex": {"weights": [0.5, 0.25], "k": 3}}
    assert written["in_domain"] == {}


def test_every_file_is_there_whole_and_nothing_else(tmp_path: Path) -> None:
    results, runs = systems()
    report(tmp_path, results, runs)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    plots = {f"plots/{name}.png" for name in ("quality", "difference", "cost")}
    named = {f"runs/{name}.trec" for name in runs}
    assert files == {"results.json", "table.md", "per_query.parquet"} | plots | named  # no temporary file is left
    for name, run in runs.items():
        assert read_run(tmp_path / "runs" / f"{name}.trec") == run
    for plot in plots:
        content = (tmp_path / plot).read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG")
        assert content.endswith(b"IEND\xaeB`\x82")
        assert width >= 1200
        assert height >= 300


def test_the_parquet_file_holds_every_score(tmp_path: Path) -> None:
    results, runs = systems()
    report(tmp_path, results, runs)
    rows = pq.read_table(tmp_path / "per_query.parquet")
    assert rows.column_names == ["query_id", "system", "measure", "value"]
    got = {(row["system"], row["query_id"], row["measure"]): row["value"] for row in rows.to_pylist()}
    wanted = {
        (system.name, query, measure): system.per_query.of(measure)[number]
        for system in results
        for number, query in enumerate(system.per_query.query_ids)
        for measure in REPORTED
    }
    assert got == wanted
    assert rows.num_rows == len(wanted)


def test_the_table_says_who_is_better_and_how_surely(tmp_path: Path) -> None:
    results, runs = systems()
    lines = table(results, "plain").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    plain, good, same = (dict(zip(cells[0], row, strict=True)) for row in cells[2:])
    means = [system.per_query.mean()["nDCG@10"] for system in results]
    assert [row["nDCG@10"] for row in (plain, good, same)] == [f"{mean:.4f}" for mean in means]
    assert good["Δ nDCG@10"] == f"{means[1] - means[0]:+.4f}"
    assert good["p (nDCG@10)"] == "0.0004"  # 1 in 10,001, times the four tests of this table
    assert (plain["Δ nDCG@10"], plain["p (nDCG@10)"], plain["p (R@100)"]) == ("", "", "")
    assert (same["Δ nDCG@10"], same["p (nDCG@10)"], same["p (R@100)"]) == ("+0.0000", "1.0000", "1.0000")
    low, high = map(float, good["95 % interval"].split(" to "))
    assert low < means[1] < high
    assert good["note"] == "tuned on train"
    report(tmp_path, results, runs)
    assert table(results, "plain") in (tmp_path / "table.md").read_text("utf-8")


def test_in_domain_systems_never_share_a_column_unmarked(tmp_path: Path) -> None:
    results, runs = systems()
    assert "†" not in table(results, "plain")
    results[1].trained_on = ("train",)
    shown = table(results, "plain")
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:5]] == ["| plain", "| good †", "| same"]
    assert shown.endswith("|\n\n† in-domain: trained on train queries of this data set.\n")
    report_of = report(tmp_path, results, runs)
    assert report_of["in_domain"] == {"good": ["train"]}
    assert "good" in report_of["systems"]  # names of files and keys stay plain
    whole = write_mean(tmp_path, "both", [report_of, report_of | {"in_domain": {"same": ["train"]}}])
    assert whole["in_domain"] == {"good": ["train"], "same": ["train"]}


def test_a_footnote_ends_the_table(tmp_path: Path) -> None:
    results, runs = systems()
    results[1].name = "ltrr_before_ranking"
    options = {"dataset": "toy", "split": "test", "num_docs": 21, "baseline": "plain", "runs": runs, "tuned": {}}
    write_report(tmp_path, results=results, footnote=" 100 deep.", **options)
    text = (tmp_path / "table.md").read_text("utf-8")
    assert text.endswith("draws. 100 deep.\n")
    assert "| ltrr (before ranking) |" in text


def test_one_system_and_one_query_still_make_a_report(tmp_path: Path) -> None:
    results, runs = systems(num_queries=1)
    report(tmp_path, results[:1], {"plain": runs["plain"]})
    assert (tmp_path / "plots" / "difference.png").stat().st_size > 0


def test_mistakes_are_named_and_leave_no_file(tmp_path: Path) -> None:
    results, runs = systems()
    with pytest.raises(ValueError, match=r"no system is named 'bm25' .*plain, good, same"):
        report(tmp_path, results, runs, baseline="bm25")
    scores = results[0].per_query
    few = [SystemResult("plain", PerQuery(scores.query_ids, ("nDCG@10",), scores.of("nDCG@10")[:, None]), 1.0)]
    with pytest.raises(ValueError, match="R@10 was not computed"):
        report(tmp_path, few, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        report(tmp_path, results, runs, weight=float("nan"))
    assert os.listdir(tmp_path) == []
