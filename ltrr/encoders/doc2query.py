"""Trains doc2query (Nogueira & Lin 2019): an encoder-decoder that writes queries which a document may answer.

Knows encoder-decoders of transformers and batches of examples; knows nothing about sampling (generator.py), files or
indexes. Legend: B documents (in training: pairs), L document tokens, T query tokens, D dimensions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from ltrr.encoders.backbone import check_length, here_or_hub
from ltrr.encoders.training import TextModule, check_range, finite, set_dropout, validate
from ltrr.types import DevSet, Example

IGNORED = -100  # label of padding, left out of the loss
_AT_ONCE = 32  # documents encoded or scored at a time in validation
_HEAD_BIAS = 3.0  # GELU(x + 3) ≈ x + 3 for nearly all x of a normalised state; the LayerNorm that follows removes the 3


class Doc2Query(nn.Module):
    """An encoder-decoder with its tokenizer; lengths are in tokens, special tokens included."""

    def __init__(self, model: Any, tokenizer: Any, max_length: int, max_query_length: int) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        encoder, decoder = (getattr(model.config, part, model.config) for part in ("encoder", "decoder"))
        self.max_length = check_length(max_length, encoder)
        self.max_query_length = check_length(max_query_length, decoder, "max_query_length")
        self.start: int = model.generation_config.decoder_start_token_id
        ends = model.generation_config.eos_token_id
        self.ends: list[int] = ends if isinstance(ends, list) else [ends]

    def tokenise(self, documents: Sequence[str]) -> dict[str, Tensor]:
        """Tokenises documents: input_ids and attention_mask, (B, L) each."""
        tokens = self.tokenizer(
            list(documents), truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def labels(self, queries: Sequence[str]) -> Tensor:
        """Tokenises queries as the decoder's targets (B, T), with the end token, padded with -100."""
        tokens = self.tokenizer(
            text_target=list(queries),
            truncation=True,
            max_length=self.max_query_length,
            padding=True,
            return_tensors="pt",
        )
        labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, IGNORED)
        starts = bool((labels[:, 0] == self.start).all())  # BERT's [CLS], which the decoder gets anyway
        return labels[:, 1:].contiguous() if starts else labels

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encodes documents: (B, L, D) encoder states."""
        return self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)[0]

    def forward(self, states: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Predicts each label from the document and the labels before it: (B, T, V) logits."""
        decoder_mask = torch.ones_like(labels)
        decoder_mask[:, 1:] = labels[:, :-1] != IGNORED
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),  # type: ignore[arg-type]
            attention_mask=attention_mask,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels=labels),
            decoder_attention_mask=decoder_mask,
            use_cache=False,
        ).logits

    def save(self, folder: Path) -> None:
        """Writes a folder for `AutoModelForSeq2SeqLM` and `AutoTokenizer`; the tokenizer keeps max_length."""
        self.tokenizer.model_max_length = self.max_length
        self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))


def doc2query_network(
    model: str = "offline",
    *,
    max_length: int = 256,
    max_query_length: int = 32,
    dropout: float = 0.0,
    decoder_layers: int | None = 2,
) -> Doc2Query:
    """Builds a generator for training.

    model: "offline" (all-MiniLM-L6-v2 from an installed package), a folder or a hub name. An encoder-decoder (T5, BART,
        an export of `Doc2QueryModule`) is used unchanged; an encoder becomes a BERT2BERT (Rothe et al. 2020).
    max_length, max_query_length: tokens per document and per query; longer texts are truncated.
    dropout: of all layers, 0 to 1.
    decoder_layers: number of layers of a new BERT2BERT's decoder, copied from the encoder's last ones; null = all.

    Raises ValueError if the model is neither on disk nor on the hub, for more layers than the encoder has, and for
    lengths above the model's limit.
    """
    config, source = seq2seq_source(model)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if config.is_encoder_decoder:
        seq2seq = AutoModelForSeq2SeqLM.from_pretrained(**source)
    else:
        seq2seq = _bert2bert(model, AutoModel.from_pretrained(**source), tokenizer, decoder_layers)
    network = Doc2Query(seq2seq, tokenizer, max_length, max_query_length)
    set_dropout(network, dropout)
    for name, weight in network.named_parameters():
        weight.requires_grad_(".pooler." not in name)  # unused, so without gradient, for which DDP would wait
    return network.float().train()


class Doc2QueryModule(TextModule):
    """Trains document -> query on the positives of each example, by cross-entropy of the query's tokens.

    Validation ranks each dev query's candidates by the likelihood of the query given the document (query likelihood:
    Ponte & Croft 1998). It also logs val_loss: the mean loss per token of the dev queries given their positives.

    Args:
        network: from `doc2query_network`.
        label_smoothing: share of each target spread over the vocabulary, 0 to 1.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW, applied to matrices only.
        warmup: share of the steps in which the learning rate rises.
    """

    def __init__(
        self,
        network: Doc2Query,
        *,
        label_smoothing: float = 0.0,
        lr: float = 3e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.network = network
        check_range("model.label_smoothing", label_smoothing, 0, 1)
        self._label_smoothing = label_smoothing
        self._lr, self._weight_decay, self._warmup = lr, weight_decay, warmup

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Tokenises B pairs: each query with its first document and with every other document graded above 0."""
        pairs = [
            (e.query, text)
            for e in examples
            for n, (text, grade) in enumerate(zip(e.documents, e.grades, strict=True))
            if n == 0 or grade > 0
        ]
        documents, labels = (
            self.network.tokenise([text for _, text in pairs]),
            self.network.labels([q for q, _ in pairs]),
        )
        tokens = int(documents["attention_mask"].sum() + (labels != IGNORED).sum())
        return {"ids": [e.id for e in examples], "tokens": tokens, **documents, "labels": labels}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        mask, labels = batch["attention_mask"], batch["labels"]
        logits = self.network(self.network.encode(batch["input_ids"], mask), mask, labels)  # (B, T, V)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=self._label_smoothing,
        )
        self.log("train_loss", loss, batch_size=len(labels), prog_bar=True)
        return finite(loss, batch["ids"])

    # -- validation and export

    def validation_step(self, dev: DevSet, batch_idx: int) -> None:
        scores, loss, tokens = [], 0.0, 0
        states = self._states(dev.documents, sorted({int(p) for places in dev.candidates for p in places}))
        for query, text, places in zip(dev.ids, dev.queries, dev.candidates, strict=True):
            labels = self.network.labels([text]).to(self.device)  # (1, T)
            log_likelihoods = self._likelihoods(states, places, labels)
            positive = np.array([dev.qrels[query].get(dev.doc_ids[p], 0) > 0 for p in places], bool)
            loss -= float(log_likelihoods[positive].sum())
            tokens += int(positive.sum()) * labels.shape[1]
            scores.append(log_likelihoods)
        self.log("val_loss", loss / max(tokens, 1), batch_size=1, sync_dist=True)
        validate(self, dev.run(scores), dev)

    def _states(self, documents: Sequence[str], places: Sequence[int]) -> dict[int, Tensor]:
        """Encodes the documents at these places: place -> (L, D) encoder states."""
        order = sorted(places, key=lambda place: -len(documents[place]))
        out: dict[int, Tensor] = {}
        for start in range(0, len(order), _AT_ONCE):
            chunk = order[start : start + _AT_ONCE]
            batch = {k: v.to(self.device) for k, v in self.network.tokenise([documents[p] for p in chunk]).items()}
            states = self.network.encode(**batch)
            out |= {p: s[m] for p, s, m in zip(chunk, states, batch["attention_mask"].bool(), strict=True)}
        return out

    def _likelihoods(self, states: dict[int, Tensor], places: np.ndarray, labels: Tensor) -> np.ndarray:
        """log p(query | document) of one query (1, T) for each document at these places."""
        out = []
        for start in range(0, len(places), _AT_ONCE):
            chunk = [states[int(place)] for place in places[start : start + _AT_ONCE]]
            padded = nn.utils.rnn.pad_sequence(chunk, batch_first=True)  # (B, L, D)
            lengths = torch.tensor([len(s) for s in chunk], device=padded.device)
            mask = (torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]).long()
            targets = labels.expand(len(chunk), -1)
            logits = self.network(padded, mask, targets).float()
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            out.append(-losses.view(targets.shape).sum(dim=1).cpu().numpy())
        return np.concatenate(out) if out else np.zeros(0, np.float32)

    def export(self, folder: Path) -> None:
        """Writes a folder for `AutoModelForSeq2SeqLM` and `AutoTokenizer`."""
        self.network.save(folder)


def seq2seq_source(model: str) -> tuple[Any, dict[str, Any]]:
    """Reads a model's config from disk or else the hub; returns it with the arguments for `from_pretrained`."""

    def read(folder: str, local_only: bool) -> tuple[Any, dict[str, Any]]:
        source = {"pretrained_model_name_or_path": folder, "local_files_only": local_only}
        return AutoConfig.from_pretrained(**source), source

    return here_or_hub(model, read, "a folder of a transformers model", "config.json")


@torch.no_grad()
def _bert2bert(model: str, encoder: Any, tokenizer: Any, layers: int | None) -> EncoderDecoderModel:
    """Joins a BERT encoder with a decoder copied from its last layers, initialised so that it copies document words.

    Cross-attention starts with the queries and keys of the encoder's last self-attention and with identity values; the
    head starts as the identity before the (tied) word embeddings. So a state that represents a word makes that word
    likely, and copying need not be learned.
    """
    if encoder.config.model_type != "bert":
        kind = encoder.config.model_type
        raise ValueError(
            f"model {model!r}: a decoder can be made for BERT, not for {kind}; give an encoder-decoder (T5)"
        )
    depth: int = encoder.config.num_hidden_layers
    layers = depth if layers is None else layers
    if not 1 <= layers <= depth:
        raise ValueError(f"decoder_layers: {layers}, but model {model!r} has 1 to {depth}")

    # 1) The decoder: embeddings and last layers of the encoder.
    config = BertConfig.from_dict(
        encoder.config.to_dict() | {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": layers}
    )
    decoder: Any = BertLMHeadModel(config)
    decoder.bert.embeddings.load_state_dict(encoder.embeddings.state_dict())
    last = encoder.encoder.layer[-1].attention
    for layer, source in zip(decoder.bert.encoder.layer, encoder.encoder.layer[-layers:], strict=True):
        layer.load_state_dict(source.state_dict(), strict=False)  # all but the cross-attention

        # 2) Cross-attention: queries and keys of the last layer; identity values.
        layer.crossattention.load_state_dict(last.state_dict())
        for linear in (layer.crossattention.self.value, layer.crossattention.output.dense):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    # 3) The head: the identity, then the word embeddings.
    dense = decoder.cls.predictions.transform.dense
    nn.init.eye_(dense.weight)
    nn.init.constant_(dense.bias, _HEAD_BIAS)

    # 4) One model, with the tokens that start and end a query.
    both = EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder.config,
        decoder.config,
        decoder_start_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return EncoderDecoderModel(config=both, encoder=encoder, decoder=decoder)
