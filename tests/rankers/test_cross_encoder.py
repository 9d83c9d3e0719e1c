"""The cross-encoder ranker over fakes: what is scored, how it is mixed, and what stays where it was."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.data.beir import Corpus, Document
from ltrr.metrics import evaluate, to_run
from ltrr.rankers.cross_encoder import GRID, CrossEncoderRanker, fit_weight, interpolate
from ltrr.types import Candidates, Pool, Query, top_k

NUM_DOCUMENTS, Q, K = 40, 6, 12
CORPUS = Corpus.from_documents(
    [
        Document(f"d{i}", f"title {i}", f"body {i}", {"artist": [f"artist {i}"], "year": i})
        for i in range(NUM_DOCUMENTS)
    ],
)
QUERIES = [Query(f"q{i}", f"query {i}") for i in range(Q)]


class Taste:
    """Likes a document by a fixed number for the pair; remembers what it read."""

    id = "taste"

    def __init__(self, seed: int = 0) -> None:
        self.likes = np.random.default_rng(seed).normal(size=(Q, NUM_DOCUMENTS))
        self.read: list[tuple[str, str]] = []

    def score(self, queries, documents):
        self.read += zip(queries, documents, strict=True)
        return np.array([self.of(q, d) for q, d in zip(queries, documents, strict=True)], np.float32)

    def of(self, query: str, document: str) -> float:
        return self.likes[int(query.split()[1]), int(document.split()[1])]


class FusedByFirstArm:
    """A Ranker: the pool by the first arm's scores."""

    def rank(self, queries, pool):
        return top_k(pool.docs, np.where(pool.docs >= 0, pool.scores[:, :, 0], -np.inf), pool.docs.shape[1])


def pool_of(num_candidates: list[int], seed: int = 1) -> Pool:
    """Pools of that many candidates in no particular order, padded to K."""
    rng = np.random.default_rng(seed)
    docs, scores = np.full((Q, K), -1, np.int32), np.full((Q, K, 1), np.nan, np.float32)
    for i, n in enumerate(num_candidates):
        docs[i, :n], scores[i, :n, 0] = rng.permutation(NUM_DOCUMENTS)[:n], 5 + rng.normal(size=n)
    return Pool(("arm",), docs, scores * 0, scores)


POOL = pool_of([12, 9, 5, 1, 0, 7])
FUSED = FusedByFirstArm().rank(QUERIES, POOL)


def ranker(scorer: Taste, **options) -> CrossEncoderRanker:
    return CrossEncoderRanker(scorer, CORPUS, FusedByFirstArm(), **options)


def is_sorted(found: Candidates) -> bool:
    """By score descending, ties by row, pads last with −inf."""
    real = found.docs >= 0
    keys = [
        [(-s, d if d >= 0 else 1 << 40) for s, d in zip(*row, strict=True)]
        for row in zip(found.scores, found.docs, strict=True)
    ]
    return all(k == sorted(k) for k in keys) and (np.isfinite(found.scores) == real).all()


@pytest.mark.parametrize("depth", [1, 4, 100])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_every_candidate_comes_back_once_in_order(depth, weight):
    found = ranker(Taste(), depth=depth, weight=weight).rank(QUERIES, POOL)
    assert found.docs.shape == POOL.docs.shape
    assert found.docs.dtype == np.int32
    assert found.scores.dtype == np.float32
    assert is_sorted(found)
    np.testing.assert_array_equal(np.sort(found.docs, axis=1), np.sort(POOL.docs, axis=1))


def test_only_the_best_of_the_fused_order_are_read_and_each_text_is_whole():
    taste = Taste()
    found = ranker(taste, depth=4).rank(QUERIES, POOL)
    expected = [
        (QUERIES[i].text, f"title {row} body {row} artist {row}")  # words of the metadata, no numbers
        for i in range(Q)
        for row in FUSED.docs[i, :4].tolist()
        if row >= 0
    ]
    assert sorted(taste.read) == sorted(expected)
    np.testing.assert_array_equal(np.sort(found.docs[:, :4], axis=1), np.sort(FUSED.docs[:, :4], axis=1))
    np.testing.assert_array_equal(found.docs[:, 4:], FUSED.docs[:, 4:])  # beyond the depth nothing moves


def test_text_fields_choose_what_is_read():
    taste = Taste()
    ranker(taste, text_fields=[]).rank(QUERIES, POOL)
    assert {document.split(" body ")[1].isdigit() for _, document in taste.read} == {True}
    with pytest.raises(ValueError, match="text_fields: no field 'colour'"):
        ranker(taste, text_fields=["colour"])


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_order_without_the_fused_scores_comes_for_the_price_of_one(weight):
    taste = Taste()
    mixed, alone = ranker(taste, depth=4, weight=weight).rank_and_alone(QUERIES, POOL)
    read = len(taste.read)
    for found, same in ((mixed, weight), (alone, 1.0)):
        np.testing.assert_array_equal(found.docs, ranker(Taste(), depth=4, weight=same).rank(QUERIES, POOL).docs)
    taste.read.clear()
    ranker(taste, depth=4).rank(QUERIES, POOL)
    assert read == len(taste.read)


def test_weight_0_is_the_fused_order_and_1_the_scorer_s():
    np.testing.assert_array_equal(ranker(Taste(), weight=0.0).rank(QUERIES, POOL).docs, FUSED.docs)
    taste = Taste()
    found = ranker(taste, weight=1.0).rank(QUERIES, POOL)
    for i, docs in enumerate(found.docs):
        real = docs[docs >= 0]
        assert real.tolist() == sorted(real.tolist(), key=lambda row, i=i: -taste.likes[i, row])


def test_a_mix_is_the_weighted_sum_of_standard_scores():
    taste, depth, weight = Taste(), 5, 0.3
    found = ranker(taste, depth=depth, weight=weight).rank(QUERIES, POOL)
    for i in range(Q):
        rows = [row for row in FUSED.docs[i, :depth].tolist() if row >= 0]
        if not rows:
            continue
        both = np.array([[taste.likes[i, row] for row in rows], FUSED.scores[i, : len(rows)]], np.float64)
        deviation = both.std(axis=1, keepdims=True)
        z = (both - both.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1)
        expected = dict(zip(rows, weight * z[0] + (1 - weight) * z[1], strict=True))
        for row, score in zip(found.docs[i, : len(rows)].tolist(), found.scores[i], strict=False):
            assert score == pytest.approx(expected[row], abs=1e-5)


def test_scale_and_offset_of_either_score_do_not_matter():
    cross = np.where(FUSED.docs >= 0, np.random.default_rng(3).normal(size=(Q, K)), np.nan)
    moved = FUSED._replace(scores=FUSED.scores * 7 - 100)
    np.testing.assert_array_equal(interpolate(FUSED, cross, 0.4).docs, interpolate(moved, cross * 0.01 + 9, 0.4).docs)


def test_equal_scores_are_ordered_by_row_and_add_nothing():
    equal = np.where(FUSED.docs >= 0, 0.7, np.nan)
    np.testing.assert_array_equal(interpolate(FUSED, equal, 0.6).docs, FUSED.docs)
    tied = interpolate(FUSED, equal, 1.0)
    assert is_sorted(tied)
    assert tied.docs[0].tolist() == sorted(tied.docs[0].tolist())


def test_no_candidates_at_all():
    empty = pool_of([0] * Q)
    taste = Taste()
    assert (ranker(taste).rank(QUERIES, empty).docs == -1).all()
    assert taste.read == []


@pytest.mark.parametrize(("options", "name"), [({"depth": 0}, "ranker.depth"), ({"weight": 1.5}, "ranker.weight")])
def test_settings_that_make_no_sense_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        ranker(Taste(), **options)


# -- the weight


def judged(weight: float, depth: int = 6) -> dict[str, dict[str, int]]:
    """Qrels that say: the best three are those of this mix."""
    wanted = ranker(Taste(), depth=depth, weight=weight).rank(QUERIES, POOL).first(3)
    return {
        query.id: {CORPUS.ids[int(row)]: 3 - place for place, row in enumerate(rows.tolist()) if row >= 0}
        for query, rows in zip(QUERIES, wanted.docs, strict=True)
    }


@pytest.mark.parametrize("truth", [0.0, 0.5, 1.0])
def test_the_weight_that_is_found_is_as_good_as_the_best_of_all(truth):
    qrels, taste = judged(truth), Taste()
    found = ranker(taste, depth=6).tune_on(QUERIES, POOL, qrels)["weight"]
    read = len(taste.read)
    assert read == sum(min(n, 6) for n in (12, 9, 5, 1, 0, 7))  # once, not once a weight

    def quality(weight: float) -> float:
        run = to_run([q.id for q in QUERIES], ranker(taste, depth=6, weight=weight).rank(QUERIES, POOL), CORPUS.ids)
        return evaluate(run, qrels, ["nDCG@10"]).mean()["nDCG@10"]

    assert quality(found) == pytest.approx(max(map(quality, GRID)))
    assert quality(found) == pytest.approx(quality(truth))
    assert quality(0.0) != pytest.approx(quality(1.0))  # so that the weight matters here


def test_of_equally_good_weights_the_most_even_is_taken_and_other_queries_do_not_count():
    fused = Candidates.from_lists([np.array([0, 1])], [np.array([2.0, 1.0])], 2)
    qrels = {"q0": {"d0": 1}, "elsewhere": {"d1": 1}}
    assert fit_weight(fused, np.array([[5.0, 1.0]]), ["q0"], CORPUS.ids, qrels) == 0.5
    with pytest.raises(ValueError, match="no query with a positive"):
        fit_weight(fused, np.array([[5.0, 1.0]]), ["q0"], CORPUS.ids, {"q0": {"d0": 0}})
