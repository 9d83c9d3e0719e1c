"""Finds remembered queries that are like a query: by the words they share and by their meaning.

Knows texts, word weights and vectors; does not know evidence, candidates or customers. A caller passes a filter where
some remembered queries must not be seen. Legend: M remembered queries, N queries that are returned, Q queries that are
asked, D dimensions.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ltrr.feedback.events import normalised
from ltrr.feedback.evidence.columns import Column
from ltrr.protocols import Encoder

_CACHED = 50_000  # vectors of texts that are kept
_SCANNED = 200_000  # a word of more remembered queries is skipped, once a rarer word has brought some
_CANDIDATES = 4_000  # remembered queries that are compared with one query; those with rarer words first


class WordWeights:
    """Weighs a word by its inverse frequency among titles, which no feedback changes."""

    def __init__(self, titles: Iterable[str]) -> None:
        self._num_titles, self._frequency = 0, Counter[str]()
        for title in titles:
            self._num_titles += 1
            self._frequency.update({*normalised(title).split()})

    def of(self, word: str) -> float:
        """log(1 + titles / (1 + titles with the word)); without titles, all words weigh the same."""
        return math.log(1 + max(self._num_titles, 1) / (1 + self._frequency[word]))


class WordIndex:
    """Remembered queries by their words; similarity is the weighted Jaccard coefficient."""

    def __init__(self, weights: WordWeights) -> None:
        self._weights = weights
        self._queries_of: dict[str, array] = {}  # word -> remembered queries, ascending
        self._size = Column(np.float64)  # (M,) the sum of the weights of a query's words
        self._num = 0  # M

    def update(self, texts: Sequence[str]) -> None:
        """Adds the texts that follow the M known ones; `texts` holds all M or more."""
        self._size.grow(len(texts))
        for query in range(self._num, len(texts)):
            words = _words(texts[query])
            self._size.values[query] = sum(map(self._weights.of, words))
            for word in words:
                self._queries_of.setdefault(word, array("i")).append(query)
        self._num = len(texts)

    def like(self, text: str, visible: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(N,) visible remembered queries that share a word with `text`, and their similarities in (0, 1].

        visible: remembered queries -> bool mask of the same shape.
        """
        words = _words(text)
        queries_of = {w: np.frombuffer(self._queries_of[w], np.int32) for w in words if w in self._queries_of}
        candidates = np.zeros(0, np.int32)
        for queries in sorted(queries_of.values(), key=len):
            if len(candidates) and len(queries) > _SCANNED:
                break
            queries = queries[visible(queries)]
            if len(candidates) and len(candidates) + len(queries) > _CANDIDATES:
                break
            candidates = np.union1d(candidates, queries[:_CANDIDATES])
        common = np.zeros(len(candidates))  # (N,) weight of the shared words
        for word, queries in queries_of.items():
            place = np.minimum(np.searchsorted(queries, candidates), len(queries) - 1)
            common += np.where(queries[place] == candidates, self._weights.of(word), 0.0)
        return candidates, common / (sum(map(self._weights.of, words)) + self._size.values[candidates] - common)


def _words(text: str) -> list[str]:
    """Distinct words in one order, so that the sums of their weights are equal to the last bit."""
    return sorted({*text.split()})


class VectorIndex:
    """Remembered queries by their meaning; similarity is the dot product of an encoder's unit vectors."""

    def __init__(self) -> None:
        self._cache: dict[str, np.ndarray] = {}  # text -> (D,)
        self._vectors: Column | None = None  # (M, D)

    def __len__(self) -> int:
        """M."""
        return 0 if self._vectors is None else len(self._vectors.values)

    def update(self, encoder: Encoder, texts: Sequence[str], remembered: Sequence[str]) -> np.ndarray | None:
        """(Q, D) vectors of `texts`; adds `remembered`, which follow the M known ones. None = nothing to compare."""
        if not len(self) and not remembered:
            return None
        unknown = [text for text in dict.fromkeys([*texts, *remembered]) if text not in self._cache]
        if len(self._cache) + len(unknown) > _CACHED:
            self._cache.clear()
            unknown = [*dict.fromkeys([*texts, *remembered])]
        if unknown:
            self._cache |= dict(zip(unknown, encoder.encode(unknown, is_query=True), strict=True))
        if remembered:
            rows = np.stack([self._cache[text] for text in remembered])
            num = len(self)
            self._vectors = self._vectors or Column(np.float32, rows.shape[1])
            self._vectors.grow(num + len(remembered))
            self._vectors.values[num:] = rows
        return np.stack([self._cache[text] for text in texts]) if texts else None

    def similarities(self, vectors: np.ndarray) -> np.ndarray:
        """(Q, M) of vectors (Q, D)."""
        assert self._vectors is not None
        return vectors @ self._vectors.values.T  # (Q, D) x (D, M)
