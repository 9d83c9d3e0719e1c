"""Runs the Qdrant engine in this process: exact search of sparse vectors with filters, in a sealed folder.

Knows points, sparse vectors, integer tags and numbers as payload; knows nothing about texts or arms. The engine writes
into the folder that it opens, and allows one process per folder. Readers therefore open a private copy, never the
sealed folder. Legend: B points of a batch, Q queries, K candidates.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from qdrant_edge import (
    CountRequest,
    EdgeConfig,
    EdgeShard,
    EdgeSparseVectorParams,
    FieldCondition,
    Filter,
    MatchAny,
    PayloadSchemaType,
    Point,
    Query,
    QueryBatchRequest,
    QueryRequest,
    RangeFloat,
    SparseVector,
    UpdateOperation,
)

from ltrr.index.manifest import IndexRefused, copy_folder, private_copy
from ltrr.types import Candidates, Sparse

_VECTOR, _TAGS = "sparse", "tags"


class Batch(NamedTuple):
    """Points to store, in row order."""

    rows: Sequence[int]  # (B,)
    vectors: Sparse  # B sparse vectors, dimensions unique in a row
    tags: Sequence[Sequence[int]] | None = None  # B lists of integer tags for `Where.any_of`
    numbers: Mapping[str, np.ndarray] | None = None  # name -> (B,) floats for `Where.between`, NaN = unknown


class Where(NamedTuple):
    """Filter: a point must have at least one tag of every group, and every number within its closed range."""

    any_of: tuple[tuple[int, ...], ...] = ()
    between: tuple[tuple[str, float, float], ...] = ()


class SparseEngine:
    """Finds the exact top-k by sparse dot product, optionally filtered."""

    def __init__(self, shard: EdgeShard):
        self._shard = shard

    @classmethod
    def create(cls, folder: Path, batches: Iterable[Batch]) -> int:
        """Writes a new shard, optimises and closes it, and returns the number of points."""
        params, roomy = {_VECTOR: EdgeSparseVectorParams()}, folder.with_name(f"{folder.name}.roomy")
        shard = EdgeShard.create(str(roomy), EdgeConfig(sparse_vectors=params))
        indexed: set[str] = set()
        for batch in batches:
            for name in ({_TAGS} if batch.tags is not None else set()) | set(batch.numbers or ()):
                if name not in indexed:
                    kind = PayloadSchemaType.Integer if name == _TAGS else PayloadSchemaType.Float
                    shard.update(UpdateOperation.create_field_index(name, kind))
                    indexed.add(name)
            shard.update(UpdateOperation.upsert_points(_points(batch)))
        shard.optimize()
        shard.flush()
        count = shard.count(CountRequest(exact=True))
        shard.close()
        copy_folder(roomy, folder)  # the engine reserves at least 130 MB, mostly zeros
        shutil.rmtree(roomy)
        return count

    @classmethod
    def open(cls, folder: Path, root: Path, count: int) -> Self:
        """Opens a private copy (under `root`) of a sealed folder; raises IndexRefused if points are missing."""
        shard = EdgeShard.load(str(private_copy(folder, root)))
        num_points = shard.count(CountRequest(exact=True))
        if num_points != count:
            raise IndexRefused(f"index {folder}: the engine recovered {num_points} points, the manifest says {count}")
        return cls(shard)

    def search(
        self, vectors: Sequence[tuple[np.ndarray, np.ndarray]], k: int, where: Sequence[Where | None] | None = None
    ) -> Candidates:
        """Finds the (Q, k) best points for Q pairs of (dimensions, values); an empty vector gets padding.

        The engine breaks a tie at the k-th score arbitrarily. A query with such a tie is repeated with a larger limit,
        until all tied points are returned and those with the lowest rows can be kept.
        """
        docs = [np.empty(0, np.int32)] * len(vectors)
        scores = [np.empty(0, np.float32)] * len(vectors)
        asked, limit = [i for i, (terms, _) in enumerate(vectors) if len(terms)], k + 1
        while asked:
            pairs = [(Query.Nearest(_sparse(*vectors[i]), using=_VECTOR), where[i] if where else None) for i in asked]
            requests = [QueryRequest(query=query, limit=limit, filter=_filter(only)) for query, only in pairs]
            tied = []
            for i, points in zip(asked, self._shard.query_batch(QueryBatchRequest(requests)), strict=True):
                if len(points) == limit and points[-1].score == points[k - 1].score:
                    tied.append(i)
                    continue
                docs[i] = np.fromiter((p.id for p in points), np.int32, len(points))
                scores[i] = np.fromiter((p.score for p in points), np.float32, len(points))
            asked, limit = tied, 4 * limit
        return Candidates.from_lists(docs, scores, k)


def _sparse(terms: np.ndarray, values: np.ndarray) -> SparseVector:
    return SparseVector(terms.tolist(), values.tolist())


def _points(batch: Batch) -> list[Point]:
    points = []
    for i, row in enumerate(batch.rows):
        payload: dict = {} if batch.tags is None else {_TAGS: list(batch.tags[i])}
        for name, column in (batch.numbers or {}).items():
            if not np.isnan(column[i]):
                payload[name] = float(column[i])
        points.append(Point(row, {_VECTOR: _sparse(*batch.vectors.row(i))}, payload))  # type: ignore[arg-type]
    return points


def _filter(where: Where | None) -> Filter | None:
    if where is None or not (where.any_of or where.between):
        return None
    must = [FieldCondition(key=_TAGS, match=MatchAny(list(tags))) for tags in where.any_of]
    must += [FieldCondition(key=name, range=RangeFloat(gte=low, lte=high)) for name, low, high in where.between]
    return Filter(must=must)  # type: ignore[arg-type]
