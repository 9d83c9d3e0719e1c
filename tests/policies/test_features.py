"""Columns have names, pads say nothing, and what is unknown is neither high nor low."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from ltrr.funnel import Funnel
from ltrr.fusion import ReciprocalRankFusion
from ltrr.policies.features import (
    QUERY,
    TEXT,
    TIME,
    ContextFeatures,
    Feature,
    Group,
    Standard,
    embedding_features,
    pool_features,
    pool_names,
    query_features,
)
from ltrr.policies.fixed import FixedPolicy
from ltrr.types import Candidates, Context, Query


class Listed:
    """An arm that returns what it was given."""

    def __init__(self, lists: list[list[int]]) -> None:
        self._lists = lists

    def search(self, queries, k):
        rows = [np.array(self._lists[int(q.id)], np.int32) for q in queries]
        return Candidates.from_lists(rows, [10.0 - np.arange(len(r), dtype=np.float32) for r in rows], k).first(k)


def pool_of(*arms: list[list[int]]):
    named = {f"arm{i}": Listed(lists) for i, lists in enumerate(arms)}
    funnel = Funnel(named, FixedPolicy(list(named), dict.fromkeys(named, 9), 99), ReciprocalRankFusion())
    return funnel.draw([Query(str(i), "q") for i in range(len(arms[0]))]).pool


@pytest.fixture
def pool():
    return pool_of([[1, 2, 3, 4], []], [[2, 9], [5]])


def test_every_column_has_a_name_and_a_unit(pool):
    known = pool_features(pool, 6)
    query, each = pool_names(pool.arms[:-1], 6)
    assert known.query.shape == (2, len(query))
    assert known.candidates.shape == (2, 6, len(each))
    for features in (QUERY, query, each):
        assert len({feature.name for feature in features}) == len(features)
        assert all(feature.unit for feature in features)
    assert query_features([Query("q", "a b")]).shape == (1, len(QUERY))


def test_columns_say_what_they_are_called(pool):
    known = pool_features(pool, 6)
    query, each = pool_names(pool.arms[:-1], 6)
    of_query = {f.name: known.query[:, i] for i, f in enumerate(query)}
    of_each = {f.name: known.candidates[:, :, i] for i, f in enumerate(each)}
    assert pool.docs[0, 0] == 2  # both arms have it
    assert of_query["arm0_found"].tolist() == [4, 0]
    assert of_query["arm0_score_1"].tolist() == [10, 0]
    assert of_query["arm0_gap"].tolist() == [1, 0]
    assert of_query["arm1_in_1"].tolist() == [1, 1]
    assert of_query["arm1_in_3"].tolist() == pytest.approx([2 / 3 if 9 in pool.docs[0, :3] else 1 / 3, 1 / 3])
    assert of_each["real"].tolist() == [[1] * 5 + [0], [1] + [0] * 5]
    assert of_each["agree"][0, 0] == 1.0
    assert of_each["arm0_share"][0, 0] == pytest.approx(0.9)
    assert of_each["arm0_rank"][0, 0] == pytest.approx(0.5)
    assert of_each["below_first"][0, 0] == 0.0
    assert (known.candidates[1, 1:] == 0).all()


def test_pads_change_nothing(pool):
    alone = pool_of([[]], [[5]])
    assert alone.docs.shape[1] < pool.docs.shape[1]
    for wide, narrow in zip(pool_features(pool, 6), pool_features(pool_of([[1], []], [[2], [5]]), 6), strict=True):
        np.testing.assert_array_equal(wide[1], narrow[1])


def test_time_is_a_circle_and_may_be_unknown():
    night, noon = (datetime(2026, 3, 7, hour, tzinfo=UTC) for hour in (0, 12))
    found = query_features([Query("a", "two words 12", Context(time=t)) for t in (night, noon, None)])
    named = {f.name: found[:, i] for i, f in enumerate(QUERY)}
    assert named["words"].tolist() == [3, 3, 3]
    assert named["digits"].tolist() == [2, 2, 2]
    assert named["hour_cos"][:2].tolist() == pytest.approx([1, -1])
    assert named["weekend"][:2].tolist() == [1, 1]
    assert np.isnan(found[2, 3:]).all()


def test_groups_stand_side_by_side_and_keep_their_columns():
    queries = [Query("a", "two words 12"), Query("b", "one")]
    turned = ContextFeatures([TIME, TEXT])
    np.testing.assert_array_equal(turned(queries)[:, 6:], query_features(queries)[:, :3])
    assert turned.columns == (*QUERY[3:], *QUERY[:3])
    assert turned([]).shape == (0, 9)
    short = Group((Feature("a", "x"), Feature("b", "x")), lambda queries: np.zeros((len(queries), 1)))
    with pytest.raises(ValueError, match="reshape"):
        ContextFeatures([short])(queries)


def test_a_projection_keeps_what_is_near_near():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 100))
    vectors[100:] = vectors[:100] + 0.1 * rng.normal(size=(100, 100))
    vectors[0] = 0
    found = embedding_features(lambda queries: vectors)
    values = found.values([])
    assert values.shape == (200, len(found.columns))
    assert np.isnan(values[0]).all()
    near = np.linalg.norm(values[1:100] - values[101:], axis=1)
    far = np.linalg.norm(values[1:100] - np.roll(values[1:100], 1, axis=0), axis=1)
    assert near.max() < far.min()
    np.testing.assert_array_equal(values, found.values([]))  # the same each time


def test_standard_columns_have_mean_0_and_the_unknown_are_there():
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, [0.1, 10.0, 0.0], (500, 3))
    values[::3, 1] = np.nan
    standard = Standard.of(values)
    found = standard(values)
    for column, deviation in enumerate([1, 1, 0]):
        known = found[~np.isnan(values[:, column]), column]
        assert known.mean() == pytest.approx(0, abs=1e-5)
        assert known.std() == pytest.approx(deviation, abs=1e-4)
    assert (found[::3, 1] == 0).all()
    assert (np.abs(standard(values + 1e6)) <= 5).all()


def test_no_columns_have_a_standard_too():
    assert Standard.of(np.zeros((5, 0))).mean.shape == (0,)
