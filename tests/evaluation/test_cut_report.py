"""Curves of learning and the table of a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.evaluation.cut_report import CURVE, alike, compared, curve_of, regret_of, report
from ltrr.evaluation.regret import Chosen


@pytest.fixture(scope="module")
def recall() -> np.ndarray:
    return np.sort(np.random.default_rng(0).random((60, 8)), axis=1)


def test_a_fixed_cut_loses_as_much_as_itself(recall) -> None:
    row, cut = np.random.default_rng(1).permutation(60), np.full(60, 3)
    curve = curve_of(row, cut, recall[row, 2], {"convex": recall, "rrf": recall * 0.5})
    assert curve[-1, 0] == 60
    lost = regret_of(alike([curve, curve[::2]]))
    assert lost["policy"] == pytest.approx(lost["convex"])
    assert 0 <= lost["policy"] < lost["rrf"]
    assert list(lost) == ["policy", "convex", "rrf"]
    assert curve.shape == (40, len(CURVE))


def test_a_row_says_where_no_price_leads(recall) -> None:
    chosen = [Chosen(np.full((60, 1), 2.0), recall[:, 1:2])]
    row = compared(recall, recall, chosen, np.arange(60), 5)
    assert row["gap_closed_at_K"] is None
    assert row["gap_closed"]["mean"] == pytest.approx(0.0)
    assert row["fixed"] == pytest.approx(row["recall"]["mean"])
    cell = {"K=5": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    results = {"all": [{"clicks": "simulated", "passes": 1, "K": 5} | row], "base": {"K=5": "rrf"}}
    results |= {"systems": {"rrf": cell}, "regret": {"K=5": {"policy": 0.1, "convex": 0.2, "rrf": 0.3}}}
    lines = report(results | {"priced_on_itself": False})
    assert any("never there" in line for line in lines)
    assert "| rrf | 0.500 (0.400 to 0.600) |" in lines
    assert len(report(results | {"priced_on_itself": True})) == len(lines) + 1
