"""Documents whose vectors are nearest to the query's.

Knows documents, an encoder and a vector index; knows nothing about what the encoder is.
Legend: N documents, D dimensions, Q queries, K candidates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ltrr.arms.shards import encode_shards
from ltrr.data.beir import Corpus, document_text
from ltrr.index import manifest
from ltrr.index.faiss import FaissIndex, Kind, Spec
from ltrr.protocols import Encoder
from ltrr.types import Candidates, Query


class Dense:
    """Dense retrieval arm.

    Args:
        encoder: texts to unit vectors.
        kind: flat (exact), ivf, hnsw or pq; this and the next six are explained at `ltrr.index.faiss.Spec`.
        nlist: lists of ivf and pq; 0 = by N.
        nprobe: lists searched a query; 0 = by nlist.
        m: links of a node of hnsw.
        ef_construction: candidates while linking a node of hnsw.
        ef_search: candidates while searching hnsw.
        pq_bytes: bytes a vector of pq.
        text_fields: metadata fields whose values are encoded after title and text; null = all fields of words.
        shard: documents encoded at a time; a build that was killed loses no more than one shard.
    """

    source_kind = "dense"

    def __init__(
        self,
        encoder: Encoder,
        *,
        kind: Kind = "flat",
        nlist: int = 0,
        nprobe: int = 0,
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 128,
        pq_bytes: int = 48,
        text_fields: Sequence[str] | None = None,
        shard: int = 4096,
    ) -> None:
        self._encoder = encoder
        self._spec = Spec(kind, nlist, nprobe, m, ef_construction, ef_search, pq_bytes)
        self._named = text_fields
        self._shard = shard

    # -- life: build once, open, search

    def build(self, corpus: Corpus, root: Path) -> None:
        """Encodes the corpus and writes the index under `root`, atomically; resumes a build that was killed.

        Raises ValueError for an unknown text field and for a corpus too small for the kind.
        """
        fields = corpus.word_fields(self._named)
        # One document tells D, so that a spec which does not fit is refused before hours of encoding.
        dimension = self._encoder.encode([document_text(corpus[0], fields)]).shape[1]
        self._spec.num_lists(len(corpus), dimension)

        def write(folder: Path) -> dict[str, int]:
            key = json.dumps([corpus.fingerprint, self._encoder.id, fields, self._shard])
            vectors = self._encoded(corpus, fields, dimension, manifest.work_folder(root, key))
            FaissIndex.build(vectors, self._spec).save(folder)
            return {"documents": len(corpus), "dimension": dimension}

        manifest.build(root, write=write, **self._basis(corpus))

    def open(self, corpus: Corpus, root: Path) -> Self:
        """Opens what `build` wrote; IndexRefused where it is damaged or of another corpus, encoder or config."""
        folder, _ = manifest.open_index(root, **self._basis(corpus))
        self._index = FaissIndex.load(folder, self._spec)
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k) nearest documents; padding for a query without text."""
        docs, scores = self._index.search(self.embed(queries), k)
        silent = np.array([not query.text.strip() for query in queries], bool)
        docs[silent], scores[silent] = -1, -np.inf
        return Candidates(docs, scores)

    def embed(self, queries: Sequence[Query]) -> np.ndarray:
        """(Q, D) float32 unit vectors; zeros for a query without text."""
        vectors = np.zeros((len(queries), self._index.dimension), np.float32)
        spoken = [i for i, query in enumerate(queries) if query.text.strip()]
        if spoken:
            vectors[spoken] = self._encoder.encode([queries[i].text for i in spoken], is_query=True)
        return vectors

    # -- building

    def _basis(self, corpus: Corpus) -> dict[str, Any]:
        config = {**self._spec.built(), "text_fields": corpus.word_fields(self._named)}
        return {"kind": "dense", "corpus": corpus.fingerprint, "model": self._encoder.id, "config": config}

    def _encoded(self, corpus: Corpus, fields: Sequence[str], dimension: int, work: Path) -> np.ndarray:
        """(N, D) vectors in row order, a memmap."""

        def encode(texts: list[str]) -> dict[str, np.ndarray]:
            return {"vectors": np.asarray(self._encoder.encode(texts), np.float32)}

        out = np.memmap(work / "vectors.f32", np.float32, "w+", shape=(len(corpus), dimension))
        for rows, arrays in encode_shards(corpus, fields, encode, work=work, size=self._shard, name="dense"):
            out[rows.start : rows.stop] = arrays["vectors"]
        return out
