"""Reports what systems reached on streams of recurring queries: strata, paired differences, tables and plots.

Knows recall, success and cost of every round; does not know systems or how they learn.
Legend: S seeds, R rounds, W windows of the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from ltrr.evaluation.intervals import over_seeds
from ltrr.evaluation.plots import tidy
from ltrr.evaluation.report import holm
from ltrr.evaluation.tables import markdown

STRATA = {"0": (0, 0), "1-9": (1, 9), "10-49": (10, 49), "50+": (50, 10**9)}  # earlier askings of the same text
MEASURES = ("recall", "success", "cost")
_WINDOWS = 40


class Served(NamedTuple):
    """What a system reached on S streams."""

    recall: np.ndarray  # (S, R)
    success: np.ndarray  # (S, R)
    cost: np.ndarray  # (S, R)


class Asked(NamedTuple):
    """Who was asked, on S streams."""

    queries: np.ndarray  # (S, R) number of the query
    before: np.ndarray  # (S, R) how often the same text was asked before
    test: np.ndarray  # (S, R) bool: of a group that taught nothing


def by_stratum(asked: Asked) -> dict[str, np.ndarray]:
    """Stratum -> (S, R) weights of its rounds; those of `by-query` weigh each distinct query of a seed alike."""
    weights = {"all": np.ones(asked.before.shape)}
    weights |= {name: ((asked.before >= a) & (asked.before <= b)).astype(float) for name, (a, b) in STRATA.items()}
    each = []
    for queries in asked.queries:
        _, which, times = np.unique(queries, return_inverse=True, return_counts=True)
        each.append(1 / times[which])
    return weights | {"by-query": np.stack(each), "test": asked.test.astype(float)}


def strata_of(asked: Asked, systems: Mapping[str, Served]) -> dict[str, Any]:
    """Stratum -> its share of the rounds (of distinct queries for `by-query`), and means over seeds of every system."""
    out: dict[str, Any] = {}
    for name, weights in by_stratum(asked).items():
        share = float(weights.mean())
        of = {system: _means(served, weights) for system, served in systems.items()} if share else {}
        out[name] = {"share": share, "systems": of}
    return out


def _means(served: Served, weights: np.ndarray) -> dict[str, float]:
    return {name: float(per_seed(getattr(served, name), weights).mean()) for name in MEASURES}


def per_seed(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(S or fewer,) weighted means of (S, R) values; seeds whose weights are all 0 are left out."""
    total = weights.sum(axis=1)
    return (values * weights).sum(axis=1)[total > 0] / total[total > 0]


def paired(asked: Asked, systems: Mapping[str, Served], of: str, stratum: str = "all") -> dict[str, Any]:
    """ "NAME-other" -> difference in recall, its 95 % interval over seeds, and p with Holm's correction.

    low, high and p are None for one seed.
    """
    weights = by_stratum(asked)[stratum]
    own, out = per_seed(systems[of].recall, weights), {}
    for name, served in systems.items():
        if name == of:
            continue
        difference = own - per_seed(served.recall, weights)
        if len(difference) < 2:
            out[f"{of}-{name}"] = {
                "mean": float(difference.mean()),
                "low": None,
                "high": None,
                "p": None,
                "p_holm": None,
            }
            continue
        interval = over_seeds(difference.tolist())
        tested: Any = stats.ttest_1samp(difference, 0.0)
        p = float(tested.pvalue) if difference.std() > 0 else 1.0
        out[f"{of}-{name}"] = interval._asdict() | {"p": p}
    known = [row for row in out.values() if row["p"] is not None]
    for row, value in zip(known, holm([row["p"] for row in known]).tolist(), strict=True):
        row["p_holm"] = value
    return out


def rounds_below(own: Served, other: Served, at: int, window: int = 500) -> int | None:
    """Rounds after a change until a window's mean recall is at least the other's; None = never again."""
    for start in range(at, own.recall.shape[1], window):
        part = slice(start, start + window)
        if own.recall[:, part].mean() >= other.recall[:, part].mean():
            return start - at
    return None


def report(results: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: recall by stratum, then paired differences."""
    settings = results["settings"]
    names = [*next(iter(results["strata"].values()))["systems"]]
    lines = [
        f"Recall of the cut ({settings['dataset']}; Zipf {settings['zipf']:g}, {settings['rounds']:,} rounds, mean "
        f"{settings['mean_cut']:g} candidates, {settings['seeds']} seeds); mean cost in brackets.",
        "",
    ]
    rows = []
    for stratum, row in results["strata"].items():
        cells = [
            f"{row['systems'][n]['recall']:.4f} ({row['systems'][n]['cost']:.1f})" for n in names if row["systems"]
        ]
        rows.append([stratum, f"{row['share']:.2f}", *(cells or ["-"] * len(names))])
    lines += markdown(["earlier askings", "share", *names], rows)
    lines += [
        "",
        f"rule: {settings['rule']}, chosen on {settings['rule_chosen_on']}. Success at the cut: "
        + ", ".join(f"{n} {results['strata']['all']['systems'][n]['success']:.4f}" for n in names)
        + ".",
        "",
    ]
    rows = []
    for name, row in results["paired"].items():
        ends = "-" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
        p = "-" if row["p_holm"] is None else f"{row['p_holm']:.2g}"
        rows.append([name, f"{row['mean']:+.4f}", ends, p])
    return lines + markdown(["difference in recall", "mean", "95 % over seeds", "p (Holm)"], rows)


def by_round(asked: Asked, systems: Mapping[str, Served], shown: Sequence[str]) -> Figure:
    """Recall while the stream goes on, and in each stratum."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rounds, strata = figure.subplots(1, 2)
    windows = np.array_split(np.arange(asked.before.shape[1]), min(_WINDOWS, asked.before.shape[1]))
    weights = {k: v for k, v in by_stratum(asked).items() if k in STRATA and v.any()}
    for name in shown:
        recall = systems[name].recall
        rounds.plot([w[-1] + 1 for w in windows], [recall[:, w].mean() for w in windows], label=name)
        strata.plot([*weights], [per_seed(recall, w).mean() for w in weights.values()], "o-", label=name)
    rounds.set(xlabel="round", ylabel="recall of the cut")
    strata.set(xlabel="earlier askings of the same query")
    for panel in (rounds, strata):
        tidy(panel)
    rounds.legend(frameon=False)
    return figure
