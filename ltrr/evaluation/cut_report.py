"""Reports what a policy of cuts gained: figures of a row, curves of learning, tables and plots.

Knows recall by cut and chosen cuts; does not know how they came about.
Legend: Q queries, M cuts (1 to M candidates), S seeds, R rounds, U queries that were asked, W windows of the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ltrr.evaluation.plots import tidy
from ltrr.evaluation.regret import Chosen, at_mean, cost_saved, fixed, gap_closed, mean_of, oracle
from ltrr.evaluation.tables import markdown

ORDERS = ("convex", "rrf")  # the fused order that is cut, and another one, at fixed cuts
CURVE = ("rounds", "cut", "policy", *ORDERS, "oracle")  # columns of a curve; recall is a window's mean at its mean cut
_WINDOWS = 40
_FOOT = (
    "hindsight. Over its own order: the base is a fixed cut of the order that the policy cuts. At mean K: with",
    "the price at which these queries' mean cut is K (no judgement is looked at).",
    "Cost saved is read off the policy's frontier here, where its recall reaches the base's.",
    "Intervals (95 %) are over groups of queries and seeds together.",
)


def curve_of(row: np.ndarray, cut: np.ndarray, reached: np.ndarray, recall: Mapping[str, np.ndarray]) -> np.ndarray:
    """(W, len(CURVE)) recall while learning, beside fixed cuts and hindsight at the same mean cut.

    Args:
        row: (R,) which of the U queries was asked. cut, reached: (R,) candidates and recall of the page.
        recall: order -> (U, M).
    """
    out = []
    for some in np.array_split(np.arange(len(row)), min(_WINDOWS, len(row))):
        mean, by_cut = cut[some].mean(), {name: recall[name][row[some]] for name in ORDERS}
        values = reached[some], *(fixed(each, mean) for each in by_cut.values()), oracle(by_cut[ORDERS[0]], mean)
        out.append([some[-1] + 1, mean, *(value.mean() for value in values)])
    return np.array(out)


def alike(curves: Sequence[np.ndarray]) -> np.ndarray:
    """(S, W, len(CURVE)) where folds of few rounds have fewer windows than others."""
    fewest = min(map(len, curves))
    return np.stack([curve[np.linspace(0, len(curve) - 1, fewest).round().astype(int)] for curve in curves])


def regret_of(curves: np.ndarray) -> dict[str, float]:
    """Recall that hindsight reached and these did not, a round of learning: means of (S, W, len(CURVE))."""
    means = np.average(curves.mean(axis=0), axis=0, weights=np.diff(curves[0, :, 0], prepend=0))
    return {name: float(means[-1] - means[CURVE.index(name)]) for name in ("policy", *ORDERS)}


def compared(
    recall: np.ndarray, base: np.ndarray, chosen: Sequence[Chosen], groups: np.ndarray, budget: int
) -> dict[str, Any]:
    """Figures of a policy, one `Chosen` a seed, beside a fixed system and hindsight at the same mean cut.

    Args:
        recall: (Q, M) of the order that the policy cuts. base: (Q, M) of the fixed system.
        groups: (Q,) number of each query's group. budget: mean cut that was asked for.
    """
    mean = float(np.mean([c.cuts[:, 0].mean() for c in chosen]))
    row: dict[str, Any] = {"mean_cut": mean}
    row["recall"] = mean_of(np.stack([c.recall[:, 0] for c in chosen]), groups)._asdict()
    row |= {"fixed": float(fixed(base, mean).mean()), "oracle": float(oracle(recall, mean).mean())}
    row["gap_closed"] = gap_closed(recall, base, chosen, groups)._asdict()
    row["gap_over_order"] = gap_closed(recall, recall, chosen, groups)._asdict()
    try:
        row["gap_closed_at_K"] = gap_closed(recall, base, [at_mean(c, budget) for c in chosen], groups)._asdict()
    except ValueError:  # no price leads to that mean
        row["gap_closed_at_K"] = None
    row["cost_saved"] = cost_saved(base, chosen, groups, budget)._asdict()
    return row


def report(results: Mapping[str, Any]) -> list[str]:
    """Lines of the Markdown table of results.json's content."""
    budgets, cells = list(results["base"]), ("gap_closed", "gap_over_order", "gap_closed_at_K", "cost_saved")
    header = "clicks", "passes", "K", "mean cut", "recall", "base", "oracle"
    rows = []
    for row in results["all"]:
        means = f"{row['mean_cut']:.2f}", cell(row["recall"]), f"{row['fixed']:.4f}", f"{row['oracle']:.4f}"
        rows.append([row["clicks"], row["passes"], row["K"], *means, *(cell(row[figure]) for figure in cells)])
    lines = markdown((*header, "gap closed", "over its own order", "at mean K", "cost saved"), rows)
    rows = [[name, *(cell(by_budget[key]) for key in budgets)] for name, by_budget in results["systems"].items()]
    lines += ["", *markdown(("recall at a mean of K", *budgets), rows)]
    rows = [
        [name if name == "policy" else f"fixed, {name}", *(f"{results['regret'][key][name]:.4f}" for key in budgets)]
        for name in ("policy", *ORDERS)
    ]
    lines += ["", *markdown(("lost to hindsight while learning, recall a round", *budgets), rows)]
    named = ", ".join(f"{key} {base}" for key, base in results["base"].items())
    lines += [
        "",
        f"Base: the best system that does not learn, on dev ({named}), at the policy's mean cut; oracle: its cuts in",
    ]
    lines += _FOOT
    if results["priced_on_itself"]:
        lines += ["The price and the base were chosen on these very queries: good for choosing settings, no result."]
    return lines


def cell(interval: Mapping[str, float] | None, form: str = ".3f") -> str:
    """A mean and its 95 % interval, for tables. form: of each number."""
    if interval is None:
        return "never there"
    mean, low, high = (format(interval[part], form) for part in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def frontier(
    quality: np.ndarray, chosen: Mapping[str, Sequence[Chosen]], label: str = "recall", hindsight: bool = True
) -> Figure:
    """Quality over mean candidates that are ranked: fixed cuts, each policy at other prices, hindsight.

    quality: (Q, M). chosen: name of a policy -> one a seed.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel, cuts = figure.subplots(), np.arange(1, quality.shape[1] + 1)
    panel.plot(cuts, quality.mean(axis=0), "k--", label="the same cut for all")
    if hindsight:
        panel.plot(cuts, [oracle(quality, cut).mean() for cut in cuts], "k:", label="hindsight")
    for name, seeds in chosen.items():
        x, y = (np.mean([part.mean(axis=0) for part in parts], axis=0) for parts in zip(*seeds, strict=True))
        order = np.argsort(x)
        (line,) = panel.plot(x[order], y[order], label=f"learned at {name}")
        panel.plot(x[0], y[0], "o", color=line.get_color())
    panel.set(xscale="log", xlabel="mean candidates that are ranked", ylabel=label)
    tidy(panel)
    panel.legend(frameon=False)
    return figure


def regret(curves: Mapping[int, np.ndarray]) -> Figure:
    """Recall that hindsight reached and the policy, and fixed cuts of two orders, did not, summed over the rounds.

    curves: budget -> (S, W, len(CURVE)).
    """
    figure = Figure(figsize=(4 * len(curves), 4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (budget, curve) in zip(panels, curves.items(), strict=True):
        rounds = curve[0, :, 0]
        for name, style in zip(("policy", *ORDERS), ("-", "--", ":"), strict=True):
            lost = (curve[:, :, -1] - curve[:, :, CURVE.index(name)]) * np.diff(rounds, prepend=0)
            sums = np.cumsum(lost, axis=1)
            (line,) = panel.plot(rounds, sums.mean(axis=0), style, label=name if name == "policy" else f"fixed, {name}")
            panel.fill_between(rounds, sums.min(axis=0), sums.max(axis=0), color=line.get_color(), alpha=0.15)
        panel.set(title=f"mean of {budget} candidates", xlabel="rounds")
        tidy(panel)
    panels[0].set_ylabel("regret: recall that hindsight found")
    panels[0].legend(frameon=False)
    return figure
