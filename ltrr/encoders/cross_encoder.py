"""Trains, exports and runs a cross-encoder: one transformer reads a query and a document together and scores the pair.

Knows sentence-transformers' CrossEncoder, pairs of texts and numeric signals; knows nothing about corpora, arms or
pools. A score is a logit: any real number, higher is better. Truncation shortens the longer text first, so a query of
up to half of max_length stays whole. Legend: B queries, N documents per query, P pairs, L tokens, S signals.
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

GPU_TOKENS = 131_072  # per batch on a GPU
TOKENISED_AT_ONCE = 1024  # pairs: more make batches of more equal length, fewer move the progress bar more often
_SIGNALS = "signals.safetensors"
_HIDDEN = 16  # units of the signal head


class CrossEncoderNetwork(nn.Module):
    """A transformer with one output. If there are signals, a small head reads them and its output is added."""

    id = ""  # identifies the weights; set by `load_cross_encoder`

    def __init__(self, text: CrossEncoder, signals: int = 0, batch_tokens: int | None = None) -> None:
        """signals: S, how many finite numbers accompany each pair; standardised here. batch_tokens: None = by device.

        Signals are available from Python only: pass them to `score` and `forward`, or as attribute `signals` (N, S) of
        the examples for `CrossEncoderModule.collate`. The data of train.py and the ranker have none: there S = 0.
        """
        super().__init__()
        self.text = text
        self.num_signals = signals
        self._batch_tokens = batch_tokens
        last = nn.Linear(_HIDDEN, 1, bias=False)
        nn.init.zeros_(last.weight)  # at first the signals change nothing
        head = nn.Sequential(nn.BatchNorm1d(signals), nn.Linear(signals, _HIDDEN), nn.GELU(), last) if signals else None
        self.signals = head

    def tokenise(self, queries: Sequence[str], documents: Sequence[str]) -> dict[str, Any]:
        """Tokenises pairs as tensors (P, L), padded to the longest pair."""
        return self.text.preprocess(list(zip(queries, documents, strict=True)))

    def forward(self, features: dict[str, Any], signals: Tensor | None = None) -> Tensor:
        """Scores tokenised pairs with their signals (P, S), or the texts alone if signals is None: (P,) logits.

        Pairs are batched by similar length. On a CPU, 4,096 tokens at a time train twice as fast as 16,384, with the
        same gradient.
        """
        mask = features["attention_mask"]
        budget = self._batch_tokens or (CPU_TOKENS if mask.device.type == "cpu" else GPU_TOKENS)
        rows, batches = zip(*by_length(features, budget, self.text.tokenizer.padding_side), strict=True)
        logits = torch.cat([self.text(batch)["scores"].float().reshape(-1) for batch in batches])
        logits = logits[torch.argsort(torch.cat(rows))]
        return logits if self.signals is None or signals is None else logits + self.signals(signals).float()[:, 0]

    @torch.no_grad()
    def score(self, queries: Sequence[str], documents: Sequence[str], signals: np.ndarray | None = None) -> np.ndarray:
        """Scores the pairs (queries[p], documents[p]) with signals (P, S): (P,) float32 logits."""
        out, device = np.empty(len(queries), np.float32), self.text.device
        no_bar = None if len(queries) > QUIET else True
        with tqdm(total=len(queries), desc="score", unit="pair", leave=False, disable=no_bar) as progress:
            for start in range(0, len(queries), TOKENISED_AT_ONCE):
                chunk = slice(start, start + TOKENISED_AT_ONCE)
                features = self.tokenise(queries[chunk], documents[chunk])
                features = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in features.items()}
                batch_signals = None if signals is None else torch.from_numpy(signals[chunk]).to(device, torch.float32)
                out[chunk] = self(features, batch_signals).cpu().numpy()
                progress.update(len(out[chunk]))
        return out

    def save(self, folder: Path) -> None:
        """Writes a folder for `CrossEncoder`, whose `predict` gives the texts' logits; the signal head is beside it."""
        self.text.save_pretrained(str(folder), create_model_card=False)
        if self.signals is not None:
            save_file(self.signals.state_dict(), folder / _SIGNALS)


def cross_encoder_network(
    model: str = "offline", *, max_length: int = 256, dropout: float = 0.0, signals: int = 0
) -> CrossEncoderNetwork:
    """Builds a network for training.

    model: "offline" (all-MiniLM-L6-v2 from an installed package), a folder or a hub name. A cross-encoder keeps its
        output layer; any other encoder gets a new one on tanh of the first token.
    max_length: tokens per pair; longer pairs are truncated.
    dropout: of all layers, 0 to 1.
    signals: numbers that accompany each pair (S); above 0 from Python only (see `CrossEncoderNetwork`).

    Raises ValueError if the model is neither on disk nor on the hub, or if max_length exceeds its limit.
    """
    text = _load(model, max_length)
    set_dropout(text, dropout)
    base: Any = text.transformers_model
    if not _has_score(text) and (pooler := getattr(base.base_model, "pooler", None)):
        # Weight decay has shrunk a bi-encoder's unused pooler, which would hide four fifths of the signal.
        nn.init.eye_(pooler.dense.weight)
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
    """Loads a scorer for inference (`id`, `score`).

    model: the `export` folder of a training run, another folder of a cross-encoder, or a hub name.
    max_length: tokens per pair; None = the model's own setting.
    batch_tokens: tokens per batch, padding included; None = 4,096 on a CPU, 131,072 on a GPU.
    device: torch's name for it; None = cuda if available.
    dtype: of all layers except the last, which stays float32 so that scores do not tie; None = float16 on a GPU,
        bfloat16 on a CPU with AMX (2.7 times as fast), else float32.

    Raises ValueError like `cross_encoder_network`, and for a model that was not trained to score pairs.
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
    """Casts all layers to `dtype` except the last linear layer, which computes the score."""
    text.to(dtype)
    last = [module for module in text.modules() if isinstance(module, nn.Linear)][-1]
    last.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _load(model: str, max_length: int | None) -> CrossEncoder:
    """Loads a model on the CPU."""

    def read(folder: str, local_only: bool) -> CrossEncoder:
        options: dict[str, Any] = {"num_labels": 1, "max_length": max_length, "activation_fn": nn.Identity()}
        return CrossEncoder(folder, device="cpu", local_files_only=local_only, **options)

    text = here_or_hub(model, read, "a cross-encoder's folder", "config.json")
    if max_length is not None:
        check_length(max_length, text.config)
    return text


def _has_score(text: CrossEncoder) -> bool:
    """Whether the files hold the output layer; otherwise it is random at each load."""
    inner: Any = text.transformers_model
    return any("SequenceClassification" in name for name in inner.config.architectures or ())


class CrossEncoderModule(TextModule):
    """Trains a cross-encoder.

    Args:
        network: from `cross_encoder_network`.
        loss: over the graded documents of each query: pointwise (cross-entropy), listwise (softmax, ListNet), or
            lambda (NDCG-Loss2++).
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW, applied to matrices only.
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
        """Tokenises B·N pairs, grouped by query, with their grades."""
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
                f"model.network.signals: {self.network.num_signals}, but the training data have no signals (they can "
                "be passed from Python only); set it to 0"
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
        """Writes a folder for `CrossEncoder` and `load_cross_encoder`."""
        self.network.save(folder)
