"""An attacker's events are what the service would send, and a learner that ignores them suffers no damage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ltrr.feedback.events import Action, Impression
from ltrr.simulation.attack import ATTACKS, attack, damage
from ltrr.simulation.worlds import World
from tests.simulation.test_worlds import Fake, Parts

START = datetime(2026, 1, 1, tzinfo=UTC)


class Listening(Fake):
    """A learner that keeps its events."""

    def __init__(self) -> None:
        super().__init__(9)
        self.events: list[Impression | Action] = []

    def observe(self, events) -> None:
        self.events += events


@pytest.mark.parametrize("kind", ATTACKS)
def test_one_customer_acts_on_shown_documents_every_two_seconds(kind: str, music) -> None:
    world, learner = World(Parts(music), "memory"), Listening()
    target, num = attack(world, world.funnel(learner), learner, kind, clicks=70, begin=START, seed=1)
    pages = {e.id: e for e in learner.events if isinstance(e, Impression)}
    actions = [e for e in learner.events if isinstance(e, Action)]
    assert len(actions) == num
    assert {page.context.customer for page in pages.values()} == {"attacker"}
    assert len({page.session for page in pages.values()}) == 70
    texts = {query.text for query in world.train}
    for action in actions:
        page = pages[action.impression]
        place = page.shown.index(action.entity)
        assert page.time - START < timedelta(seconds=2 * 70)
        if kind == "push":
            assert action.entity == world.corpus.ids[target]
            assert page.query == world.corpus[target].title
        else:
            assert place == (0 if kind == "dismiss" else len(page.shown) - 1)
            asked = " ".join(page.query.split()[::-1]) if kind == "crowd" else page.query
            assert asked in texts
        assert action.kind == ("dismiss" if kind == "dismiss" else "click")


def test_who_learns_nothing_loses_nothing(music) -> None:
    measures = damage(World(Parts(music), "memory"), "worst", rounds=20, clicks=30)
    assert measures.pop("actions") == 30
    assert set(measures.values()) == {0.0}
    with pytest.raises(ValueError, match="kind: there is no 'worse'"):
        damage(World(Parts(music), "memory"), "worse")
