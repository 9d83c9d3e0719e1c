"""Structured search: runs one filtered search per interpretation of a query, weighted by its likelihood.

Knows documents' field values and how to search them. `query_understanding.vocabulary` interprets queries, and
`query_understanding.tagging` predicts values for documents without them. A document's vector holds the weight of each
of its values beside its terms, so that, among the documents that satisfy every reading,

    score(d | interpretation) = Σ_readings evidence · weight(d, value) + BM25 of the words left over,

and the arm's score is Σ_interpretations likelihood · score.
Legend: Q queries, K candidates, N documents, V values, I interpretations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np

from ltrr.data.beir import Corpus, Document, field_values
from ltrr.fusion import weighted_sum
from ltrr.index import manifest
from ltrr.index.qdrant import Batch, SparseEngine, Where
from ltrr.index.text import TextCoder, TextField, describe, merge
from ltrr.metrics import evaluate, to_run
from ltrr.query_understanding.fields import (
    documents_of,
    field_texts,
    log_prior,
    number_column,
    prior_fields,
    telling_prior,
    year_like,
    years,
)
from ltrr.query_understanding.tagging import Tagger
from ltrr.query_understanding.vocabulary import Interpretation, Reading, Vocabulary, normalise
from ltrr.types import Candidates, Qrels, Query, Sparse

_DEPTH = 200  # least number of candidates per interpretation
_RELATED = 0.3  # score gained by the document most related to the named one, as a share of the best score
_NAMED = 0.5  # share of the query's information that a title must hold to name its document
_TUNING = 300  # most queries used for tuning
_GRID: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("title_boost", (0.5, 0.25, 1.0, 2.0)),
    ("text_boost", (0.5, 0.25, 1.0, 2.0)),
    ("text_evidence", (0.5, 0.25, 0.75)),
    ("temperature", (2.0, 1.0, 4.0)),
)
_SELECTIVE = 200  # a value of at most this many documents may be the name of an entity


class Structured:
    """Structured search arm with query understanding, for any corpus with metadata.

    Args:
        fields: keyword fields whose values queries may mention; by default all of the corpus.
        prior: number field for the popularity prior, or null.
        prior_strength: ≥ 0, relative gain of the document with the largest prior (.25 = 25 %).
        title_boost: BM25 weight of the title, for words that no reading explains.
        text_boost: BM25 weight of title, text and metadata together, for the same words.
        text_evidence: evidence of reading a word as plain text, as a share of its idf, 0..1.
        temperature: nats; larger = more even likelihoods.
        tag_missing: whether documents that lack a field are tagged from their text.
    """

    source_kind = "structured"
    needs_fields = True  # useless for a corpus without metadata

    def __init__(
        self,
        *,
        fields: Sequence[str] | None = None,
        prior: str | None = None,
        prior_strength: float = 0.5,
        title_boost: float = 0.5,
        text_boost: float = 0.5,
        text_evidence: float = 0.5,
        temperature: float = 2.0,
        tag_missing: bool = True,
    ):
        self._fields, self._prior, self._strength = fields, prior, prior_strength
        if temperature <= 0:
            raise ValueError(f"arms.structured.temperature: {temperature} is not above 0")
        self._boosts = np.array([title_boost, text_boost])
        self._text_evidence, self._temperature, self._tag_missing = text_evidence, temperature, tag_missing

    def build(self, corpus: Corpus, root: Path) -> None:
        """Writes the index under `root`, atomically."""
        keywords, numbers = self._keywords(corpus), self._numbers(corpus)
        fields = _text_fields(keywords)
        coder = TextCoder.fit(
            fields, (field_texts(batch, fields) for batch in documents_of(corpus, "structured: terms"))
        )
        tagger = Tagger.fit(corpus, keywords) if self._tag_missing else Tagger.none()
        vocabulary = Vocabulary.fit(
            ((d.title, d.text, {f: [v for v, _ in field_values(d, f)] for f in keywords}) for d in corpus), numbers
        )
        tags = vocabulary.tags()
        names = _selective_names(vocabulary)
        prior = self._prior_column(corpus)
        tag_batches: list[Sparse] = []

        def batches() -> Iterator[Batch]:
            start = 0
            for batch in documents_of(corpus, "structured: index"):
                rows = range(start, start + len(batch))
                predicted = tagger.tag(batch)
                weighted = [_weighted_tags(d, keywords, tags, names, p) for d, p in zip(batch, predicted, strict=True)]
                values = _sparse(weighted)
                tag_batches.append(values)
                scale = 1 + self._strength * prior[rows.start : rows.stop]
                scaled = values._replace(values=values.values * np.repeat(scale, np.diff(values.ptr)))
                every = Sparse(np.arange(len(batch) + 1), np.full(len(batch), _EVERY, np.uint32), scale)
                texts = [t._replace(terms=t.terms | _TEXT) for t in coder.documents(field_texts(batch, fields), scale)]
                yield Batch(
                    rows,
                    merge([scaled, every, *texts]),
                    [list(w) for w in weighted],
                    {name: column[rows.start : rows.stop] for name, column in numbers.items()},
                )
                start += len(batch)

        def write(folder: Path) -> dict[str, int]:
            coder.save(folder / "terms.npz")
            vocabulary.save(folder)
            tagger.save(folder)
            counts = {"documents": SparseEngine.create(folder / "engine", batches()), "values": len(vocabulary.values)}
            sizes = np.concatenate([np.diff(s.ptr) for s in tag_batches])
            np.savez(
                folder / "tags.npz",
                ptr=np.concatenate([[0], np.cumsum(sizes)]),
                tags=np.concatenate([s.terms for s in tag_batches]),
                weights=np.concatenate([s.values for s in tag_batches]),
            )
            return counts | {"tagged": tagger.num_tagged}

        manifest.build(root, write=write, **self._basis(corpus, fields))

    def open(self, corpus: Corpus, root: Path) -> Self:
        """Opens the built index; raises IndexRefused if it is damaged or of another corpus or config."""
        fields = _text_fields(self._keywords(corpus))
        folder, sealed = manifest.open_index(root, **self._basis(corpus, fields))
        self._corpus = corpus
        self._coder = TextCoder.load(folder / "terms.npz", fields)
        self.vocabulary = Vocabulary.load(folder)
        with np.load(folder / "tags.npz", allow_pickle=False) as data:
            self._tags = Sparse(data["ptr"], data["tags"], data["weights"])
        self._engine = SparseEngine.open(folder / "engine", root, sealed.counts["documents"])
        return self

    def tune(
        self, corpus: Corpus, queries: Sequence[Query], qrels: Qrels, given: Collection[str] = (), seed: int = 0
    ) -> dict[str, Any]:
        """Finds constructor arguments by nDCG@10 on at most 300 judged queries, one argument after another.

        The prior comes first: the number field with the highest mean percentile of the positives, or none if that is
        below 60 %. Arguments named in `given` do not change.
        """
        judged = [q for q in queries if any(grade > 0 for grade in qrels[q.id].values())]
        judged = [judged[i] for i in np.random.default_rng(seed).permutation(len(judged))[:_TUNING]]
        if not judged:
            return {}
        prior = self._prior if "prior" in given else telling_prior(corpus, [qrels[q.id] for q in judged])
        best: dict[str, Any] = {"prior": prior}
        current = {"title_boost": self._boosts[0], "text_boost": self._boosts[1], "text_evidence": self._text_evidence}
        current["temperature"] = self._temperature
        with TemporaryDirectory() as folder:
            arm = Structured(
                fields=self._fields, prior=prior, prior_strength=self._strength, tag_missing=self._tag_missing
            )
            arm.build(corpus, Path(folder))
            arm.open(corpus, Path(folder))
            score = -1.0
            for name, values in _GRID:
                for value in values if name not in given else ():
                    trial = current | best | {name: value}
                    arm._boosts = np.array([trial["title_boost"], trial["text_boost"]])
                    arm._text_evidence, arm._temperature = trial["text_evidence"], trial["temperature"]
                    run = to_run([q.id for q in judged], arm.search(judged, 10), corpus.ids)
                    ndcg = evaluate(run, {q.id: qrels[q.id] for q in judged}, ("nDCG@10",)).mean()["nDCG@10"]
                    if ndcg > score:
                        score, best = ndcg, best | {name: value}
        return best

    def interpret(self, text: str) -> list[Interpretation]:
        """Lists the interpretations of a query, likeliest first."""
        return self.vocabulary.interpret(text, text_evidence=self._text_evidence, temperature=self._temperature)

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """Finds the (Q, k) best documents by Σ likelihood · score, with those related to a document the query names."""
        understood = [self.interpret(q.text) for q in queries]
        flat = [(i, one) for i, several in enumerate(understood) for one in several]
        depth = max(k, _DEPTH)  # a document that ranks low in one interpretation may rank high in the sum
        results = self._engine.search(
            [self._vector(one) for _, one in flat], depth, [_where(one.readings) for _, one in flat]
        )  # (I, k)
        owner = np.array([i for i, _ in flat], np.int64)
        weights = np.array([one.likelihood for _, one in flat])
        alive = (results.docs >= 0).any(axis=1)  # drop interpretations that no document satisfies
        weights = np.where(alive, weights, 0.0)
        weights /= np.maximum(np.bincount(owner, weights, len(queries)), 1e-9)[owner]
        merged = weighted_sum(results, owner, weights, len(queries), depth)
        return self._with_related(queries, merged, depth).first(k)

    def related_by(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids and weights of a document's values, weighted by idf, to find documents that share them."""
        tags, weights = self._tags.row(row)
        df = self.vocabulary.df[tags]
        shared = (df >= 2) & (df <= self.vocabulary.num_docs / 4)
        return tags[shared], (weights[shared] * np.log(self.vocabulary.num_docs / df[shared])).astype(np.float32)

    def _named(self, query: Query, rows: np.ndarray) -> int | None:
        """Finds the first of the three best documents whose title is in the query and holds most of its information."""
        asked = set(normalise(query.text))
        for row in rows[:3].tolist():
            title = set(normalise(self._corpus[row].title)) if row >= 0 else set()
            if title and title <= asked and self.vocabulary.share(title, asked) >= _NAMED:
                return row
        return None

    def _with_related(self, queries: Sequence[Query], merged: Candidates, k: int) -> Candidates:
        """Adds documents that share values with a document the query names: an artist's songs, a director's films."""
        named = [(i, row) for i, query in enumerate(queries) if (row := self._named(query, merged.docs[i])) is not None]
        if not named:
            return merged
        asked = np.array([i for i, _ in named])
        related = self._engine.search([self.related_by(row) for _, row in named], k)
        best = np.maximum(related.scores[:, :1], 1e-9)
        scaled = np.where(related.docs >= 0, related.scores / best * _RELATED * merged.scores[asked, :1], -np.inf)
        both = Candidates(
            np.concatenate([merged.docs, related.docs]), np.concatenate([merged.scores, scaled.astype(np.float32)])
        )
        owner = np.concatenate([np.arange(len(queries)), asked])
        return weighted_sum(both, owner, np.ones(len(owner)), len(queries), k)

    def _vector(self, one: Interpretation) -> tuple[np.ndarray, np.ndarray]:
        """Returns dimensions and weights of an interpretation: its values, then the words left over."""
        terms, values = self._coder.query(one.text, self._boosts) if one.text else (np.empty(0, np.uint32),) * 2
        tags = [t for reading in one.readings for t in reading.tags]
        weights = [reading.evidence * w for reading in one.readings for w in reading.weights]
        if any(reading.span for reading in one.readings):  # a dimension of all documents gives a range its score
            tags.append(_EVERY)
            weights.append(sum(reading.evidence for reading in one.readings if reading.span))
        both = merge(
            [_sparse([dict(zip(tags, weights, strict=True))]), Sparse(np.array([0, len(terms)]), terms | _TEXT, values)]
        )
        return both.terms, both.values

    def _keywords(self, corpus: Corpus) -> list[str]:
        known = [f for f, kind in corpus.fields.items() if kind == "keyword"]
        for field in self._fields or ():
            if field not in known:
                raise ValueError(f"arms.structured.fields: {field!r} is no keyword field; this corpus has {known}")
        return list(self._fields) if self._fields is not None else known

    def _numbers(self, corpus: Corpus) -> dict[str, np.ndarray]:
        """Reads year fields, and date fields as calendar years: name -> (N,)."""
        out = {f: number_column(corpus, f) for f in corpus.fields if year_like(corpus, f)}
        for field, kind in corpus.fields.items():
            if kind == "date":
                out[field] = years(number_column(corpus, field))
        return out

    def _prior_column(self, corpus: Corpus) -> np.ndarray:
        if self._prior is None:
            return np.zeros(len(corpus))
        if self._prior not in prior_fields(corpus):
            raise ValueError(f"arms.structured.prior: {self._prior!r} is none of {prior_fields(corpus)}")
        return log_prior(number_column(corpus, self._prior))

    def _basis(self, corpus: Corpus, fields: Sequence[TextField]) -> dict[str, Any]:
        strength = self._strength if self._prior else 0.0
        config = {"fields": describe(fields), "prior": self._prior, "prior_strength": strength}
        config["tag_missing"] = self._tag_missing
        config["numbers"] = sorted(f for f, kind in corpus.fields.items() if kind == "date" or year_like(corpus, f))
        return {"kind": "structured", "corpus": corpus.fingerprint, "model": None, "config": config}


# Dimensions: value ids lie below _TEXT, terms above. `merge` adds terms that collide because that bit is set.
_TEXT = np.uint32(1 << 31)
_EVERY = (1 << 31) - 1


def _sparse(rows: Sequence[Mapping[int, float]]) -> Sparse:
    sizes = np.array([len(row) for row in rows], np.int64)
    flat = [(t, row[t]) for row in rows for t in sorted(row)]
    return Sparse(
        np.concatenate([[0], np.cumsum(sizes)]),
        np.array([t for t, _ in flat], np.uint32),
        np.array([w for _, w in flat], np.float32),
    )


def _text_fields(keywords: Sequence[str]) -> tuple[TextField, ...]:
    return (
        TextField("title", ("title",), "english", 1.2, 0.75),
        TextField("all", ("title", "text", *keywords), "english", 1.2, 0.75),
    )


def _selective_names(vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Maps normalised rare values to their ids: a document with such a title is what the value names (an artist)."""
    out: dict[str, list[int]] = {}
    for i, value in enumerate(vocabulary.values):
        if 2 <= vocabulary.df[i] <= _SELECTIVE:
            out.setdefault(" ".join(normalise(value)), []).append(i)
    return out


def _weighted_tags(
    document: Document,
    keywords: Sequence[str],
    tags: Mapping[tuple[str, str], int],
    names: Mapping[str, Sequence[int]],
    predicted: Mapping[tuple[str, str], float],
) -> dict[int, float]:
    """Maps a document's value ids to weights: from its metadata, its title, or predicted from its text."""
    out = {tags[key]: weight for key, weight in predicted.items()}
    for tag in names.get(" ".join(normalise(document.title)), ()):
        out[tag] = 1.0
    for field in keywords:
        weighted = [(value, weight) for value, weight in field_values(document, field) if weight > 0]
        largest = max([1.0, *(weight for _, weight in weighted)])  # counts become shares of the largest
        for value, weight in weighted:
            out[tags[field, value]] = weight / largest
    return out


def _where(readings: Sequence[Reading]) -> Where:
    return Where(
        tuple(reading.tags for reading in readings if not reading.span),
        tuple((reading.field, *reading.span) for reading in readings if reading.span),
    )
