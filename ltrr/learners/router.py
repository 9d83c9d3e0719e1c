"""A supervised router: from a query's features to the depth at which its clicks end.

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

_FITTED = ("coef_", "intercept_", "classes_")  # of the regression


class SupervisedRouter:
    """Logistic regression from the query's features to the deepest click's depth; value = P(no deeper than the cut).

    Rounds weigh 1 / examination of that click's place on the page, which few reach. Rounds without a click say nothing,
    and clicks beyond a page are never seen: so a page that was cut short says "shallow".

    Args:
        examination: probability that position k is looked at; null = 1 / k.
        l2: of the weights, above 0.
        levels: bins of depth, at most; the deeper the wider.
        heaviest: the most that a round weighs.
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
        """From all rounds; nothing is drawn."""
        num = rounds.clicks.shape[1]
        self.columns, self.depths = rounds.names, None if rounds.depths is None else rounds.depths.tolist()
        clicked = np.flatnonzero(rounds.clicks.any(axis=1))
        last = num - 1 - rounds.clicks[clicked, ::-1].argmax(axis=1)  # the deepest clicked, in fused order
        place = rounds.some(clicked).places[np.arange(len(last)), last]
        weights = np.minimum(1 / examined(self._examination, num)[place], self._heaviest)
        known = rounds.query[rounds.row[clicked]]
        self._standard = Standard.of(known)
        edges = levels(num, self._levels)
        self._between = between(edges, num)
        self._model = LogisticRegression(C=1 / self._l2, max_iter=300)
        self._model.fit(self._standard(known), np.searchsorted(edges, last + 1), weights)

    def update(self, rounds: Rounds) -> None:
        """Nothing at once: it has no closed form, the next refit learns from them."""

    @property
    def num(self) -> int:
        """M."""
        return self._between.shape[1]

    def export(self, folder: Path) -> None:
        """Writes what `load` reads."""
        model = {name: getattr(self._model, name) for name in _FITTED}
        write_arrays(folder, self, self._options, {"between": self._between} | model | arrays_of([self._standard]))

    @classmethod
    def load(cls, folder: Path) -> SupervisedRouter:
        """What `export` wrote; ValueError for a damaged folder."""
        learner, arrays = read_arrays(cls, folder)
        learner._between, (learner._standard,) = arrays["between"], restored_standards(arrays)
        learner._model = LogisticRegression()
        for name in _FITTED:
            setattr(learner._model, name, arrays[name])
        return learner

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M) probability that nothing deeper than the first 1 to M is wanted; even within a bin."""
        bins = np.zeros((len(known.query), len(self._between)))
        bins[:, self._model.classes_] = self._model.predict_proba(self._standard(known.query))
        return np.cumsum(bins, axis=1) @ self._between
