"""Worlds that change while a stream goes on: what customers want, which arms answer, which documents exist.

Knows judged pools in fused order; does not know policies. Legend: Q queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltrr.config import ConfigError, check_known
from ltrr.feedback.events import normalised
from ltrr.protocols import Ranker
from ltrr.simulation.pools import JudgedPools
from ltrr.types import Candidates

KINDS = ("drift", "dies", "joins", "arrives")
_SHARE = 0.1  # of queries that want something else, or of documents that arrive
_NEAR = 20  # first candidates among which what is wanted moves


def phases(pools: JudgedPools, change: str | None, order: Ranker, seed: int) -> tuple[JudgedPools, JudgedPools]:
    """The world before and after a change; the same twice without one.

    change: `drift` (a tenth of the queries want other candidates), `dies:ARM`, `joins:ARM`, or `arrives` (a tenth of
    the documents were not there before). Errors: ConfigError for another change or arm.
    """
    if change is None:
        return pools, pools
    kind, _, arm = change.partition(":")
    check_known("--change", kind, {*KINDS})
    rng = np.random.default_rng([seed, 1])
    if kind == "drift":
        return pools, drifted(pools, rng)
    if kind == "arrives":
        docs = np.unique(pools.pool.docs[pools.pool.docs >= 0])
        return without_documents(pools, rng.choice(docs, int(_SHARE * len(docs)), replace=False)), pools
    arms = pools.pool.arms[:-1]
    if arm not in arms:
        raise ConfigError(f"--change {kind}: there is no arm {arm!r}; the arms are {', '.join(arms)}")
    fewer = pools.without([arm]).fused(order)
    return (pools, fewer) if kind == "dies" else (fewer, pools)


def drifted(pools: JudgedPools, rng: np.random.Generator) -> JudgedPools:
    """A tenth of the queries want other candidates: grades of their first candidates change places."""
    grades, found = pools.grades.copy(), (pools.pool.docs[:, :_NEAR] >= 0).sum(axis=1)
    for q in rng.choice(len(grades), max(1, int(_SHARE * len(grades))), replace=False).tolist():
        grades[q, : found[q]] = grades[q, rng.permutation(found[q])]
    return pools._replace(grades=grades)


def without_documents(pools: JudgedPools, docs: np.ndarray) -> JudgedPools:
    """No arm returns these documents; the others keep their order and scores."""
    gone = np.isin(pools.pool.docs, docs)
    kept = np.argsort(gone | (pools.pool.docs < 0), axis=1, kind="stable")
    rows = np.take_along_axis(np.where(gone, -1, pools.pool.docs), kept, 1)
    return pools.ordered(Candidates(rows, np.zeros(rows.shape, np.float32)))


def near_duplicate(text: str) -> str:
    """Another text that asks the same: its last two words in the other order, or one letter doubled."""
    words = text.split()
    if len(words) > 1 and words[-1] != words[-2]:
        return " ".join([*words[:-2], words[-1], words[-2]])
    return text[: len(text) // 2 + 1] + text[len(text) // 2 :]


def texts_of(texts: Sequence[str], duplicates: bool) -> list[list[str]]:
    """The normalised ways in which each query is asked: its own text and, with duplicates, another."""
    own = [normalised(text) for text in texts]
    return [[text, normalised(near_duplicate(text))] if duplicates else [text] for text in own]
