"""What was served becomes rounds: who stood where, who was clicked, and what is left out, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from ltrr.feedback.events import Action, Allocation
from ltrr.feedback.rounds import rounds_of, told
from ltrr.feedback.store import EventStore
from ltrr.learners.rounds_data import read_rounds
from tests.helpers import script
from tests.served import IDS, NUM, PAGE, QUERIES, events, fused, model


@pytest.fixture(scope="module")
def made():
    return model()


@pytest.fixture(scope="module")
def happened(made):
    return events(made)


def together(shown, did=()):
    return [[(n, i, [a for a in did if a.impression == i.id]) for n, i in enumerate(shown)]]


def test_each_candidate_has_its_place_on_the_page(made, happened, tmp_path):
    """The page is the cut backwards, and ends after PAGE: places go against the fused order, the rest is missing."""
    shown, did = happened
    with EventStore(f"sqlite:///{tmp_path}/e.db") as store:  # through the database
        store.append([*shown, *did])
        rounds, left = rounds_of(store.rounds(), made.columns, made.num)
    assert not left
    assert len({*rounds.cut.tolist()}) > 3
    for n, (docs, impression) in enumerate(zip(fused(), shown, strict=True)):
        wanted = [impression.shown.index(IDS[doc]) if IDS[doc] in impression.shown else -1 for doc in docs]
        assert rounds.places[n].tolist() == wanted
        assert rounds.cut[n] == impression.drawn.cut
        assert (rounds.places[n] >= 0).sum() == min(PAGE, rounds.cut[n])
    deep = rounds.cut > PAGE
    assert (rounds.places[deep, 0] == -1).all()  # what the cut let through and the ranker put below the page
    assert (rounds.places[np.arange(len(shown)), rounds.cut - 1] == 0).all()
    for n, impression in enumerate(shown):
        good = {a.entity for a in did if a.impression == impression.id and a.kind != "dismiss"}
        assert {impression.shown[place] for place in rounds.places[n, rounds.clicks[n]]} == good
    assert rounds.names == made.columns
    made.update(rounds)  # it fits


def test_an_action_counts_as_the_reward_says(made, happened):
    (first, *_), _ = happened
    entity = first.shown[0]
    for kind, after, seconds, clicked in (
        ("click", 1, None, True),
        ("dismiss", 1, None, False),
        ("play", 1, 5.0, False),
        ("play", 1, 50.0, True),
        ("click", 25 * 60, None, False),
    ):
        did = [Action("a", first.id, entity, kind, first.time + timedelta(minutes=after), seconds)]  # type: ignore[arg-type]
        assert rounds_of(together([first], did), made.columns, NUM)[0].clicks.any() == clicked


def test_what_cannot_teach_is_left_out_and_counted(made, happened):
    shown, _ = happened
    one = next(i for i in shown if len(i.shown) > 2)
    odd = [
        replace(one, executed=Allocation(one.drawn.depths, one.drawn.cut - 1)),
        replace(one, executed=one.drawn),  # as drawn
        replace(one, features=one.features[:-1]),
        replace(one, arms=("a", "other")),
        replace(one, features=()),
        replace(one, shown=(), scores=(), ranks=()),
        replace(one, ranks=()),
        replace(one, ranks=(one.ranks[1], one.ranks[1], *one.ranks[2:])),
        replace(one, drawn=Allocation(one.drawn.depths, 1)),  # in an order of the policy's own: it teaches
    ]
    rounds, left = rounds_of(together(odd), made.columns, NUM)
    assert len(rounds.row) == 2
    assert left == Counter(
        {
            "of other columns": 3,
            "a page of candidates that were not looked at": 2,
            "not run as drawn": 1,
            "an empty page": 1,
        }
    )
    assert told(left).startswith("3 ")
    spared = replace(one, drawn=Allocation((one.drawn.depths[0], 0), one.drawn.cut))
    assert len(rounds_of(together([one, spared]), made.columns, NUM)[0].row) == 2
    shallow = replace(one, drawn=Allocation((one.drawn.depths[0], one.drawn.depths[1] - 1), one.drawn.cut))
    assert rounds_of(together([one, spared]), made.columns, NUM)[0].depths is None
    for pages in ([spared, one, shallow], [one, shallow, spared]):
        rounds, left = rounds_of(together(pages), made.columns, NUM, all_arms=True)
        assert (len(rounds.row), left) == (1, Counter({"with an arm off or less deep": 2}))
        assert rounds.depths is not None
        assert rounds.depths.tolist() == [*one.drawn.depths]
    other = replace(one, drawn=Allocation((one.drawn.depths[0] - 1, one.drawn.depths[1]), one.drawn.cut))
    with pytest.raises(ValueError, match="left out: 2 with an arm"):  # each less deep than the other
        rounds_of(together([shallow, other]), made.columns, NUM, all_arms=True)
    with pytest.raises(ValueError, match="left out: 1 an empty page"):
        rounds_of(together([odd[5]]), made.columns, NUM)


def test_a_query_asked_twice_is_known_once(made, happened):
    shown, _ = happened
    rounds, _ = rounds_of(together([shown[0], shown[1], shown[0]]), made.columns, NUM)
    assert rounds.row.tolist() == [0, 1, 0]
    assert len(rounds.query) == 2


def test_the_script_writes_them_for_train_py(made, happened, tmp_path):
    shown, did = happened
    made.export(tmp_path)
    young = replace(shown[0], id="young", time=datetime.now(UTC))
    with EventStore(f"sqlite:///{tmp_path}/e.db") as store:
        store.append([*shown, *did, young, replace(shown[1], id="bare", features=())])
    flags = ("--events", f"sqlite:///{tmp_path}/e.db", "rounds", "--model", tmp_path, "--out", tmp_path / "r.npz")
    done = script("scripts/events.py", *flags)
    assert f"{len(QUERIES)} rounds" in done.stdout
    assert "left out: 1 of other columns" in done.stdout
    rounds = read_rounds(tmp_path / "r.npz")
    assert len(rounds.row) == len(QUERIES)
    assert rounds.names == made.columns
    assert rounds.place is not None
    assert rounds.depths is not None
    assert rounds.depths.tolist() == [*shown[0].drawn.depths]
