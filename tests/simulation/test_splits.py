"""Who teaches, sets prices and tests: never the same queries, never a torn group."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.simulation.splits import by_group, by_split, fold_of_groups, make_fold
from tests.simulation.worlds import ORDER, random_pools


def ids(pools) -> set[str]:
    return {query.id for query in pools.queries}


def test_folds_test_every_query_once_and_tear_no_group() -> None:
    whole = random_pools()
    folds = by_group(whole, 4)
    assert sorted(q for parts in folds for q in ids(parts.test)) == sorted(ids(whole))
    for parts in folds:
        assert ids(parts.train) | ids(parts.dev) | ids(parts.test) == ids(whole)
        groups = [set(part.groups.tolist()) for part in parts]
        assert sum(map(len, groups)) == len(set.union(*groups))
    sizes = np.bincount(fold_of_groups(np.array([0] * 6 + [1, 2, 3, 4, 5, 6]), 3))
    assert sizes.tolist() == [6, 3, 3]


def test_queries_that_teach_and_set_prices_are_halved_by_group() -> None:
    splits = {name: random_pools(seed=seed) for seed, name in enumerate(("train", "dev", "test"))}
    parts = by_split(lambda names: splits[names[0]], train="train", dev="train", test="test")
    assert ids(parts.train) | ids(parts.dev) == ids(splits["train"])
    assert not {*parts.train.groups} & {*parts.dev.groups}
    assert len(parts.dev.queries) < len(parts.train.queries)
    for wrong in ({"train": "test"}, {"dev": "test"}, {"test": "train"}):
        with pytest.raises(ValueError, match=r"--(learn|split)"):
            by_split(lambda names: splits[names[0]], **({"train": "train", "dev": "dev", "test": "test"} | wrong))


def test_an_arm_joins_or_leaves_after_the_first_pass() -> None:
    parts = by_group(random_pools(), 4)[0]
    stays, joins, leaves = (make_fold(parts, ORDER, 10, [4], how) for how in (None, "joins:a", "leaves:a"))
    assert not stays.changes
    assert joins.changes
    assert leaves.changes
    assert joins.before.recall["a"].max() == 0 < joins.train.recall["a"].max()
    assert leaves.before.recall["a"].max() > 0 == leaves.test.recall["a"].max()
    np.testing.assert_array_equal(joins.test.recall["convex"], stays.test.recall["convex"])
    for wrong in ("joins:c", "grows:a"):
        with pytest.raises(ValueError, match="unknown key"):
            make_fold(parts, ORDER, 10, [4], wrong)


def test_shuffled_queries_are_seen_as_others_and_judged_as_themselves() -> None:
    fold = make_fold(by_group(random_pools(), 4)[0], ORDER, 10, [4])
    other = fold.shuffled()
    assert not other.changes
    for own, part in zip(fold[1:4], other[1:4], strict=True):
        assert ids(own.pools) == ids(part.pools)
        assert [q.id for q in own.pools.queries] != [q.id for q in part.pools.queries]
        np.testing.assert_array_equal(own.pools.grades, part.pools.grades)
        np.testing.assert_array_equal(own.recall["convex"], part.recall["convex"])
