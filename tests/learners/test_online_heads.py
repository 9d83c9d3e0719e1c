"""Heads that learn online: the same in any order, as a fit on the same rounds, after a restart; and taken back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from ltrr.feedback.events import Action, Impression
from ltrr.feedback.evidence.ledger import light
from ltrr.feedback.loop import Loop
from ltrr.feedback.rounds import rounds_of
from ltrr.feedback.store import EventStore
from ltrr.learners.online_heads import OnlineHeads
from tests.served import IDS, NUM, START, events, model

POLICY = "depth x"
ROWS = {entity: row for row, entity in enumerate(IDS)}
LATER = Impression("later", START + timedelta(days=2), "nothing", ())  # whose time makes all before it due


@pytest.fixture(scope="module")
def happened():
    return events(model())


@pytest.fixture
def store(tmp_path, happened):
    shown, _ = happened
    with EventStore(f"sqlite:///{tmp_path}/e.db") as store:
        store.append([*shown, LATER])
        yield store


def learner(store, **options) -> OnlineHeads:
    return OnlineHeads(model(), store, POLICY, **options)


def give(made: OnlineHeads, happened) -> OnlineHeads:
    for event in happened:
        made.take(*light([event], ROWS))
    return made


def heads(made: OnlineHeads) -> np.ndarray:
    state = made._model.heads.state()
    return np.concatenate([state["means"].ravel(), state["covariances"].ravel()])


def fitted(shown, did) -> np.ndarray:
    """By the module's own update."""
    module = model()
    pairs = [(n, i, [a for a in did if a.impression == i.id]) for n, i in enumerate(shown)]
    module.update(rounds_of([pairs], module.columns, module.num)[0])
    state = module.heads.state()  # type: ignore[union-attr]
    return np.concatenate([state["means"].ravel(), state["covariances"].ravel()])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """But for the network's own rounding, which depends on how many rounds it reads at once."""
    return np.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_heads_are_those_of_a_fit_whatever_the_order(store, happened):
    shown, did = happened
    wanted, before = fitted(shown, did), heads(learner(store))
    assert np.abs(wanted - before).max() > 0.01
    in_time = sorted([*shown, *did], key=lambda e: e.time)
    rng = np.random.default_rng(1)
    shuffled = [in_time[i] for i in rng.permutation(len(in_time))]
    for order in (
        [*in_time, LATER],
        [LATER, *in_time],
        [*shuffled, LATER],
        [*did, *shown, LATER],
        [*shown, LATER, *did],
    ):
        for options in ({}, {"most": 7}, {"wait": timedelta(0)}):
            assert same(heads(give(learner(store, **options), [*order, *order[:30]])), wanted)
    at_once = learner(store)
    at_once.take(*light([*shuffled, LATER], ROWS))
    assert same(heads(at_once), wanted)


def test_a_page_waits_for_its_clicks(store, happened):
    shown, did = happened
    made = learner(store)
    start = heads(made)
    give(made, [a for a in did if a.impression == shown[0].id])
    give(made, shown[:10])  # nine minutes
    assert np.array_equal(heads(made), start)
    give(made, [shown[11]])
    one = heads(made)
    assert same(one, fitted(shown[:2], [a for a in did if a.impression == shown[0].id]))
    give(made, [Action("late", shown[1].id, shown[1].shown[-1], "click", shown[1].time + timedelta(hours=5))])
    assert not same(heads(made), one)  # a late click counts,
    one = heads(made)
    give(made, [Action("too", shown[0].id, shown[0].shown[-1], "click", shown[0].time + timedelta(hours=25))])
    assert np.array_equal(heads(made), one)  # after the reward's window it does not
    assert same(heads(give(learner(store, most=3), shown[:5])), fitted(shown[:2], []))  # no more than 3 wait


def test_what_another_policy_drew_is_left_to_a_fit(store, happened):
    shown, _ = happened
    made = OnlineHeads(model(), store, "depth y")
    start = heads(made)
    gone = replace(shown[0], id="gone")  # whose impression was removed since
    give(made, [*shown, gone, LATER, replace(LATER, id="last", time=LATER.time + timedelta(hours=1))])
    assert np.array_equal(heads(made), start)
    assert made.left_out == {"of another policy": len(shown) + 1, "gone": 1}


@pytest.mark.parametrize("when", ["learned", "waiting", "compacted"])
def test_a_customer_is_taken_back(store, happened, when):
    shown, did = happened
    theirs = {i.id for i in shown if i.context.customer == "c1"}
    assert theirs
    made = give(learner(store), [*shown, *did] if when == "waiting" else [*shown, *did, LATER])
    if when == "compacted":
        give(made, [replace(LATER, id="month", time=LATER.time + timedelta(days=30))])
        made.compact()
        assert {r.seen.customer for r in made._learned.values()} == {"c0", "c1", "c2", "c3"}  # the nameless are gone
    assert "c1" in made.customers()
    made.erase("c1")
    assert "c1" not in made.customers()
    give(made, [LATER])
    kept = [i for i in shown if i.id not in theirs]
    assert same(heads(made), fitted(kept, [a for a in did if a.impression not in theirs]))


def test_a_restart_gives_the_same_heads_as_going_on(tmp_path, happened):
    shown, did = happened
    both = sorted([*shown, *did], key=lambda e: e.time)
    url, folder = f"sqlite:///{tmp_path}/own.db", tmp_path / "learned"

    def loop(where=None) -> tuple[Loop, OnlineHeads]:
        store = EventStore(url)
        made = OnlineHeads(model(), store, POLICY)
        return Loop(store, {"policy": made}, ROWS, where), made

    online, made = loop(folder)
    online.snapshot()  # of nothing
    for start in range(0, len(both) // 2, 5):
        online.record(both[start : start + 5])
    online.snapshot()
    middle = heads(made)
    _, restarted = loop(folder)
    assert np.array_equal(heads(restarted), middle)
    assert restarted.customers()
    online.record([*both, LATER])  # some were there
    for again in (loop(folder)[1], loop()[1]):  # from the snapshot and the events after it; from all events
        assert same(heads(again), heads(made))
    assert same(heads(made), fitted(shown, did))
    online.erase("c1")
    theirs = {i.id for i in shown if i.context.customer == "c1"}
    without = fitted([i for i in shown if i.id not in theirs], [a for a in did if a.impression not in theirs])
    assert same(heads(made), without)
    assert same(heads(loop(folder)[1]), without)
    assert not any(b"c1" in path.read_bytes() for path in folder.rglob("*.npz"))


def test_who_decides_meanwhile_sees_whole_heads(store, happened):
    """What was read before stays as it was."""
    shown, did = happened
    made = learner(store)
    held = made._model.heads
    before = held.means.copy()
    give(made, [*shown, *did, LATER])
    assert made._model.heads is not held
    assert np.array_equal(held.means, before)
    assert made._model.num == NUM
