"""Speed of arms, one query at a time. Knows arms by name; does not know how they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from registry import Options, Row, benchmark
from timing import each_ms

from ltrr.data.beir import Corpus
from ltrr.types import Query

_K, _WARM = 10, 20


@benchmark(data=True)
def latency(options: Options) -> Iterator[Row]:
    """Time of one query in each arm, k = 10; BM25 of bm25s is the lexical arm's peer."""
    system, queries = options.system, options.queries
    yield Row("corpus", len(system.corpus), "documents")
    peer = list(_latency("bm25s", _bm25(system.corpus), queries))
    yield from peer
    for name in system.usable():
        arm = system.arm(name)
        rows = _latency(name, lambda query, arm=arm: arm.search([query], _K), queries)
        yield from (row.against(other) if name == "lexical" else row for row, other in zip(rows, peer, strict=True))


def _latency(name: str, answer: Callable[[Query], object], queries: list[Query]) -> Iterator[Row]:
    """Median and 95th percentile, after a warm-up."""
    each_ms(answer, queries[:_WARM])
    spent = each_ms(answer, queries)
    yield Row(f"{name}, median", float(np.median(spent)), "ms")
    yield Row(f"{name}, p95", float(np.quantile(spent, 0.95)), "ms")


def _bm25(corpus: Corpus) -> Callable[[Query], object]:
    """bm25s over title and text as one field, with the English stemmer and stopwords; tokenizes each query."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    texts = [f"{document.title} {document.text}" for document in corpus]
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index(bm25s.tokenize(texts, stemmer=stemmer, show_progress=False), show_progress=False)

    def answer(query: Query) -> object:
        tokens = bm25s.tokenize([query.text], stemmer=stemmer, show_progress=False)
        return index.retrieve(tokens, k=_K, show_progress=False)

    return answer
