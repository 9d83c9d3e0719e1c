"""Returns what worked before: the candidates of remembered queries, scored by how likely each is to be a success.

Knows how evidence becomes a score: predictions first, replaced by what customers do. Does not know events, sessions,
trust or how queries are compared (`ltrr.feedback.evidence`), or who searches the rest. Everything learned counts in the
next search. Legend: Q queries, K candidates, P pairs of a remembered query and a candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltrr.data.beir import Corpus
from ltrr.data.expansions import expansion_id, predictions
from ltrr.feedback.events import Action, Impression
from ltrr.feedback.evidence.evidence import MEANING, Evidence
from ltrr.protocols import Encoder
from ltrr.types import ActionRow, Candidates, ImpressionRow, Query

_BATCH = 1024  # queries whose evidence is in memory at once
_CERTAIN = 1 - 1e-6  # the most that one score counts beside others


class Memory:
    """The memory index (query-to-entity scores).

    Args:
        corpus: gives each entity its row.
        encoder: for remembered queries of similar meaning; null = by words alone.
        expansion: folder of generated queries (scripts/expand.py), whose likelihoods are the predicted scores; or null.
        strength: of a prediction, in trials.
        predicted: score of a query that the generator was certain of, 0 to 1; others have p^(1 / tokens) of it.
        distinct: customers with a success that a pair needs before it reaches others.
        cap: the most trials of one customer that count for one pair.
        budget: the most trials of one customer, decayed, that count for others in all.
        half_life: days after which evidence counts half.
        credit: part of a click's worth that goes to the query that it reformulates.
        examination: probability that a customer looks at each position; null = 1 / rank.
        reward: what actions are worth (`Reward.configured`); null = its defaults.
        neighbours: remembered queries that are looked up for each query, 0 = none but itself.
        alike: similarity in [0, 1] that those need.
        sharpness: a neighbour's scores count similarity to this power; 0 = as the query's own.
        sources: whether evidence is kept by arm, too, for policies that read it; replays take half as long again.
    """

    source_kind = "memory"
    probabilities = True  # its scores are, so fusion adds them as they are

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder | None = None,
        *,
        expansion: str | None = None,
        strength: float = 2.0,
        predicted: float = 0.5,
        distinct: int = 3,
        cap: float = 3.0,
        budget: float = 300.0,
        half_life: float = 90.0,
        credit: float = 0.5,
        examination: Sequence[float] | None = None,
        reward: Mapping[str, Any] | None = None,
        neighbours: int = 20,
        alike: float = 0.5,
        sharpness: float = 8.0,
        sources: bool = False,
    ) -> None:
        for name, value, good, fix in (
            ("strength", strength, strength > 0, "above 0"),
            ("predicted", predicted, 0 <= predicted <= 1, "within 0 and 1"),
            ("sharpness", sharpness, sharpness >= 0, "at least 0"),
        ):
            if not good:
                raise ValueError(f"arms.memory.{name}: {value} is not {fix}")
        self._strength, self._sharpness = strength, sharpness
        self.rows = {entity: row for row, entity in enumerate(corpus.ids)}
        try:
            self.evidence = Evidence(
                self.rows, (document.title for document in corpus), encoder, distinct=distinct, cap=cap, budget=budget,
                half_life=half_life, credit=credit, examination=examination, reward=reward, neighbours=neighbours,
                alike=alike, sources=sources,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"arms.memory.{error}") from error
        if expansion is not None:
            self.evidence.predict(*predictions(expansion, corpus, predicted))

    @staticmethod
    def content(arguments: dict[str, Any]) -> list[str]:
        """Checksums of the files that these constructor arguments name, for the keys of caches."""
        return [expansion_id(folder)] if (folder := arguments.get("expansion")) else []

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k) entities with a score above 0: a noisy-OR over an entity's remembered scores.

        Each score is weighted by `similarity ** sharpness` of its query.
        """
        docs: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            asked, rows, similarity, kind, counts = self.evidence.recall(batch)
            # By meaning without predictions: only queries with a success are found so, and those may be private.
            one = counts.mean(self._strength, predicted=kind < MEANING) * similarity**self._sharpness  # (P,)
            keys, places = np.unique(asked << 32 | rows, return_inverse=True)
            failure = np.bincount(places, np.log1p(-np.minimum(one, _CERTAIN)), len(keys))  # log P(no score is right)
            score = -np.expm1(failure)
            keys, score = keys[score > 0], score[score > 0].astype(np.float32)
            ends = np.searchsorted(keys >> 32, np.arange(1, len(batch)))
            docs += np.split(keys & 0xFFFFFFFF, ends)
            scores += np.split(score, ends)
        return Candidates.from_lists(docs, scores, k).first(k)

    def observed(self) -> list[tuple[int, str, float]]:
        """(row, query, observed score) of pairs that enough customers agree on: queries for other arms' fields."""
        rows, texts, counts = self.evidence.agreed()
        return list(zip(rows.tolist(), texts, counts.mean(self._strength, 0.0).tolist(), strict=True))

    def __len__(self) -> int:
        """Remembered pairs."""
        return len(self.evidence)

    # -- learning is the evidence's

    @property
    def encoder(self) -> Encoder | None:
        """Compares queries by meaning."""
        return self.evidence.encoder

    @encoder.setter
    def encoder(self, encoder: Encoder | None) -> None:
        self.evidence.encoder = encoder

    def observe(self, events: Iterable[Impression | Action]) -> None:
        """Learns from events; known ones change nothing."""
        self.evidence.observe(events)

    @property
    def sources(self) -> bool:
        """Whether it wants to know which arms returned each shown candidate."""
        return self.evidence.sources

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None:
        """Learns from the rows of an event store; known ones change nothing."""
        self.evidence.take(impressions, actions)

    def customers(self) -> list[str]:
        """Names of known customers."""
        return self.evidence.customers()

    def erase(self, customer: str) -> None:
        """Takes back all evidence of a customer."""
        self.evidence.erase(customer)

    def compact(self) -> None:
        """Drops evidence that has decayed."""
        self.evidence.compact()

    def save(self, path: Path) -> None:
        """Writes all evidence to one file without objects, whole or not at all."""
        self.evidence.save(path)

    def load(self, path: Path) -> None:
        """Continues from what `save` wrote; predictions are this arm's own."""
        self.evidence.load(path)
