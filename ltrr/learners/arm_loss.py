"""Predicts, before retrieval, how much recall each choice of arms and depths loses.

Knows features, rounds in which all arms ran, and a teacher that saw what the arms returned (`RelevanceLearner`); does
not know how arms work. One round gives a target for every choice: the teacher says how likely each candidate is
relevant, each arm's part of the fused score is known, so the order that the remaining arms would give can be computed.
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

_FILES = "arms"  # what an export's files are called
_SOME = 1024  # choices that are learned from where they are many, at least
_CELLS = 4_000_000  # of queries, choices and candidates that are looked at together


class ArmLossLearner(RoundsModule):
    """Expected recall of the first `cut` candidates that is lost where only some arms run, or run less deep.

    Without evidence that a query is special, every choice loses what it loses in the mean: the last layer starts at 0.

    Args:
        teacher: folder of the policy that was learned from the same rounds; null = it is given to `refit`.
        cut: candidates that are ranked.
        shallow: depths of an arm between off and its whole depth, ascending.
        hidden: units.
        dropout: 0 to 1.
        lr: learning rate at its peak.
        weight_decay: of AdamW.
        epochs: of a refit.
        batch_size: rounds of a refit's step.
    """

    monitor = "val_explained"  # higher is better
    usual: Tensor  # (P,) what each head loses in the mean
    spread: Tensor  # of losses

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
        self.save_hyperparameters(ignore="teacher")  # which nobody needs who has learned from it
        check_range("model.dropout", dropout, 0, 1)
        if cut < 1:
            raise ValueError(f"model.cut: {cut} is below 1")
        if list(shallow) != sorted({*shallow}) or min(shallow, default=1) < 1:
            raise ValueError(f"model.shallow: {list(shallow)} are not ascending depths from 1")
        self.shallow = tuple(shallow)
        self._folder = teacher
        self._teachers: list[RelevanceLearner] = []  # a list, so that they are not saved as a part

    def prepare(self, rounds: Rounds, seed: int = 0) -> None:
        """A new network for what these rounds know, at what each choice loses in the mean."""
        super().prepare(rounds, seed)
        arms = arms_of(rounds.names[1])
        if not arms:
            raise ValueError(f"data.path: no columns ARM_rank among those of candidates: {rounds.names[1]}")
        if self.depths is None:
            raise ValueError(
                "data.path: has rounds in which arms were off or drawn to other depths, which cannot tell what is lost "
                "without them; log with scripts/simulate.py --log, or scripts/events.py rounds --all-arms"
            )
        later = len(pool_names(arms, rounds.candidates.shape[1])[0])
        self.columns = rounds.names[0][:-later], arms
        self._fused = rounds.names[1].index("fused")
        self._returned, self._shares = (
            [rounds.names[1].index(f"{a}{end}") for a in arms] for end in ("_rank", "_share")
        )
        self._found = [rounds.names[0].index(f"{arm}_found") for arm in arms]
        if not self._teachers and self._folder:  # not before: a module that is made within another takes its options
            self._teachers = [RelevanceLearner.load(self._folder)]
        if not self._teachers:
            raise ValueError("model.teacher is not set; give the export of a policy learned from the same rounds")
        if self._teachers[0].columns not in (rounds.names, ((), ())):
            raise ValueError("model.teacher: was learned from other columns than data.path has")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            seen = np.unique(rounds.row)
            lost = self.lost(RetrievalFeatures(rounds.query[seen], rounds.candidates[seen]))
            usual = learned_choices(len(arms), len(self.shallow) + 2)[2] @ lost.mean(axis=0)
            self._build(Standard.of(rounds.query[seen][:, : len(self.columns[0])]), usual, lost.std())
            self._lost = np.zeros((len(rounds.query), lost.shape[1]), np.float32)
            self._lost[seen] = lost

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
        """(Q, N) of the recall that the teacher expects of all arms' first `cut`, for the choices that are learned."""
        num, cut = len(self.shallow) + 2, self.hparams["cut"]
        levels = np.concatenate([learned_choices(len(self.columns[1]), num)[0], [[num - 1] * len(self.columns[1])]])
        worth = gains(self._teachers[0].relevance(known))  # (Q, M)
        reciprocal, shares = (known.candidates[:, :, which] for which in (self._returned, self._shares))  # (Q, M, A)
        gave = contributions(known.candidates[:, :, self._fused], shares, reciprocal > 0)
        depths = [*self.shallow, np.inf]
        drawn = np.stack([drawn_to(d, gave, shares, reciprocal, known.query[:, self._found]) for d in depths])
        drawn = np.concatenate([np.full_like(drawn[:1], np.nan), drawn])  # (L, Q, M, A), NaN = not drawn
        kept, step = np.empty((len(worth), len(levels))), max(1, _CELLS // (len(levels) * worth.shape[1]))
        for some in (slice(at, at + step) for at in range(0, len(worth), step)):
            shape = len(levels), len(worth[some]), worth.shape[1]
            scores, left = np.zeros(shape), np.zeros(shape, bool)
            for a in range(levels.shape[1]):
                own = drawn[:, some, :, a][levels[:, a]]  # (N, step, M)
                scores, left = scores + np.nan_to_num(own), left | ~np.isnan(own)
            scores = np.where(left, -scores, np.inf) + 1e-9 * np.arange(shape[2])  # equals in fused order
            last = np.partition(scores, min(cut, shape[2]) - 1, axis=2)[:, :, min(cut, shape[2]) - 1]
            kept[some] = np.einsum("qm,nqm->qn", worth[some], left & (scores <= last[:, :, None]))
        return (kept[:, -1:] - kept[:, :-1]).astype(np.float32)

    def training_step(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """Squared error, of the losses' variance."""
        target = torch.from_numpy(self._lost[batch["row"].cpu().numpy()]).to(self.usual)
        heads = self.usual + self.spread * self.last(self.trunk(batch["query"][:, : len(self.columns[0])]))
        made = learned_choices(len(self.columns[1]), len(self.shallow) + 2)[1]
        error = heads @ torch.from_numpy(made).to(heads).T - target
        return finite((error / self.spread).square().mean(), batch["ids"])

    def score(self, batch: dict[str, Any]) -> Tensor:
        return 1 - self.training_step(batch)

    def refit(self, rounds: Rounds, seed: int = 0, teacher: RelevanceLearner | None = None) -> None:
        """A new network from all rounds; the same rounds and seed give the same one."""
        self._teachers = [teacher] if teacher else self._teachers
        super().refit(rounds, seed)

    def losses(self, features: np.ndarray) -> np.ndarray:
        """(Q, P) recall that each head loses, of which choices' losses are made (`design`); features (Q, F)."""
        self.eval()
        with torch.inference_mode():
            read = torch.from_numpy(np.ascontiguousarray(features)).to(self.device)
            return (self.usual + self.spread * self.last(self.trunk(read))).cpu().numpy().astype(np.float64)

    def export(self, folder: Path) -> None:
        """arms.json and arms.safetensors: columns, weights, how columns are standardised."""
        write(self, folder, _FILES)

    @classmethod
    def load(cls, folder: str | Path) -> ArmLossLearner:
        """What `export` wrote; ValueError names a file that is not there, damaged or of another version."""

        def restore(module: ArmLossLearner, weights: dict[str, Tensor]) -> None:
            module._build(standard_of(weights, "trunk.0"), weights["usual"].numpy(), float(weights["spread"]))

        return read(cls, Path(folder), _FILES, restore)


@lru_cache
def learned_choices(num_arms: int, num_levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, A) levels of the choices that are learned from, all or some of many; (N, P) of which heads they are made, and
    (P, N) how heads' losses follow from theirs."""
    if num_levels**num_arms <= FEW:
        levels = choices(num_arms, num_levels)
    else:
        heads = design(np.ones((1, num_arms), int), num_levels).shape[1]
        levels = np.random.default_rng(0).integers(0, num_levels, (max(_SOME, 2 * heads), num_arms))
        levels = levels[levels.any(axis=1)]
    made = design(levels, num_levels).astype(np.float32)
    return levels, made, np.linalg.pinv(made)


class ArmContributions(NamedTuple):
    """What arms gave to candidates' fused scores, beside what they give to those that they did not return.

    A weighted sum of scaled scores is, for one query, linear in each arm's scores and in whether it returned one.
    """

    level: np.ndarray  # (Q, A) to any that it returned
    slope: np.ndarray  # (Q, A) for each unit of its share


def contributions(fused: np.ndarray, shares: np.ndarray, returned: np.ndarray) -> ArmContributions:
    """Found by least squares over each query's candidates.

    What an arm that returned all of them gave to each looks like what all would have had anyway; it is the arm's, as
    the intercept's column is small.

    Args:
        fused: (Q, M); shares: (Q, M, A) scores, 0 where the arm did not return it; returned: (Q, M, A) bool.
    """
    on = returned.astype(np.float64)
    columns = np.concatenate([on, shares * on, np.full((*fused.shape, 1), 1e-3)], axis=2)
    found = np.linalg.pinv(columns, rcond=1e-6) @ fused[:, :, None].astype(np.float64)  # (Q, 2 A + 1, 1)
    arms = returned.shape[2]
    return ArmContributions(found[:, :arms, 0], found[:, arms : 2 * arms, 0])


def drawn_to(
    depth: float, gave: ArmContributions, shares: np.ndarray, reciprocal: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """(Q, M, A) what arms would give to candidates where they are drawn to a depth; NaN where they do not return them.

    Scores are scaled to what was returned: the best gives as much as ever, the last, whoever that is then, nothing.

    Args:
        shares: (Q, M, A) of the arm's best score, reciprocal: 1 / rank, 0 = not returned. found: (Q, A) by each arm.
    """
    inside, below = reciprocal > 1 / (depth + 0.5), (reciprocal > 0) & (reciprocal < 1 / (depth + 0.5))
    level, slope = gave.level[:, None], gave.slope[:, None]
    as_it_was = np.where(inside, level + slope * shares, np.nan).astype(np.float32)
    if depth >= WINDOW:
        return as_it_was
    scaled = np.abs(level) > 1e-3 * np.abs(slope)  # what is added to the fused score as it is has no level
    lowest = -gave.level / np.where(gave.slope == 0, 1.0, gave.slope)  # (Q, A) the share that gives nothing
    best = np.where((shares > 0).any(axis=1), 1.0, np.where(inside, shares, -np.inf).max(axis=1))[:, None]
    # the share of the last one is read off a line between the candidates around it, or to the last of all
    place = -np.log(np.where(reciprocal > 0, reciprocal, 1.0))  # of ranks from 1
    upper = np.where(inside, place, -np.inf).argmax(axis=1)[:, None]
    lower = np.where(below, place, np.inf).argmin(axis=1)[:, None]
    (x0, y0), (x1, y1) = ([np.take_along_axis(of, at, 1)[:, 0] for of in (place, shares)] for at in (upper, lower))
    end = np.log(np.clip(found, 1, WINDOW)), lowest
    x1, y1 = (np.where(below.any(axis=1), *pair) for pair in zip((x1, y1), end, strict=True))
    part = np.clip((np.log(depth) - x0) / np.where(x1 > x0, x1 - x0, np.inf), 0.0, 1.0)
    new = (y0 + part * (y1 - y0))[:, None]
    changed = inside & scaled & (slope != 0) & (found > depth)[:, None] & (new < best - 1e-6)
    rescaled = (level + slope * best) * (shares - new) / np.where(changed, best - new, 1.0)
    return np.where(changed, np.maximum(rescaled, 0.0), as_it_was).astype(np.float32)
