"""Loads SPLADE networks from folders and the hub, trains them, and encodes texts as sparse vectors.

Knows the layouts of models and batches of examples; knows nothing about data files or indexes. The network itself is in
`ltrr.encoders.sparse_network`. Legend: B queries or texts, N documents per query, M = B·N documents of the batch,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertModel

from ltrr.encoders.backbone import CPU_TOKENS, check_length, here_or_hub, pack_linears, sha256_of
from ltrr.encoders.losses import flops, info_nce, kl_distillation, margin_mse, quadratic_ramp
from ltrr.encoders.sparse_network import Splade
from ltrr.encoders.training import TextModule, check_range, check_teacher, exclusions, finite, set_dropout, validate
from ltrr.metrics import to_run
from ltrr.types import DevSet, Example, Sparse, top_k

_COUNTED = 10_000  # texts on which a new head and idf weights are calibrated


def splade_network(
    model: str = "offline",
    *,
    max_length: int | None = 256,
    max_active: int | None = None,
    query: Literal["mlm", "idf"] = "mlm",
    sigmas: float = 3.0,
    dropout: float = 0.0,
) -> Splade:
    """Builds a SPLADE network for training.

    model: "offline" (all-MiniLM-L6-v2 from an installed package), a folder of SparseEncoder, SentenceTransformer or
        transformers, or a hub name. A model with an MLM head keeps it; a BERT without one gets a new one.
    max_length: tokens; longer texts are truncated; null = the model's own setting.
    max_active: terms kept per text outside of training, the heaviest; null = the model's own setting, or all.
    query: mlm = encoded like documents; idf = inference-free, a learned weight per token present, initialised to idf.
    sigmas: with a new head, a term becomes active this many standard deviations above its mean logit.
    dropout: of every layer, 0 to 1; above 0, training on a CPU takes twice as long.

    Raises ValueError if the model is neither on disk nor on the hub, has no MLM head and is no BERT, or does not pool
    by max, and if max_length exceeds its limit. The layouts of naver/splade-* (an MLM head without or with
    sentence-transformers modules) are tested on tiny models of the same layout, not on the published weights.
    """
    network = _open(model, sigmas)
    network.max_length = check_length(network.max_length if max_length is None else max_length, network.mlm.config)
    network.max_active = max_active or network.max_active
    if query == "mlm":
        network.query_weight = None
    elif network.query_weight is None:
        network.query_weight = nn.Parameter(torch.zeros(network.decoder.out_features))
        network.calibrated.fill_(False)
    set_dropout(network, dropout)
    return network.float().train()


def load_sparse_encoder(
    model: str,
    *,
    max_length: int | None = None,
    max_active: int | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> SpladeEncoder:
    """Loads an encoder for inference: float32 on CPU, float16 autocast on GPU.

    model: a folder, such as the `export` of a training run, or a hub name such as naver/splade-v3.
    max_length: tokens; longer texts are truncated; None = the model's own setting.
    max_active: terms kept per text, the heaviest; None = the model's own setting, or all.
    batch_size: texts of max_length tokens per batch; on a CPU a batch holds at most 4,096 tokens.
    device: torch's name for it; None = cuda if available.

    Raises ValueError like `splade_network`, and for a model whose head is not trained.
    """
    network = _open(model, sigmas=3.0)
    if not network.calibrated:
        raise ValueError(
            f"model {model!r} has no head for term weights. Train one and give its folder:\n"
            f"python train.py fit --config configs/splade.yaml --model.network.model {model} "
            "--data.path DATA"
        )
    network.max_length = check_length(network.max_length if max_length is None else max_length, network.mlm.config)
    network.max_active = max_active or network.max_active
    name = f"{Path(model).name}@{sha256_of(network)};max_length={network.max_length};max_active={network.max_active}"

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network.float().to(target).eval().requires_grad_(False)
    budget = batch_size * network.max_length
    if target.type == "cpu":
        budget = min(budget, CPU_TOKENS)
        if torch.backends.mkldnn.is_available():
            pack_linears(network.mlm)
    return SpladeEncoder(network, name, budget)


class SpladeEncoder:
    """A `SparseEncoder` (ltrr.protocols). `id` identifies the weights, the length limit and max_active."""

    def __init__(self, network: Splade, id: str, token_budget: int) -> None:
        """token_budget: tokens per batch, padding included."""
        self.id = id
        self._network, self._token_budget = network, token_budget

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Sparse:
        """Encodes texts as B sparse rows, as `encode_query` and `encode_document` of sentence-transformers do."""
        device = self._network.decoder.weight.device.type
        with torch.autocast(device, torch.float16, enabled=device != "cpu"):
            return self._network.encode(texts, is_query=is_query, token_budget=self._token_budget)


class SpladeModule(TextModule):
    """Trains a SPLADE network.

    Args:
        network: from `splade_network`.
        temperature: divisor of dot products in every loss, 0.001 to 1000.
        flops_query: weight of the FLOPS regularisation of queries (Paria et al. 2020); 0 for inference-free queries.
        flops_document: weight of the FLOPS regularisation of documents.
        flops_ramp: share of the steps, 0 to 1, in which both weights rise quadratically from 0.
        distill: loss against the teacher's scores of each query's documents: margin_mse (Hofstätter et al. 2020) or kl;
            null = no distillation.
        distill_weight: weight of the distillation loss, 0 to 1; InfoNCE gets 1 − distill_weight.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW, applied to matrices only.
        warmup: share of the steps in which the learning rate rises.
    """

    def __init__(
        self,
        network: Splade,
        *,
        temperature: float = 1.0,
        flops_query: float = 1e-3,
        flops_document: float = 1e-3,
        flops_ramp: float = 0.33,
        distill: Literal["margin_mse", "kl"] | None = None,
        distill_weight: float = 0.5,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.network = network
        check_range("model.temperature", temperature, 1e-3, 1e3)
        check_range("model.flops_ramp", flops_ramp, 0, 1)
        check_range("model.distill_weight", distill_weight, 0, 1)
        self._temperature = temperature
        self._flops_query, self._flops_document, self._flops_ramp = flops_query, flops_document, flops_ramp
        self._distill, self._distill_weight = distill, distill_weight
        self._lr, self._weight_decay, self._warmup = lr, weight_decay, warmup

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Tokenises queries and documents: M = B·N documents, grouped by query, the positive first."""
        queries = self.network.tokenise([e.query for e in examples], is_query=True)
        documents = self.network.tokenise([text for e in examples for text in e.documents])
        rows = torch.tensor([row for e in examples for row in e.rows])
        return {
            "ids": [e.id for e in examples],
            "tokens": int(queries["attention_mask"].sum() + documents["attention_mask"].sum()),
            "queries": queries,
            "documents": documents,
            "exclude": exclusions(rows, [e.positives for e in examples]),  # (B, M)
            "teacher": torch.tensor([e.teacher for e in examples]),  # (B, N)
        }

    def on_fit_start(self) -> None:
        check_teacher(self, self._distill)
        if not self.network.calibrated:
            texts = self.trainer.datamodule.corpus_texts(_COUNTED)  # type: ignore[attr-defined]
            self.network.calibrate(texts)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # 1) Term weights.
        queries = self.network(batch["queries"], is_query=True)  # (B, V)
        documents = self.network(batch["documents"])  # (M, V)

        # 2) Contrastive and distillation losses.
        per_query = len(documents) // len(queries)
        loss = queries.new_zeros(())
        if self._distill is None or self._distill_weight < 1:
            target = per_query * torch.arange(len(queries), device=queries.device)
            loss = info_nce(queries, documents, target, temperature=self._temperature, exclude=batch["exclude"])
        if self._distill:
            scores = torch.einsum("bv,bnv->bn", queries, documents.unflatten(0, (-1, per_query))) / self._temperature
            distilled = {"margin_mse": margin_mse, "kl": kl_distillation}[self._distill](scores, batch["teacher"])
            loss = (1 - self._distill_weight) * loss + self._distill_weight * distilled

        # 3) FLOPS regularisation, which keeps terms few.
        ramp = quadratic_ramp(self.global_step, round(self._flops_ramp * self.trainer.estimated_stepping_batches))
        flops_loss = self._flops_query * flops(queries) + self._flops_document * flops(documents)
        terms = {
            f"{kind}_terms": (w > 0).sum(1).float().mean() for kind, w in (("query", queries), ("document", documents))
        }
        self.log_dict({"train_loss": loss, "flops": flops_loss, **terms}, batch_size=len(queries), prog_bar=True)
        return finite(loss + ramp * flops_loss, batch["ids"])

    def validation_step(self, dev: DevSet, batch_idx: int) -> None:
        queries, documents = self.network.encode(dev.queries, is_query=True), self.network.encode(dev.documents)
        scores = _dot(queries, documents, self.network.decoder.out_features)  # (Q, documents of the dev corpus)
        docs = np.broadcast_to(np.arange(scores.shape[1], dtype=np.int32), scores.shape)
        ranked = top_k(np.where(scores > 0, docs, -1), np.where(scores > 0, scores, -np.inf), min(100, scores.shape[1]))
        self.log("val_document_terms", len(documents.terms) / len(dev.documents), batch_size=1, sync_dist=True)
        validate(self, to_run(dev.ids, ranked, dev.doc_ids), dev)

    def export(self, folder: Path) -> None:
        """Writes a folder for `SparseEncoder`."""
        self.network.export(folder)


def _dot(queries: Sparse, documents: Sparse, size: int) -> np.ndarray:
    """Dot products (Q, D) of Q query and D document vectors with `size` dimensions."""
    left, right = (csr_array((v.values, v.terms, v.ptr), shape=(len(v.ptr) - 1, size)) for v in (queries, documents))
    return (left @ right.T).toarray()


def _open(model: str, sigmas: float) -> Splade:
    """Loads the network of a model on the CPU, with its own settings."""

    def read(folder: str, local_only: bool) -> SparseEncoder:
        return SparseEncoder(folder, device="cpu", local_files_only=local_only)

    opened = here_or_hub(model, read, "a folder of SparseEncoder, SentenceTransformer or transformers", "config.json")
    chain: list[Any] = [*opened]
    query_weight = None
    if isinstance(chain[0], Router):
        routes: Any = chain[0].sub_modules
        chain, static = [*routes["document"]], routes["query"][0]
        if isinstance(static, SparseStaticEmbedding):
            query_weight = static.weight.detach()
    mlm, tokenizer = chain[0].model, chain[0].tokenizer
    pooling = next((m for m in chain if isinstance(m, SpladePooling)), None)
    if pooling and (pooling.pooling_strategy, pooling.activation_function) != ("max", "relu"):
        raise ValueError(
            f"model {model!r} pools by {pooling.pooling_strategy} of {pooling.activation_function}; "
            "only max of relu (SPLADE v2 and later) is known here. Give another model."
        )
    new_head = isinstance(mlm, BertModel)
    if new_head:
        body, mlm = mlm, BertForMaskedLM(mlm.config)
        mlm.bert.load_state_dict(body.state_dict(), strict=False)  # not strict: an MLM model has no pooler
    elif not type(mlm).__name__.endswith("ForMaskedLM"):
        raise ValueError(f"model {model!r}: a {type(mlm).__name__} has no masked-language-model head, and is no BERT")
    limit = mlm.config.max_position_embeddings
    return Splade(
        mlm,
        tokenizer,
        max_length=min(chain[0].max_seq_length or limit, limit),
        max_active=opened.max_active_dims if pooling else None,
        query_weight=query_weight,
        new_head=new_head,
        sigmas=sigmas,
    )
