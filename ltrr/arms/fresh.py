"""Explores matching documents: returns the newest and a random draw of the rest, and reserves a page place for them.

Knows field values, dates and query interpretations; knows nothing about engines, other arms or learning from feedback.
Legend: Q queries, K candidates, N documents, V values, M documents that match.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from functools import partial, reduce
from itertools import count
from pathlib import Path

import numpy as np

from ltrr.arms.structured import _selective_names, _weighted_tags
from ltrr.data.beir import Corpus, field_values
from ltrr.index import manifest
from ltrr.query_understanding.fields import documents_of, number_column, year_like, years
from ltrr.query_understanding.tagging import Tagger
from ltrr.query_understanding.vocabulary import Vocabulary
from ltrr.types import Candidates, Page, Query


class Fresh:
    """Exploration arm: always returns the newest matching documents, and draws from the others without replacement.

    A document matches if it satisfies every reading of an interpretation and the context's values of `by`, and is not
    dated after the query's time. The likeliest interpretation with a match is used. A query without readings and
    without values of `by` gets padding.

    Args:
        field: date field; null = the corpus's first one. Documents without a date can only be drawn.
        newest: number of newest documents, ≥ 0.
        by: keyword fields that must equal the context's value of that name, as in the popular arm.
        seed: seeds each draw, with query id, customer and time; queries without a time are numbered instead.
    """

    source_kind = "fresh"
    needs_fields = True  # useless for a corpus without metadata

    def __init__(self, *, field: str | None = None, newest: int = 3, by: Sequence[str] = (), seed: int = 0):
        if newest < 0:
            raise ValueError(f"arms.fresh.newest: {newest} is below 0; 0 = all are drawn")
        self._field, self._newest, self._by = field, newest, tuple(by)
        self.seed, self._rng = seed, partial(_rng, f"fresh {seed}", count())

    def build(self, corpus: Corpus, root: Path) -> None:
        """Writes the documents of each value, and their dates, under `root`, atomically."""
        config, keywords = self._config(corpus), [f for f, kind in corpus.fields.items() if kind == "keyword"]
        dates = {f: number_column(corpus, f) for f, kind in corpus.fields.items() if kind == "date"}
        numbers = {f: number_column(corpus, f) for f in corpus.fields if year_like(corpus, f)}
        numbers |= {f: years(column) for f, column in dates.items()}
        vocabulary = Vocabulary.fit(
            ((d.title, d.text, {f: [v for v, _ in field_values(d, f)] for f in keywords}) for d in corpus), numbers
        )
        tagger, tags, names = Tagger.fit(corpus, keywords), vocabulary.tags(), _selective_names(vocabulary)
        values_of = [
            sorted(_weighted_tags(document, keywords, tags, names, predicted))
            for batch in documents_of(corpus, "fresh: index")
            for document, predicted in zip(batch, tagger.tag(batch), strict=True)
        ]
        values = np.array([value for ids in values_of for value in ids], np.int64)
        rows = np.repeat(np.arange(len(values_of)), [len(ids) for ids in values_of])[np.argsort(values, kind="stable")]
        ptr = np.searchsorted(np.sort(values), np.arange(len(vocabulary.values) + 1))
        born = dates.get(config["field"], np.full(len(values_of), np.nan))

        def write(folder: Path) -> dict[str, int]:
            vocabulary.save(folder)
            np.savez(folder / "fresh.npz", **numbers | {".ptr": ptr, ".rows": rows, ".born": born})  # type: ignore
            return {"documents": len(values_of), "values": len(vocabulary.values)}

        manifest.build(root, kind="fresh", corpus=corpus.fingerprint, model=None, config=config, write=write)

    def open(self, corpus: Corpus, root: Path) -> Fresh:
        """Opens the built index; raises IndexRefused if it is damaged or of another corpus or config."""
        folder, _ = manifest.open_index(root, kind="fresh", corpus=corpus.fingerprint, config=self._config(corpus))
        self._vocabulary = Vocabulary.load(folder)
        self._tags = self._vocabulary.tags()
        self._data = dict(np.load(folder / "fresh.npz", allow_pickle=False))
        self.born = self._data[".born"]  # (N,) days since 1970, NaN = unknown; callers may set days of arrival instead
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """Returns (Q, k) candidates, newest first; min(score, 1) is the probability that a candidate is returned."""
        out = Candidates.empty(len(queries), k)
        for docs, scores, query in zip(*out, queries, strict=True):
            rows = self.matching(query)
            n = min(self._newest, k, int((~np.isnan(self.born[rows])).sum()))
            newest = rows[np.argsort(-self.born[rows], kind="stable")[:n]]  # NaN last
            rest = np.setdiff1d(rows, newest, assume_unique=True)
            m = min(k - n, len(rest))
            docs[: n + m] = np.append(newest, np.sort(self._rng(query).choice(rest, m, replace=False)))
            scores[: n + m] = np.append(1 + 1 / (1 + np.arange(n)), np.full(m, m / max(len(rest), 1)))
        return out

    def matching(self, query: Query) -> np.ndarray:
        """Finds the rows of the matching documents, (M,) ascending."""
        context = {"locale": query.context.locale, **query.context.attributes}
        filters = [self._having([self._tags.get((f, v), -1)]) for f in self._by if (v := context.get(f))]
        now = time.replace(tzinfo=time.tzinfo or UTC).timestamp() / 86400 if (time := query.context.time) else np.inf
        for interpretation in self._vocabulary.interpret(query.text):
            sets = [self._having(reading.tags) for reading in interpretation.readings if not reading.span] + filters
            between = ((self._data[r.field], *r.span) for r in interpretation.readings if r.span)
            sets += [np.flatnonzero((low <= column) & (column <= high)) for column, low, high in between]
            rows = reduce(np.intersect1d, sets) if sets else np.zeros(0, np.int64)
            if len(rows := rows[~(self.born[rows] > now)]):
                return rows
        return np.zeros(0, np.int64)

    def _having(self, values: Sequence[int]) -> np.ndarray:
        """Finds the rows of the documents that have any of these values, ascending; no document has value −1."""
        ptr, rows = self._data[".ptr"], self._data[".rows"]
        return np.unique(np.concatenate([rows[:0], *(rows[ptr[v] : ptr[v + 1]] for v in values if v >= 0)]))

    def _config(self, corpus: Corpus) -> dict:
        dates = [f for f, kind in corpus.fields.items() if kind == "date"]
        for name, kind in [(self._field or "", "date")] * bool(self._field) + [(name, "keyword") for name in self._by]:
            if corpus.fields.get(name) != kind:
                raise ValueError(f"arms.fresh: {name!r} is no {kind} field; this corpus has {corpus.fields}")
        return {"field": self._field or next(iter(dates), None)}


class Slotted:
    """Wraps a search: with probability `epsilon`, a page shows one candidate of the explorer at a reserved place.

    The place is `position` (0 = first), or the page's last if the page is shorter. The candidate is drawn uniformly
    from the explorer's n ≤ `depth`; one that the page already shows higher up stays there. The decision logs the
    explorer as the arm "fresh": its depth, its marginal (the coin's probability), the rank of the drawn candidate,
    and the propensity times coin · P(is a candidate) / n.
    """

    def __init__(self, search: Callable[..., Page], arm: Fresh, *, position: int, epsilon: float, depth: int = 10):
        self._search, self._arm, self._position, self._epsilon = search, arm, position, epsilon
        self._depth, self._rng = depth, partial(_rng, f"slot {arm.seed}", count())

    def search(self, queries: Sequence[Query], k: int) -> Page:
        """Returns a page of k candidates per query; the drawn candidate gets the score of the one above it."""
        # 1) Toss a coin per query, and ask the explorer for candidates of the chosen queries.
        page = self._search(queries, max(k, 100))  # deep, to know which arms returned a candidate that is moved up
        draws = [self._rng(query) for query in queries]
        asked = np.array([rng.random() < self._epsilon for rng in draws])  # (Q,)
        coin, chance = np.where(asked, self._epsilon, 1 - self._epsilon), np.ones(len(queries))
        explored = self._arm.search([q for q, on in zip(queries, asked, strict=True) if on], self._depth)
        # 2) Move the drawn candidate up from its place on the page, or from an extra column behind the page.
        docs = np.pad(page.shown.docs, ((0, 0), (0, 1)), constant_values=-1)
        scores = np.pad(page.shown.scores, ((0, 0), (0, 1)), constant_values=-np.inf)
        ranks = np.pad(page.ranks, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
        for i, rows, probabilities in zip(np.flatnonzero(asked).tolist(), *explored, strict=True):
            if num := int((rows >= 0).sum()):
                rank = int(draws[i].integers(num))
                chance[i] = min(probabilities[rank], 1) / num
                docs[i, -1] = -1 if rows[rank] in docs[i] else rows[rank]
                source = int(np.argmax(docs[i] == rows[rank]))
                place = min(self._position, k - 1, source, int((docs[i, :-1] >= 0).sum()))
                order = np.r_[:place, source, place:source, source + 1 : len(docs[i])]
                score = scores[i, source if source == place < docs.shape[1] - 1 else max(place - 1, 0)]
                docs[i], scores[i], ranks[i] = docs[i, order], scores[i, order], ranks[i, order]
                scores[i, place], ranks[i, place, -1] = np.nan_to_num(score, neginf=0.0), rank
        # 3) Return the page with its logged decision.
        logged = page.decision
        depths = np.column_stack([logged.depths, np.where(asked, self._depth, 0)]).astype(np.int32)
        marginals = np.insert(logged.marginals, -1, coin, axis=1)
        decision = logged._replace(depths=depths, propensity=logged.propensity * coin * chance, marginals=marginals)
        shown = Candidates(docs[:, :k], scores[:, :k])
        return page._replace(shown=shown, decision=decision, arms=(*page.arms, "fresh"), ranks=ranks[:, :k])


def _rng(key: str, untimed: Iterator[int], query: Query) -> np.random.Generator:
    """Makes a reproducible random generator for one request."""
    request = (key, query.id, query.context.customer, query.context.time or next(untimed))
    return np.random.default_rng(int(hashlib.sha256(repr(request).encode()).hexdigest(), 16))
