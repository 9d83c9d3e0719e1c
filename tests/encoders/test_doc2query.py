"""doc2query against transformers: losses, likelihoods, greedy queries, exports; draws that follow from the seed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sentence_transformers import CrossEncoder
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    T5Config,
    T5ForConditionalGeneration,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ltrr.data.beir import Corpus, Document
from ltrr.data.expansions import ExpansionWriter, read_expansions
from ltrr.data.pairs import DevSet, Example
from ltrr.encoders.cross_encoder import cross_encoder_network, load_cross_encoder
from ltrr.encoders.doc2query import IGNORED, Doc2Query, Doc2QueryModule, doc2query_network
from ltrr.encoders.generator import choose, load_generator
from ltrr.metrics import evaluate
from tests.helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from expand import Texts, generate, judge  # pyright: ignore[reportMissingImports]

TEXTS = [
    "the cells of the river bank hold water",
    "jazz",
    "a long tale of winter storms, golden cities and the people who walked " * 3,
    "vitamin D and bones",
    "",
]
QUERIES = ["what holds water", "jazz", "winter storms in golden cities", "bone health", "nothing"]


@pytest.fixture(scope="module")
def folders(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An encoder, from which a BERT2BERT is made, and a T5, which is taken as it is."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_backbone))
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    config = T5Config(vocab_size=len(tokenizer), **sizes)
    config.eos_token_id = tokenizer.sep_token_id
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"bert2bert": str(tiny_backbone), "t5": str(folder)}


both = pytest.mark.parametrize("kind", ["bert2bert", "t5"])


def made(folder: str, **options: Any) -> Doc2Query:
    torch.manual_seed(0)
    return doc2query_network(folder, **{"max_length": 32, "max_query_length": 12, **options})


def exported(folder: str, out: Path, ends: int = 1) -> str:
    """An export whose weights are noisier than a fresh model's, and for which every `ends`-th token is an end mark."""
    network = made(folder)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    if ends > 1:
        network.model.generation_config.eos_token_id = list(range(2, len(network.tokenizer), ends))
    network.save(out)
    return str(out)


def example(n: int, grades: tuple[float, ...] = (1.0, 0.0)) -> Example:
    documents = [TEXTS[(n + i) % len(TEXTS)] for i in range(len(grades))]
    nan = [float("nan")] * len(grades)
    return Example(f"q{n}", QUERIES[n], documents, list(range(len(grades))), list(grades), nan, frozenset())


# -- training


@both
@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers about its own way of shifting labels
def test_the_loss_is_that_of_transformers(folders, kind):
    network = made(folders[kind])
    module = Doc2QueryModule(network)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = module.collate([example(0), example(2), example(3)])
    expected = network.model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(module.training_step(batch, 0), expected, rtol=1e-5, atol=1e-5)


@both
def test_labels_say_the_query_once_and_end(folders, kind):
    network = made(folders[kind])
    tokenizer, labels = network.tokenizer, network.labels(["bone health", "winter storms in golden cities"])
    words = [[t for t in row if t != IGNORED] for row in labels.tolist()]
    marks = [tokenizer.cls_token_id] if kind == "t5" else []  # T5 does not start with [CLS], so it would have to say it
    for said, query in zip(words, ["bone health", "winter storms in golden cities"], strict=True):
        assert said == [*marks, *tokenizer(query, add_special_tokens=False).input_ids, tokenizer.sep_token_id]
    assert network.labels([" ".join(QUERIES * 5)]).shape[1] <= network.max_query_length


def test_every_positive_is_a_pair_and_no_negative(folders):
    module = Doc2QueryModule(made(folders["bert2bert"]))
    batch = module.collate([example(0, (2.0, 0.0, 1.0)), example(1)])
    said = [module.network.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]
    assert [text[:5] for text in said] == ["the c", "a lon", "jazz"]
    assert batch["ids"] == ["q0", "q1"]
    assert batch["labels"].shape[0] == 3
    assert batch["tokens"] == int(batch["attention_mask"].sum() + (batch["labels"] != IGNORED).sum())


@both
def test_training_learns_the_queries_and_reaches_every_weight(folders, kind, tmp_path):
    module = Doc2QueryModule(made(folders[kind]))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = module.collate([example(n) for n in range(4)])
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        loss = module.training_step(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    waiting = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert waiting == []  # DDP would wait for their gradients
    assert losses[-1] < 0.2 * losses[0]
    module.export(tmp_path)
    found = load_generator(str(tmp_path), max_length=32, max_query_length=12).sample(TEXTS[:4], 3, top_k=1)
    assert [several[0].query for several in found] == QUERIES[:4]


def test_a_broken_loss_names_the_batch(folders):
    module = Doc2QueryModule(made(folders["bert2bert"]))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    with torch.no_grad():
        next(module.network.parameters())[:] = float("nan")
    with pytest.raises(ValueError, match="q0, q1"):
        module.training_step(module.collate([example(0), example(1)]), 0)


def test_label_smoothing_is_that_of_torch(folders):
    network = made(folders["bert2bert"])
    plain, smooth = Doc2QueryModule(network), Doc2QueryModule(network, label_smoothing=0.3)
    for module in (plain, smooth):
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = plain.collate([example(0)])
    mask = batch["attention_mask"]
    log_p = network(network.encode(batch["input_ids"], mask), mask, batch["labels"]).log_softmax(dim=-1)
    expected = 0.7 * plain.training_step(batch, 0) - 0.3 * log_p.mean()  # no padding: one query
    torch.testing.assert_close(smooth.training_step(batch, 0), expected)


@both
def test_validation_ranks_by_query_likelihood(folders, kind):
    network = made(folders[kind])
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    candidates = [np.array([3, 0, 1]), np.array([2, 1])]
    qrels = {"q0": {"d0": 1, "d3": 0}, "q1": {"d1": 1}}
    dev = DevSet(["q0", "q1"], QUERIES[:2], qrels, [f"d{i}" for i in range(5)], TEXTS, candidates)

    run, loss, tokens = {}, 0.0, 0
    for query, text, places in zip(dev.ids, dev.queries, candidates, strict=True):
        run[query] = {}
        for place in places.tolist():  # one pair at a time, nothing padded
            features, labels = network.tokenise([TEXTS[place]]), network.labels([text])
            states = network.encode(**features)
            log_p = network(states, features["attention_mask"], labels).log_softmax(dim=-1)
            run[query][f"d{place}"] = log_p.gather(2, labels[:, :, None]).sum().item()
            if qrels[query].get(f"d{place}"):
                loss, tokens = loss - run[query][f"d{place}"], tokens + labels.shape[1]

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    loader = DataLoader([dev], batch_size=None, collate_fn=lambda one: one)  # type: ignore[arg-type]
    (found,) = trainer.validate(Doc2QueryModule(network), loader, verbose=False)
    assert found["val_loss"] == pytest.approx(loss / tokens, rel=1e-4)
    assert found["val_nDCG@10"] == pytest.approx(evaluate(run, qrels, ("nDCG@10",)).mean()["nDCG@10"])
    with torch.no_grad():
        states = Doc2QueryModule(network)._states(TEXTS, range(5))
        scores = Doc2QueryModule(network)._likelihoods(states, candidates[0], network.labels([QUERIES[0]]))
    np.testing.assert_allclose(scores, list(run["q0"].values()), rtol=1e-4)


# -- where a BERT2BERT starts


def test_an_untrained_decoder_prefers_the_words_of_its_document():
    """What makes few steps of training useful: copying is there from the start."""
    network = doc2query_network("offline", decoder_layers=2).eval()
    texts = ["Vitamin D improves bone density in elderly women.", "The violin concerto was recorded live in Vienna."]
    features = network.tokenise(texts)
    mask, first = features["attention_mask"], torch.full((2, 1), network.ends[0])
    with torch.no_grad():
        logits = network(network.encode(**features), mask, first)[:, 0]  # before anything is said
    ranks = (-logits).argsort(dim=1).argsort(dim=1)
    for i in range(2):
        words = features["input_ids"][i, 1:-2][mask[i, 1:-2] == 1]
        assert ranks[i, words].float().median() < 1000  # of 30,522
        assert ranks[1 - i, words].float().median() > 2 * ranks[i, words].float().median()


@pytest.mark.parametrize(("asked", "layers"), [(1, 1), (2, 2), (None, 2)])
def test_the_decoder_has_the_layers_asked_for(folders, asked, layers):
    network = made(folders["bert2bert"], decoder_layers=asked)
    assert network.model.config.decoder.num_hidden_layers == layers
    assert network.model.config.encoder.num_hidden_layers == 2
    last, own = network.model.encoder.encoder.layer[-1], network.model.decoder.bert.encoder.layer[-1]
    torch.testing.assert_close(own.intermediate.dense.weight, last.intermediate.dense.weight)
    torch.testing.assert_close(own.attention.self.key.weight, last.attention.self.key.weight)
    head = network.model.decoder.cls.predictions.decoder
    assert head.weight is network.model.decoder.bert.embeddings.word_embeddings.weight


def test_dropout_is_off_unless_asked_for(folders):
    for share in (0.0, 0.3):
        network = made(folders["t5"], dropout=share)
        modules = list(network.modules())
        assert {module.p for module in modules if isinstance(module, nn.Dropout)} == {share}
        assert {n for module in modules if isinstance(n := getattr(module, "dropout", None), float)} == {share}


# -- export


@both
def test_an_export_opens_in_transformers(folders, kind, tmp_path):
    network = made(folders[kind]).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    Doc2QueryModule(network).export(tmp_path)
    opened, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    features, labels = network.tokenise(TEXTS), network.labels(QUERIES)
    again = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")  # cuts at the same length by itself
    assert torch.equal(again["input_ids"], features["input_ids"])
    mask = features["attention_mask"]
    with torch.no_grad():
        before = opened.prepare_decoder_input_ids_from_labels(labels=labels)
        found = opened(again["input_ids"], mask, decoder_input_ids=before).logits
        expected = network(network.encode(**features), mask, labels)
    torch.testing.assert_close(found[labels != IGNORED], expected[labels != IGNORED], rtol=1e-5, atol=1e-5)
    said = [m.generate(**features, do_sample=False, max_new_tokens=8) for m in (opened, network.model)]
    assert torch.equal(*said)
    assert doc2query_network(str(tmp_path)).model.config.model_type == network.model.config.model_type


@both
def test_the_id_follows_the_weights_and_limits(folders, kind, tmp_path):
    first = exported(folders[kind], tmp_path / "a" / "export")
    ids = [load_generator(first).id, load_generator(first, batch_size=1).id, load_generator(first, max_length=9).id]
    network = doc2query_network(first)
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1e-3
    network.save(tmp_path / "b" / "export")
    ids.append(load_generator(str(tmp_path / "b" / "export")).id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


# -- sampling


@both
def test_greedy_queries_and_their_likelihoods_are_those_of_generate(folders, kind, tmp_path):
    folder = exported(folders[kind], tmp_path, ends=3)
    generator = load_generator(folder, max_length=32, max_query_length=9, batch_size=2)
    found = generator.sample(TEXTS, 4, top_k=1)
    assert [len(several) for several in found] == [1] * len(TEXTS)  # four equal ones, given once
    network = doc2query_network(folder, max_length=32).eval()
    ends = set(network.ends)
    lengths = set()
    for text, (one,) in zip(TEXTS, found, strict=True):
        features = network.tokenise([text])
        said = network.model.generate(
            **features, do_sample=False, max_new_tokens=9, return_dict_in_generate=True, output_logits=True
        )
        tokens = said.sequences[0, 1:]
        log_p = torch.stack(said.logits, dim=1)[0].log_softmax(dim=-1).gather(1, tokens[:, None]).sum().item()
        assert one.query == network.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert one.log_likelihood == pytest.approx(log_p, rel=1e-4)
        assert one.tokens == len(tokens)
        assert not ends & set(tokens[:-1].tolist())
        lengths.add(one.tokens)
    if kind == "bert2bert":
        assert len(lengths) > 1  # texts of a batch ended at different tokens


@both
def test_samples_follow_from_seed_and_text_alone(folders, kind, tmp_path):
    folder = exported(folders[kind], tmp_path, ends=5)
    options: dict[str, Any] = {"max_length": 32, "max_query_length": 12}
    generator = load_generator(folder, batch_size=3, **options)
    found = generator.sample(TEXTS, 6, seed=3, top_k=50)
    assert len({one.tokens for several in found for one in several}) > 3  # so that ended rows were dropped on the way

    alone = [load_generator(folder, batch_size=1, **options).sample([text], 6, seed=3, top_k=50)[0] for text in TEXTS]
    turned = generator.sample(TEXTS[::-1], 6, seed=3, top_k=50)[::-1]
    for other in (alone, turned):
        assert [[(o.query, o.tokens) for o in several] for several in other] == [
            [(o.query, o.tokens) for o in several] for several in found
        ]
        likelihoods = [[o.log_likelihood for several in some for o in several] for some in (other, found)]
        np.testing.assert_allclose(*likelihoods, rtol=1e-4)
    first = generator.sample(TEXTS, 1, seed=3, top_k=50)  # drawing more adds to what is drawn
    assert [several[0].query for several in first] == [several[0].query for several in found]
    other_seed = generator.sample(TEXTS, 6, seed=4, top_k=50)
    assert all(a != b for a, b in zip(other_seed, found, strict=True))


def test_likelihoods_are_of_the_whole_distribution(folders, tmp_path):
    """What is cut off or sharpened in drawing does not change what the model thinks of a query."""
    folder = exported(folders["bert2bert"], tmp_path)
    generator = load_generator(folder, max_length=32, max_query_length=4)
    network = doc2query_network(folder, max_length=32).eval()
    features = network.tokenise([TEXTS[0]])
    found = generator.sample([TEXTS[0]], 3, top_k=2, temperature=3.0)[0]
    assert found
    with torch.no_grad():
        logits = network(network.encode(**features), features["attention_mask"], torch.full((1, 1), 102))[0, 0]
    best = logits.log_softmax(dim=0).topk(2).values
    assert all(one.log_likelihood <= best[0].item() + 1e-5 for one in found)  # the first token alone, of 30,522


def test_a_query_is_given_once(folders, tmp_path):
    folder = exported(folders["bert2bert"], tmp_path, ends=2)
    found = load_generator(folder, max_query_length=2).sample(["jazz"], 200, top_k=3)[0]
    queries = [" ".join(one.query.lower().split()) for one in found]
    assert 1 < len(queries) == len(set(queries)) < 200
    assert all(queries)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 0.5}, {"top_k": 20, "top_p": 0.8, "temperature": 2.0}]
)
def test_choose_draws_from_the_distribution_of_transformers(options):
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 40)
    asked = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, **options}
    warped = TemperatureLogitsWarper(asked["temperature"])(None, logits) if asked["temperature"] != 1 else logits  # type: ignore[arg-type]
    warped = TopKLogitsWarper(asked["top_k"])(None, warped) if asked["top_k"] else warped  # type: ignore[arg-type]
    warped = TopPLogitsWarper(asked["top_p"])(None, warped) if asked["top_p"] < 1 else warped  # type: ignore[arg-type]
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    found = choose(logits.expand(len(uniform), -1), uniform, **asked)
    shares = torch.bincount(found, minlength=40) / len(uniform)
    torch.testing.assert_close(shares, warped.softmax(dim=1)[0], rtol=0, atol=2e-4)
    assert warped.softmax(dim=1)[0, choose(logits, torch.ones(1), **asked)] > 0  # rounding cannot leave the range


# -- the filter, with a cross-encoder


def test_a_cross_encoder_filters_what_a_generator_wrote(folders, tmp_path):
    """scripts/expand.py with real models: the kept queries are those that `CrossEncoder` finds most relevant."""
    corpus = Corpus.from_documents(Document(f"d{i}", "", text, {}) for i, text in enumerate(TEXTS))
    generator = load_generator(exported(folders["bert2bert"], tmp_path / "writer"), max_query_length=6)
    judging = cross_encoder_network(folders["bert2bert"], max_length=32)
    with torch.no_grad():
        for weight in judging.parameters():
            weight += 0.2 * torch.randn_like(weight)
    judging.save(tmp_path / "judge")
    scorer = load_cross_encoder(str(tmp_path / "judge"), dtype="float32")

    writer = ExpansionWriter(tmp_path / "out", corpus, model=generator.id, settings={}, shard=2)
    generate(writer, Texts(corpus), generator, 4, seed=0)
    judge(writer, Texts(corpus), scorer)
    writer.finish(0.5)
    pairs = [
        (e.query, row)
        for start in range(0, 5, 2)
        for row, several in zip(range(start, 5), writer.read(range(start, min(start + 2, 5))), strict=False)
        for e in several
    ]
    texts = Texts(corpus)
    expected = CrossEncoder(str(tmp_path / "judge"), device="cpu").predict(
        [(query, texts[row]) for query, row in pairs]
    )
    best = sorted(range(len(pairs)), key=lambda i: -expected[i])[: round(len(pairs) / 2)]
    kept = [(query, row) for row, queries in enumerate(read_expansions(tmp_path / "out", corpus)) for query in queries]
    assert sorted(kept) == sorted(pairs[i] for i in best)
    assert len(kept) < len(pairs) > 10


# -- mistakes


@both
def test_numbers_outside_of_their_range_are_named(folders, kind, tmp_path):
    limit = "512" if kind == "bert2bert" else "any number"
    for name in ("max_length", "max_query_length"):
        for wrong in (0, 5000) if kind == "bert2bert" else (0,):  # T5 counts distances: as many as memory holds
            with pytest.raises(ValueError, match=rf"{name}: {wrong} tokens.* 1 to {limit}; change {name}"):
                made(folders[kind], **{name: wrong})
            with pytest.raises(ValueError, match=rf"{name}: {wrong} tokens.* 1 to {limit}; change {name}"):
                load_generator(exported(folders[kind], tmp_path), **{name: wrong})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"model\.label_smoothing: 2.0 must lie in 0 to 1"):
        Doc2QueryModule(made(folders[kind]), label_smoothing=2.0)


def test_mistakes_are_named(folders, tmp_path):
    for layers in (0, 3):
        with pytest.raises(ValueError, match=f"decoder_layers: {layers}, but model .* has 1 to 2"):
            made(folders["bert2bert"], decoder_layers=layers)
    DistilBertModel(DistilBertConfig(dim=16, hidden_dim=16, n_layers=1, n_heads=2)).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(folders["t5"]).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="a decoder can be made for BERT, not for distilbert"):
        doc2query_network(str(tmp_path / "other"))
    (tmp_path / "empty").mkdir()
    for name in ("no-such-folder/below/this", str(tmp_path / "empty")):
        with pytest.raises(ValueError, match="neither a folder of a transformers model nor available") as refusal:
            load_generator(name)
        assert "config.json" in str(refusal.value)
    with pytest.raises(ValueError, match="'offline' is an encoder, which writes nothing"):
        load_generator("offline")
    generator = load_generator(folders["t5"])
    for wrong in ({"top_k": -1}, {"top_p": 0.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="top_k ≥ 0, 0 < top_p ≤ 1 and temperature > 0"):
            generator.sample(["jazz"], 1, **wrong)  # pyright: ignore[reportArgumentType]
    assert generator.sample([], 3) == []
