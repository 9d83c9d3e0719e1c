"""Shared by learners of cuts: examination of positions, levels of depth, and standardisation of features.

Knows numbers and rounds; does not know queries or models. Legend: M positions = cuts, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltrr.policies.features import Standard
from ltrr.types import Rounds


def checked(examination: Sequence[float] | None) -> Sequence[float] | None:
    """Returns its argument. Raises ValueError unless it is None or probabilities above 0."""
    if examination is not None and not (len(examination) and all(0 < e <= 1 for e in examination)):
        raise ValueError("model.examination: not probabilities above 0, one a position")
    return examination


def above_0(name: str, value: float) -> float:
    """Returns the value. Raises ValueError unless it is above 0."""
    if not value > 0:
        raise ValueError(f"model.{name}: {value} is not above 0")
    return value


def examined(examination: Sequence[float] | None, num: int) -> np.ndarray:
    """Probability (M,) that each position is looked at: 1 / k if None; positions beyond the list get its last value."""
    if examination is None:
        return 1.0 / np.arange(1, num + 1)
    return np.asarray(examination, np.float64)[np.minimum(np.arange(num), len(examination) - 1)]


def levels(num: int, most: int) -> np.ndarray:
    """At most `most` cuts from 1 to num, ascending, in about equal proportions (a geometric series)."""
    if most < 2:
        raise ValueError(f"model.levels: {most} is below 2")
    return np.unique(np.geomspace(1, num, most).round().astype(int))


def between(edges: np.ndarray, num: int) -> np.ndarray:
    """Matrix (L, M) for linear interpolation: values at levels (Q, L) @ matrix = values at 1 to M."""
    return np.stack([np.interp(np.arange(1, num + 1), edges, unit) for unit in np.eye(len(edges))])


def standards_of(rounds: Rounds) -> tuple[Standard, Standard]:
    """Standardisations of the features of queries and of candidates; each query counts once."""
    rows = np.unique(rounds.row)
    return Standard.of(rounds.query[rows]), Standard.of(rounds.candidates[rows])


def arrays_of(standards: Sequence[Standard]) -> dict[str, np.ndarray]:
    """Converts standardisations to arrays for an export."""
    return {f"{part}.{i}": getattr(one, part) for i, one in enumerate(standards) for part in ("mean", "deviation")}


def restored_standards(arrays: dict[str, np.ndarray]) -> tuple[Standard, ...]:
    """Rebuilds standardisations from `arrays_of`."""
    num = sum(name.startswith("mean.") for name in arrays)
    return tuple(Standard(arrays[f"mean.{i}"], arrays[f"deviation.{i}"]) for i in range(num))
