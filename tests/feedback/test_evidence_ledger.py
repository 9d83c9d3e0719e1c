"""Evidence is a function of the set of events, counts what was examined, and bounds what one customer can move."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from ltrr.feedback.events import Action, Impression
from ltrr.feedback.evidence.ledger import Ledger
from ltrr.feedback.evidence.sums import Sums
from ltrr.types import Context

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
ENTITIES = [f"e{i}" for i in range(30)]
ROWS = {entity: row for row, entity in enumerate(ENTITIES[:-1])}  # the last is not in the corpus
EXAMINATION = (1.0, 0.5, 0.25)
Event = Impression | Action


def ledger(**options) -> Ledger:
    return Ledger(Sums(**options), ROWS, examination=EXAMINATION)


def impression(
    n: int, query: str, shown: str, *, customer: str | None = "c", session: str | None = None, after: float = 0
):
    time = START + timedelta(minutes=after)
    return Impression(f"i{n}", time, query, tuple(shown.split()), session=session, context=Context(customer=customer))


def click(n: int, entity: str, *, after: float = 1, kind: str = "click", number: int = 0) -> Action:
    return Action(f"a{n}-{entity}-{kind}-{number}", f"i{n}", entity, kind, START + timedelta(minutes=after))  # type: ignore[arg-type]


def world(num: int = 300, seed: int = 0) -> list[Event]:
    """Customers with sessions of one to three queries, some clicks, some late, in the order of time."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for n in range(num):
        customer = f"c{rng.integers(12)}" if rng.random() < 0.9 else None
        shown = [ENTITIES[i] for i in rng.permutation(len(ENTITIES))[:5]]
        session = f"s{n // 3}-{customer}"
        at = 30 * (n // 3) + 2 * (n % 3)
        events.append(
            impression(n, f"query {rng.integers(20)}", " ".join(shown), customer=customer, session=session, after=at)
        )
        for entity in shown:
            if rng.random() < 0.2:
                kind = ("click", "favourite", "dismiss")[rng.integers(3)]
                events.append(click(n, entity, after=at + int(rng.integers(1, 600)), kind=kind))
    return events


def table(ledger: Ledger, customer: str | None = None) -> dict[tuple[str, str], float]:
    """(query, entity) -> score."""
    sums = ledger.sums
    out = {}
    for query, pairs in zip(sums.queries, sums.pairs_of, strict=True):
        numbers = np.array(pairs, np.int64)
        scores = sums.counts(numbers, np.full(len(numbers), sums.find_customer(customer))).mean(strength=2.0)
        out |= {(query, ENTITIES[row]): score for row, score in zip(sums.rows(numbers), scores, strict=True)}
    return out


def same(a: dict, b: dict) -> None:
    assert {k for k, v in a.items() if v > 1e-12} == {k for k, v in b.items() if v > 1e-12}
    for key, value in a.items():
        assert b.get(key, 0.0) == pytest.approx(value, abs=1e-9), key


def test_evidence_is_trials_where_looked_at_and_successes_where_clicked():
    book = ledger(half_life=timedelta(days=1e6))
    book.add([impression(0, "Love!", "e1 e2 e3 e4"), click(0, "e2"), click(0, "e3", kind="dismiss")])
    found = table(book, "c")
    assert found["love", "e1"] == 0.0  # one trial, no success
    assert found["love", "e2"] == pytest.approx(1 / (2 + 0.5), rel=1e-3)
    assert found["love", "e3"] == 0.0
    book.sums.predict(["love"] * 4, [1, 2, 3, 4], [0.5] * 4)
    found = table(book, "c")
    assert found["love", "e1"] == pytest.approx(1 / (2 + 1), rel=1e-3)
    assert found["love", "e2"] == pytest.approx((1 + 1) / (2 + 0.5), rel=1e-3)
    assert found["love", "e3"] == pytest.approx(1 / (2 + 1), rel=1e-3)  # a dismissal was looked at, wherever it stood
    assert found["love", "e4"] == pytest.approx(1 / (2 + 0.25), rel=1e-3)  # deeper than the model: as its last
    assert table(book, None)["love", "e2"] == 0.5  # to others only the prediction, until three customers agree


@pytest.mark.parametrize(("seed", "budget"), [(0, 300.0), (1, 300.0), (2, 30.0), (3, 4.0)])
def test_order_delay_and_repetition_change_nothing(seed, budget):
    events = world(seed=seed)
    whole = ledger(budget=budget)
    whole.add(events)
    rng = np.random.default_rng(seed)
    shuffled = ledger(budget=budget)
    for i in rng.permutation(len(events)):
        shuffled.add([events[i]])
    twice = ledger(budget=budget)
    for start in range(0, len(events), 7):
        twice.add(events[max(0, start - 7) : start + 7])
    for other in (shuffled, twice):
        for customer in (None, "c1", "c5"):
            same(table(whole, customer), table(other, customer))


def test_a_click_after_a_reformulation_credits_the_queries_before():
    events: list[Event] = [
        impression(0, "tune of the summer", "e1 e2", session="s"),
        impression(1, "summer song", "e3 e4", session="s", after=2),
        impression(2, "solar e9", "e9", session="s", after=4),
        click(2, "e9", after=5),
        impression(3, "elsewhere", "e1", session="t", after=3),
    ]
    book = ledger(half_life=timedelta(days=1e6))
    book.add(events)
    found = table(book, "c")
    assert found["solar e9", "e9"] == pytest.approx(1 / 3, rel=1e-3)
    assert found["summer song", "e9"] == pytest.approx(0.5 / 2.5, rel=1e-3)
    assert found["tune of the summer", "e9"] == pytest.approx(0.25 / 2.25, rel=1e-3)
    assert ("elsewhere", "e9") not in found
    book.add([click(1, "e4", after=6)])  # late: the second query had brought something, so the credit ends there
    found = table(book, "c")
    assert found["summer song", "e9"] == found["tune of the summer", "e9"] == 0.0
    assert found["tune of the summer", "e4"] == pytest.approx(0.5 / 2.5, rel=1e-3)


def test_one_customer_is_bounded_and_alone_until_three():
    book = ledger(half_life=timedelta(days=1e6), cap=3.0, budget=1e9)
    for n in range(500):
        book.add([impression(n, "q", "e1", customer="loud"), click(n, "e1")])
    assert table(book, "other")["q", "e1"] == 0.0
    assert table(book, "loud")["q", "e1"] == pytest.approx(3 / 5, rel=1e-3)
    for n, customer in enumerate(("x", None, None, "y"), 500):
        assert table(book, "other")["q", "e1"] == 0.0  # who gives no name is nobody
        book.add([impression(n, "q", "e1", customer=customer), click(n, "e1")])
    assert table(book, "other")["q", "e1"] == pytest.approx((3 + 1 + 1 + 2) / (2 + 7), rel=1e-3)
    for n in range(1000, 1500):
        book.add([impression(n, "q", "e1", customer="hater")])  # never clicked
    assert table(book, "other")["q", "e1"] == pytest.approx(7 / (2 + 7 + 3), rel=1e-3)


def test_who_is_everywhere_counts_little_for_others_and_fully_for_themselves():
    options = {"half_life": timedelta(days=1000), "budget": 10.0}
    honest, attacked = ledger(**options), ledger(**options)
    for book in (honest, attacked):
        for n, customer in enumerate(("x", "y", "z")):
            book.add([impression(n, "q", "e1 e2", customer=customer), click(n, "e1")])
            book.add([impression(10 + n, "r", "e1 e2", customer="xy"[n % 2]), click(10 + n, "e2")])
    for n in range(100, 420):  # 40 trials of each of eight queries
        query = "qrstuvwx"[n % 8]
        attacked.add([impression(n, query, "e2 e1", customer="loud"), click(n, "e2")])
    before, after = table(honest, "other"), table(attacked, "other")
    assert after["q", "e2"] == before["q", "e2"] == 0.0  # they are no third, where two agree
    assert after["r", "e2"] == before["r", "e2"] == 0.0
    assert after["q", "e1"] == pytest.approx(before["q", "e1"], abs=0.02)
    assert table(attacked, "loud")["s", "e2"] == pytest.approx(3 / 5, rel=1e-3)
    assert attacked.sums._halvings.values.max() > 4
    later = START + timedelta(days=9000)  # what they did decays, and they are one of many again
    attacked.add([replace(impression(999, "z", "e1", customer="x"), time=later)])
    assert attacked.sums._halvings.values.max() == 0


def test_old_evidence_counts_less():
    book = ledger(half_life=timedelta(days=10))
    book.add([impression(0, "q", "e1"), click(0, "e1")])
    book.add([impression(1, "other", "e2", after=60 * 24 * 20)])  # time goes on
    assert table(book, "c")["q", "e1"] == pytest.approx(0.25 / 2.25, rel=1e-3)


@pytest.mark.parametrize("customer", ["c1", "c7"])
def test_erasing_a_customer_is_as_if_they_had_never_come(customer):
    events = world()
    book, without = ledger(), ledger()
    book.add(events)
    book.erase(customer)
    theirs = {e.id for e in events if isinstance(e, Impression) and e.context.customer == customer}
    without.add(e for e in events if (e.id if isinstance(e, Impression) else e.impression) not in theirs)
    for asks in (None, "c2"):
        same(table(without, asks), table(book, asks))
    same(table(book), table(book, customer))  # nothing of their own is left
    assert {q for q in book.sums.queries if q} == {
        q for q, pairs in zip(without.sums.queries, without.sums.pairs_of, strict=True) if pairs
    }
    assert customer.encode() not in book.sums.state()["slot_customer"].tobytes().replace(b"c10", b"").replace(
        b"c11", b""
    )
    book.erase("nobody")


@pytest.mark.parametrize("sealed", [False, True])
def test_a_restored_state_goes_on_as_if_nothing_had_happened(sealed):
    events = world(400)
    book, again = ledger(), ledger()
    book.sums.predict(["query 1", "never asked"], [3, 4], [0.4, 0.2])
    book.add(events[:300])
    if sealed:
        book.seal()
    again.sums.restore(book.sums.state())
    again.restore(book.state())
    for one in (book, again):
        one.add(events[300:])
    for customer in (None, "c3"):
        same(table(book, customer), table(again, customer))
    assert len(again.sums) <= len(book.sums)


def test_sealing_forgets_old_sessions_and_keeps_their_sums():
    book = ledger(half_life=timedelta(days=1e6))
    book.add(world())
    before = table(book, "c1")
    book.seal()
    assert book.state() != "[[], []]"  # too young
    book.add([impression(9999, "later", "e1", after=60 * 24 * 30)])
    book.seal()
    assert "i9999" in book.state()
    assert "i1" not in book.state().replace("i9999", "")
    book.add([click(1, entity, after=2) for entity in ENTITIES])  # too late for its session
    after = table(book, "c1")
    assert all(after[key] == pytest.approx(value, rel=1e-3) for key, value in before.items())
