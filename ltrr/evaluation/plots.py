"""Draws and saves figures that experiments share; does not know which systems are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ltrr.files import atomic_write


def tidy(panel: Axes, grid: Literal["both", "x", "y"] = "both", label_size: int | None = None) -> None:
    """A light grid behind the data, no upper and right frame. label_size: of the ticks, in points."""
    panel.grid(axis=grid, color="0.9")
    panel.set_axisbelow(True)
    if label_size:
        panel.tick_params(labelsize=label_size)
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Writes a PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def curves(lines: Mapping[str, Mapping[str, Mapping[str, float]]], x_label: str, y_label: str) -> Figure:
    """One line with its band a name of `lines`: place on the x axis -> the keys `mean`, `low` and `high`."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    for name, points in lines.items():
        mean, low, high = ([point[end] for point in points.values()] for end in ("mean", "low", "high"))
        panel.plot(range(len(points)), mean, "o-", label=name)
        panel.fill_between(range(len(points)), low, high, alpha=0.2)
        panel.set_xticks(range(len(points)), list(points))
    panel.set(xlabel=x_label, ylabel=y_label)
    tidy(panel)
    panel.legend(frameon=False, ncols=2)
    return figure
