"""Vowpal Wabbit as a learner of cuts, a baseline for `RelevanceLearner`.

    python scripts/simulate.py --policy.learner.class ltrr.learners.vowpal.Vowpal --data FOLDER

Needs the extra `bench`. Knows rounds and examination; knows nothing about prices or explorers.
Legend: Q queries, R rounds, F features, M candidates looked at = cuts, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from vowpalwabbit import Workspace

from ltrr.learners.exports import read_arrays, write_arrays
from ltrr.learners.shared import arrays_of, between, checked, examined, levels, restored_standards, standards_of
from ltrr.types import RetrievalFeatures, Rounds

_WEIGHTS = "learner.vw"


class Vowpal:
    """The cost regression of `--cb_explore_adf --squarecb`. Actions are L cuts; features are the query's, those of the
    candidate at the cut, and their products with the cut.

    Cost = −(debiased clicks in the cut), so that a price can be subtracted afterwards. It runs as `--cb_adf --cb_type
    mtr`, the same regression, because SquareCB itself outputs probabilities; the explorer `SquareCB` computes these
    from values (a test compares). Importance weights are 1, because rounds carry no propensity.

    Args:
        examination: probability that a customer looks at position k; null = 1 / k.
        rate: learning rate.
        levels: most cuts that are actions.
        semi: a page teaches every level within it; false = only the deepest of them.
        candidates: whether it reads candidates; false = only the query's features.
    """

    def __init__(
        self,
        examination: Sequence[float] | None = None,
        rate: float = 1.0,
        levels: int = 12,
        semi: bool = True,
        candidates: bool = True,
    ) -> None:
        self._arguments = {"examination": examination, "rate": rate, "levels": levels}
        self._arguments |= {"semi": semi, "candidates": candidates}
        self.columns: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self.depths: list[int] | None = None
        self.id = ""
        self._examination = checked(examination)
        self._options = f"--cb_adf --cb_type mtr -q xa -q ca --quiet -l {rate}"
        self._levels, self._semi, self._candidates = levels, semi, candidates

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """Starts afresh and learns all rounds, in their order."""
        self.columns, self.depths = rounds.names, None if rounds.depths is None else rounds.depths.tolist()
        self._standard = standards_of(rounds)
        self._edges = levels(rounds.clicks.shape[1], self._levels)
        self._between = between(self._edges, rounds.clicks.shape[1])
        self._workspace = Workspace(f"{self._options} --random_seed {seed}")
        self.update(rounds)

    def update(self, rounds: Rounds) -> None:
        """Takes one step per round and level that it teaches, in the order of rounds."""
        examination = examined(self._examination, rounds.clicks.shape[1])[rounds.places]
        costs = -np.cumsum(rounds.clicks / examination, axis=1)
        deepest = np.logical_and.accumulate(rounds.places >= 0, axis=1).sum(axis=1)
        actions = np.searchsorted(self._edges, deepest, side="right") - 1
        level_costs = costs[:, self._edges - 1]
        for row, last, cost in zip(rounds.row, actions, level_costs, strict=True):
            query, *action_lines = self._lines(rounds.query[row], rounds.candidates[row])
            for action in range(0 if self._semi else max(last, 0), last + 1):
                lines = action_lines.copy()
                lines[action] = f"0:{cost[action]:.6g}:1 {lines[action]}"
                self._workspace.learn([query, *lines])

    @property
    def num(self) -> int:
        """Number of candidates looked at, M."""
        return self._between.shape[1]

    def export(self, folder: Path) -> None:
        """Writes the folder that `load` reads, with Vowpal Wabbit's own file of weights."""
        write_arrays(
            folder, self, self._arguments, {"edges": self._edges, "between": self._between} | arrays_of(self._standard)
        )
        self._workspace.save(str(folder / _WEIGHTS))

    @classmethod
    def load(cls, folder: Path) -> Vowpal:
        """Loads an export. Raises ValueError if the folder is damaged."""
        learner, arrays = read_arrays(cls, folder)
        learner._edges, learner._between = arrays["edges"], arrays["between"]
        learner._standard = restored_standards(arrays)
        learner._workspace = Workspace(f"--quiet -i {folder / _WEIGHTS}")
        return learner

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """Negative expected cost of the first 1 to M candidates, (Q, M), linear between levels."""
        costs = [self._workspace.predict(self._lines(*one)) for one in zip(*known, strict=True)]
        return -np.array(costs) @ self._between

    def _lines(self, query: np.ndarray, candidates: np.ndarray) -> list[str]:
        """Formats the shared line and one line per cut; query (F,), candidates (M, C)."""
        actions = [f"|a {a}" for a in range(len(self._edges))]
        if self._candidates:
            standardised = self._standard[1](candidates[self._edges - 1])
            actions = [f"{line} |c {_features(row)}" for line, row in zip(actions, standardised, strict=True)]
        return [f"shared |x {_features(self._standard[0](query))}", *actions]


def _features(row: np.ndarray) -> str:
    return " ".join(f"{i}:{v:.5g}" for i, v in enumerate(row.tolist()) if v)
