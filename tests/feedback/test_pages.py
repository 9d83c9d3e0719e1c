"""Served pages become arrays: a click log, and the credit of each arm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from ltrr.feedback.events import Action, Allocation, Impression
from ltrr.feedback.pages import arm_credits, click_log, estimated_examination, unusable
from ltrr.types import Context

START = datetime(2026, 1, 1, tzinfo=UTC)


def page(name: str, query: str, shown: tuple[str, ...], **more) -> Impression:
    return Impression(name, START, query, shown, **more)


def click(impression: Impression, entity: str, kind: str = "click") -> Action:
    return Action(f"{impression.id}-{entity}", impression.id, entity, kind, START + timedelta(seconds=9))  # type: ignore[arg-type]


def test_a_click_log_numbers_pairs_and_pads_short_pages() -> None:
    first, second = page("a", "Zorp!", ("x", "y", "z")), page("b", "zorp", ("y",))
    batches = [[(1, first, [click(first, "y"), click(first, "z", "dismiss")])], [(2, second, [])]]
    pairs, clicked = click_log(batches, 2)
    assert pairs.tolist() == [[0, 1], [1, -1]]  # the same query as normalised, the third position is cut off
    assert clicked.tolist() == [[False, True], [False, False]]
    assert [part.shape for part in click_log([], 3)] == [(0, 3), (0, 3)]


def test_examination_needs_clicks_and_stays_above_its_least() -> None:
    with pytest.raises(ValueError, match="no clicks"):
        estimated_examination(np.zeros((2, 3), np.int64), np.zeros((2, 3), bool))
    rng = np.random.default_rng(0)
    pairs = np.argsort(rng.random((4_000, 3)), axis=1)
    model = estimated_examination(pairs, rng.random(pairs.shape) < [0.6, 0.3, 0.0001])
    assert model.examination[1] == pytest.approx(0.5, abs=0.06)
    assert model.examination[2] == 0.01


def test_credit_is_debiased_and_pads_are_unknown() -> None:
    drawn = Allocation((10, 0), 5)
    ranks = ((0.0, None), (None, 3.0))
    first = page("a", "x", ("d", "e"), arms=("l", "m"), ranks=ranks, drawn=drawn, context=Context("ann"))
    second = page("b", "y", ("d",), arms=("l", "m"), ranks=((2.0, 1.0),), drawn=drawn)
    queries, returned, rewards, ran = arm_credits([(first, [click(first, "e")]), (second, [])], np.array([1.0, 0.5]))
    assert [(q.id, q.text, q.context.customer) for q in queries] == [("a", "x", "ann"), ("b", "y", None)]
    assert returned.tolist() == [[[True, False], [False, True]], [[True, True], [False, False]]]
    np.testing.assert_array_equal(rewards, [[0.0, 2.0], [0.0, np.nan]])
    assert ran.tolist() == [[True, False]] * 2
    assert unusable(first, ("l", "m")) == ""
    assert unusable(first, ("l",)) == "of other arms"
    assert "which arms" in unusable(page("c", "x", ("d",), arms=("l", "m"), drawn=drawn), ("l", "m"))
