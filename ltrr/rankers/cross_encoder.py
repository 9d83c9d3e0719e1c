"""Ranks the first candidates of a pool with a cross-encoder, whose scores are interpolated with the fused scores.

Knows pools, documents' texts and a scorer of pairs; does not know how the scorer computes its scores.
Legend: Q queries, K candidates of the pool, C candidates that are scored (at most `depth`), P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltrr.data.beir import Corpus, document_text
from ltrr.metrics import evaluate, to_run
from ltrr.protocols import Ranker, Scorer
from ltrr.types import Candidates, Pool, Qrels, Query, top_k

GRID = tuple(i / 10 for i in range(11))  # weights that `fit_weight` tries
MEASURE = "nDCG@10"


class CrossEncoderRanker:
    """Reranks the first candidates in fused order with a cross-encoder (Nogueira & Cho 2019); the others follow.

    The score is weight · z(cross-encoder) + (1 − weight) · z(fused), z standardised over a query's scored candidates.

    Args:
        scorer: scores pairs of query and document texts.
        corpus: maps rows to documents.
        order: ranker that computes the fused scores.
        depth: number of candidates to score, ≥ 1.
        weight: of the cross-encoder, 0 (fused order) to 1 (cross-encoder only); if omitted, fitted on tuning queries.
        text_fields: metadata fields whose values are read after title and text; null = all text and keyword fields.
    """

    def __init__(
        self,
        scorer: Scorer,
        corpus: Corpus,
        order: Ranker,
        *,
        depth: int = 50,
        weight: float = 1.0,
        text_fields: Sequence[str] | None = None,
    ) -> None:
        if depth < 1:
            raise ValueError(f"ranker.depth: {depth} is below 1; at least one candidate must be scored")
        if not 0 <= weight <= 1:
            raise ValueError(f"ranker.weight: {weight} is not within 0 (fused order) and 1 (the cross-encoder's)")
        self._scorer, self._corpus, self._order = scorer, corpus, order
        self._depth, self._weight = depth, weight
        self._fields = corpus.word_fields(text_fields)

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        """Ranks all candidates of the pool, (Q, K)."""
        return self.rank_and_alone(queries, pool)[0]

    def rank_and_alone(self, queries: Sequence[Query], pool: Pool) -> tuple[Candidates, Candidates]:
        """Ranks the pool, (Q, K), with the weight and also with weight 1; pairs are scored once for both."""
        fused = self._order.rank(queries, pool)
        cross = self.score(queries, fused)
        return interpolate(fused, cross, self._weight), interpolate(fused, cross, 1.0)

    def tune_on(self, queries: Sequence[Query], pool: Pool, qrels: Qrels) -> dict[str, float]:
        """Finds the weight with the highest nDCG@10 on these queries; every pair is scored once."""
        fused = self._order.rank(queries, pool)
        ids = [query.id for query in queries]
        return {"weight": fit_weight(fused, self.score(queries, fused), ids, self._corpus.ids, qrels)}

    def score(self, queries: Sequence[Query], fused: Candidates) -> np.ndarray:
        """Scores the first candidates with the cross-encoder, (Q, C) float64, NaN for pads."""
        docs = fused.docs[:, : self._depth]
        query, place = np.nonzero(docs >= 0)  # (P,)
        rows = docs[query, place].tolist()
        texts = {row: document_text(self._corpus[row], self._fields) for row in set(rows)}
        out = np.full(docs.shape, np.nan)
        if rows:
            asked = [queries[q].text for q in query.tolist()]
            out[query, place] = self._scorer.score(asked, [texts[row] for row in rows])
        return out


def interpolate(fused: Candidates, cross: np.ndarray, weight: float) -> Candidates:
    """Sorts the first C candidates by weight · z(cross) + (1 − weight) · z(fused); the others follow in fused order.

    fused (Q, K), best first; cross (Q, C), NaN for pads. Returns (Q, K).
    """
    depth = cross.shape[1]
    pad = fused.docs < 0
    first = np.where(pad, np.nan, fused.scores.astype(np.float64))[:, :depth]
    mixed = weight * _standardised(cross) + (1 - weight) * _standardised(first)  # (Q, C)
    lowest = np.where(pad[:, :depth], 0.0, mixed).min(axis=1, initial=0.0)
    deeper = lowest[:, None] - 1.0 - np.arange(fused.docs.shape[1] - depth)  # (Q, K − C)
    scores = np.where(pad, -np.inf, np.concatenate([mixed, deeper], axis=1))
    return top_k(fused.docs, scores.astype(np.float32), fused.docs.shape[1])


def _standardised(x: np.ndarray) -> np.ndarray:
    """Standardises each row, (x − mean) / deviation, ignoring NaN; a row of equal values becomes 0."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    centred = np.where(known, x, 0.0)
    centred = np.where(known, x - centred.sum(axis=1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    flat = deviation <= 1e-9 * np.abs(np.where(known, x, 0.0)).max(axis=1, keepdims=True, initial=0.0)
    return np.where(flat, 0.0, centred / np.where(flat, 1.0, deviation))


def fit_weight(
    fused: Candidates, cross: np.ndarray, query_ids: Sequence[str], doc_ids: Sequence[str], qrels: Qrels
) -> float:
    """Finds the weight of GRID with the highest mean nDCG@10; ties go to the weight nearest to .5.

    fused (Q, K), cross (Q, C): as for `interpolate`; doc_ids[row] is the id of a corpus row. Raises ValueError if no
    query has a positive.
    """
    judged = {query: qrels[query] for query in query_ids}

    def quality(weight: float) -> tuple[float, float]:
        run = to_run(query_ids, interpolate(fused, cross, weight).first(10), doc_ids)
        return round(evaluate(run, judged, [MEASURE]).mean()[MEASURE], 6), -abs(weight - 0.5)

    return max(GRID, key=quality)
