"""Losses of retrieval and ranking, as pure functions of scores or vectors.

Knows tensors; knows nothing about models, texts or trainers. Half precision is raised to float32 first, also under
autocast; float64 stays. A list that a loss cannot use (no positive, no teacher's score) adds 0 to loss and gradient.
Legend: B queries of a batch, N documents per query, M documents of the batch, D dimensions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

MU = 10.0  # weight of NDCG-Loss2 beside LambdaRank's in NDCG-Loss2++; Wang et al.'s value


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(values: Tensor, count: Tensor) -> Tensor:
    """Sum of the values over the count; 0 if the count is 0."""
    return values.sum() / count.clamp(min=1)


# -- vectors


def info_nce(
    queries: Tensor,  # (B, D)
    documents: Tensor,  # (M, D)
    target: Tensor,  # (B,) long
    *,
    temperature: float,
    exclude: Tensor | None = None,  # (B, M) bool
) -> Tensor:
    """Mean of −log softmax_m(q·d_m / temperature) at each query's document (van den Oord et al. 2018).

    target: row of each query's positive in `documents`; temperature > 0.
    exclude: true for documents that are not negatives of the query (its other positives); the target always counts.
    """
    with torch.autocast(queries.device.type, enabled=False):  # autocast would multiply in half precision
        logits = _full(queries) @ _full(documents).T / temperature  # (B, M)
    if exclude is not None:
        logits = logits.masked_fill(exclude.scatter(1, target[:, None], False), -math.inf)
    return nn.functional.cross_entropy(logits, target)


def matryoshka(
    loss: Callable[[Tensor, Tensor], Tensor], queries: Tensor, documents: Tensor, dims: Sequence[int]
) -> Tensor:
    """Mean of `loss(queries, documents)` over vectors cut to their first d dimensions and normalised (Kusupati 2022).

    queries (B, D), documents (M, D); dims: prefix lengths, 1 to D.
    """
    queries, documents = _full(queries), _full(documents)
    unit = nn.functional.normalize
    return torch.stack([loss(unit(queries[:, :d], dim=1), unit(documents[:, :d], dim=1)) for d in dims]).mean()


def flops(weights: Tensor) -> Tensor:
    """Σ_j (mean_i |w_ij|)² of term weights (B, V): the expected cost of one dot product (Paria et al. 2020)."""
    return _full(weights).abs().mean(dim=0).square().sum()


def quadratic_ramp(step: int, steps: int) -> float:
    """(min(step / steps, 1))²: the schedule of the FLOPS weight (Formal et al. 2021)."""
    return min(step / max(steps, 1), 1.0) ** 2


# -- distillation from a teacher


def margin_mse(scores: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of the margins s_0 − s_n against the teacher's (Hofstätter et al. 2020).

    scores, teacher (B, N), the positive in column 0. Margins with a NaN score of the teacher are left out.
    """
    margins, targets = (_full(x)[:, :1] - _full(x)[:, 1:] for x in (scores, teacher))  # (B, N − 1)
    known = ~targets.isnan()
    return _mean((margins - targets)[known].square(), known.sum())


def kl_distillation(scores: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(scores / T)), mean over lists (Hinton et al. 2015; Lin et al. 2020).

    scores, teacher (B, N). Documents with a NaN score of the teacher are left out of both softmaxes; a list with fewer
    than two scored documents is left out.
    """
    known = ~teacher.isnan()
    useful = known.sum(dim=1) > 1
    scores, teacher, known = scores[useful], teacher[useful], known[useful]
    student = _log_softmax(_full(scores) / temperature, known)
    target = _log_softmax(_full(teacher) / temperature, known)
    return temperature**2 * _mean(target.exp() * (target - student), useful.sum())


def _log_softmax(x: Tensor, keep: Tensor) -> Tensor:
    """Log-softmax over the kept entries; the others get a finite logarithm, so that 0 times it stays 0."""
    return x.masked_fill(~keep, -1e9).log_softmax(dim=1)


# -- lists of graded documents: scores, grades (B, N); mask (B, N), true for documents, false for padding


def pointwise(scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of logits, mean over documents; target: grade / highest grade in the batch."""
    targets = grades / (grades * mask).max().clamp(min=1)
    losses = nn.functional.binary_cross_entropy_with_logits(_full(scores), _full(targets), reduction="none")
    return _mean(losses[mask], mask.sum())


def listwise_softmax(scores: Tensor, grades: Tensor, mask: Tensor) -> Tensor:
    """−Σ_n t_n log softmax(s)_n, t = grades / Σ grades, mean over lists with a positive (Cao et al. 2007, ListNet)."""
    grades = grades * mask
    useful = grades.sum(dim=1) > 0
    scores, grades, mask = scores[useful], grades[useful], mask[useful]
    target = grades / grades.sum(dim=1, keepdim=True)
    return _mean(-target * _log_softmax(_full(scores), mask), useful.sum())


def lambda_loss(scores: Tensor, grades: Tensor, mask: Tensor, *, sigma: float = 1.0, k: int | None = None) -> Tensor:
    """NDCG-Loss2++ of the LambdaLoss framework (Wang et al. 2018), mean over pairs of documents of different grades.

    −w_ij log2 sigmoid(σ (s_i − s_j)) for grade_i > grade_j, with w_ij = (ρ_ij + μ δ_ij) |G_i − G_j|,
    G = (2^grade − 1) / ideal DCG, D(r) = log2(1 + r), ρ_ij = |1/D(r_i) − 1/D(r_j)| by the ranks r of the scores, and
    δ_ij = 1/D(|r_i − r_j|) − 1/D(|r_i − r_j| + 1).

    sigma > 0; k: cutoff of the nDCG, pairs with neither document in the top k are left out; None = no cutoff.
    """
    scores, grades = _full(scores), _full(grades * mask)
    place = torch.arange(1, scores.shape[1] + 1, device=scores.device)  # (N,)
    order = scores.detach().masked_fill(~mask, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1) + 1  # (B, N), 1 = first
    cut = k or scores.shape[1]

    def discount(r: Tensor) -> Tensor:
        return 1 / torch.log2(1.0 + r)

    # 1) The change of nDCG when two documents swap.
    ideal = ((2 ** grades.sort(dim=1, descending=True).values - 1) * discount(place))[:, :cut].sum(dim=1)
    gain = (2**grades - 1) / ideal.clamp(min=1e-10)[:, None]  # (B, N)
    apart = (rank[:, :, None] - rank[:, None, :]).abs().clamp(min=1)  # (B, N, N)
    delta = discount(apart) - discount(apart + 1)
    rho = (discount(rank)[:, :, None] - discount(rank)[:, None, :]).abs()
    weight = (rho + MU * delta) * (gain[:, :, None] - gain[:, None, :]).abs()

    # 2) Pairs (i, j) with a higher grade in i, and at least one of the two within the cutoff.
    pairs = (grades[:, :, None] > grades[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    pairs &= (rank <= cut)[:, :, None] | (rank <= cut)[:, None, :]
    losses = weight * nn.functional.logsigmoid(sigma * (scores[:, :, None] - scores[:, None, :]))
    return _mean(-losses[pairs] / math.log(2), pairs.sum())
