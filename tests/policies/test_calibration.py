"""The calibration finds the weights that labels were drawn with, and how relevant candidates of a query go together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from ltrr.policies.calibration import COUPLING, columns, fit, fit_clicks, fit_coupling, log_odds

RNG = np.random.default_rng(0)
SCORES = -np.sort(-RNG.random((3_000, 20)), axis=1)
REAL = np.arange(20) < RNG.integers(5, 21, 3_000)[:, None]
WEIGHTS = [3.0, 1.0, -0.8, -2.0]


def test_the_weights_of_drawn_labels_are_found() -> None:
    gains = RNG.random(SCORES.shape) < expit(log_odds(SCORES, WEIGHTS))
    found = fit(SCORES, REAL, gains)
    np.testing.assert_allclose(log_odds(SCORES, found)[REAL], log_odds(SCORES, WEIGHTS)[REAL], atol=0.35)
    assert np.sum(expit(log_odds(SCORES, found))[REAL]) == pytest.approx(gains[REAL].sum(), rel=0.01)
    for none in (np.zeros(SCORES.shape), np.ones(SCORES.shape)):
        with pytest.raises(ValueError, match="relevant and candidates that are not"):
            fit(SCORES, REAL, none)


def test_queries_that_want_one_thing_couple_their_candidates_against_each_other() -> None:
    odds = log_odds(SCORES, WEIGHTS)
    p = np.where(REAL, expit(odds), 0)
    one = (RNG.random(len(p))[:, None] < np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)).argmax(axis=1)
    single = np.arange(20) == one[:, None]
    assert fit_coupling(np.where(REAL, np.log(p / p.sum(axis=1, keepdims=True) + 1e-9), -9), REAL, single) < -2
    independent = RNG.random(SCORES.shape) < p
    assert abs(fit_coupling(odds, REAL, independent)) < 0.1
    shifted = RNG.random(SCORES.shape) < np.where(REAL, expit(odds + RNG.normal(0, 2, (3_000, 1))), 0)
    assert 0.1 < fit_coupling(odds, REAL, shifted) < COUPLING


def test_clicks_at_places_that_are_looked_at_less_give_the_same_weights() -> None:
    x = columns(SCORES)[:, :8].reshape(-1, 4)
    examined = np.tile(1 / np.arange(1, 9), len(SCORES))
    offset = RNG.normal(0, 1, len(x))
    wanted = RNG.random(len(x)) < expit(x @ np.array(WEIGHTS) + offset)
    clicks = RNG.random(len(x)) < examined * np.where(wanted, 0.8, 0.1)
    found = fit_clicks(x, offset, clicks, examined, 0.8, 0.1)
    truth = expit(x @ np.array(WEIGHTS))
    assert np.abs(expit(x @ np.array(found)) - truth).mean() < 0.03
    assert expit(x @ np.array(found)).mean() == pytest.approx(truth.mean(), abs=0.02)


def test_log_odds_are_the_columns_times_the_weights() -> None:
    np.testing.assert_allclose(log_odds(SCORES, WEIGHTS), columns(SCORES) @ np.array(WEIGHTS), atol=1e-12)
