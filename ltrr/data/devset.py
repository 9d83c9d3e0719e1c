"""What validation ranks: held-out queries, and a sample of the corpus in which all that is judged for them is.

Knows queries' texts and corpus rows; knows nothing about files or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def sampled(
    judged: Sequence[Sequence[int]],
    ranked: Sequence[Sequence[int]],
    num_docs: int,
    wanted: int,
    num_candidates: int,
    rng: np.random.Generator,
) -> tuple[list[int], list[np.ndarray]]:
    """Corpus rows to validate on, ascending, and each query's candidates as places among them.

    judged, ranked: rows of each query; where nobody has ranked ones, candidates are judged and random rows.
    """
    named = {row for rows in (*judged, *ranked) for row in rows}
    extra = [int(row) for row in rng.permutation(num_docs) if int(row) not in named]
    rows = sorted(named | set(extra[: max(wanted - len(named), 0)])) if judged else []
    place = {row: i for i, row in enumerate(rows)}
    candidates = list(ranked)
    if not any(ranked):
        drawn = [[int(row) for row in rng.permutation(rows)[:num_candidates]] for _ in judged]
        both = [list(dict.fromkeys([*own, *more])) for own, more in zip(judged, drawn, strict=True)]
        candidates = [rows[: max(num_candidates, len(own))] for rows, own in zip(both, judged, strict=True)]
    return rows, [np.array([place[row] for row in own], np.int64) for own in candidates]


def plain(text: str) -> str:
    """What equal queries share."""
    return " ".join(text.lower().split())


def in_a_tenth(text: str) -> bool:
    """Whether a query is held out: equal ones all are, or none."""
    return hashlib.sha256(plain(text).encode()).digest()[0] < 26
