"""Customers who ask, look, click, give up and ask otherwise: rounds of query -> funnel -> clicks -> events.

Knows queries, grades, a click model and a search that is injected; knows nothing about arms or policies. What is wanted
comes from qrels, so whatever learns from the clicks can be compared with the truth.
Legend: R rounds of a batch, K positions, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from ltrr.feedback.clicks import ClickModel, attraction_of, simulate
from ltrr.feedback.events import Action, Impression, impressions_of
from ltrr.protocols import Arm
from ltrr.types import Candidates, Page, Qrels, Query


class Batch(NamedTuple):
    """What happened in some rounds. Pages of reformulated queries are rounds of their own, after the others."""

    queries: np.ndarray  # (R,) which query was asked
    page: Page
    grades: np.ndarray  # (R, K) of what was shown, NaN on pads
    clicks: np.ndarray  # (R, K) bool
    events: list[Impression | Action]


class Simulation:
    """Rounds on a data set with qrels.

    Args:
        search: the funnel's; asked for twice the page where entities arrive.
        queries: who may ask what; those without a customer get one of `num_customers`.
        qrels: what they want.
        ids: corpus row -> entity.
        model: how they look at a page.
        noise: P(click | looked at) of what is not relevant.
        k: length of a page.
        shares: (Q,) how often each query is asked; None = equally.
        reformulated: query id -> what a customer may ask next who clicked nothing.
        persistence: probability that they do.
        num_customers: of queries without one.
        arrivals: (N,) round in which each corpus row comes into being; None = all are there.
        drift: rounds after which a tenth of the queries trade what they want with each other; None = never.
        start: time of the first round, `pause` between rounds.
        seed: of everything drawn here.
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
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        pause: timedelta = timedelta(seconds=60),
        seed: int = 0,
    ) -> None:
        if not queries:
            raise ValueError("simulate: no queries to ask")
        self._search, self._ids = search, ids
        self._queries, self._model, self._noise, self._k = list(queries), model, noise, k
        self._shares = None if shares is None else shares / shares.sum()
        self._reformulated, self._persistence = dict(reformulated or {}), persistence
        self._num_customers, self._arrivals, self._drift = num_customers, arrivals, drift
        self._start, self._pause, self._seed = start, pause, seed
        self._rng = np.random.default_rng(seed)
        self._round = self._trades = 0
        row_of = {entity: row for row, entity in enumerate(ids)}
        self._wants = np.arange(len(self._queries))  # query -> whose qrels say what it wants
        judged = [
            (q, row_of[e], g) for q, query in enumerate(self._queries) for e, g in qrels[query.id].items() if g > 0
        ]
        keys = np.array([q << 32 | row for q, row, _ in judged], np.int64)
        order = np.argsort(keys)
        self._keys, self._grades = keys[order], np.array([g for *_, g in judged], np.float64)[order]
        self._highest = int(self._grades.max(initial=1))

    def rounds(self, num: int, batch: int = 256) -> Iterator[Batch]:
        """At least `num` rounds (a reformulation is one), in batches: what is learned from one is seen by the next."""
        end = self._round + num
        while self._round < end:
            asked = self._rng.choice(len(self._queries), min(batch, end - self._round), p=self._shares)
            while self._drift and self._round // self._drift > self._trades:
                self._trade()
            numbers = self._round + np.arange(len(asked))
            self._round += len(asked)
            who = zip(asked.tolist(), numbers.tolist(), strict=True)
            queries = [self._someone(self._queries[q], number) for q, number in who]
            first = self._play(asked, queries, numbers, 0)
            yield first
            failed = np.flatnonzero(~first.clicks.any(axis=1))
            wanted = [self._queries[q].id for q in self._wants[asked].tolist()]  # whose title they know
            again = [i for i in failed.tolist() if self._reformulated.get(wanted[i])]
            again = [i for i in again if self._rng.random() < self._persistence]
            if again:
                asks = [replace(queries[i], text=self._reformulated[wanted[i]]) for i in again]
                self._round += len(again)
                yield self._play(asked[again], asks, numbers[again], 1)

    def _play(self, asked: np.ndarray, queries: list[Query], sessions: np.ndarray, turn: int) -> Batch:
        page = self._search(queries, self._k if self._arrivals is None else 2 * self._k)
        page = self._arrived(page, int(sessions.max()))
        grades = self.grades(asked, page.shown.docs)
        attraction = attraction_of(grades, highest=self._highest, noise=self._noise)
        clicks = simulate(self._model, attraction, self._rng).clicks
        times = [self._start + self._pause * int(s) + timedelta(seconds=20 * turn) for s in sessions]
        names = [f"{self._seed}-{s}" for s in sessions.tolist()]
        page = page._replace(impressions=[f"{name}-{turn}" for name in names])
        seen = impressions_of(page, self._ids, times=times, sessions=names)
        actions = [
            Action(f"{seen[r].id}-{k}", seen[r].id, seen[r].shown[k], "click", times[r] + timedelta(seconds=2 + k))
            for r, k in np.argwhere(clicks).tolist()
        ]
        return Batch(asked, page, grades, clicks, [*seen, *actions])

    def grades(self, asked: np.ndarray, docs: np.ndarray) -> np.ndarray:
        """(R, K) grades of rows for the queries asked, as of now; NaN on pads."""
        wanted = self._wants[asked].astype(np.int64)[:, None] << 32 | np.maximum(docs, 0)
        at = np.minimum(np.searchsorted(self._keys, wanted), max(len(self._keys) - 1, 0))
        found = self._grades[at] * (self._keys[at] == wanted) if len(self._keys) else np.zeros(docs.shape)
        return np.where(docs >= 0, found, np.nan)

    def _someone(self, query: Query, number: int) -> Query:
        if query.context.customer is not None:
            return query
        customer = f"customer {np.random.default_rng([self._seed, int(number)]).integers(self._num_customers)}"
        return replace(query, context=replace(query.context, customer=customer))

    def _arrived(self, page: Page, now: int) -> Page:
        """The first K of a page that are there by now."""
        if self._arrivals is None:
            return page
        docs = page.shown.docs
        there = (docs >= 0) & (self._arrivals[np.maximum(docs, 0)] <= now)
        order = np.argsort(~there, axis=1, kind="stable")[:, : self._k]
        keep = np.take_along_axis(there, order, 1)
        shown = Candidates(
            np.where(keep, np.take_along_axis(docs, order, 1), -1),
            np.where(keep, np.take_along_axis(page.shown.scores, order, 1), -np.inf),
        )
        ranks = np.where(keep[:, :, None], np.take_along_axis(page.ranks, order[:, :, None], 1), np.nan)
        return page._replace(shown=shown, ranks=ranks)

    def _trade(self) -> None:
        self._trades += 1
        some = self._rng.choice(len(self._wants), max(2, len(self._wants) // 10), replace=False)
        self._wants[some] = self._wants[np.roll(some, 1)]


class Remembered:
    """An Arm that asks another once for each text and locale: for arms that no feedback changes.

    Of customers only those arms hear that know some (`customers`).
    """

    def __init__(self, arm: Arm, k: int) -> None:
        self._arm, self._k, self._who = arm, k, hasattr(arm, "customers")
        self._found: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k); ValueError where more is wanted than is kept."""
        if k > self._k:
            raise ValueError(f"k: {k} is more than the {self._k} that are kept")
        keys = [(q.text, q.context.customer if self._who else None, q.context.locale) for q in queries]
        new = {key: query for key, query in zip(keys, queries, strict=True) if key not in self._found}
        if new:
            found = self._arm.search(list(new.values()), self._k)
            self._found |= {key: (found.docs[i], found.scores[i]) for i, key in enumerate(new)}
        docs, scores = (np.stack([self._found[key][part] for key in keys]) for part in (0, 1))
        return Candidates(docs[:, :k], scores[:, :k])
