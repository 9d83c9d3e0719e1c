"""Documents to the queries they may answer: doc2query (Nogueira & Lin 2019), networks, training, export.

Knows encoder-decoders of transformers and batches of examples; knows nothing about sampling (generator.py), files or
indexes. Legend: B documents (in training: of pairs), L document tokens, T query tokens, D dimensions, V vocabulary.
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

IGNORED = -100  # label of padding
_AT_ONCE = 32  # documents encoded or scored at a time in validation
_HEAD_BIAS = 3.0  # GELU(x + 3) is x + 3 for nearly all x of a normalised state, and the norm that follows takes 3 off


class Doc2Query(nn.Module):
    """An encoder-decoder with its tokenizer; lengths are in tokens, marks included."""

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
        """input_ids and attention_mask, (B, L) each."""
        found = self.tokenizer(
            list(documents), truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def labels(self, queries: Sequence[str]) -> Tensor:
        """(B, T) what the decoder should say, the end mark included, padded with -100."""
        found = self.tokenizer(
            text_target=list(queries),
            truncation=True,
            max_length=self.max_query_length,
            padding=True,
            return_tensors="pt",
        )
        labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, IGNORED)
        starts = bool((labels[:, 0] == self.start).all())  # BERT's [CLS], with which the decoder starts by itself
        return labels[:, 1:].contiguous() if starts else labels

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, D) states of the encoder."""
        return self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)[0]

    def forward(self, states: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """(B, T, V) logits of each label, given the document and the labels before it."""
        spoken = torch.ones_like(labels)
        spoken[:, 1:] = labels[:, :-1] != IGNORED
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),  # type: ignore[arg-type]
            attention_mask=attention_mask,
            decoder_input_ids=self.model.prepare_decoder_input_ids_from_labels(labels=labels),
            decoder_attention_mask=spoken,
            use_cache=False,
        ).logits

    def save(self, folder: Path) -> None:
        """A folder for `AutoModelForSeq2SeqLM` and `AutoTokenizer`; the tokenizer keeps max_length."""
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
    """A generator to train.

    model: "offline" (all-MiniLM-L6-v2 from an installed package), a folder or a hub name. An encoder-decoder (T5, BART,
        what `Doc2QueryModule` exported) is taken as it is; an encoder becomes a BERT2BERT (Rothe et al. 2020).
    max_length, max_query_length: tokens of a document and of a query; longer ones are cut.
    dropout: of all layers, 0 to 1.
    decoder_layers: of a new BERT2BERT: its encoder's last ones, which is what the decoder starts from; null = all.

    Raises ValueError for a model that is neither here nor reachable, for more layers than there are, and for lengths
    that it cannot take.
    """
    config, source = seq2seq_source(model)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if config.is_encoder_decoder:
        found = AutoModelForSeq2SeqLM.from_pretrained(**source)
    else:
        found = _bert2bert(model, AutoModel.from_pretrained(**source), tokenizer, decoder_layers)
    network = Doc2Query(found, tokenizer, max_length, max_query_length)
    set_dropout(network, dropout)
    for name, weight in network.named_parameters():
        weight.requires_grad_(".pooler." not in name)  # BERT's is never used: DDP would wait for its gradient
    return network.float().train()


class Doc2QueryModule(TextModule):
    """Trains document -> query on the positives of each example: cross-entropy of the query's tokens.

    Validation ranks the candidates of each dev query by the likelihood of the query given the document (query
    likelihood: Ponte & Croft 1998), and logs val_loss, the mean loss a token of the dev queries given their positives.

    Args:
        network: from `doc2query_network`.
        label_smoothing: share of each target spread over the vocabulary, 0 to 1.
        lr: peak learning rate of AdamW.
        weight_decay: of matrices.
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
        """Tokens of B pairs: each query with its first document and whatever else has a grade above 0."""
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
            found = self._likelihoods(states, places, labels)
            positive = np.array([dev.qrels[query].get(dev.doc_ids[p], 0) > 0 for p in places], bool)
            loss -= float(found[positive].sum())
            tokens += int(positive.sum()) * labels.shape[1]
            scores.append(found)
        self.log("val_loss", loss / max(tokens, 1), batch_size=1, sync_dist=True)
        validate(self, dev.run(scores), dev)

    def _states(self, documents: Sequence[str], places: Sequence[int]) -> dict[int, Tensor]:
        """Place -> (its L, D) states of the encoder."""
        order = sorted(places, key=lambda place: -len(documents[place]))
        out: dict[int, Tensor] = {}
        for start in range(0, len(order), _AT_ONCE):
            some = order[start : start + _AT_ONCE]
            batch = {k: v.to(self.device) for k, v in self.network.tokenise([documents[p] for p in some]).items()}
            states = self.network.encode(**batch)
            out |= {p: s[m] for p, s, m in zip(some, states, batch["attention_mask"].bool(), strict=True)}
        return out

    def _likelihoods(self, states: dict[int, Tensor], places: np.ndarray, labels: Tensor) -> np.ndarray:
        """log p of a query (1, T) given each of these documents."""
        out = []
        for start in range(0, len(places), _AT_ONCE):
            some = [states[int(place)] for place in places[start : start + _AT_ONCE]]
            padded = nn.utils.rnn.pad_sequence(some, batch_first=True)  # (B, L, D)
            lengths = torch.tensor([len(s) for s in some], device=padded.device)
            mask = (torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]).long()
            said = labels.expand(len(some), -1)
            logits = self.network(padded, mask, said).float()
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten(), reduction="none")
            out.append(-losses.view(said.shape).sum(dim=1).cpu().numpy())
        return np.concatenate(out) if out else np.zeros(0, np.float32)

    def export(self, folder: Path) -> None:
        """A folder for `AutoModelForSeq2SeqLM` and `AutoTokenizer`."""
        self.network.save(folder)


def seq2seq_source(model: str) -> tuple[Any, dict[str, Any]]:
    """A model's config, and arguments of `from_pretrained`: a folder or the local cache, and only else the hub."""

    def read(folder: str, here: bool) -> tuple[Any, dict[str, Any]]:
        source = {"pretrained_model_name_or_path": folder, "local_files_only": here}
        return AutoConfig.from_pretrained(**source), source

    return here_or_hub(model, read, "a folder of a transformers model", "config.json")


@torch.no_grad()
def _bert2bert(model: str, encoder: Any, tokenizer: Any, layers: int | None) -> EncoderDecoderModel:
    """A BERT and a decoder made of its last layers, so that few steps teach it to say what stands in the document.

    Where it attends to the document it starts by looking as the encoder's last layer looks, and by taking over what it
    sees unchanged; the head starts as the identity before the (tied) word embeddings. So a state that stands for a word
    makes that word likely: copying need not be learned.
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
        layer.load_state_dict(source.state_dict(), strict=False)  # all but the attention to the document

        # 2) Attention to the document: queries and keys of the last layer; values as they are.
        layer.crossattention.load_state_dict(last.state_dict())
        for linear in (layer.crossattention.self.value, layer.crossattention.output.dense):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    # 3) The head: identity, then the word embeddings.
    dense = decoder.cls.predictions.transform.dense
    nn.init.eye_(dense.weight)
    nn.init.constant_(dense.bias, _HEAD_BIAS)

    # 4) One model, which knows where queries start and end.
    both = EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder.config,
        decoder.config,
        decoder_start_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return EncoderDecoderModel(config=both, encoder=encoder, decoder=decoder)
