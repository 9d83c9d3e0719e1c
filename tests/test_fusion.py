"""Union, scaling and static fusion, against dicts and loops; fitted weights, against synthetic relevance."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from ltrr.fusion import (
    MISSING,
    WINDOW,
    ConvexFusion,
    Norm,
    ReciprocalRankFusion,
    fit_listwise,
    reciprocal_ranks,
    scale,
    take,
    union,
)
from ltrr.types import Candidates, Pool, Query

NORMS: tuple[Norm, ...] = ("minmax", "zscore")


def random_arm(rng: np.random.Generator, num_queries: int, k: int, num_docs: int = 40) -> Candidates:
    """(Q, k) unique rows with positive and negative scores; ragged, some queries empty."""
    lengths = rng.integers(0, min(k, num_docs) + 1, num_queries)
    docs = [rng.permutation(num_docs)[:n].astype(np.int32) for n in lengths]
    return Candidates.from_lists(docs, [rng.normal(size=n).round(1) for n in lengths], k)


def arms_of(seed: int, num_queries: int = 30) -> dict[str, Candidates]:
    rng = np.random.default_rng(seed)
    return {name: random_arm(rng, num_queries, k) for name, k in (("a", 5), ("b", 12), ("c", 1))}


def one_query(**arms: list[tuple[int, float]]) -> Pool:
    """A pool of one query from (row, score) lists."""
    found = {
        name: Candidates.from_lists([np.array([d for d, _ in pairs], np.int32)], [np.array([s for _, s in pairs])], 500)
        for name, pairs in arms.items()
    }
    return union(found)


def by_doc(pool: Pool, values: np.ndarray, query: int = 0) -> dict[int, np.ndarray]:
    """Row -> what a (Q, K, …) array holds of it."""
    return {int(d): v for d, v in zip(pool.docs[query], values[query], strict=True) if d >= 0}


def silence(num_queries: int, k: int = 5) -> dict[str, Candidates]:
    return {"a": Candidates.empty(num_queries, k), "b": Candidates.empty(num_queries, k)}


# The union


@pytest.mark.parametrize("seed", range(5))
def test_union_is_a_dict_of_what_each_arm_said(seed: int) -> None:
    arms = arms_of(seed)
    pool = union(arms)
    widths = []
    for q in range(30):
        expected: dict[int, dict[str, tuple[int, float]]] = {}
        for name, found in arms.items():
            for rank, (doc, score) in enumerate(zip(found.docs[q].tolist(), found.scores[q].tolist(), strict=True)):
                if doc >= 0:
                    expected.setdefault(doc, {})[name] = (rank, score)
        widths.append(len(expected))
        assert [d for d in pool.docs[q].tolist() if d >= 0] == sorted(expected)  # once each, rows ascending
        for column, doc in enumerate(pool.docs[q].tolist()):
            said = expected.get(doc, {})
            for a, name in enumerate(pool.arms):
                rank, score = said.get(name, (np.nan, np.nan))
                np.testing.assert_equal(float(pool.ranks[q, column, a]), rank)
                np.testing.assert_equal(float(pool.scores[q, column, a]), score)
    assert pool.docs.shape == (30, max(widths))
    assert pool.arms == tuple(arms)


def test_union_of_rows_beyond_16_bits() -> None:
    rows = [(2**31 - 1, 3.0), (2**31 - 2, 2.0), (0, 1.0)]  # rows and queries share one 64-bit key: both must come back
    found = Candidates.from_lists([np.array([d for d, _ in rows])] * 3, [np.array([s for _, s in rows])] * 3, 3)
    np.testing.assert_array_equal(union({"a": found}).docs, [[0, 2**31 - 2, 2**31 - 1]] * 3)


@pytest.mark.parametrize("seed", range(3))
def test_take_restricts_and_reorders(seed: int) -> None:
    pool = union(arms_of(seed))
    rng = np.random.default_rng(seed)
    chosen = Candidates.from_lists(
        [rng.permutation(row[row >= 0])[:6] for row in pool.docs],
        [rng.random(min((row >= 0).sum(), 6)) for row in pool.docs],
        6,
    )
    taken = take(pool, chosen)
    np.testing.assert_array_equal(taken.docs, chosen.docs)
    for q in range(30):
        ranks, scores = by_doc(pool, pool.ranks, q), by_doc(pool, pool.scores, q)
        for column, doc in enumerate(chosen.docs[q].tolist()):
            nothing = np.full(3, np.nan)
            np.testing.assert_array_equal(taken.ranks[q, column], ranks.get(doc, nothing))
            np.testing.assert_array_equal(taken.scores[q, column], scores.get(doc, nothing))


def test_take_of_a_whole_unordered_pool_is_the_pool() -> None:
    pool = union(arms_of(1))
    shuffled = take(pool, ReciprocalRankFusion().rank([], pool))  # no longer ascending
    again = take(shuffled, Candidates(pool.docs, np.zeros(pool.docs.shape, np.float32)))
    for found, expected in zip(again, pool, strict=True):
        np.testing.assert_array_equal(found, expected)


# Reciprocal ranks


def test_reciprocal_ranks_are_a_sum_over_arms() -> None:
    pool = union(arms_of(2))
    found = reciprocal_ranks(pool, 60.0)
    for q, column in np.ndindex(pool.docs.shape):
        expected = sum(1 / (60 + 1 + rank) for rank in pool.ranks[q, column].tolist() if not np.isnan(rank))
        assert found[q, column] == pytest.approx(expected)


def test_reciprocal_rank_fusion_prefers_what_two_arms_agree_on() -> None:
    pool = one_query(a=[(7, 9.0), (1, 8.0)], b=[(9, 0.2), (1, 0.1)])
    ranked = ReciprocalRankFusion().rank([Query("q", "")], pool)
    np.testing.assert_array_equal(ranked.docs, [[1, 7, 9]])  # 7 and 9 tie: by row


# Scaling


def test_minmax_by_hand() -> None:
    pool = one_query(a=[(1, 10.0), (2, 6.0), (3, 2.0)], b=[(2, -1.0), (9, -3.0)])
    scaled = by_doc(pool, scale(pool, "minmax"))
    np.testing.assert_allclose(scaled[1], [1, -MISSING], rtol=1e-5)  # b did not return it
    np.testing.assert_allclose(scaled[2], [0.5, 1])
    np.testing.assert_allclose(scaled[3], [0, -MISSING], rtol=1e-5)
    np.testing.assert_allclose(scaled[9], [-MISSING, 0], rtol=1e-5)


def test_zscore_by_hand() -> None:
    values = np.array([10.0, 6.0, 2.0])
    pool = one_query(a=list(enumerate(values.tolist())), b=[(9, 1.0)])
    scaled = by_doc(pool, scale(pool, "zscore"))
    expected = (values - values.mean()) / values.std()
    np.testing.assert_allclose([scaled[i][0] for i in range(3)], expected, atol=1e-6)
    assert scaled[9][0] == pytest.approx(expected.min() - MISSING)  # not returned: just below the arm's last
    assert scaled[9][1] == 1.0  # an arm's only answer stands above what it did not return
    assert scaled[0][1] == pytest.approx(-MISSING)


@pytest.mark.parametrize("norm", NORMS)
def test_scale_ignores_an_arms_units(norm: Norm) -> None:
    rng = np.random.default_rng(0)
    pool = union({name: random_arm(rng, 20, 30) for name in "ab"})
    stretched = pool._replace(scores=(pool.scores * [3.0, 0.5] + [-7.0, 100.0]).astype(np.float32))
    np.testing.assert_allclose(scale(stretched, norm), scale(pool, norm), atol=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_drawing_deeper_does_not_change_the_scale(norm: Norm) -> None:
    rng = np.random.default_rng(1)
    scores = np.sort(rng.gamma(1.0, size=3 * WINDOW))[::-1]
    pairs = list(zip(rng.permutation(1000)[: 3 * WINDOW].tolist(), scores.tolist(), strict=True))
    shallow, deep = one_query(a=pairs[:WINDOW]), one_query(a=pairs)
    at_100, at_300 = by_doc(shallow, scale(shallow, norm)), by_doc(deep, scale(deep, norm))
    for doc, _ in pairs[:WINDOW]:
        np.testing.assert_allclose(at_300[doc], at_100[doc], rtol=1e-6)
    deeper = [at_300[doc][0] for doc, _ in pairs]
    assert deeper == sorted(deeper, reverse=True)  # and what comes after goes on below
    assert deeper[WINDOW - 1] - MISSING < deeper[-1] < deeper[WINDOW - 1]  # so that what is missing is always last


@pytest.mark.parametrize("norm", NORMS)
def test_scale_is_never_nan_and_silent_arms_say_nothing(norm: Norm) -> None:
    arms = arms_of(3) | {"silent": Candidates.empty(30, 4)}
    pool = union(arms)
    scaled = scale(pool, norm)
    assert np.isfinite(scaled).all()
    assert (scaled[:, :, 3] == 0).all()
    for q in range(30):
        for a, found in enumerate(arms.values()):
            if (found.docs[q] < 0).all():
                assert (scaled[q, :, a] == 0).all()
            else:  # what an arm did not return is never above what it did
                said = ~np.isnan(pool.scores[q, :, a])
                assert (scaled[q, ~said, a].max(initial=-np.inf) <= scaled[q, said, a] + 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("score", [0.0, 5.0, -3.0])
def test_equal_scores_do_not_divide_by_zero(norm: Norm, score: float) -> None:
    pool = one_query(a=[(1, score), (2, score)], b=[(3, 1.0), (4, 0.0)])
    scaled = by_doc(pool, scale(pool, norm))
    assert scaled[1][0] == scaled[2][0] == 1.0
    assert scaled[3][0] == scaled[4][0] == pytest.approx(-MISSING)  # a did not return them


@pytest.mark.parametrize("norm", NORMS)
def test_the_first_ten_do_not_depend_on_how_deep_arms_are_drawn(norm: Norm) -> None:
    """Weights fitted at depth 100 are used at depth 1,000, and a service draws 100: the page must be the same."""
    rng = np.random.default_rng(3)
    deep = {}
    for name in "ab":
        docs = np.stack([rng.permutation(5000)[:1000] for _ in range(20)]).astype(np.int32)
        deep[name] = Candidates(docs, -np.sort(-rng.gamma(1.0, size=(20, 1000)), axis=1).astype(np.float32))
    fusion = ConvexFusion({"a": 0.6, "b": 0.4}, norm)
    shallow = {name: found.first(100) for name, found in deep.items()}
    queries = [Query(str(i), "") for i in range(20)]
    at_100, at_1000 = (fusion.rank(queries, union(drawn)).docs[:, :10] for drawn in (shallow, deep))
    np.testing.assert_array_equal(at_100, at_1000)


# Fitted weights


def synthetic(seed: int, weights: list[float], num_queries: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (Q, 8, F), one relevant document a query drawn from the softmax of the weighted sum, a ragged mask."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_queries, 8, len(weights)))
    mask = np.arange(8) < rng.integers(2, 9, num_queries)[:, None]
    logits = np.where(mask, features @ np.array(weights) + rng.gumbel(size=mask.shape), -np.inf)
    grades = np.eye(8)[logits.argmax(axis=1)]
    features[~mask] = 99.0  # what stands in a pad must not matter
    return features, grades, mask


def slow_loss(weights: np.ndarray, features: np.ndarray, grades: np.ndarray, mask: np.ndarray, l2: float) -> float:
    """The listwise loss of the docstring's source, one query at a time."""
    total, count = 0.0, 0
    for x, g, m in zip(features, grades * mask, mask, strict=True):
        if g.sum() > 0:
            logits = x[m] @ weights
            total -= (g[m] / g.sum()) @ (logits - np.log(np.exp(logits).sum()))
            count += 1
    return float(total / count + l2 * (weights**2).sum())


def test_fit_recovers_the_weights_that_made_the_data() -> None:
    weights, loss = fit_listwise(*synthetic(0, [2.0, 0.0, 0.5]))
    np.testing.assert_allclose(weights, [2.0, 0.0, 0.5], atol=0.12)
    assert loss < slow_loss(np.full(3, 0.5), *synthetic(0, [2.0, 0.0, 0.5]), l2=1e-3)


def test_fit_is_a_minimum_of_the_loss_as_written() -> None:
    rng = np.random.default_rng(5)
    features, grades, mask = synthetic(4, [1.0, 0.7], 60)
    features[~mask] = 0.0
    grades = grades * rng.integers(1, 4, (60, 1)) + (rng.random((60, 8)) < 0.1)  # graded, several relevant
    grades[:7] = 0.0  # queries without a positive do not count
    weights, loss = fit_listwise(features, grades, mask, l2=0.05)
    assert loss == pytest.approx(slow_loss(weights, features, grades, mask, 0.05), rel=1e-9)
    assert (weights > 0.01).all()  # inside the bounds, so that the gradient must vanish
    slope: Any = approx_fprime(weights, lambda w: slow_loss(w, features, grades, mask, 0.05), 1e-6)
    np.testing.assert_allclose(slope, 0.0, atol=1e-3)
    free = minimize(slow_loss, np.ones(2), (features, grades, mask, 0.05), bounds=[(0, None)] * 2)  # its own gradient
    np.testing.assert_allclose(weights, free.x, atol=1e-3)


def test_weights_are_never_negative() -> None:
    weights, _ = fit_listwise(*synthetic(1, [1.0, -1.0]))
    assert weights[0] > 0.5
    assert weights[1] == 0.0


def test_fit_refuses_queries_without_a_positive() -> None:
    features, grades, mask = synthetic(2, [1.0], 10)
    with pytest.raises(ValueError, match="no query has a relevant candidate"):
        fit_listwise(features, grades * 0, mask)
    with pytest.raises(ValueError, match="no query has a relevant candidate"):
        fit_listwise(features, grades, mask & False)  # relevant, but nowhere retrieved


def relevance(seed: int, num_queries: int = 300) -> tuple[Mapping[str, Candidates], np.ndarray]:
    """A good arm, a noisy one and one of pure noise over 60 documents; grades (Q, N)."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(num_queries, 60))
    rows = [np.arange(60, dtype=np.int32)] * num_queries
    noise = {"good": 0.5, "fair": 1.5, "random": 1000.0}
    arms = {
        name: Candidates.from_lists(rows, list(truth + level * rng.normal(size=truth.shape)), 30)
        for name, level in noise.items()
    }
    return arms, (truth >= -np.sort(-truth, axis=1)[:, [2]]).astype(float)  # the best 3 are relevant


def precision(ranked: Candidates, grades: np.ndarray) -> float:
    return float(np.take_along_axis(grades, ranked.docs[:, :3], axis=1).mean())


def test_fitted_convex_fusion_beats_equal_weights_on_other_queries() -> None:
    arms, grades = relevance(0)
    pool = union(arms)
    at_pool = np.where(pool.docs >= 0, np.take_along_axis(grades, np.maximum(pool.docs, 0), 1), 0.0)
    fitted, loss = ConvexFusion.fit(pool, at_pool, tuple(arms))
    assert sum(fitted.weights.values()) == pytest.approx(1.0)
    assert fitted.weights["good"] > fitted.weights["fair"] > fitted.weights["random"]
    assert fitted.norm in NORMS
    assert np.isfinite(loss)

    arms, grades = relevance(1)
    pool = union(arms)
    equal = ConvexFusion(dict.fromkeys(arms, 1 / 3), fitted.norm)
    assert precision(fitted.rank([], pool), grades) > precision(equal.rank([], pool), grades) + 0.05


def test_fitted_weights_are_refused_where_one_arm_or_equal_weights_do_better_on_other_queries() -> None:
    rng = np.random.default_rng(0)
    grades = (rng.random((40, 30)) < 0.1).astype(float)
    names = ["good", *(f"noise{i}" for i in range(12))]
    scores = rng.random((40, 30, 13))
    scores[:, :, 0] += 2 * grades
    docs = np.tile(np.arange(30, dtype=np.int32), (40, 1))
    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1).astype(np.float32)
    halves = np.arange(40) % 2 == 1
    many = Pool(tuple(names), docs, ranks, scores.astype(np.float32))
    chosen, why = ConvexFusion.choose(many, grades, ["good", "noise0"], halves)
    assert why == ""
    assert chosen.weights["good"] > 0.9
    few = Pool(tuple(names), docs[:6], ranks[:6], scores[:6].astype(np.float32))
    grades[:6] = 0
    grades[:6, 0] = 1  # what the noise says is learned by heart
    scores[:6, :, 0] = np.where(grades[:6] > 0, 0.9, 0.89 * rng.random((6, 30)))
    few = few._replace(scores=scores[:6].astype(np.float32))
    chosen, why = ConvexFusion.choose(few, grades[:6], names, halves[:6])
    assert chosen.weights == {"good": 1.0}
    assert why.startswith("good alone, nDCG@10 1.0000; fitted weights reach")
    _, why = ConvexFusion.choose(few, grades[:6], names, halves[:6], ranked=5)
    assert "recall of 5" in why or why == ""


def test_an_arm_without_a_weight_does_not_count() -> None:
    pool = one_query(a=[(1, 2.0), (2, 1.0)], b=[(2, 9.0), (3, 5.0)])
    ranked = ConvexFusion({"a": 1.0}).rank([Query("q", "")], pool)
    np.testing.assert_array_equal(ranked.docs, [[1, 2, 3]])
    fitted, _ = ConvexFusion.fit(pool, np.array([[1.0, 0.0, 0.0]]), ["a"])
    assert set(fitted.weights) == {"a"}


@pytest.mark.parametrize("ranker", [ReciprocalRankFusion(), *(ConvexFusion({"a": 0.5, "b": 0.5}, n) for n in NORMS)])
def test_queries_that_no_arm_answers_stay_padding(ranker: ReciprocalRankFusion | ConvexFusion) -> None:
    nothing = union(silence(2))  # not one candidate in the whole batch: a service's single query can be so
    ranked = ranker.rank([], nothing)
    assert (ranked.docs == -1).all()
    assert np.isneginf(ranked.scores).all()
    assert np.isnan(take(nothing, ranked).ranks).all()

    half = silence(2)
    half["a"].docs[1, :2], half["a"].scores[1, :2] = [4, 2], [0.0, -1.0]
    ranked = ranker.rank([], union(half))
    np.testing.assert_array_equal(ranked.docs, [[-1, -1], [4, 2]])
    assert np.isneginf(ranked.scores[0]).all()
    assert np.isfinite(ranked.scores[1]).all()


def test_probabilities_are_added_as_they_are():
    """Scaled within each query, the one doubtful candidate of an arm would count as much as its certain one."""
    drawn = {
        "words": Candidates.from_lists([np.array([1, 2, 3])] * 2, [np.array([9.0, 6.0, 5.0])] * 2, 3),
        "memory": Candidates.from_lists([np.array([3]), np.array([3, 4])], [np.array([0.9]), np.array([0.1, 0.05])], 3),
    }
    ranked = ConvexFusion({"words": 1.0, "memory": 2.0}, unscaled=["memory"]).rank(
        [Query("a", ""), Query("b", "")], union(drawn)
    )
    assert ranked.docs[0, :3].tolist() == [3, 1, 2]
    assert ranked.docs[1, :4].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(ranked.scores[0, :2], [1.8, 1.0])
