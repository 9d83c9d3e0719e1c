"""Which arms a query can do without, learned before any of them ran: what each choice of arms is expected to lose.

Knows a policy's columns (`ltrr.policy.features`), rounds in which all arms ran, and a teacher that saw what they
brought (`ltrr.models.bandit`); knows nothing about arms' insides. A round says how likely each candidate is relevant
and what each arm gave to its fused score, so it teaches all choices at once: what the others alone would have put
where.
Legend: Q queries, N choices of arms, A arms, M candidates looked at, F columns known before retrieval, D hidden units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ltrr.core import Rounds
from ltrr.models import clicked
from ltrr.models.bandit import BanditModule, gains
from ltrr.models.depth_network import Columns
from ltrr.models.training import adamw, check_range, finite
from ltrr.policy.arms import choices
from ltrr.policy.features import Known, Standard, pool_names
from ltrr.policy.linear import BayesianHeads

_RANK = "_rank"  # ends the name of a column that says where an arm returned a candidate
_SHARE = "_share"  # of one with its score
_FILES = "arms"  # what an export's files are called


class ArmsModule(LightningModule):
    """Expected recall of the first `cut` candidates that is lost where only some arms run.

    Without evidence that a query is special, every choice loses what it loses in the mean: the last layer starts at 0.

    Args:
        teacher: folder of the policy that was learned from the same rounds; null = it is given to `refit`.
        cut: candidates that are ranked.
        hidden: units.
        dropout: 0 to 1.
        lr: learning rate at its peak.
        weight_decay: of AdamW.
        epochs: of a refit.
        batch_size: rounds of a refit's step.
        prior_precision: of the heads, in rounds: how much evidence moves them from the trunk's word.
    """

    monitor = "val_explained"  # higher is better
    usual: Tensor  # (N,) what each choice loses in the mean
    spread: Tensor  # of losses

    def __init__(
        self,
        teacher: str | None = None,
        cut: int = 10,
        hidden: int = 16,
        dropout: float = 0.3,
        lr: float = 0.01,
        weight_decay: float = 0.3,
        epochs: int = 5,
        batch_size: int = 128,
        prior_precision: float = 300.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="teacher")  # which nobody needs who has learned from it
        check_range("model.dropout", dropout, 0, 1)
        if cut < 1:
            raise ValueError(f"model.cut: {cut} is below 1")
        self._folder = teacher
        self._teachers: list[BanditModule] = []  # a list, so that they are not saved as a part
        self.columns: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # known before retrieval; the arms
        self.id = ""  # of an export's weights
        self.heads: BayesianHeads | None = None

    def prepare(self, rounds: Rounds, seed: int = 0) -> None:
        """A new network for what these rounds know, at what each choice loses in the mean."""
        arms = tuple(name.removesuffix(_RANK) for name in rounds.names[1] if name.endswith(_RANK))
        if not arms:
            raise ValueError(f"data.path: no columns ARM{_RANK} among those of candidates: {rounds.names[1]}")
        later = len(pool_names(arms, rounds.candidates.shape[1])[0])
        self.columns = rounds.names[0][:-later], arms
        self._fused = rounds.names[1].index("fused")
        self._returned, self._shares = ([rounds.names[1].index(f"{a}{end}") for a in arms] for end in (_RANK, _SHARE))
        if not self._teachers and self._folder:  # not before: a module that is made within another takes its options
            self._teachers = [BanditModule.load(self._folder)]
        if not self._teachers:
            raise ValueError("model.teacher is not set; give the export of a policy learned from the same rounds")
        if self._teachers[0].columns not in (rounds.names, ((), ())):
            raise ValueError("model.teacher: was learned from other columns than data.path has")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            seen = np.unique(rounds.row)
            lost = self.lost(Known(rounds.query[seen], rounds.candidates[seen]))
            self._build(Standard.of(rounds.query[seen][:, : len(self.columns[0])]), lost.mean(axis=0), lost.std())
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

    def lost(self, known: Known) -> np.ndarray:
        """(Q, N) of the recall that the teacher expects of all arms' first `cut`."""
        worth = gains(self._teachers[0].relevance(known))  # (Q, M)
        returned = known.candidates[:, :, self._returned] > 0  # (Q, M, A)
        which = choices(len(self._returned)).T.astype(np.float32)  # (A, N)
        scores = (
            contributions(known.candidates[:, :, self._fused], known.candidates[:, :, self._shares], returned) @ which
        )
        left = returned.astype(np.float32) @ which > 0  # (Q, M, N)
        places = np.argsort(np.argsort(np.where(left, -scores, np.inf), axis=1, kind="stable"), axis=1)
        inside = left & (places < self.hparams["cut"])
        kept = np.einsum("qm,qmn->qn", worth, inside)
        return kept[:, -1:] - kept

    def training_step(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """Squared error, of the losses' variance."""
        target = torch.from_numpy(self._lost[batch["row"].cpu().numpy()]).to(self.usual)
        error = self.usual + self.spread * self.last(self.trunk(batch["query"][:, : len(self.columns[0])])) - target
        return finite((error / self.spread).square().mean(), batch.get("ids", ["?"]))

    def validation_step(self, batch: dict[str, Any], index: int = 0) -> None:
        size = len(batch["query"])
        self.log(self.monitor, 1 - self.training_step(batch), batch_size=size, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return self.optimizer(int(self.trainer.estimated_stepping_batches))

    def optimizer(self, steps: int) -> dict[str, Any]:
        """AdamW whose rate rises for a third of the steps, then falls."""
        return adamw(self, self.hparams["lr"], self.hparams["weight_decay"], 0.3, steps)

    def refit(self, rounds: Rounds, seed: int = 0, teacher: BanditModule | None = None) -> None:
        """A new network from all rounds; the same rounds and seed give the same one."""
        self._teachers = [teacher] if teacher else self._teachers
        self.prepare(rounds, seed)
        clicked.fit(self, rounds, seed)
        self._trust()

    def _trust(self) -> None:
        """Heads at the trunk's word."""
        with torch.no_grad():
            word = torch.cat([self.spread * self.last.weight.T, (self.usual + self.spread * self.last.bias)[None]])
        self.heads = BayesianHeads(word.T.cpu().numpy(), self.hparams["prior_precision"])

    def update(self, rounds: Rounds) -> None:
        """Heads learn from rounds that the trunk has not seen, in closed form."""
        assert self.heads is not None
        known = Known(rounds.query[rounds.row], rounds.candidates[rounds.row])
        lost, basis = self.lost(known), self._basis(known.query[:, : len(self.columns[0])])
        heads = np.broadcast_to(np.arange(lost.shape[1]), lost.shape).ravel()
        self.heads.update(np.repeat(basis, lost.shape[1], axis=0), lost.ravel(), np.ones(lost.size), heads)

    def values(self, features: np.ndarray) -> np.ndarray:
        """(Q, N) expected recall of each choice, less that of all arms; features (Q, F)."""
        basis, heads = self._basis(features), self.heads
        assert heads is not None
        return -(basis @ heads.means.T)

    def deviations(self, features: np.ndarray) -> np.ndarray:
        """(Q, N) posterior deviations of `values`."""
        basis, heads = self._basis(features)[:, None], self.heads
        assert heads is not None
        return np.sqrt(heads.variance(basis, np.arange(len(heads.means))[None]))

    def _basis(self, features: np.ndarray) -> np.ndarray:
        """(Q, D + 1)."""
        self.eval()
        with torch.no_grad():
            hidden = self.trunk(torch.from_numpy(np.ascontiguousarray(features)).to(self.device)).cpu().numpy()
        return np.concatenate([hidden, np.ones((len(hidden), 1))], axis=1)

    def export(self, folder: Path) -> None:
        """arms.json and arms.safetensors: columns, weights, how columns are standardised, heads."""
        if self.heads is None:  # a Trainer has fitted
            self._trust()
        assert self.heads is not None
        clicked.write(self, folder, _FILES, {f"heads.{name}": value for name, value in self.heads.state().items()})

    @classmethod
    def load(cls, folder: str | Path) -> ArmsModule:
        """What `export` wrote; ValueError names a file that is not there, damaged or of another version."""

        def restore(module: ArmsModule, weights: dict[str, Tensor]) -> None:
            mean, deviation = (weights[f"trunk.0.{part}"].numpy() for part in ("mean", "deviation"))
            module._build(Standard(mean, deviation), weights["usual"].numpy(), float(weights["spread"]))
            state = {name: weights.pop(f"heads.{name}").numpy() for name in ("means", "covariances")}
            module.heads = BayesianHeads.restored(state)

        return clicked.read(cls, Path(folder), _FILES, restore)


def contributions(fused: np.ndarray, shares: np.ndarray, returned: np.ndarray) -> np.ndarray:
    """(Q, M, A) what each arm gave to a candidate's fused score, beside what it gives to those that it did not return.

    A weighted sum of scaled scores is, for one query, linear in each arm's scores and in whether it returned a
    candidate: least squares over the query's candidates finds the coefficients.

    Args:
        fused: (Q, M); shares: (Q, M, A) scores, 0 where the arm did not return it; returned: (Q, M, A) bool.
    """
    on = returned.astype(np.float64)
    columns = np.concatenate([on, shares * on, np.ones((*fused.shape, 1))], axis=2)
    found = np.linalg.pinv(columns, rcond=1e-6) @ fused[:, :, None].astype(np.float64)  # (Q, 2 A + 1, 1)
    arms = returned.shape[2]
    level, slope = found[:, None, :arms, 0], found[:, None, arms : 2 * arms, 0]
    return (on * (level + slope * shares)).astype(np.float32)
