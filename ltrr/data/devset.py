"""Chooses validation data: the queries to hold out, and a sample of the corpus that has all their judged documents.

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
    """Samples corpus rows to validate on, ascending, and returns each query's candidates as places in that sample.

    judged, ranked: rows of each query, all sampled. Without any ranked rows, candidates are judged and random rows.
    """
    named = {row for rows in (*judged, *ranked) for row in rows}
    extra = [int(row) for row in rng.permutation(num_docs) if int(row) not in named]
    rows = sorted(named | set(extra[: max(wanted - len(named), 0)])) if judged else []
    place = {row: i for i, row in enumerate(rows)}
    candidates = list(ranked)
    if not any(ranked):
        drawn = [[int(row) for row in rng.permutation(rows)[:num_candidates]] for _ in judged]
        both = [list(dict.fromkeys([*known, *more])) for known, more in zip(judged, drawn, strict=True)]
        candidates = [pool[: max(num_candidates, len(known))] for pool, known in zip(both, judged, strict=True)]
    return rows, [np.array([place[row] for row in pool], np.int64) for pool in candidates]


def plain(text: str) -> str:
    """Normalises case and white space, so that equal queries get equal texts."""
    return " ".join(text.lower().split())


def in_a_tenth(text: str) -> bool:
    """Whether a query is among the tenth held out; equal queries always get the same answer."""
    return hashlib.sha256(plain(text).encode()).digest()[0] < 26
