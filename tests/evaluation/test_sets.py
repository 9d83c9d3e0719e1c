"""Sets that pages did not show are estimated from explored places; without support the estimate is refused."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.evaluation.sets import Page, SetValue, Target, looks_of, pages_of, set_value
from ltrr.feedback.evidence.cells import usual_looks

QUERIES, ROWS = 40, 12
SIZE, AMONG, SHARE = 4, 4, 0.4  # the logger's cut, and what it explores


def wanted(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((QUERIES, ROWS)) < np.linspace(0.9, 0.1, ROWS)


def logged(num: int, seed: int) -> list[Page]:
    """Pages of the first rows in order, an explored one first, looked at with 1 / rank."""
    rng, relevant = np.random.default_rng(seed), wanted()
    pages = []
    for n in range(num):
        q, explored = int(rng.integers(QUERIES)), -1
        rows = [*range(SIZE)]
        if rng.random() < SHARE:
            explored = SIZE + int(rng.integers(AMONG))
            rows = [explored, *rows]
        propensity = SHARE / AMONG if explored >= 0 else 1 - SHARE
        looked = rng.random(len(rows)) < 1 / np.arange(1, len(rows) + 1)
        likes = rng.random(len(rows)) < np.where(relevant[q, rows], 0.95, 0.1)
        clicked = frozenset(row for row, click in zip(rows, looked & likes, strict=True) if click)
        pages.append(Page(q, f"s{n // 2}", rows, clicked, explored, propensity))
    return pages


def target(rows: list[int]) -> Target:
    return Target(np.tile(rows, (QUERIES, 1)), np.full(QUERIES, len(rows)))


def truth(pages: list[Page], rows: list[int]) -> float:
    rates = np.where(wanted()[:, rows], 0.95, 0.1).sum(axis=1)
    return float(np.mean([rates[page.asked] for page in pages]))


def estimated(rows: list[int], seed: int, num: int = 6_000) -> tuple[SetValue, float, float]:
    pages = logged(num, seed)
    found = set_value(pages_of(pages), target(rows), usual_looks(attraction=0.95))
    return found, truth(pages, rows), truth(pages, [*range(SIZE)])


def test_intervals_hold_the_truth_of_sets_that_were_explored() -> None:
    inside = []
    for seed in range(30):
        found, true, before = estimated([0, 5, 1, 6], seed)
        inside.append(found.low <= true <= found.high and found.gain_low <= true - before <= found.gain_high)
        assert abs(found.value - true) < 0.15 * true
        assert not found.notes
    assert np.mean(inside) >= 0.85


def test_what_pages_showed_is_told_by_looks_alone_and_the_same_set_gains_nothing() -> None:
    found, true, _ = estimated([*range(SIZE)], 0)
    assert found.value == pytest.approx(true, abs=0.1)
    assert found.gain == pytest.approx(0, abs=1e-9)
    assert found.explored == 0


def test_sets_that_no_page_can_show_are_refused_and_the_fix_is_named() -> None:
    found, *_ = estimated([0, 1, 10, 11], 0)
    assert found.missing == pytest.approx(1)
    assert "policy.explore.arm" in found.notes[0]
    assert found.low == -np.inf
    half, *_ = estimated([0, 1, 5, 10], 0)
    assert half.missing == pytest.approx(0.5, abs=0.1)
    assert half.notes


def test_looks_are_estimated_from_the_pages() -> None:
    looks = looks_of(pages_of(logged(20_000, 1)))
    np.testing.assert_allclose(looks.examined[:4], [1, 1 / 2, 1 / 3, (1 / 4 + 1 / 5) / 2], atol=0.05)
    found = set_value(pages_of(pages := logged(20_000, 2)), target([0, 5, 1, 6]))
    assert found.value == pytest.approx(truth(pages, [0, 5, 1, 6]), rel=0.06)


def test_rows_that_are_unknown_are_left_out_and_mistakes_are_named() -> None:
    pages = logged(200, 0)
    some = [page._replace(rows=[*page.rows, -1]) for page in pages]
    assert set_value(pages_of(some), target([0, 5])) == set_value(pages_of(pages), target([0, 5]))
    with pytest.raises(ValueError, match="query 39 of the pages is not among its 3"):
        set_value(pages_of([*pages, Page(39, "s", [0], frozenset())]), Target(np.zeros((3, 1), int), np.ones(3, int)))
    with pytest.raises(ValueError, match="at least two sessions"):
        set_value(pages_of(pages[:1]), target([0]))
    with pytest.raises(ValueError, match="there are none"):
        pages_of([])
