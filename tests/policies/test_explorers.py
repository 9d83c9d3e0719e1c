"""Explorers give probabilities: formulas, floors, limits, and what they need."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.policies.explorers import UCB, EpsilonGreedy, Softmax, SquareCB, Thompson

VALUES = np.array([[0.1, 0.5, 0.4, 0.5], [0.0, -1.0, 2.0, 1.9]])
DEVIATIONS = np.array([[0.1, 0.1, 0.1, 0.1], [1.0, 5.0, 0.1, 0.1]])
ALL = [Softmax(0.1, 0.1), SquareCB(50.0, 0.1), EpsilonGreedy(0.1), UCB(1.0, 0.1), Thompson(64, 0.1)]


@pytest.mark.parametrize("explorer", ALL, ids=lambda e: type(e).__name__)
def test_probabilities_sum_to_1_and_keep_their_floor(explorer):
    values, deviations = VALUES.copy(), DEVIATIONS.copy()
    found = explorer.probabilities(values, deviations)
    np.testing.assert_array_equal((values, deviations), (VALUES, DEVIATIONS))  # they are the caller's
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found >= 0.1 / 4 - 1e-12).all()


@pytest.mark.parametrize("explorer", [Softmax(1e-4, 0.0), SquareCB(1e9, 0.0), EpsilonGreedy(0.0)])
def test_the_limit_is_greedy(explorer):
    np.testing.assert_allclose(explorer.probabilities(VALUES[1:])[0], [0, 0, 1, 0], atol=1e-6)


def test_softmax_is_boltzmann_s():
    expected = np.exp(VALUES / 0.3) / np.exp(VALUES / 0.3).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(Softmax(0.3, 0.0).probabilities(VALUES), expected)
    large = Softmax(1e-3, 0.0).probabilities(VALUES * 1e4)
    assert np.isfinite(large).all()


def test_square_cb_weighs_by_inverse_gaps():
    found = SquareCB(10.0, 0.0).probabilities(VALUES)
    np.testing.assert_allclose(found[1, [0, 1, 3]], 1 / (4 + 10 * (2.0 - VALUES[1, [0, 1, 3]])))


def test_ucb_prefers_what_is_uncertain_and_thompson_tries_it():
    assert UCB(1.0, 0.0).probabilities(VALUES, DEVIATIONS)[1].argmax() == 1
    found = Thompson(2000, 0.0).probabilities(VALUES, DEVIATIONS)
    assert found[0, 0] < 0.02
    assert found[1, 1] > 0.2
    assert not Thompson.exact
    assert SquareCB.exact


def test_what_needs_deviations_says_so():
    for explorer in (UCB(), Thompson()):
        with pytest.raises(ValueError, match="deviations"):
            explorer.probabilities(VALUES)
    with pytest.raises(ValueError, match="share"):
        EpsilonGreedy(1.5).probabilities(VALUES)
