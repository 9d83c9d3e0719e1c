"""Predicts, before retrieval, how much recall each choice of arms and depths loses.

Knows features, rounds in which all arms ran, and a teacher that reads the retrieved candidates (`RelevanceLearner`);
does not know how arms work. One round gives a target for every choice: the teacher predicts each candidate's relevance,
and each arm's part of the fused score is known, so the order under fewer arms can be computed.
Legend: Q queries, N choices, P heads, A arms, M candidates looked at, F columns known before retrieval, D hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ltrr.encoders.training import check_range, finite
from ltrr.fusion import WINDOW
from ltrr.learners.relevance import RelevanceLearner, gains
from ltrr.learners.relevance_network import Columns
from ltrr.learners.rounds_module import RoundsModule, read, standard_of, write
from ltrr.policies.arm_choices import FEW, choices, design
from ltrr.policies.features import Standard, arms_of, pool_names
from ltrr.types import RetrievalFeatures, Rounds

_FILES = "arms"  # name of an export's files
_SOME = 1024  # least number of choices sampled for learning, where they are too many to list
_CELLS = 4_000_000  # queries x choices x candidates computed at a time


class ArmLossLearner(RoundsModule):
    """Predicts the loss of expected recall among the first `cut` candidates when arms are off or less deep.

    Without query-specific evidence, a choice's predicted loss is its average loss: the last layer starts at 0.

    Args:
        teacher: export folder of a `RelevanceLearner` trained on the same rounds; null = passed to `refit`.
        cut: candidates that are ranked.
        shallow: depths of an arm between off and its whole depth, ascending.
        hidden: hidden units.
        dropout: of the network, 0 to 1.
        lr: peak learning rate.
        weight_decay: of AdamW.
        epochs: epochs per refit.
        batch_size: rounds per step of a refit.
    """

    monitor = "val_explained"  # higher is better
    usual: Tensor  # (P,) average loss of each head
    spread: Tensor  # () standard deviation of losses

    def __init__(
        self,
        teacher: str | None = None,
        cut: int = 10,
        shallow: Sequence[int] = (),
        hidden: int = 16,
        dropout: float = 0.3,
        lr: float = 0.01,
        weight_decay: float = 0.3,
        epochs: int = 5,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="teacher")  # the teacher is needed in training only
        check_range("model.dropout", dropout, 0, 1)
        if cut < 1:
            raise ValueError(f"model.cut: {cut} is below 1")
        if list(shallow) != sorted({*shallow}) or min(shallow, default=1) < 1:
            raise ValueError(f"model.shallow: {list(shallow)} are not ascending depths from 1")
        self.shallow = tuple(shallow)
        self._folder = teacher
        self._teachers: list[RelevanceLearner] = []  # in a list, so that Lightning does not save it as a submodule

    def prepare(self, rounds: Rounds, seed: int = 0) -> None:
        """Builds a network for the columns of these rounds; it starts at the average loss of each choice."""
        super().prepare(rounds, seed)
        arms = arms_of(rounds.names[1])
        if not arms:
            raise ValueError(f"data.path: no columns ARM_rank among those of candidates: {rounds.names[1]}")
        if self.depths is None:
            raise ValueError(
                "data.path: in some rounds arms were off or drawn to other depths, so their losses are unknown; "
                "log with scripts/simulate.py --log, or scripts/events.py rounds --all-arms"
            )
        num_pool_columns = len(pool_names(arms, rounds.candidates.shape[1])[0])
        self.columns = rounds.names[0][:-num_pool_columns], arms
        self._fused = rounds.names[1].index("fused")
        self._returned, self._shares = (
            [rounds.names[1].index(f"{a}{end}") for a in arms] for end in ("_rank", "_share")
        )
        self._found = [rounds.names[0].index(f"{arm}_found") for arm in arms]
        if not self._teachers and self._folder:  # not in __init__: Lightning would mix both modules' options
            self._teachers = [RelevanceLearner.load(self._folder)]
        if not self._teachers:
            raise ValueError("model.teacher is not set; give the export of a policy learned from the same rounds")
        if self._teachers[0].columns not in (rounds.names, ((), ())):
            raise ValueError("model.teacher: was learned from other columns than data.path has")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rows = np.unique(rounds.row)
            lost = self.lost(RetrievalFeatures(rounds.query[rows], rounds.candidates[rows]))
            usual = learned_choices(len(arms), len(self.shallow) + 2)[2] @ lost.mean(axis=0)
            self._build(Standard.of(rounds.query[rows][:, : len(self.columns[0])]), usual, lost.std())
            self._lost = np.zeros((len(rounds.query), lost.shape[1]), np.float32)
            self._lost[rows] = lost

    def _build(self, standard: Standard, usual: np.ndarray, spread: float) -> None:
        hidden = self.hparams["hidden"]
        self.trunk = nn.Sequential(
            Columns(standard), nn.Linear(len(standard.mean), hidden), nn.GELU(), nn.Dropout(self.hparams["dropout"])
        ).to(self.device)
        self.last = nn.Linear(hidden, len(usual)).to(self.device)
        for zero in self.last.parameters():
            nn.init.zeros_(zero)
        self.register_buffer("usual", torch.tensor(usual, dtype=torch.float32))
        self.register_buffer("spread", torch.tensor(max(float(spread), 1e-6)))

    def lost(self, known: RetrievalFeatures) -> np.ndarray:
        """Computes targets (Q, N): recall at `cut` the teacher expects with all arms, less with each choice."""
        num, cut = len(self.shallow) + 2, self.hparams["cut"]
        levels = np.concatenate([learned_choices(len(self.columns[1]), num)[0], [[num - 1] * len(self.columns[1])]])
        gain = gains(self._teachers[0].relevance(known))  # (Q, M)
        reciprocal, shares = (known.candidates[:, :, which] for which in (self._returned, self._shares))  # (Q, M, A)
        parts = contributions(known.candidates[:, :, self._fused], shares, reciprocal > 0)
        depths = [*self.shallow, np.inf]
        drawn = np.stack([drawn_to(d, parts, shares, reciprocal, known.query[:, self._found]) for d in depths])
        drawn = np.concatenate([np.full_like(drawn[:1], np.nan), drawn])  # (L, Q, M, A), NaN = not drawn
        recall, step = np.empty((len(gain), len(levels))), max(1, _CELLS // (len(levels) * gain.shape[1]))
        for batch in (slice(at, at + step) for at in range(0, len(gain), step)):
            shape = len(levels), len(gain[batch]), gain.shape[1]
            scores, returned = np.zeros(shape), np.zeros(shape, bool)
            for a in range(levels.shape[1]):
                part = drawn[:, batch, :, a][levels[:, a]]  # (N, step, M)
                scores, returned = scores + np.nan_to_num(part), returned | ~np.isnan(part)
            scores = np.where(returned, -scores, np.inf) + 1e-9 * np.arange(shape[2])  # ties in fused order
            last = np.partition(scores, min(cut, shape[2]) - 1, axis=2)[:, :, min(cut, shape[2]) - 1]
            recall[batch] = np.einsum("qm,nqm->qn", gain[batch], returned & (scores <= last[:, :, None]))
        return (recall[:, -1:] - recall[:, :-1]).astype(np.float32)

    def training_step(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """Mean squared error of the choices' losses, as a share of their variance."""
        target = torch.from_numpy(self._lost[batch["row"].cpu().numpy()]).to(self.usual)
        heads = self.usual + self.spread * self.last(self.trunk(batch["query"][:, : len(self.columns[0])]))
        design_matrix = learned_choices(len(self.columns[1]), len(self.shallow) + 2)[1]
        error = heads @ torch.from_numpy(design_matrix).to(heads).T - target
        return finite((error / self.spread).square().mean(), batch["ids"])

    def score(self, batch: dict[str, Any]) -> Tensor:
        return 1 - self.training_step(batch)

    def refit(self, rounds: Rounds, seed: int = 0, teacher: RelevanceLearner | None = None) -> None:
        """Trains a new network on all rounds; the same rounds and seed give the same network."""
        self._teachers = [teacher] if teacher else self._teachers
        super().refit(rounds, seed)

    def losses(self, features: np.ndarray) -> np.ndarray:
        """Predicts head losses (Q, P) in recall from features (Q, F); `design` turns them into losses of choices."""
        self.eval()
        with torch.inference_mode():
            inputs = torch.from_numpy(np.ascontiguousarray(features)).to(self.device)
            return (self.usual + self.spread * self.last(self.trunk(inputs))).cpu().numpy().astype(np.float64)

    def export(self, folder: Path) -> None:
        """Writes arms.json (options, columns) and arms.safetensors (weights, standardisation)."""
        write(self, folder, _FILES)

    @classmethod
    def load(cls, folder: str | Path) -> ArmLossLearner:
        """Loads an export. Raises ValueError naming a file that is missing, damaged or of another version."""

        def restore(module: ArmLossLearner, weights: dict[str, Tensor]) -> None:
            module._build(standard_of(weights, "trunk.0"), weights["usual"].numpy(), float(weights["spread"]))

        return read(cls, Path(folder), _FILES, restore)


@lru_cache
def learned_choices(num_arms: int, num_levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choices to learn from, all or a sample of many: levels (N, A), design matrix from head losses (N, P), and its
    pseudo-inverse (P, N)."""
    if num_levels**num_arms <= FEW:
        levels = choices(num_arms, num_levels)
    else:
        heads = design(np.ones((1, num_arms), int), num_levels).shape[1]
        levels = np.random.default_rng(0).integers(0, num_levels, (max(_SOME, 2 * heads), num_arms))
        levels = levels[levels.any(axis=1)]
    matrix = design(levels, num_levels).astype(np.float32)
    return levels, matrix, np.linalg.pinv(matrix)


class ArmContributions(NamedTuple):
    """The arms' parts of fused scores, relative to candidates that the arm did not return.

    For one query, a weighted sum of scaled scores is linear in each arm's scores and in whether it returned one.
    """

    level: np.ndarray  # (Q, A) added for each candidate that it returned
    slope: np.ndarray  # (Q, A) added per unit of its share


def contributions(fused: np.ndarray, shares: np.ndarray, returned: np.ndarray) -> ArmContributions:
    """Splits fused scores into the arms' parts by least squares over each query's candidates.

    If an arm returned every candidate, its level cannot be told from the intercept. It is credited to the arm, because
    the intercept's column is small.

    Args:
        fused: (Q, M); shares: (Q, M, A) of the arm's best score, 0 = not returned; returned: (Q, M, A) bool.
    """
    indicator = returned.astype(np.float64)
    columns = np.concatenate([indicator, shares * indicator, np.full((*fused.shape, 1), 1e-3)], axis=2)
    coefficients = np.linalg.pinv(columns, rcond=1e-6) @ fused[:, :, None].astype(np.float64)  # (Q, 2 A + 1, 1)
    arms = returned.shape[2]
    return ArmContributions(coefficients[:, :arms, 0], coefficients[:, arms : 2 * arms, 0])


def drawn_to(
    depth: float, parts: ArmContributions, shares: np.ndarray, reciprocal: np.ndarray, num_found: np.ndarray
) -> np.ndarray:
    """Computes the arms' parts of fused scores at a smaller depth, (Q, M, A); NaN = not returned at that depth.

    Scores are rescaled to the candidates still returned: the best keeps its part, the new last one gets 0.

    Args:
        shares: (Q, M, A) of the arm's best score; reciprocal: 1 / rank, 0 = not returned.
        num_found: (Q, A) candidates that each arm returned.
    """
    inside, below = reciprocal > 1 / (depth + 0.5), (reciprocal > 0) & (reciprocal < 1 / (depth + 0.5))
    level, slope = parts.level[:, None], parts.slope[:, None]
    unchanged = np.where(inside, level + slope * shares, np.nan).astype(np.float32)
    if depth >= WINDOW:
        return unchanged
    scaled = np.abs(level) > 1e-3 * np.abs(slope)  # scores that are added to the fused score unscaled have no level
    lowest = -parts.level / np.where(parts.slope == 0, 1.0, parts.slope)  # (Q, A) the share whose part is 0
    best = np.where((shares > 0).any(axis=1), 1.0, np.where(inside, shares, -np.inf).max(axis=1))[:, None]
    # interpolate the last share over log ranks, between the candidates around it or to the arm's last candidate
    place = -np.log(np.where(reciprocal > 0, reciprocal, 1.0))  # log rank, ranks from 1
    upper = np.where(inside, place, -np.inf).argmax(axis=1)[:, None]
    lower = np.where(below, place, np.inf).argmin(axis=1)[:, None]
    (x0, y0), (x1, y1) = ([np.take_along_axis(of, at, 1)[:, 0] for of in (place, shares)] for at in (upper, lower))
    end = np.log(np.clip(num_found, 1, WINDOW)), lowest
    x1, y1 = (np.where(below.any(axis=1), *pair) for pair in zip((x1, y1), end, strict=True))
    part = np.clip((np.log(depth) - x0) / np.where(x1 > x0, x1 - x0, np.inf), 0.0, 1.0)
    last_share = (y0 + part * (y1 - y0))[:, None]
    changed = inside & scaled & (slope != 0) & (num_found > depth)[:, None] & (last_share < best - 1e-6)
    rescaled = (level + slope * best) * (shares - last_share) / np.where(changed, best - last_share, 1.0)
    return np.where(changed, np.maximum(rescaled, 0.0), unchanged).astype(np.float32)
