"""What make.py and the test share: an encoder without weights, and events as JSON (numpy and the standard library).

Knows nothing about ltrr, so that it runs beside 0.1 and beside today's code. Legend: B texts, D dimensions.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

DIMENSIONS = 16


class WordHashes:
    """An encoder: a text's vector is the sum of a random vector for each of its words."""

    id = "word-hashes"

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        """(B, D) float32 unit vectors."""
        vectors = np.stack([np.sum([_vector(word) for word in text.lower().split()], axis=0) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # (B, D)


def _vector(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).standard_normal(DIMENSIONS)


def as_json(value: Any) -> Any:
    """A dataclass, array or container as JSON holds it; NaN becomes null and a time its ISO text."""
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
