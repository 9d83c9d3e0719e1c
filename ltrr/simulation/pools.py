"""Judged pools: what all arms return for judged queries, searched once, and what of it is relevant.

Knows arms, pools and grades; does not know policies, fused orders or clicks.
Legend: Q queries, K candidates of the whole union, M candidates of the deepest page, A arms, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ltrr.data.beir import Dataset
from ltrr.feedback.clicks import attraction_of
from ltrr.files import content_key
from ltrr.funnel import FUSED, in_order
from ltrr.fusion import take, union
from ltrr.protocols import Arm, Policy, Ranker
from ltrr.simulation.kept import kept
from ltrr.types import Candidates, Pool, Qrels, Query

_SEARCHED, _ORDERED = 250, 1_000  # queries that are searched, or ordered, at once


class JudgedPools(NamedTuple):
    """Queries, what all arms return for them, and the truth about it."""

    queries: list[Query]
    features: np.ndarray  # (Q, F) before retrieval
    pool: Pool  # of all arms; after `fused` in fused order, which is then its last column
    grades: np.ndarray  # (Q, K) of the pool's candidates
    highest: int  # grade of the data set
    positives: np.ndarray  # (Q,) sum of the gains of all that is relevant, retrieved or not; above 0
    groups: np.ndarray  # (Q,) number of each query's group

    @property
    def gains(self) -> np.ndarray:
        """(Q, K) what each candidate counts in recall."""
        return gain_of(self.grades, self.highest)

    def some(self, rows: np.ndarray) -> JudgedPools:
        """The queries at these places."""
        pool = Pool(self.pool.arms, self.pool.docs[rows], self.pool.ranks[rows], self.pool.scores[rows])
        arrays = (self.features[rows], pool, self.grades[rows], self.highest, self.positives[rows], self.groups[rows])
        return JudgedPools([self.queries[row] for row in rows.tolist()], *arrays)

    def drawn(self, depths: np.ndarray) -> JudgedPools:
        """The same arms, drawn to depths (Q, A) or (A,), 0 = off; a candidate that no arm returns is none.

        A fused order does not outlive this; `fused` makes a new one.
        """
        num = depths.shape[-1]
        off = ~(self.pool.ranks[:, :, :num] < (depths[:, None] if depths.ndim == 2 else depths))  # NaN is off
        ranks, scores = (np.where(off, np.nan, part[:, :, :num]) for part in (self.pool.ranks, self.pool.scores))
        docs = np.where(off.all(axis=2), -1, self.pool.docs)
        pool = Pool(self.pool.arms[:num], docs, ranks.astype(np.float32), scores.astype(np.float32))
        return self._replace(pool=pool, grades=np.where(docs >= 0, self.grades, 0))

    def without(self, arms: Sequence[str]) -> JudgedPools:
        """The same where these arms return nothing."""
        return self.drawn(np.where(np.isin(self.pool.arms, arms), 0, np.inf))

    def ordered(self, order: Candidates) -> JudgedPools:
        """The candidates in an order (Q, K or fewer)."""
        grades = take(Pool(("grade",), self.pool.docs, *[self.grades[:, :, None]] * 2), order).scores[:, :, 0]
        return self._replace(pool=take(self.pool, order), grades=np.nan_to_num(grades).astype(int))

    def fused(self, order: Ranker) -> JudgedPools:
        """The candidates in fused order, which becomes the pool's last column."""
        pieces = []
        for start in range(0, len(self.queries), _ORDERED):  # the whole union of all queries at once would not fit
            part = self.some(np.arange(start, min(start + _ORDERED, len(self.queries))))
            fused = order.rank(part.queries, part.pool)
            pieces.append((in_order(part.pool, fused), part.ordered(fused).grades))
        arrays = (np.concatenate([getattr(pool, name) for pool, _ in pieces]) for name in ("docs", "ranks", "scores"))
        pool = Pool((*self.pool.arms, FUSED), *arrays)
        return self._replace(pool=pool, grades=np.concatenate([grades for _, grades in pieces]))

    def retrieved(self, depths: np.ndarray, order: Ranker) -> JudgedPools:
        """What these pools, which are in fused order, become where arms are drawn to depths (Q, A)."""
        arms = self.pool.ranks[:, :, : depths.shape[1]]
        if not (arms >= depths[:, None]).any():  # as deep as all arms were drawn
            return self
        return self.drawn(depths).fused(order)

    def retrieve(self, order: Ranker) -> Callable[[Policy], Pool]:
        """A policy -> the union, in fused order, of what its arms bring."""
        return lambda policy: self.retrieved(policy.decide(self.queries, self.features).depths, order).pool


def gain_of(grades: np.ndarray, highest: int) -> np.ndarray:
    """What candidates of these grades count in recall: their attraction to customers, which is 1 for binary grades."""
    return np.nan_to_num(attraction_of(np.maximum(grades, 0).astype(float), highest=highest))


def judged_pools(
    dataset: Dataset,
    splits: Sequence[str],
    arms: Mapping[str, Arm],
    depths: Mapping[str, int],
    *,
    features: Callable[[Sequence[Query]], np.ndarray],
    groups: Callable[[Sequence[Query], Qrels], np.ndarray],
    folder: Path,
    identities: Sequence[Any],
) -> JudgedPools:
    """What arms return for the queries of some splits that have a positive; searches are kept in a folder.

    Args:
        depths: arm -> candidates; an arm that is not named, or has 0, is off.
        features: queries -> (Q, F) before retrieval.
        groups: queries, qrels -> (Q,) number of each query's group.
        identities: of the arms' builds, which searches depend on.
    """
    parts = [dataset.split(split) for split in splits]
    queries = [q for part in parts for q in part.queries if any(grade > 0 for grade in part.qrels[q.id].values())]
    qrels: Qrels = {q: grades for part in parts for q, grades in part.qrels.items()}

    def search() -> dict[str, np.ndarray]:
        pieces = []
        for start in tqdm(range(0, len(queries), _SEARCHED), f"search {', '.join(splits)}", unit="batch"):
            some = queries[start : start + _SEARCHED]
            pieces.append(union({name: _ask(arm, some, depths.get(name, 0)) for name, arm in arms.items()}))
        width, out = max(piece.docs.shape[1] for piece in pieces), {"groups": groups(queries, qrels)}
        for name, fill in (("docs", -1), ("ranks", np.nan), ("scores", np.nan)):
            out[name] = np.concatenate([widened(getattr(piece, name), width, fill) for piece in pieces])
        return out

    asked = [[query.id, query.text, query.context] for query in queries]
    key = content_key([*identities], {name: depths.get(name, 0) for name in arms}, asked, qrels)
    found = kept(folder / f"{'-'.join(splits)}-{key}.npz", search)
    pool = Pool(tuple(arms), found["docs"], found["ranks"], found["scores"])
    of = [dict(zip(dataset.corpus.rows([*qrels[q.id]]), qrels[q.id].values(), strict=True)) for q in queries]
    grades = np.array([[each.get(doc, 0) for doc in docs] for each, docs in zip(of, pool.docs.tolist(), strict=True)])
    every = [dataset.split(split).qrels.values() for split in dataset.splits]
    highest = int(max(grade for part in every for each in part for grade in each.values()))
    positives = np.array([gain_of(np.array([*each.values()]), highest).sum() for each in of])
    return JudgedPools(queries, features(queries), pool, grades, highest, positives, found["groups"])


def _ask(arm: Arm, queries: Sequence[Query], depth: int) -> Candidates:
    return arm.search(queries, depth) if depth else Candidates.empty(len(queries), 0)


def widened(values: np.ndarray, width: int, fill: float) -> np.ndarray:
    """(Q, width, ...): the first columns, and pads where there are fewer."""
    pads = [(0, 0), (0, max(width - values.shape[1], 0)), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values[:, :width], pads, constant_values=fill)
