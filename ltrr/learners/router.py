"""A supervised router: predicts the depth of a query's deepest click from the query's features.

Knows rounds and examination; does not know prices, explorers or arms.
Legend: Q queries, F features of the query, M candidates looked at = cuts, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from ltrr.learners.exports import read_arrays, write_arrays
from ltrr.learners.shared import above_0, arrays_of, between, checked, examined, levels, restored_standards
from ltrr.policies.features import Standard
from ltrr.types import RetrievalFeatures, Rounds

_FITTED = ("coef_", "intercept_", "classes_")  # attributes of the fitted regression


class SupervisedRouter:
    """Logistic regression of the deepest click's depth on the query's features; value = P(depth ≤ cut).

    A round's weight is 1 / examination of that click's place on the page. Rounds without a click are left out. Clicks
    beyond the page are never observed, so short pages bias the router towards shallow cuts.

    Args:
        examination: probability that a customer looks at position k; null = 1 / k.
        l2: penalty on the weights, above 0.
        levels: most bins of depth; deeper bins are wider.
        heaviest: largest weight of a round.
    """

    def __init__(
        self,
        examination: Sequence[float] | None = None,
        l2: float = 10_000.0,
        levels: int = 6,
        heaviest: float = 3.0,
    ) -> None:
        self._options = {"examination": examination, "l2": l2, "levels": levels, "heaviest": heaviest}
        self.columns: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self.depths: list[int] | None = None
        self.id = ""
        self._examination = checked(examination)
        self._l2, self._levels, self._heaviest = above_0("l2", l2), levels, above_0("heaviest", heaviest)

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """Fits to all rounds. Deterministic: the seed is not used."""
        num_cuts = rounds.clicks.shape[1]
        self.columns, self.depths = rounds.names, None if rounds.depths is None else rounds.depths.tolist()
        clicked = np.flatnonzero(rounds.clicks.any(axis=1))
        deepest = num_cuts - 1 - rounds.clicks[clicked, ::-1].argmax(axis=1)  # the deepest clicked, in fused order
        place = rounds.some(clicked).places[np.arange(len(deepest)), deepest]
        weights = np.minimum(1 / examined(self._examination, num_cuts)[place], self._heaviest)
        features = rounds.query[rounds.row[clicked]]
        self._standard = Standard.of(features)
        edges = levels(num_cuts, self._levels)
        self._between = between(edges, num_cuts)
        self._model = LogisticRegression(C=1 / self._l2, max_iter=300)
        self._model.fit(self._standard(features), np.searchsorted(edges, deepest + 1), weights)

    def update(self, rounds: Rounds) -> None:
        """Does nothing: there is no closed-form update; the next refit learns from the rounds."""

    @property
    def num(self) -> int:
        """Number of candidates looked at, M."""
        return self._between.shape[1]

    def export(self, folder: Path) -> None:
        """Writes the folder that `load` reads."""
        model = {name: getattr(self._model, name) for name in _FITTED}
        write_arrays(folder, self, self._options, {"between": self._between} | model | arrays_of([self._standard]))

    @classmethod
    def load(cls, folder: Path) -> SupervisedRouter:
        """Loads an export. Raises ValueError if the folder is damaged."""
        learner, arrays = read_arrays(cls, folder)
        learner._between, (learner._standard,) = arrays["between"], restored_standards(arrays)
        learner._model = LogisticRegression()
        for name in _FITTED:
            setattr(learner._model, name, arrays[name])
        return learner

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """P(deepest click ≤ cut) for cuts 1 to M, (Q, M); linear within a bin."""
        bins = np.zeros((len(known.query), len(self._between)))
        bins[:, self._model.classes_] = self._model.predict_proba(self._standard(known.query))
        return np.cumsum(bins, axis=1) @ self._between
