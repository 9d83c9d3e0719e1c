"""Features of a policy: their names, units and computation.

Knows queries and pools; knows nothing about decisions, learners or how arms search. Before retrieval, features describe
the query and its context, in groups of columns with injected sources (a parser, statistics, an encoder). After
retrieval, they describe the fused union. Unknown values are NaN until `Standard` replaces them by the mean.
Legend: Q queries, K candidates of the union, M of them looked at, A arms, F features, G of a group, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from typing import NamedTuple, Protocol

import numpy as np

from ltrr.types import Pool, Query, RetrievalFeatures

LIMIT = 5.0  # standard deviations at which a standardised value is clipped
_PLACES = (1, 2, 3, 5, 10, 20, 50)  # ranks whose scores show how an arm's scores fall
_PREFIXES = (1, 3, 10, 30)  # prefixes of the fused order in which an arm's candidates are counted
_EMBEDDED = 16  # columns of a query's projected embedding


class Feature(NamedTuple):
    """A column of features."""

    name: str
    unit: str


class Group(NamedTuple):
    """Columns about a query and its context, from one source."""

    columns: tuple[Feature, ...]  # G
    values: Callable[[Sequence[Query]], np.ndarray]  # queries -> (Q, G), NaN = unknown


class ContextFeatures:
    """Features known before retrieval: the columns of all groups, concatenated."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self.columns = tuple(feature for group in groups for feature in group.columns)  # F

    def __call__(self, queries: Sequence[Query]) -> np.ndarray:
        """Computes features, (Q, F) float32."""
        parts = [np.reshape(group.values(queries), (len(queries), len(group.columns))) for group in self._groups]
        return np.concatenate([np.zeros((len(queries), 0)), *parts], axis=1).astype(np.float32)


def _group(columns: Sequence[tuple[str, str]], value: Callable[[Query], Sequence[float]]) -> Group:
    """Builds a group from (name, unit) pairs and a function of one query."""
    names = tuple(Feature(*column) for column in columns)
    return Group(names, lambda queries: np.array([value(query) for query in queries], np.float64))


TEXT = _group(
    [("words", "count"), ("characters", "count"), ("digits", "count")],
    lambda query: (len(query.text.split()), len(query.text), sum(c.isdigit() for c in query.text)),
)
TIME = _group(
    [
        ("hour_sin", "of the day, circle"),
        ("hour_cos", "of the day, circle"),
        ("weekday", "0 Monday to 6"),
        ("weekend", "0 or 1"),
        ("season_sin", "of the year, circle"),
        ("season_cos", "of the year, circle"),
    ],
    lambda query: _time(query.context.time),
)
query_features = ContextFeatures((TEXT, TIME))  # used if a config names no groups
QUERY = query_features.columns


def locale_features(locales: Sequence[str]) -> Group:
    """One-hot columns of the customer's locale; all 0 = another locale, NaN = unknown."""
    columns, unknown = [(f"locale_{name}", "0 or 1") for name in locales], [np.nan] * len(locales)
    return _group(columns, lambda q: [q.context.locale == name for name in locales] if q.context.locale else unknown)


def idf_features(idf: Callable[[str], np.ndarray]) -> Group:
    """Rarity of the query's words. idf: text -> idf of each word in nats, NaN = in no document."""

    def values(query: Query) -> tuple[float, ...]:
        word_idf = idf(query.text)
        known = word_idf[~np.isnan(word_idf)]
        highest, mean = (known.max(), known.mean()) if len(known) else (np.nan, np.nan)
        return highest, mean, 1 - len(known) / len(word_idf) if len(word_idf) else np.nan

    return _group([("idf_max", "nats"), ("idf_mean", "nats"), ("unknown", "share of words")], values)


def understanding_features(
    parse: Callable[[str], Sequence[tuple[float, Collection[str]]]], slots: Sequence[str]
) -> Group:
    """Interpretations of the query. parse: text -> (likelihood, slots filled) of each; no slots = plain words."""
    columns = [
        ("meanings", "count"),
        ("likeliest", "likelihood"),
        ("ambiguity", "entropy, nats"),
        ("plain", "likelihood"),
    ]

    def values(query: Query) -> list[float]:
        p, filled = zip(*parse(query.text), strict=True)
        of_slots = [sum(x for x, names in zip(p, filled, strict=True) if slot in names) for slot in slots]
        plain = sum(x for x, names in zip(p, filled, strict=True) if not names)
        return [len(p), max(p), -float(np.log(p) @ p), plain, *of_slots]

    return _group(columns + [(f"names_{slot}", "likelihood") for slot in slots], values)


def embedding_features(embed: Callable[[Sequence[Query]], np.ndarray]) -> Group:
    """Embeddings (Q, D), zeros = unknown, under a fixed random projection (Johnson & Lindenstrauss 1984)."""

    def values(queries: Sequence[Query]) -> np.ndarray:
        vectors = embed(queries)
        axes = np.random.default_rng(0).standard_normal((vectors.shape[1], _EMBEDDED)) / np.sqrt(_EMBEDDED)
        return np.where(vectors.any(axis=1, keepdims=True), vectors @ axes, np.nan)

    return Group(tuple(Feature(f"embedding_{i + 1}", "random projection") for i in range(_EMBEDDED)), values)


def customer_features(shares: Callable[[str], Sequence[float]], kinds: Sequence[str]) -> Group:
    """A customer's engagement. shares: name -> log weight of all engagement, then each kind's share; NaN = unknown."""
    columns = [("customer_engaged", "log weight"), *((f"customer_{kind}", "share of weight") for kind in kinds)]
    return _group(columns, lambda query: shares(query.context.customer or ""))


def pool_names(arms: Sequence[str], num: int) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
    """Columns of `pool_features`: those of the query, and those of each candidate."""
    query = [Feature(f"fused_{rank + 1}", "fused score") for rank in range(num)]
    for arm in arms:
        query += [Feature(f"{arm}_score_{place}", "the arm's own") for place in _PLACES]
        query += [Feature(f"{arm}_gap", "score of its first less its second"), Feature(f"{arm}_found", "candidates")]
        query += [Feature(f"{arm}_in_{prefix}", "share of the first fused") for prefix in _PREFIXES]
    each = [Feature("real", "0 or 1"), Feature("rank", "log"), Feature("fused", "fused score")]
    each += [
        Feature("below_first", "fused score"),
        Feature("above_next", "fused score"),
        Feature("agree", "share of arms"),
    ]
    each += [Feature(f"{arm}_share", "of the arm's best score") for arm in arms]
    each += [Feature(f"{arm}_rank", "reciprocal") for arm in arms]
    return tuple(query), tuple(each)


def context_names(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that are known before retrieval; those of the pool, whose first is `fused_1`, come after them."""
    return tuple(takewhile(lambda name: name != "fused_1", columns))


def arms_of(columns: Sequence[str]) -> tuple[str, ...]:
    """Names the arms that have columns of candidates."""
    return tuple(name.removesuffix("_rank") for name in columns if name.endswith("_rank"))


def pool_features(pool: Pool, num: int) -> RetrievalFeatures:
    """Features of the fused union: `pool` in fused order, with the fused order itself as its last arm; M = num."""
    arms = len(pool.arms) - 1
    real = pool.docs >= 0
    scores, ranks = pool.scores[:, :, :arms], pool.ranks[:, :, :arms]
    fused = np.where(real, pool.scores[:, :, arms], 0.0)
    returned = ~np.isnan(ranks)  # (Q, K, A)
    at = _by_rank(scores, ranks, max(_PLACES))  # (Q, A, 50) scores of each arm at its own ranks
    best = at[:, :, 0]
    parts = [_first(fused, num)]
    for a in range(arms):
        parts += [at[:, a][:, [place - 1 for place in _PLACES]], (at[:, a, 0] - at[:, a, 1])[:, None]]
        parts += [returned[:, :, a].sum(axis=1)[:, None]]
        parts += [_first(returned[:, :, a], prefix).mean(axis=1)[:, None] for prefix in _PREFIXES]
    query = np.concatenate(parts, axis=1).astype(np.float32)
    share = np.where(returned, scores / np.where(best > 0, best, 1.0)[:, None], 0.0)
    reciprocal = np.where(returned, 1.0 / (1.0 + ranks), 0.0)
    following = np.concatenate([fused[:, 1:], np.zeros((len(fused), 1))], axis=1)
    position = np.broadcast_to(np.log1p(np.arange(fused.shape[1])), fused.shape)
    columns = [real, position, fused, fused - fused[:, :1], fused - following, returned.mean(axis=2)]
    each = np.concatenate([np.stack(columns, axis=2), share, reciprocal], axis=2) * real[:, :, None]
    return RetrievalFeatures(query, _first(each, num).astype(np.float32))


def of_arms(pool: Pool, arms: Sequence[str]) -> Pool:
    """The pool with columns of these arms, and its last one, the fused order; an arm that it lacks said nothing."""
    if list(pool.arms[:-1]) == list(arms):
        return pool
    at = [pool.arms.index(arm) if arm in pool.arms[:-1] else -1 for arm in arms]
    ranks, scores = (
        np.concatenate([np.where(np.array(at) >= 0, part[:, :, at], np.nan), part[:, :, -1:]], axis=2)
        for part in (pool.ranks, pool.scores)
    )
    return Pool((*arms, pool.arms[-1]), pool.docs, ranks, scores)


class Standard:
    """Standardises columns to mean 0 and deviation 1, clipped at ± LIMIT; unknown values become 0.

    Args:
        mean: (F,). deviation: (F,) above 0.
    """

    def __init__(self, mean: np.ndarray, deviation: np.ndarray) -> None:
        self.mean, self.deviation = np.asarray(mean), np.asarray(deviation)

    @classmethod
    def of(cls, values: np.ndarray) -> Standard:
        """Fits to logged values (..., F); a column that is constant or always unknown becomes 0."""
        flat = values.reshape(int(np.prod(values.shape[:-1])), values.shape[-1]).astype(np.float64)
        known = ~np.isnan(flat)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, flat, 0.0).sum(axis=0) / count
        spread = np.sqrt((np.where(known, flat - mean, 0.0) ** 2).sum(axis=0) / count)
        return cls(mean, np.where(spread > 1e-6 * (1 + np.abs(mean)), spread, np.inf))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardises values (..., F) as float32."""
        scaled = (values - self.mean) / self.deviation
        return np.clip(np.nan_to_num(scaled), -LIMIT, LIMIT).astype(np.float32)


def _time(time: datetime | None) -> tuple[float, ...]:
    if time is None:
        return (np.nan,) * 6
    day, year = 2 * np.pi * (time.hour + time.minute / 60) / 24, 2 * np.pi * time.timetuple().tm_yday / 366
    return np.sin(day), np.cos(day), time.weekday(), time.weekday() >= 5, np.sin(year), np.cos(year)


def _first(values: np.ndarray, num: int) -> np.ndarray:
    """The first `num` along axis 1, padded with zeros."""
    missing = max(num - values.shape[1], 0)
    if not missing:
        return values[:, :num]
    return np.pad(values[:, :num], [(0, 0), (0, missing), *[(0, 0)] * (values.ndim - 2)])


def _by_rank(scores: np.ndarray, ranks: np.ndarray, deepest: int) -> np.ndarray:
    """Scores of each arm at its own ranks, (Q, A, deepest); 0 where it returned fewer."""
    out = np.zeros((len(scores), scores.shape[2], deepest), np.float32)
    query, place, arm = np.nonzero(ranks < deepest)  # false for NaN
    out[query, arm, ranks[query, place, arm].astype(int)] = scores[query, place, arm]
    return out


class Learned(Protocol):
    """A learner's record of the rounds that it learned from."""

    columns: tuple[tuple[str, ...], tuple[str, ...]]
    depths: list[int] | None


def check_learned(
    key: str, learner: Learned, columns: tuple, arms: Sequence[str], depths: Mapping[str, int], own: Sequence[str] = ()
) -> None:
    """Raises ValueError if a learner was trained with other arms, features or depths than this funnel's.

    columns: the funnel's, in the learner's naming. own: the learner's arms, if its columns do not list them.
    """
    if list(own or learner.columns[1]) != list(arms):
        raise ValueError(
            f"{key}: it was learned from the arms {', '.join(own or learner.columns[1])}, this funnel has "
            f"{', '.join(arms)}; give it those arms, in that order (`--arms.NAME null` takes one away)"
        )
    if learner.columns != columns:
        raise ValueError(
            f"{key}: it was learned from other features; use the `features` that its rounds were logged with"
        )
    if learner.depths not in (None, list(depths.values())):
        learned = json.dumps(dict(zip(arms, learner.depths or (), strict=True)))
        raise ValueError(f"{key}: it was learned from arms drawn to other depths; give --policy.depths '{learned}'")
