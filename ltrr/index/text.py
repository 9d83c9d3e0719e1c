"""Computes BM25 over several fields as one sparse dot product.

Knows analysers, term statistics and the two halves of BM25; knows nothing about documents, engines or arms. Each term
of a field is a dimension, so that  score(q, d) = Σ_f boost_f Σ_t idf_f(t) · tf_part_f(t, d)  is  <query, document>: the
document vector holds tf_part (Robertson & Zaragoza 2009), the query vector boost · idf. Any engine for sparse vectors
then computes BM25 exactly, and boosts can change at query time. Legend: B texts, F fields, T terms, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import scipy.sparse as sp
from qdrant_edge import Bm25, Bm25Config, DisabledStemmer, StopwordsSet

from ltrr.types import Sparse

_HUGE = 1e9  # with k1 this large and b = 0, the engine's tf part equals the term count
ANALYSERS = {
    "english": Bm25Config(k=_HUGE, b=0.0, language="english", ascii_folding=True),  # Snowball stems, no stopwords
    "folded": Bm25Config(
        k=_HUGE, b=0.0, ascii_folding=True, stemmer=DisabledStemmer(), stopwords=StopwordsSet()
    ),  # every word as typed, without case and accents
}


@dataclass(frozen=True, slots=True)
class TextField:
    """One searchable field.

    Args:
        name: key of its boost.
        sources: document parts joined into the field: `title`, `text` or metadata fields.
        analyser: `english` (stems, no stopwords) or `folded` (words as typed, without case and accents).
        k1: saturation of the term frequency, ≥ 0.
        b: length normalisation, 0 (none) to 1.
    """

    name: str
    sources: tuple[str, ...]
    analyser: Literal["english", "folded"] = "english"
    k1: float = 1.2
    b: float = 0.75


def count_terms(texts: Sequence[str], analyser: str) -> Sparse:
    """Counts the hashed terms of each text."""
    embed = Bm25(ANALYSERS[analyser]).embed_document
    vectors = [embed(text) for text in texts]
    terms = [v.indices for v in vectors]
    ptr = np.concatenate([[0], np.cumsum([len(t) for t in terms], dtype=np.int64)])
    flat = np.fromiter((t for row in terms for t in row), np.uint32, int(ptr[-1]))
    counts = np.fromiter((x for v in vectors for x in v.values), np.float32, int(ptr[-1]))
    return Sparse(ptr, flat, np.rint(counts))


def tf_part(counts: np.ndarray, lengths: np.ndarray, average: float, k1: float, b: float) -> np.ndarray:
    """BM25's document half:  tf (k1 + 1) / (tf + k1 (1 − b + b · length / average))  (Robertson & Zaragoza 2009)."""
    return counts * (k1 + 1) / (counts + k1 * (1 - b + b * lengths / average))


def merge(parts: Sequence[Sparse]) -> Sparse:
    """Merges batches of equal length row by row, and adds the values of dimensions that repeat in a row."""
    rows = np.concatenate([np.repeat(np.arange(len(p.ptr) - 1, dtype=np.uint64), np.diff(p.ptr)) for p in parts])
    keys = rows << np.uint64(32) | np.concatenate([p.terms for p in parts])
    unique, inverse = np.unique(keys, return_inverse=True)
    values = np.bincount(inverse, np.concatenate([p.values for p in parts]), len(unique))
    ptr = np.searchsorted(unique, np.arange(len(parts[0].ptr), dtype=np.uint64) << np.uint64(32))
    return Sparse(ptr, (unique & np.uint64(0xFFFFFFFF)).astype(np.uint32), values.astype(np.float32))


def idf(df: np.ndarray, num_docs: int) -> np.ndarray:
    """Computes ln(1 + (N − df + ½) / (df + ½)), which is never negative (Lucene's variant)."""
    return np.log1p((num_docs - df + 0.5) / (df + 0.5))


class TextCoder:
    """Encodes texts of several fields as sparse vectors whose dot product is the boosted sum of the fields' BM25."""

    def __init__(
        self, fields: Sequence[TextField], num_docs: int, lengths: np.ndarray, terms: np.ndarray, df: np.ndarray
    ):
        self.fields = tuple(fields)
        self.num_docs = num_docs
        self.average = np.maximum(lengths, 1e-9)  # (F,) mean number of terms
        self.terms = terms  # (T,) uint32 sorted dimensions (field-specific)
        self.idf = idf(df, num_docs).astype(np.float32)  # (T,)
        self._df = df

    @classmethod
    def fit(cls, fields: Sequence[TextField], batches: Iterable[Sequence[Sequence[str]]]) -> Self:
        """Collects corpus statistics from batches of documents, each a sequence of F strings, one per field."""
        num_docs, total = 0, np.zeros(len(fields))
        terms, df = np.empty(0, np.uint32), np.empty(0, np.int64)
        pending: list[np.ndarray] = []  # counted once they outnumber the known terms, so that the cost stays linear

        def count() -> tuple[np.ndarray, np.ndarray]:
            occurring = np.concatenate([terms, *pending])
            unique, inverse = np.unique(occurring, return_inverse=True)
            weights = np.concatenate([df, np.ones(len(occurring) - len(terms), np.int64)])
            return unique, np.bincount(inverse, weights, len(unique)).astype(np.int64)

        for batch in batches:
            num_docs += len(batch)
            for f, field in enumerate(fields):
                counted = count_terms([texts[f] for texts in batch], field.analyser)
                total[f] += counted.values.sum()
                pending.append(_dimension(counted.terms, f))
            if sum(map(len, pending)) > max(len(terms), 1_000_000):
                terms, df = count()
                pending = []
        terms, df = count()
        return cls(fields, num_docs, total / max(num_docs, 1), terms, df)

    def documents(self, texts: Sequence[Sequence[str]], scale: np.ndarray | None = None) -> list[Sparse]:
        """Encodes B documents of F strings as one Sparse per field; `scale` (B,) multiplies a document's values."""
        out = []
        for f, field in enumerate(self.fields):
            counted = count_terms([t[f] for t in texts], field.analyser)
            sizes = np.diff(counted.ptr)
            lengths = np.add.reduceat(np.append(counted.values, 0), counted.ptr[:-1]) * (sizes > 0)  # (B,)
            values = tf_part(counted.values, np.repeat(lengths, sizes), self.average[f], field.k1, field.b)
            if scale is not None:
                values = values * np.repeat(scale, sizes)
            out.append(Sparse(counted.ptr, _dimension(counted.terms, f), values.astype(np.float32)))
        return out

    def query(self, text: str, boosts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a query as dimensions (T,) and count · boost · idf (T,), without terms that no document has."""
        terms, values = [], []
        counted: dict[str, Sparse] = {}
        for f, field in enumerate(self.fields):
            if boosts[f] == 0:
                continue
            if field.analyser not in counted:
                counted[field.analyser] = count_terms([text], field.analyser)
            terms.append(_dimension(counted[field.analyser].terms, f))
            values.append(boosts[f] * counted[field.analyser].values)  # a repeated word counts repeatedly
        if not terms or not len(self.terms):
            return np.empty(0, np.uint32), np.empty(0, np.float32)
        flat = np.concatenate(terms)
        at = np.minimum(np.searchsorted(self.terms, flat), len(self.terms) - 1)
        known = self.terms[at] == flat
        return flat[known], (np.concatenate(values)[known] * self.idf[at[known]]).astype(np.float32)

    def field_scores(self, texts: Sequence[str], documents: Sequence[Sparse]) -> list[sp.csr_matrix]:
        """Computes the unboosted BM25 of every field, F matrices (Q, N), to fit boosts; documents: from `documents`."""
        out = []
        for f, vectors in enumerate(documents):
            boosts = np.eye(len(self.fields))[f]
            pairs = [self.query(text, boosts) for text in texts]
            ptr = np.concatenate([[0], np.cumsum([len(t) for t, _ in pairs])])
            width, shape = len(self.terms), (len(texts), len(vectors.ptr) - 1)
            columns = [np.searchsorted(self.terms, t) for t, _ in pairs]
            queries = sp.csr_matrix(
                (np.concatenate([v for _, v in pairs]), np.concatenate(columns), ptr), shape=(shape[0], width)
            )
            matrix = sp.csr_matrix(
                (vectors.values, np.searchsorted(self.terms, vectors.terms), vectors.ptr), shape=(shape[1], width)
            )
            out.append((queries @ matrix.T).tocsr())
        return out

    def save(self, path: Path) -> None:
        """Writes the statistics as an npz without pickled objects; the fields belong in the manifest (`describe`)."""
        np.savez(path, num_docs=self.num_docs, lengths=self.average, terms=self.terms, df=self._df)

    @classmethod
    def load(cls, path: Path, fields: Sequence[TextField]) -> Self:
        """Loads the statistics that `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(fields, int(data["num_docs"]), data["lengths"], data["terms"], data["df"])


def describe(fields: Sequence[TextField]) -> list[dict]:
    """Returns the fields as JSON-able dicts, for a manifest."""
    return [{**asdict(field), "sources": list(field.sources)} for field in fields]


def _dimension(terms: np.ndarray, field: int) -> np.ndarray:
    """Maps 32-bit term hashes by a different bijection for each field, so that equal terms get different dimensions."""
    with np.errstate(over="ignore"):
        return terms * np.uint32(2 * (0x9E3779B1 * field & 0x7FFFFFFF) + 1) + np.uint32(0x85EBCA6B * field & 0xFFFFFFFF)
