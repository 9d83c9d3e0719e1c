"""Learns fusion weights of the arms for each query, from clicks on pages in the fixed fused order.

Knows a policy's columns (`ltrr.policies.features`), rounds and examination; knows nothing about arms or documents. A
network reads the query's columns and corrects each arm's weight; without evidence the correction is 0 and the order
stays the fixed one. The loss is ListNet's (Cao et al. 2007) with clicks weighted by inverse examination (Joachims et
al. 2017). Legend: Q queries, M candidates looked at, A arms, F columns of the query, C of a candidate, R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltrr.encoders.training import check_range, finite
from ltrr.learners.relevance_network import Columns
from ltrr.learners.rounds_module import RoundsModule, read, standard_of, write
from ltrr.learners.shared import checked, examined
from ltrr.policies.features import Standard
from ltrr.types import RetrievalFeatures, Rounds

_SHARE = "_share"  # suffix of columns with an arm's scaled score
_FILES = "fusion"  # name of an export's files
_MOST = 20.0  # largest weight of a click, 1 / examination: less variance for some bias


class WeightNetwork(nn.Module):
    """Maps query (Q, F) and candidates (Q, M, C) to corrections of the arms' weights (Q, A) and scores (Q, M)."""

    def __init__(self, query: Standard, fused: int, shares: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.fused, self.shares = fused, list(shares)  # columns among the C
        first, last = nn.Linear(len(query.mean), hidden), nn.Linear(hidden, len(shares))
        self.query = nn.Sequential(Columns(query), first, nn.GELU(), nn.Dropout(dropout), last)
        for zero in last.parameters():
            nn.init.zeros_(zero)

    def forward(self, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        change = self.query(query)
        return change, candidates[:, :, self.fused] + (candidates[:, :, self.shares] @ change[:, :, None])[:, :, 0]


class FusionWeightsLearner(RoundsModule):
    """Orders candidates by fused + Σ_a Δw_a(query) · share_a, with learned corrections Δw of the arms' weights.

    Args:
        examination: probability that a customer looks at position k; null = 1 / k.
        hidden: hidden units.
        dropout: of the network, 0 to 1.
        lr: peak learning rate.
        weight_decay: of AdamW.
        penalty: weight of the squared corrections in the loss, 0 or more.
        epochs: epochs per refit, over all rounds.
        batch_size: rounds per step of a refit.
    """

    monitor = "val_listwise"  # higher is better

    def __init__(
        self,
        examination: Sequence[float] | None = None,
        hidden: int = 32,
        dropout: float = 0.3,
        lr: float = 0.005,
        weight_decay: float = 1.0,
        penalty: float = 2.0,
        epochs: int = 10,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_range("model.dropout", dropout, 0, 1)
        check_range("model.penalty", penalty, 0, np.inf)
        checked(examination)
        self.network: WeightNetwork | None = None
        self.sharpness = nn.Parameter(torch.tensor(2.0))  # log of the factor on scores in the loss; changes no order
        self.noise = nn.Parameter(torch.tensor(-2.0))  # log of the share of each shown candidate, whatever its score

    def prepare(self, rounds: Rounds, seed: int = 0) -> None:
        """Builds a network for the columns of these rounds; its corrections start at 0."""
        super().prepare(rounds, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(Standard.of(rounds.query[np.unique(rounds.row)]), rounds.names)

    def _build(self, query: Standard, columns: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        shares = [c for c, name in enumerate(columns[1]) if name.endswith(_SHARE)]
        if "fused" not in columns[1] or not shares:
            raise ValueError(f"data.path: no columns fused and ARM{_SHARE} among those of candidates: {columns[1]}")
        options = self.hparams["hidden"], self.hparams["dropout"]
        self.network = WeightNetwork(query, columns[1].index("fused"), shares, *options).to(self.device)
        self.columns = columns

    def training_step(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """Cross-entropy, in nats per round, of debiased clicks and the softmax of scores mixed with uniform noise."""
        change, listwise = self._losses(batch)
        return finite(listwise + self.hparams["penalty"] * change.square().sum(dim=1).mean(), batch["ids"])

    def score(self, batch: dict[str, Any]) -> Tensor:
        return -self._losses(batch)[1]

    def _losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert self.network is not None
        change, scores = self.network(batch["query"], batch["candidates"])
        examination = torch.from_numpy(examined(self.hparams["examination"], scores.shape[1])).to(scores)
        click_weights = (1 / examination).clamp(max=_MOST)[batch["place"].clamp(min=0)]
        shown, noise = batch["shown"], self.noise.exp()
        share = (self.sharpness.exp() * scores).masked_fill(shown == 0, -1e9).softmax(dim=1)
        log_p = ((share + noise) / (1 + noise * shown.sum(dim=1, keepdim=True))).log()
        return change, -(log_p * batch["clicks"] * shown * click_weights).sum(dim=1).mean()

    def order(self, known: RetrievalFeatures) -> np.ndarray:
        """Sorts candidates: (Q, M) their places, best first. Ties keep the fused order, padding comes last."""
        assert self.network is not None
        self.eval()
        with torch.no_grad():
            _, scores = self.network(*(torch.from_numpy(part).to(self.device) for part in known))
        real = (known.candidates != 0).any(axis=2)
        return np.argsort(np.where(real, -scores.cpu().numpy(), np.inf), axis=1, kind="stable")

    def export(self, folder: Path) -> None:
        """Writes fusion.json (options, columns) and fusion.safetensors (weights, standardisation)."""
        write(self, folder, _FILES)

    @classmethod
    def load(cls, folder: str | Path) -> FusionWeightsLearner:
        """Loads an export. Raises ValueError naming a file that is missing, damaged or of another version."""

        def restore(module: FusionWeightsLearner, weights: dict[str, Tensor]) -> None:
            module._build(standard_of(weights, "network.query.0"), module.columns)

        return read(cls, Path(folder), _FILES, restore)
