"""The corpus: documents come back as they went in, with their fingerprint and the kinds of their fields."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import time as clock
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from ltrr.data.beir import Corpus, DataError, Document, field_number, field_values, write_dataset

DOCUMENTS = [
    Document("d1", "Spearfishing", "A song about the sea.", {"year": 1999, "genres": [["folk", 0.7], ["pop", 0.3]]}),
    Document("d2", "Ä ö 曲", "line\nbreak\u2028and \x85 more 🎵", {"year": 2004.5, "genres": ["rock"], "who": "Ann B"}),
    Document("d3", "", 'Only text, \\ and "quotes".', {}),
]


def random_documents(seed: int, num: int) -> list[Document]:
    """Documents of awkward characters and every shape of metadata, never empty."""
    rng = np.random.default_rng(seed)
    alphabet = list("abc \t\n\r\"\\/{}[]:,é曲🎵\u2028\u0085\x00\ufeff\u200b'")

    def word(least: int = 0) -> str:
        return "".join(rng.choice(alphabet, rng.integers(least, 9)))

    def value(shape: int) -> object:
        shapes = [word(), [word(), word()], [[word(1), 0.5]], {word(): 2}, int(rng.integers(9)), 1e-7, None, True, []]
        return shapes[shape]

    return [
        Document(f"d{i}", word(), "x" + word(), {f"f{s}": value(s) for s in rng.permutation(9)[: rng.integers(9)]})
        for i in range(num)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_any_document_survives_file_and_memory(seed: int, tmp_path: Path) -> None:
    documents = random_documents(seed, 30)  # line separators, NUL and a mark inside texts must not break lines
    write_dataset(tmp_path, documents, [], {})
    from_file, in_memory = Corpus.from_file(tmp_path / "corpus.jsonl"), Corpus.from_documents(documents)
    assert list(from_file) == list(in_memory) == documents
    assert from_file.fingerprint == in_memory.fingerprint
    assert from_file.fields == in_memory.fields
    order = np.random.default_rng(seed).permutation(30)
    assert [from_file[row].id for row in order] == [documents[row].id for row in order]  # random access
    np.testing.assert_array_equal(from_file.rows([documents[row].id for row in order]), order)


def test_rows_are_checked() -> None:
    corpus = Corpus.from_documents(DOCUMENTS)
    assert corpus.rows(["d3", "d1"]).dtype == np.int32
    assert corpus.row("d2") == 1
    assert "d2" in corpus
    assert corpus.rows([]).shape == (0,)
    with pytest.raises(DataError, match="'d9'"):
        corpus.rows(["d1", "d9"])
    for row in (-1, 3):  # -1 is padding everywhere and must not read as the last document
        with pytest.raises(IndexError):
            corpus[row]


def test_every_changed_character_changes_the_fingerprint() -> None:
    base = Corpus.from_documents(DOCUMENTS).fingerprint
    assert (
        base
        == hashlib.sha256(  # a frozen recipe: indexes are refused by it
            b"".join(
                json.dumps(
                    [d.id, d.title, d.text, d.metadata], ensure_ascii=False, separators=(",", ":"), sort_keys=True
                ).encode()
                + b"\n"
                for d in DOCUMENTS
            )
        ).hexdigest()
    )
    seen = {base}
    for row, document in enumerate(DOCUMENTS):
        variants = [
            dataclasses.replace(document, **{part: value[:at] + "#" + value[at + 1 :]})
            for part in ("id", "title", "text")
            for value in [getattr(document, part)]
            for at in range(len(value))
        ]
        variants.append(dataclasses.replace(document, metadata={**document.metadata, "year": 2000}))
        variants.append(dataclasses.replace(document, title=document.title + document.text, text=""))  # a moved border
        for variant in variants:
            changed = [*DOCUMENTS[:row], variant, *DOCUMENTS[row + 1 :]]
            fingerprint = Corpus.from_documents(changed).fingerprint
            assert fingerprint not in seen
            seen.add(fingerprint)
    assert Corpus.from_documents(DOCUMENTS[::-1]).fingerprint not in seen  # rows depend on the order


# Fields


def corpus_of(values: list, fields: dict | None = None) -> Corpus:
    return Corpus.from_documents([Document(f"d{i}", "t", "", {"f": v}) for i, v in enumerate(values)], fields)


LONG = "one two three four five six"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2.5, None], "number"),
        ([1] * 19 + ["?"], "number"),  # 95 % are enough
        ([1] * 18 + ["?"], "keyword"),
        ([True, False], "keyword"),  # a boolean is no number
        (["2024-01-31", "2024-01-31T10:00:00Z"], "date"),
        (["2024-01-31 10:00:00.5+02:00"], "date"),
        (["20240131", "2024-13-01"], "keyword"),
        (["rock", "indie rock"], "keyword"),
        ([LONG], "text"),
        (["one two three four five"], "keyword"),
        ([["rock", "pop"], []], "keyword"),
        ([[LONG], [LONG]], "keyword"),  # a list names things, however long the names
        ([[["rock", 5]]], "keyword"),
        ([{"rock": 0.5}], "keyword"),
        (["http://a.org/x", "https://b.org"], None),
        ([["http://a.org/x"], ["https://b.org"]], None),
        ([[], None, "", {}], None),
        ([{"a": {"b": 1}}], None),
    ],
)
def test_inferred_kinds(values: list, kind: str | None) -> None:
    assert corpus_of(values).fields == ({} if kind is None else {"f": kind})


def test_kinds_come_from_the_first_ten_thousand_values() -> None:
    values = [None] * 50 + [1] * 10_000 + ["x"] * 10_000  # documents without a value do not count
    corpus = corpus_of(values)
    assert corpus.fields == {"f": "number"}
    assert np.isnan(field_number(corpus[len(values) - 1], "f"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("rock", [("rock", 1.0)]),
        (["rock", "pop"], [("rock", 1.0), ("pop", 1.0)]),
        ([["rock", 5], ["pop", 0.5]], [("rock", 5.0), ("pop", 0.5)]),
        (["rock", ["pop", 0.5]], [("rock", 1.0), ("pop", 0.5)]),
        ({"rock": 2, "pop": 1}, [("rock", 2.0), ("pop", 1.0)]),
        (1999, [("1999", 1.0)]),
        (True, [("true", 1.0)]),
        ([["a", "b"]], []),
        (None, []),
    ],
)
def test_field_values(value: object, expected: list) -> None:
    document = Document("d", "", "", {"f": value})
    assert field_values(document, "f") == expected
    assert field_values(document, "absent") == []


@pytest.fixture
def in_tokyo():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        clock.tzset()
        yield
    clock.tzset()


@pytest.mark.usefixtures("in_tokyo")  # a naive time is UTC wherever the machine stands
def test_field_number_of_dates_against_the_calendar() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        days, hour, zone = rng.integers(-40_000, 40_000), rng.random() * 24, rng.integers(-11, 12)
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=int(days), hours=hour)
        local = time.astimezone(timezone(timedelta(hours=int(zone))))  # the same moment on another clock
        for text in (local.isoformat(), time.replace(tzinfo=None).isoformat()):
            assert field_number(Document("d", "", "", {"f": text}), "f") == pytest.approx(days + hour / 24, abs=1e-9)
        midnight = Document("d", "", "", {"f": time.date().isoformat()})
        assert field_number(midnight, "f") == days
    for value in (None, "", "soon", [1], True, "2024-02-30"):
        assert np.isnan(field_number(Document("d", "", "", {"f": value}), "f"))


def test_declared_fields_are_the_only_ones_kept() -> None:
    corpus = Corpus.from_documents(DOCUMENTS, {"year": "keyword"})
    assert corpus.fields == {"year": "keyword"}
    assert [document.metadata for document in corpus] == [{"year": 1999}, {"year": 2004.5}, {}]
    assert field_values(corpus[0], "year") == [("1999", 1.0)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [("number", "many"), ("number", True), ("date", "May 2024"), ("date", 2024), ("keyword", [["a", "b"]])],
)
def test_a_value_that_does_not_fit_its_declared_kind(kind: str, value: object) -> None:
    good = {"number": 1, "date": "2024-05-31", "keyword": "a"}[kind]
    with pytest.raises(DataError, match=rf"line 2, id 'd1': metadata field 'f' is declared as {kind}"):
        corpus_of([good, value], {"f": kind})


def test_unknown_declarations_list_what_exists() -> None:
    with pytest.raises(DataError, match=r"'yaer'.*'year', 'genres', 'who'"):
        Corpus.from_documents(DOCUMENTS, {"yaer": "number"})
    with pytest.raises(DataError, match="'integer'"):
        Corpus.from_documents(DOCUMENTS, {"year": "integer"})  # type: ignore[dict-item]


MEASURE = """
import resource, sys, time
from pathlib import Path
from ltrr.data.beir import Corpus
start = time.time()
corpus = Corpus.from_file(Path(sys.argv[1]))
loaded = time.time() - start
print(len(corpus), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, loaded)
start = time.time()
num = sum(len(document.text) for document in corpus)
print(num, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.time() - start)
"""


@pytest.mark.slow
def test_a_million_documents_stay_under_3_gb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(50_000)])

    def documents():
        for i in range(1_000_000):
            drawn = words[rng.integers(0, len(words), 150)].tolist()
            facts = {"genres": [[drawn[0], 0.7], [drawn[1], 0.3]], "year": 1900 + i % 120, "date": "2024-05-31"}
            yield Document(f"document-{i}", " ".join(drawn[:6]), " ".join(drawn), facts)

    write_dataset(tmp_path, documents(), [], {})
    file = tmp_path / "corpus.jsonl"
    measured = subprocess.run([sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, check=True)
    (num, gb_load, s_load), (_, gb_read, s_read) = (map(float, line.split()) for line in measured.stdout.splitlines())
    print(f"\n{file.stat().st_size / 2**30:.2f} GB: loaded in {s_load:.1f} s, {gb_load:.2f} GB; ", end="")
    print(f"all read in {s_read:.1f} s, {gb_read:.2f} GB")
    assert "reading corpus.jsonl" in measured.stderr  # progress is shown
    assert num == 1_000_000
    assert max(gb_load, gb_read) < 3
