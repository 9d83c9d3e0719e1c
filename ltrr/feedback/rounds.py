"""Converts impressions and the actions on them to rounds, from which policies learn.

Knows impressions, rewards and the names of feature columns; knows nothing about learners. A model's candidates are in
fused order, a page is in the ranker's order. The ranks of a candidate in all arms identify it: no other candidate has
the same. A candidate that the page did not show counts as missing.
Legend: R rounds, U queries as they were known, M candidates of each, F and C features, K shown entities, A arms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ltrr.feedback.events import Action, Impression, Reward
from ltrr.types import Rounds

_LESS = "with an arm off or less deep"
Names = tuple[tuple[str, ...], tuple[str, ...]]  # of the F and of the C columns


def known_of(seen: Impression, names: Names, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """Features (F,) and (M, C), and each candidate's place on the page (M,) int16, -1 = not on it.

    Returns the reason as text if nothing can be learned from the impression. num: M.
    """
    width, ranked = len(names[0]), [f"{arm}_rank" for arm in seen.arms]
    if len(seen.features) != width + num * len(names[1]) or not {*ranked} <= {*names[1]}:
        return "of other columns"
    if seen.executed not in (None, seen.drawn):
        return "not run as drawn"
    if not seen.shown:
        return "an empty page"
    features = np.array(seen.features, np.float32)
    candidates = features[width:].reshape(num, len(names[1]))
    ranks = np.array(seen.ranks, np.float32).reshape(-1, len(ranked))  # (K, A), None becomes NaN
    own = candidates[:, [names[1].index(name) for name in ranked]]  # all: a policy may have an order of its own
    same = (own == np.nan_to_num(1.0 / (1.0 + ranks))[:, None]).all(axis=2)  # (K, cut)
    if len(ranks) != len(seen.shown) or (same.sum(axis=1) != 1).any() or (same.sum(axis=0) > 1).any():
        return "a page of candidates that were not looked at"
    place = np.full(num, -1, np.int16)
    place[same.argmax(axis=1)] = np.arange(len(ranks))
    return features[:width], candidates, place


def rounds_of(
    batches: Iterable[Iterable[tuple[int, Impression, Sequence[Action]]]],
    names: Names,
    num: int,
    all_arms: bool = False,
) -> tuple[Rounds, Counter[str]]:
    """Builds the rounds of a policy that reads these columns; counts the impressions left out, by reason.

    batches: from an event store (`EventStore.rounds`). An entity counts as clicked if its best action has a reward
    above 0. num: M. all_arms: leave out impressions with an arm off or below its largest logged depth. Raises
    ValueError if no round is left.
    """
    left, reward, numbers = Counter[str](), Reward(), dict[bytes, int]()
    kept: tuple[list[Any], ...] = [], [], [], [], [], []
    rows, queries, candidates, cuts, clicks, places = kept
    deepest: tuple[int, ...] = ()
    drawn: set[tuple[int, ...]] = set()
    for _, seen, did in (one for batch in batches for one in batch):
        if isinstance(known := known_of(seen, names, num), str):
            left[known] += 1
            continue
        if all_arms:
            most = tuple(map(max, seen.drawn.depths, deepest or seen.drawn.depths))
            if most != deepest:  # all earlier rounds were less deep
                left[_LESS] += len(rows)
                for part in (*kept, numbers, drawn):
                    part.clear()
            deepest = most
            if seen.drawn.depths != deepest or not all(deepest):
                left[_LESS] += 1
                continue
        drawn.add(seen.drawn.depths)
        query, each, place = known
        rows.append(numbers.setdefault(query.tobytes() + each.tobytes(), len(numbers)))
        if rows[-1] == len(queries):
            queries.append(query)
            candidates.append(each)
        worth = reward.of_entities(seen.time, did)
        clicks.append(np.array([*(worth.get(entity, 0.0) > 0 for entity in seen.shown), False])[place])
        cuts.append(min(seen.drawn.cut, num))
        places.append(place)
    if not rows:
        raise ValueError(f"rounds: no impression of this policy's columns; left out: {told(+left)}")
    arrays = np.array(rows), np.stack(queries), np.stack(candidates), np.array(cuts), np.stack(clicks)
    alike = np.array(next(iter(drawn))) if len(drawn) == 1 else None
    return Rounds(*arrays, names, np.stack(places), alike), +left


def told(left: Counter[str]) -> str:
    """Formats the counts of left-out impressions as text."""
    return ", ".join(f"{num:,} {reason}" for reason, num in left.most_common()) or "none"
