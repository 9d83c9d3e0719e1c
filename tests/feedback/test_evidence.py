"""Evidence equals a slow sum over events, by customer and by arm, and survives snapshots, erasure and compaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from ltrr.feedback.events import Action, Impression
from ltrr.feedback.evidence.evidence import EXACT, MEANING, WORDS, Evidence
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.types import Context, Query

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
ROWS = {f"e{i}": i for i in range(9)}
TITLES = ["love song", "night song", "river", "golden river", "summer", "winter tale", "the tide", "echo", "song"]
ARMS = ("lexical", "dense", "memory")
EXAMINATION = (1.0, 0.5, 0.25)
QUERIES = ["love", "sad tune", "river song"]
CUSTOMERS = [None, *(f"c{i}" for i in range(6))]
Event = Impression | Action


def stream(num: int = 250, seed: int = 0) -> list[Event]:
    """Pages in sessions of their own, so that nothing is credited; some by arms in another order, some by none."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for n in range(num):
        arms = (ARMS, ARMS[::-1], ())[rng.choice(3, p=[0.6, 0.2, 0.2])]
        shown = tuple(f"e{row}" for row in rng.choice(11, 4, replace=False))  # two have no row
        ranks = tuple(tuple(5 if rng.random() < 0.5 else None for _ in arms) for _ in shown) if arms else ()
        who = Context(CUSTOMERS[rng.choice(7, p=[0.1, 0.4, *[0.1] * 5])])  # one is loud
        time = START + timedelta(hours=7 * n)
        events.append(Impression(f"i{n}", time, str(rng.choice(QUERIES)), shown, (), ranks, context=who, arms=arms))
        for place, entity in enumerate(shown):
            if rng.random() < 0.25:
                kind = "dismiss" if rng.random() < 0.2 else "click"
                events.append(Action(f"a{n}-{place}", f"i{n}", entity, kind, time + timedelta(minutes=1)))
    return events


def evidence(**options) -> Evidence:
    return Evidence(ROWS, TITLES, **{"examination": EXAMINATION, "sources": True} | options)


def reference(
    events: Sequence[Event], customer: str | None, *, cap: float, budget: float, half_life: float, distinct: int = 3
) -> dict[tuple[str, int], tuple[float, ...]]:
    """(query, row) -> successes, trials, failures, customers with a success and without, then successes, trials and
    failures of each arm: sums over single looks, written down from the definitions."""
    worth = defaultdict(dict)
    for event in events:
        if isinstance(event, Action):
            worth[event.impression][event.entity] = event.kind
    last = max(event.time for event in events)
    looks = defaultdict(list)  # (query, row), customer -> (success, trial, decay, arms)
    spent = defaultdict(float)
    for page in events:
        if not isinstance(page, Impression):
            continue
        decay = 0.5 ** ((last - page.time) / timedelta(days=half_life))
        for place, entity in enumerate(page.shown):
            if entity not in ROWS:
                continue
            kind = worth[page.id].get(entity)
            trial = 1.0 if kind == "dismiss" else EXAMINATION[min(place, 2)]
            by = {arm for arm, rank in zip(page.arms, page.ranks[place] if page.ranks else (), strict=True) if rank}
            looks[(page.query, ROWS[entity]), page.context.customer].append((float(kind == "click"), trial, decay, by))
            spent[page.context.customer] += decay * trial
    halvings = {who: max(0, int(np.ceil(np.log2(total / budget)))) for who, total in spent.items()}
    out = {}
    for pair in {pair for pair, _ in looks}:
        of = {who: some for (this, who), some in looks.items() if this == pair}
        success = {who: sum(s for s, *_ in some) > 0 for who, some in of.items()}
        trusted = {who for who in of if who is not None and halvings[who] == 0}
        succeeded = {who for who in trusted if success[who]}
        failed = trusted - succeeded
        numbers = []
        for arm in (None, *ARMS):
            total = np.zeros(3)
            for who, some in of.items():
                part = min(1.0, cap / max(sum(s for s, *_ in some), sum(t for _, t, *_ in some)))
                mine = [(s * d, t * d) for s, t, d, by in some if arm is None or arm in by]
                values = part * np.array(mine).reshape(-1, 2).sum(axis=0)
                shared = len(succeeded) >= distinct
                if shared or who == customer is not None:
                    total[:2] += values * (0.5 ** halvings[who] if shared else 1.0)
                if who in failed and len(failed) >= distinct:
                    total[2] += values[1]
            numbers.append(total)
        out[pair] = (*numbers[0], len(succeeded), len(failed), *np.concatenate(numbers[1:]))
    return out


def table(one: Evidence, customer: str | None) -> dict[tuple[str, int], tuple[float, ...]]:
    """The same from evidence, zeros left out."""
    queries = [Query("q", text, Context(customer)) for text in QUERIES]
    rows = np.tile(np.arange(-1, len(ROWS)), (len(QUERIES), 1))
    counts, by_arm = one.counts(queries, rows), one.by_arm(queries, rows)
    order = [one.arms.index(arm) for arm in ARMS if arm in one.arms]
    columns = [*counts[1:], *np.moveaxis(by_arm[:, :, order].reshape(*rows.shape, -1), 2, 0)]
    return {
        (text, int(row)): tuple(float(column[q, k]) for column in columns)
        for q, text in enumerate(QUERIES)
        for k, row in enumerate(rows[q].tolist())
        if any(column[q, k] for column in columns)
    }


def same(a: dict, b: dict) -> None:
    a, b = ({pair: values for pair, values in x.items() if np.abs(values).max() > 1e-9} for x in (a, b))
    assert a.keys() == b.keys()
    for pair, values in a.items():
        assert b[pair] == pytest.approx(values, abs=1e-9), pair


@pytest.mark.parametrize(
    "options", [{"cap": 3.0, "budget": 300.0}, {"cap": 1.0, "budget": 23.0}], ids=["free", "tight"]
)
def test_counts_are_sums_over_single_looks_whatever_their_order(options):
    events, options = stream(), options | {"half_life": 30.0}
    whole, shuffled = evidence(**options), evidence(**options)
    whole.observe(events)
    for i in np.random.default_rng(1).permutation(len(events)):
        shuffled.observe([events[i]])
    for customer in (None, "c1", "c5", "new"):
        expected = reference(events, customer, **options)
        assert any(values[2] for values in expected.values())  # failures
        assert any(values[3] >= 3 for values in expected.values())
        for one in (whole, shuffled):
            same(expected, table(one, customer))


def test_erasure_takes_sources_back_and_snapshots_keep_them(tmp_path):
    events = stream()
    options: dict[str, Any] = {"cap": 3.0, "budget": 300.0, "half_life": 30.0}
    one, again = evidence(**options), evidence(**options)
    one.observe(events[:200])
    one.save(tmp_path / "evidence.npz")
    again.load(tmp_path / "evidence.npz")
    gone = {e.id for e in events if isinstance(e, Impression) and e.context.customer == "c2"}
    kept = [e for e in events if (e.id if isinstance(e, Impression) else e.impression) not in gone]
    for each in (one, again):
        each.observe(events[200:])
        each.compact(0.0)
        same(reference(events, "c1", **options), table(each, "c1"))
        each.erase("c2")
        same(reference(kept, None, **options), table(each, None))
        same(reference(kept, "c1", **options), table(each, "c1"))


def test_a_snapshot_of_before_sources_has_none(tmp_path):
    events = stream(60)
    one = evidence(sources=False)
    one.observe(events)
    one.save(tmp_path / "evidence.npz")
    with np.load(tmp_path / "evidence.npz") as file:
        arrays = {name: file[name] for name in file.files if name not in ("arms", "by_arm")}
    np.savez(tmp_path / "old.npz", **arrays)
    again = evidence()
    again.load(tmp_path / "old.npz")
    assert again.arms == ()
    same(table(one, "c1"), table(again, "c1"))
    more = stream(30, seed=1)
    again.observe([replace(e, id=f"x{e.id}") if isinstance(e, Impression) else e for e in more])
    assert {*again.arms} == {*ARMS}


@pytest.mark.parametrize("sources", [True, False])
def test_a_loop_reads_sources_where_asked(tmp_path, sources):
    events = stream(60)
    observed, followed = evidence(), evidence()
    observed.observe(events)
    with EventStore(f"sqlite:///{tmp_path}/events.db") as store:
        store.append(events)
        Loop(store, {"evidence": followed}, ROWS, sources=sources)
    if sources:
        same(table(observed, "c1"), table(followed, "c1"))
    assert bool(followed.arms) == sources


class Meanings:
    """An encoder for which "song" and "tune" mean the same."""

    id = "meanings"

    def encode(self, texts, *, is_query: bool = False) -> np.ndarray:
        out = np.zeros((len(texts), 16), np.float32)
        for i, text in enumerate(texts):
            for word in text.replace("tune", "song").split():
                out[i, sum(map(ord, word)) % 16] += 1
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def taught(**options) -> Evidence:
    """ "sad tune", on which three customers agree, and "my secret", which is ann's alone."""
    one = Evidence(ROWS, TITLES, Meanings(), **options)
    for n, (customer, query, entity) in enumerate(
        [("ann", "sad tune", "e1"), ("bob", "sad tune", "e1"), ("cid", "sad tune", "e1"), ("ann", "my secret", "e7")]
    ):
        page = Impression(f"i{n}", START + timedelta(days=n), query, (entity,), context=Context(customer))
        one.observe([page, Action(f"a{n}", page.id, entity, "click", page.time)])
    return one


def test_queries_alike_are_found_by_what_they_are_alike_in():
    one = taught()
    asked = [
        Query("q", text, Context("bob")) for text in ("sad tune", "Sad tune, please", "sad song", "other", "my secret")
    ]
    near = one.like(asked)
    assert near.asked.tolist() == [0, 1, 2, 4]
    assert near.kind.tolist() == [EXACT, WORDS, MEANING, EXACT]  # the last is ann's alone, and so are its counts
    secret = Query("q", "my secrets secret", Context("ann"))
    assert one.like([secret, replace(secret, context=Context("bob"))]).asked.tolist() == [0]
    assert near.similarity[0] == 1.0
    assert 0.5 <= near.similarity[1] < 1.0
    assert near.similarity[2] == pytest.approx(1.0, abs=1e-6)
    assert one.like([]).asked.tolist() == []


def test_a_recalled_candidate_has_its_counts_and_shows_nobody_what_is_private():
    one = taught()
    one.predict(["Sad tune", "my secret"], [2, 2], [0.3, 0.4])
    asked = [Query("q", text, Context(who)) for text in ("sad tune", "my secret") for who in ("ann", "dora")]
    recalled = one.recall(asked)
    assert recalled.asked.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    rows = [recalled.rows[recalled.asked == q] for q in range(4)]
    counts = one.counts(asked, np.array(rows))
    for column, recalled_column in zip(counts, recalled.counts, strict=True):
        np.testing.assert_array_equal(column.ravel(), recalled_column)
    successes = {
        (int(q), int(row)): s
        for q, row, s in zip(recalled.asked, recalled.rows, recalled.counts.successes, strict=True)
    }
    assert successes[0, 1] == successes[1, 1] == pytest.approx(3.0, rel=0.05)
    assert successes[2, 7] == pytest.approx(1.0, rel=0.05)
    assert successes[3, 7] == 0.0  # ann's alone
    assert counts.prior.max() == 0.4


def test_an_erasure_while_compacting_stays():
    one = taught()
    restored = one._restored

    def meanwhile(arrays, open_events):
        ledger = restored(arrays, open_events)
        one._restored = restored
        one.erase("ann")
        return ledger

    one._restored = meanwhile
    one.compact()
    assert "ann" not in one.customers()
    for text in ("sad tune", "my secret"):
        assert one.counts([Query("q", text, Context("ann"))], np.array([[1, 7]])).successes.max() == 0.0


def test_arguments_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=r"^half_life: 3 is not at least 7 days"):
        Evidence(ROWS, TITLES, half_life=3)
    many = tuple(f"arm{n}" for n in range(70))
    page = Impression("i", START, "q", ("e1",), (), (tuple(range(70)),), arms=many)
    with pytest.raises(ValueError, match="evidence is kept for 62 arms"):
        evidence().observe([page])
