"""Searches full text: BM25 over several fields with boosts, and a popularity prior.

Knows texts and one number field; does not interpret words (`ltrr.arms.structured` does). The prior multiplies a
document's score by 1 + strength · prior(d), where prior(d) = log(1 + value) / log(1 + largest value) in [0, 1]. The
factor is stored inside the document vectors, so that the engine's top-k is exact.
Legend: Q queries, K candidates, F fields, N documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ltrr.data.beir import Corpus
from ltrr.data.expansions import Expansions, expansion_id, read_expansions
from ltrr.fusion import NothingToFit, fit_listwise
from ltrr.index import manifest
from ltrr.index.qdrant import Batch, SparseEngine
from ltrr.index.text import ANALYSERS, TextCoder, TextField, describe, merge
from ltrr.query_understanding.fields import (
    documents_of,
    expanded,
    field_texts,
    log_prior,
    number_column,
    prior_fields,
    year_like,
)
from ltrr.types import Candidates, Qrels, Query

_BM25 = ((1.2, 0.75), (0.9, 0.4))  # (k1, b) that `tune` tries: Robertson's and Anserini's defaults
_STRENGTHS = (0.0, 0.1, 0.25, 0.5, 1.0)  # of the prior, that `tune` tries


class Lexical:
    """BM25 arm.

    Args:
        fields: name -> TextField arguments; by default `title` and `all` (title, text and every text, keyword or year
            field), each with both analysers: title_english, title_folded, all_english, all_folded.
        boosts: field name -> weight ≥ 0 at query time; by default all_english alone, which is plain BM25.
        k1: BM25's term saturation, for fields that do not set their own.
        b: BM25's length normalisation, for fields that do not set their own.
        prior: number field for the popularity prior, or null.
        prior_strength: ≥ 0, relative gain of the document with the largest prior (.25 = 25 %).
        expansion: folder of generated queries (scripts/expand.py), or null. Adds the source `expansion` and, by
            default, the fields expansion_english and expansion_folded, which have weight 0 until boosts are set or
            tuned (doc2query: Nogueira & Lin 2019).
    """

    source_kind = "lexical"

    def __init__(
        self,
        *,
        fields: Mapping[str, Mapping[str, Any]] | None = None,
        boosts: Mapping[str, float] | None = None,
        k1: float = 1.2,
        b: float = 0.75,
        prior: str | None = None,
        prior_strength: float = 0.25,
        expansion: str | None = None,
    ):
        self._fields, self._boosts = fields, boosts
        self._k1, self._b = k1, b
        self._prior, self._strength = prior, prior_strength
        self._expansion = expansion

    @staticmethod
    def content(arguments: Mapping[str, Any]) -> list[str]:
        """Returns checksums of the files that these constructor arguments name, for cache keys."""
        return [expansion_id(folder)] if (folder := arguments.get("expansion")) else []

    # -- life cycle: build once, open, search

    def build(self, corpus: Corpus, root: Path) -> None:
        """Writes the index under `root`, atomically."""
        fields = self.text_fields(corpus)
        self._field_weights(fields)  # refuses an unknown name before the build starts
        scale = self._multiplier(corpus)
        expansions = self._expansions(corpus)
        terms = documents_of(corpus, "lexical: terms", expansions=expansions)
        coder = TextCoder.fit(fields, (field_texts(batch, fields) for batch in terms))

        def batches() -> Iterator[Batch]:
            start = 0
            for batch in documents_of(corpus, "lexical: index", expansions=expansions):
                rows = range(start, start + len(batch))
                yield Batch(rows, merge(coder.documents(field_texts(batch, fields), scale[start : rows.stop])))
                start = rows.stop

        def write(folder: Path) -> dict[str, int]:
            coder.save(folder / "terms.npz")
            return {"documents": SparseEngine.create(folder / "engine", batches())}

        manifest.build(root, write=write, **self._basis(corpus, fields))

    def open(self, corpus: Corpus, root: Path) -> Self:
        """Opens the built index; raises IndexRefused if it is damaged or of another corpus or config."""
        fields = self.text_fields(corpus)
        folder, sealed = manifest.open_index(root, **self._basis(corpus, fields))
        self._coder = TextCoder.load(folder / "terms.npz", fields)
        self._engine = SparseEngine.open(folder / "engine", root, sealed.counts["documents"])
        self._weights = self._field_weights(fields)
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """Finds the (Q, k) best documents that share a term with the query."""
        return self._engine.search([self._coder.query(q.text, self._weights) for q in queries], k)

    # -- choosing boosts, k1, b and the prior from judged queries

    def tune(
        self, corpus: Corpus, queries: Sequence[Query], qrels: Qrels, given: Collection[str] = (), seed: int = 0
    ) -> dict[str, Any]:
        """Finds the constructor arguments with the least listwise loss over the 100 best candidates of each query.

        Uses at most 2,000 queries, and all judged documents plus at most 200,000 others. Arguments named in `given` do
        not change. Every (k1, b), prior field and strength is tried on the same candidates; `fit_listwise` fits the
        boosts. Returns {} if no query has a positive among its candidates.
        """
        rng = np.random.default_rng(seed)
        judged = [q for q in queries if any(g > 0 for g in qrels[q.id].values())]
        judged = [judged[i] for i in rng.permutation(len(judged))[:2000]]
        if not judged:
            return {}
        judged_rows = corpus.rows([d for q in judged for d in qrels[q.id]])
        sample = rng.choice(len(corpus), 200_000, replace=False) if len(corpus) > 200_000 else np.arange(len(corpus))
        rows = np.union1d(judged_rows, sample)
        sample_index = {int(row): i for i, row in enumerate(rows)}
        fields = self.text_fields(corpus)
        expansions = self._expansions(corpus)
        terms = documents_of(corpus, "lexical: terms", expansions=expansions)
        coder = TextCoder.fit(fields, (field_texts(batch, fields) for batch in terms))
        texts = field_texts([expanded(corpus[row], row, expansions) for row in rows.tolist()], fields)
        names = [self._prior] if "prior" in given else [None, *self._priors(corpus)]
        priors = {name: self._prior_of(corpus, name)[rows] if name else np.zeros(len(rows)) for name in names}
        strengths = (self._strength,) if "prior_strength" in given else _STRENGTHS[1:]
        shapes = ((self._k1, self._b),) if {"k1", "b", "fields"} & set(given) else _BM25
        fixed = self._field_weights(fields)[:, None] if "boosts" in given else None  # (F, 1)
        docs: np.ndarray | None = None
        best: tuple[float, dict[str, Any]] = (np.inf, {})
        for k1, b in shapes:
            if len(shapes) > 1:
                coder.fields = tuple(dataclasses.replace(f, k1=k1, b=b) for f in coder.fields)
            scores = coder.field_scores([q.text for q in judged], coder.documents(texts))  # F of (Q, N)
            if docs is None:
                docs, mask = _best(sum(scores[1:], scores[0]), 100)
                grades = np.zeros(docs.shape)
                for i, query in enumerate(judged):
                    gains = np.zeros(len(rows))
                    for doc, grade in qrels[query.id].items():
                        gains[sample_index[corpus.row(doc)]] = max(grade, 0)
                    grades[i] = gains[docs[i]]
            features = np.stack([_gather(s, docs) for s in scores], axis=2)  # (Q, K, F)
            if fixed is not None:
                features = features @ fixed  # (Q, K, 1): only the scale of the loss is fitted
            for name, prior in priors.items():
                for strength in strengths if name else (0.0,):
                    scaled = features * (1 + strength * prior[docs])[:, :, None]
                    try:
                        weights, loss = fit_listwise(scaled, grades, mask)
                    except NothingToFit:
                        return {}
                    if loss < best[0]:
                        chosen = {"k1": k1, "b": b, "prior": name, "prior_strength": strength}
                        if fixed is None:
                            pairs = zip(fields, weights, strict=True)
                            chosen["boosts"] = {f.name: round(float(w), 4) for f, w in pairs}
                        best = (loss, chosen)
        return best[1]

    # -- fields and priors

    def text_fields(self, corpus: Corpus) -> tuple[TextField, ...]:
        """Lists the fields that this config searches in the corpus; raises ValueError for an unknown source or key."""
        if self._fields is None:
            words = [f for f, kind in corpus.fields.items() if kind in ("text", "keyword") or year_like(corpus, f)]
            parts = {"title": ("title",), "all": ("title", "text", *words)}
            if self._expansion is not None:
                parts["expansion"] = ("expansion",)
            return tuple(
                TextField(f"{name}_{analyser}", sources, analyser, self._k1, self._b)
                for name, sources in parts.items()
                for analyser in ("english", "folded")
            )
        out = []
        allowed = {"title", "text", *corpus.fields, *(() if self._expansion is None else ("expansion",))}
        for name, arguments in self._fields.items():
            known = {f.name for f in dataclasses.fields(TextField)} - {"name"}
            if unknown := set(arguments) - known:
                raise ValueError(
                    f"fields.{name}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}"
                )
            sources = tuple(arguments.get("sources", (name,)))
            for source in sources:
                if source not in allowed:
                    raise ValueError(f"fields.{name}.sources: no field {source!r}; this corpus has {sorted(allowed)}")
            if (analyser := arguments.get("analyser", "english")) not in ANALYSERS:
                raise ValueError(f"fields.{name}.analyser: no analyser {analyser!r}; there are {', '.join(ANALYSERS)}")
            options: dict[str, Any] = {"k1": self._k1, "b": self._b} | {
                k: v for k, v in arguments.items() if k != "sources"
            }
            out.append(TextField(name, sources, **options))
        return tuple(out)

    def _field_weights(self, fields: Sequence[TextField]) -> np.ndarray:
        """Returns the (F,) boosts; raises ValueError for an unknown field."""
        boosts = self._boosts if self._boosts is not None else {_default_field(fields): 1.0}
        names = [f.name for f in fields]
        if unknown := set(boosts) - set(names):
            raise ValueError(f"boosts name unknown field {min(unknown)!r}; the fields are: {', '.join(names)}")
        return np.array([float(boosts.get(name, 0.0)) for name in names])

    def _basis(self, corpus: Corpus, fields: Sequence[TextField]) -> dict[str, Any]:
        strength = self._strength if self._prior else 0.0
        config = {"fields": describe(fields), "prior": self._prior, "prior_strength": strength}
        config |= {"expansion": expansion_id(self._expansion)} if self._expansion is not None else {}
        return {"kind": "lexical", "corpus": corpus.fingerprint, "model": None, "config": config}

    def _expansions(self, corpus: Corpus) -> Expansions | None:
        return None if self._expansion is None else read_expansions(self._expansion, corpus)

    def _priors(self, corpus: Corpus) -> list[str]:
        if self._prior:
            return [self._prior]
        return prior_fields(corpus)

    def _multiplier(self, corpus: Corpus) -> np.ndarray:
        if self._prior is None:
            return np.ones(len(corpus), np.float32)
        return (1 + self._strength * self._prior_of(corpus, self._prior)).astype(np.float32)

    @staticmethod
    def _prior_of(corpus: Corpus, field: str) -> np.ndarray:
        if field not in (known := prior_fields(corpus)):
            raise ValueError(f"prior: {field!r} is no number field for a prior; this corpus has {known or 'none'}")
        return log_prior(number_column(corpus, field))


def _default_field(fields: Sequence[TextField]) -> str:
    names = [f.name for f in fields]
    return "all_english" if "all_english" in names else names[0]


def _best(scores, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the columns of the k largest entries in each row of a sparse matrix, (Q, k), and which of them exist."""
    docs, exists = np.zeros((scores.shape[0], k), np.int64), np.zeros((scores.shape[0], k), bool)
    for i in range(scores.shape[0]):
        row = slice(scores.indptr[i], scores.indptr[i + 1])
        order = np.argsort(-scores.data[row], kind="stable")[:k]
        docs[i, : len(order)], exists[i, : len(order)] = scores.indices[row][order], True
    return docs, exists


def _gather(scores, docs: np.ndarray) -> np.ndarray:
    """Reads the entries of a sparse (Q, N) matrix at columns (Q, K)."""
    return np.stack([scores[i].toarray().ravel()[docs[i]] for i in range(len(docs))])
