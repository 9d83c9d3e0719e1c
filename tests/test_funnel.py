"""The whole flow with arms of a few lines, against the same steps written as loops over one query at a time."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ltrr.funnel import FUSED, Funnel, FusedOrder
from ltrr.fusion import ConvexFusion, ReciprocalRankFusion
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import Policy, Ranker
from ltrr.types import Candidates, Decision, Page, Pool, Query

NUM_DOCS = 50
QUERIES = [Query(f"q{i}", f"text {i}") for i in range(12)]


class RandomArm:
    """The same random documents for a query whatever the batch and the depth; logs what it is asked."""

    def __init__(self, seed: int, answers: Callable[[int], bool] = lambda number: True):
        self._seed, self._answers = seed, answers
        self.asked: list[tuple[list[str], int]] = []

    def pairs(self, query: Query) -> list[tuple[int, float]]:
        """(row, score), best first."""
        number = int(query.id[1:])
        rng = np.random.default_rng([self._seed, number])
        num = 20 if self._answers(number) else 0
        rows, scores = rng.permutation(NUM_DOCS)[:num], rng.integers(0, 9, num)
        return sorted(zip(rows.tolist(), scores.astype(float).tolist(), strict=True), key=lambda p: (-p[1], p[0]))

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        self.asked.append(([q.id for q in queries], k))
        found = [self.pairs(q) for q in queries]
        return Candidates.from_lists(
            [np.array([d for d, _ in pairs], np.int32) for pairs in found],
            [np.array([s for _, s in pairs]) for pairs in found],
            k,
        )


class TablePolicy:
    """Depths and cuts by the number that is the query's only feature."""

    id = "table"

    def __init__(self, depths: np.ndarray, cut: np.ndarray):
        self._depths, self._cut = depths.astype(np.int32), cut.astype(np.int32)
        self.features = number_of

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        at = features[:, 0].astype(int)
        return Decision(self._depths[at], self._cut[at], np.full(len(at), 0.25), np.full((len(at), 4), 0.5))


class ByNumber:
    """A Ranker that agrees with no arm: by row · 7 mod 50, lower is better."""

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        assert len(queries) == len(pool.docs)
        docs = [row[row >= 0] for row in pool.docs]
        return Candidates.from_lists(docs, [-(d * 7 % NUM_DOCS) for d in docs], pool.docs.shape[1])


def number_of(queries: Sequence[Query]) -> np.ndarray:
    return np.array([[int(q.id[1:])] for q in queries], np.float32)


def slow_search(
    arms: dict[str, RandomArm], depths: dict[str, int], cut: int, query: Query, k: int
) -> list[tuple[int, list[str]]]:
    """(row, arms that returned it) of one query's page: draw, fuse by reciprocal ranks, cut, rank by number."""
    fused: dict[int, float] = {}
    returned: dict[int, list[str]] = {}
    for name, arm in arms.items():
        for rank, (doc, _) in enumerate(arm.pairs(query)[: depths[name]]):
            fused[doc] = fused.get(doc, 0.0) + 1 / (60 + 1 + rank)
            returned.setdefault(doc, []).append(name)
    kept = sorted(fused, key=lambda doc: (-np.float32(fused[doc]), doc))[:cut]
    return [(doc, returned[doc]) for doc in sorted(kept, key=lambda doc: doc * 7 % NUM_DOCS)[:k]]


def assert_page(page: Page, position: int, expected: list[tuple[int, list[str]]]) -> None:
    shown = [(d, page.returned_by(position, i)) for i, d in enumerate(page.shown.docs[position].tolist()) if d >= 0]
    assert shown == expected


def arms_of() -> dict[str, RandomArm]:
    return {"a": RandomArm(1), "b": RandomArm(2, lambda number: number % 3 > 0), "c": RandomArm(3)}


@pytest.mark.parametrize("k", [1, 5, 60])
def test_the_page_is_that_of_the_steps_one_by_one(k: int) -> None:
    rng = np.random.default_rng(k)
    depths, cut = rng.choice([0, 0, 1, 4, 15, 30], (len(QUERIES), 3)), rng.choice([1, 3, 10, 99], len(QUERIES))
    depths[5] = 0  # a query that asks nobody
    arms = arms_of()
    policy = TablePolicy(depths, cut)
    page = Funnel(arms, policy, ReciprocalRankFusion(), ByNumber()).search(QUERIES, k)
    for i, query in enumerate(QUERIES):
        expected = slow_search(arms, dict(zip(arms, depths[i].tolist(), strict=True)), int(cut[i]), query, k)
        assert_page(page, i, expected)
    assert (page.shown.docs[5] == -1).all()
    assert page.shown.docs.shape[1] <= k

    # and the page says what was decided, on what, and by which name to answer
    np.testing.assert_array_equal(page.decision.depths, depths)
    np.testing.assert_array_equal(page.decision.propensity, 0.25)
    np.testing.assert_array_equal(page.features, number_of(QUERIES))
    assert page.arms == ("a", "b", "c")
    assert page.queries == QUERIES
    assert len(set(page.impressions)) == len(QUERIES)


def test_drawing_and_ranking_are_the_two_halves_of_a_search() -> None:
    """An evaluation shows what the page was before its ranker; the service must answer with just that, ranked."""
    arms = arms_of()
    policy = FixedPolicy("abc", {"a": 8, "b": 5, "c": 9}, 11)
    plain = Funnel(arms, policy, ReciprocalRankFusion())
    ranked = Funnel(arms, policy, ReciprocalRankFusion(), ByNumber())
    drawn = ranked.draw(QUERIES)
    again = FusedOrder().rank(QUERIES, drawn.pool)  # the ranker gets them in fused order, and with these scores
    np.testing.assert_array_equal(again.docs, drawn.fused.docs)
    np.testing.assert_array_equal(again.scores, drawn.fused.scores)
    assert drawn.pool.arms == ("a", "b", "c", FUSED)
    for funnel in (plain, ranked):
        page = funnel.search(QUERIES, 7)
        np.testing.assert_array_equal(funnel.rank(QUERIES, funnel.draw(QUERIES)).docs[:, :7], page.shown.docs)
    np.testing.assert_array_equal(plain.search(QUERIES, 7).shown.docs, drawn.fused.docs[:, :7])
    for before, after in zip(drawn.fused.docs, ranked.rank(QUERIES, drawn).docs, strict=True):
        assert set(before.tolist()) == set(after.tolist())  # a ranker orders; it brings and loses nothing


def test_arms_are_asked_only_where_they_are_on() -> None:
    depths = np.zeros((len(QUERIES), 3))
    depths[:, 0] = 4
    depths[[2, 7], 2] = [3, 9]
    arms = arms_of()
    policy = TablePolicy(depths, np.full(len(QUERIES), 10))
    Funnel(arms, policy, ReciprocalRankFusion(), ByNumber()).search(QUERIES, 5)
    assert arms["a"].asked == [([q.id for q in QUERIES], 4)]
    assert arms["b"].asked == []  # depth 0 for all: not called
    assert arms["c"].asked == [(["q2", "q7"], 9)]  # once, at the deepest


def test_a_query_is_answered_as_in_a_batch() -> None:
    funnel = Funnel(arms_of(), FixedPolicy("abc", {"a": 8, "b": 5, "c": 2}, 9), ReciprocalRankFusion(), ByNumber())
    batch = funnel.search(QUERIES, 4)
    for i, query in enumerate(QUERIES):
        one = funnel.search([query], 4)
        shown = [d for d in batch.shown.docs[i].tolist() if d >= 0]
        assert [d for d in one.shown.docs[0].tolist() if d >= 0] == shown
        assert [one.returned_by(0, p) for p in range(len(shown))] == [
            batch.returned_by(i, p) for p in range(len(shown))
        ]


ORDERS: list[Ranker] = [ReciprocalRankFusion(), ConvexFusion({"a": 1.0}), ConvexFusion({"a": 1.0}, "zscore")]


@pytest.mark.parametrize("order", ORDERS)
def test_a_query_that_no_arm_answers_has_an_empty_page(order: Ranker) -> None:
    silent = {"a": RandomArm(1, lambda number: False), "b": RandomArm(2, lambda number: number == 1)}
    funnel = Funnel(silent, FixedPolicy("ab", {"a": 5, "b": 5}, 3), order, order)
    alone = funnel.search(QUERIES[:1], 4)
    assert (alone.shown.docs == -1).all()
    page = funnel.search(QUERIES[:2], 4)
    assert (page.shown.docs[0] == -1).all()
    assert (page.shown.docs[1, :3] >= 0).all()
    assert page.returned_by(1, 0) == ["b"]


def test_fixed_policy_decides_the_same_for_all() -> None:
    policy: Policy = FixedPolicy(["a", "b", "c"], {"c": 7, "a": 2}, 30)
    decision = policy.decide(QUERIES, np.zeros((len(QUERIES), 0), np.float32))
    np.testing.assert_array_equal(decision.depths, [[2, 0, 7]] * len(QUERIES))  # the arms' order; not named = off
    np.testing.assert_array_equal(decision.cut, [30] * len(QUERIES))
    np.testing.assert_array_equal(decision.propensity, 1.0)
    assert decision.marginals.shape == (len(QUERIES), 4)
    assert (decision.marginals == 1.0).all()


@pytest.mark.parametrize(
    ("depths", "cut", "message"),
    [
        ({"dense": 3}, 10, "policy.depths: there is no arm 'dense'; the arms are: a, b"),
        ({"a": -1}, 10, "policy.depths.a: -1 is below 0; 0 turns the arm off"),
        ({"a": 3}, 0, "policy.cut: 0 is below 1"),
    ],
)
def test_fixed_policy_names_what_is_wrong(depths: dict[str, int], cut: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FixedPolicy(["a", "b"], depths, cut)
