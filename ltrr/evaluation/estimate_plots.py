"""Draws off-policy estimates: the weights of rounds, and estimates beside the truth.

Knows weights and rows of results; does not know estimators or where logs come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def plot_weights(weights: Mapping[str, np.ndarray]) -> Figure:
    """Draws the share of rounds above each weight. weights: label -> (R,) of each round."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    panel = figure.subplots()
    for name, values in weights.items():
        ordered = np.sort(values)
        panel.step(np.maximum(ordered, 1e-3), 1 - np.arange(len(ordered)) / len(ordered), where="post", label=name)
    panel.set(xscale="log", yscale="log", xlabel="weight (target's probability / logger's)", ylabel="rounds above")
    panel.legend(frameon=False)
    return figure


def plot_estimates(results: Mapping[str, Any]) -> Figure:
    """Draws estimates with intervals and, where it is known, the truth; for simulated logs, errors by size of the log.

    results: what scripts/ope.py writes to results.json.
    """
    rows = results["rows"]
    labels = dict.fromkeys(row.get("label") or row["world"] for row in rows)
    labels = [label for label in labels if label != "deterministic" and not label.endswith("shuffled")]
    figure = Figure(figsize=(4 * len(labels) + 1, 4.5), layout="constrained")
    for panel, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        shown = [row for row in rows if label in (row.get("label"), row.get("world"))]
        if results["mode"] == "simulate":
            for name in dict.fromkeys(row["estimator"] for row in shown):
                line = [(row["rounds"], row["error"]) for row in shown if row["estimator"] == name]
                panel.plot(*zip(*line, strict=True), "o-", label=name)
            panel.set(xscale="log", yscale="log", xlabel="rounds", ylabel="error, of the truth")
        else:
            estimates = [row["estimate"] for row in shown]
            panel.set_xticks(range(len(shown)), [row["estimator"] for row in shown], rotation=60)
            values = [e["value"] or 0.0 for e in estimates]
            width = [(e["high"] or value) - value for e, value in zip(estimates, values, strict=True)]
            panel.errorbar(range(len(shown)), values, yerr=width, fmt="o", capsize=3, label="estimate")
            if truth := shown[0].get("truth"):
                panel.axhspan(truth["low"], truth["high"], color="0.9", label="true mean")
                panel.axhline(truth["value"], color="0.5")
            panel.set_ylabel("reward a round")
        panel.set_title(label, fontsize=10)
        panel.legend(frameon=False, fontsize=8)
    return figure
