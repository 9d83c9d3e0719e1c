"""What is learned follows the store: online, after a restart, from a snapshot, for many processes; until erased."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from ltrr.arms.memory import Memory
from ltrr.feedback.events import Action, Impression
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.types import Context, Query

START = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def corpus(music):
    from ltrr.data.beir import open_dataset

    return open_dataset(music).corpus


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/events.db"


def lived(corpus, num: int, seed: int = 0) -> list[Impression | Action]:
    """Sessions of one or two queries; clicks, dismissals and plays, some twice, some before their impression."""
    rng = np.random.default_rng(seed)
    out: list[Impression | Action] = []
    for n in range(num):
        time = START + timedelta(hours=n)
        shown = tuple(corpus.ids[row] for row in rng.permutation(len(corpus))[:6])
        who = Context(f"c{rng.integers(8)}" if rng.random() < 0.9 else None)
        seen = Impression(f"{seed}i{n}", time, f"word{rng.integers(9)}", shown, session=f"{seed}s{n // 2}", context=who)
        did = [
            Action(f"{seed}a{n}-{i}", seen.id, entity, rng.choice(["click", "play", "dismiss"]).item(), time, 40.0)
            for i, entity in enumerate(shown)
            if rng.random() < 0.3
        ]
        out += [*did, seen] if rng.random() < 0.2 else [seen, *did]
        if rng.random() < 0.2:
            out += did
    return out


def scores(memory: Memory) -> np.ndarray:
    queries = [Query("q", f"word{n}", Context(c)) for n in range(9) for c in (None, "c0", "c1", "c5")]
    found = memory.search(queries, 20)
    return np.concatenate([found.docs, np.round(np.nan_to_num(found.scores, neginf=0), 6)])


def loop(corpus, url, folder=None) -> tuple[Loop, Memory]:
    memory = Memory(corpus)
    return Loop(EventStore(url), {"memory": memory}, memory.rows, folder), memory


def test_a_replay_gives_what_went_on_online(corpus, url):
    online, memory = loop(corpus, url)
    events = lived(corpus, 200)
    for start in range(0, len(events), 7):
        online.record(events[start : start + 7])
    assert (scores(memory)[:36] >= 0).any()
    _, replayed = loop(corpus, url)
    assert np.array_equal(scores(memory), scores(replayed))


def test_a_snapshot_and_the_events_after_it_give_the_same(corpus, url, tmp_path):
    folder = tmp_path / "learned"
    online, memory = loop(corpus, url, folder)
    online.record(lived(corpus, 100))
    online.snapshot()
    first = [path.name for path in folder.iterdir()]
    online.record(lived(corpus, 50, seed=1))
    _, restarted = loop(corpus, url, folder)
    assert np.array_equal(scores(memory), scores(restarted))
    online.close()
    assert len(list(folder.iterdir())) == 1  # the old one is gone
    assert [path.name for path in folder.iterdir()] != first
    _, restarted = loop(corpus, url, folder)
    assert np.array_equal(scores(memory), scores(restarted))


def test_a_snapshot_is_used_and_not_for_another_store(corpus, url, tmp_path):
    folder = tmp_path / "learned"
    online, memory = loop(corpus, url, folder)
    online.record(lived(corpus, 60))
    online.snapshot()
    taken = []
    restarted = Memory(corpus)
    restarted.take = lambda seen, did: taken.append((seen, did))  # type: ignore[method-assign]
    Loop(EventStore(url), {"memory": restarted}, restarted.rows, folder)
    assert taken == []
    assert np.array_equal(scores(memory), scores(restarted))
    with pytest.warns(UserWarning, match="learning anew"):
        _, other = loop(corpus, f"sqlite:///{tmp_path}/other.db", folder)
    assert len(other) == 0


def test_learners_follow_other_processes(corpus, url):
    one, memory = loop(corpus, url)
    two, other = loop(corpus, url)
    events = lived(corpus, 40)
    one.record(events[:30])
    two.record(events[30:])
    one.catch_up()
    assert np.array_equal(scores(memory), scores(other))


def test_erased_from_store_learners_and_snapshots(corpus, url, tmp_path):
    folder = tmp_path / "learned"
    online, memory = loop(corpus, url, folder)
    events = lived(corpus, 80)
    online.record(events)
    online.snapshot()
    theirs = {e.id for e in events if isinstance(e, Impression) and e.context.customer == "c0"}
    assert online.erase("c0") == (len(theirs), len({e.id for e in events if getattr(e, "impression", "") in theirs}))
    kept = [e for e in events if e.id not in theirs and getattr(e, "impression", "") not in theirs]
    without = Memory(corpus)
    without.observe(kept)
    assert np.allclose(scores(memory), scores(without), atol=1e-6)
    _, restarted = loop(corpus, url, folder)
    assert np.allclose(scores(memory), scores(restarted), atol=1e-6)
    assert not any(b"c0" in path.read_bytes() for path in folder.rglob("*.npz"))


def test_it_keeps_itself(corpus, url, tmp_path):
    folder = tmp_path / "learned"
    online, _ = loop(corpus, url, folder)
    now = datetime.now(UTC)
    fresh = Impression("fresh", now, "word", (corpus.ids[0],))
    online.record([fresh, replace(fresh, id="old", time=now - timedelta(days=40))])
    with online:
        online.keep(timedelta(seconds=0.02), days=30)
        for _ in range(200):
            if (
                folder.exists()
                and list(folder.glob("2-0"))
                and online._store.expire(now - timedelta(days=30)) == (0, 0)
            ):
                break
            online._stop.wait(0.02)
    assert [event.id for batch in online._store.impressions() for _, event in batch] == ["fresh"]
    assert [path.name for path in folder.iterdir()] == ["2-0"]


def test_a_learner_that_is_new_learns_all(corpus, url, tmp_path):
    folder = tmp_path / "learned"
    online, memory = loop(corpus, url, folder)
    online.record(lived(corpus, 30))
    online.snapshot()
    both = {"memory": Memory(corpus), "second": Memory(corpus)}
    Loop(EventStore(url), both, memory.rows, folder)
    for learner in both.values():
        assert np.array_equal(scores(learner), scores(memory))


def test_a_snapshot_outlives_the_events_that_it_learned_from(corpus, url, tmp_path):
    folder = tmp_path / "learned"
    online, memory = loop(corpus, url, folder)
    online.record(lived(corpus, 60))
    online.snapshot()
    before = scores(memory)
    online._store.expire(START + timedelta(days=400))
    assert not any(online._store.shown())
    _, restarted = loop(corpus, url, folder)
    assert np.array_equal(scores(restarted), before)


def test_an_erasure_reaches_snapshots_of_before_and_processes_that_go_on(corpus, url, tmp_path):
    """A kill after the deletion, another arm's settings, another process: nobody brings the evidence back."""
    events = lived(corpus, 80)
    without = Memory(corpus)
    theirs = {e.id for e in events if isinstance(e, Impression) and e.context.customer == "c0"}
    without.observe([e for e in events if e.id not in theirs and getattr(e, "impression", "") not in theirs])
    folders = [tmp_path / "one", tmp_path / "two"]
    processes = [loop(corpus, url, folder) for folder in folders]
    processes[0][0].record(events)
    for online, _ in processes:
        online.snapshot()
    EventStore(url).erase("c0")  # and killed: no snapshot follows
    restarted = loop(corpus, url, folders[0])[1]
    assert np.allclose(scores(restarted), scores(without), atol=1e-6)
    online, other = processes[1]
    online.snapshot()
    assert np.allclose(scores(other), scores(without), atol=1e-6)
    assert not any(b"c0" in path.read_bytes() for path in folders[1].rglob("*.npz"))
    back = Impression("back", START + timedelta(days=9), "word1", (corpus.ids[0],), context=Context("c0"))
    online.record([back, Action("did", "back", corpus.ids[0], "click", back.time)])  # who comes back is heard
    assert "c0" in other.customers()
    assert "c0" in loop(corpus, url, folders[1])[1].customers()


def test_a_damaged_snapshot_costs_time_and_nothing_else(corpus, url, tmp_path):
    folder = tmp_path / "learned"
    online, memory = loop(corpus, url, folder)
    online.record(lived(corpus, 30))
    online.close()
    (path,) = folder.rglob("memory.npz")
    (folder / ".new-left").mkdir()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="learning anew"):
        _, restarted = loop(corpus, url, folder)
    assert np.array_equal(scores(restarted), scores(memory))
    assert not (folder / ".new-left").exists()


def test_a_learner_that_fails_stops_nobody(corpus, url):
    class Failing(Memory):
        def take(self, seen, did) -> None:
            raise OverflowError("too large")

    memory = Memory(corpus)
    online = Loop(EventStore(url), {"failing": Failing(corpus), "memory": memory}, memory.rows)
    events = lived(corpus, 30)
    with pytest.warns(UserWarning, match="failing could not learn from '0i0'"):
        online.record(events)
    alone = Memory(corpus)
    alone.observe(events)
    assert np.array_equal(scores(memory), scores(alone))
    for every, days, name in ((0, None, "snapshot_s"), (1, -3, "keep_days")):
        with pytest.raises(ValueError, match=name):
            online.keep(timedelta(seconds=every), days)
