"""The world of a simulation: judged queries, arms that feedback does not change, and one arm that learns from it.

Knows opened arms, a fused order and a data set; does not know configs or customers. Legend: Q queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ltrr.data.beir import Dataset
from ltrr.encoders.cached import CachedEncoder
from ltrr.feedback.events import Action, Impression
from ltrr.funnel import Funnel
from ltrr.metrics import drop_self, evaluate, to_run
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import Arm, Encoder, Personalised, Ranker, offers
from ltrr.types import Candidates, Query, Run

MEASURES = ("nDCG@10", "R@10")
DEPTH, BATCH, PAGE = 100, 250, 10  # candidates of an arm; queries searched at once; length of a page
Search = Callable[[Sequence[Query], int], Candidates]


class Parts(Protocol):
    """The parts of one data set that a world needs; `ltrr.system.System` is one."""

    dataset: Dataset
    specs: dict[str, dict[str, Any]]

    def usable(self) -> list[str]: ...

    def arm(self, name: str) -> Arm: ...

    def make(self, name: str) -> tuple[Any, Path]: ...

    def order(self) -> Ranker: ...


class LearningArm(Arm, Protocol):
    """An arm that learns from events as they come."""

    encoder: Encoder | None  # of its queries; None = it compares words alone

    def observe(self, events: Iterable[Impression | Action]) -> None: ...


class CachedArm:
    """An Arm that asks another once for each text and locale, for arms that no feedback changes.

    A `Personalised` arm is asked once for each customer, too.
    """

    def __init__(self, arm: Arm, k: int) -> None:
        self._arm, self._k, self._personal = arm, k, offers(arm, Personalised) is not None
        self._answers: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k); ValueError where k is above the number of candidates that are kept."""
        if k > self._k:
            raise ValueError(f"k: {k} is more than the {self._k} that are kept")
        keys = [(q.text, q.context.customer if self._personal else None, q.context.locale) for q in queries]
        new = {key: query for key, query in zip(keys, queries, strict=True) if key not in self._answers}
        if new:
            answers = self._arm.search(list(new.values()), self._k)
            self._answers |= {key: (answers.docs[i], answers.scores[i]) for i, key in enumerate(new)}
        docs, scores = (np.stack([self._answers[key][part] for key in keys]) for part in (0, 1))
        return Candidates(docs[:, :k], scores[:, :k])


class World:
    """Arms, of which one learns, and queries: customers ask train queries, and `split` measures quality.

    Args:
        parts: opened arms, their order and the data set.
        learning: name of the arm that learns.
        split: queries on which quality is measured.
        without: arms that take no part.

    Errors: ValueError where there is no arm of the name `learning`.
    """

    def __init__(self, parts: Parts, learning: str, split: str = "test", without: Sequence[str] = ()) -> None:
        if learning not in parts.specs:
            raise ValueError(f"arms: there is no arm {learning!r} to teach; see configs/memory.yaml")
        self.learning, self.order, self.corpus = learning, parts.order(), parts.dataset.corpus
        names = [name for name in parts.usable() if name not in (learning, *without)]
        self.static: dict[str, Arm] = {name: CachedArm(parts.arm(name), DEPTH) for name in names}
        self._make, self._encoder = parts.make, None
        self.train, self.train_qrels = parts.dataset.split("train")
        self.test, qrels = parts.dataset.split(split)
        self.test_qrels = {query.id: qrels[query.id] for query in self.test}  # in the order of the queries
        self.measured = [query for query in self.test if max(qrels[query.id].values(), default=0) > 0]

    def learner(self, *, encode: bool = True) -> LearningArm:
        """A new learning arm that knows its predictions alone; all of them share one cache of encoded texts.

        encode: whether it compares queries by meaning, too; without, it is faster.
        """
        arm: LearningArm = self._make(self.learning)[0]
        if not encode:
            arm.encoder = None
        elif arm.encoder is not None:
            arm.encoder = self._encoder = self._encoder or CachedEncoder(arm.encoder)
        return arm

    def funnel(self, learner: Arm, *, depth: int = DEPTH, static: Mapping[str, Arm] | None = None) -> Funnel:
        """A funnel of the static arms, or of `static` in their place, and a learner; depth 0 switches that off."""
        arms = {**(self.static if static is None else static), self.learning: learner}
        depths = dict.fromkeys(arms, DEPTH) | {self.learning: depth}
        return Funnel(arms, FixedPolicy(list(arms), depths, DEPTH), self.order)

    def titles(self) -> dict[str, str]:
        """Train query -> title of the document that it wants most: the words of a customer who asks again."""
        best = {q: max(grades, key=lambda doc: (grades[doc], doc)) for q, grades in self.train_qrels.items() if grades}
        return {q: self.corpus[self.corpus.row(doc)].title for q, doc in best.items()}

    def run(self, search: Search, queries: Sequence[Query]) -> Run:
        """The run of a search, ten or eleven results a query: one of eleven may be the query itself and is dropped."""
        run: Run = {}
        for start in range(0, len(queries), BATCH):
            batch = queries[start : start + BATCH]
            run |= drop_self(to_run([q.id for q in batch], search(batch, PAGE + 1), self.corpus.ids))
        return run

    def quality(self, search: Search) -> dict[str, np.ndarray]:
        """Measure -> (Q,) of the queries `measured`."""
        per_query = evaluate(self.run(search, self.test), self.test_qrels, MEASURES)
        return {measure: per_query.of(measure) for measure in MEASURES}


def shown_by(funnel: Funnel) -> Search:
    """A funnel's pages as a search for candidates."""
    return lambda queries, k: funnel.search(queries, k).shown
