"""A stream is what it is said to be, systems are scored before they learn, and all see the same customers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from ltrr.policies.belief import Belief
from ltrr.policies.rules import RangeScaled, SameCut
from ltrr.policies.worth import ReservedPlace
from ltrr.simulation.changes import drifted, phases, texts_of, without_documents
from ltrr.simulation.pools import JudgedPools
from ltrr.simulation.stream import (
    Customers,
    Stream,
    in_order,
    play,
    play_still,
    reformulated,
    simon,
    times_before,
    zipf,
)
from ltrr.types import ActionRow, Candidates, Decision, ImpressionRow, Pool, Query

WIDTH, NUM = 12, 40


def world() -> JudgedPools:
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.random((NUM, WIDTH)), axis=1)
    docs = np.stack([rng.permutation(100)[:WIDTH] for _ in range(NUM)]).astype(np.int32)
    grades = (rng.random((NUM, WIDTH)) < 0.6 * scores**2).astype(int)
    grades[:, 5] = 1
    pool = Pool(("all", "fused"), docs, *[np.repeat(scores[:, :, None], 2, axis=2).astype(np.float32)] * 2)
    queries = [Query(str(i), f"Query {i // 2}") for i in range(NUM)]  # each text twice
    return JudgedPools(queries, np.zeros((NUM, 0)), pool, grades, 1, grades.sum(axis=1) + 1.0, np.arange(NUM))


POOLS = world()
GIVEN: dict[str, Any] = {"arms": ["all"], "depths": {"all": WIDTH}, "num": WIDTH}


class Watched:
    """Shows the first three and writes down what happens."""

    id = "watched"

    def __init__(self) -> None:
        self.log: list[Any] = []

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        self.log.append(queries[0].text)
        return Decision(np.array([[WIDTH]]), np.array([3]), np.ones(1), np.ones((1, 2)))

    def online(self, store: Any, policy: str) -> Watched:
        return self

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None:
        self.log.append((impressions[0], actions))


def test_queries_come_by_zipf_and_the_seed_alone_decides() -> None:
    stream = zipf(50, 200_000, 1.0, 3)
    share = np.sort(np.bincount(stream.asked, minlength=50))[::-1] / 200_000
    expected = 1 / np.arange(1, 51) / np.sum(1 / np.arange(1, 51))
    np.testing.assert_allclose(share, expected, rtol=0.08)
    np.testing.assert_array_equal(stream.asked, zipf(50, 200_000, 1.0, 3).asked)
    assert (stream.asked != zipf(50, 200_000, 1.0, 4).asked).any()
    with pytest.raises(ValueError, match="exponent"):
        zipf(5, 5, -1.0, 0)


def test_earlier_askings_are_of_the_same_normalised_text() -> None:
    texts = texts_of(["Love song", "love, song!", "sad"], duplicates=True)
    assert texts == [["love song", "song love"], ["love song", "song love"], ["sad", "saad"]]
    stream = Stream(np.array([0, 1, 2, 0, 1, 2, 2]), np.zeros(7, int), 0)
    assert times_before(texts, stream).tolist() == [0, 1, 0, 2, 3, 1, 2]
    ways = stream._replace(way=np.array([0, 1, 0, 1, 1, 1, 0]))
    assert times_before(texts, ways).tolist() == [0, 0, 0, 1, 2, 0, 1]


def test_every_round_is_scored_before_it_teaches_and_delays_hold_clicks_back() -> None:
    stream, watched = zipf(NUM, 300, 1.0, 0), Watched()
    out = play(watched, POOLS, stream, Customers())
    assert watched.log[0] == f"query {stream.asked[0] // 2}"
    assert isinstance(watched.log[1][0], ImpressionRow)  # learned between the first and the second round
    gains = POOLS.grades[:, :3].sum(axis=1) / POOLS.positives
    np.testing.assert_allclose(out.recall, gains[stream.asked], rtol=1e-6)
    assert (out.cost == 3).all()
    late = Watched()
    play(late, POOLS, stream, Customers(delay=5))
    assert [isinstance(entry, str) for entry in late.log[:7]] == [True] * 6 + [False]
    taught = lambda log: [entry for entry in log if not isinstance(entry, str)]  # noqa: E731
    assert taught(late.log) == taught(watched.log)[: len(taught(late.log))]  # the same customers and random numbers


def test_customers_look_and_click_as_they_are_said_to() -> None:
    rng = np.random.default_rng(0)
    gains = np.array([1.0, 0.0, 0.5, 1.0])
    draws = rng.random((40_000, 2, 4))
    rate = np.mean([Customers(eta=1.0, noise=0.1, attraction=0.8).clicks(gains, d) for d in draws], axis=0)
    np.testing.assert_allclose(rate, np.array([0.8, 0.1, 0.45, 0.8]) / np.arange(1, 5), atol=0.01)
    cascade = Customers(noise=0.0, satisfied=0.7, leaves=0.1)
    rate = np.mean([cascade.clicks(np.ones(4), d) for d in draws], axis=0)
    np.testing.assert_allclose(rate, 0.3 ** np.arange(4), atol=0.01)
    with pytest.raises(ValueError, match=r"customers\.noise"):
        Customers(noise=2.0)


def test_a_rule_has_the_price_that_holds_the_mean_of_this_stream() -> None:
    stream = zipf(NUM, 3_000, 1.0, 1)
    played = play_still(RangeScaled(**GIVEN, budget=4.0), POOLS, stream)
    assert played.cost.mean() == pytest.approx(4.0, abs=0.3)
    assert played.cost.mean() <= 4.0
    assert played.cost.std() > 0.5
    same = play_still(SameCut(**GIVEN, budget=4.0), POOLS, stream)
    gains = POOLS.grades[:, :4].sum(axis=1) / POOLS.positives
    np.testing.assert_allclose(same.recall, gains[stream.asked])


def test_a_belief_learns_what_recurs_within_its_budget() -> None:
    stream = zipf(NUM, 6_000, 0.8, 2)
    still = play_still(RangeScaled(**GIVEN, budget=3.0), POOLS, stream)
    belief = Belief(**GIVEN, budget=3.0, calibration=[2.0, 1.0, -0.5, -1.0], explore=ReservedPlace(), seed=0)
    out = play(belief, POOLS, stream, Customers())
    assert out.cost.mean() == pytest.approx(3.0, abs=0.15)
    assert out.recall[-2_000:].mean() > still.recall.mean() + 0.05
    assert out.recall[-2_000:].mean() > out.recall[:500].mean() + 0.03
    again = Belief(**GIVEN, budget=3.0, calibration=[2.0, 1.0, -0.5, -1.0], explore=ReservedPlace(), seed=0)
    for one, other in zip(out, play(again, POOLS, stream, Customers()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_worlds_change_in_the_way_that_is_named() -> None:
    rng = np.random.default_rng(0)
    after = drifted(POOLS, rng)
    changed = (after.grades != POOLS.grades).any(axis=1)
    assert 1 <= changed.sum() <= NUM // 10
    np.testing.assert_array_equal(after.grades.sum(axis=1), POOLS.grades.sum(axis=1))
    gone = POOLS.pool.docs[0, [1, 4]]
    fewer = without_documents(POOLS, gone)
    assert not np.isin(fewer.pool.docs, gone).any()
    for q in range(NUM):
        kept = ~np.isin(POOLS.pool.docs[q], gone)
        num = int(kept.sum())
        np.testing.assert_array_equal(fewer.pool.docs[q, :num], POOLS.pool.docs[q, kept])
        np.testing.assert_array_equal(fewer.pool.scores[q, :num], POOLS.pool.scores[q, kept])
        np.testing.assert_array_equal(fewer.grades[q, :num], POOLS.grades[q, kept])
        assert (fewer.pool.docs[q, num:] == -1).all()
    assert phases(POOLS, None, None, 0) == (POOLS, POOLS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dies: there is no arm 'x'; the arms are all"):
        phases(POOLS, "dies:x", None, 0)  # type: ignore[arg-type]
    stream, watched = zipf(NUM, 50, 1.0, 0), Watched()
    out = play(watched, POOLS, stream, Customers(), later=POOLS._replace(grades=0 * POOLS.grades), change_at=20)
    assert out.recall[:20].any()
    assert not out.recall[20:].any()


def test_a_second_text_is_another_query_to_everybody_but_the_truth() -> None:
    stream, watched = zipf(NUM, 400, 1.0, 0, duplicates=0.5), Watched()
    assert stream.way is not None
    assert 0.4 < stream.way.mean() < 0.6
    texts = texts_of([query.text for query in POOLS.queries], duplicates=True)
    out = play(watched, POOLS, stream, Customers(), texts=texts)
    asked = [entry for entry in watched.log if isinstance(entry, str)]
    assert asked == [texts[q][way] for q, way in zip(stream.asked, stream.way, strict=True)]
    gains = POOLS.grades[:, :3].sum(axis=1) / POOLS.positives
    np.testing.assert_allclose(out.recall, gains[stream.asked], rtol=1e-6)


def test_where_nothing_is_judged_clicks_calibrate() -> None:
    stream = zipf(NUM, 3_000, 0.3, 2)
    unfitted = Belief(**GIVEN, budget=3.0, calibration=[0.0, 0.0, -1.0, 0.0], seed=0)
    learns = Belief(**GIVEN, budget=3.0, seed=0)
    start = learns.prior(POOLS.pool)[0].copy()
    reached = [play(policy, POOLS, stream, Customers()).recall.mean() for policy in (unfitted, learns)]
    assert reached[1] > reached[0] - 0.02
    after = learns.prior(POOLS.pool)[0]
    assert np.abs(after - start).max() > 0.1
    rate = POOLS.grades[:, :6].mean()
    assert expit(after[:, :6]).mean() == pytest.approx(rate, abs=0.15)


def test_fresh_queries_come_at_their_share_and_the_rest_repeats() -> None:
    stream = simon(100_000, 20_000, 0.2, 3)
    before = times_before([[str(q)] for q in range(100_000)], stream)
    assert (before == 0).mean() == pytest.approx(0.2, abs=0.01)
    counts = np.sort(np.bincount(stream.asked))[::-1]
    assert counts[0] > 50 * counts[counts > 0].mean()  # a power law
    few = simon(30, 500, 0.5, 3)
    assert set(few.asked.tolist()) == set(range(30))
    with pytest.raises(ValueError, match="above 0"):
        simon(30, 500, 0.0, 3)


def test_a_log_is_played_in_its_own_order_again_and_again() -> None:
    np.testing.assert_array_equal(in_order(4, 6, 0).asked, [0, 1, 2, 3, 0, 1])


def test_a_reformulation_is_the_same_query_in_another_text_by_the_same_customer_at_once() -> None:
    plain = zipf(50, 2_000, 1.0, 3)
    stream = reformulated(plain, 0.3)
    assert stream.session is not None
    assert stream.way is not None
    again = np.flatnonzero(stream.session != np.arange(2_000))
    assert 0.15 < len(again) / 2_000 < 0.3
    np.testing.assert_array_equal(stream.asked[again], stream.asked[again - 1])
    np.testing.assert_array_equal(stream.customers[again], stream.customers[again - 1])
    np.testing.assert_array_equal(stream.session[again], again - 1)
    assert stream.way[again].all()
    assert not stream.way[again - 1].any()
    others = np.setdiff1d(np.arange(2_000), again)
    np.testing.assert_array_equal(stream.asked[others], plain.asked[others])
    watched = Watched()
    texts = texts_of([query.text for query in POOLS.queries], True)
    play(watched, POOLS, reformulated(zipf(NUM, 60, 1.0, 1), 0.5), Customers(), texts=texts)
    shown = [each[0] for each in watched.log if isinstance(each, tuple)]
    assert len({each.session for each in shown}) < len(shown)


class Backwards:
    """Ranks the last first."""

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        return Candidates(pool.docs[:, ::-1], np.arange(pool.docs.shape[1], 0, -1, dtype=np.float32)[None])


def test_customers_see_a_page_in_the_rankers_order() -> None:
    pages = {}
    for name, page, ranker in (("whole", None, None), ("page", 2, None), ("ranked", 2, Backwards())):
        watched = Watched()
        played = play(watched, POOLS, zipf(NUM, 50, 1.0, 1), Customers(), page=page, ranker=ranker)
        assert (played.cost == 3).all()  # what was ranked, whatever is seen
        pages[name] = [list(each[0].rows) for each in watched.log if isinstance(each, tuple)]
    assert [page[:2] for page in pages["whole"]] == pages["page"]
    assert [page[:0:-1] for page in pages["whole"]] == pages["ranked"]
