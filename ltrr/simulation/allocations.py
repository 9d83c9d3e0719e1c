"""Static allocations, to compare policies with: recall of every decision of a table, and places given to arms.

Knows decisions, pools and gains; does not know arms' insides or how a fused order comes about.
Legend: Q queries, K candidates of a pool, A arms, N decisions, S places (slots) given away.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np

from ltrr.policies.table import Table
from ltrr.protocols import Ranker
from ltrr.types import Pool

MOST = 2_000  # allocations that are tried


def outcomes(table: Table, pool: Pool, order: Ranker, gains: np.ndarray, total: np.ndarray) -> np.ndarray:
    """(Q, N) recall of every decision: arms drawn to its depths, their union in fused order, cut.

    Args:
        pool: what the arms return when they are drawn to the table's deepest levels.
        order: of what was drawn; an arm that is off returns nothing.
        gains: (Q, K) what each of the pool's candidates counts, 0 = not relevant. total: (Q,) above 0, of all that
            is relevant, found or not.
    """
    out = np.empty((len(gains), len(table)), np.float32)
    drawn, which = np.unique(table.depths, axis=0, return_inverse=True)
    for row, depths in enumerate(drawn):
        with np.errstate(invalid="ignore"):
            in_depth = pool.ranks < depths  # (Q, K, A)
        real = in_depth.any(axis=2)
        keep = np.argsort(~real, axis=1, kind="stable")[:, : max(real.sum(axis=1).max(), 1)]  # (Q, fewer than K)
        docs, own = (np.take_along_axis(part, keep, 1) for part in (np.where(real, pool.docs, -1), gains))
        cut_off = ~np.take_along_axis(in_depth, keep[:, :, None], 1)
        ranks, scores = (np.take_along_axis(part, keep[:, :, None], 1) for part in (pool.ranks, pool.scores))
        ranks[cut_off], scores[cut_off] = np.nan, np.nan
        ordered = order.rank((), Pool(pool.arms, docs, ranks, scores)).docs  # the same rows, pads included
        hits = np.empty(docs.shape)
        mine = np.take_along_axis(own * (docs >= 0), np.argsort(docs, axis=1), 1)
        np.put_along_axis(hits, np.argsort(ordered, axis=1), mine, 1)
        recall = np.cumsum(hits, axis=1) / total[:, None]
        cut = np.flatnonzero(which.ravel() == row)
        out[:, cut] = recall[:, np.minimum(table.cuts[cut], recall.shape[1]) - 1]
    return out


def slot_order(ranks: np.ndarray, slots: Sequence[int]) -> np.ndarray:
    """(Q, S) places in the pool of the Σ slots unique candidates that are ranked; blanks, -1, are last.

    Arm after arm, in the order of the last axis, takes its best candidates that none before it took.

    Args:
        ranks: (Q, K, A) of a pool, 0 = first, NaN = the arm did not return it.
        slots: of each arm, ≥ 0.
    """
    places = _filled(_lists(ranks, sum(slots)), slots, ranks.shape[1])
    return np.take_along_axis(places, np.argsort(places < 0, axis=1, kind="stable"), 1)[:, : sum(slots)]


def best_slots(ranks: np.ndarray, gains: np.ndarray, total: np.ndarray, num: int) -> tuple[tuple[int, ...], float]:
    """How many of `num` places each arm gets where that finds most, and the mean recall.

    Of all allocations; where they are more than MOST, of those in portions that make them fewer.

    Args:
        ranks: (Q, K, A) of a pool, arms in the order in which they take candidates.
        gains: (Q, K) of its candidates; total: (Q,), as of `outcomes`.
    """
    arms = ranks.shape[2]
    portion = next((p for p in range(1, num) if comb(num // p + arms - 1, arms - 1) <= MOST), num)
    portions = num // portion
    worth, lists = np.pad(gains, [(0, 0), (0, 1)]), _lists(ranks, num)  # a blank is not
    each, found = np.arange(len(ranks))[:, None], {}
    for bars in combinations(range(portions + arms - 1), arms - 1):  # what lies between two bars is an arm's
        slots = portion * (np.diff([-1, *bars, portions + arms - 1]) - 1)
        slots[slots.argmax()] += num % portion
        hits = worth[each, _filled(lists, slots.tolist(), ranks.shape[1])].sum(axis=1)
        found[tuple(slots.tolist())] = float((hits / total).mean())
    best = max(found, key=lambda slots: found[slots])
    return best, found[best]


def _lists(ranks: np.ndarray, num: int) -> list[np.ndarray]:
    """A times (Q, num) places in the pool of an arm's first candidates, blanks -1."""
    by_rank = np.argsort(ranks, axis=1)[:, :num]  # NaN is last
    return list(np.where(np.isnan(np.take_along_axis(ranks, by_rank, 1)), -1, by_rank).transpose(2, 0, 1))


def _filled(lists: Sequence[np.ndarray], slots: Sequence[int], width: int) -> np.ndarray:
    """(Q, A · S) places in a pool of that width, an arm's beside the next one's, -1 where it takes none."""
    each = np.arange(len(lists[0]))[:, None]
    taken = np.arange(width + 1) >= np.full_like(each, width)  # (Q, K + 1) of all only the blank
    parts = []
    for own, num in zip(lists, slots, strict=True):
        free = ~taken[each, own]
        new = free & (np.cumsum(free, axis=1) <= num)
        taken[each, own] |= new
        parts.append(np.where(new, own, -1))
    return np.concatenate(parts, axis=1)
