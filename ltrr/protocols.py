"""What a part must do, and which further abilities it may have.

A part has one method that it must have: an arm searches, a policy decides, a ranker ranks. Every further ability is a
protocol here, and `offers` is the only place that asks whether a part has one. A part has an ability by having its
methods; it inherits from nothing. Legend: Q queries, K candidates, A arms, F features, R logged rounds, N choices of a
policy, B texts, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from ltrr.types import (
    ActionRow,
    Candidates,
    Decision,
    ImpressionRow,
    Pool,
    Qrels,
    Query,
    RetrievalFeatures,
    Revised,
    Rounds,
    Sparse,
    Worth,
)

Ability = TypeVar("Ability")


def offers(part: object, ability: type[Ability]) -> Ability | None:
    """The part as a provider of this ability; None where it lacks one of the ability's methods.

    Compare with None: a part may have a length, and be empty.
    """
    return part if isinstance(part, ability) else None


# -- parts


@runtime_checkable
class Arm(Protocol):
    """A candidate generator."""

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k) candidates; an arm with nothing to say returns padding."""
        ...


class Policy(Protocol):
    """Decides for a batch of queries which arms run, how deep, and how many candidates are ranked.

    `id` names the policy and its version in logs.
    """

    @property
    def id(self) -> str: ...

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        """Before retrieval; features (Q, F) are those that the policy asked for (`Featured`)."""
        ...


class Ranker(Protocol):
    """Orders a pool."""

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        """(Q, K) candidates, K the width of the pool."""
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


class CutLearner(Protocol):
    """Learns from logged rounds what each cut of the fused order is worth (`ltrr.policies.cut`)."""

    id: str  # of the weights
    columns: tuple[tuple[str, ...], tuple[str, ...]]  # names of a query's features and of a candidate's
    depths: list[int] | None  # to which all arms were drawn in what it learned from; None = not always the same

    @property
    def num(self) -> int:
        """Candidates that it looks at, the deepest cut."""
        ...

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, num) what the first 1 to num candidates are worth, in recall."""
        ...

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """Learns anew from all rounds; the same rounds and seed give the same learner."""
        ...

    def update(self, rounds: Rounds) -> None:
        """Learns from further rounds."""
        ...

    def export(self, folder: Path) -> None:
        """Writes all that `ltrr.learners.exports.load_learner` needs."""
        ...


class LearnedPrior(Protocol):
    """Corrects a belief's calibrated log odds, and trains on the pairs of query and candidate that were shown."""

    id: str  # of the weights
    columns: tuple[tuple[str, ...], tuple[str, ...]]  # names of a query's features and of a candidate's
    depths: list[int] | None  # depth of each arm in the training rounds; None = depths differed
    calibration: tuple[float, ...]  # 4 weights that it starts from

    def inputs(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, M, I) what it reads of each candidate."""
        ...

    def correction(self, inputs: np.ndarray, odds: np.ndarray) -> np.ndarray:
        """(...) log odds to add to calibrated ones (...); inputs (..., I)."""
        ...

    def learn(self, inputs: np.ndarray, odds: np.ndarray, evidence: np.ndarray, seed: int = 0) -> None:
        """Continues training on pairs: inputs (P, I), calibrated log odds (P,), evidence in log odds (P,)."""
        ...


# -- abilities of arms and rankers


@runtime_checkable
class Indexed(Protocol):
    """Searches an index that is built once and opened by many."""

    def build(self, corpus: Any, root: Path) -> None: ...

    def open(self, corpus: Any, root: Path) -> Self: ...


@runtime_checkable
class TunableArm(Protocol):
    """Fits what its arguments leave free on judged queries."""

    def tune(self, corpus: Any, queries: Sequence[Query], qrels: Qrels, given: set[str]) -> dict[str, Any]:
        """Constructor arguments; those in `given` are left as they are."""
        ...


@runtime_checkable
class TunableRanker(Protocol):
    """Fits what its arguments leave free on judged queries and what retrieval brought for them."""

    def tune_on(self, queries: Sequence[Query], pool: Pool, qrels: Qrels) -> dict[str, Any]:
        """Constructor arguments."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """A ranker that mixes its own scores with the fused ones."""

    def rank_and_alone(self, queries: Sequence[Query], pool: Pool) -> tuple[Candidates, Candidates]:
        """(Q, K) as `rank`, and by its own scores alone."""
        ...


@runtime_checkable
class Personalised(Protocol):
    """Returns other candidates to other customers."""

    def customers(self) -> Iterable[str]:
        """Names of the customers that it knows."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """A fused order that weighs arms."""

    weights: Mapping[str, float]  # arm -> weight


@runtime_checkable
class Profiled(Protocol):
    """Knows what customers engaged with."""

    def profile(self, customer: str) -> tuple[np.ndarray, np.ndarray]:
        """Corpus rows and weights; empty for an unknown customer."""
        ...


@runtime_checkable
class Embedding(Protocol):
    """Embeds queries as it searches them."""

    def embed(self, queries: Sequence[Query]) -> np.ndarray:
        """(Q, D) float32."""
        ...


@runtime_checkable
class Learning(Protocol):
    """Learns from an event store's rows, in whatever order they come; the same row twice changes nothing."""

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None: ...

    def customers(self) -> Iterable[str]:
        """Names of the customers from whom it learned."""
        ...

    def erase(self, customer: str) -> None:
        """Takes back what a customer taught."""
        ...

    def compact(self) -> None:
        """Drops what no later event can need."""
        ...

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


@runtime_checkable
class ObservesQueries(Protocol):
    """Remembers the queries with which customers found each document."""

    rows: Mapping[str, int]  # document id -> corpus row

    def observed(self) -> list[tuple[int, str, float]]:
        """(row, query, score) of the pairs that enough customers agree on."""
        ...


@runtime_checkable
class Sourced(Protocol):
    """A learner that may want to know which arms returned each shown candidate."""

    @property
    def sources(self) -> bool: ...


# -- abilities of policies


@runtime_checkable
class Featured(Protocol):
    """Looks at features of query and context before retrieval."""

    @property
    def features(self) -> Callable[[Sequence[Query]], np.ndarray]:
        """Queries to (Q, F) float32, NaN = unknown."""
        ...


@runtime_checkable
class AfterRetrieval(Protocol):
    """Decides anew when it has seen the candidates of the arms that ran, which are paid for."""

    def revise(self, queries: Sequence[Query], features: np.ndarray, pool: Pool, decision: Decision) -> Revised:
        """features (Q, F); pool: the whole union in fused order, which is its last column."""
        ...


@runtime_checkable
class Exploring(Protocol):
    """Explores: some of its decisions are drawn at random."""

    def greedy(self) -> Policy:
        """The same policy without exploring."""
        ...


@runtime_checkable
class Priced(Protocol):
    """Holds budgets on average: a unit of what it spends must bring its price."""

    @property
    def prices(self) -> Mapping[str, float]:
        """Names, as they are logged, and prices."""
        ...

    def find_prices(
        self, queries: Sequence[Query], features: np.ndarray, retrieve: Callable[[Policy], Pool]
    ) -> dict[str, float]:
        """The least prices at which the budgets hold on average over these queries.

        features (Q, F). retrieve: the union, in fused order, of what a policy's arms bring for these queries.
        """
        ...

    def set_prices(self, prices: Mapping[str, float], label: str = "") -> None:
        """Takes what `find_prices` gave. label: tells prices of other budgets, arms or queries apart in logs."""
        ...

    def follow(self, logged: Mapping[str, float]) -> None:
        """From now on prices follow what is spent, from where they were when they were last logged."""
        ...


@runtime_checkable
class Calibrating(Protocol):
    """Fits what its arguments leave free on judged queries and what retrieval brought for them."""

    def calibrate(self, pool: Pool, gains: np.ndarray) -> dict[str, Any]:
        """Constructor arguments; pool in fused order, gains (Q, K) in [0, 1]."""
        ...


@runtime_checkable
class Valuing(Protocol):
    """Holds one budget, of candidates, by what each candidate is worth."""

    @property
    def budget(self) -> float:
        """Mean candidates of a query's page."""
        ...

    def worth(self, queries: Sequence[Query], pool: Pool, features: np.ndarray | None = None) -> Worth:
        """Of the first candidates of a pool in fused order; features as in `decide`, None = worked out where needed."""
        ...

    def set_prices(self, prices: Mapping[str, float], label: str = "") -> None: ...


@runtime_checkable
class PricedFromLog(Protocol):
    """Sets its prices on logged features, where there are no arms to retrieve from."""

    def price_from(self, features: Sequence[Sequence[float]]) -> None:
        """The least prices at which the budgets hold on average over these rounds.

        features: R rows as they were logged, of whatever length. ValueError where no row has this policy's features.
        """
        ...


@runtime_checkable
class Online(Protocol):
    """A policy, or the learner of one, that learns from what was served, event by event."""

    def online(self, store: Any, policy: str) -> Learning | None:
        """What a loop over this event store feeds; None where nothing is to be learned.

        policy: the id of the policy whose pages teach.
        """
        ...


@runtime_checkable
class Reporting(Protocol):
    """Says what it has learned so far, for whoever operates it."""

    def status(self) -> Mapping[str, Any]:
        """Name -> what JSON can hold."""
        ...


@runtime_checkable
class Explaining(Protocol):
    """Says why it decides as it does."""

    def explain(self, query: Query, pool: Pool) -> Mapping[str, np.ndarray]:
        """Column -> (M,) of each candidate, in the policy's order; `row` is the corpus row. pool: of one query."""
        ...


@runtime_checkable
class ComparesQueries(Protocol):
    """Learns from queries that are alike, and is told which are."""

    def compare(self, alike: Mapping[str, Sequence[tuple[str, float]]]) -> None:
        """Normalised text -> the most similar other texts and their similarities."""
        ...


@runtime_checkable
class Refitted(Protocol):
    """Learns from logged rounds."""

    def rounds(self, features: np.ndarray, rows: np.ndarray, cut: np.ndarray, clicks: np.ndarray) -> Rounds:
        """Rounds over U queries from what `revise` returned for them.

        features: (U, F or more). rows: (R,) which of the U each round asked; cut (R,); clicks (R, num).
        """
        ...

    def refit(self, rounds: Rounds, seed: int = 0) -> None: ...

    def update(self, rounds: Rounds) -> None: ...


class Replay(NamedTuple):
    """How likely a policy would have decided as a log says, for off-policy estimation."""

    target: np.ndarray  # (R,) probability of the logged decision, or (R, N) of each choice
    action: np.ndarray | None  # (R,) the logged choice of the N; None where target is (R,)
    propensity: np.ndarray  # (R,) the logger's probability of what `target` is about
    known: np.ndarray  # (R,) bool; False = a decision or features that this policy cannot have had
    cut: np.ndarray  # (R,) candidates that this policy would rank on average
    contexts: np.ndarray | None = None  # (R, D) describes a round to a model of rewards


@runtime_checkable
class Replayable(Protocol):
    """Says how likely it would have decided as another policy's log says."""

    def replay(self, queries: Sequence[Query], features: Sequence[Sequence[float]], decision: Decision) -> Replay:
        """queries: R; features: R rows as they were logged, of whatever length; decision: R logged ones."""
        ...


@runtime_checkable
class Frontier(Protocol):
    """Tells its cuts at other prices without deciding anew."""

    def cuts_at(self, features: np.ndarray, prices: Sequence[float]) -> np.ndarray:
        """(Q, P) cuts without exploring; features (Q, F or more) as `revise` returned them."""
        ...


@runtime_checkable
class Uncertain(Protocol):
    """A learner that knows how sure it is."""

    def deviations(self, known: RetrievalFeatures) -> np.ndarray:
        """(Q, num) posterior deviations of `values`."""
        ...
