"""Documents whose vectors are nearest to the query's.

Knows documents, an encoder and a vector index; knows nothing about what the encoder is.
Legend: N documents, D dimensions, Q queries, K candidates.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from tqdm import tqdm

from ltrr.core import Candidates, Encoder, Query
from ltrr.data.beir import Corpus, document_text
from ltrr.index import manifest
from ltrr.index.faiss import FaissIndex, Kind, Spec


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

        manifest.build(
            root,
            kind="dense",
            corpus=corpus.fingerprint,
            model=self._encoder.id,
            config=self._config(corpus),
            write=write,
        )

    def open(self, corpus: Corpus, root: Path) -> Self:
        """Opens what `build` wrote; IndexRefused where it is damaged or of another corpus, encoder or config."""
        folder, _ = manifest.open_index(
            root, kind="dense", corpus=corpus.fingerprint, model=self._encoder.id, config=self._config(corpus)
        )
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

    def _config(self, corpus: Corpus) -> dict[str, Any]:
        return {**self._spec.built(), "text_fields": corpus.word_fields(self._named)}

    def _encoded(self, corpus: Corpus, fields: Sequence[str], dimension: int, work: Path) -> np.ndarray:
        """(N, D) vectors in row order, a memmap. A shard counts as done once its checksum lies beside the file."""
        path = work / "vectors.f32"
        path.touch()
        with path.open("r+b") as file:
            shards = [
                range(start, min(start + self._shard, len(corpus))) for start in range(0, len(corpus), self._shard)
            ]
            missing = [rows for rows in shards if not _is_done(work, file, rows, dimension)]
            done = len(corpus) - sum(map(len, missing))
            with tqdm(total=len(corpus), initial=done, desc="dense", unit="document", mininterval=1) as progress:
                for rows in missing:
                    vectors = self._encoder.encode([document_text(corpus[row], fields) for row in rows])
                    content = np.ascontiguousarray(vectors, np.float32).tobytes()
                    file.seek(rows.start * dimension * 4)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                    _seal(work, rows).write_text(_digest(content))
                    progress.update(len(rows))
        return np.memmap(path, np.float32, "r", shape=(len(corpus), dimension))


def _seal(work: Path, rows: range) -> Path:
    return work / f"{rows.start}.sha256"


def _is_done(work: Path, file: BinaryIO, rows: range, dimension: int) -> bool:
    """Whether these rows lie in the file as they were written: a killed or powerless build may have left half."""
    seal = _seal(work, rows)
    if not seal.exists():
        return False
    file.seek(rows.start * dimension * 4)
    return seal.read_text() == _digest(file.read(len(rows) * dimension * 4))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
