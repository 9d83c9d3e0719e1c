"""The SPLADE network: a masked language model whose logits become one sparse vector of term weights per text.

Knows transformers models, tokens and batches; knows nothing about training or indexes. A BERT without an MLM head gets
a new one, whose initial weights `Splade.calibrate` computes.
Legend: B texts, L tokens, H hidden size, V vocabulary, T tokens of some texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from torch import Tensor, nn
from transformers import BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from ltrr.encoders.backbone import CPU_TOKENS, TOKENISED_AT_ONCE, by_length
from ltrr.encoders.sparse_head import splade_max
from ltrr.types import Sparse

_SHIFT = 6.0  # hidden states are rarely below −3, and gelu(x) is x within 1e-3 from 3 on
_CALIBRATED_ON = 128  # texts


class Splade(nn.Module):
    """A masked language model whose logits become one sparse vector of term weights per text (`splade_max`)."""

    calibrated: Tensor  # () bool, kept in checkpoints, so that a resumed fit does not calibrate again

    def __init__(
        self,
        mlm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        max_active: int | None = None,
        query_weight: Tensor | None = None,
        new_head: bool = False,
        sigmas: float = 3.0,
    ) -> None:
        """mlm: modified in place. query_weight (V,): for inference-free queries. new_head: a BERT's untrained head."""
        super().__init__()
        self.mlm: Any = mlm  # transformers models share no typed interface for what is used here
        self.tokenizer: Any = tokenizer
        self.max_length, self.max_active = max_length, max_active
        self.query_weight = None if query_weight is None else nn.Parameter(query_weight)
        self.new_head, self._sigmas = new_head, sigmas
        self.register_buffer("calibrated", torch.tensor(not new_head))
        decoder = mlm.get_output_embeddings()
        assert isinstance(decoder, nn.Linear)
        self.decoder = decoder  # (V, H), usually tied to the word embeddings
        names = {module: name for name, module in mlm.named_modules()}
        replaced: dict[nn.Module, nn.Module] = {decoder: nn.Identity()}  # the model now returns the decoder's input
        if isinstance(mlm, BertForMaskedLM):
            replaced[mlm.cls.predictions.transform] = _Float32(mlm.cls.predictions.transform)
        self._replaced = [(names[original], original, replacement) for original, replacement in replaced.items()]
        self._place(ours=True)

    def _place(self, *, ours: bool) -> None:
        """Installs our replacement modules (ours=True) or the model's original ones."""
        for name, original, replacement in self._replaced:
            parent, _, leaf = name.rpartition(".")
            setattr(self.mlm.get_submodule(parent), leaf, replacement if ours else original)

    @contextmanager
    def _whole(self) -> Iterator[Any]:
        """Restores the original modules while the context lasts, for saving with transformers."""
        self._place(ours=False)
        try:
            yield self.mlm
        finally:
            self._place(ours=True)

    # -- texts to weights

    def tokenise(self, texts: Sequence[str], *, is_query: bool = False) -> dict[str, Tensor]:
        """Tokenises texts for `forward`, padded to the longest."""
        without_special = is_query and self.query_weight is not None
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            add_special_tokens=not without_special,
            return_tensors="pt",
        )
        return {name: value.long() for name, value in tokens.items()}

    def forward(self, tokens: Mapping[str, Tensor], *, is_query: bool = False) -> Tensor:
        """Computes term weights, (B, V) float32, ≥ 0."""
        mask = tokens["attention_mask"]
        if is_query and self.query_weight is not None:
            present = mask.new_zeros(len(mask), len(self.query_weight)).scatter_(1, tokens["input_ids"], mask)
            return present * self.query_weight.relu()
        return splade_max(self.mlm(**tokens).logits, self.decoder.weight, self.decoder.bias, mask)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, is_query: bool = False, token_budget: int = CPU_TOKENS) -> Sparse:
        """Encodes texts as B sparse rows of the `max_active` heaviest terms. token_budget: tokens per batch."""
        rows: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.uint32), np.empty(0, np.float32))] * len(texts)
        for start in range(0, len(texts), TOKENISED_AT_ONCE):
            tokens = self.tokenise(texts[start : start + TOKENISED_AT_ONCE], is_query=is_query)
            for places, batch in by_length(tokens, token_budget, self.tokenizer.padding_side):
                moved = {name: t.to(self.decoder.weight.device) for name, t in batch.items()}
                for place, row in zip(places.tolist(), self._rows(self(moved, is_query=is_query)), strict=True):
                    rows[start + place] = row
        terms, values = zip(*rows, strict=True) if rows else ((), ())
        ptr = np.cumsum([0, *map(len, terms)], dtype=np.int64)
        return Sparse(
            ptr, np.concatenate([np.empty(0, np.uint32), *terms]), np.concatenate([np.empty(0, np.float32), *values])
        )

    def _rows(self, weights: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields each row's terms (ascending) and values, from weights (B, V)."""
        if self.max_active is not None:
            values, terms = weights.topk(min(self.max_active, weights.shape[1]), dim=1)
            weights = torch.zeros_like(weights).scatter_(1, terms, values)
        row, term = weights.nonzero(as_tuple=True)
        counts = row.bincount(minlength=len(weights)).tolist()
        terms, values = term.cpu().split(counts), weights[row, term].cpu().split(counts)
        return ((t.numpy().astype(np.uint32), v.numpy()) for t, v in zip(terms, values, strict=True))

    # -- calibration and export

    @torch.no_grad()
    def calibrate(self, texts: Sequence[str]) -> None:
        """Initialises a new head and new query weights from texts; leaves existing ones unchanged.

        The head is tied to the word embeddings. Its transform becomes nearly the identity: dense x + 6, where gelu is
        linear, and a LayerNorm that restores the average mean and deviation. A term's bias is −(μ + sigmas · σ), with
        the mean and deviation of its logits over the texts' tokens, computed from mean and covariance of the
        transform's outputs. Query weights are BM25's idf over the texts.
        """
        if self.calibrated:
            return
        device = self.decoder.weight.device
        if self.new_head:
            states = []
            for start in range(0, min(len(texts), _CALIBRATED_ON), 16):
                tokens = {name: t.to(device) for name, t in self.tokenise(texts[start : start + 16]).items()}
                states.append(self.mlm.base_model(**tokens).last_hidden_state[tokens["attention_mask"].bool()])
            hidden = torch.cat(states)  # (T, H)
            transform = self.mlm.cls.predictions.transform.inner
            transform.dense.weight.copy_(torch.eye(hidden.shape[1]))
            transform.dense.bias.fill_(_SHIFT)
            transform.LayerNorm.weight.fill_(hidden.std(1, correction=0).mean())
            transform.LayerNorm.bias.fill_(hidden.mean())
            out, decoder = transform(hidden), self.decoder.weight
            variance = ((decoder @ out.T.cov()) * decoder).sum(1)  # (V,)
            self.decoder.bias.copy_(-(decoder @ out.mean(0) + self._sigmas * variance.clamp(min=0).sqrt()))
        if self.query_weight is not None:
            tokens = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, add_special_tokens=False)
            present = [term for ids in tokens["input_ids"] for term in set(ids)]
            counts = np.bincount(present, minlength=len(self.query_weight))  # (V,) texts that contain the term
            idf = np.log1p((len(texts) - counts + 0.5) / (counts + 0.5))
            self.query_weight.copy_(torch.from_numpy(idf))
        self.calibrated.fill_(True)

    def export(self, folder: Path) -> None:
        """Writes a folder for `SparseEncoder`, with maximum length and number of active terms."""
        self.tokenizer.model_max_length = self.max_length  # the export reads it there for queries
        with TemporaryDirectory() as scratch, self._whole() as mlm:
            mlm.save_pretrained(scratch)
            self.tokenizer.save_pretrained(scratch)
            transformer = Transformer(scratch, transformer_task="fill-mask", max_seq_length=self.max_length)
        modules: list[nn.Module] = [transformer, SpladePooling("max")]
        if self.query_weight is not None:
            weight = self.query_weight.detach().cpu().relu()
            static = SparseStaticEmbedding(self.tokenizer, weight, frozen=True)
            modules = [Router.for_query_document([static], modules)]  # type: ignore[arg-type]
        encoder = SparseEncoder(
            modules=modules, device="cpu", similarity_fn_name="dot", max_active_dims=self.max_active
        )
        encoder.save_pretrained(str(folder), create_model_card=False)


class _Float32(nn.Module):
    """Runs in float32 under autocast too: a new head adds 6 to hidden states, which costs bfloat16 precision."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.inner(x.float())
