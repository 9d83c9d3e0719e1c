"""What a part must do, and what it may do beyond that.

A part has one method that it must have (an arm searches, a policy decides, a ranker ranks). Each further ability is a
protocol here, and callers ask for the protocol. Legend: Q queries, K candidates, A arms, F features, B texts, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ltrr.types import Candidates, Decision, Pool, Query, Sparse


@runtime_checkable
class Arm(Protocol):
    """A candidate generator."""

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k) candidates; an arm with nothing to say returns padding."""
        ...


@runtime_checkable
class Personalised(Protocol):
    """An arm whose candidates depend on the customer."""

    def customers(self) -> Iterable[str]:
        """Names of the customers that it knows."""
        ...


@runtime_checkable
class ObservesQueries(Protocol):
    """An arm that remembers the queries with which customers found each document."""

    rows: Mapping[str, int]  # document id -> corpus row

    def observed(self) -> list[tuple[int, str, float]]:
        """(row, query, score) of the pairs that enough customers agree on."""
        ...


class Encoder(Protocol):
    """Texts to unit vectors. `id` names the weights (name and sha256), so that an index can refuse another's."""

    id: str

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        """(B, D) float32."""
        ...


class SparseEncoder(Protocol):
    """Texts to non-negative weights of terms. `id` names the weights, so that an index can refuse another's."""

    id: str

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Sparse:
        """B rows; terms unique and ascending in a row."""
        ...


class Scorer(Protocol):
    """Reads query and document together. `id` names the weights."""

    id: str

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """(P,) float32 of the pairs (queries[p], documents[p]), finite, higher is better."""
        ...


class Policy(Protocol):
    """Decides for a batch of queries. What it decides by learns from the event store (`ltrr.feedback`)."""

    def decide(self, features: np.ndarray) -> Decision:
        """features (Q, F)."""
        ...


@runtime_checkable
class AfterRetrieval(Protocol):
    """A policy that decides the cut when it has seen what the arms brought; that they ran is paid for."""

    def revise(self, features: np.ndarray, pool: Pool, decision: Decision) -> tuple[np.ndarray, Decision]:
        """All that was looked at, (Q, F or more), and the decision with its own cut.

        features (Q, F); pool: the whole union in fused order, its last column says so.
        """
        ...


class Ranker(Protocol):
    """Orders a pool."""

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        """(Q, K) candidates, K the width of the pool."""
        ...
