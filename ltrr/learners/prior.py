"""The neural policy network: what queries, candidates and arms say about relevance beyond the calibrated fused score.

Knows columns of features, calibrated log odds and what evidence says of pairs; does not know arms, policies or events.
Several small networks read each candidate: one token for each arm, summed over arms, so that an arm can join; the
candidate's place in the fused order; and the query's features, such as its embedding. Their mean is added to the
calibrated log odds, and counts less the more they disagree.
Legend: Q queries, M candidates of each, P pairs of a query and a candidate, A arms, T columns of an arm's token, C of a
candidate, F of a query, I = A · T + C + F inputs, N networks, R rounds, U queries of rounds, B cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ltrr.encoders.training import check_range
from ltrr.feedback.evidence.cells import NUM, Looks, Shows, cells_of, fit_looks, usual_looks
from ltrr.learners.relevance_network import Columns
from ltrr.learners.rounds_module import RoundsModule, read, standard_of, write
from ltrr.policies.calibration import UNFITTED, fit_clicks
from ltrr.policies.features import Standard, arms_of, context_names
from ltrr.types import RetrievalFeatures, Rounds

_FILES = "prior"  # name of an export's files
_QUERY = ("score_1", "gap", "found")  # of an arm's columns that describe the query
_EACH = ("rank", "fused", "below_first", "above_next", "agree")  # columns of a candidate, in all arms
_TOKEN = 6  # T
_CERTAIN = 12.0  # log odds that evidence says of one pair, at most
_BATCH = 100_000  # pairs looked at, at once


class PriorNetwork(nn.Module):
    """N networks side by side: tokens (P, A, T), candidates (P, C), queries (P, F), log odds (P,) -> (N, P) log odds.

    The last layer starts at 0, so that nothing is added before anything was learned.
    """

    def __init__(self, arms: Standard, each: Standard, query: Standard, networks: int, hidden: int) -> None:
        super().__init__()
        self.arms, self.each, self.query = Columns(arms), Columns(each), Columns(query)
        (num_arms, of_arm), of_each, of_query = arms.mean.shape, len(each.mean), len(query.mean)

        def weights(*shape: int, fan: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(networks, *shape) / max(fan, 1) ** 0.5)

        self.embedding = weights(num_arms, hidden, fan=100)  # of each arm
        self.of_arm = weights(of_arm, hidden, fan=of_arm)
        self.of_query = weights(of_query, hidden // 4, fan=of_query)
        width = hidden + of_each + hidden // 4 + 1
        self.joint, self.bias = weights(width, hidden, fan=width), nn.Parameter(torch.zeros(networks, 1, hidden))
        self.out = nn.Parameter(torch.zeros(networks, hidden, 1))
        self.level = nn.Parameter(torch.zeros(networks, 1))

    def forward(self, arms: Tensor, each: Tensor, query: Tensor, odds: Tensor) -> Tensor:
        networks, (num, num_arms, of_arm) = len(self.out), arms.shape
        tokens = self.arms(arms).reshape(1, num * num_arms, of_arm) @ self.of_arm
        tokens = tokens.reshape(networks, num, num_arms, -1) + self.embedding[:, None]
        beside = torch.cat([self.each(each), odds[:, None] / 3], dim=1).expand(networks, -1, -1)
        parts = [torch.relu(tokens).mean(dim=2), beside, self.query(query) @ self.of_query]
        hidden = torch.relu(torch.baddbmm(self.bias, torch.cat(parts, dim=2), self.joint))
        return (hidden @ self.out)[:, :, 0] + self.level


class PriorLearner(RoundsModule):
    """Learns from pairs that were shown what to add to the calibrated log odds of being relevant.

    Maximises the likelihood of all that was seen of each pair: P(seen | relevant) · p + P(seen | not) · (1 − p). A pair
    counts once, however often its query was asked. `shrink` keeps what is added near 0 while pairs are few.

    Args:
        networks: N; their spread says how sure they are.
        hidden: units of each layer.
        lr: peak learning rate. weight_decay: of AdamW.
        steps: of one `learn`. batch_size: pairs of a step there, rounds of a step in a Trainer.
        shrink: pairs as strong as the belief that nothing is to be added.

    Errors: ValueError names the argument that makes no sense.
    """

    monitor = "val_likelihood"  # in nats a pair, above the calibration; higher is better

    def __init__(
        self,
        networks: int = 4,
        hidden: int = 32,
        lr: float = 3e-3,
        weight_decay: float = 0.1,
        steps: int = 200,
        batch_size: int = 1024,
        shrink: float = 200.0,
    ) -> None:
        super().__init__()
        for name, value in (("networks", networks), ("hidden", hidden // 4), ("steps", steps)):
            check_range(f"model.{name}", value, 1, 1e6)
        check_range("model.shrink", shrink, 0, 1e9)
        self.save_hyperparameters()
        self.network: PriorNetwork | None = None
        self.calibration: tuple[float, ...] = UNFITTED
        self.num = 0  # candidates of each query in the rounds that it learned from
        self._places: tuple[list[int], ...] = ()
        self._taught: list[Tensor] = []  # of the training rounds' pairs: inputs, log odds, evidence, which of the U

    # -- reading

    def inputs(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M, I) what the networks read of each candidate; `columns` name the features."""
        of_query, of_each = self.columns
        if not self._places:
            arms, query, each = arms_of(of_each), list(of_query), list(of_each)
            self._places = (
                [query.index(f"{arm}_{name}") for arm in arms for name in _QUERY],
                [each.index(f"{arm}_{name}") for arm in arms for name in ("share", "rank")],
                [each.index(name) for name in _EACH],
                [*range(len(context_names(of_query)))],
            )
        query, own, each, context = self._places
        num, most = known.candidates.shape[:2]
        of_arm = known.query[:, query].reshape(num, 1, -1, len(_QUERY))
        share, rank = np.moveaxis(known.candidates[:, :, own].reshape(num, most, -1, 2), -1, 0)
        found = np.broadcast_to(np.log1p(of_arm[..., 2]), rank.shape)
        first, gap = (np.broadcast_to(of_arm[..., i], rank.shape) for i in range(2))
        depth = -np.log(np.where(rank > 0, rank, 0.01))
        tokens = np.stack([rank > 0, share, depth, first, gap, found], axis=-1).reshape(num, most, -1)
        beside = np.broadcast_to(known.query[:, None, context], (num, most, len(context)))
        return np.concatenate([tokens, known.candidates[:, :, each], beside], axis=2, dtype=np.float32)

    def correction(self, inputs: np.ndarray, odds: np.ndarray) -> np.ndarray:
        """(...) log odds to add to calibrated ones (...); inputs (..., I). Zeros before anything was learned."""
        if self.network is None:
            return np.zeros(odds.shape)
        flat, of = inputs.reshape(-1, inputs.shape[-1]), odds.reshape(-1).astype(np.float32)
        out = np.zeros(len(flat))
        with torch.inference_mode():
            for start in range(0, len(flat), _BATCH):
                part = slice(start, start + _BATCH)
                each = self._added(
                    torch.from_numpy(flat[part]).to(self.device), torch.from_numpy(of[part]).to(self.device)
                )
                out[part] = (each.mean(dim=0) / torch.sqrt(1 + torch.pi / 8 * each.var(dim=0, correction=0))).cpu()
        return out.reshape(odds.shape)

    def _added(self, inputs: Tensor, odds: Tensor) -> Tensor:
        """(N, P) what each network adds."""
        assert self.network is not None
        num_arms = len(arms_of(self.columns[1]))
        arms, each, query = inputs.split(
            [num_arms * _TOKEN, len(_EACH), inputs.shape[1] - num_arms * _TOKEN - len(_EACH)], 1
        )
        return self.network(arms.reshape(len(inputs), num_arms, _TOKEN), each, query, odds)

    # -- learning

    def learn(self, inputs: np.ndarray, odds: np.ndarray, evidence: np.ndarray, seed: int = 0) -> None:
        """Continues training on pairs: inputs (P, I), calibrated log odds (P,), evidence in log odds (P,)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.network is None:
                self._build(inputs)
            parts = [torch.from_numpy(part.astype(np.float32)).to(self.device) for part in (inputs, odds, evidence)]
            optimizers = self.optimizer(self.hparams["steps"])
            self.train()
            for _ in range(self.hparams["steps"]):
                some = torch.randint(len(odds), (min(self.hparams["batch_size"], len(odds)),), device=self.device)
                loss = self._loss(*(part[some] for part in parts), pairs=len(odds))
                optimizers["optimizer"].zero_grad()
                loss.backward()
                optimizers["optimizer"].step()
                optimizers["lr_scheduler"]["scheduler"].step()
        self.eval()

    def _loss(self, inputs: Tensor, odds: Tensor, evidence: Tensor, *, pairs: int) -> Tensor:
        """Sum over networks of the mean negative log likelihood, in nats a pair, and of what keeps them near 0."""
        added = self._added(inputs, odds)
        each = softplus(odds + added) - softplus(odds + added + evidence)
        return (each + self.hparams["shrink"] / pairs * added**2).mean(dim=1).sum()

    def _build(self, inputs: np.ndarray) -> None:
        num_arms = len(arms_of(self.columns[1]))
        arms, each, query = np.split(inputs, [num_arms * _TOKEN, num_arms * _TOKEN + len(_EACH)], axis=1)
        of_arms = Standard.of(arms)
        shape = num_arms, _TOKEN
        self._make(
            Standard(of_arms.mean.reshape(shape), of_arms.deviation.reshape(shape)),
            Standard.of(each),
            Standard.of(query),
        )

    def _make(self, arms: Standard, each: Standard, query: Standard) -> None:
        self.network = PriorNetwork(arms, each, query, self.hparams["networks"], self.hparams["hidden"]).to(self.device)

    # -- learning from logged rounds

    def prepare(self, rounds: Rounds, seed: int = 0) -> None:
        """Builds a new network; estimates from all rounds the calibration it starts from, and how customers look."""
        super().prepare(rounds, seed)
        self.columns, self.num, self._places = rounds.names, rounds.candidates.shape[1], ()
        counts, clicks, shows = counts_of(rounds)
        looks = fit_looks(shows, usual_looks())
        self.calibration = calibration_of(rounds, clicks, looks)
        shown = counts.max(axis=2) > 0  # (U, M)
        parts = self.inputs(RetrievalFeatures(rounds.query, rounds.candidates)), self._calibrated(rounds.candidates)
        evidence = np.clip(counts @ looks.usual_ratios(), -_CERTAIN, _CERTAIN)
        pairs = [part[shown].astype(np.float32) for part in (*parts, evidence)]
        self._taught = [torch.from_numpy(part) for part in (*pairs, np.nonzero(shown)[0])]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(pairs[0])

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """Learns anew from all rounds; the same rounds and seed give the same network. Uses no Trainer."""
        self.prepare(rounds, seed)
        inputs, odds, evidence, _ = self._taught
        self.learn(inputs.numpy(), odds.numpy(), evidence.numpy(), seed)

    def _calibrated(self, candidates: np.ndarray) -> np.ndarray:
        """(Q, M) log odds of candidates (Q, M, C)."""
        return _columns(self.columns[1], candidates) @ np.array(self.calibration)

    def training_step(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """Loss of the queries of a batch, each counted once."""
        return self._loss(*self._of_batch(batch), pairs=len(self._taught[0]))

    def score(self, batch: dict[str, Any]) -> Tensor:
        """Log likelihood above the calibration's, in nats a pair."""
        inputs, odds, evidence = self._of_batch(batch)
        added = self._added(inputs, odds).mean(dim=0)
        return (
            softplus(odds + added + evidence) - softplus(odds + added) - softplus(odds + evidence) + softplus(odds)
        ).mean()

    def _of_batch(self, batch: dict[str, Any]) -> list[Tensor]:
        """Inputs, log odds and evidence of the pairs of the batch's queries; the pairs move to the device once."""
        self._taught = [part.to(self.device) for part in self._taught]
        some = torch.isin(self._taught[-1], batch["row"])
        return [part[some] for part in self._taught[:-1]]

    # -- export

    def export(self, folder: Path) -> None:
        """Writes prior.json (options, columns) and prior.safetensors (weights, standardisation, calibration)."""
        write(self, folder, _FILES, {"calibration": np.array(self.calibration), "num": np.array(self.num)})

    @classmethod
    def load(cls, folder: str | Path) -> PriorLearner:
        """Loads an export. Raises ValueError naming a file that is missing, damaged or of another version."""

        def restore(module: PriorLearner, weights: dict[str, Tensor]) -> None:
            module.calibration, module.num = tuple(weights.pop("calibration").tolist()), int(weights.pop("num"))
            module._make(*(standard_of(weights, f"network.{part}") for part in ("arms", "each", "query")))

        return read(cls, Path(folder), _FILES, restore)


def counts_of(rounds: Rounds) -> tuple[np.ndarray, tuple[np.ndarray, ...], Shows]:
    """What was seen of each candidate (U, M, 1 + B): clicks, and shows without one in each cell; and all of it.

    Also of each show: its query of the U, its candidate, its cell (`cells`), and whether it was clicked.
    """
    places = rounds.places.astype(np.int64)
    which, candidate = np.nonzero(places >= 0)
    order = np.lexsort((places[which, candidate], which))
    which, candidate = which[order], candidate[order]
    place, clicked = places[which, candidate], rounds.clicks[which, candidate]
    start = np.searchsorted(which, which)
    cells, row = cells_of(clicked, place, start), rounds.row[which]
    counts = np.zeros((*rounds.candidates.shape[:2], 1 + NUM), np.float32)
    np.add.at(counts, (row, candidate, np.where(clicked, 0, 1 + cells)), 1)
    seen = counts[counts.any(axis=2)]
    shows = Shows(seen[:, 0], seen[:, 1:], np.bincount(cells[clicked], minlength=NUM).astype(float))
    return counts, (row, candidate, cells, clicked), shows


def calibration_of(rounds: Rounds, shows: Sequence[np.ndarray], looks: Looks) -> tuple[float, ...]:
    """4 weights under which the clicks on all shows (`counts_of`) are likeliest; `UNFITTED` where they tell nothing."""
    row, candidate, cells, clicked = shows
    if not 0 < clicked.sum() < len(clicked):
        return UNFITTED
    x = _columns(rounds.names[1], rounds.candidates[row, candidate])
    examined = looks.examined[cells]
    return tuple(fit_clicks(x, np.zeros(len(x)), clicked, examined, looks.usual(), looks.noise))


def _columns(names: Sequence[str], candidates: np.ndarray) -> np.ndarray:
    """(..., 4) what a calibration reads (`ltrr.policies.calibration.columns`), from candidates (..., C)."""
    at = [list(names).index(name) for name in ("fused", "below_first", "rank")]
    return np.concatenate([candidates[..., at], np.ones((*candidates.shape[:-1], 1))], axis=-1)
