"""Plots of scripts/simulate.py; what was found while learning is in windows of CURVE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from _simulation import ORDER

from ltrr.evaluation.regret import Chosen, oracle
from ltrr.files import atomic_write

CURVE = ("rounds", "cut", "policy", ORDER, "rrf", "oracle")  # columns, means over a window at its mean cut


def plot_frontier(path: Path, recall: np.ndarray, fronts: dict[int, list[Chosen]]) -> None:
    """Recall over mean candidates: fixed cuts, each learned policy at other prices, hindsight."""
    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    cuts = np.arange(1, recall.shape[1] + 1)
    panel.plot(cuts, recall.mean(axis=0), "k--", label="the same cut for all")
    panel.plot(cuts, [oracle(recall, cut).mean() for cut in cuts], "k:", label="hindsight")
    for budget, chosen in fronts.items():
        x = np.mean([c.cuts.mean(axis=0) for c in chosen], axis=0)
        y = np.mean([c.recall.mean(axis=0) for c in chosen], axis=0)
        order = np.argsort(x)
        (line,) = panel.plot(x[order], y[order], label=f"learned at {budget}")
        panel.plot(x[0], y[0], "o", color=line.get_color())
    panel.set_xscale("log")
    panel.set_xlabel("mean candidates that are ranked")
    panel.set_ylabel("recall")
    panel.grid(color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    _save(figure, path)


def plot_regret(path: Path, curves: Mapping[int, np.ndarray]) -> None:
    """What hindsight found and the policy, and fixed cuts of two orders, did not, summed over the rounds."""
    figure, panels = plt.subplots(1, len(curves), figsize=(4 * len(curves), 4), layout="constrained", squeeze=False)
    for panel, (budget, curve) in zip(panels[0], curves.items(), strict=True):
        rounds = curve[0, :, 0]
        for name, style in (("policy", "-"), (ORDER, "--"), ("rrf", ":")):
            lost = (curve[:, :, -1] - curve[:, :, CURVE.index(name)]) * np.diff(rounds, prepend=0)
            sums = np.cumsum(lost, axis=1)
            (line,) = panel.plot(rounds, sums.mean(axis=0), style, label=name if name == "policy" else f"fixed, {name}")
            panel.fill_between(rounds, sums.min(axis=0), sums.max(axis=0), color=line.get_color(), alpha=0.15)
        panel.set_title(f"mean of {budget} candidates")
        panel.set_xlabel("rounds")
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("regret: recall that hindsight found")
    panels[0, 0].legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
