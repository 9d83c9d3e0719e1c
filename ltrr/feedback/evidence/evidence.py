"""Learns from events and answers what is known about candidates for a query and for remembered queries like it.

Knows the ledger, its sums and the lookup of queries; does not know who reads the evidence, what a score is or where
events are stored. Every event counts in the next reading. All methods may be called by many threads.
Legend: Q queries, K candidates, A arms, N neighbours, P pairs of a remembered query and a candidate.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltrr.feedback.events import Action, Impression, Reward, normalised
from ltrr.feedback.evidence.cells import GROUPS, MOST, Shows, group_of
from ltrr.feedback.evidence.ledger import Ledger
from ltrr.feedback.evidence.lookup import VectorIndex, WordIndex, WordWeights
from ltrr.feedback.evidence.sums import Counts, Sums
from ltrr.files import atomic_write
from ltrr.protocols import Encoder
from ltrr.types import ActionRow, ImpressionRow, Query

_SHARPNESS, _CERTAIN = 8.0, 1 - 1e-6  # of predictions: power of similarity; the most that one counts
_FIRST = 0.1  # of the budget: pages within it may move what is believed of all customers
_BATCH = 64  # queries compared with remembered ones at once
EXACT, WORDS, MEANING = 0, 1, 2  # kinds of neighbours, the closest first


class Neighbours(NamedTuple):
    """Remembered queries that are like the queries asked: N of all Q, those of one query together."""

    asked: np.ndarray  # (N,) which of the Q, ascending
    numbers: np.ndarray  # (N,) remembered queries, valid until something is learned, erased or compacted
    similarity: np.ndarray  # (N,) 1 = the query itself
    kind: np.ndarray  # (N,) EXACT, WORDS or, only by meaning, MEANING


class Recalled(NamedTuple):
    """Candidates of the queries asked and of remembered queries like them: P entries, those of one query together."""

    asked: np.ndarray  # (P,) which of the Q, ascending
    rows: np.ndarray  # (P,) corpus rows; a row comes once for each neighbour
    similarity: np.ndarray  # (P,) of the neighbour
    kind: np.ndarray  # (P,) of the neighbour
    counts: Counts  # (P,) as the customer who asks may see it


class Evidence:
    """Counts by query, candidate, customer and arm: learns from a loop, for any number of readers.

    Args:
        rows: entity -> corpus row; other entities are left out.
        titles: of the corpus; the rarer a word is in them, the more it weighs when queries are compared.
        encoder: for remembered queries of similar meaning; None = by words alone.
        distinct: customers with a success that a pair needs before others may see it.
        cap: the most trials of one customer that count for one pair.
        budget: the most trials of one customer, decayed, that count for others in all.
        half_life: days after which evidence counts half.
        credit: part of a click's worth that goes to the query before a reformulation.
        examination: probability that a customer looks at each position; None = 1 / rank.
        reward: what actions are worth (`Reward.configured`); None = its defaults.
        neighbours: the most remembered queries for each query, by words and by meaning each; 0 = none but itself.
        alike: similarity in [0, 1] that those need.
        sources: whether evidence is kept by arm, too (`by_arm`); the loop has to read sources for it.
        cells: whether shows are kept by cell, too (`weigh`).

    Raises:
        ValueError: names the argument that makes no sense.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        titles: Iterable[str],
        encoder: Encoder | None = None,
        *,
        distinct: int = 3,
        cap: float = 3.0,
        budget: float = 300.0,
        half_life: float = 90.0,
        credit: float = 0.5,
        examination: Sequence[float] | None = None,
        reward: Mapping[str, Any] | None = None,
        neighbours: int = 20,
        alike: float = 0.5,
        sources: bool = False,
        cells: bool = False,
    ) -> None:
        for name, value, good, fix in (
            ("distinct", distinct, distinct >= 1, "at least 1"),
            ("cap", cap, cap > 0, "above 0"),
            ("budget", budget, budget > 0, "above 0"),
            ("half_life", half_life, half_life >= 7, "at least 7 days"),
            ("credit", credit, 0 <= credit <= 1, "within 0 and 1"),
            ("neighbours", neighbours, neighbours >= 0, "at least 0"),
            ("alike", alike, 0 <= alike <= 1, "within 0 and 1"),
            ("examination", examination, examination is None or (examination and all(0 < e <= 1 for e in examination)),
             "probabilities above 0, one a position"),
        ):  # fmt: skip
            if not good:
                raise ValueError(f"{name}: {value} is not {fix}")
        self.rows, self.encoder, self.sources = rows, encoder, sources
        self._neighbours, self._alike = neighbours, alike
        self._weights = WordWeights(titles)
        self._sum_options: dict[str, Any] = {"cap": cap, "budget": budget, "half_life": timedelta(days=half_life)}
        self._sum_options |= {"distinct": distinct, "sources": sources, "cells": cells}
        self._ledger_options: dict[str, Any] = {"credit": credit, "reward": Reward.configured(reward)}
        if examination is not None:
            self._ledger_options["examination"] = tuple(examination)
        self._lock = threading.RLock()
        self._changes = 0  # so far
        self._replace(self._empty())

    # -- learning: the protocol `Learning`, and predictions

    def observe(self, events: Iterable[Impression | Action]) -> None:
        """Learns from events; known ones change nothing."""
        with self._lock:
            self._changes += 1
            self._ledger.add(events)

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None:
        """Learns from the rows of an event store; known ones change nothing."""
        with self._lock:
            self._changes += 1
            self._ledger.take(impressions, actions)

    def predict(self, queries: Sequence[str], rows: Sequence[int], scores: Sequence[float]) -> None:
        """Sets predicted scores in [0, 1] of queries and corpus rows; of a pair that comes twice the larger counts."""
        with self._lock:
            self._changes += 1
            self._sums.predict([normalised(query) for query in queries], rows, scores)

    def customers(self) -> list[str]:
        """Names of known customers."""
        with self._lock:
            return self._sums.customers()

    def erase(self, customer: str) -> None:
        """Takes back all evidence of a customer."""
        with self._lock:
            self._changes += 1
            self._ledger.erase(customer)
            self._replace(self._restored(*self._state(0.0)))

    def compact(self, least: float = 1e-3) -> None:
        """Drops evidence that decayed below `least` trials, and events that are too old for late ones.

        Readers go on meanwhile. If something is learned meanwhile, nothing is dropped until the next call.
        """
        with self._lock:
            self._ledger.seal()
            state, changes = self._state(least), self._changes
        ledger = self._restored(*state)
        with self._lock:
            if self._changes == changes:
                self._replace(ledger)

    def save(self, path: Path) -> None:
        """Writes all evidence to one file without objects, whole or not at all."""
        with self._lock:
            arrays, open_events = self._state(0.0)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            arrays["open_events"] = np.frombuffer(open_events.encode(), np.uint8)
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def load(self, path: Path) -> None:
        """Continues from what `save` wrote, with the predictions that were set here, not those of the file."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        arrays["prior"][:] = 0.0
        ledger = self._restored(arrays, arrays.pop("open_events").tobytes().decode())
        with self._lock:
            self._changes += 1
            ledger.sums.predict(*self._sums.predicted())
            self._replace(ledger)

    # -- reading

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the A arms that evidence is kept for, in the order of `by_arm`."""
        with self._lock:
            return (*self._sums.arms,)

    def like(self, queries: Sequence[Query]) -> Neighbours:
        """Finds remembered queries like each query: itself, and the nearest by words and by meaning.

        Others than itself come only if they tell the customer who asks something, so a query that other customers have
        for themselves takes no place.
        """
        with self._lock:
            texts = [normalised(query.text) for query in queries]
            customers = [self._sums.find_customer(query.context.customer) for query in queries]
            self._words.update(self._sums.queries)
            vectors, by_meaning = self._encoded(texts), None
            keys, similarity, kind = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, np.int64)]
            for q, (text, customer) in enumerate(zip(texts, customers, strict=True)):
                if vectors is not None and q % _BATCH == 0:
                    by_meaning = self._vectors.similarities(vectors[q : q + _BATCH])  # (_BATCH, M)
                of_one = None if by_meaning is None else by_meaning[q % _BATCH]
                for numbers, values, which in self._nearest(text, customer, of_one):
                    keys.append(q << 32 | numbers.astype(np.int64))
                    similarity.append(values)
                    kind.append(np.full(len(numbers), which))
            keys, places = np.unique(np.concatenate(keys), return_inverse=True)
            best, closest = np.zeros(len(keys)), np.full(len(keys), MEANING)
            np.maximum.at(best, places, np.concatenate(similarity))
            np.minimum.at(closest, places, np.concatenate(kind))
            best[closest == EXACT] = 1.0
            return Neighbours(keys >> 32, keys & 0xFFFFFFFF, best, closest)

    def recall(self, queries: Sequence[Query]) -> Recalled:
        """Returns the candidates of `like`'s queries with their counts."""
        with self._lock:
            near = self.like(queries)
            pairs_of = [self._sums.pairs_of[number] for number in near.numbers.tolist()]
            pairs = np.fromiter(chain.from_iterable(pairs_of), np.int64)  # (P,)
            of = np.repeat(np.arange(len(pairs_of)), [len(pairs) for pairs in pairs_of])  # (P,) which neighbour
            asked = near.asked[of]
            customers = np.array([self._sums.find_customer(query.context.customer) for query in queries], np.int64)
            counts = self._sums.counts(pairs, customers[asked])
            return Recalled(asked, self._sums.rows(pairs), near.similarity[of], near.kind[of], counts)

    def counts(self, queries: Sequence[Query], rows: np.ndarray) -> Counts:
        """(Q, K) counts of the queries themselves with candidates `rows` (Q, K), pad -1, as customers may see them."""
        with self._lock:
            known, pairs, customers = self._pairs(queries, rows)
            return Counts(*(_scattered(column, known) for column in self._sums.counts(pairs, customers)))

    def by_arm(self, queries: Sequence[Query], rows: np.ndarray) -> np.ndarray:
        """(Q, K, A, 3) successes, trials and failures as in `counts`, where each of `arms` returned the candidate.

        A candidate of several arms counts in full for each. Evidence without sources counts for none.
        """
        with self._lock:
            known, pairs, customers = self._pairs(queries, rows)
            return _scattered(self._sums.by_arm(pairs, customers), known)

    def weigh(self, queries: Sequence[Query], rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted sums (Q, K, W) of each pair's successes and silent shows, 0 where it was never shown; needs `cells`.

        rows: (Q, K) corpus rows, pad -1. weights: (W, 1 + B) of a success, and of a show without one in each cell.
        """
        with self._lock:
            known, pairs, customers = self._pairs(queries, rows)
            successes, silences = self._sums.counts(pairs, customers).successes, self._sums.silences(pairs, customers)
            return _scattered(np.concatenate([successes[:, None], silences], axis=1) @ weights.T, known)

    def near(self, queries: Sequence[Query], rows: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """(Q, K, G) log odds that remembered queries like each one have for its candidates; needs `cells`.

        rows: (Q, K) corpus rows, pad -1. ratios: (1 + B,) of a success, of a show without one in each cell.
        """
        out = np.zeros((*rows.shape, GROUPS))
        with self._lock:
            like = self.like(queries)
            which = np.flatnonzero((like.kind != EXACT) & (group_of(like.similarity) >= 0))
            if not len(which):
                return out
            asked, numbers, group = like.asked[which], like.numbers[which], group_of(like.similarity[which])
            customers = np.array([self._sums.find_customer(query.context.customer) for query in queries], np.int64)
            wanted = rows[asked]  # (N, K)
            pairs = self._sums.find_pairs(np.repeat(numbers, rows.shape[1]), wanted.ravel())
            known = np.flatnonzero(pairs >= 0)
            near, place = known // rows.shape[1], known % rows.shape[1]
            who = customers[asked[near]]
            successes = self._sums.counts(pairs[known], who).successes[:, None]
            said = np.concatenate([successes, self._sums.silences(pairs[known], who)], axis=1) @ ratios
            np.add.at(out, (asked[near], place, group[near]), np.clip(said, -MOST, MOST))
        return out

    def foretold(self, queries: Sequence[Query], rows: np.ndarray) -> np.ndarray:
        """(Q, K) what predictions say for candidates (Q, K), pad -1: −log P(no prediction is right), at most `MOST`.

        Predictions of queries alike count similarity to the power of 8.
        """
        out = np.zeros(rows.shape)
        with self._lock:
            like = self.like(queries)
            of = np.flatnonzero(like.kind < MEANING)
            wanted = rows[like.asked[of]]  # (N, K)
            pairs = self._sums.find_pairs(np.repeat(like.numbers[of], rows.shape[1]), wanted.ravel())
            known = np.flatnonzero(pairs >= 0)
            near, place = known // rows.shape[1], known % rows.shape[1]
            one = self._sums.priors(pairs[known]) * like.similarity[of[near]] ** _SHARPNESS
            np.add.at(out, (like.asked[of[near]], place), -np.log1p(-np.minimum(one, _CERTAIN)))
        return np.minimum(out, MOST)

    @property
    def foretells(self) -> bool:
        """Whether anything was predicted."""
        return self._sums.foretells

    def trusts(self, customer: str) -> bool:
        """Whether a page of this customer may move what is believed of all: they have done little so far."""
        with self._lock:
            return self._sums.spent(customer) < _FIRST

    def shows(self) -> Shows:
        """All that was shown and counts; needs `cells`."""
        with self._lock:
            return self._sums.all_shows()

    @property
    def shown(self) -> float:
        """Candidates that were shown, in all; needs `cells`."""
        return self._sums.shown

    def agreed(self) -> tuple[np.ndarray, list[str], Counts]:
        """Corpus rows (P,), normalised queries and counts of the pairs that enough customers agree on."""
        with self._lock:
            pairs, texts = self._sums.agreed()
            return self._sums.rows(pairs), texts, self._sums.counts(pairs, np.full(len(pairs), -1))

    def __len__(self) -> int:
        """Remembered pairs."""
        return len(self._sums)

    # -- how

    def _nearest(
        self, text: str, customer: int, by_meaning: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Numbers, similarities and kind of a query's neighbours by words and by meaning; one may be in both."""
        sums = self._sums
        if self._neighbours:
            numbers, similarity = self._words.like(text, partial(sums.visible, customer=customer, predicted=True))
            near = np.flatnonzero(similarity >= self._alike)
            yield *self._first(numbers[near], similarity[near]), WORDS
        if by_meaning is not None:
            near = np.flatnonzero(by_meaning >= self._alike)
            numbers = np.frombuffer(sums.succeeded, np.int32)[near]
            shown = sums.visible(numbers, customer, predicted=False)
            yield *self._first(numbers[shown], by_meaning[near[shown]]), MEANING
        if (number := sums.find_query(text)) >= 0:
            yield np.array([number]), np.ones(1), EXACT

    def _first(self, numbers: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The most similar neighbours, ties by number."""
        order = np.lexsort((numbers, -similarity))[: self._neighbours]
        return numbers[order], similarity[order]

    def _encoded(self, texts: Sequence[str]) -> np.ndarray | None:
        """(Q, D) vectors of texts; None = nothing is compared by meaning.

        Remembered queries that had a success are encoded, too; others are not, as predicted ones are many.
        """
        if self.encoder is None or not self._neighbours:
            return None
        new = [self._sums.queries[query] for query in self._sums.succeeded[len(self._vectors) :]]
        return self._vectors.update(self.encoder, texts, new)

    def _pairs(self, queries: Sequence[Query], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(Q, K) bool: which pairs are remembered; those pairs and the customers who ask, both (P,)."""
        numbers = np.array([self._sums.find_query(normalised(query.text)) for query in queries], np.int64)
        customers = np.array([self._sums.find_customer(query.context.customer) for query in queries], np.int64)
        pairs = self._sums.find_pairs(np.repeat(numbers, rows.shape[1]), rows.ravel()).reshape(rows.shape)  # (Q, K)
        known = pairs >= 0
        return known, pairs[known], np.repeat(customers, known.sum(axis=1))

    def _empty(self) -> Ledger:
        return Ledger(Sums(**self._sum_options), self.rows, **self._ledger_options)

    def _replace(self, ledger: Ledger) -> None:
        """Swaps all evidence at once; readers see the old or the new."""
        self._ledger, self._sums = ledger, ledger.sums
        self._words, self._vectors = WordIndex(self._weights), VectorIndex()

    def _state(self, least: float) -> tuple[dict[str, np.ndarray], str]:
        return self._sums.state(least), self._ledger.state()

    def _restored(self, arrays: Mapping[str, np.ndarray], open_events: str) -> Ledger:
        ledger = self._empty()
        ledger.sums.restore(arrays)
        ledger.restore(open_events)
        return ledger


def _scattered(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(Q, K, ...) values (P, ...) at the P known places (Q, K), 0 elsewhere."""
    out = np.zeros((*known.shape, *values.shape[1:]), values.dtype)
    out[known] = values
    return out
