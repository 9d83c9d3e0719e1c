"""SPLADE: heads old and new, equal outputs in sentence-transformers, training that learns and grows sparse."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaModel,
)

from ltrr.data.pairs import DevSet, Example
from ltrr.encoders.losses import info_nce
from ltrr.encoders.splade import SpladeModule, load_sparse_encoder, splade_network
from ltrr.metrics import evaluate
from ltrr.types import Sparse
from tests.helpers import shared

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on batches of tests

WORDS = "river night paper winter crazy golden home street summer love tiger cloud engine bread violin doctor".split()  # noqa: SIM905
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXTS = [f"{a} {b} and the {WORDS[(i + j) % 16]}" for i, a in enumerate(WORDS) for j, b in enumerate(WORDS[:8])]


def dense(vectors: Sparse, size: int) -> np.ndarray:
    out = np.zeros((len(vectors.ptr) - 1, size), np.float32)
    for i in range(len(out)):
        terms, values = vectors.row(i)
        assert (np.diff(terms.astype(int)) > 0).all()
        assert (values > 0).all()
        out[i, terms] = values
    return out


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A BERT without a head and with few terms, which makes tests fast."""
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *WORDS, "and", "the", "of", "mine", *(f"term{i}" for i in range(200))]
    tokenizer = BertTokenizer(vocab={term: i for i, term in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **SIZE)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def network(backbone):
    """With a new head, calibrated."""
    network = splade_network(str(backbone), max_length=12)
    network.calibrate(TEXTS)
    return network.eval()


@pytest.fixture(scope="module")
def export(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    network.export(folder)
    return folder


# -- a new head


def test_a_new_head_is_a_standard_one_and_calibrated(network, export):
    mlm = AutoModelForMaskedLM.from_pretrained(export).eval()
    tokens = network.tokenise(TEXTS)
    mask = tokens["attention_mask"].bool()
    with torch.no_grad():
        hidden = mlm.base_model(**tokens).last_hidden_state[mask]
        logits = mlm(**tokens).logits[mask]  # (T, V), bias included
        changed = mlm.cls.predictions.transform(hidden)
    torch.testing.assert_close(logits.mean(0), -3 * logits.std(0), rtol=1e-3, atol=1e-4)  # every term is 3 σ from 0
    torch.testing.assert_close(changed, hidden, rtol=0, atol=0.02)  # nearly the identity
    assert mlm.cls.predictions.decoder.weight is mlm.bert.embeddings.word_embeddings.weight


def test_autocast_takes_no_bits_from_a_new_head(network):
    hidden = torch.randn(50, 32)
    with torch.no_grad():
        exact = network.mlm.cls(hidden)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network.mlm.cls(hidden), exact)


def test_calibration_leaves_what_is_there(network, export):
    bias = network.decoder.bias.clone()
    network.calibrate(["other texts", "than before"])
    assert torch.equal(network.decoder.bias, bias)
    again = splade_network(str(export))
    again.calibrate(["other texts"])
    assert torch.equal(again.decoder.bias, bias)


# -- heads that are there


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def own_head(request, backbone, tmp_path_factory):
    """A transformers folder with a masked-language-model head, decoder bias and all."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    torch.manual_seed(1)
    if request.param == "bert":
        mlm = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SIZE))
    else:
        mlm = DistilBertForMaskedLM(
            DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=32)
        )
    decoder: Any = mlm.get_output_embeddings()
    decoder.bias.data.normal_(mean=-0.2, std=0.1)
    mlm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_head_that_is_there_is_kept(own_head):
    network = splade_network(str(own_head), max_length=10).eval()
    assert network.calibrated
    tokens = network.tokenise(TEXTS[:20])
    assert tokens["input_ids"].shape[1] <= 10
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(own_head).eval()(**tokens).logits
        expected = SpladePooling("max")({"token_embeddings": logits, "attention_mask": tokens["attention_mask"]})
        torch.testing.assert_close(network(tokens), expected["sentence_embedding"], rtol=1e-5, atol=1e-6)


def test_a_sparse_encoder_folder_is_kept_with_its_length(own_head, tmp_path):
    modules = [Transformer(str(own_head), transformer_task="fill-mask", max_seq_length=9), SpladePooling("max")]
    SparseEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path), create_model_card=False)
    encoder = load_sparse_encoder(str(tmp_path), device="cpu")
    long = [" ".join(WORDS), *TEXTS[:7]]
    theirs = SparseEncoder(str(tmp_path), device="cpu").encode_document(long, convert_to_sparse_tensor=False)
    np.testing.assert_allclose(dense(encoder.encode(long), theirs.shape[1]), theirs.numpy(), rtol=1e-5, atol=1e-6)
    assert "max_length=9" in encoder.id


def test_models_that_cannot_be_are_refused(own_head, backbone, tiny_backbone, tmp_path):
    modules = [Transformer(str(own_head), transformer_task="fill-mask"), SpladePooling("sum")]
    SparseEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path / "sum"), create_model_card=False)
    with pytest.raises(ValueError, match="sum of relu"):
        splade_network(str(tmp_path / "sum"))
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    RobertaModel(RobertaConfig(vocab_size=len(tokenizer), **SIZE)).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    with pytest.raises(ValueError, match="RobertaModel has no masked-language-model head"):
        splade_network(str(tmp_path / "roberta"))
    with pytest.raises(ValueError, match="neither a folder of SparseEncoder"):
        splade_network(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no head for term weights(.|\n)*train\.py fit"):
        load_sparse_encoder(str(tiny_backbone))  # a SentenceTransformer


# -- encoding and export


@pytest.mark.parametrize("query", ["mlm", "idf"])
@pytest.mark.parametrize("max_active", [None, 20])
def test_an_export_gives_equal_outputs(backbone, tmp_path, query, max_active):
    network = splade_network(str(backbone), max_length=12, max_active=max_active, query=query)
    network.calibrate(TEXTS)
    network.export(tmp_path)
    theirs, ours = SparseEncoder(str(tmp_path), device="cpu"), load_sparse_encoder(str(tmp_path), device="cpu")
    texts = [" ".join(WORDS * 2), *TEXTS[:30], "?"]  # the first is cut
    for is_query, encode in ((True, theirs.encode_query), (False, theirs.encode_document)):
        expected = encode(texts, convert_to_sparse_tensor=False).numpy()
        for mine in (ours.encode(texts, is_query=is_query), network.eval().encode(texts, is_query=is_query)):
            np.testing.assert_allclose(dense(mine, expected.shape[1]), expected, rtol=1e-5, atol=1e-5)
        assert (expected[0] > 0).sum() > 5
    assert max_active is None or (expected > 0).sum(1).max() == max_active


def test_a_query_by_idf_holds_its_own_tokens(backbone):
    network = splade_network(str(backbone), query="idf")
    network.calibrate(TEXTS)
    (terms, values) = network.encode(["river river engine"], is_query=True).row(0)
    assert network.tokenizer.convert_ids_to_tokens(terms.tolist()) == ["river", "engine"]
    counts = [sum(word in text.split() for text in TEXTS) for word in ("river", "engine")]
    np.testing.assert_allclose(values, [np.log(1 + (len(TEXTS) - n + 0.5) / (n + 0.5)) for n in counts], rtol=1e-6)
    assert network.encode(["", "\u200b"], is_query=True).ptr.tolist() == [0, 0, 0]  # no token, no term


def test_batches_change_nothing(network):
    texts = [TEXTS[0], "", " ".join(WORDS), *TEXTS[1:9]]
    whole, size = network.encode(texts), network.decoder.out_features
    assert whole.terms.dtype == np.uint32
    assert whole.values.dtype == np.float32
    for budget in (1, 30):
        parts = network.encode(texts, token_budget=budget)
        np.testing.assert_allclose(dense(parts, size), dense(whole, size), rtol=1e-5, atol=1e-5)
    assert network.encode([]).ptr.tolist() == [0]


def test_an_id_names_weights_and_options(export, network, tmp_path):
    options: list[dict[str, Any]] = [{}, {}, {"max_length": 9}, {"max_active": 7}]
    ids = {load_sparse_encoder(str(export), **o).id for o in options}
    assert len(ids) == 3
    with torch.no_grad():
        network.decoder.bias[5] += 1
        network.export(tmp_path / "export")
        network.decoder.bias[5] -= 1
    assert load_sparse_encoder(str(tmp_path / "export")).id not in ids


# -- training


class Toy(LightningDataModule):
    """Query i asks for document i; batches of 8, a random negative each, which another query asks for."""

    has_teacher = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def corpus_texts(self, count: int) -> list[str]:
        self.asked.append(count)
        return TEXTS

    def example(self, i: int) -> Example:
        rows = [i, (i + 5) % 16]
        documents = [f"{WORDS[row]} {WORDS[row]}" for row in rows]
        # Row i + 1 is a positive too, and the first document of the next query.
        return Example(
            f"q{i}", f"{WORDS[i]} of mine", documents, rows, [1, 0], [2.0, -1.0], frozenset((i, (i + 1) % 16))
        )

    def train_dataloader(self) -> DataLoader:
        examples: Any = [self.example(i) for i in range(16)]
        trainer: Any = self.trainer
        return DataLoader(examples, 8, collate_fn=trainer.lightning_module.collate)

    def val_dataloader(self) -> DataLoader:
        queries = [f"{word} of mine" for word in WORDS]
        documents = [f"{word} {word}" for word in WORDS]
        qrels = {f"q{i}": {f"d{i}": 1} for i in range(16)}
        devs: Any = [DevSet([*qrels], queries, qrels, [f"d{i}" for i in range(16)], documents, [np.arange(16)] * 16)]
        return DataLoader(devs, batch_size=None, collate_fn=lambda dev: dev)


def trainer(folder: Path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**quiet, "enable_checkpointing": False, **options})


@pytest.mark.parametrize("options", [{}, {"distill": "margin_mse"}, {"distill": "kl"}])
def test_training_learns(backbone, tmp_path, options):
    torch.manual_seed(0)
    module = SpladeModule(splade_network(str(backbone)), lr=3e-3, flops_query=0, flops_document=0, **options)
    module.network.calibrate(TEXTS)
    fit = trainer(tmp_path, max_epochs=40, check_val_every_n_epoch=40, num_sanity_val_steps=0)
    fit.validate(module, datamodule=Toy(), verbose=False)
    untrained = {name: fit.callback_metrics[f"val_{name}"] for name in ("nDCG@10", "RR@10")}
    fit.fit(module, datamodule=Toy())
    for name, before in untrained.items():
        assert before < 0.7
        assert fit.callback_metrics[f"val_{name}"] > 0.8


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (10, 0.04), (25, 0.25), (50, 1.0), (90, 1.0)])
def test_flops_of_queries_and_documents_have_weights_of_their_own_that_rise_quadratically(network, step, share):
    """Over the first half of 100 steps; what is left of the loss without them is InfoNCE."""
    module = SpladeModule(network, flops_query=3.0, flops_document=0.5, flops_ramp=0.5)
    module.trainer = SimpleNamespace(global_step=step, estimated_stepping_batches=100)  # type: ignore[assignment]
    module.log_dict = lambda *args, **options: None  # type: ignore[method-assign]
    batch = module.collate([Toy().example(i) for i in range(4)])
    queries, documents = network(batch["queries"], is_query=True), network(batch["documents"])
    squares = [float((w.mean(0) ** 2).sum()) for w in (queries, documents)]
    assert squares[0] != pytest.approx(squares[1], rel=0.01)  # so that weights that changed places are seen
    contrast = info_nce(queries, documents, 2 * torch.arange(4), temperature=1.0, exclude=batch["exclude"])
    few = 3.0 * squares[0] + 0.5 * squares[1]
    assert few > 0.01 * float(contrast)
    torch.testing.assert_close(module.training_step(batch, 0), contrast + share * few)


def test_numbers_outside_of_their_range_are_named(backbone, export):
    for wrong in (0, 513, 5000):
        with pytest.raises(ValueError, match=rf"max_length: {wrong} tokens.* 1 to 512"):
            splade_network(str(backbone), max_length=wrong)
        with pytest.raises(ValueError, match=rf"max_length: {wrong} tokens.* 1 to 512"):
            load_sparse_encoder(str(export), max_length=wrong)
    for field, wrong in (("temperature", 0.0), ("flops_ramp", 1.5), ("distill_weight", -0.1)):
        with pytest.raises(ValueError, match=rf"model\.{field}: {wrong} must lie in"):
            SpladeModule(splade_network(str(backbone)), **{field: wrong})  # pyright: ignore[reportArgumentType]


def test_flops_makes_vectors_sparse(backbone, tmp_path):
    terms = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        network = splade_network(str(backbone), sigmas=1.0)
        module = SpladeModule(network, lr=1e-3, flops_query=weight, flops_document=weight, flops_ramp=0.1)
        fit = trainer(tmp_path, max_epochs=10, limit_val_batches=0)
        fit.fit(module, datamodule=Toy())
        terms[weight] = [float(fit.callback_metrics[f"{kind}_terms"]) for kind in ("query", "document")]
    assert all(few < 0.5 * many for few, many in zip(terms[1.0], terms[0.0], strict=True))


def test_other_positives_are_no_negatives(network):
    batch = SpladeModule(network).collate([Toy().example(i) for i in range(3)])
    # Rows 0 5 1 6 2 7; the positives of query i are i and i + 1.
    assert batch["exclude"].int().tolist() == [[1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0]]
    assert batch["ids"] == ["q0", "q1", "q2"]
    assert batch["tokens"] == sum(int(batch[kind]["attention_mask"].sum()) for kind in ("queries", "documents"))


def test_a_loss_that_is_not_finite_stops_with_the_ids(backbone, tmp_path):
    network = splade_network(str(backbone))
    network.calibrate(TEXTS)
    with torch.no_grad():
        network.mlm.cls.predictions.transform.inner.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="q0, q1, q2"):
        trainer(tmp_path, max_steps=1, num_sanity_val_steps=0).fit(SpladeModule(network), datamodule=Toy())


def test_a_resumed_fit_does_not_calibrate_again(backbone, tmp_path):
    first, second = (SpladeModule(splade_network(str(backbone))) for _ in range(2))
    data = Toy()
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    fit.fit(first, datamodule=data)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = Toy()
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(
        second, datamodule=again, ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert (len(data.asked), len(again.asked)) == (1, 0)
    assert second.network.calibrated


@pytest.mark.data
@pytest.mark.slow
def test_an_untrained_offline_network_retrieves(tmp_path):
    """anchors.md: nDCG@10 .375 and R@100 .765 on SciFact at 3 σ; here on a sample of the corpus, which is easier."""
    folder = shared("scifact")
    texts = {d["_id"]: f"{d['title']} {d['text']}" for d in map(json.loads, (folder / "corpus.jsonl").open())}
    network = splade_network("offline").eval()
    network.calibrate(list(texts.values())[:128])
    lines = (folder / "qrels" / "test.tsv").read_text().splitlines()[1:101]
    qrels = {query: {doc: int(grade)} for query, doc, grade in (line.split("\t") for line in lines)}
    chosen = list(dict.fromkeys([d for own in qrels.values() for d in own] + list(texts)[:200]))
    asked = {q["_id"]: q["text"] for q in map(json.loads, (folder / "queries.jsonl").open())}
    queries = dense(network.encode([asked[q] for q in qrels], is_query=True), 30522)
    scores = queries @ dense(network.encode([texts[d] for d in chosen]), 30522).T
    run = {q: dict(zip(chosen, row.tolist(), strict=True)) for q, row in zip(qrels, scores, strict=True)}
    assert evaluate(run, qrels, ("nDCG@10",)).mean()["nDCG@10"] > 0.5
