"""Speed of the vector index. Knows random vectors; does not know documents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from registry import Options, Row, benchmark
from timing import best_of

_VECTORS, _WIDTH, _QUERIES, _K = 100_000, 384, 256, 100


@benchmark()
def flat_search(options: Options) -> Iterator[Row]:
    """Time of flat search in 100,000 vectors for 256 queries, against one numpy matrix product of that shape."""
    from ltrr.index.faiss import FaissIndex, Spec

    vectors = np.random.default_rng(0).standard_normal((_VECTORS, _WIDTH), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, times = FaissIndex.build(vectors, Spec("flat")), options.repeats or 3
    product = Row("matrix product", 1e3 * best_of(lambda: vectors[:_QUERIES] @ vectors.T, times), "ms")
    yield product
    yield Row("search", 1e3 * best_of(lambda: index.search(vectors[:_QUERIES], _K), times), "ms").against(product)
