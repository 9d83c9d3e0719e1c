"""Learns each candidate's probability of relevance from clicks, and from it the value of each cut of the fused order.

Knows features, rounds and examination; does not know arms or rankings. A network, the trunk, reads each candidate
together with its query. Its last layer feeds one Bayesian linear head per depth bin. Each click updates the heads in
closed form; the trunk is refitted in epochs (NeuralLinear: Riquelme et al. 2018).
Legend: Q queries, M candidates looked at, C features of each, F of the query, D hidden units, B shown candidates,
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
from ltrr.learners.relevance_network import RelevanceNetwork
from ltrr.learners.rounds_module import RoundsModule, read, standard_of, write
from ltrr.learners.shared import checked, examined
from ltrr.policies.features import Standard
from ltrr.types import RetrievalFeatures, Rounds

_TINY = 1e-6
_BATCH = 1024  # queries per batch of inference, rounds per batch of closed-form updates
_FILES = "policy"  # name of an export's files


class RelevanceLearner(RoundsModule):
    """Predicts the relevance of each candidate of the fused order, learned from clicks on shown candidates.

    Maximises the likelihood of P(click at place k) = examination_k · (noise + (1 − noise) · relevance). So a candidate
    that was probably not examined is hardly evidence, and one that was not shown is none. The noise is learned.

    Args:
        examination: probability that a customer looks at position k; null = 1 / k.
        hidden: units of each layer.
        dropout: of the network, 0 to 1.
        lr: peak learning rate.
        weight_decay: of AdamW.
        epochs: epochs per refit, over all rounds.
        batch_size: rounds per step of a refit.
        prior_precision: prior strength, in examined candidates; larger keeps heads closer to the trunk's prediction.
        value: value of a cut. `gains` sums the candidates' expected gains of recall; `direct` corrects the sum with one
            head per cut, trained on the debiased recall of pages up to that cut.
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
        self.heads: BayesianHeads | None = None  # one per depth bin
        self.cuts: BayesianHeads | None = None  # one per cut, used if value is `direct`

    # -- fitting the trunk

    def prepare(self, rounds: Rounds, seed: int = 0) -> None:
        """Builds a network for the columns of these rounds; heads start at its predictions."""
        super().prepare(rounds, seed)
        rows = np.unique(rounds.row)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(
                Standard.of(rounds.query[rows]), Standard.of(rounds.candidates[rows]), rounds.candidates.shape[1]
            )
        self.columns = rounds.names

    def _build(self, query: Standard, candidate: Standard, num: int) -> None:
        self.network = RelevanceNetwork(query, candidate, num, self.hparams["hidden"], self.hparams["dropout"])
        self.network.to(self.device)
        size, precision = self.hparams["hidden"] + 2, self.hparams["prior_precision"]
        self.heads, self.cuts = (  # prior means pick the first column, the prediction to correct
            BayesianHeads(np.repeat(np.eye(1, size), number, axis=0), precision)
            for number in (depth_bins(num).max() + 1, num)
        )

    def examination(self, num: int) -> np.ndarray:
        """Probability (M,) that each position is looked at; positions beyond the configured ones get the last value."""
        return examined(self.hparams["examination"], num)

    def training_step(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """Mean negative log-likelihood, in nats, of clicks and non-clicks on shown candidates."""
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
        """Fits a new trunk to all rounds and resets its heads; the same rounds and seed give the same network."""
        super().refit(rounds, seed)
        if self.hparams["value"] == "direct":
            for start in range(0, len(rounds.row), _BATCH):
                self._update_cuts(rounds.some(slice(start, start + _BATCH)))

    # -- closed-form updates of the heads

    def update(self, rounds: Rounds) -> None:
        """Updates the heads with rounds that the trunk was not fitted on, in closed form."""
        assert self.heads is not None
        basis, bins, weights, targets = self.observations(rounds)
        clicked = rounds.clicks[rounds.places >= 0]
        self.heads.update(basis, np.where(clicked, targets[:, 1], targets[:, 0]), weights, bins)
        if self.hparams["value"] == "direct":
            self._update_cuts(rounds)

    def observations(self, rounds: Rounds) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per shown candidate, by round and fused order: features of the heads (B, 2 + D), head (B,), weight (B,), and
        targets of relevance without and with a click (B, 2). Clicks themselves are not read."""
        rows, row = np.unique(rounds.row, return_inverse=True)
        basis = self._basis(RetrievalFeatures(rounds.query[rows], rounds.candidates[rows]))[row]  # (R, M, 2 + D)
        shown, noise = rounds.places >= 0, self.noise_level
        weights = self.examination(shown.shape[1])[rounds.places[shown]]
        targets = (np.stack([np.zeros(len(weights)), 1 / weights], axis=1) - noise) / (1 - noise)
        return basis[shown], np.broadcast_to(depth_bins(shown.shape[1]), shown.shape)[shown], weights, targets

    def _update_cuts(self, rounds: Rounds) -> None:
        """Updates the cuts' heads with debiased recall up to each cut, if all candidates above the cut were shown."""
        assert self.cuts is not None
        rows, row = np.unique(rounds.row, return_inverse=True)
        basis = self._basis(RetrievalFeatures(rounds.query[rows], rounds.candidates[rows]))
        num, relevance = basis.shape[1], self._relevance(basis)
        examination, noise = self.examination(num)[rounds.places], self.noise_level
        others = 1.0 + relevance.sum(axis=1, keepdims=True) - relevance
        recall = np.cumsum((rounds.clicks / examination - noise) / (1 - noise) / others[row], axis=1)
        shown = np.logical_and.accumulate(rounds.places >= 0, axis=1)
        weights = 1 / np.cumsum(1 / examination, axis=1)
        cuts = np.broadcast_to(np.arange(num), shown.shape)
        self.cuts.update(self._beside(basis, relevance)[row][shown], recall[shown], weights[shown], cuts[shown])

    @staticmethod
    def _beside(basis: np.ndarray, relevance: np.ndarray) -> np.ndarray:
        """Features of the cuts' heads (Q, M, 2 + D): sum of gains and mean hidden units up to the cut, and 1."""
        places = np.arange(1, basis.shape[1] + 1)[:, None]
        hidden = np.cumsum(basis[:, :, 1:], axis=1) / places
        return np.concatenate([np.cumsum(gains(relevance), axis=1)[:, :, None], hidden], axis=2)

    @property
    def num(self) -> int:
        """Number of candidates looked at, M."""
        assert self.network is not None
        return len(self.network.rank)

    @property
    def noise_level(self) -> float:
        """P(click | examined) of an irrelevant candidate."""
        return float(torch.sigmoid(self.noise.detach()))

    # -- predictions

    def relevance(self, known: RetrievalFeatures) -> np.ndarray:
        """Probability of relevance of each candidate, (Q, M)."""
        return self._relevance(self._basis(known))

    def _relevance(self, basis: np.ndarray) -> np.ndarray:
        assert self.heads is not None
        return np.clip(self.heads.predict(basis, depth_bins(basis.shape[1])), _TINY, 1 - _TINY)

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """Expected recall of the first 1 to M candidates, (Q, M)."""
        basis = self._basis(known)
        relevance = self._relevance(basis)
        if self.hparams["value"] == "gains":
            return np.cumsum(gains(relevance), axis=1)
        assert self.cuts is not None
        cuts = np.broadcast_to(np.arange(basis.shape[1]), basis.shape[:2])
        return np.maximum.accumulate(self.cuts.predict(self._beside(basis, relevance), cuts), axis=1)

    def deviations(self, known: RetrievalFeatures) -> np.ndarray:
        """Posterior deviations of `values`, (Q, M), with relevance treated as independent between candidates."""
        assert self.heads is not None
        basis = self._basis(known)
        bins = np.broadcast_to(depth_bins(basis.shape[1]), basis.shape[:2])
        others = 1.0 + self.relevance(known).sum(axis=1, keepdims=True)
        return np.sqrt(np.cumsum(self.heads.variance(basis, bins), axis=1)) / others

    def _basis(self, known: RetrievalFeatures) -> np.ndarray:
        """Features of the heads (Q, M, 2 + D): the trunk's prediction, its hidden units, and 1."""
        assert self.network is not None
        out = np.ones((*known.candidates.shape[:2], self.hparams["hidden"] + 2))
        self.eval()
        with torch.inference_mode():
            for start in range(0, len(out), _BATCH):
                batch = slice(start, start + _BATCH)
                logits, hidden = self.network(*(torch.from_numpy(part[batch]).to(self.device) for part in known))
                out[batch, :, 0], out[batch, :, 1:-1] = torch.sigmoid(logits).cpu(), hidden.cpu()
        return out

    # -- export

    def export(self, folder: Path) -> None:
        """Writes policy.json (options, columns) and policy.safetensors (weights, standardisation, heads)."""
        parts = {"heads": self.heads, "cuts": self.cuts}
        write(self, folder, _FILES, {f"{p}.{n}": v for p, one in parts.items() if one for n, v in one.state().items()})

    @classmethod
    def load(cls, folder: str | Path) -> RelevanceLearner:
        """Loads an export. Raises ValueError naming a file that is missing, damaged or of another version."""

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
    """Depth bin of each position, (M,): bins end at 1, 2, 3, then each at about 1.5 times the last end."""
    edges, edge = [1, 2, 3], 3.0
    while edge < num:
        edge *= 1.5
        edges.append(int(np.ceil(edge)))
    return np.searchsorted(edges, np.arange(1, num + 1))


def gains(relevance: np.ndarray) -> np.ndarray:
    """Expected gain of recall of each candidate (Q, M): relevance / (1 + expected number of other relevant ones).

    A lower bound of the true expectation: E[1 / (1 + others)] ≥ 1 / (1 + E[others]) (Jensen).
    """
    return relevance / (1.0 + relevance.sum(axis=1, keepdims=True) - relevance)
