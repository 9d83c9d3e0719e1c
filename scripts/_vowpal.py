"""Vowpal Wabbit as a learner of cuts, to compare with: `simulate.py --model.class_path _vowpal.Vowpal`.

Needs the extra `bench`. Knows rounds and examination; knows nothing about prices or explorers.
Legend: Q queries, R rounds, F features, M candidates looked at = cuts, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from vowpalwabbit import Workspace

from ltrr.core import Rounds
from ltrr.policy.features import Known, Standard
from ltrr.policy.peers import between, checked, examined, levels


class Vowpal:
    """Costs that `--cb_explore_adf --squarecb` regresses: actions are L cuts, features the query's and their products.

    Cost = −(debiased clicks in the cut), so that a price can be taken off afterwards. It runs as `--cb_adf --cb_type
    mtr`, the same regression, because SquareCB's own output is probabilities: `ltrr.policy.explore.SquareCB` computes
    these from values (a test compares). Importance is 1: whose propensity a round had, it does not say.

    Args:
        examination: probability that position k is looked at; null = 1 / k.
        rate: learning rate.
        levels: cuts that are actions, at most.
        semi: a page teaches each level within it; false = only the deepest of these.
    """

    def __init__(
        self,
        examination: Sequence[float] | None = None,
        rate: float = 1.0,
        levels: int = 12,
        semi: bool = True,
    ) -> None:
        self._examination = checked(examination)
        self._options = f"--cb_adf --cb_type mtr -q xa --quiet -l {rate}"
        self._levels, self._semi = levels, semi

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """Anew from all rounds, in their order."""
        self._standard = Standard.of(rounds.query[np.unique(rounds.row)])
        self._edges = levels(rounds.clicks.shape[1], self._levels)
        self._between = between(self._edges, rounds.clicks.shape[1])
        self._workspace = Workspace(f"{self._options} --random_seed {seed}")
        self.update(rounds)

    def update(self, rounds: Rounds) -> None:
        """One step a round and level that it teaches, in their order."""
        examination = examined(self._examination, rounds.clicks.shape[1])[rounds.places]
        costs = -np.cumsum(rounds.clicks / examination, axis=1)
        deepest = np.logical_and.accumulate(rounds.places >= 0, axis=1).sum(axis=1)
        actions = np.searchsorted(self._edges, deepest, side="right") - 1
        shared = self._shared(rounds.query[rounds.row])
        for query, last, cost in zip(shared, actions, costs[:, self._edges - 1], strict=True):
            for action in range(0 if self._semi else max(last, 0), last + 1):
                lines = [f"|a {a}" for a in range(len(self._edges))]
                lines[action] = f"0:{cost[action]:.6g}:1 {lines[action]}"
                self._workspace.learn([query, *lines])

    def values(self, known: Known) -> np.ndarray:
        """(Q, M) less expected cost of the first 1 to M candidates, linear between levels."""
        lines = [f"|a {a}" for a in range(len(self._edges))]
        costs = [self._workspace.predict([query, *lines]) for query in self._shared(known.query)]
        return -np.array(costs).reshape(-1, len(lines)) @ self._between

    def _shared(self, query: np.ndarray) -> list[str]:
        rows = self._standard(query).tolist()
        return ["shared |x " + " ".join(f"{i}:{v:.5g}" for i, v in enumerate(row) if v) for row in rows]
