"""Sampling queries for documents from a trained encoder-decoder, with their likelihoods.

Knows `Doc2Query` networks, caches of keys and values, and draws; knows nothing about training, files or relevance.
Legend: B documents, L document tokens, T query tokens, D dimensions, V vocabulary, n queries a document, R rows of a
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

_LONGEST = 512  # tokens, for tokenizers that name no length


class Generated(NamedTuple):
    """One query written for a document."""

    query: str
    log_likelihood: float  # log p(query | document) of the model as trained (nothing cut off, temperature 1), a sum
    tokens: int  # over so many tokens, the end mark included


def load_generator(
    model: str,
    *,
    max_length: int | None = None,
    max_query_length: int = 32,
    batch_size: int = 8,
    device: str | None = None,
) -> Generator:
    """A generator ready to sample.

    model: an `export` folder, another folder of an encoder-decoder, or a hub name.
    max_length: tokens of a document; longer ones are cut; None = as it was trained, at most 512.
    max_query_length: tokens of a query at most.
    batch_size: documents sampled for at a time.
    device: as torch names it; None = cuda where there is one.

    Raises ValueError for a model that is neither here nor reachable, for one without a decoder, and for lengths that it
    cannot take.
    """
    config, source = seq2seq_source(model)
    if not config.is_encoder_decoder:
        raise ValueError(
            f"model {model!r} is an encoder, which writes nothing; give the export folder of a doc2query run"
        )
    found, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(**source), AutoTokenizer.from_pretrained(**source)
    max_length = min(tokenizer.model_max_length, _LONGEST) if max_length is None else max_length
    network = Doc2Query(found.float(), tokenizer, max_length, max_query_length)
    name = f"{Path(model).name}@{sha256_of(network)}"
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network.to(target).eval()
    if target.type == "cpu" and torch.backends.mkldnn.is_available():
        pack_linears(network)
    return Generator(network, f"{name};max_length={max_length};max_query_length={max_query_length}", batch_size)


class Generator:
    """Samples queries for documents. `id` names the weights and the length limits."""

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
        """Queries for each text, in the order drawn, at most num_queries: equal ones (case, spaces) are given once.

        The draws for a text follow from seed and text alone, whatever is sampled beside it. top_k: tokens drawn from,
        0 = all; top_p: least probability that the tokens drawn from have together; temperature > 0: below 1 the
        likely are likelier. Raises ValueError for numbers outside these ranges.
        """
        if top_k < 0 or not 0 < top_p <= 1 or temperature <= 0:
            raise ValueError(f"top_k ≥ 0, 0 < top_p ≤ 1 and temperature > 0, not {top_k}, {top_p} and {temperature}")
        network = self._network
        order = np.argsort([-len(text) for text in texts], kind="stable")
        out: list[list[Generated]] = [[] for _ in texts]
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            some = [texts[int(i)] for i in places]
            uniform = np.stack([_uniform(seed, text, (num_queries, network.max_query_length)) for text in some])
            for place, found in zip(places, self._batch(some, uniform, top_k, top_p, temperature), strict=True):
                out[place] = found
        return out

    @torch.inference_mode()
    def _batch(
        self, texts: list[str], uniform: np.ndarray, top_k: int, top_p: float, temperature: float
    ) -> list[list[Generated]]:
        """uniform: (B, n, T) numbers in [0, 1), one a token."""
        network, count, width = self._network, uniform.shape[1], uniform.shape[2]
        device = network.model.device
        features = {name: value.to(device) for name, value in network.tokenise(texts).items()}
        mask, states = features["attention_mask"], network.encode(**features)
        ends = torch.tensor(network.ends, device=device)
        draws = torch.from_numpy(uniform).to(device, torch.float32).flatten(0, 1)  # (R, T)
        said = torch.zeros(draws.shape, dtype=torch.long, device=device)  # (R, T)
        total, length = torch.zeros(len(draws), device=device), torch.zeros(len(draws), dtype=torch.long, device=device)

        # 1) The first step is the same for all queries of a document.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self._step(torch.full((len(texts), 1), network.start, device=device), states, mask, cache)
        cache.batch_repeat_interleave(count)
        logits, mask = logits.repeat_interleave(count, 0), mask.repeat_interleave(count, 0)  # (R, V), (R, L)

        # 2) One token after another; rows that have ended are dropped once they are a third.
        rows, alive = torch.arange(len(draws), device=device), torch.ones(len(draws), dtype=torch.bool, device=device)
        for t in range(width):
            token = choose(logits, draws[rows, t], top_k, top_p, temperature)  # (R,)
            log_p = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=1)
            going = rows[alive]
            said[going, t], length[going] = token[alive], t + 1
            total[going] += log_p[alive]
            alive &= ~torch.isin(token, ends)
            if t + 1 == width or not alive.any():
                break
            if alive.sum() < 2 / 3 * len(alive):
                keep = alive.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows, token, mask, alive = rows[keep], token[keep], mask[keep], alive[keep]
            seen = states[:1].expand(len(rows), -1, -1)  # the cache holds what is read of the documents
            logits = self._step(token[:, None], seen, mask, cache)

        # 3) Texts, each once a document.
        tokens = [ids[:n] for ids, n in zip(said.tolist(), length.tolist(), strict=True)]
        queries = network.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        flat = [Generated(q.strip(), p, len(t)) for q, p, t in zip(queries, total.tolist(), tokens, strict=True)]
        return [_once(flat[start : start + count]) for start in range(0, len(flat), count)]

    def _step(self, token: Tensor, states: Tensor, mask: Tensor, cache: EncoderDecoderCache) -> Tensor:
        """(R, V) float32 logits after the next token (R, 1)."""
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
    """(R,) tokens drawn from logits (R, V) by the inverse distribution function at uniform (R,) in [0, 1)."""
    best, tokens = logits.topk(min(top_k or logits.shape[1], logits.shape[1]), dim=1)  # descending
    p = (best / temperature).softmax(dim=1)
    p = torch.where(p.cumsum(dim=1) - p < top_p, p, 0.0)  # the fewest that reach top_p
    total = p.cumsum(dim=1)
    place = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
    place = place.minimum((p > 0).sum(dim=1, keepdim=True) - 1)  # where rounding reached the end
    return tokens.gather(1, place)[:, 0]


def _uniform(seed: int, text: str, shape: tuple[int, ...]) -> np.ndarray:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest[:16], np.uint32).tolist()]).random(shape)


def _once(found: Sequence[Generated]) -> list[Generated]:
    """The first of equal queries, none that is empty."""
    first = {" ".join(one.query.casefold().split()): one for one in reversed(found)}
    return [one for one in found if one.query and first[" ".join(one.query.casefold().split())] is one]
