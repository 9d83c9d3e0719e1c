"""Candidates: their order, their padding and their cuts, against sorting one row at a time."""

import numpy as np
import pytest

from ltrr.types import Candidates, Decision, Page, top_k


def slow_top_k(docs: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row by `sorted`: score descending, row ascending, pads last."""
    out_docs, out_scores = [], []
    for row, values in zip(docs.tolist(), scores.tolist(), strict=True):
        found = sorted((-s, d) for d, s in zip(row, values, strict=True) if d >= 0)[:k]
        pad = k - len(found)
        out_docs.append([d for _, d in found] + [-1] * pad)
        out_scores.append([-s for s, _ in found] + [-np.inf] * pad)
    return np.array(out_docs, np.int32).reshape(-1, k), np.array(out_scores, np.float32).reshape(-1, k)


def random_rows(rng: np.random.Generator, num_queries: int, width: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, W) unique rows a query with scores of few levels (many ties), a random share of them padding."""
    docs = np.stack([rng.permutation(width * 3)[:width] for _ in range(num_queries)]).astype(np.int32)
    scores = rng.integers(-levels, levels + 1, docs.shape).astype(np.float32)
    pad = rng.random(docs.shape) < rng.random((num_queries, 1))
    return np.where(pad, -1, docs), np.where(pad, -np.inf, scores).astype(np.float32)


# 3 and 7: sorted whole; 60 and 200: partitioned first (wider than 4k), with a tie at the k-th score; 0: nothing
@pytest.mark.parametrize("levels", [1, 5, 1000])
@pytest.mark.parametrize("width", [0, 3, 7, 60, 200])
def test_top_k_is_sorted(width: int, levels: int) -> None:
    rng = np.random.default_rng(width + levels)
    for k in (1, 5, 12):
        docs, scores = random_rows(rng, 40, width, levels)
        found = top_k(docs, scores, k)
        expected = slow_top_k(docs, scores, k)
        np.testing.assert_array_equal(found.docs, expected[0])
        np.testing.assert_array_equal(found.scores, expected[1])
        assert (found.docs.dtype, found.scores.dtype) == (np.int32, np.float32)


def test_top_k_partitions_without_losing_a_tie() -> None:
    # 50 documents tie at the k-th score: the partition may keep any of them, the answer has the lowest rows.
    docs = np.arange(100, dtype=np.int32)[None, ::-1].copy()
    scores = np.where(docs < 50, 1.0, 0.0).astype(np.float32)
    scores[docs == 99] = 2.0
    np.testing.assert_array_equal(top_k(docs, scores, 4).docs, [[99, 0, 1, 2]])


def test_pads_come_after_a_document_whatever_its_score() -> None:
    found = top_k(np.array([[-1, 4, -1]], np.int32), np.full((1, 3), -np.inf, np.float32), 2)
    np.testing.assert_array_equal(found.docs, [[4, -1]])


@pytest.mark.parametrize("k", [1, 4, 30])
def test_from_lists_is_sorted(k: int) -> None:
    rng = np.random.default_rng(k)
    lengths = [0, 1, 3, 50, 0, 200]
    docs = [rng.permutation(500)[:n].astype(np.int32) for n in lengths]
    scores = [rng.integers(0, 4, n).astype(np.float32) for n in lengths]
    found = Candidates.from_lists(docs, scores, k)
    for i, (rows, values) in enumerate(zip(docs, scores, strict=True)):
        expected = slow_top_k(rows[None], values[None], k)
        np.testing.assert_array_equal(found.docs[i], expected[0][0])
        np.testing.assert_array_equal(found.scores[i], expected[1][0])


def test_nothing_found_is_padding() -> None:
    for found in (Candidates.empty(2, 3), Candidates.from_lists([np.empty(0)] * 2, [np.empty(0)] * 2, 3)):
        assert (found.docs == np.full((2, 3), -1)).all()
        assert np.isneginf(found.scores).all()
        assert found.scores.shape == (2, 3)
    assert Candidates.from_lists([], [], 3).docs.shape == (0, 3)


def test_cut_keeps_the_first_of_each_query() -> None:
    found = Candidates.from_lists([np.arange(6), np.arange(2), np.arange(6)], [np.arange(6), np.ones(2), np.ones(6)], 5)
    cut = found.cut(np.array([2, 4, 0]))
    np.testing.assert_array_equal(cut.docs, [[5, 4, -1, -1], [0, 1, -1, -1], [-1, -1, -1, -1]])
    np.testing.assert_array_equal(np.isneginf(cut.scores), cut.docs < 0)
    np.testing.assert_array_equal(cut.scores[0, :2], [5, 4])
    assert found.cut(np.array([9, 9, 9])).docs.shape == (3, 5)  # deeper than K: as it was
    assert found.cut(np.zeros(3, int)).docs.shape == (3, 0)


def test_returned_by_names_the_arms_with_a_rank() -> None:
    ranks = np.array([[[0, np.nan, 2], [np.nan, np.nan, np.nan]]], np.float32)  # (Q, k, A)
    decision = Decision(np.ones((1, 3), np.int32), np.ones(1, np.int32), np.ones(1), np.ones((1, 4)))
    page = Page(["i"], [], np.zeros((1, 0)), decision, Candidates.empty(1, 2), ("a", "b", "c"), ranks)
    assert page.returned_by(0, 0) == ["a", "c"]  # rank 0 is the first, not "none"
    assert page.returned_by(0, 1) == []
