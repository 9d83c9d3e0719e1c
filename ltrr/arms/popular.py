"""Returns the most popular documents, optionally only those with the type, locale, … of the query's context.

Knows one number field and, optionally, keyword fields to filter by; ignores the query's words.
Legend: Q queries, K candidates, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from ltrr.data.beir import Corpus, field_values
from ltrr.index import manifest
from ltrr.query_understanding.fields import log_prior, number_column, prior_fields
from ltrr.types import Candidates, Query


class Popular:
    """Popularity arm.

    Args:
        field: number field to order by; by default the corpus's first number field that is not a year. Without such
            a field every search returns padding.
        by: keyword fields that must equal the context's value of that name (`locale`, or an attribute such as `type`);
            a field without a value in the context does not filter.
    """

    source_kind = "popular"
    needs_fields = True  # useless for a corpus without metadata

    def __init__(self, *, field: str | None = None, by: Sequence[str] = ()):
        self._field, self._by = field, tuple(by)

    def build(self, corpus: Corpus, root: Path) -> None:
        """Writes the documents in order of popularity under `root`, atomically."""
        field = self._chosen(corpus)
        for name in self._by:
            if corpus.fields.get(name) != "keyword":
                known = [f for f, kind in corpus.fields.items() if kind == "keyword"]
                raise ValueError(f"arms.popular.by: {name!r} is no keyword field; this corpus has {known}")
        score = log_prior(number_column(corpus, field)) if field else np.zeros(0)
        score = score.astype(np.float32)  # before sorting, so that scores equal in float32 are ordered by row
        order = np.argsort(-score, kind="stable").astype(np.int32)
        arrays = {"order": order, "score": score[order]}
        for name in self._by:
            rows, values = [], []
            for row, document in enumerate(corpus):
                for value, _ in field_values(document, name):
                    rows.append(row)
                    values.append(value)
            arrays[f"by_{name}_rows"], arrays[f"by_{name}_values"] = np.array(rows, np.int32), np.array(values, np.str_)

        def write(folder: Path) -> dict[str, int]:
            np.savez(folder / "popular.npz", **arrays)
            return {"documents": len(order)}

        manifest.build(root, write=write, **self._basis(corpus))

    def open(self, corpus: Corpus, root: Path) -> Self:
        """Opens the built index; raises IndexRefused if it is damaged or of another corpus or config."""
        folder, _ = manifest.open_index(root, **self._basis(corpus))
        with np.load(folder / "popular.npz", allow_pickle=False) as data:
            self._order, self._score = data["order"], data["score"]
            self._having = {}
            for name in self._by:
                rows, values = data[f"by_{name}_rows"], data[f"by_{name}_values"]
                for value in np.unique(values):
                    self._having[name, str(value)] = np.isin(self._order, rows[values == value])  # (N,) in order
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """Returns the (Q, k) most popular documents, equal for queries with equal context values."""
        groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
        for i, query in enumerate(queries):
            context = {"locale": query.context.locale, **query.context.attributes}
            groups.setdefault(tuple((f, v) for f in self._by if (v := context.get(f))), []).append(i)
        out = Candidates.empty(len(queries), k)
        for filters, members in groups.items():
            keep = np.ones(len(self._order), bool)
            for key in filters:
                keep &= self._having.get(key, np.zeros(len(self._order), bool))
            at = np.flatnonzero(keep)[:k]
            out.docs[members, : len(at)] = self._order[at]
            out.scores[members, : len(at)] = self._score[at]
        return out

    def _chosen(self, corpus: Corpus) -> str | None:
        known = prior_fields(corpus)
        if self._field is None:
            return known[0] if known else None
        if self._field not in known:
            raise ValueError(f"arms.popular.field: {self._field!r} is no number field; this corpus has {known}")
        return self._field

    def _basis(self, corpus: Corpus) -> dict:
        config = {"field": self._chosen(corpus), "by": list(self._by)}
        return {"kind": "popular", "corpus": corpus.fingerprint, "model": None, "config": config}
