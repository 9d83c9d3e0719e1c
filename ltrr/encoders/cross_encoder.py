"""Scores of (query, document) pairs read together by one transformer: training, export and fast scoring.

Knows sentence-transformers' CrossEncoder, pairs of texts and numeric signals; knows nothing about corpora, arms or
pools. A score is a logit: any real number, higher is better. Truncation shortens the longer text first, so that a query
of up to half of max_length stays whole. Legend: B queries, N documents of a query, P pairs, L tokens, S signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from torch import Tensor, nn
from tqdm import tqdm

from ltrr.encoders.backbone import CPU_TOKENS, QUIET, by_length, check_length, here_or_hub, pack_linears, sha256_of
from ltrr.encoders.losses import lambda_loss, listwise_softmax, pointwise
from ltrr.encoders.training import TextModule, finite, set_dropout, validate
from ltrr.types import DevSet, Example

GPU_TOKENS = 131_072  # tokens that go through a GPU at once
TOKENISED_AT_ONCE = 1024  # pairs: sorting by length needs many, a living progress bar few
_SIGNALS = "signals.safetensors"
_HIDDEN = 16  # units of the signals' head


class CrossEncoderNetwork(nn.Module):
    """A transformer with one output; where there are signals, a small head whose output is added to it."""

    id = ""  # names the weights; `load_cross_encoder` sets it

    def __init__(self, text: CrossEncoder, signals: int = 0, batch_tokens: int | None = None) -> None:
        """signals: S finite numbers beside each pair, standardised here. batch_tokens: None = by device.

        Signals are given from Python alone: to `score` and `forward`, or as `signals` (N, S) of the examples that
        `CrossEncoderModule.collate` gets. The data of train.py and the ranker have none, so there S = 0.
        """
        super().__init__()
        self.text = text
        self.num_signals = signals
        self._batch_tokens = batch_tokens
        last = nn.Linear(_HIDDEN, 1, bias=False)
        nn.init.zeros_(last.weight)  # starts as if there were no signals
        head = nn.Sequential(nn.BatchNorm1d(signals), nn.Linear(signals, _HIDDEN), nn.GELU(), last) if signals else None
        self.signals = head

    def tokenise(self, queries: Sequence[str], documents: Sequence[str]) -> dict[str, Any]:
        """Tensors (P, L), padded to the longest pair."""
        return self.text.preprocess(list(zip(queries, documents, strict=True)))

    def forward(self, features: dict[str, Any], signals: Tensor | None = None) -> Tensor:
        """(P,) logits of tokenised pairs and their signals (P, S); without signals, of the texts alone.

        Pairs go in batches of similar length: 4,096 tokens at a time train twice as fast on a CPU as 16,384 do, with
        the same gradient.
        """
        mask = features["attention_mask"]
        budget = self._batch_tokens or (CPU_TOKENS if mask.device.type == "cpu" else GPU_TOKENS)
        rows, batches = zip(*by_length(features, budget, self.text.tokenizer.padding_side), strict=True)
        logits = torch.cat([self.text(batch)["scores"].float().reshape(-1) for batch in batches])
        logits = logits[torch.argsort(torch.cat(rows))]
        return logits if self.signals is None or signals is None else logits + self.signals(signals).float()[:, 0]

    @torch.no_grad()
    def score(self, queries: Sequence[str], documents: Sequence[str], signals: np.ndarray | None = None) -> np.ndarray:
        """(P,) float32 logits of the pairs (queries[p], documents[p]); signals (P, S)."""
        out, device = np.empty(len(queries), np.float32), self.text.device
        hidden = None if len(queries) > QUIET else True
        with tqdm(total=len(queries), desc="score", unit="pair", leave=False, disable=hidden) as progress:
            for start in range(0, len(queries), TOKENISED_AT_ONCE):
                some = slice(start, start + TOKENISED_AT_ONCE)
                features = self.tokenise(queries[some], documents[some])
                features = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in features.items()}
                beside = None if signals is None else torch.from_numpy(signals[some]).to(device, torch.float32)
                out[some] = self(features, beside).cpu().numpy()
                progress.update(len(out[some]))
        return out

    def save(self, folder: Path) -> None:
        """A folder for `CrossEncoder(folder)`, whose `predict` gives the same logits; the signals' head lies beside."""
        self.text.save_pretrained(str(folder), create_model_card=False)
        if self.signals is not None:
            save_file(self.signals.state_dict(), folder / _SIGNALS)


def cross_encoder_network(
    model: str = "offline", *, max_length: int = 256, dropout: float = 0.0, signals: int = 0
) -> CrossEncoderNetwork:
    """A network to train.

    model: "offline" (all-MiniLM-L6-v2 from an installed package), a folder or a hub name. A cross-encoder is taken as
        it is; any other encoder gets a new output on tanh of the first token.
    max_length: tokens of a pair; longer ones are cut.
    dropout: of all layers, 0 to 1.
    signals: numbers beside the texts of each pair (S); above 0 from Python alone (see `CrossEncoderNetwork`).

    Raises ValueError for a model that is neither here nor reachable, and for a max_length that the model cannot take.
    """
    text = _load(model, max_length)
    set_dropout(text, dropout)
    base: Any = text.transformers_model
    if not _has_score(text) and (pooler := getattr(base.base_model, "pooler", None)):
        nn.init.eye_(pooler.dense.weight)  # a bi-encoder's unused pooler is decayed: it hides four fifths of the signal
        nn.init.zeros_(pooler.dense.bias)
    return CrossEncoderNetwork(text, signals).float().train()


def load_cross_encoder(
    model: str,
    *,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    device: str | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
) -> CrossEncoderNetwork:
    """A ready scorer (`id`, `score`).

    model: the `export` folder of a training run, another folder of a cross-encoder, or a hub name.
    max_length: tokens of a pair; None = as it was trained.
    batch_tokens: tokens that are scored at once, padding included; None = 4,096 on a CPU, 131,072 on a GPU.
    device: as torch names it; None = cuda where there is one.
    dtype: of all layers but the last, which stays float32, so that scores have no ties; None = half precision on a GPU,
        bfloat16 on a CPU that multiplies it (AMX: 2.7 times as fast), else float32.

    Raises ValueError as `cross_encoder_network`, and for a model that was not trained to score pairs.
    """
    text = _load(model, max_length)
    if not _has_score(text):
        raise ValueError(
            f"model {model!r} is no cross-encoder: it has no trained score of pairs. Train one and give its folder:\n"
            f"python train.py fit --config configs/cross_encoder.yaml --model.network.model {model} --data.path DATA"
        )
    saved = Path(model) / _SIGNALS
    head = load_file(saved) if saved.exists() else {}
    network = CrossEncoderNetwork(text, len(head["0.weight"]) if head else 0, batch_tokens)
    if network.signals is not None:
        network.signals.load_state_dict(head)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_cpu = target.type == "cpu"
    if dtype is None:
        dtype = "float16" if not on_cpu else "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"
    network.id = f"{Path(model).name}@{sha256_of(network)};max_length={text.max_seq_length};{dtype}"
    network.to(target).float()
    if dtype != "float32":
        _lower(text, getattr(torch, dtype))
    elif on_cpu and torch.backends.mkldnn.is_available():
        pack_linears(text)
    return network.eval()


def _lower(text: CrossEncoder, dtype: torch.dtype) -> None:
    """Everything to `dtype` but the layer that makes the score, which is the last one."""
    text.to(dtype)
    last = [module for module in text.modules() if isinstance(module, nn.Linear)][-1]
    last.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _load(model: str, max_length: int | None) -> CrossEncoder:
    """The model on the CPU."""

    def read(folder: str, here: bool) -> CrossEncoder:
        options: dict[str, Any] = {"num_labels": 1, "max_length": max_length, "activation_fn": nn.Identity()}
        return CrossEncoder(folder, device="cpu", local_files_only=here, **options)

    text = here_or_hub(model, read, "a cross-encoder's folder", "config.json")
    if max_length is not None:
        check_length(max_length, text.config)
    return text


def _has_score(text: CrossEncoder) -> bool:
    """Whether the files held the last layer; else it is drawn anew at each load."""
    inner: Any = text.transformers_model
    return any("SequenceClassification" in name for name in inner.config.architectures or ())


class CrossEncoderModule(TextModule):
    """Trains a cross-encoder.

    Args:
        network: from `cross_encoder_network`.
        loss: over the graded documents of each query: pointwise (cross-entropy), listwise (softmax, ListNet), or
            lambda (NDCG-Loss2++).
        lr: peak learning rate of AdamW.
        weight_decay: of matrices.
        warmup: share of the steps in which the learning rate rises.
    """

    def __init__(
        self,
        network: CrossEncoderNetwork,
        *,
        loss: Literal["pointwise", "listwise", "lambda"] = "listwise",
        lr: float = 7e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.network = network
        self._loss = {"pointwise": pointwise, "listwise": listwise_softmax, "lambda": lambda_loss}[loss]
        self._lr, self._weight_decay, self._warmup = lr, weight_decay, warmup

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Tokens of B·N pairs, those of a query together, with grades."""
        pairs = [(e.query, document) for e in examples for document in e.documents]
        features = self.network.tokenise(*zip(*pairs, strict=True))
        batch = {
            "ids": [e.id for e in examples],
            "tokens": int(features["attention_mask"].sum()),
            "features": features,
            "grades": torch.tensor([e.grades for e in examples]),  # (B, N)
        }
        if self.network.num_signals:
            batch["signals"] = torch.tensor([row for e in examples for row in e.signals])  # type: ignore[attr-defined]  # (B·N, S)
        return batch

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.network.num_signals and data is not None and not getattr(data, "has_signals", False):
            raise ValueError(
                f"model.network.signals: {self.network.num_signals}, but the training data have no signals (they are "
                "given from Python alone); set it to 0"
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        grades = batch["grades"]
        scores = self.network(batch["features"], batch.get("signals")).view(grades.shape)  # (B, N)
        loss = self._loss(scores, grades, torch.ones_like(grades, dtype=torch.bool))
        self.log("train_loss", loss, batch_size=len(grades), prog_bar=True)
        return finite(loss, batch["ids"])

    def validation_step(self, dev: DevSet, batch_idx: int) -> None:
        counts = [len(places) for places in dev.candidates]
        queries = [query for query, count in zip(dev.queries, counts, strict=True) for _ in range(count)]
        documents = [dev.documents[place] for places in dev.candidates for place in places]
        scores = self.network.score(queries, documents)
        validate(self, dev.run(np.split(scores, np.cumsum(counts)[:-1])), dev)

    def export(self, folder: Path) -> None:
        """A folder for `CrossEncoder` and `load_cross_encoder`."""
        self.network.save(folder)
