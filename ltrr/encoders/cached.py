"""Encodes each text once, for many runs over the same texts; does not know which model encodes.

Legend: B texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltrr.files import atomic_write
from ltrr.protocols import Encoder


class CachedEncoder:
    """An Encoder that keeps every vector of another, in memory and, where `path` is set, in a file for later runs.

    path: an npz file without objects; ignored where it holds vectors of another model.
    """

    def __init__(self, encoder: Encoder, path: Path | None = None) -> None:
        self.id, self._encoder, self._path = encoder.id, encoder, path
        self._vectors: dict[tuple[str, bool], np.ndarray] = {}  # (text, whether it is a query) -> (D,)
        if path and path.exists():
            with np.load(path, allow_pickle=False) as file:
                if str(file["id"]) == self.id and "is_query" in file:
                    keys = zip(file["texts"].tolist(), file["is_query"].tolist(), strict=True)
                    self._vectors = dict(zip(keys, file["vectors"], strict=True))

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        """(B, D)."""
        if new := [text for text in dict.fromkeys(texts) if (text, is_query) not in self._vectors]:
            vectors = self._encoder.encode(new, is_query=is_query)
            self._vectors |= {(text, is_query): vector for text, vector in zip(new, vectors, strict=True)}
            if self._path:
                keys, kept = zip(*self._vectors, strict=True), [*self._vectors.values()]
                with atomic_write(self._path) as temporary, temporary.open("wb") as file:
                    arrays = dict(zip(("texts", "is_query"), map(np.array, keys), strict=True))
                    np.savez(file, id=self.id, vectors=kept, **arrays)
        return np.stack([self._vectors[text, is_query] for text in texts])
