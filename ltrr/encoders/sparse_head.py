"""Computes SPLADE's term weights without storing logits: the maximum over positions, in blocks that fit a cache.

Knows tensors; knows nothing about models, texts or losses. log1p and relu are monotone and the bias is the same at
every position, so the maximum is taken on the plain products, block by block. The gradient of a maximum goes to one
position for each active (document, term). The backward pass recomputes that position for active terms only.
Legend: B documents, L tokens, H hidden size, V vocabulary, N tokens of the batch without padding, A active terms of a
document (about 1 % of V).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = {
    "cpu": (1024, 2048),
    "cuda": (4096, 32768),
}  # tokens x terms per product: small enough for a CPU's caches, large enough to amortise GPU launches


def splade_max(hidden: Tensor, decoder: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """(B, V) float32: max over positions of log1p(relu(hidden @ decoder.T + bias)), padding left out.

    hidden (B, L, H), decoder (V, H), bias (V,), mask (B, L) with a 1 or more in each row. Under autocast products use
    its dtype; the maximum, the bias and all gradients are float32. Differentiable once.
    SPLADE-max: Formal et al. 2021, "SPLADE v2" (arXiv 2109.10086).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _SpladeMax.apply(hidden, decoder, bias, mask.bool(), dtype)  # type: ignore[return-value]


class _SpladeMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, decoder: Tensor, bias: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        device = hidden.device.type
        with torch.autocast(device, enabled=False):
            tokens, terms = hidden[mask].to(dtype), decoder.to(dtype)  # (N, H), (V, H)
            lengths = mask.sum(1).tolist()
            most_tokens, most_terms = _BLOCK.get(device, _BLOCK["cuda"])
            out = torch.empty(len(mask), len(decoder), device=hidden.device)
            for documents, span in _blocks(lengths, most_tokens):
                for start in range(0, len(decoder), most_terms):
                    columns = slice(start, start + most_terms)
                    logits = tokens[span] @ terms[columns].T  # (tokens, terms) of this block
                    parts = logits.split(lengths[documents.start : documents.stop])
                    for document, products in zip(documents, parts, strict=True):
                        out[document, columns] = products.amax(0)
            out.add_(bias.float()).relu_().log1p_()
        ctx.save_for_backward(hidden, decoder, mask, out)
        ctx.dtype = dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, decoder, mask, out = ctx.saved_tensors
        grad = torch.where(out > 0, grad.float() * torch.exp(-out), 0)  # (B, V): d log1p(x) / dx = 1 / (1 + x)
        tokens = hidden[mask]  # (N, H)
        grad_tokens = torch.zeros_like(tokens, dtype=torch.float32)
        grad_decoder = torch.zeros_like(decoder, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            lengths = mask.sum(1).tolist()
            for row, document, grad_document in zip(
                grad, tokens.split(lengths), grad_tokens.split(lengths), strict=True
            ):
                active = row.nonzero().squeeze(1)  # (A,)
                weights, vectors = row[active, None], decoder[active]  # (A, 1), (A, H)
                winner = (document.to(ctx.dtype) @ vectors.to(ctx.dtype).T).argmax(0)  # (A,) positions
                grad_document.index_add_(0, winner, weights * vectors)  # a view of grad_tokens
                grad_decoder[active] += weights * document[winner]  # `active` has no duplicates
        grad_hidden = torch.zeros_like(hidden)
        grad_hidden[mask] = grad_tokens.to(hidden.dtype)
        return grad_hidden, grad_decoder.to(decoder.dtype), grad.sum(0), None, None


def _blocks(lengths: list[int], most: int) -> Iterator[tuple[range, slice]]:
    """Groups neighbouring documents up to `most` tokens (at least one): ranges of documents, and slices of tokens."""
    first = start = stop = 0
    for document, length in enumerate(lengths):
        if stop + length - start > most and document > first:
            yield range(first, document), slice(start, stop)
            first, start = document, stop
        stop += length
    yield range(first, len(lengths)), slice(start, stop)
