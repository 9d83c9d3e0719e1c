"""The whole flow with arms of a few lines, against the same steps written as loops over one query at a time."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ltrr.funnel import FUSED, Funnel, FusedOrder, reserve
from ltrr.fusion import ConvexFusion, ReciprocalRankFusion
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import Policy, Ranker
from ltrr.types import Candidates, Decision, Page, Pool, Query, Revised

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


# Exploring


def slow_page(docs: list[int], scores: list[float], explored: int, place: int, k: int) -> tuple[list, list, int]:
    """Rows, scores and the explored candidate's place of one query's page."""
    page = [(doc, score) for doc, score in zip(docs, scores, strict=True) if doc not in (-1, explored)]
    if explored < 0:
        return [doc for doc, _ in page], [score for _, score in page], -1
    place = min(place, len(page), k - 1)
    score = page[place][1] if place < len(page) else page[-1][1] if page else 0.0
    page = [*page[:place], (explored, score), *page[place:]][:k]
    return [doc for doc, _ in page], [score for _, score in page], place


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_an_explored_candidate_has_its_place_on_the_page(k: int) -> None:
    """Pages of 0 to k candidates, on some of which the explored one is already; the policy may name any place."""
    rng = np.random.default_rng(k)
    num, width = 400, rng.integers(1, k + 1)
    docs = np.array([rng.permutation(12)[:width] for _ in range(num)], np.int32)
    scores = -np.sort(-rng.random((num, width)).astype(np.float32), axis=1)
    pads = np.arange(width) >= rng.integers(0, width + 1, num)[:, None]
    shown = Candidates(np.where(pads, -1, docs), np.where(pads, -np.inf, scores))
    explored, place = rng.integers(-1, 12, num).astype(np.int32), rng.integers(0, 10, num)
    unused = np.zeros((num, 1))
    decision = Decision(unused, unused, unused, unused, explored=explored, explored_place=place)
    page, decided = reserve(shown, decision, k)
    assert decided.explored_place is not None
    assert page.docs.shape == page.scores.shape
    assert page.docs.shape[1] <= k
    already = 0
    for i in range(num):
        wanted = slow_page(shown.docs[i].tolist(), shown.scores[i].tolist(), int(explored[i]), int(place[i]), k)
        real = page.docs[i] >= 0
        assert (page.docs[i][real].tolist(), page.scores[i][real].tolist(), decided.explored_place[i]) == wanted
        assert (np.diff(page.scores[i][real]) <= 0).all()
        assert (page.scores[i][~real] == -np.inf).all()
        assert not (~real[:-1] & real[1:]).any()  # pads are last
        already += explored[i] in shown.docs[i] and explored[i] >= 0
    assert already > 10


def test_a_page_without_exploring_stays_as_it_is() -> None:
    shown = Candidates(np.array([[3, -1]], np.int32), np.array([[1.0, -np.inf]], np.float32))
    decision = FixedPolicy(["a"], {"a": 5}).decide(QUERIES[:1], np.zeros((1, 0)))
    none = decision._replace(explored=np.array([-1]), explored_place=np.array([-1]))
    for one in (decision, none):
        assert reserve(shown, one, 2) == (shown, one)
    with pytest.raises(ValueError, match="without `explored_place`"):
        reserve(shown, decision._replace(explored=np.array([7])), 2)


class Curious:
    """Explores document 49 − n for query n, at place 1, and no candidate for every third query."""

    id = "curious"

    def __init__(self, depth: int) -> None:
        self._fixed = FixedPolicy("abc", dict.fromkeys("abc", depth), 5)

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        number = number_of(queries)[:, 0].astype(np.int32)
        explored = np.where(number % 3 > 0, NUM_DOCS - 1 - number, -1)
        place = np.where(explored >= 0, 1, -1)
        decision = self._fixed.decide(queries, features)
        return decision._replace(explored=explored, explored_place=place, explored_propensity=np.full(len(number), 0.5))


@pytest.mark.parametrize("depth", [10, 0])
def test_a_policy_explores_whatever_arms_and_ranker_say(depth: int) -> None:
    """Also where no arm returned the candidate, and where none was asked."""
    plain = Funnel(arms_of(), FixedPolicy("abc", dict.fromkeys("abc", depth), 5), ReciprocalRankFusion(), ByNumber())
    before = plain.search(QUERIES, 4)
    page = Funnel(arms_of(), Curious(depth), ReciprocalRankFusion(), ByNumber()).search(QUERIES, 4)
    returned = {name: [dict(arm.pairs(q)[:depth]) for q in QUERIES] for name, arm in arms_of().items()}
    assert page.decision.explored is not None
    for i, row in enumerate(page.decision.explored.tolist()):
        others = [doc for doc in before.shown.docs[i].tolist() if doc >= 0]
        expected = others if row < 0 else [*(rest := [d for d in others if d != row])[:1], row, *rest[1:]][:4]
        assert [doc for doc in page.shown.docs[i].tolist() if doc >= 0] == expected
        for position, doc in enumerate(expected):
            assert page.returned_by(i, position) == [name for name in "abc" if doc in returned[name][i]]


class Reversed:
    """Decides after retrieval: the cut is the query's number, and the order is the fused one from its end."""

    id = "reversed"

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        return FixedPolicy("abc", {"a": 8, "b": 5, "c": 9}, 11).decide(queries, features)

    def revise(self, queries: Sequence[Query], features: np.ndarray, pool: Pool, decision: Decision) -> Revised:
        assert pool.arms[-1] == FUSED
        number = number_of(queries)
        real = [row[row >= 0] for row in pool.docs]
        order = Candidates.from_lists(real, [np.arange(len(row)) for row in real], pool.docs.shape[1])
        return Revised(number, decision._replace(cut=1 + number[:, 0].astype(np.int32)), order)


def test_a_policy_may_order_the_candidates_itself() -> None:
    fixed = Funnel(arms_of(), FixedPolicy("abc", {"a": 8, "b": 5, "c": 9}, 99), ReciprocalRankFusion())
    fused = fixed.draw(QUERIES).fused.docs
    funnel = Funnel(arms_of(), Reversed(), ReciprocalRankFusion())
    drawn, page = funnel.draw(QUERIES), funnel.search(QUERIES, 30)
    for i in range(len(QUERIES)):
        wanted = [doc for doc in fused[i].tolist() if doc >= 0][::-1][: 1 + i]
        assert [doc for doc in page.shown.docs[i].tolist() if doc >= 0] == wanted
        assert [doc for doc in drawn.pool.docs[i].tolist() if doc >= 0] == wanted  # what a ranker would get
    np.testing.assert_array_equal(page.features, number_of(QUERIES))
    np.testing.assert_array_equal(page.decision.cut, 1 + np.arange(len(QUERIES)))
