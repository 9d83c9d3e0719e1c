"""The cross-encoder against sentence-transformers' own: equal scores, equal gradients, and a fit that learns."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer, seed_everything
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertForMaskedLM

from ltrr.data.pairs import DevSet, Example
from ltrr.encoders.cross_encoder import CrossEncoderModule, cross_encoder_network, load_cross_encoder
from ltrr.encoders.losses import lambda_loss, listwise_softmax, pointwise

WORDS = ["love", "river", "night", "paper", "winter", "crazy", "golden", "home", "street", "summer"]
QUERIES = [" ".join(WORDS[i % 10 : i % 10 + 1 + i % 3]) for i in range(30)]
DOCUMENTS = [" ".join(WORDS[(3 * i + j) % 10] for j in range(1 + i * 7 % 50)) for i in range(30)]


@pytest.fixture
def network(tiny_backbone):
    """Untrained, but with weights that are wide enough for scores to differ."""
    return wide(cross_encoder_network(str(tiny_backbone), max_length=48))


def wide(network):
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.text.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.25)
        network.text.model.classifier.weight.normal_()
    return network.eval()


def example(number: int, **changes: Any) -> Example:
    """A query that is one word, with two documents that have it (grades 2 and 1) and two that do not."""
    word, others = WORDS[number % 10], [w for w in WORDS if w != WORDS[number % 10]]
    rng = np.random.default_rng(number)
    fill = [" ".join(rng.choice(others, 3)) for _ in range(4)]
    documents = [f"{word} {word} {fill[0]}", f"{fill[1]} {word}", *fill[2:]]
    fields = {"teacher": [3.0, 1.0, math.nan, -2.0], "grades": [2.0, 1.0, 0.0, 0.0]} | changes
    return Example(f"q{number}", word, documents, [0, 1, 2, 3], positives=frozenset({0, 1}), **fields)


def dev_set() -> DevSet:
    examples = [example(i) for i in range(100, 110)]
    return DevSet(
        [e.id for e in examples],
        [e.query for e in examples],
        {e.id: {f"{e.id}-0": 2, f"{e.id}-1": 1} for e in examples},
        [f"{e.id}-{n}" for e in examples for n in range(4)],
        [text for e in examples for text in e.documents],
        [np.arange(4 * i, 4 * i + 4 - i % 2) for i in range(10)],  # ragged
    )


def fit(module: CrossEncoderModule, steps: int, batch_size: int = 4) -> Trainer:
    trainer = Trainer(
        max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    examples = [example(i) for i in range(batch_size * steps)]
    dev = DataLoader([dev_set()], batch_size=None, collate_fn=lambda dev: dev)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader(examples, batch_size, collate_fn=module.collate), dev)  # type: ignore[arg-type]
    return trainer


# -- scores


def test_scores_are_those_of_sentence_transformers(network, tmp_path):
    CrossEncoderModule(network).export(tmp_path / "export")
    reference = CrossEncoder(str(tmp_path / "export"), device="cpu")
    expected = reference.predict(list(zip(QUERIES, DOCUMENTS, strict=True)))
    assert np.abs(expected).max() > 1.5  # logits: a sigmoid would stay below 1
    assert expected.std() > 0.1
    assert reference.max_seq_length == 48
    np.testing.assert_allclose(network.score(QUERIES, DOCUMENTS), expected, atol=1e-5)
    opened = load_cross_encoder(str(tmp_path / "export"), dtype="float32")
    np.testing.assert_allclose(opened.score(QUERIES, DOCUMENTS), expected, atol=1e-5)
    half = load_cross_encoder(str(tmp_path / "export"), dtype="bfloat16", device="cpu")
    scores = half.score(QUERIES, DOCUMENTS)
    assert np.abs(scores - expected).max() < 0.15 * expected.std()  # eight bits of mantissa
    assert len(set(scores)) == len(set(expected))  # the last layer is float32: no ties
    assert half.id != opened.id
    assert load_cross_encoder(str(tmp_path / "export"), batch_tokens=64).score([], []).shape == (0,)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_leave_no_trace_and_keep_the_budget(network, side, monkeypatch):
    network.text.tokenizer.padding_side = side
    alone = np.concatenate([network.score([q], [d]) for q, d in zip(QUERIES, DOCUMENTS, strict=True)])
    sizes = []
    inner = network.text.forward
    monkeypatch.setattr(network.text, "forward", lambda f: sizes.append(f["input_ids"].shape) or inner(f))
    network._batch_tokens = 200
    monkeypatch.setattr("ltrr.encoders.cross_encoder.TOKENISED_AT_ONCE", 20)
    if side == "right":  # this model counts positions from the left, so there padding changes what it sees
        np.testing.assert_allclose(network.score(QUERIES, DOCUMENTS), alone, atol=1e-5)
    else:
        network.score(QUERIES, DOCUMENTS)
    assert sum(rows for rows, _ in sizes) == len(QUERIES)
    assert max(rows * length for rows, length in sizes) <= 200
    assert len({length for _, length in sizes}) > 3  # each batch as wide as its own longest


def test_batches_have_the_gradient_of_the_whole(network):
    features = network.tokenise(QUERIES, DOCUMENTS)
    gradients = []
    for budget in (1 << 20, 100):
        network.zero_grad()
        network._batch_tokens = budget
        network(features).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_long_documents_are_cut_and_the_query_stays_whole(network):
    ids = network.tokenise(["golden river"], ["night " * 500])["input_ids"][0]
    tokens = network.text.tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["[CLS]", "golden", "river", "[SEP]", *["night"] * 43, "[SEP]"]


def test_the_id_follows_the_weights(network, tmp_path):
    CrossEncoderModule(network).export(tmp_path / "a" / "export")
    CrossEncoderModule(network).export(tmp_path / "b" / "export")
    first = load_cross_encoder(str(tmp_path / "a" / "export")).id  # of whatever precision this machine has
    assert first == load_cross_encoder(str(tmp_path / "b" / "export")).id
    assert first != load_cross_encoder(str(tmp_path / "b" / "export"), max_length=47).id
    with torch.no_grad():
        network.text.model.classifier.weight[0, 0] += 1e-3
    CrossEncoderModule(network).export(tmp_path / "c" / "export")
    assert first != load_cross_encoder(str(tmp_path / "c" / "export")).id


def test_a_trained_cross_encoder_is_taken_as_it_is(network, tmp_path):
    network.text.activation_fn = nn.Sigmoid()  # as many on the hub have it; ours are logits all the same
    network.text.save_pretrained(str(tmp_path))
    again = cross_encoder_network(str(tmp_path), max_length=48, dropout=0.3)
    np.testing.assert_allclose(again.eval().score(QUERIES, DOCUMENTS), network.score(QUERIES, DOCUMENTS), atol=1e-6)
    assert {m.p for m in again.modules() if isinstance(m, nn.Dropout)} == {0.3}


def test_a_new_output_sees_the_first_token_as_it_is(tiny_backbone):
    text = cross_encoder_network(str(tiny_backbone), max_length=48).eval().text
    features = text.preprocess(list(zip(QUERIES, DOCUMENTS, strict=True)))
    backbone: Any = text.model
    outputs = backbone.bert(features["input_ids"], features["attention_mask"], features["token_type_ids"])
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state[:, 0].tanh())


def test_a_model_that_is_not_there_or_too_short_is_named(tiny_backbone):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"model './nowhere'.*\n.*export"):
        cross_encoder_network("./nowhere")
    assert time.perf_counter() - start < 10  # the libraries' own retries take a minute
    for wrong in (0, 600):
        with pytest.raises(ValueError, match=rf"max_length: {wrong} tokens.* 1 to 512"):
            cross_encoder_network(str(tiny_backbone), max_length=wrong)
        with pytest.raises(ValueError, match=rf"max_length: {wrong} tokens.* 1 to 512"):
            load_cross_encoder(str(tiny_backbone), max_length=wrong)


def test_a_model_without_a_trained_score_is_refused(tiny_backbone, tmp_path):
    """Its last layer would be drawn anew at each load: mined negatives and rankings of chance, without a word."""
    BertForMaskedLM.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    for model in (str(tiny_backbone), str(tmp_path), "offline"):
        with pytest.raises(ValueError, match=rf"'{model}' is no cross-encoder(.|\n)*train\.py fit.*cross_encoder"):
            load_cross_encoder(model)


# -- signals


def test_signals_are_added_to_the_text_and_exported(tiny_backbone, network, tmp_path):
    network = wide(cross_encoder_network(str(tiny_backbone), max_length=48, signals=2))
    texts = network.score(QUERIES, DOCUMENTS)
    signals = np.random.default_rng(0).normal(100, 50, (30, 2)).astype(np.float32)
    np.testing.assert_array_equal(network.score(QUERIES, DOCUMENTS, signals), texts)  # before training they say nothing

    wanted = torch.from_numpy(signals[:, 0] - signals[:, 1]) / 50
    head = network.signals
    assert head is not None
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    network.train()
    for _ in range(150):
        loss = nn.functional.mse_loss(head(torch.from_numpy(signals))[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = network.eval().score(QUERIES, DOCUMENTS, signals)
    assert np.corrcoef(trained - texts, wanted)[0, 1] > 0.95  # at any scale: they are standardised

    CrossEncoderModule(network).export(tmp_path)
    opened = load_cross_encoder(str(tmp_path), dtype="float32")
    np.testing.assert_allclose(opened.score(QUERIES, DOCUMENTS, signals), trained, atol=1e-4)
    np.testing.assert_allclose(opened.score(QUERIES, DOCUMENTS), texts, atol=1e-5)
    assert len(load_file(tmp_path / "signals.safetensors")["0.weight"]) == 2


def test_data_without_signals_end_the_fit_before_the_first_batch(tiny_backbone, tmp_path):
    """As `signals: 2` in a YAML would: train.py's data have none."""

    class Data(LightningDataModule):
        def train_dataloader(self):
            raise AssertionError("a batch was asked for")

    trainer = Trainer(logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    module = CrossEncoderModule(cross_encoder_network(str(tiny_backbone), max_length=48, signals=2))
    with pytest.raises(ValueError, match=r"model\.network\.signals: 2, but the training data have no signals"):
        trainer.fit(module, datamodule=Data())


def test_signals_of_examples_reach_the_loss(tiny_backbone):
    module = CrossEncoderModule(cross_encoder_network(str(tiny_backbone), max_length=48, signals=1))
    examples: list[Any] = [
        SimpleNamespace(**example(i)._asdict(), signals=[[1.0], [2.0], [3.0], [4.0]]) for i in range(2)
    ]
    batch = module.collate(examples)
    assert batch["signals"].tolist() == [[1.0], [2.0], [3.0], [4.0]] * 2
    module.training_step(batch, 0).backward()
    assert module.network.signals is not None
    assert module.network.signals[-1].weight.grad.abs().sum() > 0  # type: ignore[union-attr]


# -- training


def test_a_batch_keeps_the_documents_of_a_query_together(network):
    examples = [example(i) for i in range(3)]
    batch = CrossEncoderModule(network).collate(examples)
    assert batch["ids"] == ["q0", "q1", "q2"]
    assert batch["tokens"] == sum(
        len(network.text.tokenizer(e.query, text)["input_ids"]) for e in examples for text in e.documents
    )
    scores = network(batch["features"]).view(3, 4)
    for row, e in zip(scores, examples, strict=True):
        np.testing.assert_allclose(row.detach(), network.score([e.query] * 4, e.documents), atol=1e-5)


@pytest.mark.parametrize(
    ("loss", "function"), [("pointwise", pointwise), ("listwise", listwise_softmax), ("lambda", lambda_loss)]
)
def test_the_loss_is_what_was_asked_for(network, loss, function):
    module = CrossEncoderModule(network, loss=loss)
    batch = module.collate([example(i) for i in range(3)])
    scores = network(batch["features"]).view(3, 4)
    expected = function(scores, batch["grades"], torch.ones(3, 4, dtype=torch.bool))
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_a_loss_that_is_no_number_names_the_batch(network):
    module = CrossEncoderModule(network)
    batch = module.collate([example(0), example(7)])
    with torch.no_grad():
        network.text.model.classifier.bias += math.nan
    with pytest.raises(ValueError, match="q0, q7"):
        module.training_step(batch, 0)


def test_a_fit_learns_validates_and_exports(tiny_backbone, tmp_path):
    seed_everything(0)
    module = CrossEncoderModule(cross_encoder_network(str(tiny_backbone), max_length=32), lr=3e-3)
    assert all(part.training for part in module.modules())  # as loaded it would evaluate, and dropout be off
    before = quality(module)
    trainer = fit(module.train(), 60, batch_size=8)
    after = float(trainer.callback_metrics["val_nDCG@10"])
    assert after == pytest.approx(quality(module))
    assert after > before + 0.1
    assert after > 0.95
    assert 0 < float(trainer.callback_metrics["val_RR@10"]) <= 1
    module.export(tmp_path)
    pairs = [(e.query, text) for e in map(example, range(5)) for text in e.documents]
    expected = module.eval().network.score(*zip(*pairs, strict=True))  # type: ignore[arg-type]
    np.testing.assert_allclose(CrossEncoder(str(tmp_path), device="cpu").predict(pairs), expected, atol=1e-5)


def quality(module: CrossEncoderModule) -> float:
    """nDCG@10 on the dev set by hand."""
    values = []
    dev = dev_set()
    for i, places in enumerate(dev.candidates):
        scores = module.eval().network.score([dev.queries[i]] * len(places), [dev.documents[p] for p in places])
        grades = np.array([2, 1, 0, 0][: len(places)])[np.argsort(-scores)]
        discount = 1 / np.log2(np.arange(len(places)) + 2)
        values.append((grades * discount).sum() / (2 + 1 / np.log2(3)))
    return float(np.mean(values))


@pytest.mark.gpu
def test_half_precision_stays_near(network, tmp_path):
    CrossEncoderModule(network).export(tmp_path)
    here, there = load_cross_encoder(str(tmp_path), device="cpu"), load_cross_encoder(str(tmp_path), device="cuda")
    assert here.id == there.id
    np.testing.assert_allclose(there.score(QUERIES, DOCUMENTS), here.score(QUERIES, DOCUMENTS), atol=0.05)
