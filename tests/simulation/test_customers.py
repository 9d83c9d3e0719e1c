"""Simulated customers click by the model on what they want, ask again when they fail, and leave whole events."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.feedback.clicks import PositionBased
from ltrr.feedback.events import Action, Impression
from ltrr.simulation.customers import Simulation, first_arrived
from ltrr.types import Candidates, Context, Decision, Page, Query

IDS = [f"d{i}" for i in range(20)]
QUERIES = [Query(f"q{i}", f"words {i}", Context(customer="own" if i == 0 else None)) for i in range(8)]
QRELS = {f"q{i}": {f"d{i}": 1, f"d{i + 8}": 0} for i in range(8)}
ALL = PositionBased((1.0,) * 5)


class Fake:
    """A search whose best for "words i" is document i + 1; "title i" finds what is wanted first."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def search(self, queries, k: int) -> Page:
        self.asked += [q.text for q in queries]
        first = [int(q.text.split()[1]) + (0 if q.text.startswith("title") else 1) for q in queries]
        docs = np.array([[f, *[d for d in range(20) if d != f]] for f in first], np.int32)[:, :k]
        shown = Candidates(docs, np.broadcast_to(-np.arange(k, dtype=np.float32), docs.shape).copy())
        decision = Decision(
            np.full((len(queries), 1), k), np.full(len(queries), k), np.ones(len(queries)), np.ones((len(queries), 2))
        )
        ranks = np.broadcast_to(np.arange(k, dtype=np.float32)[None, :, None], (*docs.shape, 1)).copy()
        ids = [f"random-{i}" for i in range(len(queries))]
        return Page(ids, queries, np.zeros((len(queries), 0)), decision, shown, ("fake",), ranks)


def simulation(fake: Fake, **options) -> Simulation:
    defaults = {"model": ALL, "noise": 0.0, "k": 5, "num_customers": 3}
    return Simulation(fake.search, QUERIES, QRELS, IDS, **(defaults | options))


def test_clicks_fall_on_what_is_wanted_and_events_say_so():
    batches = list(simulation(Fake()).rounds(500, 100))
    assert sum(len(b.queries) for b in batches) == 500
    for batch in batches:
        wanted = batch.queries[:, None] == batch.page.shown.docs
        np.testing.assert_array_equal(batch.clicks, wanted)  # noise 0, everything is looked at
        np.testing.assert_array_equal(batch.grades == 1, wanted)
        seen = {e.id: e for e in batch.events if isinstance(e, Impression)}
        actions = [e for e in batch.events if isinstance(e, Action)]
        assert len(seen) == len(batch.queries)
        assert len(actions) == batch.clicks.sum()
        for action in actions:
            impression = seen[action.impression]
            assert action.entity == f"d{impression.query.split()[1]}"
            assert action.time > impression.time
        customers = {(e.query, e.context.customer) for e in seen.values()}
        assert ("words 0", "own") in customers
        assert {c for q, c in customers if q != "words 0"} <= {f"customer {i}" for i in range(3)}


def test_the_same_seed_gives_the_same_events_whatever_ids_the_funnel_makes():
    first, second = ([e for b in simulation(Fake(), seed=4).rounds(200, 50) for e in b.events] for _ in range(2))
    assert first == second
    other = [e for b in simulation(Fake(), seed=5).rounds(200, 50) for e in b.events]
    assert {e.id for e in first}.isdisjoint({e.id for e in other})


def test_who_clicks_nothing_may_ask_again_in_the_same_session():
    """Only the first position is looked at, so that nobody finds anything until they ask by the title."""
    fake = Fake()
    direct = {f"q{i}": f"title {i}" for i in range(8)}
    top = PositionBased((1.0, 0.0, 0.0, 0.0, 0.0))
    batches = list(simulation(fake, model=top, reformulated=direct, persistence=0.5).rounds(400, 100))
    first, again = batches[::2], batches[1::2]
    assert not any(b.clicks.any() for b in first)
    assert all(b.clicks[:, 0].all() for b in again)
    asked_again = sum(len(b.queries) for b in again) / sum(len(b.queries) for b in first)
    assert 0.35 < asked_again < 0.65
    sessions = {e.session for b in first for e in b.events if isinstance(e, Impression)}
    assert {e.session for b in again for e in b.events if isinstance(e, Impression)} <= sessions


def test_entities_are_shown_from_their_arrival():
    arrivals = np.where(np.arange(20) % 2, 300, 0)
    before = after = 0
    for batch in simulation(Fake(), arrivals=arrivals).rounds(600, 100):
        docs = batch.page.shown.docs
        new = (docs % 2 == 1) & (docs >= 0)
        if int(batch.events[0].id.split("-")[1]) < 300:  # type: ignore[union-attr]
            before += int(new.sum())
        else:
            after += int(new.sum())
        assert (np.diff((docs < 0).astype(int), axis=1) >= 0).all()  # pads last
    assert before == 0
    assert after > 0


def test_tastes_drift():
    wants = [b.grades for b in simulation(Fake(), drift=100, seed=1).rounds(2000, 100)]
    still = [b.grades for b in simulation(Fake(), seed=1).rounds(2000, 100)]
    np.testing.assert_array_equal(wants[0], still[0])
    assert any(not np.array_equal(a, b) for a, b in zip(wants[1:], still[1:], strict=True))
    drifting = simulation(Fake(), drift=10, seed=1)
    before = drifting._wants.copy()
    assert sum(len(batch.queries) for batch in drifting.rounds(1000, 250)) >= 1000
    assert drifting._trades == 75  # as many as are due at the begin of the last batch
    assert sorted(drifting._wants) == sorted(before)
    assert (drifting._wants != before).any()


def test_who_fails_asks_by_the_title_of_what_they_want_now():
    titles = {query.id: f"title {n}" for n, query in enumerate(QUERIES)}
    drifting = simulation(Fake(), drift=20, reformulated=titles, persistence=1.0, noise=0.0, seed=3)
    told = 0
    for batch in drifting.rounds(400, 50):
        if batch.page.impressions[0].endswith("-1"):
            wants = drifting._wants[batch.queries]
            assert [q.text for q in batch.page.queries] == [f"title {want}" for want in wants]
            told += int((wants != batch.queries).sum())
    assert told > 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"noise": 1.1}, "noise"),
        ({"k": 0}, "k"),
        ({"persistence": -0.1}, "persistence"),
        ({"num_customers": 0}, "num_customers"),
        ({"shares": np.ones(7)}, "shares"),
        ({"arrivals": np.ones(19)}, "arrivals"),
        ({"drift": -1}, "drift"),
    ],
)
def test_a_wrong_argument_is_named(options, name):
    with pytest.raises(ValueError, match=f"simulation: {name}: "):
        simulation(Fake(), **options)


def test_without_queries_nobody_can_ask():
    with pytest.raises(ValueError, match="no queries"):
        Simulation(Fake().search, [], {}, IDS, model=ALL)


def test_documents_that_have_arrived_move_up_in_their_order():
    docs = np.array([[3, 1, 0, 2], [0, -1, -1, -1]], np.int32)
    scores = np.where(docs >= 0, -np.arange(4.0), -np.inf).astype(np.float32)
    shown, places, present = first_arrived(Candidates(docs, scores), np.array([5, 0, 9, 9]), 5, 3)
    np.testing.assert_array_equal(shown.docs, [[1, 0, -1], [0, -1, -1]])
    np.testing.assert_array_equal(shown.scores, [[-1, -2, -np.inf], [0, -np.inf, -np.inf]])
    np.testing.assert_array_equal(places[0, :2], [1, 2])
    np.testing.assert_array_equal(present, shown.docs >= 0)
