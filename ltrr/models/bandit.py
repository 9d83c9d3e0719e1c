"""How deep to go, learned from clicks: the network, its Bayesian heads, and the policy that decides with them.

Knows what a policy looks at (`ltrr.policy.features`), rounds and examination; knows nothing about arms or rankings. One
trunk reads each candidate beside its query; its last layer feeds linear heads, one a depth bin, which are updated in
closed form by every click while the trunk is refitted in epochs (NeuralLinear: Riquelme et al. 2018).
Legend: Q queries, M candidates looked at, C features of each, F of the query, D hidden units, B depth bins, N cuts,
R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ltrr.core import Rounds
from ltrr.models.training import adamw, check_range
from ltrr.policy.features import Known, Standard
from ltrr.policy.linear import BayesianHeads

_TINY = 1e-6
_BATCH = 1024  # queries read at once where nothing is learned


class DepthNetwork(nn.Module):
    """Reads candidates beside their query: (Q, F) and (Q, M, C) to logits of relevance (Q, M) and hidden (Q, M, D)."""

    def __init__(self, query: int, candidate: int, num: int, hidden: int = 32, dropout: float = 0.3) -> None:
        super().__init__()
        self.query = nn.Sequential(
            nn.Linear(query, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.GELU()
        )
        self.candidate = nn.Sequential(nn.Linear(candidate, hidden), nn.GELU())
        self.joint = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden, hidden), nn.GELU())
        self.out = nn.Linear(hidden, 1)
        self.rank = nn.Parameter(-2.0 - 0.05 * torch.arange(num))  # (M,) deeper candidates are rarely relevant

    def forward(self, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        beside = self.query(query)[:, None].expand(-1, candidates.shape[1], -1)
        hidden = self.joint(torch.cat([self.candidate(candidates), beside], dim=2))
        return self.out(hidden)[:, :, 0] + self.rank, hidden


class BanditModule(LightningModule):
    """Relevance of each candidate of the fused order, from clicks on what was shown.

    P(click at k) = examination_k · (noise + (1 − noise) · relevance): its likelihood is maximised, so that what was not
    examined is no failure and what was cut off is missing. The noise is learned.

    Args:
        examination: probability that position k is looked at; null = 1 / k.
        hidden: units of each layer.
        dropout: of the network, 0 to 1.
        lr: learning rate at its peak.
        weight_decay: of AdamW.
        epochs: of a refit over the rounds of all time.
        batch_size: rounds.
        prior_precision: of the heads, in examined candidates: how much evidence moves them from the trunk's word.
    """

    def __init__(
        self,
        examination: Sequence[float] | None = None,
        hidden: int = 32,
        dropout: float = 0.3,
        lr: float = 0.02,
        weight_decay: float = 0.05,
        epochs: int = 3,
        batch_size: int = 128,
        prior_precision: float = 300.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_range("model.dropout", dropout, 0, 1)
        if examination is not None and not all(0 < e <= 1 for e in examination):
            raise ValueError("model.examination: not probabilities above 0, one a position")
        self.network: DepthNetwork | None = None
        self.noise = nn.Parameter(torch.tensor(-2.5))  # logit
        self.standards: tuple[Standard, Standard] | None = None
        self.heads: BayesianHeads | None = None
        self._bins = np.zeros(0, int)

    # -- learning the trunk

    def setup_for(self, rounds: Rounds, seed: int = 0) -> None:
        """A new network for what these rounds know, features standardised as they are logged."""
        seen = np.unique(rounds.row)
        query, candidates = Standard.of(rounds.query[seen]), Standard.of(rounds.candidates[seen])
        self.standards = query, candidates
        num = rounds.candidates.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shape = rounds.query.shape[1], rounds.candidates.shape[2], num
            self.network = DepthNetwork(*shape, self.hparams["hidden"], self.hparams["dropout"])
        self._bins = depth_bins(num)

    def examination(self, num: int) -> np.ndarray:
        """(M,) probability that each position is looked at; deeper ones than were given have the last."""
        given = self.hparams["examination"]
        if given is None:
            return 1.0 / np.arange(1, num + 1)
        return np.asarray(given, np.float64)[np.minimum(np.arange(num), len(given) - 1)]

    def training_step(self, batch: dict[str, Tensor], index: int = 0) -> Tensor:
        """Mean negative log-likelihood of clicks and silence among the candidates that were shown, in nats."""
        assert self.network is not None
        logits, _ = self.network(batch["query"], batch["candidates"])
        noise = torch.sigmoid(self.noise)
        attraction = noise + (1 - noise) * torch.sigmoid(logits)
        p = (attraction * batch["examination"]).clamp(_TINY, 1 - _TINY)
        clicks, shown = batch["clicks"], batch["shown"]
        likelihood = torch.where(clicks > 0, p.log(), (1 - p).log())
        return -(likelihood * shown).sum() / shown.sum().clamp(min=1)

    def configure_optimizers(self):
        return adamw(
            self, self.hparams["lr"], self.hparams["weight_decay"], 0.1, int(self.trainer.estimated_stepping_batches)
        )

    def refit(self, rounds: Rounds, seed: int = 0, epochs: int | None = None) -> None:
        """A new trunk from all rounds, its heads at its own word; the same rounds and seed give the same network."""
        self.setup_for(rounds, seed)
        assert self.network is not None
        epochs, size = epochs or self.hparams["epochs"], self.hparams["batch_size"]
        steps = epochs * -(-len(rounds.row) // size)
        made = adamw(self, self.hparams["lr"], self.hparams["weight_decay"], 0.3, steps)
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        batches = self._batches(rounds)
        self.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(epochs):
                for rows in torch.randperm(len(rounds.row)).split(size):
                    loss = self.training_step(batches(rows.numpy()))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        self.eval()
        prior = np.zeros((self._bins.max() + 1, self.hparams["hidden"] + 2))
        prior[:, 0] = 1.0
        self.heads = BayesianHeads(prior, self.hparams["prior_precision"])

    def _batches(self, rounds: Rounds):
        assert self.standards is not None
        query, candidates = (s(v) for s, v in zip(self.standards, (rounds.query, rounds.candidates), strict=True))
        num = candidates.shape[1]
        examination = torch.tensor(self.examination(num), dtype=torch.float32)

        def batch(rows: np.ndarray) -> dict[str, Tensor]:
            known = rounds.row[rows]
            return {
                "query": torch.from_numpy(query[known]),
                "candidates": torch.from_numpy(candidates[known]),
                "clicks": torch.from_numpy(rounds.clicks[rows].astype(np.float32)),
                "shown": torch.from_numpy((np.arange(num) < rounds.cut[rows, None]).astype(np.float32)),
                "examination": examination,
            }

        return batch

    # -- learning from each click

    def update(self, rounds: Rounds) -> None:
        """Heads learn from rounds that the trunk has not seen, in closed form."""
        assert self.heads is not None
        known, row = np.unique(rounds.row, return_inverse=True)
        basis = self._basis(Known(rounds.query[known], rounds.candidates[known]))[row]  # (R, M, D)
        num = basis.shape[1]
        examination, noise = self.examination(num), self.noise_level
        targets = (rounds.clicks / examination - noise) / (1 - noise)
        shown = np.arange(num) < rounds.cut[:, None]
        bins = np.broadcast_to(self._bins, shown.shape)
        weights = np.broadcast_to(examination, shown.shape)
        self.heads.update(basis[shown], targets[shown], weights[shown], bins[shown])

    @property
    def noise_level(self) -> float:
        """P(click | looked at) of what is not relevant."""
        return float(torch.sigmoid(self.noise.detach()))

    # -- what it believes

    def relevance(self, known: Known) -> np.ndarray:
        """(Q, M) probability that each candidate is relevant."""
        assert self.heads is not None
        basis = self._basis(known)
        bins = np.broadcast_to(self._bins, basis.shape[:2])
        return np.clip(self.heads.predict(basis, bins), _TINY, 1 - _TINY)

    def values(self, known: Known) -> np.ndarray:
        """(Q, M) expected recall of the first 1 to M candidates."""
        return np.cumsum(gains(self.relevance(known)), axis=1)

    def deviations(self, known: Known) -> np.ndarray:
        """(Q, M) posterior deviations of `values`, as if relevance were independent between depth bins."""
        assert self.heads is not None
        basis = self._basis(known)
        bins = np.broadcast_to(self._bins, basis.shape[:2])
        others = 1.0 + self.relevance(known).sum(axis=1, keepdims=True)
        return np.sqrt(np.cumsum(self.heads.variance(basis, bins), axis=1)) / others

    def _basis(self, known: Known) -> np.ndarray:
        """(Q, M, 2 + D) what heads see: the trunk's word, its hidden units, 1."""
        assert self.network is not None
        assert self.standards is not None
        query, candidates = (s(v) for s, v in zip(self.standards, known, strict=True))
        parts = []
        self.eval()
        with torch.no_grad():
            for start in range(0, len(query), _BATCH):
                some = slice(start, start + _BATCH)
                logits, hidden = self.network(torch.from_numpy(query[some]), torch.from_numpy(candidates[some]))
                one = torch.ones_like(logits)
                parts.append(torch.cat([torch.sigmoid(logits)[..., None], hidden, one[..., None]], dim=2).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, candidates.shape[1], self.hparams["hidden"] + 2))


def depth_bins(num: int) -> np.ndarray:
    """(M,) bin of each position: 1, 2, 3, then each about half as deep again."""
    edges, edge = [1, 2, 3], 3.0
    while edge < num:
        edge *= 1.5
        edges.append(int(np.ceil(edge)))
    return np.searchsorted(edges, np.arange(1, num + 1))


def gains(relevance: np.ndarray) -> np.ndarray:
    """(Q, M) expected recall that each candidate adds: its relevance over one more than what else is relevant.

    E[1 / (1 + others)] ≥ 1 / (1 + E[others]) (Jensen), so queries with several positives are told from those with one.
    """
    return relevance / (1.0 + relevance.sum(axis=1, keepdims=True) - relevance)
