"""What worked before: scores of remembered (query, entity) pairs, predicted first and replaced by observed ones.

Knows sums of evidence, generated queries and a text encoder; knows nothing about where events are stored or who
searches the rest. Lookup: the query itself, as normalised, and remembered queries like it, by words and by meaning; a
remembered score counts the more the more alike the queries are. Everything written is visible to the next search.
Legend: Q queries, K candidates, M remembered queries, D dimensions, P pairs.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ltrr.data.beir import Corpus
from ltrr.data.expansions import expansion_id, read_expansions
from ltrr.feedback.events import Action, Impression, Reward, normalised
from ltrr.feedback.evidence.columns import Column
from ltrr.feedback.evidence.ledger import Ledger
from ltrr.feedback.evidence.sums import Sums
from ltrr.files import atomic_write
from ltrr.protocols import Encoder
from ltrr.types import ActionRow, Candidates, ImpressionRow, Query

_BATCH = 64  # queries compared with remembered ones at once
_CERTAIN = 1 - 1e-6  # the most that a score counts beside others
_CACHED = 50_000  # vectors of queries that are kept
_SCANNED = 200_000  # remembered queries with a word that are looked through, where another word found some
_CANDIDATES = 4_000  # remembered queries that share a word, looked at for one query; those with rarer words first


class Memory:
    """The memory index (query-to-entity scores).

    Args:
        corpus: where entities have their rows.
        encoder: for remembered queries of similar meaning; null = by words alone.
        expansion: folder of generated queries (scripts/expand.py), whose likelihoods are the predicted scores; or null.
        strength: of a prediction, in trials.
        predicted: score of a query that the generator was certain of, 0 to 1; others have p^(1 / tokens) of it.
        distinct: customers with a success that a pair needs before it reaches others.
        cap: the most trials of one customer that count for one pair.
        budget: the most trials of one customer, decayed, that count for others in all.
        half_life: days after which evidence counts half.
        credit: part of a click's worth that goes to the query that it reformulates.
        examination: probability that a customer looks at each position; null = 1 / rank.
        reward: what actions are worth (`Reward.configured`); null = as by default.
        neighbours: remembered queries like it that are looked up, 0 = none.
        alike: similarity in [0, 1] that those need.
        sharpness: a neighbour's scores count similarity to this power; 0 = as the query's own.
    """

    source_kind = "memory"

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder | None = None,
        *,
        expansion: str | None = None,
        strength: float = 2.0,
        predicted: float = 0.5,
        distinct: int = 3,
        cap: float = 3.0,
        budget: float = 300.0,
        half_life: float = 90.0,
        credit: float = 0.5,
        examination: Sequence[float] | None = None,
        reward: Mapping[str, Any] | None = None,
        neighbours: int = 20,
        alike: float = 0.5,
        sharpness: float = 8.0,
    ) -> None:
        for name, value, good, fix in (
            ("strength", strength, strength > 0, "above 0"),
            ("predicted", predicted, 0 <= predicted <= 1, "within 0 and 1"),
            ("distinct", distinct, distinct >= 1, "at least 1"),
            ("cap", cap, cap > 0, "above 0"),
            ("budget", budget, budget > 0, "above 0"),
            ("half_life", half_life, half_life >= 7, "at least 7 days"),
            ("credit", credit, 0 <= credit <= 1, "within 0 and 1"),
            ("neighbours", neighbours, neighbours >= 0, "at least 0"),
            ("sharpness", sharpness, sharpness >= 0, "at least 0"),
            ("alike", alike, 0 <= alike <= 1, "within 0 and 1"),
            ("examination", examination, examination is None or (examination and all(0 < e <= 1 for e in examination)),
             "probabilities above 0, one a position"),
        ):  # fmt: skip
            if not good:
                raise ValueError(f"arms.memory.{name}: {value} is not {fix}")
        self._corpus, self.encoder = corpus, encoder
        self._strength = strength
        self._neighbours, self._alike, self._sharpness = neighbours, alike, sharpness
        self._lock = threading.RLock()
        self._options: dict[str, Any] = {"cap": cap, "budget": budget, "half_life": timedelta(days=half_life)}
        self._options["distinct"] = distinct
        self._book_options: dict[str, Any] = {"credit": credit, "reward": Reward.configured(reward)}
        if examination is not None:
            self._book_options["examination"] = tuple(examination)
        self._changes = 0  # so far
        self.rows = {entity: row for row, entity in enumerate(corpus.ids)}
        self._frequency = Counter(word for document in corpus for word in set(normalised(document.title).split()))
        self._expansion, self._predicted = expansion, predicted
        self._renew(self._empty())
        self._predict()

    @staticmethod
    def content(arguments: dict[str, Any]) -> list[str]:
        """Checksums of the files that these constructor arguments name, for the keys of caches."""
        return [expansion_id(folder)] if (folder := arguments.get("expansion")) else []

    def _empty(self) -> Ledger:
        return Ledger(Sums(**self._options), self.rows, **self._book_options)

    def _renew(self, book: Ledger) -> None:
        """From now on this is what is remembered."""
        self._book, self._sums = book, book.sums
        self._words = _Words(self._frequency, len(self._corpus))
        self._cache: dict[str, np.ndarray] = {}
        self._vectors: Column | None = None  # (M, D) of the first of `_sums.succeeded`

    def _predict(self) -> None:
        if self._expansion is None:
            return
        texts, rows, scores = [], [], []
        for row, e in read_expansions(self._expansion, self._corpus).pairs():
            texts.append(normalised(e.query))
            rows.append(row)
            scores.append(self._predicted * float(np.exp(e.log_likelihood / max(e.tokens, 1))))
        self._sums.predict(texts, rows, scores)

    # -- learning

    def observe(self, events: Iterable[Impression | Action]) -> None:
        """Learns from events; those that it has had change nothing."""
        with self._lock:
            self._changes += 1
            self._book.add(events)

    def take(self, seen: Sequence[ImpressionRow], did: Sequence[ActionRow]) -> None:
        """As `observe`, from the light rows of an event store."""
        with self._lock:
            self._changes += 1
            self._book.take(seen, did)

    def customers(self) -> list[str]:
        """Names of whom it knows."""
        with self._lock:
            return self._sums.customers()

    def erase(self, customer: str) -> None:
        """Takes back what a customer taught."""
        with self._lock:
            self._changes += 1
            self._book.erase(customer)
            self._renew(self._restored(*self._state(0.0)))

    # -- search

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k) entities with a score above 0."""
        with self._lock:
            texts = [normalised(query.text) for query in queries]
            self._words.add(self._sums.queries)
            vectors = self._encoded(texts)
            found = []
            for start in range(0, len(texts), _BATCH):
                alike = None  # (B, M) by meaning
                if vectors is not None and self._vectors is not None:
                    alike = vectors[start : start + _BATCH] @ self._vectors.values.T
                for i, query in enumerate(queries[start : start + _BATCH]):
                    row = None if alike is None else alike[i]
                    found.append(self._lookup(texts[start + i], query.context.customer, row))
        return Candidates.from_lists([rows for rows, _ in found], [scores for _, scores in found], k).first(k)

    def observed(self) -> list[tuple[int, str, float]]:
        """(row, query, observed score) of pairs that enough customers agree on: queries for other arms' fields."""
        with self._lock:
            pairs, texts = self._sums.agreed()
            scores = self._sums.scores(pairs, None, np.zeros(len(pairs)), strength=self._strength)
            return list(zip(self._sums.rows(pairs).tolist(), texts, scores.tolist(), strict=True))

    def _lookup(self, text: str, customer: str | None, by_meaning: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores: of each entity, that any remembered score is right, each times similarity^sharpness."""
        numbers, alike, by_words = self._like(text, customer, by_meaning)
        pairs_of = [self._sums.pairs_of[number] for number in numbers.tolist()]
        counts = [len(pairs) for pairs in pairs_of]
        pairs = np.fromiter((pair for pairs in pairs_of for pair in pairs), np.int64)
        predicted = np.repeat(by_words, counts)  # (P,); by meaning, who clicked privately would show in what others see
        scores = self._sums.scores(pairs, customer, predicted, strength=self._strength)
        scores *= np.repeat(alike**self._sharpness, counts)
        rows, inverse = np.unique(self._sums.rows(pairs), return_inverse=True)
        missed = np.zeros(len(rows))  # logarithm of the probability that none of them is right
        np.add.at(missed, inverse, np.log1p(-np.minimum(scores, _CERTAIN)))
        found = -np.expm1(missed)
        return rows[found > 0], found[found > 0].astype(np.float32)

    def _like(
        self, text: str, customer: str | None, by_meaning: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Remembered queries, how alike they are (the query itself 1), and whether words say so.

        Only those that tell this customer something: what others have for themselves takes nobody's place.
        """
        best: dict[int, tuple[float, bool]] = {}
        if self._neighbours:
            tells = partial(self._sums.visible, customer=customer, predicted=True)
            found = [(*self._words.like(text, tells), True)]
            if by_meaning is not None:
                found.append((np.frombuffer(self._sums.succeeded, np.int32), by_meaning, False))
            for numbers, alike, by_words in found:
                near = np.flatnonzero(alike >= self._alike)
                if not by_words:
                    near = near[self._sums.visible(numbers[near], customer, predicted=False)]
                near = near[np.lexsort((numbers[near], -alike[near]))[: self._neighbours]]
                for number, value in zip(numbers[near].tolist(), alike[near].tolist(), strict=True):
                    had, words = best.get(number, (0.0, False))
                    best[number] = (max(had, value), words or by_words)
        if (own := self._sums.find(text)) is not None:
            best[own] = (1.0, True)
        values = np.array(list(best.values()), np.float64).reshape(-1, 2)
        return np.fromiter(best, np.int64, len(best)), values[:, 0], values[:, 1]

    def _encoded(self, texts: Sequence[str]) -> np.ndarray | None:
        """(Q, D) vectors of texts; remembered queries that had a success are encoded, too (predicted ones are many)."""
        if self.encoder is None or not self._neighbours:
            return None
        done = len(self._vectors.values) if self._vectors is not None else 0
        new = [self._sums.queries[q] for q in self._sums.succeeded[done:]]
        unknown = [text for text in dict.fromkeys([*texts, *new]) if text not in self._cache]
        if len(self._cache) + len(unknown) > _CACHED:
            self._cache.clear()
            unknown = list(dict.fromkeys([*texts, *new]))
        if unknown:
            self._cache |= dict(zip(unknown, self.encoder.encode(unknown, is_query=True), strict=True))
        if new:
            rows = np.stack([self._cache[text] for text in new])
            self._vectors = self._vectors or Column(np.float32, rows.shape[1])
            self._vectors.grow(done + len(new))
            self._vectors.values[done:] = rows
        return np.stack([self._cache[text] for text in texts]) if texts else np.zeros((0, 1), np.float32)

    # -- snapshots

    def save(self, path: Path) -> None:
        """All that was learned, in one file without objects; whole or not at all."""
        with self._lock:
            arrays, open_events = self._state(0.0)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            arrays["open_events"] = np.frombuffer(open_events.encode(), np.uint8)
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load(self, path: Path) -> None:
        """Goes on from what `save` wrote; predictions are this arm's own."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        arrays["prior"][:] = 0.0
        with self._lock:
            self._changes += 1
            self._renew(self._restored(arrays, arrays.pop("open_events").tobytes().decode()))
            self._predict()

    def compact(self, least: float = 1e-3) -> None:
        """Drops evidence that decayed below `least` trials, and events for which nothing late is awaited.

        Searches go on meanwhile. Where something is learned meanwhile, all stays as it is: the next time.
        """
        with self._lock:
            self._book.seal()
            state, changes = self._state(least), self._changes
        book = self._restored(*state)
        with self._lock:
            if self._changes == changes:
                self._renew(book)

    def _state(self, least: float) -> tuple[dict[str, np.ndarray], str]:
        return self._sums.state(least), self._book.state()

    def _restored(self, arrays: dict[str, np.ndarray], open_events: str) -> Ledger:
        book = self._empty()
        book.sums.restore(arrays)
        book.restore(open_events)
        return book

    def __len__(self) -> int:
        """Pairs."""
        return len(self._sums)


class _Words:
    """Remembered queries by their words: weighted Jaccard similarity.

    A word weighs its inverse frequency among the corpus's titles, which no feedback changes.
    """

    def __init__(self, frequency: Counter[str], num_titles: int) -> None:
        self._frequency, self._num_titles = frequency, num_titles
        self._having: dict[str, array] = {}  # word -> remembered queries, ascending
        self._size = Column(np.float64)  # of remembered queries: the sum of their words' weights
        self._known = 0

    def add(self, texts: Sequence[str]) -> None:
        """Remembered queries from the first that is not here yet."""
        self._size.grow(len(texts))
        for query in range(self._known, len(texts)):
            words = set(texts[query].split())
            self._size.values[query] = sum(map(self._weight, words))
            for word in words:
                self._having.setdefault(word, array("i")).append(query)
        self._known = len(texts)

    def like(self, text: str, tells: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(M,) remembered queries that share a word with this one and tell something; how alike they are, (0, 1]."""
        words = set(text.split())
        having = {word: np.frombuffer(self._having[word], np.int32) for word in words if word in self._having}
        taken = np.zeros(0, np.int32)
        for queries in sorted(having.values(), key=len):
            if len(taken) and len(queries) > _SCANNED:
                break
            queries = queries[tells(queries)]
            if len(taken) and len(taken) + len(queries) > _CANDIDATES:
                break
            taken = np.union1d(taken, queries[:_CANDIDATES])
        common = np.zeros(len(taken))
        for word, queries in having.items():
            at = np.minimum(np.searchsorted(queries, taken), len(queries) - 1)
            common += np.where(queries[at] == taken, self._weight(word), 0.0)
        return taken, common / (sum(map(self._weight, words)) + self._size.values[taken] - common)

    def _weight(self, word: str) -> float:
        return math.log(1 + self._num_titles / (1 + self._frequency[word]))
