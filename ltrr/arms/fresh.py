"""Explores: the newest of what matches a query, a draw of known probability from the rest, and a page's place for them.

Knows fields' values, dates and what a query may mean; knows nothing about engines, other arms or what feedback teaches.
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
    """The explorer: the newest documents that match, for certain, and a draw without replacement from the others.

    What matches satisfies every reading of the likeliest interpretation that leaves something (as the structured arm
    filters) and the context's values of `by`, and is there at the query's time. Nothing said = padding.

    Args:
        field: date field; null = the corpus's first one. Documents without a date are only drawn.
        newest: how many of the newest, ≥ 0.
        by: keyword fields that must equal the context's value of that name, as of the popular arm.
        seed: a draw belongs to seed, query id, customer and time; queries without a time are numbered.
    """

    source_kind = "fresh"
    needs_fields = True  # of no use to a corpus without metadata

    def __init__(self, *, field: str | None = None, newest: int = 3, by: Sequence[str] = (), seed: int = 0):
        if newest < 0:
            raise ValueError(f"arms.fresh.newest: {newest} is below 0; 0 = all are drawn")
        self._field, self._newest, self._by = field, newest, tuple(by)
        self.seed, self._rng = seed, partial(_rng, f"fresh {seed}", count())

    def build(self, corpus: Corpus, root: Path) -> None:
        """Writes which documents have which value, and their dates, under `root`, atomically."""
        config, keywords = self._config(corpus), [f for f, kind in corpus.fields.items() if kind == "keyword"]
        dates = {f: number_column(corpus, f) for f, kind in corpus.fields.items() if kind == "date"}
        numbers = {f: number_column(corpus, f) for f in corpus.fields if year_like(corpus, f)}
        numbers |= {f: years(column) for f, column in dates.items()}
        vocabulary = Vocabulary.fit(
            ((d.title, d.text, {f: [v for v, _ in field_values(d, f)] for f in keywords}) for d in corpus), numbers
        )
        tagger, tags, names = Tagger.fit(corpus, keywords), vocabulary.tags(), _selective_names(vocabulary)
        having = [
            sorted(_weighted_tags(document, keywords, tags, names, predicted))
            for batch in documents_of(corpus, "fresh: index")
            for document, predicted in zip(batch, tagger.tag(batch), strict=True)
        ]
        values = np.array([value for ids in having for value in ids], np.int64)
        rows = np.repeat(np.arange(len(having)), [len(ids) for ids in having])[np.argsort(values, kind="stable")]
        ptr = np.searchsorted(np.sort(values), np.arange(len(vocabulary.values) + 1))
        born = dates.get(config["field"], np.full(len(having), np.nan))

        def write(folder: Path) -> dict[str, int]:
            vocabulary.save(folder)
            np.savez(folder / "fresh.npz", **numbers | {".ptr": ptr, ".rows": rows, ".born": born})  # type: ignore
            return {"documents": len(having), "values": len(vocabulary.values)}

        manifest.build(root, kind="fresh", corpus=corpus.fingerprint, model=None, config=config, write=write)

    def open(self, corpus: Corpus, root: Path) -> Fresh:
        """Opens what `build` wrote; IndexRefused where it is damaged or of another corpus or config."""
        folder, _ = manifest.open_index(root, kind="fresh", corpus=corpus.fingerprint, config=self._config(corpus))
        self._vocabulary = Vocabulary.load(folder)
        self._tags = self._vocabulary.tags()
        self._data = dict(np.load(folder / "fresh.npz", allow_pickle=False))
        self.born = self._data[".born"]  # (N,) days since 1970, NaN = unknown; may be replaced by days of arrival
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k), the newest first; the smaller of score and 1 is the probability with which a candidate is here."""
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
        """(M,) rows of the documents that match, ascending."""
        context = {"locale": query.context.locale, **query.context.attributes}
        own = [self._having([self._tags.get((f, v), -1)]) for f in self._by if (v := context.get(f))]
        now = time.replace(tzinfo=time.tzinfo or UTC).timestamp() / 86400 if (time := query.context.time) else np.inf
        for one in self._vocabulary.interpret(query.text):
            sets = [self._having(reading.tags) for reading in one.readings if not reading.span] + own
            between = ((self._data[r.field], *r.span) for r in one.readings if r.span)
            sets += [np.flatnonzero((low <= column) & (column <= high)) for column, low, high in between]
            rows = reduce(np.intersect1d, sets) if sets else np.zeros(0, np.int64)
            if len(rows := rows[~(self.born[rows] > now)]):
                return rows
        return np.zeros(0, np.int64)

    def _having(self, values: Sequence[int]) -> np.ndarray:
        """Rows of the documents that have any of these values, ascending; nobody has value −1."""
        ptr, rows = self._data[".ptr"], self._data[".rows"]
        return np.unique(np.concatenate([rows[:0], *(rows[ptr[v] : ptr[v + 1]] for v in values if v >= 0)]))

    def _config(self, corpus: Corpus) -> dict:
        dates = [f for f, kind in corpus.fields.items() if kind == "date"]
        for name, kind in [(self._field or "", "date")] * bool(self._field) + [(name, "keyword") for name in self._by]:
            if corpus.fields.get(name) != kind:
                raise ValueError(f"arms.fresh: {name!r} is no {kind} field; this corpus has {corpus.fields}")
        return {"field": self._field or next(iter(dates), None)}


class Slotted:
    """A search whose pages give the place `position` (0 = first; or their last) to an explorer, where a coin says so.

    With probability `epsilon` one of the n ≤ `depth` candidates that it has is taken, each with 1/n; one that stands
    further up stays there. Logged: its depth and marginal (the coin's), the factor coin · P(is a candidate) / n of the
    propensity, and, of the arm "fresh", the rank of what was taken.
    """

    def __init__(self, search: Callable[..., Page], arm: Fresh, *, position: int, epsilon: float, depth: int = 10):
        self._search, self._arm, self._position, self._epsilon = search, arm, position, epsilon
        self._depth, self._rng = depth, partial(_rng, f"slot {arm.seed}", count())

    def search(self, queries: Sequence[Query], k: int) -> Page:
        """The page of each query, k candidates deep; what is taken has the score of what stands above it."""
        # 1) Coins, and candidates of those for whom the explorer is asked.
        page = self._search(queries, max(k, 100))  # deep, so that it is known which arms returned what is moved up
        draws = [self._rng(query) for query in queries]
        asked = np.array([rng.random() < self._epsilon for rng in draws])  # (Q,)
        coin, chance = np.where(asked, self._epsilon, 1 - self._epsilon), np.ones(len(queries))
        found = self._arm.search([q for q, on in zip(queries, asked, strict=True) if on], self._depth)
        # 2) What is taken comes from where it stands on the page, or from a pad that is put behind it.
        docs = np.pad(page.shown.docs, ((0, 0), (0, 1)), constant_values=-1)
        scores = np.pad(page.shown.scores, ((0, 0), (0, 1)), constant_values=-np.inf)
        ranks = np.pad(page.ranks, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
        for i, rows, probabilities in zip(np.flatnonzero(asked).tolist(), *found, strict=True):
            if num := int((rows >= 0).sum()):
                rank = int(draws[i].integers(num))
                chance[i] = min(probabilities[rank], 1) / num
                docs[i, -1] = -1 if rows[rank] in docs[i] else rows[rank]
                at = int(np.argmax(docs[i] == rows[rank]))
                place = min(self._position, k - 1, at, int((docs[i, :-1] >= 0).sum()))
                order = np.r_[:place, at, place:at, at + 1 : len(docs[i])]
                score = scores[i, at if at == place < docs.shape[1] - 1 else max(place - 1, 0)]
                docs[i], scores[i], ranks[i] = docs[i, order], scores[i, order], ranks[i, order]
                scores[i, place], ranks[i, place, -1] = np.nan_to_num(score, neginf=0.0), rank
        # 3) The page, and what is logged of it.
        was = page.decision
        depths = np.column_stack([was.depths, np.where(asked, self._depth, 0)]).astype(np.int32)
        marginals = np.insert(was.marginals, -1, coin, axis=1)
        decision = was._replace(depths=depths, propensity=was.propensity * coin * chance, marginals=marginals)
        shown = Candidates(docs[:, :k], scores[:, :k])
        return page._replace(shown=shown, decision=decision, arms=(*page.arms, "fresh"), ranks=ranks[:, :k])


def _rng(key: str, untimed: Iterator[int], query: Query) -> np.random.Generator:
    """A request's own random numbers, reproducible."""
    request = (key, query.id, query.context.customer, query.context.time or next(untimed))
    return np.random.default_rng(int(hashlib.sha256(repr(request).encode()).hexdigest(), 16))
