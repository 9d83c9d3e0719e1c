"""Bayesian linear regression of several heads on shared features, updated in closed form.

Knows matrices; knows nothing about what is predicted. Noise of an observation has variance 1 / weight, so results are
those of weighted ridge regression (Bishop 2006, chapter 3.3). Legend: H heads, D features, B observations, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class BayesianHeads:
    """w_h ~ N(mean, I / precision) before anything was seen.

    Args:
        prior: (H, D) means.
        precision: of the prior, above 0: how many observations of weight 1 and feature length 1 it is worth.
    """

    def __init__(self, prior: np.ndarray, precision: float) -> None:
        if not precision > 0:
            raise ValueError(f"model.prior_precision: {precision} is not above 0")
        heads, size = prior.shape
        self._inverse = np.tile(np.eye(size) / precision, (heads, 1, 1))  # (H, D, D) posterior covariances
        self.means = prior.astype(np.float64).copy()  # (H, D)

    def predict(self, features: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """(...,) means of w_head · features; features (..., D), heads (...,) int."""
        return np.einsum("...d,...d->...", features, self.means[heads])

    def variance(self, features: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """(...,) posterior variances of w_head · features."""
        return np.einsum("...d,...de,...e->...", features, self._inverse[heads], features)

    def update(self, features: np.ndarray, targets: np.ndarray, weights: np.ndarray, heads: np.ndarray) -> None:
        """Learns from B observations (B, D), (B,), (B,), (B,); any order and any batches give the same posterior.

        B observations of a head cost a rank-B update, O(B D²) (Woodbury 1950); more than D of them O(B D² + D³).
        """
        for head in np.unique(heads):
            mine = (heads == head) & (weights > 0)
            x, root = features[mine], np.sqrt(weights[mine])[:, None]
            scaled, error = x * root, (targets[mine] - x @ self.means[head]) * root[:, 0]
            inverse = self._inverse[head]
            if len(x) < len(inverse):  # rank len(x): Sherman & Morrison's, and Woodbury's
                known = scaled @ inverse
                gain = np.linalg.solve(np.eye(len(x)) + known @ scaled.T, known)
                inverse -= known.T @ gain
                self.means[head] += error @ gain
            else:
                covariance = np.linalg.inv(np.linalg.inv(inverse) + scaled.T @ scaled)
                self._inverse[head] = (covariance + covariance.T) / 2
                self.means[head] += self._inverse[head] @ (scaled.T @ error)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays without objects."""
        return {"means": self.means, "covariances": self._inverse}

    @classmethod
    def restored(cls, state: Mapping[str, np.ndarray]) -> BayesianHeads:
        """What `state` gave."""
        heads = cls(state["means"], 1.0)
        heads._inverse = np.array(state["covariances"], np.float64)
        return heads
