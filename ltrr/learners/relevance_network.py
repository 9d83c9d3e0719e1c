"""Reads each candidate of the fused order together with its query, with the same weights at every rank.

Knows columns of numbers; knows nothing about clicks or decisions.
Legend: Q queries, M candidates looked at, F columns of the query, C of a candidate, D hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltrr.policies.features import LIMIT, Standard


class Columns(nn.Module):
    """Standardises logged columns (..., F); unknown values (NaN) become the mean."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, standard: Standard) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(standard.mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(standard.deviation, dtype=torch.float32))

    def forward(self, values: Tensor) -> Tensor:
        return ((values - self.mean) / self.deviation).nan_to_num(0.0).clamp(-LIMIT, LIMIT)


class RelevanceNetwork(nn.Module):
    """Maps query (Q, F) and candidates (Q, M, C) to logits of relevance (Q, M) and hidden units (Q, M, D)."""

    def __init__(self, query: Standard, candidate: Standard, num: int, hidden: int, dropout: float) -> None:
        super().__init__()
        first = nn.Linear(len(query.mean), hidden), nn.GELU(), nn.Dropout(dropout)
        self.query = nn.Sequential(Columns(query), *first, nn.Linear(hidden, hidden), nn.GELU())
        self.candidate = nn.Sequential(Columns(candidate), nn.Linear(len(candidate.mean), hidden), nn.GELU())
        self.joint = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden, hidden), nn.GELU())
        self.out = nn.Linear(hidden, 1)
        self.rank = nn.Parameter(-2.0 - 0.05 * torch.arange(num))  # (M,) deeper candidates are rarely relevant

    def forward(self, query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        beside = self.query(query)[:, None].expand(-1, candidates.shape[1], -1)
        hidden = self.joint(torch.cat([self.candidate(candidates), beside], dim=2))
        return self.out(hidden)[:, :, 0] + self.rank, hidden
