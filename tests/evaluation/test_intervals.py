"""Intervals hold the mean they are of, at about their level, and agree with known ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ltrr.evaluation.intervals import Interval, over_queries_and_seeds, over_seeds


def test_students_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(3, 1, 7)
    expected = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    assert over_seeds(values.tolist())[1:] == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 2"):
        over_seeds([1.0])


def test_the_bootstrap_covers_the_mean_and_counts_only_its_queries() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        queries = rng.normal(0, 1, 60)
        interval = over_queries_and_seeds(queries + rng.normal(0, 0.1, (4, 60)), num_draws=200)
        covered += interval.low <= 0 <= interval.high
    assert covered >= 34
    values = np.array([[1.0, 9.0], [3.0, 9.0]])
    assert over_queries_and_seeds(values, np.array([[True, False], [True, False]])).mean == 2.0


def test_an_interval_is_shown_with_its_digits() -> None:
    assert Interval(0.5, 0.25, 0.75).shown() == "0.5000 (0.250 to 0.750)"
    assert Interval(0.5, 0.25, 0.75).shown(4) == "0.5000 (0.2500 to 0.7500)"
