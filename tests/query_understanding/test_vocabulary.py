"""Query understanding on a small vocabulary: meanings, misspellings, numbers, and that nothing is ever binary."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.query_understanding.vocabulary import Vocabulary, normalise

DOCUMENTS = [
    ("Love Again", "a song", {"type": ["song"], "artist": ["Taylor Vale"], "genre": ["pop", "country"]}),
    ("Crazy Love", "a song", {"type": ["song"], "artist": ["Taylor Vale"], "genre": ["love songs"]}),
    ("Night River", "a quiet song", {"type": ["song"], "artist": ["Taylor Brandt"], "genre": ["jazz"]}),
    ("Sunday", "a playlist for slow mornings", {"type": ["playlist"], "genre": ["jazz"]}),
    ("Vale of Steel", "loud", {"type": ["album"], "artist": ["Iron Harbour"], "genre": ["metal"]}),
] + [(f"Filler {i}", "words about nothing", {"type": ["song"], "artist": [f"Nobody {i}"]}) for i in range(40)]
YEARS = np.concatenate([[1994.0, 2003.0, 1987.0, 2020.0, np.nan], 1980 + np.arange(40)])


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.fit(DOCUMENTS, {"year": YEARS})


def meanings(vocabulary, text):
    return [{(r.field, r.label) for r in one.readings} for one in vocabulary.interpret(text)]


@pytest.mark.parametrize(
    "text", ["taylor vale love", "love", "jazz songs", "1994", "zzz", "", "the of", "夜 love", "x" * 900]
)
def test_likelihoods_are_a_distribution_that_keeps_full_text(vocabulary, text):
    several = vocabulary.interpret(text)
    assert sum(one.likelihood for one in several) == pytest.approx(1)
    assert [one.likelihood for one in several] == sorted((one.likelihood for one in several), reverse=True)
    assert any(not one.readings for one in several)  # the query may always be plain text
    assert len(several) <= 6


def test_readings_of_one_interpretation_do_not_overlap(vocabulary):
    for one in vocabulary.interpret("taylor vale love songs 90s pop"):
        positions = [p for reading in one.readings for p in reading.positions]
        assert len(positions) == len(set(positions))


def test_a_full_name_beats_its_parts(vocabulary):
    best = vocabulary.interpret("taylor vale")[0]
    assert [(r.field, r.label) for r in best.readings] == [("artist", "Taylor Vale")]


def test_misspelt_names_are_understood_and_known_words_left_alone(vocabulary):
    assert ("artist", "Taylor Vale") in meanings(vocabulary, "tayler vale")[0]
    # "vale" is a word of the corpus, one edit from "value": no correction
    assert vocabulary.interpret("vale")[0].text in ("vale", "")
    rest = vocabulary.interpret("iorn harbour night")[0]
    assert ("artist", "Iron Harbour") in {(r.field, r.label) for r in rest.readings}


def test_an_ambiguous_word_has_several_meanings(vocabulary):
    flat = set().union(*meanings(vocabulary, "taylor love"))
    assert {field for field, _ in flat} >= {"artist", "genre"}


def test_types_match_in_the_plural(vocabulary):
    assert any(("type", "song") in readings for readings in meanings(vocabulary, "jazz songs"))
    assert normalise("Songs of Amélie’s") == ["song", "of", "amelie"]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("songs of 1994", (1994, 1994)),
        ("90s songs", (1990, 1999)),
        ("1990s songs", (1990, 1999)),
        ("2010s songs", (2010, 2019)),
        ("songs before 1990", (1980, 1990)),
        ("songs since 2010", (2010, 2020)),
    ],
)
def test_years_decades_and_ranges(vocabulary, text, span):
    spans = [r.span for one in vocabulary.interpret(text) for r in one.readings if r.span]
    assert span in spans


def test_a_year_outside_the_corpus_is_text(vocabulary):
    assert not [r for one in vocabulary.interpret("1812") for r in one.readings]


def test_new_asks_for_the_newest_tenth(vocabulary):
    spans = [r.span for one in vocabulary.interpret("new songs") for r in one.readings if r.span]
    assert spans
    assert spans[0][0] == pytest.approx(np.nanquantile(YEARS, 0.9))


def test_the_same_name_in_two_fields_is_one_reading():
    documents = [("A", "", {"actor": ["Ann Lee"], "tag": ["ann lee"]}), ("B", "", {"actor": ["Bo Lee"]})]
    readings = Vocabulary.fit(documents, {}).interpret("ann lee")[0].readings
    assert len(readings) == 1
    assert len(readings[0].tags) == 2
    assert set(readings[0].field.split("|")) == {"actor", "tag"}


def test_words_left_over_are_as_typed_but_corrected(vocabulary):
    several = vocabulary.interpret("Taylor Vale nigth")
    assert {one.text for one in several if ("artist", "Taylor Vale") in {(r.field, r.label) for r in one.readings}} == {
        "night"
    }


def test_saved_and_loaded_is_the_same(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    for text in ("tayler love", "90s jazz songs", "new"):
        assert again.interpret(text) == vocabulary.interpret(text)
