"""Bayesian heads are weighted ridge regression, however the observations come."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.learners.linear import BayesianHeads


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    size, heads, num = 4, 3, 150
    return {
        "features": rng.normal(size=(num, size)),
        "targets": rng.normal(size=num),
        "weights": rng.random(num),
        "heads": rng.integers(0, heads, num),
        "prior": rng.normal(size=(heads, size)),
    }


def taught(data, rows=slice(None)):
    heads = BayesianHeads(data["prior"], 2.0)
    heads.update(*(data[name][rows] for name in ("features", "targets", "weights", "heads")))
    return heads


def test_the_posterior_is_that_of_ridge_regression(data):
    found = taught(data)
    for head in range(3):
        x, y, w = (data[n][data["heads"] == head] for n in ("features", "targets", "weights"))
        precision = 2.0 * np.eye(4) + x.T @ (x * w[:, None])
        expected = np.linalg.solve(precision, 2.0 * data["prior"][head] + x.T @ (w * y))
        np.testing.assert_allclose(found.means[head], expected)
        new = np.ones((1, 4))
        np.testing.assert_allclose(found.variance(new, np.array([head])), (new @ np.linalg.inv(precision) @ new.T)[0])


def test_one_by_one_is_as_all_at_once(data):
    whole, single = taught(data), BayesianHeads(data["prior"], 2.0)
    for row in np.random.default_rng(1).permutation(150):
        single.update(*(data[name][[row]] for name in ("features", "targets", "weights", "heads")))
    np.testing.assert_allclose(single.means, whole.means)
    np.testing.assert_allclose(single.state()["covariances"], whole.state()["covariances"])


def test_what_was_not_examined_teaches_nothing(data):
    data["weights"][:] = 0.0
    found = taught(data)
    np.testing.assert_array_equal(found.means, data["prior"])


def test_a_state_goes_on(data):
    first = taught(data, slice(0, 70))
    again = BayesianHeads.restored(first.state())
    for heads in (first, again):
        heads.update(*(data[name][70:] for name in ("features", "targets", "weights", "heads")))
    np.testing.assert_array_equal(first.means, again.means)
    rows, heads = np.ones((5, 4)), np.array([0, 1, 2, 0, 1])
    np.testing.assert_array_equal(first.predict(rows, heads), again.predict(rows, heads))


def test_a_prior_needs_precision(data):
    with pytest.raises(ValueError, match="prior_precision"):
        BayesianHeads(data["prior"], 0.0)
