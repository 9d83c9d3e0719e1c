"""Bi-encoder training: chunked gradients, distillation, prompts, and the export against sentence-transformers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesSymmetricRankingLoss
from sentence_transformers.util import dot_score

from ltrr.data.pairs import Pairs
from ltrr.encoders.backbone import load_encoder
from ltrr.encoders.bi_encoder import DenseModule, dense_network
from ltrr.encoders.losses import info_nce, kl_distillation, margin_mse


@pytest.fixture(scope="module")
def data(music) -> Pairs:
    pairs = Pairs(str(music), num_negatives=2, batch_size=6)
    pairs.setup()
    return pairs


def module(tiny_backbone, dropout: float = 0.0, **options) -> DenseModule:
    torch.manual_seed(0)
    out = DenseModule(dense_network(str(tiny_backbone), max_length=32, dropout=dropout), **options)
    out.trainer = SimpleNamespace(world_size=1, loggers=[])  # type: ignore[assignment]
    out.log = lambda *args, **options: None  # type: ignore[method-assign]
    return out


def batch_of(model: DenseModule, data: Pairs, count: int = 6) -> dict:
    return model.collate([data.example(i, 0) for i in range(count)])


def gradient(model: DenseModule, batch: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # of dropout
    loss = model.training_step(batch, 0)
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_chunks_give_the_gradient_of_the_whole_batch(tiny_backbone, data):
    """GradCache: the same loss over the same negatives; only memory differs."""
    whole, chunked = module(tiny_backbone), module(tiny_backbone, chunk_tokens=64)
    first, second = gradient(whole, batch_of(whole, data)), gradient(chunked, batch_of(chunked, data))
    assert first.keys() == second.keys()
    scale = max(float(g.abs().max()) for g in first.values())
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-5 * scale)


def test_a_chunk_draws_the_same_dropout_when_it_is_computed_again(tiny_backbone, data):
    """Else the gradient would be of another function than the loss: compare with numbers, by a step along it."""
    model = module(tiny_backbone, 0.3, chunk_tokens=64)
    batch = batch_of(model, data)
    grads = gradient(model, batch)
    norm = sum(float(g.pow(2).sum()) for g in grads.values()) ** 0.5
    values = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in grads:
                    p += step * grads[name] / norm
        torch.manual_seed(1)
        values.append(float(model.training_step(batch, 0)))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in grads:
                    p -= step * grads[name] / norm
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(norm, rel=0.02)


def test_a_chunk_keeps_less_for_the_backward_pass(tiny_backbone, data):
    def kept(model: DenseModule) -> int:
        sizes: list[int] = []
        batch = batch_of(model, data)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model.embed(batch["documents"])
        return sum(sizes)

    assert kept(module(tiny_backbone, chunk_tokens=64)) < 0.05 * kept(module(tiny_backbone))


def test_the_contrast_excludes_known_positives(tiny_backbone, data):
    model = module(tiny_backbone, temperature=0.1)
    examples = [data.example(i, 0) for i in range(6)]
    shared = examples[0].rows[0]
    examples[3] = examples[3]._replace(positives=examples[3].positives | {shared})
    batch = model.collate(examples)
    assert batch["exclude"].nonzero().tolist() == sorted(
        [b, m] for b, e in enumerate(examples) for m, row in enumerate(batch["rows"].tolist()) if row in e.positives
    )
    assert batch["exclude"][3, 0]
    queries, documents = model.embed(batch["queries"]), model.embed(batch["documents"])
    expected = info_nce(queries, documents, 3 * torch.arange(6), temperature=0.1, exclude=batch["exclude"])
    torch.testing.assert_close(model.training_step(batch, 0), expected)


@pytest.mark.parametrize("distill", ["margin_mse", "kl"])
def test_distillation_is_weighed_against_the_contrast(tiny_backbone, data, distill):
    examples = [data.example(i, 0)._replace(teacher=[3.0, 1.0, float("nan")]) for i in range(6)]
    plain, mixed, pure = (
        module(tiny_backbone, distill=d, distill_weight=w) for d, w in ((None, 0.5), (distill, 0.25), (distill, 1.0))
    )
    batch = plain.collate(examples)
    teach = {"margin_mse": margin_mse, "kl": kl_distillation}[distill]
    own = plain.embed(batch["documents"]).view(6, 3, -1)
    expected = teach(20 * torch.einsum("bd,bnd->bn", plain.embed(batch["queries"]), own), batch["teacher"])
    torch.testing.assert_close(pure.training_step(batch, 0), expected)
    torch.testing.assert_close(mixed.training_step(batch, 0), 0.75 * plain.training_step(batch, 0) + 0.25 * expected)


def test_matryoshka_trains_prefixes(tiny_backbone, data):
    whole, both = module(tiny_backbone), module(tiny_backbone, dimensions=[8, 32])
    batch = batch_of(whole, data)
    queries, documents = (
        torch.nn.functional.normalize(whole.embed(batch[k])[:, :8], dim=1) for k in ("queries", "documents")
    )
    cut = info_nce(queries, documents, 3 * torch.arange(6), temperature=0.05, exclude=batch["exclude"])
    torch.testing.assert_close(both.training_step(batch, 0), (whole.training_step(batch, 0) + cut) / 2)
    with pytest.raises(ValueError, match=r"model\.dimensions: \[33\] must lie in 1 to 32"):
        module(tiny_backbone, dimensions=[33])


def test_both_directions_are_the_symmetric_loss_of_sentence_transformers(tiny_backbone, data):
    model = module(tiny_backbone, bidirectional=True, temperature=0.1)
    batch = batch_of(model, data)
    batch["exclude"] = torch.zeros_like(batch["exclude"])  # theirs knows no other positives
    queries, documents = model.embed(batch["queries"]), model.embed(batch["documents"])
    reference = MultipleNegativesSymmetricRankingLoss(model.network, scale=10.0, similarity_fct=dot_score)
    expected = reference.compute_loss_from_embeddings([queries, *documents.view(6, 3, -1).unbind(1)], torch.empty(0))
    torch.testing.assert_close(model.training_step(batch, 0), expected)


def test_the_other_direction_leaves_out_queries_that_know_the_document(tiny_backbone, data):
    model = module(tiny_backbone, bidirectional=True, temperature=0.1)
    examples = [data.example(i, 0) for i in range(6)]
    examples[3] = examples[3]._replace(positives=examples[3].positives | {examples[0].rows[0]})
    batch = model.collate(examples)
    queries, documents = model.embed(batch["queries"]), model.embed(batch["documents"])
    back = torch.zeros(())
    for b in range(6):
        others = [q for q, e in enumerate(examples) if q == b or examples[b].rows[0] not in e.positives]
        assert (3 in others) == (b != 0)
        back = back - (queries[others] @ documents[3 * b] / 0.1).log_softmax(0)[others.index(b)] / 6
    forward = info_nce(queries, documents, 3 * torch.arange(6), temperature=0.1, exclude=batch["exclude"])
    torch.testing.assert_close(model.training_step(batch, 0), (forward + back) / 2)


def test_numbers_outside_of_their_range_are_named(tiny_backbone):
    for wrong in (0, -1, 513, 5000):
        with pytest.raises(ValueError, match=rf"max_length: {wrong} tokens.* 1 to 512"):
            dense_network(str(tiny_backbone), max_length=wrong)
    for field, wrong in (("temperature", 0.0), ("temperature", -1.0), ("distill_weight", 1.5)):
        with pytest.raises(ValueError, match=rf"model\.{field}: {wrong} must lie in"):
            module(tiny_backbone, **{field: wrong})
    with pytest.raises(ValueError, match=r"dropout: 2.* must lie in 0 to 1"):
        dense_network(str(tiny_backbone), dropout=2.0)


def test_the_export_equals_what_was_trained(tiny_backbone, tmp_path):
    model = DenseModule(dense_network(str(tiny_backbone), max_length=12, query_prompt="ask: ", document_prompt="say: "))
    model.export(tmp_path / "export")
    library = SentenceTransformer(str(tmp_path / "export"), device="cpu")
    encoder = load_encoder(str(tmp_path / "export"))  # prompts and length are those of the training
    texts = ["red river", "a long text " * 20, "x"]
    for kind, theirs in (("query", library.encode_query), ("document", library.encode_document)):
        expected = theirs(texts, normalize_embeddings=True)
        np.testing.assert_allclose(model.encode(texts, kind), expected, atol=1e-5)
        np.testing.assert_allclose(encoder.encode(texts, is_query=kind == "query"), expected, atol=1e-5)
    assert not np.allclose(model.encode(texts, "query"), model.encode(texts, "document"), atol=1e-3)
