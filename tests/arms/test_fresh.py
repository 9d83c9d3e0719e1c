"""The explorer draws what matches with the probabilities that it states, and its place of the page is logged so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltrr.arms.fresh import Fresh, Slotted
from ltrr.arms.structured import Structured, _where
from ltrr.data.beir import Corpus, Document, open_dataset
from ltrr.feedback.events import impressions_of
from ltrr.index.manifest import IndexRefused
from ltrr.protocols import Arm
from ltrr.types import Candidates, Context, Decision, Page, Query

GENRES, PLACES = ("jazz", "metal", "country"), ("en", "de")
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def document(i: int) -> Document:
    """Song i has genre i % 3 and was released i months after January 2000; every tenth nobody knows when."""
    date = {} if i % 10 == 9 else {"release_date": f"{2000 + i // 12}-{1 + i % 12:02d}-15"}
    kind = {"type": "song" if i % 4 else "album", "genre": GENRES[i % 3], "locale": PLACES[i % 2]}
    return Document(f"d{i}", f"title{i} word{i * 7 % 31}", "", kind | date)


CORPUS = Corpus.from_documents(document(i) for i in range(120))
JAZZ = [i for i in range(120) if i % 3 == 0]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    Fresh().build(CORPUS, folder)
    return folder


def opened(root: Path, **arguments: Any) -> Fresh:
    return Fresh(**arguments).open(CORPUS, root)


def asked(text: str, num: int = 1, **context: Any) -> list[Query]:
    """The same query asked by so many customers."""
    known: dict[str, Any] = {"time": NOON} | context
    return [Query("q", text, Context(customer=f"c{i}", **known)) for i in range(num)]


def rows_of(found: Candidates) -> list[list[int]]:
    np.testing.assert_array_equal(np.isneginf(found.scores), found.docs < 0)
    assert (np.diff(np.where(found.docs < 0, -1, found.scores), axis=1) <= 0).all()
    return [[row for row in line if row >= 0] for line in found.docs.tolist()]


def test_the_newest_that_match_come_first(root: Path) -> None:
    arm = opened(root, newest=4)
    assert isinstance(arm, Arm)
    for text, matches in (("jazz", JAZZ), ("jazz songs", [i for i in JAZZ if i % 4])):
        dated = [i for i in reversed(matches) if i % 10 != 9]
        (found,) = rows_of(arm.search(asked(text), 10))
        assert found[:4] == dated[:4]
        assert set(found) <= set(matches)
        assert len(set(found)) == 10
        assert found[4:] == sorted(found[4:])  # equal scores by row


def test_the_context_narrows_what_matches(root: Path) -> None:
    arm = opened(root, newest=2, by=["locale", "type"])
    german = [i for i in JAZZ if i % 2 == 1]
    (query,) = asked("jazz", locale="de")
    assert arm.matching(query).tolist() == german
    (query,) = asked("jazz", locale="de", attributes={"type": "album", "mood": "sad"})
    assert arm.matching(query).tolist() == [i for i in german if i % 4 == 0]
    (query,) = asked("xyzzy", locale="de")  # nothing understood: the newest of the locale
    assert rows_of(arm.search([query], 2)) == [[117, 115]]
    (query,) = asked("jazz", locale="fr")
    assert rows_of(arm.search([query], 5)) == [[]]


def test_what_matches_is_what_the_structured_arm_filters(music: Path, tmp_path: Path) -> None:
    """Tags by a document's own title and years are the structured arm's, too."""
    corpus = open_dataset(music).corpus
    structured, arm = Structured(), Fresh()
    structured.build(corpus, tmp_path / "s")
    arm.build(corpus, tmp_path / "f")
    structured.open(corpus, tmp_path / "s")
    arm.open(corpus, tmp_path / "f")
    for text in ("nora quinn", "jazz by marco ruiz", "new pop songs", "songs of 1990", "metal since 2001", "artists"):
        one = structured.interpret(text)[0]
        found = structured._engine.search([structured._vector(one)], len(corpus), [_where(one.readings)])
        assert len(rows_of(found)[0]) > 0
        assert arm.matching(Query("q", text)).tolist() == sorted(rows_of(found)[0])


def test_inclusion_is_as_often_as_the_scores_say(root: Path) -> None:
    arm, trials = opened(root, newest=3), 1500
    found = arm.search(asked("jazz", trials), 8)
    stated = np.minimum(found.scores, 1)
    drawn = 5 / (len(JAZZ) - 3)
    np.testing.assert_allclose(stated, np.tile([1.0] * 3 + [drawn] * 5, (trials, 1)), rtol=1e-6)
    often = np.bincount(found.docs.ravel(), minlength=120)
    newest = sorted((i for i in JAZZ if i % 10 != 9), reverse=True)[:3]
    assert (often[newest] == trials).all()
    rest = [i for i in JAZZ if i not in newest]
    assert often.sum() == often[JAZZ].sum()
    assert np.abs(often[rest] - trials * drawn).max() < 4 * np.sqrt(trials * drawn * (1 - drawn))
    # pairs, too: a draw of documents one after another, not of blocks
    both = (found.docs == rest[0]).any(axis=1) & (found.docs == rest[1]).any(axis=1)
    together = drawn * 4 / (len(rest) - 1)
    assert abs(both.sum() - trials * together) < 4 * np.sqrt(trials * together * (1 - together))


def test_an_estimate_by_the_inverse_of_the_stated_probabilities_is_unbiased(root: Path) -> None:
    """Horvitz & Thompson: the sum over all that matches, from what was drawn."""
    value = np.random.default_rng(0).random(120)
    found = opened(root, newest=2).search(asked("jazz", 1000), 6)
    estimates = (value[found.docs] / np.minimum(found.scores, 1)).sum(axis=1)
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - value[JAZZ].sum()) < 4 * error


def test_nothing_from_the_future(root: Path) -> None:
    arm = opened(root, newest=3)
    for month in (0, 5, 40):
        now = datetime(2000 + month // 12, 1 + month % 12, 20, tzinfo=UTC)
        there = [i for i in JAZZ if i <= month or i % 10 == 9]  # who knows no date is there
        assert arm.matching(asked("jazz", time=now)[0]).tolist() == there
        (found,) = rows_of(arm.search(asked("jazz", time=now), 50))
        assert set(found) == set(there)  # fewer than asked for: all of them, for certain
        dated = [i for i in there if i % 10 != 9]
        assert found[: len(dated[-3:])] == dated[::-1][:3]
    naive = datetime(2000, 1, 20)
    assert (
        arm.matching(asked("jazz", time=naive)[0]).tolist()
        == arm.matching(asked("jazz", time=naive.replace(tzinfo=UTC))[0]).tolist()
    )
    assert arm.matching(asked("jazz", time=None)[0]).tolist() == JAZZ
    arm.born = np.where(np.arange(120) < 60, np.nan, 1e6)  # arrivals given: half of it comes much later
    assert arm.matching(asked("jazz")[0]).tolist() == [i for i in JAZZ if i < 60]
    assert rows_of(opened(root, newest=3).search(asked("jazz", time=datetime(1990, 1, 1)), 3))[0][0] % 10 == 9


def test_nothing_understood_and_nothing_that_matches(root: Path) -> None:
    found = opened(root).search([*asked("xyzzy plugh"), *asked(""), *asked("jazz")], 5)
    assert [len(line) for line in rows_of(found)] == [0, 0, 5]
    assert opened(root).search([], 5).docs.shape == (0, 5)


def test_a_draw_belongs_to_the_request(root: Path) -> None:
    def draw(query: Query, seed: int = 0) -> tuple[int, ...]:
        return tuple(opened(root, newest=0, seed=seed).search([query], 8).docs[0].tolist())

    (query,) = asked("jazz")
    assert draw(query) == draw(query)
    others = [
        asked("jazz", 2)[1],
        asked("jazz", time=NOON + timedelta(seconds=1))[0],
        Query("r", "jazz", query.context),
    ]
    assert len({draw(query), draw(query, seed=1), *map(draw, others)}) == 5
    arm, untimed = opened(root, newest=0), asked("jazz", time=None) * 3
    assert len({tuple(line) for line in arm.search(untimed, 8).docs.tolist()}) == 3  # online, each is another request


def test_build_and_open(root: Path, tmp_path: Path) -> None:
    Fresh().build(CORPUS, tmp_path)
    queries = asked("metal songs", 20)
    for first, again in zip(opened(root).search(queries, 9), opened(tmp_path).search(queries, 9), strict=True):
        np.testing.assert_array_equal(first, again)
    with pytest.raises(IndexRefused, match="corpus"):
        Fresh().open(Corpus.from_documents(document(i) for i in range(119)), tmp_path)
    undated = Corpus.from_documents(
        [Document("a", "x", "", {"type": "song"}), Document("b", "y", "", {"type": "song"})]
    )
    Fresh().build(undated, tmp_path)
    found = Fresh().open(undated, tmp_path).search(asked("songs"), 1)
    assert found.scores[0, 0] == 0.5  # nobody is newest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"field": "genre"}, "'genre' is no date field"),
        ({"by": ["release_date"]}, "'release_date' is no keyword field"),
        ({"by": ["country"]}, "'country' is no keyword field"),
        ({"newest": -1}, "newest: -1 is below 0"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Fresh(**arguments).build(CORPUS, tmp_path)


class Fixed:
    """A search with the same page for everybody, drawn with the propensity .5; the arm `a` returned all of it."""

    def __init__(self, docs: list[int]) -> None:
        self.docs = docs

    def search(self, queries, k: int) -> Page:
        n = len(queries)
        line = np.array(self.docs[:k], np.int32).reshape(1, -1)
        shown = Candidates(np.repeat(line, n, 0), np.repeat(-np.arange(line.size, dtype=np.float32)[None], n, 0))
        decision = Decision(np.full((n, 1), 9), np.full(n, 9), np.full(n, 0.5), np.tile([0.5, 1.0], (n, 1)))
        ranks = np.repeat(np.arange(line.size, dtype=np.float32)[None, :, None], n, 0)
        return Page([f"i{i}" for i in range(n)], queries, np.zeros((n, 0)), decision, shown, ("a",), ranks)


BASE = [*range(1, 60, 3), JAZZ[-1], *range(2, 60, 3)]  # 41 documents; none but the newest of jazz is jazz


def test_the_place_goes_to_the_explorer_as_often_as_logged(root: Path) -> None:
    trials, epsilon = 3000, 0.3
    slotted = Slotted(Fixed(BASE).search, opened(root, newest=2), position=3, epsilon=epsilon, depth=6)
    page = slotted.search(asked("jazz", trials), 10)
    taken, decision = page.shown.docs[:, 3], page.decision
    on = decision.depths[:, 1] == 6
    assert page.arms == ("a", "fresh")
    np.testing.assert_array_equal(decision.depths[~on, 1], 0)
    assert abs(on.sum() - trials * epsilon) < 4 * np.sqrt(trials * epsilon * (1 - epsilon))
    np.testing.assert_allclose(
        decision.marginals, np.stack([np.full(trials, 0.5), np.where(on, 0.3, 0.7), np.ones(trials)], 1)
    )
    assert (page.shown.docs[~on] == BASE[:10]).all()
    # each document has the place as often as the logged propensity says, whichever way it got there
    propensity = decision.propensity / 0.5
    np.testing.assert_allclose(propensity[~on], 1 - epsilon)
    assert set(taken[on].tolist()) == set(JAZZ)
    total = 0.0
    for row in JAZZ:
        (stated,) = set(np.round(propensity[on & (taken == row)], 9).tolist())
        assert abs((taken == row).sum() - trials * stated) < 4 * np.sqrt(trials * stated)
        total += stated
    assert total == pytest.approx(epsilon)
    # the others keep their order; nothing stands twice; ranks say who returned what
    for line, one in zip(page.shown.docs[on].tolist(), taken[on].tolist(), strict=True):
        assert [row for row in line if row != one] == [row for row in BASE if row != one][:9]
    assert (np.diff(page.shown.scores, axis=1) <= 0).all()
    explored = ~np.isnan(page.ranks[:, :, 1])
    np.testing.assert_array_equal(explored.sum(axis=1), on)
    assert explored[on, 3].all()
    newest = on & (taken == JAZZ[-1])
    np.testing.assert_array_equal(page.ranks[newest, 3, 0], 20)  # deeper on the page than k, and still known
    assert np.isnan(page.ranks[on & ~newest, 3, 0]).all()
    for impression in impressions_of(page, CORPUS.ids):  # the schema takes it
        assert len(impression.marginals) == 3


def test_what_stands_further_up_stays_and_short_pages_grow(root: Path) -> None:
    arm = opened(root, newest=0)
    arm.born = np.where(np.arange(120) == 30, np.nan, 1e6)  # row 30 alone is there
    queries = asked("jazz", 3)

    def lines(docs: list[int], position: int, k: int = 4) -> list[int]:
        page = Slotted(Fixed(docs).search, arm, position=position, epsilon=1.0).search(queries, k)
        np.testing.assert_allclose(page.decision.propensity, 0.5)  # one candidate, for certain
        np.testing.assert_array_equal(np.isneginf(page.shown.scores), page.shown.docs < 0)
        ((_, at),) = {(row, at) for row, at in np.argwhere(~np.isnan(page.ranks[:, :, 1])).tolist() if row == 0}
        assert page.shown.docs[0, at] == 30
        return page.shown.docs[0].tolist()

    assert lines([1, 30, 2, 4, 5], 3) == [1, 30, 2, 4]
    assert lines([1, 2, 4, 30, 5], 3) == [1, 2, 4, 30]
    assert lines([1, 2, 4, 5, 30], 1) == [1, 30, 2, 4]
    assert lines([1, 2, 4, 5], 0) == [30, 1, 2, 4]
    assert lines([1, 2, 4, 5, 7], 3) == [1, 2, 4, 30]
    assert lines([1, 2], 3) == [1, 2, 30]
    assert lines([], 2) == [30]
    nothing = Slotted(Fixed([1, 2]).search, arm, position=0, epsilon=1.0).search(asked("xyzzy"), 4)
    assert nothing.shown.docs[0].tolist() == [1, 2, -1]
    assert nothing.decision.propensity.tolist() == [0.5]


def test_the_same_seed_gives_the_same_pages(root: Path) -> None:
    def pages(seed: int) -> list[list[int]]:
        slotted = Slotted(Fixed(BASE).search, opened(root, seed=seed), position=1, epsilon=0.5)
        return slotted.search(asked("jazz", 40), 5).shown.docs.tolist()

    assert pages(0) == pages(0)
    assert pages(0) != pages(1)
