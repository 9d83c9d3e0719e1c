"""Counts shows and clicks of queries and candidates by cell, one event at a time: evidence for simulations.

Everybody's events count in full and for ever: trust, caps, decay and erasure are `Evidence`'s, which a service uses. A
test compares the two where those are off. Knows the rows of an event store; does not know who reads the counts.
Legend: Q queries, K candidates, P pairs of a query and a candidate, B cells and G groups of neighbours (`cells`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ltrr.feedback.events import normalised
from ltrr.feedback.evidence.cells import GROUPS, MOST, NUM, Shows, cells_of, clicks_on, group_of
from ltrr.types import ActionRow, ImpressionRow, Query

_COMPARED = 1_000  # texts compared with all at once
_ROOM = 8  # candidates of a query before its arrays grow


class _Shown:
    """What was shown for one query: corpus rows and counts that grow."""

    __slots__ = ("counts", "place", "rows")

    def __init__(self) -> None:
        self.place: dict[int, int] = {}  # corpus row -> its place below
        self.rows = np.full(_ROOM, -1, np.int64)
        self.counts = np.zeros((_ROOM, 1 + NUM), np.float32)  # clicks, and shows without one in each cell

    def places(self, rows: Sequence[int]) -> list[int]:
        """Places of corpus rows, which may be new."""
        for row in rows:
            if row not in self.place:
                at = self.place[row] = len(self.place)
                if at == len(self.rows):
                    self.rows = np.concatenate([self.rows, np.full(at, -1, np.int64)])
                    self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
                self.rows[at] = row
        return [self.place[row] for row in rows]


class Tally:
    """Shows and clicks by query, candidate and cell."""

    def __init__(self) -> None:
        self._of: dict[str, _Shown] = {}  # normalised query -> what was shown
        self.alike: Mapping[str, Sequence[tuple[str, float]]] = {}  # normalised query -> queries like it, similarities
        self._clicks = np.zeros(NUM)  # of all pairs
        self.shown = 0  # candidates, in all

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None:
        """Counts impressions, with those of their actions that come along; an action that comes later is lost."""
        clicked: dict[str, set[int]] = {}
        for action in actions:
            clicked.setdefault(action.impression, set()).add(action.row)
        for impression in impressions:
            rows = np.fromiter(impression.rows, np.int64, len(impression.rows))
            clicks = clicks_on(impression.rows, clicked.get(impression.id, ()))
            shown = self._of.get(impression.query)
            if shown is None:
                shown = self._of[impression.query] = _Shown()
            known = rows >= 0
            places = shown.places(rows[known].tolist())
            cells = cells_of(clicks)[known]
            shown.counts[places, np.where(clicks[known], 0, 1 + cells)] += 1
            np.add.at(self._clicks, cells[clicks[known]], 1)
            self.shown += len(places)

    def weigh(self, queries: Sequence[Query], rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(Q, K, W) sums of counts by weights, 0 for pairs that were never shown.

        rows: (Q, K) corpus rows, pad -1. weights: (W, 1 + B) of a click, and of a show without one in each cell.
        """
        out = np.zeros((*rows.shape, len(weights)))
        for q, query in enumerate(queries):
            if (shown := self._of.get(normalised(query.text))) is None:
                continue
            num = len(shown.place)
            place, found = _places(rows[q], shown.rows[:num])
            out[q, place] = shown.counts[:num][found] @ weights.T
        return out

    def near(self, queries: Sequence[Query], rows: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """(Q, K, G) log odds that the queries in `alike` have for candidates, by group of similarity."""
        out = np.zeros((*rows.shape, GROUPS))
        for q, query in enumerate(queries):
            near = [(self._of[text], s) for text, s in self.alike.get(normalised(query.text), ()) if text in self._of]
            if not near:
                continue
            nums = [len(shown.place) for shown, _ in near]
            theirs = np.concatenate([shown.rows[:num] for (shown, _), num in zip(near, nums, strict=True)])
            counts = np.concatenate([shown.counts[:num] for (shown, _), num in zip(near, nums, strict=True)])
            group = np.repeat(group_of(np.array([similarity for _, similarity in near])), nums)
            place, found = _places(rows[q], theirs)
            np.add.at(out[q], (place, group[found]), np.clip(counts[found] @ ratios, -MOST, MOST))
        return out

    def trusts(self, customer: str) -> bool:
        """Everybody's events count in full."""
        return True

    def shows(self) -> Shows:
        """All that was shown."""
        counts = np.concatenate([np.zeros((0, 1 + NUM)), *(s.counts[: len(s.place)] for s in self._of.values())])
        nums = [len(shown.place) for shown in self._of.values()]
        rows = [shown.rows[:num] for shown, num in zip(self._of.values(), nums, strict=True)]
        query = np.repeat(np.arange(len(nums)), nums)
        return Shows(
            counts[:, 0], counts[:, 1:], self._clicks, list(self._of), query, np.concatenate([np.zeros(0, int), *rows])
        )


def _places(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where `others` stand in `rows` (K,), of those that do, and which do."""
    order = np.argsort(rows)
    place = order[np.minimum(np.searchsorted(rows, others, sorter=order), len(rows) - 1)]
    found = np.flatnonzero(rows[place] == others)
    return place[found], found


def nearest(vectors: np.ndarray, num: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """(N, num or fewer) places and similarities of the most similar other vectors (N, D) of unit length."""
    some = min(num, len(vectors) - 1)
    places, similarities = [np.zeros((0, some), np.int64)], [np.zeros((0, some), np.float32)]
    for start in range(0, len(vectors), _COMPARED):
        similarity = vectors[start : start + _COMPARED] @ vectors.T
        each = np.arange(len(similarity))
        similarity[each, start + each] = -1.0
        best = np.argpartition(similarity, -max(some, 1), axis=1)[:, len(vectors) - some :]
        places.append(best)
        similarities.append(np.take_along_axis(similarity, best, 1))
    return np.concatenate(places), np.concatenate(similarities)
