"""Samples queries for documents from a trained encoder-decoder, with their likelihoods.

Knows `Doc2Query` networks, key-value caches and random draws; knows nothing about training, files or relevance.
Legend: B documents, L document tokens, T query tokens, D dimensions, V vocabulary, n queries per document, R rows of a
batch (at most B · n).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ltrr.encoders.backbone import pack_linears, sha256_of
from ltrr.encoders.doc2query import Doc2Query, seq2seq_source

_LONGEST = 512  # tokens, for tokenizers that declare no maximum length


class Generated(NamedTuple):
    """One query written for a document."""

    query: str
    log_likelihood: float  # log p(query | document) without top_k, top_p or temperature, summed over tokens
    tokens: int  # number of tokens, the end token included


def load_generator(
    model: str,
    *,
    max_length: int | None = None,
    max_query_length: int = 32,
    batch_size: int = 8,
    device: str | None = None,
) -> Generator:
    """Loads a generator for sampling.

    model: an `export` folder, another folder of an encoder-decoder, or a hub name.
    max_length: tokens per document; longer ones are truncated; None = the model's own setting, at most 512.
    max_query_length: most tokens per query.
    batch_size: documents per batch.
    device: torch's name for it; None = cuda if available.

    Raises ValueError if the model is neither on disk nor on the hub, if it has no decoder, and for lengths above its
    limit.
    """
    config, source = seq2seq_source(model)
    if not config.is_encoder_decoder:
        raise ValueError(
            f"model {model!r} is an encoder, which writes nothing; give the export folder of a doc2query run"
        )
    seq2seq, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(**source), AutoTokenizer.from_pretrained(**source)
    max_length = min(tokenizer.model_max_length, _LONGEST) if max_length is None else max_length
    network = Doc2Query(seq2seq.float(), tokenizer, max_length, max_query_length)
    name = f"{Path(model).name}@{sha256_of(network)}"
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network.to(target).eval()
    if target.type == "cpu" and torch.backends.mkldnn.is_available():
        pack_linears(network)
    return Generator(network, f"{name};max_length={max_length};max_query_length={max_query_length}", batch_size)


class Generator:
    """Samples queries for documents. `id` identifies the weights and the length limits."""

    def __init__(self, network: Doc2Query, id: str, batch_size: int) -> None:
        self.id = id
        self._network, self._batch_size = network, batch_size

    def sample(
        self,
        texts: Sequence[str],
        num_queries: int = 20,
        *,
        seed: int = 0,
        top_k: int = 10,
        top_p: float = 1.0,
        temperature: float = 1.0,
    ) -> list[list[Generated]]:
        """Samples at most num_queries for each text, in the order drawn, without duplicates (up to case and spaces).

        Draws depend on the seed and the text only, not on the rest of the batch. top_k: sample among the k likeliest
        tokens, 0 = all; top_p: among the fewest likeliest tokens with at least this probability together;
        temperature > 0: below 1 favours likely tokens. Raises ValueError for numbers outside these ranges.
        """
        if top_k < 0 or not 0 < top_p <= 1 or temperature <= 0:
            raise ValueError(f"top_k ≥ 0, 0 < top_p ≤ 1 and temperature > 0, not {top_k}, {top_p} and {temperature}")
        network = self._network
        order = np.argsort([-len(text) for text in texts], kind="stable")
        out: list[list[Generated]] = [[] for _ in texts]
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            batch = [texts[int(i)] for i in places]
            uniform = np.stack([_uniform(seed, text, (num_queries, network.max_query_length)) for text in batch])
            for place, queries in zip(places, self._batch(batch, uniform, top_k, top_p, temperature), strict=True):
                out[place] = queries
        return out

    @torch.inference_mode()
    def _batch(
        self, texts: list[str], uniform: np.ndarray, top_k: int, top_p: float, temperature: float
    ) -> list[list[Generated]]:
        """Samples for a batch of texts; uniform: (B, n, T) numbers in [0, 1), one per token."""
        network, count, width = self._network, uniform.shape[1], uniform.shape[2]
        device = network.model.device
        features = {name: value.to(device) for name, value in network.tokenise(texts).items()}
        mask, states = features["attention_mask"], network.encode(**features)
        ends = torch.tensor(network.ends, device=device)
        draws = torch.from_numpy(uniform).to(device, torch.float32).flatten(0, 1)  # (R, T)
        sampled = torch.zeros(draws.shape, dtype=torch.long, device=device)  # (R, T)
        total, length = torch.zeros(len(draws), device=device), torch.zeros(len(draws), dtype=torch.long, device=device)

        # 1) Take the first step, which all queries of a document share.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self._step(torch.full((len(texts), 1), network.start, device=device), states, mask, cache)
        cache.batch_repeat_interleave(count)
        logits, mask = logits.repeat_interleave(count, 0), mask.repeat_interleave(count, 0)  # (R, V), (R, L)

        # 2) Sample token by token; drop finished rows once they are a third of all.
        rows, alive = torch.arange(len(draws), device=device), torch.ones(len(draws), dtype=torch.bool, device=device)
        for t in range(width):
            token = choose(logits, draws[rows, t], top_k, top_p, temperature)  # (R,)
            log_p = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=1)
            alive_rows = rows[alive]
            sampled[alive_rows, t], length[alive_rows] = token[alive], t + 1
            total[alive_rows] += log_p[alive]
            alive &= ~torch.isin(token, ends)
            if t + 1 == width or not alive.any():
                break
            if alive.sum() < 2 / 3 * len(alive):
                keep = alive.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows, token, mask, alive = rows[keep], token[keep], mask[keep], alive[keep]
            unread = states[:1].expand(len(rows), -1, -1)  # only its shape: the cache holds keys and values
            logits = self._step(token[:, None], unread, mask, cache)

        # 3) Decode to texts and drop duplicates within a document.
        tokens = [ids[:n] for ids, n in zip(sampled.tolist(), length.tolist(), strict=True)]
        queries = network.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        flat = [Generated(q.strip(), p, len(t)) for q, p, t in zip(queries, total.tolist(), tokens, strict=True)]
        return [_once(flat[start : start + count]) for start in range(0, len(flat), count)]

    def _step(self, token: Tensor, states: Tensor, mask: Tensor, cache: EncoderDecoderCache) -> Tensor:
        """Appends one token per row (R, 1) and returns the logits of the next one, (R, V) float32."""
        return (
            self._network.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),  # type: ignore[arg-type]
                attention_mask=mask,
                decoder_input_ids=token,
                past_key_values=cache,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )


def choose(logits: Tensor, uniform: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    """Draws one token per row of logits (R, V) by inverse transform sampling; uniform (R,) in [0, 1). Returns (R,)."""
    best, tokens = logits.topk(min(top_k or logits.shape[1], logits.shape[1]), dim=1)  # descending
    p = (best / temperature).softmax(dim=1)
    p = torch.where(p.cumsum(dim=1) - p < top_p, p, 0.0)  # the fewest that reach top_p
    total = p.cumsum(dim=1)
    place = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
    place = place.minimum((p > 0).sum(dim=1, keepdim=True) - 1)  # rounding may step past the last token
    return tokens.gather(1, place)[:, 0]


def _uniform(seed: int, text: str, shape: tuple[int, ...]) -> np.ndarray:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], np.uint32).tolist()]).random(shape)


def _once(queries: Sequence[Generated]) -> list[Generated]:
    """Drops empty queries and repetitions, keeping the first."""
    first = {" ".join(one.query.casefold().split()): one for one in reversed(queries)}
    return [one for one in queries if one.query and first[" ".join(one.query.casefold().split())] is one]
