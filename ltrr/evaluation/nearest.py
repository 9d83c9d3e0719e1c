"""A baseline that ignores document content: it returns the positives of the nearest training queries.

Knows training queries, their labels and an encoder; knows nothing about documents or test labels. A trained system
that beats it has learned more than a memory of similar queries. Legend: Q queries, T training queries, K candidates,
D dimensions, L most positives of a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltrr.data.beir import Corpus, Split
from ltrr.fusion import weighted_sum
from ltrr.protocols import Encoder
from ltrr.types import Candidates, Query, top_k


class NearestQueries:
    """An Arm: a document's score is Σ cosine · grade over the `num` nearest queries of `splits` with it as a positive.

    Queries at a cosine of 0 or below are ignored.
    """

    def __init__(self, encoder: Encoder, corpus: Corpus, splits: Sequence[Split], *, num: int = 10) -> None:
        self._encoder, self._num = encoder, num
        queries = [query for split in splits for query in split.queries]
        graded = [{d: g for d, g in split.qrels[q.id].items() if g > 0} for split in splits for q in split.queries]
        self._vectors = encoder.encode([query.text for query in queries], is_query=True)  # (T, D)
        rows = [corpus.rows(list(positives)) for positives in graded]
        grades = [np.array(list(positives.values()), np.float32) for positives in graded]
        self._labels = Candidates.from_lists(rows, grades, max(map(len, graded)))  # (T, L)

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """Returns (Q, k) documents, padded where the neighbours have fewer."""
        cosines = self._encoder.encode([query.text for query in queries], is_query=True) @ self._vectors.T  # (Q, T)
        neighbours = top_k(np.broadcast_to(np.arange(len(self._vectors)), cosines.shape), cosines, self._num)
        labels = Candidates(
            *(part[neighbours.docs.ravel()] for part in self._labels)
        )  # (Q · num, L); a pad's weight is not above 0
        owner = np.repeat(np.arange(len(queries)), self._num)
        return weighted_sum(labels, owner, neighbours.scores.ravel(), len(queries), k)
