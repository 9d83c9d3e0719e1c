"""The world of a simulation: arms are asked once, one arm learns, and quality is the funnel's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltrr.data.beir import open_dataset
from ltrr.fusion import ReciprocalRankFusion
from ltrr.metrics import evaluate, to_run
from ltrr.protocols import Encoder
from ltrr.simulation.worlds import CachedArm, World, shown_by
from ltrr.types import Candidates, Context, Query

QUERIES = [Query(f"q{i}", f"words {i}") for i in range(8)]


class FakeEncoder:
    """Counts the texts that it encodes."""

    id = "fake"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts, *, is_query: bool = False) -> np.ndarray:
        self.texts += texts
        return np.ones((len(texts), 2), np.float32)


class Fake:
    """An arm that returns the same documents to everybody, the learner's in another order."""

    def __init__(self, first: int, encoder: Encoder | None = None) -> None:
        self.first, self.encoder, self.asked = first, encoder, 0

    def search(self, queries, k: int) -> Candidates:
        self.asked += len(queries)
        docs = np.roll(np.arange(40, dtype=np.int32), -self.first)[:k]
        each = [docs] * len(queries), [-np.arange(len(docs), dtype=np.float32)] * len(queries)
        return Candidates.from_lists(*each, k)

    def observe(self, events) -> None: ...


class Parts:
    """Two arms and one that learns."""

    def __init__(self, music: Path) -> None:
        self.dataset, self.encoder = open_dataset(music), FakeEncoder()
        self.arms = {"a": Fake(0), "b": Fake(3)}
        self.specs: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "memory": {}}

    def usable(self) -> list[str]:
        return list(self.specs)

    def arm(self, name: str) -> Fake:
        return self.arms[name]

    def make(self, name: str) -> tuple[Any, Path]:
        return Fake(9, self.encoder), Path()

    def order(self) -> ReciprocalRankFusion:
        return ReciprocalRankFusion()


def test_a_cached_arm_is_asked_once():
    class Counting:
        asked = 0

        def search(self, queries, k: int) -> Candidates:
            self.asked += len(queries)
            docs = np.tile(np.arange(k, dtype=np.int32), (len(queries), 1)) + int(queries[0].id[1:])
            return Candidates(docs, np.zeros(docs.shape, np.float32))

    arm = Counting()
    cached = CachedArm(arm, 6)
    for _ in range(3):
        answer = cached.search([QUERIES[1], QUERIES[2], QUERIES[1]], 4)
    assert arm.asked == 2
    assert answer.docs.shape == (3, 4)
    np.testing.assert_array_equal(answer.docs[0], answer.docs[2])
    with pytest.raises(ValueError, match="k: 7 is more than the 6"):
        cached.search(QUERIES, 7)


def test_a_personalised_arm_is_asked_for_each_customer() -> None:
    class Personal(Fake):
        def customers(self) -> list[str]:
            return ["ann"]

    people = [Query("q", "x", Context(customer)) for customer in ("ann", "bob", "ann")]
    for arm, times in ((Personal(0), 2), (Fake(0), 1)):
        CachedArm(arm, 5).search(people, 5)
        assert arm.asked == times


def test_quality_is_that_of_the_pages_and_static_arms_are_asked_once(music: Path) -> None:
    parts = Parts(music)
    world = World(parts, "memory")
    assert list(world.static) == ["a", "b"]
    funnel = world.funnel(world.learner())
    first, again = (world.quality(shown_by(funnel)) for _ in range(2))
    assert parts.arms["a"].asked == len({(q.text, q.context.locale) for q in world.test})
    shown = funnel.search(world.test, 11).shown
    expected = evaluate(to_run([q.id for q in world.test], shown, world.corpus.ids), world.test_qrels, ("nDCG@10",))
    np.testing.assert_array_equal(first["nDCG@10"], expected.of("nDCG@10"))
    np.testing.assert_array_equal(first["R@10"], again["R@10"])
    assert len(world.measured) == len(first["R@10"])


def test_a_learner_that_is_off_changes_nothing(music: Path) -> None:
    world = World(Parts(music), "memory", without=["b"])
    off = world.funnel(world.learner(), depth=0).search(world.test[:3], 5).shown.docs
    np.testing.assert_array_equal(off, world.static["a"].search(world.test[:3], 5).docs)
    assert (world.funnel(world.learner()).search(world.test[:3], 5).shown.docs != off).any()


def test_learners_share_one_cache_of_texts(music: Path) -> None:
    parts = Parts(music)
    world = World(parts, "memory")
    for _ in range(2):
        encoder = world.learner().encoder
        assert encoder is not None
        encoder.encode(["x", "y"], is_query=True)
    assert parts.encoder.texts == ["x", "y"]
    assert world.learner(encode=False).encoder is None


def test_who_asks_again_knows_the_title_of_the_best_document(music: Path) -> None:
    world = World(Parts(music), "memory")
    titles = world.titles()
    assert set(titles) == set(world.train_qrels)
    query, grades = next(iter(world.train_qrels.items()))
    assert titles[query] == world.corpus[world.corpus.row(max(grades, key=lambda doc: grades[doc]))].title


def test_an_unknown_arm_is_named(music: Path) -> None:
    with pytest.raises(ValueError, match="no arm 'memori'"):
        World(Parts(music), "memori")
