"""Judged pools against a funnel that searches, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.data.beir import open_dataset
from ltrr.funnel import Funnel
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import Arm
from ltrr.simulation.pools import gain_of, judged_pools
from ltrr.types import Candidates, Query
from tests.simulation.worlds import ARMS, DEPTHS, ORDER, random_pools


class Stored:
    """An arm that returns what a pool says that it returned."""

    def __init__(self, pools, arm: int) -> None:
        self._lists = {}
        for query, docs, ranks, scores in zip(pools.queries, *pools.pool[1:], strict=True):
            kept = np.flatnonzero(~np.isnan(ranks[:, arm]))
            kept = kept[np.argsort(ranks[kept, arm])]
            self._lists[query.id] = docs[kept], scores[kept, arm]
        self.asked = 0

    def search(self, queries, k) -> Candidates:
        self.asked += len(queries)
        lists = [self._lists[query.id] for query in queries]
        return Candidates.from_lists([docs[:k] for docs, _ in lists], [scores[:k] for _, scores in lists], k)


@pytest.mark.parametrize("depths", [{"a": 8, "b": 8}, {"a": 3, "b": 8}, {"a": 0, "b": 5}])
def test_what_is_retrieved_is_what_a_funnel_draws(depths) -> None:
    pools = random_pools()
    arms: dict[str, Arm] = {name: Stored(pools, a) for a, name in enumerate(ARMS)}
    drawn = Funnel(arms, FixedPolicy(ARMS, depths, 100), ORDER).draw(pools.queries).pool
    named = np.tile(np.array([*depths.values()], np.int32), (len(pools.queries), 1))
    found = pools.fused(ORDER).retrieved(named, ORDER)
    width = drawn.docs.shape[1]
    np.testing.assert_array_equal(found.pool.docs[:, :width], drawn.docs)
    np.testing.assert_array_equal(found.pool.ranks[:, :width], drawn.ranks)
    np.testing.assert_allclose(found.pool.scores[:, :width], drawn.scores, rtol=1e-6)
    assert (found.pool.docs[:, width:] == -1).all()


def test_grades_follow_their_candidates() -> None:
    pools = random_pools()
    both = zip(pools.pool.docs.tolist(), pools.grades.tolist(), strict=True)
    by_doc = [dict(zip(docs, own, strict=True)) for docs, own in both]
    for changed in (pools.fused(ORDER), pools.without(["a"]), pools.fused(ORDER).without(["b"]).fused(ORDER)):
        for docs, own, expected in zip(changed.pool.docs, changed.grades, by_doc, strict=True):
            assert own.tolist() == [expected[doc] if doc >= 0 else 0 for doc in docs.tolist()]
    gone = pools.without(["a"])
    assert np.isnan(gone.pool.ranks[:, :, 0]).all()
    np.testing.assert_array_equal(gone.pool.docs >= 0, ~np.isnan(pools.pool.ranks[:, :, 1]))


def test_searches_are_kept_and_judged(music, tmp_path) -> None:
    dataset = open_dataset(music)
    split = dataset.split("test")
    pools = random_pools(len(split.queries))
    pools = pools._replace(queries=[Query(q.id, q.text) for q in split.queries])
    arms = {name: Stored(pools, a) for a, name in enumerate(ARMS)}

    def read(identity: str):
        return judged_pools(
            dataset,
            ["test"],
            arms,
            DEPTHS,
            features=lambda queries: np.ones((len(queries), 1)),
            groups=lambda queries, qrels: np.arange(len(queries)),
            folder=tmp_path,
            identities=[identity],
        )

    first = read("x")
    asked = arms["a"].asked
    again = read("x")
    assert arms["a"].asked == asked == len(first.queries)
    np.testing.assert_array_equal(again.pool.scores, first.pool.scores)
    for query, docs, own, total in zip(first.queries, first.pool.docs, first.grades, first.positives, strict=True):
        graded = {dataset.corpus.row(doc): grade for doc, grade in split.qrels[query.id].items()}
        assert own.tolist() == [graded.get(doc, 0) for doc in docs.tolist()]
        assert total == pytest.approx(sum((2.0**g - 1) / (2.0**first.highest - 1) for g in graded.values()))
    read("another build")
    assert arms["a"].asked == 2 * asked


def test_gains_are_one_for_the_highest_grade() -> None:
    np.testing.assert_allclose(gain_of(np.array([[0, 1, 2, -1]]), 2), [[0, 1 / 3, 1, 0]])
