"""What learners of cuts share: examination of positions, and levels of depth.

Knows numbers; does not know rounds, queries or models. Legend: M positions = cuts, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def checked(examination: Sequence[float] | None) -> Sequence[float] | None:
    """As given. Errors: ValueError for what are no probabilities above 0."""
    if examination is not None and not (len(examination) and all(0 < e <= 1 for e in examination)):
        raise ValueError("model.examination: not probabilities above 0, one a position")
    return examination


def above_0(name: str, value: float) -> float:
    """As given. Errors: ValueError."""
    if not value > 0:
        raise ValueError(f"model.{name}: {value} is not above 0")
    return value


def examined(given: Sequence[float] | None, num: int) -> np.ndarray:
    """(M,) probability that each position is looked at: 1 / k, or as given; deeper ones than given have the last."""
    if given is None:
        return 1.0 / np.arange(1, num + 1)
    return np.asarray(given, np.float64)[np.minimum(np.arange(num), len(given) - 1)]


def levels(num: int, most: int) -> np.ndarray:
    """At most so many cuts from 1 to num, ascending, each about as much deeper than the last in proportion."""
    if most < 2:
        raise ValueError(f"model.levels: {most} is below 2")
    return np.unique(np.geomspace(1, num, most).round().astype(int))


def between(edges: np.ndarray, num: int) -> np.ndarray:
    """(L, M): values at levels (Q, L) @ this = values at 1 to M, linear between levels."""
    return np.stack([np.interp(np.arange(1, num + 1), edges, unit) for unit in np.eye(len(edges))])
