"""What learners of cuts share: examination of positions, levels of depth, and a record of what they learned from.

Knows numbers and rounds; does not know queries or models. Legend: M positions = cuts, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltrr.policies.features import Standard
from ltrr.types import Rounds


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


def standards_of(rounds: Rounds) -> tuple[Standard, Standard]:
    """How the features of queries and of candidates are standardised; each query counts once."""
    seen = np.unique(rounds.row)
    return Standard.of(rounds.query[seen]), Standard.of(rounds.candidates[seen])


def arrays_of(standards: Sequence[Standard]) -> dict[str, np.ndarray]:
    """Standards as arrays for an export."""
    return {f"{part}.{i}": getattr(one, part) for i, one in enumerate(standards) for part in ("mean", "deviation")}


def restored_standards(arrays: dict[str, np.ndarray]) -> tuple[Standard, ...]:
    """What `arrays_of` gave."""
    num = sum(name.startswith("mean.") for name in arrays)
    return tuple(Standard(arrays[f"mean.{i}"], arrays[f"deviation.{i}"]) for i in range(num))
