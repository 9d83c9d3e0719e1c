"""ltrr/simulation/bandit_logs.py: logs have the probabilities that they say, and truths are averages."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.simulation import bandit_logs
from ltrr.simulation.bandit_logs import OVERLAPS, contextual, slates


@pytest.fixture(autouse=True)
def few_contexts(monkeypatch) -> None:
    monkeypatch.setattr(bandit_logs, "_TRUTH", 20_000)


@pytest.mark.parametrize("overlap", [*OVERLAPS, "deterministic"])
def test_actions_are_as_frequent_as_the_logger_says(overlap: str) -> None:
    log, contexts, truth = contextual(overlap, 4_000, 0)
    each = np.arange(4_000)
    np.testing.assert_allclose(log.logger.sum(axis=1), 1.0)
    np.testing.assert_allclose(log.target.sum(axis=1), 1.0)
    np.testing.assert_array_equal(log.propensity, log.logger[each, log.action])
    assert len(contexts) == 4_000
    assert 0 < truth < 1
    shares = np.bincount(log.action, minlength=log.logger.shape[1]) / 4_000
    np.testing.assert_allclose(shares, log.logger.mean(axis=0), atol=4 * 0.5 / np.sqrt(4_000))
    assert (log.propensity == 1).all() == (overlap == "deterministic")


def test_the_truth_is_the_targets_and_not_the_loggers() -> None:
    """Weights bring the log's rewards to the truth; without weights they are elsewhere."""
    log, _, truth = contextual("high", 20_000, 1)
    terms = log.target[np.arange(20_000), log.action] / log.propensity * log.reward
    assert abs(terms.mean() - truth) < 4 * terms.std() / np.sqrt(20_000)
    assert abs(log.reward.mean() - truth) > 0.05


def test_marginals_of_slates_are_sums_over_actions() -> None:
    log, _, _ = slates(50, 2)
    assert log.parts is not None
    assert log.marginals is not None
    assert log.target_marginals is not None
    for r in (0, 17):
        for p in range(log.parts.shape[1]):
            same = log.parts[:, p] == log.parts[log.action[r], p]
            assert log.marginals[r, p] == pytest.approx(log.logger[r, same].sum())
            assert log.target_marginals[r, p] == pytest.approx(log.target[r, same].sum())
