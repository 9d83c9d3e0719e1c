"""Learned sparse retrieval: scores documents by the weighted terms they share with the query (SPLADE), exactly.

Knows documents, a sparse encoder and the embedded engine; does not know how the encoder weighs terms.
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
        sparse_encoder: maps texts to term weights.
        text_fields: metadata fields whose values are encoded after title and text; null = all text and keyword fields.
        shard: documents encoded at a time; a killed build loses at most one shard of work.
    """

    source_kind = "sparse"

    def __init__(
        self, sparse_encoder: SparseEncoder, *, text_fields: Sequence[str] | None = None, shard: int = 4096
    ) -> None:
        self._encoder, self._text_fields, self._shard = sparse_encoder, text_fields, shard

    def build(self, corpus: Corpus, root: Path) -> None:
        """Encodes the corpus and writes the index under `root`, atomically; resumes a killed build.

        Raises ValueError for an unknown text field.
        """
        fields = corpus.word_fields(self._text_fields)

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
        """Opens the built index; raises IndexRefused if it is damaged or of another corpus, encoder or config."""
        folder, sealed = manifest.open_index(root, **self._basis(corpus))
        self._engine = SparseEngine.open(folder / "engine", root, sealed.counts["documents"])
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """Finds the (Q, k) best documents that share a term with the query; a query without text gets padding."""
        with_text = [i for i, query in enumerate(queries) if query.text.strip()]
        vectors = [(np.empty(0, np.uint32), np.empty(0, np.float32))] * len(queries)
        if with_text:
            encoded = self._encoder.encode([queries[i].text for i in with_text], is_query=True)
            for row, i in enumerate(with_text):
                vectors[i] = encoded.row(row)
        return self._engine.search(vectors, k)

    def _basis(self, corpus: Corpus) -> dict[str, Any]:
        config = {"text_fields": corpus.word_fields(self._text_fields)}
        return {"kind": "sparse", "corpus": corpus.fingerprint, "model": self._encoder.id, "config": config}
