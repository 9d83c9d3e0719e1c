"""Unites the arms' candidates into a pool and orders it without learning from clicks: reciprocal ranks, weighted sums.

Knows candidates, ranks and scores; knows nothing about query texts, documents or how arms work.
Legend: Q queries, K candidates of the union, A arms, F features, W columns of all arms' lists, I weighted lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.optimize import minimize

from ltrr.protocols import Ranker
from ltrr.types import Candidates, Pool, Query, top_k

Norm = Literal["minmax", "zscore"]
MISSING = 1e-4  # a candidate that the arm did not return gets the window's lowest value less this
WINDOW = 100  # first ranks of an arm that set its scale, so that drawing deeper does not change it


def union(arms: Mapping[str, Candidates]) -> Pool:
    """Unites candidates: each document once, with each arm's rank and score (rows ascending, pads last, K ≥ 1)."""
    names, drawn = tuple(arms), list(arms.values())
    docs = np.concatenate([c.docs for c in drawn], axis=1)  # (Q, W)
    scores = np.concatenate([c.scores for c in drawn], axis=1)
    widths = [c.docs.shape[1] for c in drawn]
    rank, source = np.concatenate([np.arange(w) for w in widths]), np.repeat(np.arange(len(drawn)), widths)  # (W,)
    # 1) Sort row << 32 | column within each query, so that equal rows are neighbours and pads come last.
    keys = docs.astype(np.uint32).astype(np.uint64) << np.uint64(32) | np.arange(docs.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    column, row = (keys & np.uint64(0xFFFFFFFF)).astype(np.int32), (keys >> np.uint64(32)).astype(np.uint32)
    # 2) Number the distinct rows of each query.
    real, first = row < np.uint32(0xFFFFFFFF), np.ones(row.shape, bool)
    first[:, 1:] = row[:, 1:] != row[:, :-1]
    slot = np.cumsum(first, axis=1, dtype=np.int32) - 1  # (Q, W)
    shape = (len(docs), int((first & real).sum(axis=1).max(initial=1)))  # K ≥ 1: scaling needs a column
    # 3) Store each arm's rank and score in the slot of its row.
    query, at = np.nonzero(real)
    place, column = slot[query, at], column[query, at]
    pool = Pool(
        names,
        np.full(shape, -1, np.int32),
        np.full((*shape, len(names)), np.nan, np.float32),
        np.full((*shape, len(names)), np.nan, np.float32),
    )
    pool.docs[query, place] = row[query, at]
    pool.ranks[query, place, source[column]] = rank[column]
    pool.scores[query, place, source[column]] = scores[query, column]
    return pool


def take(pool: Pool, chosen: Candidates) -> Pool:
    """The pool restricted to the chosen candidates, in their order.

    A pad, and a candidate that is not in the pool, is NaN in every arm.
    """
    if not pool.docs.size:
        shape = (*chosen.docs.shape, len(pool.arms))
        return Pool(pool.arms, chosen.docs, np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32))
    query = np.arange(len(pool.docs), dtype=np.uint64)[:, None] << np.uint64(32)
    keys, wanted = (query | docs.astype(np.uint32) for docs in (pool.docs, chosen.docs))  # (Q, K), (Q, k); pads last
    place = np.arange(keys.size).reshape(keys.shape)
    if (keys[:, 1:] < keys[:, :-1]).any():  # a union's rows are ascending; other pools are sorted first
        order = np.argsort(keys, axis=1)
        keys, place = np.take_along_axis(keys, order, 1), np.take_along_axis(place, order, 1)
    at = np.minimum(np.searchsorted(keys.ravel(), wanted), keys.size - 1)  # (Q, k)
    absent = ((chosen.docs < 0) | (keys.ravel()[at] != wanted))[:, :, None]
    flat = place.ravel()[at]
    ranks, scores = (part.reshape(keys.size, -1)[flat] for part in (pool.ranks, pool.scores))  # (Q, k, A)
    return Pool(pool.arms, chosen.docs, np.where(absent, np.nan, ranks), np.where(absent, np.nan, scores))


def reciprocal_ranks(pool: Pool, k: float = 60.0) -> np.ndarray:
    """Reciprocal rank fusion (Q, K): Σ_a 1 / (k + rank_a), ranks from 1 (Cormack et al. 2009)."""
    return np.nansum(1.0 / (k + 1.0 + pool.ranks), axis=2)


def scale(pool: Pool, norm: Norm) -> np.ndarray:
    """Scales each arm's scores over its first WINDOW ranks so that arms are comparable: (Q, K, A), never NaN.

    minmax maps the best to 1 and the window's last to 0; zscore is (s − mean) / deviation over the window (Bruch et al.
    2023 compare them). If all scores of the window are equal, they become 1. Deeper candidates lie less than MISSING
    below the window's lowest value, in their order; candidates that the arm did not return lie MISSING below it. So
    these values do not depend on the depth to which an arm is drawn. An arm that returned nothing is 0 everywhere.
    """
    returned, inside = ~np.isnan(pool.scores), pool.ranks < WINDOW  # (Q, K, A)
    silent = ~returned.any(axis=1, keepdims=True)  # (Q, 1, A)
    low = np.where(inside, pool.scores, np.inf).min(axis=1, keepdims=True)
    high = np.where(inside, pool.scores, -np.inf).max(axis=1, keepdims=True)
    flat = silent | (high - low <= 1e-6 * np.maximum(np.abs(high), np.abs(low)))
    if norm == "minmax":
        centre, width = low, high - low
    else:
        count = np.maximum(inside.sum(axis=1, keepdims=True), 1)
        centre = np.where(inside, pool.scores, 0.0).sum(axis=1, keepdims=True) / count
        squares = np.where(inside, (pool.scores - np.where(silent, 0.0, centre)) ** 2, 0.0)
        width = np.sqrt(squares.sum(axis=1, keepdims=True) / count)
    centre, low, width = (np.where(flat, fill, x) for x, fill in ((centre, 0.0), (low, 0.0), (width, 1.0)))
    floor = np.where(flat, 0.0, (low - centre) / width)
    scaled = np.where(flat, 1.0, (pool.scores - centre) / width)
    below = np.maximum(floor - np.where(flat, -pool.ranks, scaled), 0.0)  # distance of deeper candidates
    deeper = floor - MISSING * below / (1.0 + below)
    return np.where(silent, 0.0, np.where(inside, scaled, np.where(returned, deeper, floor - MISSING)))


def weighted_sum(lists: Candidates, owner: np.ndarray, weights: np.ndarray, num_queries: int, k: int) -> Candidates:
    """Merges lists (I, k) into (Q, k) by weighted sums of scores; owner (I,): query of each list, weights (I,)."""
    line, column = np.nonzero((lists.docs >= 0) & (weights > 0)[:, None])
    keys = owner[line].astype(np.int64) << 32 | lists.docs[line, column]
    unique, inverse = np.unique(keys, return_inverse=True)
    scores = np.bincount(inverse, weights[line] * lists.scores[line, column], len(unique))
    cuts = np.searchsorted(unique >> 32, np.arange(num_queries + 1))
    docs = (unique & 0xFFFFFFFF).astype(np.int32)
    pieces = [slice(a, b) for a, b in pairwise(cuts)]
    return Candidates.from_lists([docs[p] for p in pieces], [scores[p].astype(np.float32) for p in pieces], k)


class NothingToFit(ValueError):
    """Raised by a fit if no query has a relevant candidate."""


def fit_listwise(
    features: np.ndarray, grades: np.ndarray, mask: np.ndarray, l2: float = 1e-3
) -> tuple[np.ndarray, float]:
    """Fits non-negative weights of a linear score by listwise softmax cross-entropy (ListNet, Cao et al. 2007).

    Args:
        features: (Q, K, F), any finite scale.
        grades: (Q, K) ≥ 0; targets are grades / Σ grades, and queries with only 0 are ignored.
        mask: (Q, K), true for candidates, false for pads.
        l2: penalty on the squared weights.

    Returns:
        weights (F,) and the mean loss in nats, penalty included. Raises NothingToFit if no query has a grade above 0.
    """
    useful = (grades * mask).sum(axis=1) > 0
    features, grades, mask = features[useful], (grades * mask)[useful], mask[useful]
    if not len(features):
        raise NothingToFit("no query has a relevant candidate: weights cannot be fitted; give them in the config")
    target = grades / grades.sum(axis=1, keepdims=True)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = np.where(mask, features @ weights, -np.inf)
        logits = logits - logits.max(axis=1, keepdims=True)
        partition = np.exp(logits).sum(axis=1, keepdims=True)
        error = np.exp(logits) / partition - target  # (Q, K)
        value = -(target * np.where(mask, logits - np.log(partition), 0.0)).sum() / len(features)
        gradient = np.einsum("qk,qkf->f", error, features) / len(features)
        return value + l2 * weights @ weights, gradient + 2 * l2 * weights

    start = np.full(features.shape[2], 0.5)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start))
    return best.x, float(best.fun)


class ReciprocalRankFusion:
    """A Ranker: orders the pool by Σ 1 / (k + rank)."""

    def __init__(self, k: float = 60.0):
        self.k = k

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        """Orders all candidates of the pool, (Q, K)."""
        return _order(pool, reciprocal_ranks(pool, self.k))


class OnlyArms:
    """A Ranker that reads only some arms; candidates that none of them returned come last."""

    def __init__(self, arms: Sequence[str], ranker: Ranker):
        self._arms, self._ranker = tuple(arms), ranker

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        """Orders all candidates of the pool, (Q, K)."""
        keep = [pool.arms.index(arm) for arm in self._arms]
        only = Pool(self._arms, pool.docs, pool.ranks[:, :, keep], pool.scores[:, :, keep])
        return self._ranker.rank(queries, only)


class ConvexFusion:
    """A Ranker: orders the pool by a weighted sum of scaled scores; weights by arm, absent = 0.

    unscaled: arms whose scores are probabilities and are added as they are. Scaling would turn a single doubtful
        candidate of an arm into a best one.
    """

    def __init__(self, weights: Mapping[str, float], norm: Norm = "minmax", unscaled: Sequence[str] = ()):
        self.weights, self.unscaled = dict(weights), tuple(unscaled)
        self.norm: Norm = norm

    @classmethod
    def fit(cls, pool: Pool, grades: np.ndarray, arms: Sequence[str]) -> tuple[ConvexFusion, float]:
        """Fits weights (sum 1) under both norms, keeps the lower listwise loss; grades (Q, K) of the candidates."""
        fits: list[tuple[float, ConvexFusion]] = []
        keep = [pool.arms.index(arm) for arm in arms]
        norms: tuple[Norm, ...] = ("minmax", "zscore")
        for norm in norms:
            weights, loss = fit_listwise(scale(pool, norm)[:, :, keep], grades, pool.docs >= 0)
            total = max(float(weights.sum()), 1e-9)
            fits.append((loss, cls({a: float(w) / total for a, w in zip(arms, weights, strict=True)}, norm)))
        loss, best = min(fits, key=lambda fit: fit[0])
        return best, loss

    @classmethod
    def equal(cls, arms: Sequence[str]) -> ConvexFusion:
        """Equal weights of standardised scores, for where nothing is judged (docs/results/fusion.md)."""
        return cls(dict.fromkeys(arms, 1 / len(arms)), "zscore")

    @classmethod
    def choose(
        cls, pool: Pool, grades: np.ndarray, arms: Sequence[str], halves: np.ndarray, ranked: int | None = None
    ) -> tuple[ConvexFusion, str]:
        """Fits weights, and refuses them where equal weights or one arm alone do better on queries that did not fit.

        Args:
            pool: with grades (Q, K) ≥ 0 of its candidates.
            halves: (Q,) bool; what one half fits is judged on the other.
            ranked: candidates that a ranker gets, which are judged by recall; None = the order is the page, nDCG@10.

        Returns: the fusion, and why it is not the fitted one ("" = it is). Raises NothingToFit if a half has no query
        with a relevant candidate.
        """
        others = {"equal weights": cls.equal(arms)}
        others |= {f"{arm} alone": cls({arm: 1.0}) for arm in arms}
        reached = {name: np.zeros(len(grades)) for name in ("fitted", *others)}
        for half in (halves, ~halves):
            one, other = _some(pool, ~half), _some(pool, half)
            fusions = {"fitted": cls.fit(one, grades[~half], arms)[0], **others}
            for name, fusion in fusions.items():
                reached[name][half] = _quality(fusion.scores(other), other, grades[half], ranked)
        means = {name: float(values.mean()) for name, values in reached.items()}
        best = max(others, key=lambda name: means[name])
        if means["fitted"] >= means[best]:
            return cls.fit(pool, grades, arms)[0], ""
        measure = "nDCG@10" if ranked is None else f"recall of {ranked}"
        return others[best], f"{best}, {measure} {means[best]:.4f}; fitted weights reach {means['fitted']:.4f}"

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        """Orders all candidates of the pool, (Q, K)."""
        return _order(pool, self.scores(pool))

    def scores(self, pool: Pool) -> np.ndarray:
        """(Q, K) fused scores."""
        weights = np.array([self.weights.get(arm, 0.0) for arm in pool.arms])
        scores = scale(pool, self.norm)
        for arm in self.unscaled:
            a = pool.arms.index(arm)
            scores[:, :, a] = np.nan_to_num(pool.scores[:, :, a])
        return scores @ weights


def _order(pool: Pool, scores: np.ndarray) -> Candidates:
    return top_k(pool.docs, np.where(pool.docs >= 0, scores, -np.inf).astype(np.float32), pool.docs.shape[1])


def _some(pool: Pool, which: np.ndarray) -> Pool:
    return Pool(pool.arms, pool.docs[which], pool.ranks[which], pool.scores[which])


def _quality(scores: np.ndarray, pool: Pool, grades: np.ndarray, ranked: int | None) -> np.ndarray:
    """(Q,) nDCG@10 of an order, or recall of its first `ranked`, beside the best order of the same pool."""
    ranking = np.argsort(-np.where(pool.docs >= 0, scores, -np.inf), axis=1, kind="stable")
    gains = np.take_along_axis(np.where(pool.docs >= 0, grades, 0).astype(float), ranking, 1)
    num = min(10 if ranked is None else ranked, gains.shape[1])
    discount = 1 / np.log2(np.arange(2, num + 2)) if ranked is None else np.ones(num)
    best = -np.sort(-gains, axis=1)[:, :num] @ discount if ranked is None else gains.sum(axis=1)
    return gains[:, :num] @ discount / np.maximum(best, 1e-12)
