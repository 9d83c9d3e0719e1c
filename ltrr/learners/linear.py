"""Bayesian linear regression of several heads on shared features, updated in closed form.

Knows matrices; does not know what is predicted. An observation's noise has variance 1 / weight, so posterior means are
those of weighted ridge regression (Bishop 2006, chapter 3.3). Legend: H heads, D features, B observations, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class BayesianHeads:
    """Independent heads with the prior w_h ~ N(mean, I / precision).

    Args:
        prior: (H, D) prior means.
        precision: of the prior, above 0; equals that many observations of weight 1 with unit-length features.
    """

    def __init__(self, prior: np.ndarray, precision: float) -> None:
        if not precision > 0:
            raise ValueError(f"model.prior_precision: {precision} is not above 0")
        heads, size = prior.shape
        self._inverse = np.tile(np.eye(size) / precision, (heads, 1, 1))  # (H, D, D) posterior covariances
        self.means = prior.astype(np.float64).copy()  # (H, D)

    def predict(self, features: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """Posterior means (...,) of w_head · features; features (..., D), heads (...,) int."""
        return np.einsum("...d,...d->...", features, self.means[heads])

    def variance(self, features: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """Posterior variances (...,) of w_head · features."""
        return np.einsum("...d,...de,...e->...", features, self._inverse[heads], features)

    def update(self, features: np.ndarray, targets: np.ndarray, weights: np.ndarray, heads: np.ndarray) -> None:
        """Learns from B observations: (B, D), (B,), (B,), (B,). The posterior does not depend on order or batches.

        For one head, B observations cost O(B D²) (a rank-B update, Woodbury 1950), or O(B D² + D³) if B ≥ D.
        """
        for head in np.unique(heads):
            selected = (heads == head) & (weights > 0)
            x, root = features[selected], np.sqrt(weights[selected])[:, None]
            scaled, error = x * root, (targets[selected] - x @ self.means[head]) * root[:, 0]
            inverse = self._inverse[head]
            if len(x) < len(inverse):  # a low-rank update by Woodbury's identity
                projected = scaled @ inverse
                gain = np.linalg.solve(np.eye(len(x)) + projected @ scaled.T, projected)
                inverse -= projected.T @ gain
                self.means[head] += error @ gain
            else:
                covariance = np.linalg.inv(np.linalg.inv(inverse) + scaled.T @ scaled)
                self._inverse[head] = (covariance + covariance.T) / 2
                self.means[head] += self._inverse[head] @ (scaled.T @ error)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the posterior as arrays."""
        return {"means": self.means, "covariances": self._inverse}

    @classmethod
    def restored(cls, state: Mapping[str, np.ndarray]) -> BayesianHeads:
        """Rebuilds heads from `state()`."""
        heads = cls(state["means"], 1.0)
        heads._inverse = np.array(state["covariances"], np.float64)
        return heads
