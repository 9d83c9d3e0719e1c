"""Learns from clicks how likely each candidate is relevant, and so what each cut of the fused order is worth.

Knows features, rounds and examination; does not know arms or rankings. One trunk reads each candidate beside its
query. Its last layer feeds one Bayesian linear head per depth bin: each click updates the heads in closed form, and the
trunk is refitted in epochs (NeuralLinear: Riquelme et al. 2018).
Legend: Q queries, M candidates looked at, C features of each, F of the query, D hidden units, B depth bins, N cuts,
R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ltrr.encoders.training import check_range, finite
from ltrr.learners.linear import BayesianHeads
from ltrr.learners.online_heads import OnlineHeads
from ltrr.learners.relevance_network import RelevanceNetwork
from ltrr.learners.rounds_module import RoundsModule, read, standard_of, write
from ltrr.learners.shared import checked, examined
from ltrr.policies.features import Standard
from ltrr.protocols import Learning
from ltrr.types import RetrievalFeatures, Rounds

_TINY = 1e-6
_BATCH = 1024  # queries read at once where nothing is learned
_FILES = "policy"  # what an export's files are called


class RelevanceLearner(RoundsModule):
    """Relevance of each candidate of the fused order, from clicks on what was shown.

    P(click at place k) = examination_k · (noise + (1 − noise) · relevance): its likelihood is maximised, so that what
    was not examined is no failure and what was cut off, or not on the page, is missing. The noise is learned.

    Args:
        examination: probability that position k is looked at; null = 1 / k.
        hidden: units of each layer.
        dropout: of the network, 0 to 1.
        lr: learning rate at its peak.
        weight_decay: of AdamW.
        epochs: of a refit over the rounds of all time.
        batch_size: rounds of a refit's step.
        prior_precision: of the heads, in examined candidates: how much evidence moves them from the trunk's word.
        value: of a cut: `gains` adds up what each candidate is expected to bring; `direct` corrects that by a head of
            each cut, which learns from what pages brought up to there.
    """

    monitor = "val_likelihood"  # higher is better

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
        value: Literal["gains", "direct"] = "gains",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_range("model.dropout", dropout, 0, 1)
        if value not in ("gains", "direct"):
            raise ValueError(f"model.value: {value!r} is none of gains, direct")
        checked(examination)
        self.network: RelevanceNetwork | None = None
        self.noise = nn.Parameter(torch.tensor(-2.5))  # logit
        self.heads: BayesianHeads | None = None  # of depth bins
        self.cuts: BayesianHeads | None = None  # of cuts, where those are valued directly

    # -- learning the trunk

    def prepare(self, rounds: Rounds, seed: int = 0) -> None:
        """A new network for what these rounds know, heads at its own word."""
        super().prepare(rounds, seed)
        seen = np.unique(rounds.row)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(
                Standard.of(rounds.query[seen]), Standard.of(rounds.candidates[seen]), rounds.candidates.shape[1]
            )
        self.columns = rounds.names

    def _build(self, query: Standard, candidate: Standard, num: int) -> None:
        self.network = RelevanceNetwork(query, candidate, num, self.hparams["hidden"], self.hparams["dropout"])
        self.network.to(self.device)
        size, precision = self.hparams["hidden"] + 2, self.hparams["prior_precision"]
        self.heads, self.cuts = (  # what they believe at first is their first column
            BayesianHeads(np.repeat(np.eye(1, size), number, axis=0), precision)
            for number in (depth_bins(num).max() + 1, num)
        )

    def examination(self, num: int) -> np.ndarray:
        """(M,) probability that each position is looked at; deeper ones than were given have the last."""
        return examined(self.hparams["examination"], num)

    def training_step(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """Mean negative log-likelihood of clicks and silence among the candidates that were shown, in nats."""
        assert self.network is not None
        logits, _ = self.network(batch["query"], batch["candidates"])
        noise = torch.sigmoid(self.noise)
        attraction = noise + (1 - noise) * torch.sigmoid(logits)
        examination = torch.from_numpy(self.examination(logits.shape[1])).to(logits)[batch["place"].clamp(min=0)]
        p = (attraction * examination).clamp(_TINY, 1 - _TINY)
        clicks, shown = batch["clicks"], batch["shown"]
        likelihood = torch.where(clicks > 0, p.log(), (1 - p).log())
        loss = -(likelihood * shown).sum() / shown.sum().clamp(min=1)
        return finite(loss, batch["ids"])

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """A new trunk from all rounds, its heads at its own word; the same rounds and seed give the same network."""
        super().refit(rounds, seed)
        if self.hparams["value"] == "direct":
            for start in range(0, len(rounds.row), _BATCH):
                self._update_cuts(rounds.some(slice(start, start + _BATCH)))

    # -- learning from each click

    def update(self, rounds: Rounds) -> None:
        """Heads learn from rounds that the trunk has not seen, in closed form."""
        assert self.heads is not None
        basis, bins, weights, targets = self.observations(rounds)
        clicked = rounds.clicks[rounds.places >= 0]
        self.heads.update(basis, np.where(clicked, targets[:, 1], targets[:, 0]), weights, bins)
        if self.hparams["value"] == "direct":
            self._update_cuts(rounds)

    def observations(self, rounds: Rounds) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each candidate that was shown, by round and fused order: what heads see (B, 2 + D), which head (B,), its
        weight (B,), and what a silence and a click say of its relevance (B, 2). Clicks are not looked at."""
        known, row = np.unique(rounds.row, return_inverse=True)
        basis = self._basis(RetrievalFeatures(rounds.query[known], rounds.candidates[known]))[row]  # (R, M, 2 + D)
        shown, noise = rounds.places >= 0, self.noise_level
        weights = self.examination(shown.shape[1])[rounds.places[shown]]
        targets = (np.stack([np.zeros(len(weights)), 1 / weights], axis=1) - noise) / (1 - noise)
        return basis[shown], np.broadcast_to(depth_bins(shown.shape[1]), shown.shape)[shown], weights, targets

    def _update_cuts(self, rounds: Rounds) -> None:
        """What pages brought up to each cut above which all was shown, in recall, debiased."""
        assert self.cuts is not None
        known, row = np.unique(rounds.row, return_inverse=True)
        basis = self._basis(RetrievalFeatures(rounds.query[known], rounds.candidates[known]))
        num, relevance = basis.shape[1], self._relevance(basis)
        examination, noise = self.examination(num)[rounds.places], self.noise_level
        others = 1.0 + relevance.sum(axis=1, keepdims=True) - relevance
        brought = np.cumsum((rounds.clicks / examination - noise) / (1 - noise) / others[row], axis=1)
        shown = np.logical_and.accumulate(rounds.places >= 0, axis=1)
        weights = 1 / np.cumsum(1 / examination, axis=1)
        cuts = np.broadcast_to(np.arange(num), shown.shape)
        self.cuts.update(self._beside(basis, relevance)[row][shown], brought[shown], weights[shown], cuts[shown])

    @staticmethod
    def _beside(basis: np.ndarray, relevance: np.ndarray) -> np.ndarray:
        """(Q, M, 2 + D) what heads of cuts see: the sum of gains, mean hidden units up to there, 1."""
        places = np.arange(1, basis.shape[1] + 1)[:, None]
        hidden = np.cumsum(basis[:, :, 1:], axis=1) / places
        return np.concatenate([np.cumsum(gains(relevance), axis=1)[:, :, None], hidden], axis=2)

    @property
    def num(self) -> int:
        """M."""
        assert self.network is not None
        return len(self.network.rank)

    @property
    def noise_level(self) -> float:
        """P(click | looked at) of what is not relevant."""
        return float(torch.sigmoid(self.noise.detach()))

    # -- what it believes

    def relevance(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M) probability that each candidate is relevant."""
        return self._relevance(self._basis(known))

    def _relevance(self, basis: np.ndarray) -> np.ndarray:
        assert self.heads is not None
        return np.clip(self.heads.predict(basis, depth_bins(basis.shape[1])), _TINY, 1 - _TINY)

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M) expected recall of the first 1 to M candidates."""
        basis = self._basis(known)
        relevance = self._relevance(basis)
        if self.hparams["value"] == "gains":
            return np.cumsum(gains(relevance), axis=1)
        assert self.cuts is not None
        cuts = np.broadcast_to(np.arange(basis.shape[1]), basis.shape[:2])
        return np.maximum.accumulate(self.cuts.predict(self._beside(basis, relevance), cuts), axis=1)

    def deviations(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M) posterior deviations of `values`, as if relevance were independent between depth bins."""
        assert self.heads is not None
        basis = self._basis(known)
        bins = np.broadcast_to(depth_bins(basis.shape[1]), basis.shape[:2])
        others = 1.0 + self.relevance(known).sum(axis=1, keepdims=True)
        return np.sqrt(np.cumsum(self.heads.variance(basis, bins), axis=1)) / others

    def _basis(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M, 2 + D) what heads see: the trunk's word, its hidden units, 1."""
        assert self.network is not None
        out = np.ones((*known.candidates.shape[:2], self.hparams["hidden"] + 2))
        self.eval()
        with torch.inference_mode():
            for start in range(0, len(out), _BATCH):
                some = slice(start, start + _BATCH)
                logits, hidden = self.network(*(torch.from_numpy(part[some]).to(self.device) for part in known))
                out[some, :, 0], out[some, :, 1:-1] = torch.sigmoid(logits).cpu(), hidden.cpu()
        return out

    def online(self, store: Any, policy: str) -> Learning:
        """Heads that learn from the rounds that this policy served."""
        return OnlineHeads(self, store, policy)

    # -- where it is kept

    def export(self, folder: Path) -> None:
        """policy.json and policy.safetensors: weights, how columns are standardised, heads."""
        parts = {"heads": self.heads, "cuts": self.cuts}
        write(self, folder, _FILES, {f"{p}.{n}": v for p, own in parts.items() if own for n, v in own.state().items()})

    @classmethod
    def load(cls, folder: str | Path) -> RelevanceLearner:
        """What `export` wrote; ValueError names a file that is not there, damaged or of another version."""

        def restore(module: RelevanceLearner, weights: dict[str, Tensor]) -> None:
            query, candidate = (standard_of(weights, f"network.{part}.0") for part in ("query", "candidate"))
            module._build(query, candidate, len(weights["network.rank"]))
            module.heads, module.cuts = (
                BayesianHeads.restored(
                    {name: weights.pop(f"{part}.{name}").numpy() for name in ("means", "covariances")}
                )
                for part in ("heads", "cuts")
            )

        return read(cls, Path(folder), _FILES, restore)


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
