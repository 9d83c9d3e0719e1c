"""Dense retrieval: finds the documents whose vectors are nearest to the query's vector.

Knows documents, an encoder and a vector index; does not know how the encoder makes vectors.
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
        encoder: maps texts to unit vectors.
        kind: index type: flat (exact), ivf, hnsw or pq; `ltrr.index.faiss.Spec` explains this and the next six.
        nlist: number of inverted lists of ivf and pq; 0 = chosen from N.
        nprobe: inverted lists searched per query; 0 = chosen from nlist.
        m: links per node of the hnsw graph.
        ef_construction: candidates considered when a node is linked into the hnsw graph.
        ef_search: candidates considered when the hnsw graph is searched.
        pq_bytes: bytes per vector of pq.
        text_fields: metadata fields whose values are encoded after title and text; null = all text and keyword fields.
        shard: documents encoded at a time; a killed build loses at most one shard of work.
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
        self._text_fields = text_fields
        self._shard = shard

    # -- life cycle: build once, open, search

    def build(self, corpus: Corpus, root: Path) -> None:
        """Encodes the corpus and writes the index under `root`, atomically; resumes a killed build.

        Raises ValueError for an unknown text field and for a corpus too small for the index type.
        """
        fields = corpus.word_fields(self._text_fields)
        # Encode one document to learn D, so that an unsuitable spec fails before hours of encoding.
        dimension = self._encoder.encode([document_text(corpus[0], fields)]).shape[1]
        self._spec.num_lists(len(corpus), dimension)

        def write(folder: Path) -> dict[str, int]:
            key = json.dumps([corpus.fingerprint, self._encoder.id, fields, self._shard])
            vectors = self._encoded(corpus, fields, dimension, manifest.work_folder(root, key))
            FaissIndex.build(vectors, self._spec).save(folder)
            return {"documents": len(corpus), "dimension": dimension}

        manifest.build(root, write=write, **self._basis(corpus))

    def open(self, corpus: Corpus, root: Path) -> Self:
        """Opens the built index; raises IndexRefused if it is damaged or of another corpus, encoder or config."""
        folder, _ = manifest.open_index(root, **self._basis(corpus))
        self._index = FaissIndex.load(folder, self._spec)
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """Finds the (Q, k) nearest documents; a query without text gets padding."""
        docs, scores = self._index.search(self.embed(queries), k)
        textless = np.array([not query.text.strip() for query in queries], bool)
        docs[textless], scores[textless] = -1, -np.inf
        return Candidates(docs, scores)

    def embed(self, queries: Sequence[Query]) -> np.ndarray:
        """Encodes queries as (Q, D) float32 unit vectors; a query without text gets zeros."""
        vectors = np.zeros((len(queries), self._index.dimension), np.float32)
        with_text = [i for i, query in enumerate(queries) if query.text.strip()]
        if with_text:
            vectors[with_text] = self._encoder.encode([queries[i].text for i in with_text], is_query=True)
        return vectors

    # -- building

    def _basis(self, corpus: Corpus) -> dict[str, Any]:
        config = {**self._spec.built(), "text_fields": corpus.word_fields(self._text_fields)}
        return {"kind": "dense", "corpus": corpus.fingerprint, "model": self._encoder.id, "config": config}

    def _encoded(self, corpus: Corpus, fields: Sequence[str], dimension: int, work: Path) -> np.ndarray:
        """Encodes the corpus into an (N, D) float32 memmap in row order."""

        def encode(texts: list[str]) -> dict[str, np.ndarray]:
            return {"vectors": np.asarray(self._encoder.encode(texts), np.float32)}

        out = np.memmap(work / "vectors.f32", np.float32, "w+", shape=(len(corpus), dimension))
        for rows, arrays in encode_shards(corpus, fields, encode, work=work, size=self._shard, name="dense"):
            out[rows.start : rows.stop] = arrays["vectors"]
        return out
