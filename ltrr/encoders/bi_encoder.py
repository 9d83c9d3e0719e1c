"""Trains a bi-encoder: contrastively, with in-batch, mined and cross-device negatives, or by distillation.

Knows sentence-transformers modules and batches of examples; knows nothing about files or indexes.
Legend: B queries of one device, Q queries of all devices, N documents per query, M documents of the batch (on all
devices), D dimensions, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltrr.encoders.backbone import CPU_TOKENS, TOKENISED_AT_ONCE, by_length, check_length, load_network
from ltrr.encoders.losses import info_nce, kl_distillation, margin_mse, matryoshka
from ltrr.encoders.training import TextModule, check_range, check_teacher, exclusions, finite, set_dropout, validate
from ltrr.metrics import to_run
from ltrr.types import Candidates, DevSet, Example, top_k


def dense_network(
    model: str = "offline",
    *,
    max_length: int = 256,
    query_prompt: str = "",
    document_prompt: str = "",
    dropout: float = 0.0,
) -> SentenceTransformer:
    """Builds a bi-encoder for training.

    model: "offline" (all-MiniLM-L6-v2 from an installed package), a folder, or a hub name; a model without
        sentence-transformers modules gets mean pooling.
    max_length: tokens; longer texts are truncated.
    query_prompt, document_prompt: text put before each query or document; the export keeps it.
    dropout: of every layer, 0 to 1; above 0, training on a CPU takes twice as long.

    Raises ValueError if the model is neither on disk nor on the hub, or if max_length exceeds its limit.
    """
    network = load_network(model)
    network.max_seq_length = check_length(max_length, getattr(network.transformers_model, "config", None))
    prompts: dict[str, str | None] = {"query": query_prompt, "document": document_prompt}
    network.prompts = prompts
    for name, parameter in network.named_parameters():
        if ".pooler." in name:  # unused, so it gets no gradient, for which DDP would wait
            parameter.requires_grad = False
    set_dropout(network, dropout)
    return network.float().train()


class DenseModule(TextModule):
    """Trains a bi-encoder.

    Args:
        network: from `dense_network`.
        temperature: of InfoNCE over cosine similarities, 0.001 to 1000.
        bidirectional: also classify each positive's query among the queries of all devices; the loss averages both
            directions (Radford et al. 2021, CLIP).
        distill: loss against the teacher's scores of each query's documents: margin_mse (Hofstätter et al. 2020) or kl;
            null = no distillation.
        distill_weight: weight of the distillation loss, 0 to 1; InfoNCE gets 1 − distill_weight.
        distill_scale: factor on cosine similarities before they are compared with the teacher's scores.
        dimensions: prefix lengths trained together (Matryoshka, Kusupati et al. 2022); empty = the whole vector only.
        chunk_tokens: tokens encoded at a time; 0 = no chunks. The gradient stays that of the whole batch, while memory
            holds one chunk's activations, which are recomputed in the backward pass (GradCache, Gao et al. 2021).
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW, applied to matrices only.
        warmup: share of the steps in which the learning rate rises.
    """

    def __init__(
        self,
        network: SentenceTransformer,
        *,
        temperature: float = 0.05,
        bidirectional: bool = False,
        distill: Literal["margin_mse", "kl"] | None = None,
        distill_weight: float = 0.5,
        distill_scale: float = 20.0,
        dimensions: list[int] | None = None,
        chunk_tokens: int = 0,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.network = network
        check_range("model.temperature", temperature, 1e-3, 1e3)
        check_range("model.distill_weight", distill_weight, 0, 1)
        self._temperature, self._bidirectional = temperature, bidirectional
        self._distill, self._distill_weight, self._distill_scale = distill, distill_weight, distill_scale
        self._dimensions = dimensions or []
        self._chunk_tokens = chunk_tokens
        self._lr, self._weight_decay, self._warmup = lr, weight_decay, warmup
        size = int(network.get_embedding_dimension() or 0)
        if any(not 0 < d <= size for d in self._dimensions):
            raise ValueError(f"model.dimensions: {self._dimensions} must lie in 1 to {size}, the size of the vectors")

    # -- batches

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Tokenises queries and documents: M = B·N documents, grouped by query, the positive first."""
        queries = self._tokens([e.query for e in examples], "query")
        documents = self._tokens([text for e in examples for text in e.documents], "document")
        rows = torch.tensor([row for e in examples for row in e.rows])
        return {
            "ids": [e.id for e in examples],
            "tokens": int(queries["attention_mask"].sum() + documents["attention_mask"].sum()),
            "queries": queries,
            "documents": documents,
            "exclude": exclusions(rows, [e.positives for e in examples]),
            "rows": rows,  # (M,)
            "positives": [e.positives for e in examples],
            "teacher": torch.tensor([e.teacher for e in examples]),  # (B, N)
        }

    def _tokens(self, texts: Sequence[str], kind: str) -> dict[str, Any]:
        return self.network.preprocess(list(texts), prompt=self.network.prompts.get(kind) or None)

    # -- training

    def on_fit_start(self) -> None:
        check_teacher(self, self._distill)

    def embed(self, features: dict[str, Any]) -> Tensor:
        """Encodes tokenised texts as (B, D) float32 unit vectors, in batches of similar length."""
        mask = features["attention_mask"]
        budget = self._chunk_tokens or (CPU_TOKENS if mask.device.type == "cpu" else mask.numel())
        recompute = self._chunk_tokens > 0 and torch.is_grad_enabled()
        rows, parts = [], []
        for batch_rows, batch in by_length(features, budget, self.network.tokenizer.padding_side):
            rows.append(batch_rows)
            parts.append(checkpoint(self._forward, batch, use_reentrant=False) if recompute else self._forward(batch))
        vectors: Tensor = torch.cat(parts)
        return vectors[torch.argsort(torch.cat(rows))]

    def _forward(self, features: dict[str, Any]) -> Tensor:
        return nn.functional.normalize(self.network(dict(features))["sentence_embedding"].float(), dim=-1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        queries, documents = self.embed(batch["queries"]), self.embed(batch["documents"])  # (B, D), (B·N, D)
        loss = torch.zeros((), device=queries.device)
        if self._distill is None or self._distill_weight < 1:
            loss = self._contrastive(queries, documents, batch)
        if self._distill:
            grouped = documents.view(len(queries), -1, documents.shape[1])  # (B, N, D)
            scores = self._distill_scale * torch.einsum("bd,bnd->bn", queries, grouped)
            distilled = {"margin_mse": margin_mse, "kl": kl_distillation}[self._distill](scores, batch["teacher"])
            loss = (1 - self._distill_weight) * loss + self._distill_weight * distilled
        self.log("train_loss", loss, batch_size=len(queries), prog_bar=True)
        return finite(loss, batch["ids"])

    def _contrastive(self, queries: Tensor, documents: Tensor, batch: dict[str, Any]) -> Tensor:
        per_query, exclude = len(documents) // len(queries), batch["exclude"]
        place = torch.arange(len(queries), device=queries.device)  # (B,) in the queries of all devices
        distributed = self.trainer.world_size > 1
        if distributed:  # texts of all devices are negatives, and gradients flow back to all of them
            place = place + self.global_rank * len(queries)
            gathered: Any = self.all_gather([queries, documents, batch["rows"]], sync_grads=True)
            queries, documents, rows = (each.flatten(0, 1) for each in gathered)  # (Q, D), (M, D), (M,)
            exclude = exclusions(rows, batch["positives"]).to(queries.device)  # (B, M)
        if self._bidirectional:
            shared: Any = exclude[:, ::per_query].contiguous()  # (B, Q) queries whose positive is also one of ours
            if distributed:
                shared = self.all_gather(shared)
                shared = shared.flatten(0, 1)  # (Q, Q)
            excluded = shared[:, place].T  # (B, Q) queries for which our positive is relevant

        def contrast(queries: Tensor, documents: Tensor) -> Tensor:
            target = per_query * place
            loss = info_nce(queries[place], documents, target, temperature=self._temperature, exclude=exclude)
            if not self._bidirectional:
                return loss
            backward = info_nce(documents[target], queries, place, temperature=self._temperature, exclude=excluded)
            return (loss + backward) / 2

        return (
            matryoshka(contrast, queries, documents, self._dimensions)
            if self._dimensions
            else contrast(queries, documents)
        )

    # -- validation and export

    def validation_step(self, dev: DevSet, batch_idx: int) -> None:
        queries, documents = self.encode(dev.queries, "query"), self.encode(dev.documents, "document")
        scores = queries @ documents.T  # (Q, N)
        docs = np.broadcast_to(np.arange(len(dev.documents), dtype=np.int32), scores.shape)
        ranked: Candidates = top_k(docs, scores, min(100, len(dev.documents)))
        validate(self, to_run(dev.ids, ranked, dev.doc_ids), dev)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """Encodes texts as (B, D) unit vectors; kind: "query" or "document"."""
        out = np.empty((len(texts), int(self.network.get_embedding_dimension() or 0)), np.float32)
        for start in range(0, len(texts), TOKENISED_AT_ONCE):
            features = self._tokens(texts[start : start + TOKENISED_AT_ONCE], kind)
            for rows, batch in by_length(features, CPU_TOKENS, self.network.tokenizer.padding_side):
                moved = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                out[start + rows.numpy()] = self._forward(moved).cpu().numpy()
        return out

    def export(self, folder: Path) -> None:
        """Writes a folder for `SentenceTransformer`, with prompts and maximum length."""
        self.network.save_pretrained(str(folder), create_model_card=False)
