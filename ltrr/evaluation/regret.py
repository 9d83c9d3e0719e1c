"""Compares a policy of cuts with a fixed cut and with hindsight, at an equal mean number of candidates.

Knows recall by cut, chosen cuts and groups of queries; does not know how cuts are chosen. Cuts are chosen once, then
queries are resampled: intervals bootstrap ratios of means over groups of test queries and seeds together.
Legend: Q queries, M cuts (1 to M candidates), S seeds, G prices, B bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ltrr.evaluation.intervals import Interval
from ltrr.types import Qrels, Query

_DRAWS = 2_000


class Chosen(NamedTuple):
    """A policy's cuts and recall on the queries of a split, at each price; the first price is the one set on dev."""

    cuts: np.ndarray  # (Q, G) candidates
    recall: np.ndarray  # (Q, G)


def fixed(recall: np.ndarray, mean: float) -> np.ndarray:
    """Recall (Q,) with one cut for all queries; a fractional mean mixes the two nearest cuts."""
    low = int(np.clip(np.floor(mean), 1, recall.shape[1]))
    share = np.clip(mean - low, 0.0, 1.0)
    return (1 - share) * recall[:, low - 1] + share * recall[:, min(low, recall.shape[1] - 1)]


def oracle(recall: np.ndarray, mean: float) -> np.ndarray:
    """Recall (Q,) of the best cuts in hindsight with this mean, on the concave hull of all choices."""
    query, more, gain = _hull(recall)
    before = np.cumsum(more) - more
    part = np.clip(((mean - 1) * len(recall) - before) / more, 0.0, 1.0)  # share of each step within the mean
    return recall[:, 0] + np.bincount(query, part * gain, len(recall))


def _hull(recall: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps along the queries' concave hulls, steepest first: query, added candidates, added recall."""
    steps = []
    for q, row in enumerate(recall):
        at, value = 1, row[0]
        while at < len(row):
            slopes = (row[at:] - value) / np.arange(1, len(row) - at + 1)
            best = int(np.flatnonzero(slopes == slopes.max())[-1])
            if slopes[best] <= 0:
                break
            steps.append((q, best + 1, row[at + best] - value))
            at, value = at + best + 1, row[at + best]
    query, more, gain = np.array(steps, float).reshape(-1, 3).T
    order = np.argsort(-gain / more, kind="stable")
    return query[order].astype(int), more[order], gain[order]


def at_mean(chosen: Chosen, mean: float) -> Chosen:
    """The policy's cuts and recall at a mean cut of `mean`, interpolated between two prices: (Q, 1) each.

    The price is set on these same queries, without their judgements, so it could not be known in advance. Raises
    ValueError if no two prices have mean cuts around `mean`.
    """
    means = chosen.cuts.mean(axis=0)
    above, below = np.flatnonzero(means >= mean), np.flatnonzero(means <= mean)
    if not len(above) or not len(below):
        raise ValueError(
            f"mean: no two prices have mean cuts around {mean:g}, only {means.min():.3g} to {means.max():.3g}"
        )
    high, low = above[means[above].argmin()], below[means[below].argmax()]
    share = 0.0 if means[high] == means[low] else (mean - means[low]) / (means[high] - means[low])
    cuts, recall = ((1 - share) * part[:, low] + share * part[:, high] for part in chosen)
    return Chosen(cuts[:, None], recall[:, None])


def gap_closed(recall: np.ndarray, base: np.ndarray, seeds: Sequence[Chosen], groups: np.ndarray) -> Interval:
    """Share of the gap closed, (policy − fixed) / (oracle − fixed), at each seed's mean cut; 0 if there is no gap.

    Each bootstrap draw recomputes all three at the mean cut of its queries.

    recall: (Q, M) of the order that the policy and the oracle cut. base: (Q, M) of the fixed system.
    groups: (Q,) as of `query_groups`.
    """
    weights, picks = _resampled(groups, len(seeds))
    weights = np.concatenate([np.ones((1, len(groups))), weights])  # the sample itself is the first draw
    size = weights.sum(axis=1)
    cuts, reached = (
        np.stack([weights @ part[:, 0] / size for part in parts])
        for parts in ([c.cuts for c in seeds], [c.recall for c in seeds])
    )  # (S, 1 + B)
    fixed_recall = _curves(base, weights, cuts)
    gained, possible = reached - fixed_recall, _hindsight(recall, weights, cuts) - fixed_recall
    sample = _ratio(gained[:, :1].sum(axis=0), possible[:, :1].sum(axis=0))
    top, bottom = (np.take_along_axis(part[:, 1:], picks, 0).sum(axis=0) for part in (gained, possible))
    return Interval.of_draws(float(sample[0]), _ratio(top, bottom))


def _curves(recall: np.ndarray, weights: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Mean recall (S, B) of queries with weights (B, Q) at fixed cuts (S, B)."""
    means = weights @ recall / weights.sum(axis=1, keepdims=True)
    at = np.arange(1, recall.shape[1] + 1)
    return np.stack([np.interp(cut, at, mean) for cut, mean in zip(cuts.T, means, strict=True)], axis=1)


def _hindsight(recall: np.ndarray, weights: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Mean recall (S, B) of the best cuts in hindsight with mean cuts (S, B)."""
    query, more, gain = _hull(recall)
    out = np.empty(cuts.shape)
    for b, counts in enumerate(weights):
        times, size = counts[query], counts.sum()
        cost = np.concatenate([[1.0], 1 + np.cumsum(times * more) / size])
        value = np.concatenate([[0.0], np.cumsum(times * gain) / size]) + counts @ recall[:, 0] / size
        out[:, b] = np.interp(cuts[:, b], cost, value)
    return out


def cost_saved(base: np.ndarray, seeds: Sequence[Chosen], groups: np.ndarray, cut: int) -> Interval:
    """Share of candidates saved at the recall of a fixed cut: 1 − mean cut needed / cut; 0 if it is never reached."""
    weights, picks = _resampled(groups, len(seeds))
    size = weights.sum(axis=1)

    def saved(cuts: np.ndarray, reached: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Share saved (B,), from mean cuts and recall (B, G) and the fixed cut's recall (B,)."""
        out = np.zeros(len(target))
        for b in range(len(target)):
            order = np.argsort(cuts[b])
            best = np.maximum.accumulate(reached[b, order])
            if best[-1] >= target[b]:
                out[b] = 1 - np.interp(target[b], best, cuts[b, order]) / cut
        return out

    target = base[:, cut - 1]
    draws = np.stack(
        [
            saved(weights @ c.cuts / size[:, None], weights @ c.recall / size[:, None], weights @ target / size)
            for c in seeds
        ]
    )
    means = [saved(c.cuts.mean(axis=0)[None], c.recall.mean(axis=0)[None], target.mean()[None])[0] for c in seeds]
    return Interval.of_draws(float(np.mean(means)), np.take_along_axis(draws, picks, 0).mean(axis=0))


def mean_of(values: np.ndarray, groups: np.ndarray) -> Interval:
    """Mean of values (S, Q), with an interval over groups of queries and seeds together."""
    weights, picks = _resampled(groups, len(values))
    draws = np.take_along_axis(values @ weights.T / weights.sum(axis=1), picks, 0).mean(axis=0)
    return Interval.of_draws(float(values.mean()), draws)


def query_groups(queries: Sequence[Query], qrels: Qrels, alike: float = 0.6) -> np.ndarray:
    """Groups queries with the same positives, or with a shared positive and near-duplicate text: (Q,) group numbers.

    alike: Jaccard similarity of character trigrams from which texts count as near-duplicates.
    """
    positives = [frozenset(doc for doc, grade in qrels[q.id].items() if grade > 0) for q in queries]
    grams = [{text[i : i + 3] for i in range(max(len(text) - 2, 1))} for text in (q.text.lower() for q in queries)]
    queries_of: dict[str, list[int]] = {}
    for q, docs in enumerate(positives):
        for doc in docs:
            queries_of.setdefault(doc, []).append(q)
    pairs = {(q, other) for q in range(len(queries)) for doc in positives[q] for other in queries_of[doc] if other > q}
    linked = [
        (q, other)
        for q, other in pairs
        if positives[q] == positives[other] or len(grams[q] & grams[other]) >= alike * len(grams[q] | grams[other])
    ]
    left, right = np.array(linked, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(left)), (left, right)), (len(queries), len(queries)))
    return connected_components(graph, directed=False)[1]


def _resampled(groups: np.ndarray, num_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap counts of each query, drawn with its whole group (B, Q), and drawn seeds (S, B)."""
    rng = np.random.default_rng(0)
    num = int(groups.max()) + 1
    times = rng.multinomial(num, np.full(num, 1 / num), _DRAWS)  # (B, groups)
    return times[:, groups].astype(np.float64), rng.integers(num_seeds, size=(num_seeds, _DRAWS))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, or 0 where bottom is 0 up to rounding."""
    nonzero = bottom > 1e-9
    return np.where(nonzero, top / np.where(nonzero, bottom, 1.0), 0.0)
