"""LinUCB and LinTS over whole cuts or single candidates: baselines for `RelevanceLearner`, on the same rounds.

Knows rounds and examination; does not know prices, explorers or arms.
Legend: Q queries, R rounds, F features of the query, C of a candidate, M candidates looked at = cuts, H ridge
regressions, L levels; D = F + 1 with the constant, F + C + 1 for candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ltrr.learners.exports import read_arrays, write_arrays
from ltrr.learners.shared import above_0, arrays_of, checked, examined, levels, restored_standards, standards_of
from ltrr.types import RetrievalFeatures, Rounds

_BATCH = 1024  # rounds or queries whose inputs are in memory at a time


class LinUCB:
    """Ridge regressions of debiased clicks, with deviations for an explorer.

    With the explorer `UCB` this is LinUCB (Li et al. 2010); with `Thompson`, LinTS (Agrawal & Goyal 2013) drawn from
    each cut's deviation. The argument `per` sets the model:
    cut: one regression per cut, of Σ_{j ≤ cut} click_j / examination_j on the query's features (disjoint LinUCB).
    candidate: one regression per level of depth, of click_j / examination_j with weight examination_j on the features
    of query and candidate; predictions and deviations are summed up to the cut (CombLinUCB: Wen, Kveton & Ashkan 2015).
    examination_j is that of candidate j's place on the page.

    Args:
        examination: probability that a customer looks at position k; null = 1 / k.
        per: unit that a reward belongs to, cut or candidate.
        l2: ridge penalty, above 0; the constant's is 1, because mean rewards are not small. Best on MSRD's dev queries:
            30,000 per candidate, 10,000 per cut.
        alpha: standard deviation of a reward of weight 1.
        semi: per cut: a page of K candidates teaches every cut up to K; false = only the cut that was drawn.
        levels: per candidate: most bins of depth, wider at deeper ranks.
        noise: per candidate: P(click | examined) of irrelevant candidates. Values are then expected recall, like those
            of `RelevanceLearner`, which learns this number; null = values are expected clicks.
    """

    def __init__(
        self,
        examination: Sequence[float] | None = None,
        per: Literal["cut", "candidate"] = "candidate",
        l2: float = 30_000.0,
        alpha: float = 1.0,
        semi: bool = True,
        levels: int = 12,
        noise: float | None = None,
    ) -> None:
        if per not in ("cut", "candidate"):
            raise ValueError(f"model.per: {per!r} is none of cut, candidate")
        self._options = {"examination": examination, "per": per, "l2": l2, "alpha": alpha}
        self._options |= {"semi": semi, "levels": levels, "noise": noise}
        self.columns: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self.depths: list[int] | None = None
        self.id = ""
        self._head = np.zeros(0, int)
        self._examination = checked(examination)
        if noise is not None and (per == "cut" or not 0 <= noise < 1):
            raise ValueError(f"model.noise: {noise} is not from 0 up to 1, or is given per cut")
        self._l2, self._alpha = above_0("l2", l2), above_0("alpha", alpha)
        self._each, self._semi, self._levels, self._noise = per == "candidate", semi, levels, noise

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """Fits to all rounds, whose queries also set the standardisation. Deterministic: the seed is not used."""
        num = rounds.clicks.shape[1]
        self.columns, self.depths = rounds.names, None if rounds.depths is None else rounds.depths.tolist()
        self._standard = standards_of(rounds)
        self._head = np.searchsorted(levels(num, self._levels), np.arange(1, num + 1)) if self._each else np.arange(num)
        size = rounds.query.shape[1] + 1 + self._each * rounds.candidates.shape[2]
        precision = np.diag([self._l2] * (size - 1) + [1.0])
        self._precision = np.tile(precision, (self._head[-1] + 1, 1, 1))  # (H, D, D)
        self._moment = np.zeros(self._precision.shape[:2])  # (H, D) sums of weight · reward · x
        self.update(rounds)

    def update(self, rounds: Rounds) -> None:
        """Learns from more rounds; the posterior does not depend on their order or batches."""
        cuts, num = np.arange(1, len(self._head) + 1), len(self._head)
        for start in range(0, len(rounds.row), _BATCH):
            batch = rounds.some(slice(start, start + _BATCH))
            inputs = self._inputs(RetrievalFeatures(rounds.query[batch.row], rounds.candidates[batch.row]))
            examination, taught = examined(self._examination, num)[batch.places], batch.places >= 0  # (R, M)
            rewards, weights = batch.clicks / examination, examination
            if not self._each:
                rewards, weights = np.cumsum(rewards, axis=1), np.ones_like(rewards)
                taught = np.logical_and.accumulate(taught, axis=1)
                taught &= self._semi | (cuts == batch.cut[:, None])
            for head in np.unique(self._head[taught.any(axis=0)]):
                selected = taught & (self._head == head)
                x = inputs[selected]
                weighted = x * weights[selected][:, None]
                self._precision[head] += x.T @ weighted
                self._moment[head] += rewards[selected] @ weighted
        self._solve()

    def _solve(self) -> None:
        self._means = np.linalg.solve(self._precision, self._moment[:, :, None])[:, :, 0]  # (H, D)

    @property
    def num(self) -> int:
        """Number of candidates looked at, M."""
        return len(self._head)

    def export(self, folder: Path) -> None:
        """Writes the folder that `load` reads."""
        arrays = {"precision": self._precision, "moment": self._moment, "head": self._head}
        write_arrays(folder, self, self._options, arrays | arrays_of(self._standard))

    @classmethod
    def load(cls, folder: Path) -> LinUCB:
        """Loads an export. Raises ValueError if the folder is damaged."""
        learner, arrays = read_arrays(cls, folder)
        learner._precision, learner._moment, learner._head = (arrays[n] for n in ("precision", "moment", "head"))
        learner._standard = restored_standards(arrays)
        learner._solve()
        return learner

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """Expected debiased clicks on the first 1 to M candidates, or expected recall if `noise` is set: (Q, M)."""
        rewards = self._expected(known)
        if self._noise is not None:
            rewards = rewards / (1 + rewards.sum(axis=1, keepdims=True) - rewards)
        return np.cumsum(rewards, axis=1) if self._each else rewards

    def deviations(self, known: RetrievalFeatures) -> np.ndarray:
        """Deviations alpha · sqrt(x' A⁻¹ x) of the cuts, (Q, M); with per=candidate, summed up to each cut."""
        inverses = np.linalg.inv(self._precision)[self._head]  # (M, D, D)
        spread = self._alpha * np.sqrt(
            self._over(known, lambda x: np.einsum("qmd,mde,qme->qm", x, inverses, x, optimize=True))
        )
        if self._noise is not None:
            spread /= (1 - self._noise) * (1 + self._expected(known).sum(axis=1, keepdims=True))
        return np.cumsum(spread, axis=1) if self._each else spread

    def _expected(self, known: RetrievalFeatures) -> np.ndarray:
        """Expected reward of each cut or candidate, or the candidate's relevance if `noise` is set: (Q, M)."""
        rewards = self._over(known, lambda x: np.einsum("qmd,md->qm", x, self._means[self._head]))
        return rewards if self._noise is None else np.clip((rewards - self._noise) / (1 - self._noise), 1e-6, 1)

    def _over(self, known: RetrievalFeatures, computed: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Applies a function to the inputs (Q, M, D), a batch of queries at a time: (Q, M)."""
        parts = [slice(start, start + _BATCH) for start in range(0, max(len(known.query), 1), _BATCH)]
        return np.concatenate(
            [computed(self._inputs(RetrievalFeatures(known.query[p], known.candidates[p]))) for p in parts]
        )

    def _inputs(self, known: RetrievalFeatures) -> np.ndarray:
        """Builds inputs (Q, M, D): standardised features of the query, of the candidate, and the constant 1."""
        of_query, of_candidate = self._standard
        query, shape = of_query(known.query)[:, None], (len(known.query), len(self._head))
        constant = np.ones((len(query), 1, 1))
        if not self._each:
            whole = np.concatenate([query, constant], axis=2, dtype=np.float64)
            return np.broadcast_to(whole, (*shape, whole.shape[2]))
        parts = query, of_candidate(known.candidates), constant
        return np.concatenate([np.broadcast_to(p, (*shape, p.shape[2])) for p in parts], axis=2, dtype=np.float64)
