"""Array types that every part of the system speaks.

Knows shapes and orders; does not know files, engines, models or string document ids (numpy and the standard library
only). Legend: Q queries, K candidates, A arms, F context features, B texts, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Self

import numpy as np

Run = dict[str, dict[str, float]]  # query id -> document id -> score
Qrels = dict[str, dict[str, int]]  # query id -> document id -> grade, 0 = judged and not relevant


@dataclass(frozen=True, slots=True)
class Context:
    """Who asks, where and when. Every field may be unknown (None); `attributes` holds what a config named."""

    customer: str | None = None
    locale: str | None = None
    time: datetime | None = None
    device: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Query:
    """One request: an id (unique in its set), the text as typed, and its context."""

    id: str
    text: str
    context: Context = Context()


class Candidates(NamedTuple):
    """What a generator or ranker returns, sorted by score (descending), ties by row (ascending)."""

    docs: np.ndarray  # (Q, K) int32 corpus rows, pad -1
    scores: np.ndarray  # (Q, K) float32, pad -inf

    @classmethod
    def empty(cls, num_queries: int, k: int) -> Self:
        """(Q, K) of padding."""
        return cls(np.full((num_queries, k), -1, np.int32), np.full((num_queries, k), -np.inf, np.float32))

    @classmethod
    def from_lists(cls, docs: Sequence[np.ndarray], scores: Sequence[np.ndarray], k: int) -> Self:
        """Pads ragged, unsorted results (one array of unique rows and one of scores a query) to (Q, k)."""
        lengths = np.fromiter((len(d) for d in docs), np.int64, len(docs))
        out = cls.empty(len(docs), max(k, int(lengths.max(initial=0))))
        filled = np.arange(out.docs.shape[1]) < lengths[:, None]  # (Q, W)
        if lengths.sum():
            out.docs[filled] = np.concatenate(docs)
            out.scores[filled] = np.concatenate(scores)
        return cls(*top_k(out.docs, out.scores, k))

    def first(self, k: int) -> Self:
        """The first k of every query, (Q, k or fewer)."""
        return type(self)(self.docs[:, :k], self.scores[:, :k])

    def cut(self, depths: np.ndarray) -> Self:
        """The first `depths[q]` candidates of each query, (Q, max depth); a smaller K stays as it is."""
        width = min(int(depths.max(initial=0)), self.docs.shape[1])
        keep = np.arange(width) < depths[:, None]  # (Q, W)
        return type(self)(np.where(keep, self.docs[:, :width], -1), np.where(keep, self.scores[:, :width], -np.inf))


def top_k(docs: np.ndarray, scores: np.ndarray, k: int) -> Candidates:
    """The k best of (Q, W) unsorted rows, pad -1, as Candidates (Q, k); narrower input is padded."""
    if docs.shape[1] > 4 * k:  # a tie at the k-th score is broken by row: widen until it is inside
        kth = np.partition(scores, docs.shape[1] - k, axis=1)[:, docs.shape[1] - k]
        width = max(k, int((scores >= kth[:, None]).sum(axis=1).max(initial=0)))
        if width < docs.shape[1]:
            part = np.argpartition(-scores, width - 1, axis=1)[:, :width]
            docs, scores = np.take_along_axis(docs, part, 1), np.take_along_axis(scores, part, 1)
    order = np.lexsort((docs.astype(np.uint32), -scores), axis=1)[:, :k]  # the pad -1 is the largest uint32
    out = Candidates.empty(len(docs), k)
    out.docs[:, : order.shape[1]] = np.take_along_axis(docs, order, 1)
    out.scores[:, : order.shape[1]] = np.take_along_axis(scores, order, 1)
    return out


class Sparse(NamedTuple):
    """A batch of B sparse vectors: row i is terms[ptr[i]:ptr[i + 1]] with values likewise."""

    ptr: np.ndarray  # (B + 1,) int64
    terms: np.ndarray  # (T,) uint32
    values: np.ndarray  # (T,) float32

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Terms and values of row i."""
        return self.terms[self.ptr[i] : self.ptr[i + 1]], self.values[self.ptr[i] : self.ptr[i + 1]]


class Pool(NamedTuple):
    """The union of the arms' candidates and who returned what. A pad row (-1) is NaN in every arm."""

    arms: tuple[str, ...]  # A names, the order of the last axis
    docs: np.ndarray  # (Q, K) int32, unique in a row, pad -1
    ranks: np.ndarray  # (Q, K, A) float32, 0 = first, NaN = that arm did not return it
    scores: np.ndarray  # (Q, K, A) float32, NaN likewise


class Decision(NamedTuple):
    """How deep each arm is drawn and how many candidates are ranked, with the probability of having chosen so.

    A policy may also explore one candidate of each query at a reserved place of the page, whatever the ranker says. Its
    propensity is that of what happened at that place, given the depths and the cut: of this candidate being explored,
    or of none.
    """

    depths: np.ndarray  # (Q, A) int32, 0 = the arm is not run
    cut: np.ndarray  # (Q,) int32 candidates of the fused union that go to the ranker
    propensity: np.ndarray  # (Q,) in (0, 1], of the whole decision
    marginals: np.ndarray  # (Q, A + 1) in (0, 1], of each arm's depth and, last, of the cut
    prices: Mapping[str, float] | None = None  # λ of what a budget holds for, while this was decided
    explored: np.ndarray | None = None  # (Q,) int32 corpus row that is explored, -1 = none; None = of all queries
    explored_place: np.ndarray | None = None  # (Q,) int32 its place on the page, 0 = first, -1 = none
    explored_propensity: np.ndarray | None = None  # (Q,) in (0, 1]


class Revised(NamedTuple):
    """What a policy decides when it has seen the union of the arms' candidates."""

    features: np.ndarray  # (Q, F or more) all that it looked at, to be logged
    decision: Decision
    order: Candidates | None = None  # (Q, K) all candidates in the policy's own order; None = in fused order


class Worth(NamedTuple):
    """What candidates are worth, in the order in which a policy would keep them."""

    worth: np.ndarray  # (Q, M), never rising; -inf on pads
    order: np.ndarray | None = None  # (Q, M) their places in the pool; None = the first M as they stand
    values: np.ndarray | None = None  # (Q, M) scores of that order, never rising


class Page(NamedTuple):
    """What was shown, and all that is needed to learn from it."""

    impressions: list[str]  # Q ids made here
    queries: Sequence[Query]
    features: np.ndarray  # (Q, F) context features the policy saw
    decision: Decision
    shown: Candidates  # (Q, k or fewer)
    arms: tuple[str, ...]
    ranks: np.ndarray  # (Q, k, A) rank at which each arm returned the shown candidate, NaN = it did not

    def returned_by(self, query: int, position: int) -> list[str]:
        """Names of the arms that returned the candidate shown at this position."""
        return [a for a, rank in zip(self.arms, self.ranks[query, position], strict=True) if not np.isnan(rank)]


class ImpressionRow(NamedTuple):
    """What a learner needs of an impression, as an event store gives it. Times are microseconds since 1970."""

    id: str
    session: str
    customer: str  # "" = unknown
    time: int
    query: str  # normalised
    rows: Sequence[int]  # shown, best first; -1 = not in the corpus
    arms: Sequence[str] = ()  # names; () = who returned the candidates is unknown
    returned_by: Sequence[int] = ()  # for each shown candidate: bit a is set if arm a returned it


class ActionRow(NamedTuple):
    """What a learner needs of an action on a shown entity."""

    id: str
    impression: str
    row: int  # -1 = not in the corpus
    kind: str
    time: int
    seconds: float | None  # played


class RetrievalFeatures(NamedTuple):
    """Features of Q queries and of the M first candidates of each, after retrieval."""

    query: np.ndarray  # (Q, F) float32, NaN = unknown
    candidates: np.ndarray  # (Q, M, C) float32, 0 beyond the union's end


class Rounds(NamedTuple):
    """R logged rounds of a policy, over U queries as they were known after retrieval (M candidates in fused order)."""

    row: np.ndarray  # (R,) which of the U
    query: np.ndarray  # (U, F) float32 features, NaN = unknown
    candidates: np.ndarray  # (U, M, C) float32 features
    cut: np.ndarray  # (R,) candidates let through, at most M
    clicks: np.ndarray  # (R, M) bool; False where it was not shown and nothing is known
    names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # of the F and of the C
    place: np.ndarray | None = None  # (R, M) of each on the page, 0 = first, -1 = not on it; None = fused order to cut
    depths: np.ndarray | None = None  # (A,) candidates that each arm drew in every round; None = not always the same

    def some(self, which: slice | np.ndarray) -> Self:
        """The rounds at these places of R."""
        place = None if self.place is None else self.place[which]
        return self._replace(row=self.row[which], cut=self.cut[which], clicks=self.clicks[which], place=place)

    def first(self, num: int) -> Self:
        """The first rounds."""
        return self.some(slice(num))

    @property
    def places(self) -> np.ndarray:
        """(R, M) int16 `place`, also where the page was the fused order up to the cut."""
        if self.place is not None:
            return self.place
        at = np.arange(self.clicks.shape[1], dtype=np.int16)
        return np.where(at < self.cut[:, None], at, np.int16(-1))


class Example(NamedTuple):
    """One training query and its N documents."""

    id: str  # query id; "title:<document id>" or "generated:<document id>:<n>" for pairs made here
    query: str
    documents: list[str]  # N texts, a positive first
    rows: list[int]  # N corpus rows
    grades: list[float]  # N, 0 = not relevant or not judged
    teacher: list[float]  # N scores, NaN = none given
    positives: frozenset[int]  # rows of all known positives of this query


class DevSet(NamedTuple):
    """What validation ranks: the one validation batch."""

    ids: list[str]  # Q query ids
    queries: list[str]  # Q texts
    qrels: Qrels  # of documents below
    doc_ids: list[str]  # N ids of a sampled corpus, in which all positives are
    documents: list[str]  # N texts
    candidates: list[np.ndarray]  # Q arrays of places in `documents`, for models that score pairs

    def run(self, scores: Sequence[np.ndarray]) -> Run:
        """Scores of every query's candidates as a Run."""
        return {
            query: {self.doc_ids[place]: float(s) for place, s in zip(places, row, strict=True)}
            for query, places, row in zip(self.ids, self.candidates, scores, strict=True)
        }
