"""Word similarity is a weighted Jaccard coefficient; vectors are those of the encoder, asked once for each text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ltrr.feedback.evidence import lookup
from ltrr.feedback.evidence.lookup import VectorIndex, WordIndex, WordWeights

TITLES = ["love song", "night song", "river song", "golden river"]


def everything(queries: np.ndarray) -> np.ndarray:
    return np.ones(len(queries), bool)


def test_similarity_is_weighted_jaccard():
    texts = ["love song", "song", "golden river", "unheard song", "love love song"]
    index = WordIndex(WordWeights(TITLES))
    index.update(texts[:2])
    index.update(texts)
    weight = {word: math.log(1 + 4 / (1 + n)) for word, n in {"love": 1, "song": 3, "unheard": 0}.items()}
    found = dict(zip(*map(np.ndarray.tolist, index.like("love song", everything)), strict=True))
    assert found == pytest.approx(
        {
            0: 1.0,
            1: weight["song"] / (weight["love"] + weight["song"]),
            3: weight["song"] / sum(weight.values()),
            4: 1.0,
        }
    )
    hidden, _ = index.like("love song", lambda queries: queries != 0)
    assert hidden.tolist() == [1, 3, 4]
    assert len(index.like("nothing", everything)[0]) == 0


def test_frequent_words_bring_nothing_where_rarer_ones_brought_enough(monkeypatch):
    monkeypatch.setattr(lookup, "_SCANNED", 3)
    index = WordIndex(WordWeights(TITLES))
    index.update(["love song", *(f"song {n}" for n in range(5))])
    assert index.like("love song", everything)[0].tolist() == [0]
    assert len(index.like("song", everything)[0]) == 6


class Encoder:
    id = "lengths"
    asked = 0

    def encode(self, texts, *, is_query: bool = False) -> np.ndarray:
        self.asked += len(texts)
        return np.array([[len(text), 1] for text in texts], np.float32)


def test_vectors_follow_the_remembered_queries(monkeypatch):
    encoder, index = Encoder(), VectorIndex()
    assert index.update(encoder, ["a"], []) is None  # nothing to compare it with
    assert encoder.asked == 0
    for cached in (50_000, 2):
        monkeypatch.setattr(lookup, "_CACHED", cached)
        vectors = index.update(encoder, ["a", "bb"], ["ccc", "a"])
        assert vectors is not None
        np.testing.assert_array_equal(vectors, [[1, 1], [2, 1]])
        np.testing.assert_array_equal(index.similarities(vectors)[:, -2:], [[4, 2], [7, 3]])
    assert len(index) == 4
