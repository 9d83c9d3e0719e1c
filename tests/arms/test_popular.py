"""The popularity arm: most popular first, for the type and locale that the context names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltrr.arms.popular import Popular
from ltrr.data.beir import Corpus, Document
from ltrr.index.manifest import IndexRefused
from ltrr.protocols import Arm
from ltrr.types import Context, Query

PLAYS = [5, 900, None, 900, 0, 12, 10**9, 10**9 + 1]
LOCALES = [["en"], ["de", "en"], ["de"], ["fr"], ["en"], [], ["fr"], ["fr", "de"]]
TYPES = ["song", "song", "artist", "artist", "song", "song", "artist", "song"]


def corpus_of(plays: list) -> Corpus:
    return Corpus.from_documents(
        Document(
            f"d{i}", f"title {i}", "", {"year": 1990 + i, "plays": n, "likes": i + 0.5, "locale": at, "type": kind}
        )
        for i, (n, at, kind) in enumerate(zip(plays, LOCALES, TYPES, strict=True))
    )


CORPUS = corpus_of(PLAYS)


def opened(root: Path, corpus: Corpus = CORPUS, **arguments: Any) -> Popular:
    arm = Popular(**arguments)
    arm.build(corpus, root)
    return arm.open(corpus, root)


def ask(arm: Popular, k: int, *contexts: Context) -> list[list[int]]:
    found = arm.search([Query(f"q{i}", "any words", c) for i, c in enumerate(contexts)], k)
    assert found.docs.shape == found.scores.shape == (len(contexts), k)
    np.testing.assert_array_equal(np.isneginf(found.scores), found.docs < 0)
    assert (np.diff(np.where(found.docs < 0, -1, found.scores), axis=1) <= 0).all()
    return [[d for d in row if d >= 0] for row in found.docs.tolist()]


def test_popular_first_then_by_row(tmp_path: Path) -> None:
    arm = opened(tmp_path)  # the first number field that is no year
    assert isinstance(arm, Arm)
    # 6 and 7 differ by one play in 10⁹: the same float32 score, hence by row; unknown plays count as none
    assert ask(arm, 8, Context()) == [[6, 7, 1, 3, 5, 0, 2, 4]]
    assert ask(arm, 3, Context(), Context(locale="de")) == [[6, 7, 1]] * 2  # `by` names nothing
    assert ask(arm, 20, Context())[0] == ask(arm, 8, Context())[0]  # padded
    scores = arm.search([Query("q", "")], 8).scores[0]
    assert (scores[0], scores[-1]) == (1.0, 0.0)


def test_another_field(tmp_path: Path) -> None:
    assert ask(opened(tmp_path, field="likes"), 3, Context()) == [[7, 6, 5]]


def test_what_the_context_names_is_filtered(tmp_path: Path) -> None:
    arm = opened(tmp_path, by=["locale", "type"])
    songs = {"type": "song"}
    contexts = [
        Context(),
        Context(locale="de"),
        Context(attributes=songs),
        Context(locale="de", attributes=songs),
        Context(locale="xx"),
        Context(customer="c", device="phone", attributes={"mood": "sad"}),
    ]
    order = [6, 7, 1, 3, 5, 0, 2, 4]
    expected = [
        [d for d in order if c.locale in (None, *LOCALES[d]) and c.attributes.get("type") in (None, TYPES[d])]
        for c in contexts
    ]
    assert ask(arm, 8, *contexts) == expected
    assert ask(arm, 2, *contexts) == [several[:2] for several in expected]  # the k best of those that fit
    assert expected[4] == []
    assert expected[5] == order


def test_a_corpus_without_numbers_has_nothing_popular(tmp_path: Path) -> None:
    corpus = Corpus.from_documents([Document("a", "x", "", {"genre": "rock"}), Document("b", "y", "", {})])
    assert ask(opened(tmp_path, corpus), 3, Context(), Context(locale="en")) == [[], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"field": "listens"}, r"field: 'listens' is no number field; this corpus has \['plays', 'likes'\]"),
        ({"field": "year"}, "field: 'year'"),
        ({"by": ["plays"]}, "by: 'plays' is no keyword field"),
        ({"by": ["country"]}, "by: 'country' is no keyword field"),
    ],
)
def test_a_wrong_name_is_named(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Popular(**arguments).build(CORPUS, tmp_path)


def test_open_refuses_what_was_built_otherwise(tmp_path: Path) -> None:
    opened(tmp_path)
    Popular(field="plays").open(CORPUS, tmp_path)  # what the default chose
    with pytest.raises(IndexRefused, match="config field"):
        Popular(field="likes").open(CORPUS, tmp_path)
    with pytest.raises(IndexRefused, match="config by"):
        Popular(by=["locale"]).open(CORPUS, tmp_path)
    with pytest.raises(IndexRefused, match="corpus"):
        Popular().open(corpus_of(PLAYS[::-1]), tmp_path)
