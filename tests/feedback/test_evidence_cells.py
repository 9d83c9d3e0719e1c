"""Shows by cell: two ways of counting agree, silence needs trust as clicks do, and how customers look is recovered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltrr.feedback.evidence.cells import NUM, RANGES, Looks, Shows, cells_of, fit_looks, usual_looks
from ltrr.feedback.evidence.evidence import Evidence
from ltrr.feedback.evidence.tally import Tally
from ltrr.simulation.stream import Customers
from ltrr.types import ActionRow, Context, ImpressionRow, Query

SECOND = 1_000_000
QUERIES = [Query(str(i), text) for i, text in enumerate(("love", "sad tune", "never asked"))]
ROWS = np.array([[4, 1, 2, -1, 7, 0], [5, 3, 8, 2, 1, -1], [0, 1, 2, 3, 4, 5]])
WEIGHTS = np.random.default_rng(3).normal(size=(2, 1 + NUM))


def pages(num: int = 200, seed: int = 0, customers: int = 50) -> list[tuple[ImpressionRow, list[ActionRow]]]:
    rng = np.random.default_rng(seed)
    out = []
    for n in range(num):
        rows = rng.permutation(9)[: rng.integers(1, 9)].tolist()
        time, who = 1_780_000_000 * SECOND + n * 60 * SECOND, f"c{rng.integers(customers)}"
        impression = ImpressionRow(f"i{n}", f"s{n}", who, time, QUERIES[rng.integers(2)].text, rows)
        clicked = [k for k in range(len(rows)) if rng.random() < 0.3]
        out.append(
            (impression, [ActionRow(f"a{n}-{k}", f"i{n}", rows[k], "click", time + SECOND, None) for k in clicked])
        )
    return out


def evidence(**options) -> Evidence:
    loose = {"distinct": 1, "cap": 1e9, "budget": 1e9, "half_life": 1e8, "cells": True, "neighbours": 0}
    return Evidence({f"e{i}": i for i in range(9)}, (), **{**loose, **options})


def test_a_cell_is_a_range_of_places_and_whether_anything_above_was_clicked() -> None:
    clicked = np.zeros(30, bool)
    clicked[[2, 7]] = True
    cells = cells_of(clicked)
    ranges = [0, 1, 2, 3, 3, *[4] * 5, *[5] * 10, *[6] * 10]
    assert cells.tolist() == [r + RANGES * (k > 2) for k, r in enumerate(ranges)]
    several = [np.random.default_rng(i).random(n) < 0.3 for i, n in enumerate((4, 1, 9))]
    starts = np.repeat(np.cumsum([0, 4, 1]), [4, 1, 9])
    together = cells_of(np.concatenate(several), np.arange(14) - starts, starts)
    assert together.tolist() == np.concatenate([cells_of(page) for page in several]).tolist()


def test_a_tally_counts_what_evidence_counts_without_trust() -> None:
    tally, full = Tally(), evidence()
    for impression, actions in pages():
        tally.take([impression], actions)
        full.take([impression], actions)
    ours, theirs = (each.weigh(QUERIES, ROWS, WEIGHTS) for each in (tally, full))
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not ours[2].any()
    assert not ours[ROWS < 0].any()
    assert tally.shown == full.shown
    for one, other in zip(tally.shows()[:3], full.shows()[:3], strict=True):
        np.testing.assert_allclose(np.sort(one, axis=0), np.sort(other, axis=0), rtol=1e-4, atol=1e-4)


def test_late_clicks_order_and_snapshots_change_nothing(tmp_path: Path) -> None:
    at_once, late = evidence(), evidence()
    for impression, actions in pages(80):
        at_once.take([impression], actions)
    shuffled = np.random.default_rng(1).permutation(80)
    for n in shuffled.tolist():
        late.take([pages(80)[n][0]], [])
    late.take([], [action for _, actions in pages(80) for action in actions])
    expected = at_once.weigh(QUERIES, ROWS, WEIGHTS)
    np.testing.assert_allclose(late.weigh(QUERIES, ROWS, WEIGHTS), expected, rtol=1e-4, atol=1e-4)
    late.save(tmp_path / "evidence.npz")
    loaded = evidence()
    loaded.load(tmp_path / "evidence.npz")
    np.testing.assert_allclose(loaded.weigh(QUERIES, ROWS, WEIGHTS), expected, rtol=1e-4, atol=1e-4)
    assert loaded.shown == pytest.approx(at_once.shown, rel=1e-4)


def test_silence_needs_as_many_customers_as_clicks_and_is_taken_back() -> None:
    full = evidence(distinct=3)
    alone = np.append(0.0, np.ones(NUM))[None]  # counts silences

    def seen_by(customer: str | None) -> np.ndarray:
        return full.weigh([Query("q", "love", Context(customer))], np.array([[1, 2]]), alone)[0, :, 0]

    def show(customer: str, n: int) -> None:
        full.take([ImpressionRow(f"{customer}{n}", f"{customer}{n}", customer, 10**15 + n, "love", [1, 2])], [])

    for n in range(20):
        show("loud", n)
    assert seen_by(None).tolist() == [0, 0]
    assert (seen_by("loud") > 0).all()
    show("b", 30)
    assert seen_by("c").tolist() == [0, 0]
    show("c", 31)
    assert (seen_by(None) > 2).all()
    full.erase("loud")
    assert seen_by(None).tolist() == [0, 0]
    assert seen_by("b") == pytest.approx([1, 1], rel=1e-3)


@pytest.mark.parametrize("customers", [Customers(), Customers(eta=2.0, noise=0.2), Customers(satisfied=0.7)])
def test_how_customers_look_is_recovered_from_what_was_shown(customers: Customers) -> None:
    rng, tally = np.random.default_rng(0), Tally()
    wanted = rng.random((150, 12)) < 0.25
    looked = np.zeros((2, NUM))
    for n in range(12_000):
        q = rng.integers(150)
        rows = np.argsort(-(wanted[q] + rng.normal(size=12)))[:8]
        draws = rng.random((2, 8))
        clicks = customers.clicks(wanted[q, rows].astype(float), draws)
        all_of = customers.clicks(np.ones(8), draws)  # everything that is looked at attracts
        np.add.at(looked[0], cells_of(clicks), all_of if customers.satisfied is None else 0)
        np.add.at(looked[1], cells_of(clicks), 1)
        actions = [ActionRow(f"{n}-{k}", str(n), int(rows[k]), "click", n, None) for k in np.flatnonzero(clicks)]
        tally.take([ImpressionRow(str(n), str(n), "", n, f"q{q}", rows.tolist())], actions)
    found = fit_looks(tally.shows(), usual_looks())
    assert found.noise == pytest.approx(customers.noise, abs=0.04)
    assert found.attraction > 0.9
    often = looked[1] > 1_000
    if customers.satisfied is None:
        np.testing.assert_allclose(found.examined[often], looked[0, often] / looked[1, often], atol=0.06)
    else:  # fewer look below a click
        assert found.examined[1] > 0.75
        assert found.examined[1 + RANGES] < 0.5


def test_a_click_speaks_for_a_candidate_and_silence_against_it_the_more_the_higher_it_stood() -> None:
    (ratios,) = usual_looks().log_ratios()
    assert ratios[0] == pytest.approx(np.log(9))
    assert (ratios[1:] < 0).all()
    assert (np.diff(ratios[1 : 1 + RANGES]) > 0).all()
    (blind,) = Looks(np.full(NUM, 1e-3), 0.9, 0.1).log_ratios()
    assert np.abs(blind[1:]).max() < 0.001


def test_levels_are_told_apart_by_their_click_rates() -> None:
    looks = usual_looks(levels=[(1.0, 0.3), (0.4, 0.7)])
    odds, gain = looks.read(np.zeros((1, 2)))
    assert (odds[0], gain[0]) == (pytest.approx(0.0), pytest.approx(0.3 + 0.7 * 0.4))
    clicks, silences = np.array([[9.0, 1.0], [4.0, 6.0], [1.0, 9.0]]).T  # of ten looks at the first place
    counts = np.zeros((3, 1 + NUM))
    counts[:, 0], counts[:, 1] = clicks, silences
    odds, gain = looks.read(counts @ looks.log_ratios().T)
    assert (np.diff(gain) < 0).all()
    assert gain[0] > 0.95
    assert gain[1] < 0.45
    assert odds[1] > 1 > odds[2]  # four of ten clicks: wanted, less; one of ten: noise


def test_shares_of_levels_are_found_and_a_level_that_nothing_has_is_dropped() -> None:
    rng = np.random.default_rng(0)
    for gains, share in (((1.0,), 1.0), ((1.0, 0.4), 0.5)):
        each = rng.choice([0.0, *gains], 3_000, p=[0.6, *[0.4 / len(gains)] * len(gains)])
        rate = 0.1 + 0.85 * each
        counts = rng.binomial(20, rate)
        silences = np.zeros((3_000, NUM))
        silences[:, 0] = 20 - counts
        clicks = np.zeros(NUM)
        clicks[0] = counts.sum()
        found = fit_looks(Shows(counts, silences, clicks), usual_looks(levels=[(1.0, 0.7), (0.4, 0.3)]))
        assert found.levels[0, 1] == pytest.approx(share, abs=0.06)
        assert found.attraction == pytest.approx(0.95, abs=0.03)
        assert found.noise == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("attraction", "noise"), [(0.1, 0.05), (0.3, 0.1), (1.0, 0.1)])
def test_scores_tell_attraction_and_noise_where_clicks_are_weak(attraction: float, noise: float) -> None:
    rng, tally, customers = np.random.default_rng(0), Tally(), Customers(attraction=attraction, noise=noise)
    odds = rng.normal(0, 2, (2_000, 6))
    wanted = rng.random(odds.shape) < 1 / (1 + np.exp(-odds))
    for n in range(10_000):
        q = int(rng.integers(2_000))
        rows = np.argsort(-(odds[q] + rng.normal(size=6)))
        clicks = customers.clicks(wanted[q, rows].astype(float), rng.random((2, 6)))
        page = ImpressionRow(str(n), str(n), "", 10**15 + n, f"q{q}", rows.tolist())
        tally.take(
            [page], [ActionRow(f"{n}-{k}", str(n), int(rows[k]), "click", 10**15, None) for k in np.flatnonzero(clicks)]
        )
    shown = tally.shows()
    assert shown.query is not None
    assert shown.rows is not None
    of = np.array([int(text[1:]) for text in shown.texts])
    prior = odds[of[shown.query], shown.rows]
    known = fit_looks(shown, usual_looks(), prior=2 * prior + 1)  # scores need not be calibrated
    blind = fit_looks(shown, usual_looks())
    apart = [
        abs(looks.noise - noise) + abs(min(looks.attraction, 0.98) - min(attraction, 0.98)) for looks in (known, blind)
    ]
    assert apart[0] < 0.08
    assert apart[0] <= apart[1] + 0.01
    half = np.where(np.arange(len(prior)) % 2, prior, np.nan)
    assert np.isfinite(fit_looks(shown, usual_looks(), prior=half).noise)
