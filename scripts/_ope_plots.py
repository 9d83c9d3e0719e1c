"""Plots of scripts/ope.py."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np


def plot_weights(weights: dict[str, np.ndarray]) -> Any:
    """Share of rounds with more than each weight."""
    figure, panel = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, values in weights.items():
        ordered = np.sort(values)
        panel.step(np.maximum(ordered, 1e-3), 1 - np.arange(len(ordered)) / len(ordered), where="post", label=name)
    panel.set(xscale="log", yscale="log", xlabel="weight (target's probability / logger's)", ylabel="rounds above")
    panel.legend(frameon=False)
    return figure


def plot(results: dict[str, Any]) -> Any:
    """Estimates with intervals and the truth; of a simulation, errors by size of the log."""
    rows = results["rows"]
    labels = dict.fromkeys(row.get("label") or row["world"] for row in rows)
    labels = [label for label in labels if label != "deterministic" and not label.endswith("shuffled")]
    figure = plt.figure(figsize=(4 * len(labels) + 1, 4.5), layout="constrained")
    for panel, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        own = [row for row in rows if label in (row.get("label"), row.get("world"))]
        if results["mode"] == "simulate":
            for name in dict.fromkeys(row["estimator"] for row in own):
                line = [(row["rounds"], row["error"]) for row in own if row["estimator"] == name]
                panel.plot(*zip(*line, strict=True), "o-", label=name)
            panel.set(xscale="log", yscale="log", xlabel="rounds", ylabel="error, of the truth")
        else:
            found = [row["estimate"] for row in own]
            panel.set_xticks(range(len(own)), [row["estimator"] for row in own], rotation=60)
            values = [e["value"] or 0.0 for e in found]
            width = [(e["high"] or value) - value for e, value in zip(found, values, strict=True)]
            panel.errorbar(range(len(own)), values, yerr=width, fmt="o", capsize=3, label="estimate")
            if truth := own[0].get("truth"):
                panel.axhspan(truth["low"], truth["high"], color="0.9", label="true mean")
                panel.axhline(truth["value"], color="0.5")
            panel.set_ylabel("reward a round")
        panel.set_title(label, fontsize=10)
        panel.legend(frameon=False, fontsize=8)
    return figure
