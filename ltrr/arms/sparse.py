"""Documents that share learned terms with the query, weighted: SPLADE vectors, searched exactly.

Knows documents, a sparse encoder and the embedded engine; knows nothing about what the encoder is.
Legend: N documents, T active terms of a shard, Q queries, K candidates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ltrr.arms.shards import encode_shards
from ltrr.data.beir import Corpus
from ltrr.index import manifest
from ltrr.index.qdrant import Batch, SparseEngine
from ltrr.protocols import SparseEncoder
from ltrr.types import Candidates, Query, Sparse


class Splade:
    """Learned sparse retrieval arm: score = dot product of the query's and the document's term weights.

    Args:
        sparse_encoder: texts to weights of terms.
        text_fields: metadata fields whose values are encoded after title and text; null = all fields of words.
        shard: documents encoded at a time; a build that was killed loses no more than one shard.
    """

    source_kind = "sparse"

    def __init__(
        self, sparse_encoder: SparseEncoder, *, text_fields: Sequence[str] | None = None, shard: int = 4096
    ) -> None:
        self._encoder, self._named, self._shard = sparse_encoder, text_fields, shard

    def build(self, corpus: Corpus, root: Path) -> None:
        """Encodes the corpus and writes the index under `root`, atomically; resumes a build that was killed.

        Raises ValueError for an unknown text field.
        """
        fields = corpus.word_fields(self._named)

        def encode(texts: list[str]) -> dict[str, np.ndarray]:
            return self._encoder.encode(texts)._asdict()

        def write(folder: Path) -> dict[str, int]:
            key = json.dumps([corpus.fingerprint, self._encoder.id, fields, self._shard])
            work = manifest.work_folder(root, key)
            shards = encode_shards(corpus, fields, encode, work=work, size=self._shard, name="sparse")
            batches = (Batch(rows, Sparse(**arrays)) for rows, arrays in shards)
            return {"documents": SparseEngine.create(folder / "engine", batches)}

        manifest.build(root, write=write, **self._basis(corpus))

    def open(self, corpus: Corpus, root: Path) -> Self:
        """Opens what `build` wrote; IndexRefused where it is damaged or of another corpus, encoder or config."""
        folder, sealed = manifest.open_index(root, **self._basis(corpus))
        self._engine = SparseEngine.open(folder / "engine", root, sealed.counts["documents"])
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k) documents that share a term with the query; padding for a query without text."""
        spoken = [i for i, query in enumerate(queries) if query.text.strip()]
        vectors = [(np.empty(0, np.uint32), np.empty(0, np.float32))] * len(queries)
        if spoken:
            encoded = self._encoder.encode([queries[i].text for i in spoken], is_query=True)
            for row, i in enumerate(spoken):
                vectors[i] = encoded.row(row)
        return self._engine.search(vectors, k)

    def _basis(self, corpus: Corpus) -> dict[str, Any]:
        config = {"text_fields": corpus.word_fields(self._named)}
        return {"kind": "sparse", "corpus": corpus.fingerprint, "model": self._encoder.id, "config": config}
