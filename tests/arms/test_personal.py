"""The personal arm: tastes are told apart, events move who acted and nobody else, and what was forgotten is gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from ltrr.arms.engagement import Engagement
from ltrr.arms.personal import Personal
from ltrr.data.beir import Corpus, Document, open_dataset
from ltrr.feedback.events import Action, Impression, Kind
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.index.manifest import IndexRefused
from ltrr.protocols import Arm
from ltrr.types import Context, Query
from tests.helpers import shared

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
WORDS = ("rock", "jazz")
NUM = 24  # documents: even rows rock, odd rows jazz; the last two are new, nobody engaged with them
NEW_ROCK, NEW_JAZZ = NUM - 2, NUM - 1


class Words:
    """An encoder that knows two words, and gives every text something of its own."""

    id = "words"

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        own = [np.random.default_rng(sum(map(ord, text))).normal(0, 0.1, 8) for text in texts]
        out = np.array([[2.0 * (w in text) for w in WORDS] + list(o) for text, o in zip(texts, own, strict=True)])
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def corpus_of(*, named: bool = False, **metadata: list) -> Corpus:
    """Titles say nothing, unless `named`."""
    return Corpus.from_documents(
        Document(f"d{i}", f"{WORDS[i % 2] if named else 'name'} {i}", "", {k: v[i] for k, v in metadata.items()})
        for i in range(NUM)
    )


CORPUS = corpus_of()


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """30 customers, of whom even ones play 4 to 8 rock titles and odd ones jazz, and one title of the other's."""
    rng = np.random.default_rng(0)
    lines = ["user\tentity\tplays"]
    for u in range(30):
        mine = rng.choice(np.arange(u % 2, NUM - 2, 2), 4 + u % 5, replace=False)
        plays = {int(row): int(rng.integers(50, 5000)) for row in mine} | {int(rng.integers(11)) * 2 + 1 - u % 2: 1}
        lines += [f"c{u}\td{row}\t{n}" for row, n in plays.items()]
    path = tmp_path_factory.mktemp("table") / "interactions.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def opened(
    root: Path, table: Path | None, corpus: Corpus = CORPUS, encoder: Words | None = None, **options
) -> Personal:
    arm = Personal(encoder, interactions=str(table) if table else None, **{"components": 4, **options})
    arm.build(corpus, root)
    return arm.open(corpus, root)


def query(customer: str | None = None, *, locale: str | None = None, session: str | None = None) -> Query:
    return Query("q", "", Context(customer, locale, attributes={"session": session} if session else {}))


def found(arm: Personal, one: Query, k: int = NUM) -> list[int]:
    (docs,), (scores,) = arm.search([one], k)
    assert len(docs) == k
    np.testing.assert_array_equal(np.isneginf(scores), docs < 0)
    assert (np.diff(scores[docs >= 0]) <= 0).all()
    return docs[docs >= 0].tolist()


def everyone(arm: Personal) -> dict[str, np.ndarray]:
    names = [f"c{u}" for u in range(30)]
    return dict(zip(names, arm.embed([query(name) for name in names]), strict=True))


def acted(
    number: int, row: int, customer: str | None, kind: Kind = "click", *, session: str | None = None
) -> list[Impression | Action]:
    time = START + timedelta(minutes=number)
    seen = Impression(f"i{number}", time, "", (f"d{row}",), session=session, context=Context(customer))
    return [seen, Action(f"a{number}", seen.id, f"d{row}", kind, time + timedelta(seconds=9))]


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


# -- what is learned


def test_tastes_are_told_apart_by_co_engagement_alone(table: Path, tmp_path: Path) -> None:
    arm = opened(tmp_path, table)
    assert isinstance(arm, Arm)
    for u in range(30):
        best = found(arm, query(f"c{u}"), 8)  # one that is known is of the other taste
        assert sum(row % 2 == u % 2 for row in best) >= 7, (u, best)
        assert not {NEW_ROCK, NEW_JAZZ} & set(found(arm, query(f"c{u}")))  # nobody played them, nothing is known


def test_vectors_are_the_low_rank_ridge_regression(table: Path, tmp_path: Path) -> None:
    """Against the closed form W (W'W + λ)⁻¹ W'W, dense and of full rank."""
    damping, ridge = 0.25, 0.1
    arm = opened(tmp_path, table, components=100, damping=damping, ridge=ridge)
    read = Engagement.read(table, CORPUS)
    strengths = np.zeros((30, NUM))
    strengths[read.who, read.rows] = read.strength
    factors = np.maximum((strengths > 0).sum(axis=0), 1.0) ** -damping
    matrix = strengths / np.sqrt(strengths.sum(axis=1, keepdims=True)) * factors
    gram = matrix.T @ matrix
    top = np.linalg.eigvalsh(gram)[-1]
    expected = (strengths * factors) @ np.linalg.solve(gram + ridge * top * np.eye(NUM), gram)
    found = arm.search([query(f"c{u}") for u in range(30)], NUM)
    for u in range(30):
        docs = found.docs[u][found.docs[u] >= 0]
        assert set(docs) == set(np.flatnonzero(expected[u] > 1e-6))
        scores = found.scores[u][: len(docs)]
        np.testing.assert_allclose(scores / scores[0], expected[u][docs] / expected[u][docs[0]], atol=2e-4)


def test_engagement_is_logarithmic_relative_and_summed(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(
        "who\twhat\tweight\tlocale\ttimestamp\nb\td1\t9\tde\t2026-01-02\na\td2\t1\t\t2026-01-01T12:00:00\n"
        "b\td0\t99\ten\t2026-01-01\nb\td1\t90\tde\t1970-01-03T00:00:00+00:00\n",
        encoding="utf-8",
    )
    read = Engagement.read(path, CORPUS)
    assert (read.names.tolist(), read.locales.tolist()) == (["b", "a"], ["de", ""])
    assert (read.who.tolist(), read.rows.tolist()) == ([0, 0, 1], [0, 1, 2])
    np.testing.assert_allclose(read.strength, [1, 1, 1])  # 99 = 9 + 90: both are the mean
    np.testing.assert_allclose(read.days - read.days[0], [0, 1, 0.5])


def test_what_is_old_counts_less(tmp_path: Path) -> None:
    lines = [f"c{u}\td{row}\t9\t2020-01-01" for u in range(8) for row in range(u % 2, 8, 2)]
    lines += ["me\td0\t9\t2024-01-01", "me\td2\t9\t2024-01-01", "me\td1\t9\t2026-01-01"]
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(["user\tentity\tplays\ttimestamp", *lines]), encoding="utf-8")
    for half_life, taste in ((1e6, 0), (30.0, 1)):  # two of rock, one of jazz, which is newer
        order = found(opened(tmp_path / str(half_life), path, half_life=half_life), query("me"))
        assert next(row for row in order if row > 2) % 2 == taste  # the best of those not played


def test_text_lets_new_entities_be_found(table: Path, tmp_path: Path) -> None:
    corpus = corpus_of(named=True)
    for text in (0.3, 0.001):  # its own part; and, where that hardly counts, the learned part that text predicts
        arm = opened(tmp_path / str(text), table, corpus, Words(), text=text)
        for u in range(30):
            own, other = (NEW_ROCK, NEW_JAZZ)[:: 1 - 2 * (u % 2)]
            best = found(arm, query(f"c{u}"))
            assert own in best[:12]
            assert other not in best[:12]
    alone = opened(tmp_path / "alone", table, corpus, Words(), text=1.0)
    assert all(row % 2 == 1 for row in found(alone, query("c1"), 12))


# -- who is unknown


def test_unknown_customers_get_what_is_popular_in_their_locale(tmp_path: Path) -> None:
    lines = [
        f"{place}{u}\td{row}\t1\t{place}"
        for place, first in (("de", 0), ("en", 10))
        for u in range(6)
        for row in range(first, first + 6 - u)
    ]
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(["user\tentity\tplays\tlocale", *lines, "x\td10\t1\t"]), encoding="utf-8")
    arm = opened(tmp_path, path)
    assert found(arm, query(locale="de"), 4) == [0, 1, 2, 3]
    assert found(arm, query("nobody", locale="en"), 4) == [10, 11, 12, 13]
    for one in (query(), query(locale="fr")):  # nothing known of them: all over the world
        assert found(arm, one, 4) == [10, 0, 1, 11]
    assert found(arm, query("de0", locale="en"))[0] < 10  # who is known gets their own


def test_without_a_table_documents_say_what_is_popular(tmp_path: Path) -> None:
    plays, locale = list(range(NUM)), [["de"] if i % 3 else ["de", "en"] for i in range(NUM)]
    arm = opened(tmp_path, None, corpus_of(plays=plays, locale=locale))
    assert found(arm, query(), 3) == [23, 22, 21]
    assert found(arm, query(locale="en")) == [21, 18, 15, 12, 9, 6, 3, 0]
    assert found(opened(tmp_path / "bare", None), query(), 3) == [0, 1, 2]


# -- events


def test_an_action_moves_its_customer_at_once_and_nobody_else(table: Path, tmp_path: Path) -> None:
    arm = opened(tmp_path, table)
    before = everyone(arm)
    arm.observe(acted(1, 3, "new") + acted(2, 5, None) + acted(3, 7, "c0", "favourite"))
    after = everyone(arm)
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"c0"}
    jazz = arm._vectors[1]  # a title of the other taste
    assert after["c0"] @ jazz > before["c0"] @ jazz
    assert all(row % 2 for row in found(arm, query("new"), 8))  # one click on jazz
    for n in range(12):
        arm.observe(acted(10 + n, 2 * n % 22, "new", "favourite"))
    assert sum(row % 2 == 0 for row in found(arm, query("new"), 8)) >= 7


def test_a_dismissal_pushes_away_and_alone_is_no_taste(table: Path, tmp_path: Path) -> None:
    arm = opened(tmp_path, table)
    popular = found(arm, query())
    arm.observe(acted(1, 3, "new", "dismiss"))
    assert found(arm, query("new")) == popular
    arm.observe(acted(2, 0, "new") + acted(3, 0, "other"))
    (mine, others) = arm.embed([query("new"), query("other")])
    assert mine @ arm._vectors[3] < others @ arm._vectors[3]


def test_the_session_counts_beside_the_customer(table: Path, tmp_path: Path) -> None:
    arm = opened(tmp_path, table)
    for start, name in ((1, "s"), (4, "t")):
        arm.observe(acted(start, 1, None, session=name) + acted(start + 1, 3, None, session=name))
    arm.observe(acted(9, 0, None, "dismiss", session="t"))
    assert all(row % 2 for row in found(arm, query(session="s"), 8))
    np.testing.assert_array_equal(*arm.embed([query(session="s"), query(session="t")]))  # what is liked, only
    assert found(arm, query(session="else")) == found(arm, query())
    jazz = arm._vectors[7]
    with_session, without = arm.embed([query("c0", session="s"), query("c0")])
    assert with_session @ jazz > without @ jazz
    assert found(arm, query("c0", session="s"), 1)[0] % 2 == 0  # half the weight: c0 still likes rock
    for n in range(5):
        arm.observe(acted(20 + n, 2 * n, None, session="s"))
    assert not any(row % 2 for row in found(arm, query(session="s"), 8))  # the last five count


def test_order_and_repetition_change_nothing(table: Path, tmp_path: Path) -> None:
    """Actions may come before their impression, twice, or with other ids' content; late ones earn nothing."""
    arm = opened(tmp_path, table)
    events = acted(1, 3, "c0") + acted(2, 5, "c0", "like")
    expected = everyone(opened(tmp_path, table))
    arm.observe([*events, Action("late", "i1", "d3", "favourite", START + timedelta(days=3))])
    arm.observe([Action("other", "i2", "d7", "favourite", START + timedelta(minutes=3))])  # was not on that page
    assert not equal(everyone(arm), expected)
    expected = everyone(arm)
    arm.observe(events + events[::-1])
    arm.observe([Action("a1", "i1", "d9", "favourite", START)])  # an id that it has had
    assert equal(everyone(arm), expected)
    for order in [*permutations(events)][::3]:
        again = Personal(interactions=str(table), components=4).open(CORPUS, tmp_path)
        for event in order:
            again.observe([event])
        assert equal(everyone(again), expected)


def test_erasing_restores_exactly(table: Path, tmp_path: Path) -> None:
    arm = opened(tmp_path, table)
    before = everyone(arm)
    arm.observe(acted(1, 3, "new", session="s") + acted(2, 5, "c1") + acted(3, 7, "c0"))
    kept = everyone(arm)["c1"]
    arm.erase("new")
    arm.erase("c0")
    assert found(arm, query("new")) == found(arm, query("c0")) == found(arm, query(session="s")) == found(arm, query())
    arm.observe(acted(1, 3, "new")[:1])  # the impression comes again: its action is forgotten
    assert found(arm, query("new")) == found(arm, query())
    arm.erase("new")
    after = everyone(arm)
    np.testing.assert_array_equal(after.pop("c1"), kept)
    del after["c0"]
    assert equal(after, before)
    arm.save(tmp_path / "state.npz")
    again = Personal(interactions=str(table), components=4).open(CORPUS, tmp_path)
    again.load(tmp_path / "state.npz")
    assert found(again, query("c0")) == found(arm, query())  # what the table says of them is forgotten, too
    again.observe(acted(9, 3, "c0"))
    assert all(row % 2 for row in found(again, query("c0"), 8))  # who comes back starts afresh


def test_saved_and_loaded_it_goes_on_as_before(table: Path, tmp_path: Path) -> None:
    arm, again = opened(tmp_path, table), Personal(interactions=str(table), components=4).open(CORPUS, tmp_path)
    arm.observe([*acted(1, 3, "new", session="s"), *acted(2, 5, "c0"), acted(3, 8, "c2")[1]])  # one waits
    arm.save(tmp_path / "state.npz")
    again.load(tmp_path / "state.npz")
    for both in (arm, again):
        both.observe(acted(3, 8, "c2"))
    queries = [query("new"), query("c0"), query("c2"), query(session="s"), query("c1", session="s")]
    np.testing.assert_array_equal(arm.embed(queries), again.embed(queries))
    assert not np.array_equal(arm.embed([query("c2")]), opened(tmp_path, table).embed([query("c2")]))


def test_compaction_keeps_what_counts_and_what_is_awaited(table: Path, tmp_path: Path) -> None:
    arm = opened(tmp_path, table)
    arm.observe([*acted(1, 3, "new"), acted(2, 5, "c1")[0], acted(3, 5, "c2")[1]])  # two lack their other half
    expected = everyone(arm)
    arm.compact()
    assert equal(everyone(arm), expected)
    week = 7 * 24 * 60
    arm.observe(acted(week, 7, "c0"))
    expected = everyone(arm)
    arm.compact()
    assert equal(everyone(arm), expected)
    arm.observe([acted(2, 5, "c1")[1], acted(3, 5, "c2")[0]])  # just in time
    after = everyone(arm)
    assert {name for name in after if not np.array_equal(after[name], expected[name])} == {"c1", "c2"}
    for number in (week + 1, 2 * week + 9):
        arm.observe([acted(number, 5, "c3")[0]])
    arm.compact()
    assert (len(arm._impressions), len(arm._actions)) == (
        5,
        4,
    )  # the second page without an action is too young to be forgotten
    arm.observe(acted(week * 600, 1, "c0"))
    arm.compact()
    assert list(arm._impressions) == [f"i{week * 600}"]  # ten half lives later


def test_the_loop_teaches_it_again_after_a_restart(table: Path, tmp_path: Path) -> None:
    arm = opened(tmp_path / "i", table)
    again, rows = opened(tmp_path / "i", table), {entity: row for row, entity in enumerate(CORPUS.ids)}
    with EventStore(f"sqlite:///{tmp_path}/events.db") as store:
        with Loop(store, {"personal": arm}, rows, tmp_path / "learned") as loop:
            loop.record(acted(1, 3, "new", session="s") + acted(2, 5, "c1") + acted(3, 7, "c0"))
            loop.erase("new")
        loop = Loop(store, {"personal": again}, rows, tmp_path / "learned")
        assert equal(everyone(again), everyone(arm))
        loop.record(acted(4, 7, "c0"))
        assert found(again, query("new")) == found(again, query())
        loop.erase("c0")
        loop.snapshot()
        assert not any(b'"c0"' in path.read_bytes() for path in (tmp_path / "learned").rglob("*.npz"))
        replayed = opened(tmp_path / "i", table)
        Loop(store, {"personal": replayed}, rows)
        assert equal(everyone(again), everyone(replayed))


def test_actions_on_unknown_entities_teach_nothing(table: Path, tmp_path: Path) -> None:
    arm = opened(tmp_path, table)
    before = everyone(arm)
    arm.observe([acted(1, 3, "c0")[0], Action("a", "i1", "gone", "click", START + timedelta(minutes=2))])
    assert equal(everyone(arm), before)


# -- folders and files


def test_open_gives_what_build_made_and_refuses_the_rest(table: Path, tmp_path: Path) -> None:
    corpus = corpus_of(named=True)
    arm = opened(tmp_path / "i", table, corpus, Words())
    again = Personal(Words(), interactions=str(table), components=4).open(corpus, tmp_path / "i")
    queries = [query("c0"), query("c1"), query(), query(locale="de")]
    for a, b in zip(arm.search(queries, 9), again.search(queries, 9), strict=True):
        np.testing.assert_array_equal(a, b)
    other = tmp_path / "other.tsv"
    other.write_text(table.read_text().replace("c29", "c30"), encoding="utf-8")
    arguments = {"encoder": Words(), "interactions": str(table), "components": 4}
    for change, message in (
        ({"interactions": str(other)}, "config interactions"),
        ({"components": 5}, "config components"),
        ({"text": 0.0}, "config text_fields"),
    ):
        with pytest.raises(IndexRefused, match=message):
            Personal(**{**arguments, **change}).open(corpus, tmp_path / "i")
    with pytest.raises(IndexRefused, match="corpus"):
        Personal(**arguments).open(CORPUS, tmp_path / "i")
    assert Personal.content({"interactions": str(table)}) != Personal.content({"interactions": str(other)})
    assert Personal.content({}) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c1\td99\t3", r"t\.tsv, line 3, id 'd99': no document has this id"),
        ("c1\td1", "line 3: no engagement: 'c1.td1'"),
        ("c1\td1\tmany", "line 3: no engagement.*\n.*user, entity, plays; a weight above 0"),
        ("c1\td1\t0", "line 3: no engagement"),
        ("c1\td1\tnan", "line 3: no engagement"),
        ("c1\td1\t1\t2", "line 3: no engagement"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(f"user\tentity\tplays\nc0\td0\t1\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Engagement.read(path, CORPUS)


def test_a_wrong_weight_is_named() -> None:
    with pytest.raises(ValueError, match=r"arms\.personal\.text: 1\.5 is not within 0 to 1"):
        Personal(text=1.5)


# -- Last.fm


@pytest.mark.data
def test_lastfm_twice_what_popular_finds(tmp_path: Path) -> None:
    """A fifth of each listener's artists left out at random; engagement alone; what was known is taken out."""
    folder = shared("lastfm-hetrec2k")
    header, *lines = (folder / "interactions.tsv").read_text().splitlines()
    rng = np.random.default_rng(0)
    of: dict[str, list[str]] = {}
    for line in lines:
        of.setdefault(line.split("\t")[0], []).append(line)
    kept, out = [header], {}
    for user, mine in of.items():
        rng.shuffle(mine)
        cut = round(0.2 * len(mine))
        out[user] = {line.split("\t")[1] for line in mine[:cut]}
        kept += mine[cut:]
    (tmp_path / "train.tsv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    corpus = open_dataset(folder).corpus
    arm = opened(tmp_path, tmp_path / "train.tsv", corpus, components=256)
    users = [user for user in out if out[user]]
    known = {user: {line.split("\t")[1] for line in of[user]} - out[user] for user in users}

    def recall(docs: np.ndarray) -> float:
        best = {
            u: [i for i in (corpus.ids[d] for d in row if d >= 0) if i not in known[u]][:100]
            for u, row in zip(users, docs, strict=True)
        }
        return float(np.mean([len(out[u] & set(best[u])) / len(out[u]) for u in users]))

    personal = recall(arm.search([query(user) for user in users], 150).docs)
    popular = recall(np.repeat(arm.search([query()], 150).docs, len(users), axis=0))
    assert personal >= 2 * popular > 0.4, (personal, popular)  # measured: 2.04 times
