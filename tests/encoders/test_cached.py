"""A cached encoder asks once for each text, keeps vectors in a file, and does not trust another model's file."""

from __future__ import annotations

import numpy as np

from ltrr.encoders.cached import CachedEncoder


class Lengths:
    """Encodes a text as its length and whether it is a query."""

    def __init__(self, name: str = "lengths") -> None:
        self.id, self.texts = name, []

    def encode(self, texts, *, is_query: bool = False) -> np.ndarray:
        self.texts += texts
        return np.array([[len(text), is_query] for text in texts], np.float32)


def test_a_text_is_encoded_once_as_a_query_and_once_as_a_document() -> None:
    inner = Lengths()
    cached = CachedEncoder(inner)
    for _ in range(2):
        np.testing.assert_array_equal(cached.encode(["a", "bb", "a"]), [[1, 0], [2, 0], [1, 0]])
        np.testing.assert_array_equal(cached.encode(["a"], is_query=True), [[1, 1]])
    assert inner.texts == ["a", "bb", "a"]
    assert cached.id == "lengths"


def test_a_file_serves_later_runs_of_the_same_model(tmp_path) -> None:
    path = tmp_path / "new" / "texts.npz"
    CachedEncoder(Lengths(), path).encode(["a", "bb"])
    later, other = Lengths(), Lengths("other")
    np.testing.assert_array_equal(CachedEncoder(later, path).encode(["bb", "ccc"]), [[2, 0], [3, 0]])
    assert later.texts == ["ccc"]
    CachedEncoder(other, path).encode(["bb"])
    assert other.texts == ["bb"]
