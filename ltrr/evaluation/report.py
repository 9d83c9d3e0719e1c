"""Reports an evaluation: results.json, run files, per-query scores, a table with significance tests, and plots.

Knows scores of queries and milliseconds; does not know how a system finds its documents. Legend: Q queries, S systems,
M measures, G groups of queries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator

from ltrr.evaluation.plots import save, tidy
from ltrr.files import atomic_write
from ltrr.metrics import PerQuery, write_run
from ltrr.types import Run

REPORTED = ("nDCG@10", "R@10", "R@100", "RR@10", "Judged@10")
TESTED = ("nDCG@10", "R@100")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito, safe for the colour-blind
MARKERS = "os^DvP"
DASHES = ("-", "--", ":")
BLOCK = 1 << 22  # random numbers in memory at a time


@dataclass
class SystemResult:
    """One system on one split; `per_query` holds at least REPORTED, with the same queries for every system."""

    name: str
    per_query: PerQuery
    ms_per_query: float
    note: str = ""
    trained_on: tuple[str, ...] = ()  # splits of the same data set, which make it in-domain

    @property
    def shown(self) -> str:
        """The name in tables and plots, with a mark (†) for an in-domain system."""
        stage = self.name.replace("_before_ranking", " (before ranking)").replace("_ranker_alone", " (ranker alone)")
        return stage + (" †" if self.trained_on else "")


def paired_randomisation(a: np.ndarray, b: np.ndarray, num_samples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of mean(a) − mean(b), a and b (Q,): share of random sign flips of a − b with as large a difference.

    p = (count + 1) / (num_samples + 1), which is never 0 and is valid for a sample of flips (Smucker et al. 2007;
    Phipson and Smyth 2010 for the + 1).
    """
    difference = a - b
    difference = difference[difference != 0]  # flipping a 0 changes nothing
    total = difference.sum()
    least = abs(total) - 1e-12 * np.abs(difference).sum()  # equal sums may differ in their last bits
    rng = np.random.default_rng(seed)
    num_bytes = len(difference) // 8 + 1
    step = max(1, BLOCK // (8 * num_bytes))
    count = 0
    for start in range(0, num_samples, step):
        drawn = rng.integers(0, 256, (min(step, num_samples - start), num_bytes), np.uint8)
        kept = np.unpackbits(drawn, axis=1, count=len(difference))  # (n, Q), 1 = keeps its sign
        count += int((np.abs(2 * (kept @ difference) - total) >= least).sum())
    return (count + 1) / (num_samples + 1)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm-adjusted p: the i-th smallest of m p-values times m − i + 1, made monotone, at most 1 (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray | None = None, num_samples: int = 2_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of values (Q,), resampling queries or whole groups of queries.

    groups (Q,): labels of queries that are not independent, e.g. near-duplicates (Efron and Tibshirani 1993).
    """
    _, group = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group)  # (G,)
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // len(sums))
    means = []
    for start in range(0, num_samples, step):
        drawn = rng.integers(0, len(sums), (min(step, num_samples - start), len(sums)))  # (n, G)
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def table(results: Sequence[SystemResult], baseline: str) -> str:
    """Formats the systems as a Markdown table, with 95 % intervals and Holm-adjusted tests against the baseline."""
    reference = _baseline(results, baseline)
    others = [system for system in results if system is not reference]
    raw = [paired_randomisation(s.per_query.of(m), reference.per_query.of(m)) for s in others for m in TESTED]
    p = dict(zip([s.name for s in others], holm(raw).reshape(-1, len(TESTED)).tolist(), strict=True))
    rows = []
    for system in results:
        mean = system.per_query.mean()
        low, high = bootstrap_interval(system.per_query.of("nDCG@10"))
        delta = mean["nDCG@10"] - reference.per_query.of("nDCG@10").mean()
        compared = system is not reference
        cells = {
            "system": system.shown,
            "nDCG@10": f"{mean['nDCG@10']:.4f}",
            "95 % interval": f"{low:.4f} to {high:.4f}",
            "Δ nDCG@10": f"{delta:+.4f}" if compared else "",
            "p (nDCG@10)": f"{p[system.name][0]:.4f}" if compared else "",
            "R@10": f"{mean['R@10']:.4f}",
            "R@100": f"{mean['R@100']:.4f}",
            "p (R@100)": f"{p[system.name][1]:.4f}" if compared else "",
            "RR@10": f"{mean['RR@10']:.4f}",
            "Judged@10": f"{mean['Judged@10']:.4f}",
            "ms a query": f"{system.ms_per_query:.2f}",
            "note": system.note,
        }
        rows += [] if rows else [list(cells), ["---" if name in ("system", "note") else "---:" for name in cells]]
        rows.append(list(cells.values()))
    splits = " and ".join(sorted({split for system in results for split in system.trained_on}))
    foot = f"\n† in-domain: trained on {splits} queries of this data set.\n" if splits else ""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + foot


def write_report(
    out: Path,
    *,
    dataset: str,
    split: str,
    num_docs: int,
    results: Sequence[SystemResult],
    baseline: str,
    runs: Mapping[str, Run],
    tuned: Mapping[str, Any],
    footnote: str = "",
) -> dict:
    """Writes the report into `out` and returns the content of results.json, which is written last.

    Files: `runs/NAME.trec` for each of `runs`, `per_query.parquet` (query_id, system, measure, value), `table.md`,
    `plots/*.png`, `results.json`. `tuned`: tuned parameters, as JSON values or numpy numbers and arrays; `footnote`:
    last line of table.md. Errors: ValueError if no system has the baseline's name or a measure of REPORTED is missing.
    """
    _baseline(results, baseline)
    assert len({system.name for system in results}) == len(results), "two systems of one name"
    queries = results[0].per_query.query_ids
    assert all(system.per_query.query_ids == queries for system in results), "systems differ in their queries"
    summary = {
        "dataset": dataset,
        "split": split,
        "num_queries": len(queries),
        "num_docs": num_docs,
        "systems": {
            s.name: {m: float(s.per_query.of(m).mean()) for m in REPORTED} | {"ms_per_query": float(s.ms_per_query)}
            for s in results
        },
        "baseline": baseline,
        "in_domain": {s.name: list(s.trained_on) for s in results if s.trained_on},
        "tuned": dict(tuned),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False, default=lambda number: number.tolist())
    for name, run in runs.items():
        write_run(run, out / "runs" / f"{name}.trec", name)
    with atomic_write(out / "per_query.parquet") as temporary:
        pq.write_table(_long(results), temporary)
    title = f"{dataset}, {split}: {len(queries):,} queries, {num_docs:,} documents"
    with atomic_write(out / "table.md") as temporary:
        temporary.write_text(
            f"# {title}\n\n{table(results, baseline)}\n"
            f"Δ and p against `{baseline}`: two-sided paired randomisation tests, 10,000 samples, adjusted by Holm\n"
            f"over all p of this table. The interval is a percentile bootstrap over queries, 2,000 draws.{footnote}\n",
            encoding="utf-8",
        )
    for name, figure in (
        ("quality", plot_quality(results, title)),
        ("difference", plot_difference(results, baseline, title)),
        ("cost", plot_cost(results, title)),
    ):
        save(figure, out / "plots" / f"{name}.png", dpi=160)
    with atomic_write(out / "results.json") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return json.loads(text)


def write_mean(out: Path, name: str, reports: Sequence[Mapping[str, Any]]) -> dict:
    """Writes results.json of a collection: each system's means over its sets, as BEIR does for CQADupStack."""
    names = [n for n in reports[0]["systems"] if all(n in report["systems"] for report in reports)]
    systems = {
        n: {key: sum(r["systems"][n][key] for r in reports) / len(reports) for key in reports[0]["systems"][n]}
        for n in names
    }
    summary = {
        "dataset": name,
        "split": reports[0]["split"],
        "num_queries": sum(report["num_queries"] for report in reports),
        "num_docs": sum(report["num_docs"] for report in reports),
        "systems": systems,
        "in_domain": {n: splits for report in reports for n, splits in report["in_domain"].items()},
        "sets": [report["dataset"] for report in reports],
    }
    with atomic_write(out / "results.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _baseline(results: Sequence[SystemResult], name: str) -> SystemResult:
    for system in results:
        if system.name == name:
            return system
    raise ValueError(f"no system is named {name!r} (baseline): choose one of {', '.join(s.name for s in results)}")


def _long(results: Sequence[SystemResult]) -> pa.Table:
    """Builds a table with one row per system, query and measure."""
    parts = []
    for system in results:
        scores = system.per_query
        num_queries, num_measures = scores.values.shape
        columns = {
            "query_id": np.repeat(np.array(scores.query_ids, object), num_measures),
            "system": np.full(scores.values.size, system.name, object),
            "measure": np.tile(np.array(scores.measures, object), num_queries),
            "value": scores.values.ravel(),
        }
        parts.append(pa.table({name: pa.array(column) for name, column in columns.items()}))
    return pa.concat_tables(parts)


def plot_quality(results: Sequence[SystemResult], title: str) -> Figure:
    """Plots bars of nDCG@10 and R@100 with 95 % intervals."""
    figure = Figure(figsize=(10, 1.6 + 0.5 * len(results)), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    panels = figure.subplots(1, len(TESTED), sharey=True)
    place = np.arange(len(results))
    for panel, measure in zip(panels, TESTED, strict=True):
        means = np.array([s.per_query.of(measure).mean() for s in results])
        bounds = np.array([bootstrap_interval(s.per_query.of(measure)) for s in results])  # (S, 2)
        reach = np.abs(bounds.T - means)
        panel.barh(place, means, 0.68, xerr=reach, color=_colours(results), capsize=4, error_kw={"elinewidth": 1.5})
        for y, mean, high in zip(place, means, bounds[:, 1], strict=True):
            panel.text(high + 0.012, y, f"{mean:.3f}", va="center", fontsize=12)
        panel.set_xlim(0, 1.12)
        panel.set_xticks(np.linspace(0, 1, 6))
        panel.set_xlabel(f"{measure}, mean over queries and 95 % interval", fontsize=12)
        tidy(panel, "x", 12)
    panels[0].set_yticks(place, [s.shown for s in results], fontsize=13)
    panels[0].set_ylim(len(results) - 0.4, -0.6)
    figure.suptitle(title, fontsize=14)
    return figure


def plot_difference(results: Sequence[SystemResult], baseline: str, title: str) -> Figure:
    """Plots each system's sorted per-query differences in nDCG@10 to the baseline, one line per system."""
    figure = Figure(figsize=(10, 7), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    panel = figure.subplots()
    reference = _baseline(results, baseline).per_query.of("nDCG@10")
    panel.axhline(0, color="black", linewidth=1)
    for number, (system, colour) in enumerate(zip(results, _colours(results), strict=True)):
        if system.name == baseline:
            continue
        difference = np.sort(system.per_query.of("nDCG@10") - reference)[::-1]
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        label = f"{system.shown}: {better} better, {worse} worse"
        share = (np.arange(len(difference)) + 0.5) / len(difference) * 100
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        panel.plot(share, difference, color=colour, linestyle=dash, linewidth=2.2, label=label)
    panel.set_xlim(0, 100)
    panel.set_ylim(-1.04, 1.04)
    panel.set_xlabel("queries, in % (each line sorted by its own difference)", fontsize=13)
    panel.set_ylabel(f"nDCG@10 less that of {baseline}", fontsize=13)
    panel.set_title(title, fontsize=14)
    if len(results) > 1:
        figure.legend(
            fontsize=12, frameon=False, loc="outside lower center", ncols=3, columnspacing=1.5, handlelength=1.6
        )
    tidy(panel, "both", 12)
    return figure


def plot_cost(results: Sequence[SystemResult], title: str) -> Figure:
    """Plots nDCG@10 against milliseconds per query; a line joins the systems that no cheaper one matches."""
    figure = Figure(figsize=(10, 6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    panel = figure.subplots()
    cost = np.array([s.ms_per_query for s in results])
    quality = np.array([s.per_query.of("nDCG@10").mean() for s in results])
    order = np.lexsort((-quality, cost))
    best = order[quality[order] > np.maximum.accumulate(np.r_[-np.inf, quality[order]])[:-1]]
    panel.step(cost[best], quality[best], where="post", color="0.7", linewidth=1.5, zorder=1)
    for number, (x, y, colour) in enumerate(zip(cost, quality, _colours(results), strict=True)):
        panel.plot(x, y, MARKERS[number % len(MARKERS)], color=colour, markersize=11, zorder=2)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.margins(0.12)
    panel.set_xlabel("milliseconds a query (log scale)", fontsize=13)
    panel.set_ylabel("nDCG@10, mean over queries", fontsize=13)
    panel.set_title(title, fontsize=14)
    tidy(panel, "both", 12)
    figure.draw_without_rendering()  # fixes the positions of points and labels
    _name_points(panel, cost, quality, [s.shown for s in results], set(best.tolist()))
    return figure


def _name_points(panel: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], best: set[int]) -> None:
    """Puts each name on the side of its point where it covers the fewest points, names and edges of the panel.

    Names of the best systems try the upper left first, the others the lower right, clear of the line.
    """
    points = panel.transData.transform(np.column_stack([x, y]))
    sides = [(-9, 11, "right"), (0, 15, "center"), (-12, 0, "right")]
    sides += [(12, 0, "left"), (0, -15, "center"), (9, -11, "left")]
    marker = panel.figure.dpi * 7 / 72  # radius of a marker: 7 points
    taken = []
    for number, name in sorted(enumerate(names), key=lambda named: -y[named[0]]):
        tries = []
        for dx, dy, align in sides if number in best else sides[::-1]:
            label = panel.annotate(name, (x[number], y[number]), (dx, dy), textcoords="offset points", fontsize=13)
            label.set(ha=align, va="center", in_layout=False)
            box = label.get_window_extent()
            covered = box.padded(marker).count_contains(np.delete(points, number, axis=0)) + box.count_overlaps(taken)
            covered += 2 - panel.bbox.count_contains(box.get_points())  # corners outside the panel
            tries.append((covered, len(tries), label, box))
            label.set_visible(False)
        *_, label, box = min(tries)
        label.set_visible(True)
        taken.append(box)


def _colours(results: Sequence[SystemResult]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(results))]
