"""What a stream takes from a system: judged pools of all splits in fused order, and the systems that are compared.

Knows systems, splits and policies' sections; does not know how a stream is played (`ltrr.simulation.stream`).
Legend: Q queries.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ltrr.config import ConfigError, find_class
from ltrr.evaluation.regret import query_groups
from ltrr.feedback.evidence.cells import ALIKE
from ltrr.feedback.evidence.tally import nearest
from ltrr.files import content_key
from ltrr.funnel import FUSED
from ltrr.protocols import Calibrating, Embedding, Featured, Online, Policy, offers
from ltrr.simulation.kept import kept
from ltrr.simulation.pools import JudgedPools, judged_pools
from ltrr.system.system import System
from ltrr.types import Pool, Query

NUM = 100  # candidates of a query, in fused order, that policies look at
_SPLITS = ("train", "dev", "test")


class World(NamedTuple):
    """The queries of a stream."""

    pools: JudgedPools  # of the Q queries, in fused order
    split: np.ndarray  # (Q,) name of each query's split

    def of(self, *splits: str) -> JudgedPools:
        """The queries of some splits."""
        return self.pools.some(np.flatnonzero(np.isin(self.split, splits)))


def stream_world(system: System) -> World:
    """All judged queries of a system's data set; searches and the fused order are kept in its cache."""
    splits = [split for split in _SPLITS if split in system.dataset.splits]
    if not splits:
        raise ConfigError(f"{system.settings.data.path}: has no judged queries in splits train, dev or test")
    arms = {name: system.arm(name) for name in system.drawn}
    order, folder = system.order(), system.folder / "policy"
    identities = [system.indexes.identity(name) for name in arms]
    parts, names = [], []
    for split in splits:
        part = judged_pools(
            system.dataset,
            [split],
            arms,
            system.depths,
            features=lambda queries: np.zeros((len(queries), 0), np.float32),
            groups=query_groups,
            folder=folder,
            identities=identities,
        )
        key = content_key(identities, system.orders.identity(), split, [q.id for q in part.queries], NUM, 1)
        found = kept(folder / f"fused-{split}-{key}.npz", lambda part=part: _fused(part, order))
        pool = Pool((*part.pool.arms, FUSED), found["docs"], found["ranks"], found["scores"])
        parts.append(part._replace(pool=pool, grades=found["grades"]))
        names += [split] * len(part.queries)
    return World(_joined(parts), np.array(names))


def _fused(part: JudgedPools, order: Any) -> dict[str, np.ndarray]:
    """The first candidates in fused order."""
    fused = part.fused(order)
    arrays = {"docs": fused.pool.docs, "ranks": fused.pool.ranks, "scores": fused.pool.scores, "grades": fused.grades}
    return {name: values[:, :NUM] for name, values in arrays.items()}


def _joined(parts: list[JudgedPools]) -> JudgedPools:
    """The queries of all parts; groups keep their numbers, which are of each part alone."""
    width = max(part.pool.docs.shape[1] for part in parts)

    def whole(arrays: list[np.ndarray], fill: float) -> np.ndarray:
        pads = [[(0, 0), (0, width - a.shape[1]), *[(0, 0)] * (a.ndim - 2)] for a in arrays]
        return np.concatenate([np.pad(a, pad, constant_values=fill) for a, pad in zip(arrays, pads, strict=True)])

    pool = Pool(
        parts[0].pool.arms,
        whole([part.pool.docs for part in parts], -1),
        whole([part.pool.ranks for part in parts], np.nan),
        whole([part.pool.scores for part in parts], np.nan),
    )
    return JudgedPools(
        [query for part in parts for query in part.queries],
        np.concatenate([part.features for part in parts]),
        pool,
        whole([part.grades for part in parts], 0),
        max(part.highest for part in parts),
        np.concatenate([part.positives for part in parts]),
        np.concatenate([part.groups for part in parts]),
    )


def section_with(system: System, section: Mapping[str, Any], budget: float) -> dict[str, Any]:
    """Returns a policy's section; adds the stream's budget where the class takes a budget and the section names none.

    Drops the feature `embedding` where no arm embeds queries.
    """
    if "embedding" in (section.get("features") or ()) and _embedding(system) is None:
        section = {**section, "features": [name for name in section["features"] if name != "embedding"]}
    known = inspect.signature(find_class("stream.systems", section.get("class", ""))).parameters
    return {**({"budget": budget} if "budget" in known else {}), **section}


def fitted_arguments(system: System, section: Mapping[str, Any], teaches: JudgedPools) -> dict[str, Any]:
    """What a policy's class fits on judged queries; nothing where it fits nothing, or none teaches."""
    policy = system.policies.unpriced(section)
    calibrating = offers(policy, Calibrating)
    if calibrating is None or "calibration" in section:
        return {}
    if not len(teaches.queries):
        warnings.warn(f"{section['class']}: no train queries to calibrate on; its usual numbers are used", stacklevel=2)
        return {}
    try:
        depths = policy.decide(teaches.queries, teaches.features).depths
        teaches = teaches.retrieved(depths, system.order())
        fitted = calibrating.calibrate(teaches.pool, teaches.gains)
    except ValueError as error:
        warnings.warn(f"{section['class']}: {error}; its usual numbers are used", stacklevel=2)
        return {}
    return {name: value for name, value in fitted.items() if name not in section}


def queries_alike(system: System, ways: Sequence[Sequence[str]]) -> dict[str, list[tuple[str, float]]]:
    """Normalised text -> the most similar other texts, as the first arm that embeds queries compares them; kept.

    ways: the normalised texts in which each query is typed.

    Empty where no arm embeds queries.
    """
    if (first := _embedding(system)) is None:
        return {}
    name, embedding = first
    texts = list(dict.fromkeys(text for each in ways for text in each))
    key = content_key(system.indexes.identity(name), texts)

    def compare() -> dict[str, np.ndarray]:
        asked = [Query(str(i), text) for i, text in enumerate(texts)]
        return dict(zip(("places", "similarity"), nearest(embedding.embed(asked)), strict=True))

    found = kept(system.folder / "policy" / f"alike-{key}.npz", compare)
    return {
        text: [(texts[j], s) for j, s in zip(places, near, strict=True) if s >= ALIKE[0]]
        for text, places, near in zip(texts, found["places"].tolist(), found["similarity"].tolist(), strict=True)
    }


def _embedding(system: System) -> tuple[str, Embedding] | None:
    """The first arm that embeds queries, with its name."""
    arms = ((name, offers(system.arm(name), Embedding)) for name in system.drawn)
    return next(((name, embedding) for name, embedding in arms if embedding is not None), None)


def with_features(system: System, policy: Policy, pools: JudgedPools) -> JudgedPools:
    """Returns the pools with the features that this policy reads before retrieval; caches them on disk."""
    featured = offers(policy, Featured)
    if featured is None or not (columns := getattr(featured.features, "columns", ())):
        return pools
    identities = [system.indexes.identity(name) for name in system.drawn]
    key = content_key(identities, [*map(str, columns)], [[query.text, str(query.context)] for query in pools.queries])
    path = system.folder / "policy" / f"features-{key}.npz"
    return pools._replace(features=kept(path, lambda: {"features": featured.features(pools.queries)})["features"])


def learns(policy: Policy) -> bool:
    """Whether a policy learns from every event, so that it has to serve round by round."""
    return offers(policy, Online) is not None
