"""Simulates customers who ask, look, click, give up and ask again: rounds of query -> page -> clicks -> events.

Knows queries, grades, a click model and a search that is injected; does not know arms or policies. Relevance comes from
qrels, so everything that learns from the clicks can be compared with the truth.
Legend: R rounds of a batch, K positions, Q queries, N documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from ltrr.feedback.clicks import ClickModel, attraction_of, simulate
from ltrr.feedback.events import Action, Impression, impressions_of
from ltrr.types import Candidates, Page, Qrels, Query

START, PAUSE = datetime(2026, 1, 1, tzinfo=UTC), timedelta(seconds=60)  # of the first round; between rounds


class Batch(NamedTuple):
    """One batch of rounds. Reformulated queries are rounds of their own, in a batch after the first."""

    queries: np.ndarray  # (R,) number of the query asked
    page: Page
    grades: np.ndarray  # (R, K) of the shown documents, NaN on pads
    clicks: np.ndarray  # (R, K) bool
    events: list[Impression | Action]


class Simulation:
    """Simulates rounds on a data set with qrels.

    Args:
        search: the funnel's; asked for twice the page where documents arrive.
        queries: Q queries to ask; a query without a customer gets one of `num_customers`.
        qrels: the documents that each query wants.
        ids: corpus row -> document id.
        model: how customers look at a page.
        noise: P(click | looked at) of an irrelevant document, within 0 and 1.
        k: length of a page.
        shares: (Q,) how often each query is asked; None = equally.
        reformulated: query id -> the text that a customer may ask next after no click.
        persistence: probability of asking again, within 0 and 1.
        num_customers: customers that are drawn for queries without one.
        arrivals: (N,) round in which each document arrives; None = all are there from the start.
        drift: after this many rounds a tenth of the queries exchange their wanted documents; None or 0 = never.
        seed: of all draws.

    Errors: ValueError that names the argument.
    """

    def __init__(
        self,
        search: Callable[[Sequence[Query], int], Page],
        queries: Sequence[Query],
        qrels: Qrels,
        ids: Sequence[str],
        *,
        model: ClickModel,
        noise: float = 0.1,
        k: int = 10,
        shares: np.ndarray | None = None,
        reformulated: Mapping[str, str] | None = None,
        persistence: float = 0.5,
        num_customers: int = 1000,
        arrivals: np.ndarray | None = None,
        drift: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value, good, fix in (
            ("queries", queries, len(queries) > 0, "there are no queries to ask"),
            ("noise", noise, 0 <= noise <= 1, "is not within 0 and 1"),
            ("k", k, k >= 1, "is below 1"),
            ("persistence", persistence, 0 <= persistence <= 1, "is not within 0 and 1"),
            ("num_customers", num_customers, num_customers >= 1, "is below 1"),
            ("drift", drift, (drift or 0) >= 0, "is below 0"),
        ):
            if not good:
                raise ValueError(f"simulation: {name}: {value} {fix}")
        for name, numbers, num in (("shares", shares, len(queries)), ("arrivals", arrivals, len(ids))):
            if numbers is not None and len(numbers) != num:
                raise ValueError(f"simulation: {name}: has {len(numbers)} numbers and needs {num}")
        self._search, self._ids = search, ids
        self._queries, self._model, self._noise, self._k = list(queries), model, noise, k
        self._shares = None if shares is None else shares / shares.sum()
        self._reformulated, self._persistence = dict(reformulated or {}), persistence
        self._num_customers, self._arrivals, self._drift = num_customers, arrivals, drift
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self._round = self._trades = 0
        row_of = {document: row for row, document in enumerate(ids)}
        self._wants = np.arange(len(self._queries))  # query -> the query whose qrels it wants
        judged = [
            (q, row_of[d], grade)
            for q, query in enumerate(self._queries)
            for d, grade in qrels[query.id].items()
            if grade > 0
        ]
        keys = np.array([q << 32 | row for q, row, _ in judged], np.int64)
        order = np.argsort(keys)
        self._keys, self._grades = keys[order], np.array([grade for *_, grade in judged], np.float64)[order]
        self._highest = int(self._grades.max(initial=1))

    def rounds(self, num: int, batch: int = 256) -> Iterator[Batch]:
        """Yields at least `num` rounds in batches; whoever learns from a batch can change the next one's pages.

        A reformulation counts as a round.
        """
        end = self._round + num
        while self._round < end:
            # 1) Draw who asks which query.
            asked = self._rng.choice(len(self._queries), min(batch, end - self._round), p=self._shares)
            while self._drift and self._round // self._drift > self._trades:
                self._trade()
            numbers = self._round + np.arange(len(asked))
            self._round += len(asked)
            pairs = zip(asked.tolist(), numbers.tolist(), strict=True)
            queries = [self._with_customer(self._queries[q], number) for q, number in pairs]
            first = self._play(asked, queries, numbers, 0)
            yield first
            # 2) Some of those who clicked nothing ask again, in words that they know.
            failed = np.flatnonzero(~first.clicks.any(axis=1))
            wanted = [self._queries[q].id for q in self._wants[asked].tolist()]
            again = [i for i in failed.tolist() if self._reformulated.get(wanted[i])]
            again = [i for i in again if self._rng.random() < self._persistence]
            if again:
                second = [replace(queries[i], text=self._reformulated[wanted[i]]) for i in again]
                self._round += len(again)
                yield self._play(asked[again], second, numbers[again], 1)

    def _play(self, asked: np.ndarray, queries: list[Query], sessions: np.ndarray, turn: int) -> Batch:
        page = self._search(queries, self._k if self._arrivals is None else 2 * self._k)
        page = self._arrived(page, int(sessions.max()))
        grades = self.grades(asked, page.shown.docs)
        attraction = attraction_of(grades, highest=self._highest, noise=self._noise)
        clicks = simulate(self._model, attraction, self._rng).clicks
        times = [START + PAUSE * int(s) + timedelta(seconds=20 * turn) for s in sessions]
        names = [f"{self._seed}-{s}" for s in sessions.tolist()]
        page = page._replace(impressions=[f"{name}-{turn}" for name in names])
        impressions = impressions_of(page, self._ids, times=times, sessions=names)
        actions = []
        for r, k in np.argwhere(clicks).tolist():
            impression, time = impressions[r], times[r] + timedelta(seconds=2 + k)
            actions.append(Action(f"{impression.id}-{k}", impression.id, impression.shown[k], "click", time))
        return Batch(asked, page, grades, clicks, [*impressions, *actions])

    def grades(self, asked: np.ndarray, docs: np.ndarray) -> np.ndarray:
        """(R, K) present grades of rows for the queries asked; NaN on pads."""
        wanted = self._wants[asked].astype(np.int64)[:, None] << 32 | np.maximum(docs, 0)
        at = np.minimum(np.searchsorted(self._keys, wanted), max(len(self._keys) - 1, 0))
        grades = self._grades[at] * (self._keys[at] == wanted) if len(self._keys) else np.zeros(docs.shape)
        return np.where(docs >= 0, grades, np.nan)

    def _with_customer(self, query: Query, number: int) -> Query:
        if query.context.customer is not None:
            return query
        customer = f"customer {np.random.default_rng([self._seed, int(number)]).integers(self._num_customers)}"
        return replace(query, context=replace(query.context, customer=customer))

    def _arrived(self, page: Page, now: int) -> Page:
        """The first K documents of a page that have arrived by now."""
        if self._arrivals is None:
            return page
        shown, order, keep = first_arrived(page.shown, self._arrivals, now, self._k)
        ranks = np.where(keep[:, :, None], np.take_along_axis(page.ranks, order[:, :, None], 1), np.nan)
        return page._replace(shown=shown, ranks=ranks)

    def _trade(self) -> None:
        self._trades += 1
        some = self._rng.choice(len(self._wants), max(2, len(self._wants) // 10), replace=False)
        self._wants[some] = self._wants[np.roll(some, 1)]


def first_arrived(
    candidates: Candidates, arrivals: np.ndarray, now: float, k: int
) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """The first k candidates that have arrived by round `now`: (R, k) each, their places before, and whether they are.

    arrivals: (N,) round of each document.
    """
    docs, scores = candidates
    present = (docs >= 0) & (arrivals[np.maximum(docs, 0)] <= now)
    order = np.argsort(~present, axis=1, kind="stable")[:, :k]
    docs, scores, keep = (np.take_along_axis(part, order, 1) for part in (docs, scores, present))
    return Candidates(np.where(keep, docs, -1), np.where(keep, scores, -np.inf)), order, keep
