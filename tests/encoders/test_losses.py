"""Losses against sentence-transformers' own and plain loops, in float64; what is left out leaves no trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.cross_encoder.losses import LambdaLoss, ListNetLoss
from sentence_transformers.sentence_transformer.losses import (
    DistillKLDivLoss,
    MarginMSELoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)
from sentence_transformers.sparse_encoder.losses import FlopsLoss
from sentence_transformers.util import dot_score, pairwise_dot_score
from torch.autograd import gradcheck

from ltrr.encoders.losses import (
    flops,
    info_nce,
    kl_distillation,
    lambda_loss,
    listwise_softmax,
    margin_mse,
    matryoshka,
    pointwise,
    quadratic_ramp,
)

B, N, D = 5, 4, 8
LISTS = [pointwise, listwise_softmax, lambda_loss]
NAN = math.nan


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def vectors(*shape: int) -> torch.Tensor:
    """Unit, float64, with a gradient."""
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).requires_grad_()


def lists() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, grades 0 to 2 and a mask with one to three places of padding; the last list has no positive."""
    scores = torch.randn(B, 7, dtype=torch.float64, requires_grad=True)
    grades = torch.randint(0, 3, (B, 7)).double()
    grades[:, 0] = 1 + torch.arange(B) % 2
    grades[-1] = 0
    mask = torch.arange(7) < torch.tensor([7, 4, 6, 5, 7])[:, None]
    return scores, grades * mask, mask


def gradient(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def same(ours: torch.Tensor, reference: torch.Tensor, *inputs: torch.Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, reference.to(ours.dtype), rtol=rtol, atol=1e-12)
    for mine, other in zip(gradient(ours, *inputs), gradient(reference, *inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=1e-7 if rtol > 1e-6 else 1e-12)


# -- vectors


@pytest.mark.parametrize("bidirectional", [False, True])
def test_info_nce_is_the_multiple_negatives_loss(bidirectional):
    queries, positives, negatives = vectors(B, D), vectors(B, D), vectors(B, D)
    kind = MultipleNegativesSymmetricRankingLoss if bidirectional else MultipleNegativesRankingLoss
    reference = kind(None, scale=20.0, similarity_fct=dot_score)  # type: ignore[arg-type]
    ours = info_nce(queries, torch.cat([positives, negatives]), torch.arange(B), temperature=0.05)
    if bidirectional:  # the other direction is the same loss with the roles changed
        ours = (ours + info_nce(positives, queries, torch.arange(B), temperature=0.05)) / 2
    expected = reference.compute_loss_from_embeddings([queries, positives, negatives], torch.empty(0))
    same(ours, expected, queries, positives, negatives)


def test_info_nce_leaves_excluded_documents_out_but_never_the_target():
    queries, documents, target = vectors(B, D), vectors(9, D), torch.tensor([3, 0, 8, 1, 3])
    exclude = torch.rand(B, 9) < 0.4
    exclude[0, 3] = exclude[4, 3] = True  # as all known positives of a query would mark it
    ours = info_nce(queries, documents, target, temperature=0.1, exclude=exclude)
    expected = torch.zeros((), dtype=torch.float64)
    for i, t in enumerate(target.tolist()):
        kept = [m for m in range(9) if m == t or not exclude[i, m]]
        logits = torch.stack([queries[i] @ documents[m] for m in kept]) / 0.1
        expected = expected - logits.log_softmax(0)[kept.index(t)] / B
    same(ours, expected, queries, documents)


def test_info_nce_multiplies_in_full_precision_under_autocast():
    queries, documents = vectors(B, 64).detach().float(), vectors(B, 64).detach().float()
    exact = info_nce(queries, documents, torch.arange(B), temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = info_nce(queries, documents, torch.arange(B), temperature=0.01)
    assert mixed.dtype == torch.float32
    assert mixed == exact
    assert info_nce(queries.bfloat16(), documents.bfloat16(), torch.arange(B), temperature=0.01) != exact


def test_matryoshka_is_the_mean_over_cut_unit_vectors():
    queries, documents, dims = vectors(B, D), vectors(B, D), [2, 5, D]

    def loss(q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return info_nce(q, d, torch.arange(B), temperature=0.05)

    reference = torch.zeros((), dtype=torch.float64)
    for d in dims:
        q, p = queries[:, :d], documents[:, :d]
        reference = reference + loss(q / q.norm(dim=1, keepdim=True), p / p.norm(dim=1, keepdim=True)) / 3
    same(matryoshka(loss, queries, documents, dims), reference, queries, documents)
    torch.testing.assert_close(matryoshka(loss, queries, documents, [D]), loss(queries, documents))


def test_flops_and_its_ramp():
    weights = torch.rand(B, 11, dtype=torch.float64, requires_grad=True)
    same(flops(weights), FlopsLoss(None).compute_loss_from_embeddings(weights), weights)  # type: ignore[arg-type]
    assert flops(torch.tensor([[1.0], [-1.0]])) == 1  # magnitudes: signs must not cancel
    assert [quadratic_ramp(step, 10) for step in (0, 5, 10, 99)] == [0, 0.25, 1, 1]


# -- distillation


def test_margin_mse_is_the_library_s():
    queries, documents, teacher = vectors(B, D), [vectors(B, D) for _ in range(N)], torch.randn(B, N).double()
    scores = torch.stack([pairwise_dot_score(queries, d) for d in documents], dim=1)
    reference = MarginMSELoss(None, similarity_fct=pairwise_dot_score)  # type: ignore[arg-type]
    same(margin_mse(scores, teacher), reference.compute_loss_from_embeddings([queries, *documents], teacher), queries)


def test_kl_distillation_is_the_library_s():
    queries, documents, teacher = vectors(B, D), [vectors(B, D) for _ in range(N)], torch.randn(B, N).double()
    scores = torch.stack([pairwise_dot_score(queries, d) for d in documents], dim=1)
    reference = DistillKLDivLoss(None, similarity_fct=pairwise_dot_score, temperature=2.0)  # type: ignore[arg-type]
    expected = reference.compute_loss_from_embeddings([queries, *documents], teacher)
    same(kl_distillation(scores, teacher, temperature=2.0), expected, queries)


@pytest.mark.parametrize("loss", [margin_mse, kl_distillation])
def test_what_the_teacher_left_out_leaves_no_trace(loss):
    scores = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, NAN, 1.0], [3.0, 0.0, NAN], [NAN, NAN, NAN], [NAN, NAN, 1.0]]).double()
    known = [(0, [0, 2]), (1, [0, 1])]  # lists with a pair to compare
    reference = torch.stack([loss(scores[i : i + 1, kept], teacher[i : i + 1, kept]) for i, kept in known]).mean()
    same(loss(scores, teacher), reference, scores)
    assert (gradient(loss(scores, teacher), scores)[0][2:] == 0).all()


# -- lists


def library_loss(kind: type, scores: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, **options) -> torch.Tensor:
    """A listwise loss of sentence-transformers over given scores; it computes in float32."""
    flat = scores[mask]
    model: Any = type("Scores", (), {"num_labels": 1, "device": torch.device("cpu")})()
    model.preprocess = lambda pairs, **_: {"rows": torch.tensor([int(document) for _, document in pairs])}
    type(model).__call__ = lambda _, features: {"scores": flat[features["rows"]]}
    places = iter(range(len(flat)))
    texts = [[str(next(places)) for _ in range(int(row.sum()))] for row in mask]
    return kind(model, **options)(
        [["q"] * len(scores), texts], [row[kept] for row, kept in zip(labels, mask, strict=True)]
    )


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_lambda_loss_is_the_library_s(sigma, k):
    scores, grades, mask = lists()
    reference = library_loss(LambdaLoss, scores, grades, mask, sigma=sigma, k=k)
    same(lambda_loss(scores, grades, mask, sigma=sigma, k=k), reference, scores, rtol=1e-5)


def test_listwise_softmax_is_the_library_s():
    scores, grades, mask = (x[:-1] for x in lists())  # the library knows no list without a positive
    reference = library_loss(ListNetLoss, scores, grades.log(), mask)  # its softmax of log grades is grades / sum
    same(listwise_softmax(scores, grades, mask), reference, scores, rtol=1e-5)


def test_pointwise_is_a_loop_of_cross_entropies():
    scores, grades, mask = lists()
    losses = []
    for s, g, there in zip(*(x.flatten().tolist() for x in (scores.detach(), grades, mask)), strict=True):
        target, probability = g / 2, 1 / (1 + math.exp(-s))
        if there:
            losses.append(-target * math.log(probability) - (1 - target) * math.log(1 - probability))
    assert pointwise(scores, grades, mask).item() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("loss", LISTS)
def test_padding_leaves_no_trace(loss):
    scores, grades, mask = lists()
    noisy = torch.where(mask, scores, 1e4).detach().requires_grad_()
    torch.testing.assert_close(loss(noisy, torch.where(mask, grades, 9.0), mask), loss(scores, grades, mask))
    assert (gradient(loss(noisy, grades, mask), noisy)[0][~mask] == 0).all()


@pytest.mark.parametrize("loss", [listwise_softmax, lambda_loss])
def test_a_list_without_positives_has_no_gradient(loss):
    scores, grades, mask = lists()
    assert (gradient(loss(scores, grades, mask), scores)[0][-1] == 0).all()
    alone = loss(scores[-1:], grades[-1:], mask[-1:])
    assert alone.item() == 0
    assert (gradient(alone, scores)[0] == 0).all()  # 0, not NaN, for a batch of nothing else
    torch.testing.assert_close(loss(scores, grades, mask), loss(scores[:-1], grades[:-1], mask[:-1]))


@pytest.mark.parametrize("loss", LISTS)
def test_a_higher_grade_pulls_harder(loss):
    scores = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    pull = -gradient(loss(scores, torch.tensor([[2.0, 1.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)), scores)[0][0]
    assert pull[0] > pull[1] > pull[2]


def test_gradients_are_those_of_the_values():
    queries, documents = vectors(B, D), vectors(9, D)
    exclude, target = torch.rand(B, 9) < 0.3, torch.arange(B)
    assert gradcheck(lambda q, d: info_nce(q, d, target, temperature=0.2, exclude=exclude), (queries, documents))
    scores, grades, mask = lists()
    for loss in LISTS:
        assert gradcheck(lambda s, loss=loss: loss(s, grades, mask), (scores,))
    teacher = torch.where(torch.rand(B, 7) < 0.2, NAN, torch.randn(B, 7)).double()
    for loss in (margin_mse, kl_distillation):
        assert gradcheck(lambda s, loss=loss: loss(s, teacher), (scores,))
    assert gradcheck(flops, (torch.rand(B, D, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("loss", [*LISTS, lambda s, g, _: margin_mse(s, g), lambda s, g, _: kl_distillation(s, g)])
def test_half_precision_scores_are_raised(loss):
    scores, grades, mask = lists()
    half = scores.detach().bfloat16()
    raised = loss(half, grades.float(), mask)
    assert raised.dtype == torch.float32
    assert raised == loss(half.float(), grades.float(), mask)  # not a bit is lost on the way
