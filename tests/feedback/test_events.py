"""Events refuse what cannot be, rewards do not depend on the order of actions, pages become impressions whole."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from ltrr.feedback.events import Action, Allocation, Impression, Reward, impressions_of, normalised
from ltrr.types import Candidates, Context, Decision, Page, Query

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
GOOD = Impression("i", NOW, "love", ("a", "b"), arms=("x", "y"), drawn=Allocation((3, 0), 2), marginals=(1.0, 0.5, 1.0))


def action(n: int, kind: str = "click", entity: str = "a", after: float = 10, seconds: float | None = None) -> Action:
    return Action(f"a{n}", "i", entity, kind, NOW + timedelta(seconds=after), seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": 0.0}, r"impression 'i': propensity 0\.0 is not within"),
        ({"propensity": 1.1}, "propensity 1.1"),
        ({"propensity": float("nan")}, "propensity nan"),
        ({"marginals": (1.0, 0.0, 1.0)}, "marginals"),
        ({"marginals": (1.0,)}, r"marginals has 1 entries for 2 arms"),
        ({"shown": ("a", "a")}, "an entity twice"),
        ({"scores": (1.0,)}, "scores has 1 entries for 2 shown"),
        ({"ranks": ((1, None), (2,))}, "ranks has 1 entries for 2 arms"),
        ({"drawn": Allocation((1,), 2)}, r"drawn\.depths has 1 entries"),
        ({"time": datetime(2026, 1, 5)}, "no time zone"),
        ({"id": ""}, "1 to 200 characters"),
        ({"explored_propensity": 0.0}, r"explored_propensity 0\.0 is not within"),
        ({"explored": "b"}, "explored_place -1 does not show 'b'"),
        ({"explored": "b", "explored_place": 0}, "explored_place 0 does not show 'b'"),
        ({"explored": "b", "explored_place": 2}, "explored_place 2 does not show 'b'"),
        ({"explored": "c", "explored_place": 1}, "explored_place 1 does not show 'c'"),
        ({"explored_place": 0}, "explored_place 0 does not show None"),
    ],
)
def test_impressions_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "buy"}, "action 'a1': kind 'buy' is none of click, like"),
        ({"seconds": -1.0}, "no time played"),
        ({"seconds": float("inf")}, "no time played"),
        ({"impression": ""}, "action 'a1': impression: id ''"),
        ({"time": datetime(2026, 1, 5)}, "no time zone"),
    ],
)
def test_actions_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(action(1), **change)


def test_the_reward_is_the_same_in_any_order_and_when_actions_come_twice():
    actions = [
        action(1),
        action(2, "like"),
        action(3, "play", "b", seconds=29.9),  # too short
        action(4, "dismiss", "b"),
        action(5, "favourite", "a", after=86_401),  # too late
        action(6, "click", "c", after=-301),  # before it was shown, further than clocks differ
        action(7, "click", "d", after=-299),
    ]
    reward = Reward()
    assert reward.of_entities(NOW, actions) == {"a": 1.5, "b": -1.0, "d": 1.0}
    for order in itertools.permutations(actions):
        assert reward.of(NOW, [*order, *order[:2]]) == 1.5
    longer = [*actions, action(7, "play", "b", seconds=30)]
    assert reward.of_entities(NOW, longer)["b"] == 1.0  # better than the dismissal
    assert Reward({"favourite": 4.0}, window=timedelta(days=2)).of(NOW, actions) == 4.0
    with pytest.raises(ValueError, match=r"reward\.weights: 'buy'"):
        Reward({"buy": 1.0})


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Tayler  LOVE!", "tayler love"),
        ("Beyoncé", "beyonce"),
        ("ﬁne № 2", "fine no 2"),
        ("!!!", "!!!"),
        ("Straße", "strasse"),
    ],
)
def test_normalised(text, same):
    assert normalised(text) == same
    assert normalised(normalised(text)) == same


def test_a_page_becomes_impressions():
    docs = np.array([[2, 0, -1], [1, -1, -1]], np.int32)
    ranks = np.array([[[0, np.nan], [1, 4], [np.nan] * 2], [[np.nan, 0], [np.nan] * 2, [np.nan] * 2]], np.float32)
    decision = Decision(np.array([[5, 5], [0, 7]]), np.array([9, 8]), np.array([0.5, 0.25]), np.full((2, 3), 0.5))
    queries = [Query("1", "Love", Context(customer="c", locale="en-GB")), Query("2", "x")]
    shown = Candidates(docs, np.array([[3, 2, -np.inf], [1, -np.inf, -np.inf]], np.float32))
    page = Page(["i1", "i2"], queries, np.ones((2, 4), np.float32), decision, shown, ("x", "y"), ranks)
    first, second = impressions_of(page, ["a", "b", "c"], times=[NOW, NOW], sessions=["s", None], policy="fixed-1")
    assert (first.id, first.shown, first.scores, first.ranks) == ("i1", ("c", "a"), (3.0, 2.0), ((0, None), (1, 4)))
    assert (first.session, first.context.customer, first.normalised) == ("s", "c", "love")
    assert (second.drawn, second.propensity, second.marginals) == (Allocation((0, 7), 8), 0.25, (0.5, 0.5, 0.5))
    assert (second.shown, second.ranks, second.features, second.policy) == (("b",), ((None, 0),), (1.0,) * 4, "fixed-1")


def test_an_impression_says_what_was_explored():
    """Exploring none has a propensity, too."""
    docs, unknown = np.array([[2, 0], [1, 0]], np.int32), np.full((2, 2, 1), np.nan)
    decision = Decision(np.array([[5], [5]]), np.array([9, 9]), np.ones(2), np.ones((2, 2)))
    page = Page(["1", "2"], [Query("1", "x")] * 2, np.ones((2, 0)), decision, Candidates(docs, -docs), ("x",), unknown)
    for seen in impressions_of(page, "abc", times=[NOW, NOW]):
        assert (seen.explored, seen.explored_place, seen.explored_propensity) == (None, -1, 1.0)
    explored = {"explored": np.array([0, -1]), "explored_place": np.array([1, -1])}
    decision = decision._replace(**explored, explored_propensity=np.array([0.2, 0.9]))
    one, other = impressions_of(page._replace(decision=decision), "abc", times=[NOW, NOW])
    assert (one.explored, one.explored_place, one.explored_propensity) == ("a", 1, 0.2)
    assert (other.explored, other.explored_place, other.explored_propensity) == (None, -1, 0.9)


@pytest.mark.parametrize(("one", "other"), [("की", "को"), ("กัด", "กิด"), ("がく", "かく"), ("C++", "C#"), ("C", "c#")])
def test_words_that_differ_by_a_mark_that_spells_stay_apart(one, other):
    assert normalised(one) != normalised(other)
    assert len(normalised(one).split()) == 1


@pytest.mark.parametrize(("one", "other"), [("Beyoncé", "BEYONCE"), ("#tag", "tag"), ("rock+roll", "Rock Roll")])
def test_accents_and_loose_signs_make_no_difference(one, other):
    assert normalised(one) == normalised(other)
