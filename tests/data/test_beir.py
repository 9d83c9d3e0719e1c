"""Data sets in the BEIR layout: what is read, what is refused and how the refusal reads."""

import json
import os
import sys
import types
import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ltrr.data.beir import (
    Corpus,
    DataError,
    Document,
    open_collection,
    open_dataset,
    write_dataset,
)
from ltrr.types import Query

DOCUMENTS = [
    Document("d1", "Spearfishing", "A song about the sea.", {"year": 1999, "genres": [["folk", 0.7], ["pop", 0.3]]}),
    Document("d2", "Ä ö 曲", "line\nbreak\u2028and \x85 more 🎵", {"year": 2004.5, "genres": ["rock"], "who": "Ann B"}),
    Document("d3", "", 'Only text, \\ and "quotes".', {}),
]
QUERIES = [
    {"_id": "q1", "text": "sea song", "metadata": {"customer": 7, "time": "2024-05-31T18:30:00Z", "answer": "d1"}},
    {"_id": "q2", "text": "rock", "metadata": {"locale": "en_GB", "mood": "sad", "answer": "d2"}},
    {"_id": "q3", "text": "unjudged"},
]
QRELS = {"test": {"q2": {"d2": 2, "d1": 0}, "q1": {"d1": 1}}, "train": {"q1": {"d1": 1}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "mini", DOCUMENTS, QUERIES, QRELS)
    return tmp_path / "mini"


def zipped(folder: Path, path: Path, top: str = "mini/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, top + str(file.relative_to(folder)))
    return path


# What is read


def test_a_written_dataset_reads_back_equal(folder: Path) -> None:
    data = open_dataset(folder)
    assert list(data.corpus) == DOCUMENTS
    assert data.splits == ("train", "test")  # in the order of use, not of the alphabet
    assert data.name == "mini"
    assert [query.id for query in data.queries] == ["q1", "q2", "q3"]
    assert [query.id for query in data.split("test").queries] == ["q1", "q2"]  # judged, in the order of queries.jsonl
    assert data.split("test").qrels == QRELS["test"]


def test_windows_files_read_the_same(folder: Path) -> None:
    expected = open_dataset(folder)
    for file in [*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")]:
        lines = file.read_bytes().split(b"\n")
        file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n  \r\n")  # mark, CRLF, blank lines
    data = open_dataset(folder)
    assert list(data.corpus) == DOCUMENTS
    assert data.corpus.fingerprint == expected.corpus.fingerprint
    assert data.split("test") == expected.split("test")


def test_qrels_need_no_header_and_may_repeat_themselves(folder: Path) -> None:
    (folder / "qrels/test.tsv").write_text("q1\td1\t1\nq1\td1\t1\n")
    assert open_dataset(folder).split("test").qrels == {"q1": {"d1": 1}}


def test_another_qrels_folder(folder: Path) -> None:
    (folder / "qrels").rename(folder / "other")
    assert open_dataset(folder, qrels="other").splits == ("train", "test")


def test_the_fingerprint_ignores_place_spelling_and_declared_fields(folder: Path, tmp_path: Path) -> None:
    base = Corpus.from_documents(DOCUMENTS).fingerprint
    escaped = tmp_path / "escaped.jsonl"  # the same content with \u escapes, blanks and another order of keys
    records = [{"metadata": d.metadata, "text": d.text, "title": d.title, "_id": d.id} for d in DOCUMENTS]
    escaped.write_text("\n".join(json.dumps(record, indent=None) for record in records))
    assert Corpus.from_file(escaped).fingerprint == base
    assert Corpus.from_file(folder / "corpus.jsonl", {"year": "number"}).fingerprint == base
    archive = zipped(folder, tmp_path / "mini.zip")
    assert open_dataset(archive, cache=tmp_path / "cache").corpus.fingerprint == base


# Query metadata


def test_query_metadata_is_dropped_unless_named(folder: Path) -> None:
    assert open_dataset(folder).queries[0] == Query("q1", "sea song")  # `answer` names the positive
    named = open_dataset(folder, query_fields=["customer", "time", "locale", "mood"]).queries
    assert named[0].context.customer == "7"
    assert named[0].context.time == datetime(2024, 5, 31, 18, 30, tzinfo=UTC)
    assert (named[1].context.locale, dict(named[1].context.attributes)) == ("en_GB", {"mood": "sad"})
    assert "answer" not in repr(named)


def test_a_query_field_that_no_query_has(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'device'.*'customer', 'time', 'answer'"):
        open_dataset(folder, query_fields=["device"])


# Bad input

D1 = '{"_id": "d1", "title": "t", "text": "x"}\n'
Q1 = '{"_id": "q1", "text": "x"}\n'
HEAD = "query-id\tcorpus-id\tscore\n"
BAD = {  # case: (file, content, what the message must name)
    "cut off line": ("corpus.jsonl", D1 + '{"_id": "d2", "te', ["line 2", "not JSON"]),
    "two objects on a line": ("corpus.jsonl", D1.strip() + D1, ["line 1", "not JSON"]),
    "pretty-printed": ("corpus.jsonl", json.dumps({"_id": "d1", "text": ""}, indent=1), ["line 1", "one complete"]),
    "a JSON array": ("corpus.jsonl", '["d1", "x"]', ["line 1", "a list, not an object"]),
    "deep nesting": ("corpus.jsonl", D1 + "[" * 100_000, ["line 2", "not JSON"]),
    "no _id": ("corpus.jsonl", D1 + '{"id": "d2", "text": "x"}', ["line 2", "no '_id'", "'id', 'text'"]),
    "no text": ("corpus.jsonl", D1 + '{"_id": "d2", "body": "x"}', ["line 2", "'d2'", "no 'text'"]),
    "int id": ("corpus.jsonl", '{"_id": 4983, "text": "x"}', ["line 1", "4983 (int)", '"_id": "4983"']),
    "null text": ("corpus.jsonl", '{"_id": "d1", "text": null}', ["line 1", "'d1'", "'text' is None"]),
    "list title": ("corpus.jsonl", '{"_id": "d1", "text": "", "title": ["a"]}', ["line 1", "'d1'", "'title'", "list"]),
    "empty id": ("corpus.jsonl", D1 + '{"_id": "", "text": "x"}', ["line 2", "'_id' is empty"]),
    "blank in id": ("corpus.jsonl", D1 + '{"_id": "a b", "text": "x"}', ["line 2", "'a b'", "white space"]),
    "metadata list": ("corpus.jsonl", '{"_id": "d1", "text": "", "metadata": [1]}', ["line 1", "'d1'", "'metadata'"]),
    "duplicate document": ("corpus.jsonl", D1 + "\n" + D1, ["line 3", "'d1'", "already on line 1"]),
    "latin-1": ("corpus.jsonl", D1.encode() + '{"_id": "é"}'.encode("latin-1"), ["line 2", "byte 50", "0xe9", "UTF-8"]),
    "utf-16": ("corpus.jsonl", D1.encode("utf-16"), ["line 1", "byte 0 ", "UTF-8"]),
    "half a character": ("corpus.jsonl", '{"_id": "d1", "text": "\\ud83c"}', ["line 1", "'d1'", "surrogate"]),
    "empty corpus": ("corpus.jsonl", "\n", ["no document"]),
    "huge line": ("corpus.jsonl", '{"_id": "d1", "text": ' + "x" * 10**6, ["line 1", "not JSON"]),
    "query without text": ("queries.jsonl", Q1 + '{"_id": "q2", "text": " "}', ["line 2", "'q2'", "without text"]),
    "duplicate query": ("queries.jsonl", Q1 + Q1, ["line 2", "'q1'", "already on line 1"]),
    "int query id": ("queries.jsonl", '{"_id": 1, "text": "x"}', ["line 1", "1 (int)"]),
    "empty queries": ("queries.jsonl", "", ["no query"]),
    "query latin-1": ("queries.jsonl", b'{"_id": "q1", "text": "\xe9"}', ["line 1", "byte 23", "UTF-8"]),
    "two columns": ("qrels/test.tsv", HEAD + "q1\td1\n", ["line 2", "2 column(s)", "'q1\\td1'"]),
    "blanks for tabs": ("qrels/test.tsv", HEAD + "q1 d1 1\n", ["line 2", "1 column(s)", "'q1 d1 1'"]),
    "trec columns": ("qrels/test.tsv", "q1\t0\td1\t1\n", ["line 1", "4 column(s)", "TREC"]),
    "real score": ("qrels/test.tsv", HEAD + "q1\td1\t0.5\n", ["line 2", "'q1'", "'d1'", "is '0.5'"]),
    "negative score": ("qrels/test.tsv", HEAD + "q1\td1\t-1\n", ["line 2", "'q1'", "'d1'", "is '-1'"]),
    "unknown query": ("qrels/test.tsv", HEAD + "q1\td1\t1\nq9\td1\t1\n", ["line 3", "'q9'", "queries.jsonl"]),
    "unknown document": ("qrels/test.tsv", HEAD + "q1\td9\t1\n", ["line 2", "'d9'", "corpus.jsonl"]),
    "two grades": ("qrels/test.tsv", HEAD + "q1\td1\t1\nq1\td1\t2\n", ["line 3", "'q1'", "'d1'", "2 here and 1"]),
    "other header": ("qrels/test.tsv", "qid\tdid\trel\nq1\td1\t1\n", ["line 1", "'qid'", "query-id, corpus-id, score"]),
    "empty qrels": ("qrels/test.tsv", HEAD, ["no row"]),
    "qrels latin-1": ("qrels/test.tsv", b"q1\td\xe9\t1\n", ["line 1", "byte 4", "UTF-8"]),
    "no corpus": ("corpus.jsonl", None, ["no corpus.jsonl", "it holds qrels, queries.jsonl"]),
    "no queries": ("queries.jsonl", None, ["no queries.jsonl"]),
    "no qrels": ("qrels/test.tsv", None, ["no qrels/*.tsv"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_culprit_in_one_screen(case: str, tmp_path: Path) -> None:
    name, content, named = BAD[case]
    files = {"corpus.jsonl": D1, "queries.jsonl": Q1, "qrels/test.tsv": HEAD + "q1\td1\t1\n"}
    (tmp_path / "qrels").mkdir()
    for file, good in files.items():
        text = content if file == name else good
        if text is not None:
            (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path).split("test")
    message = str(caught.value)
    for part in [name.split("/")[-1] if content is not None else str(tmp_path), "Fix: ", *named]:
        assert part in message
    assert message.count("\n") < 15
    assert len(message) < 1_000


@pytest.mark.parametrize("value", [5, "tomorrow", ["2024-05-31"]])
def test_a_time_that_is_none(value: object, tmp_path: Path) -> None:
    write_dataset(tmp_path, DOCUMENTS, [{"_id": "q1", "text": "x", "metadata": {"time": value}}], QRELS)
    with pytest.raises(DataError, match=r"queries.jsonl, line 1, id 'q1': metadata field 'time'"):
        open_dataset(tmp_path, query_fields=["time"])


def test_an_unknown_split_lists_the_others(folder: Path) -> None:
    with pytest.raises(DataError, match=r"mini has no split 'dev'; there are train, test"):
        open_dataset(folder).split("dev")


def test_odd_but_usable_data_is_counted_and_warned_of_once(tmp_path: Path) -> None:
    documents = [*DOCUMENTS, Document("d4", " ", "", {}), Document("d5", "", "\n", {"year": 1})]
    write_dataset(tmp_path, documents, QUERIES, {"test": {"q1": {"d1": 0}, "q2": {"d2": 1}}})
    with pytest.warns(UserWarning, match=r"empty document .*: 2, the first is line 4, id 'd4'") as caught:
        data = open_dataset(tmp_path)
    assert len(caught) == 1
    assert len(data.corpus) == 5  # kept
    with pytest.warns(UserWarning, match=r"test.tsv: queries without a positive .*: 1, the first is id 'q1'"):
        data.split("test")
    assert data.corpus.warnings == {"empty document": 2, "query without a positive (test)": 1}


# Zips, the hub, collections


def test_a_zip_is_extracted_once_and_keyed_by_content(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    data = open_dataset(zipped(folder, tmp_path / "a.zip"), cache=cache)
    assert (data.name, len(data.corpus)) == ("mini", 3)
    [extracted] = cache.iterdir()  # no temporary folder is left
    before = (extracted / "a" / "mini" / "corpus.jsonl").stat().st_mtime_ns
    (tmp_path / "a.zip").rename(tmp_path / "b.zip")
    open_dataset(tmp_path / "b.zip", cache=cache)
    assert [extracted] == list(cache.iterdir())
    assert before == (extracted / "a" / "mini" / "corpus.jsonl").stat().st_mtime_ns
    open_dataset(zipped(folder, tmp_path / "flat.zip", top=""), cache=cache)  # other bytes, no top folder
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("member", ["../out.txt", "/out.txt", "mini/../../out.txt", "..\\out.txt"])
def test_a_zip_that_leaves_its_folder_is_refused(member: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(member, "x")
    with pytest.raises(DataError, match=r"bad.zip: refused"):
        open_dataset(tmp_path / "bad.zip", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_damaged_zip_leaves_nothing_behind(keep: float, folder: Path, tmp_path: Path) -> None:
    whole = zipped(folder, tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"a.zip: not a folder, nor a zip"):
        open_dataset(tmp_path / "a.zip", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("source", ["no-such-folder", "/no/such/folder", "../no/such", "sets/scifact.zip", ""])
def test_a_source_that_is_nothing(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        open_dataset(source, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # the hub was not asked


class FakeHub:
    """Answers like `datasets` for one set, counts its calls, and is unreachable for all others."""

    def __init__(self) -> None:
        corpus = [{"_id": d.id, "title": d.title, "text": d.text, "metadata": d.metadata} for d in DOCUMENTS]
        rows = [(q, d, g) for q, grades in QRELS["test"].items() for d, g in grades.items()]
        columns = {"query-id": [r[0] for r in rows], "corpus-id": [r[1] for r in rows], "score": [r[2] for r in rows]}
        self.answers = {
            ("BeIR/mini", "corpus"): {"corpus": corpus},
            ("BeIR/mini", "queries"): {"queries": QUERIES},
            ("BeIR/mini-qrels", None): {"validation": columns, "test": columns},
        }
        self.calls = 0

    def load_dataset(self, path: str, name: str | None = None) -> dict:
        self.calls += 1
        if (path, name) not in self.answers:
            raise ConnectionError("Couldn't reach it\nand more\n" * 50)
        return self.answers[path, name]


def test_a_hub_set_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=hub.load_dataset))
    for _ in range(2):
        data = open_dataset("BeIR/mini", cache=tmp_path)
        assert (data.name, data.splits) == ("mini", ("dev", "test"))
        assert list(data.corpus) == DOCUMENTS
        assert data.split("dev").qrels == QRELS["test"]
        assert hub.calls == 3


def test_an_unreachable_hub_says_what_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=FakeHub().load_dataset))
    with pytest.raises(DataError, match="Couldn't reach it") as caught:
        open_dataset("BeIR/other", cache=tmp_path)
    assert all(part in str(caught.value) for part in ("BeIR/other", "BeIR/other-qrels", "local BEIR folder or zip"))
    assert str(caught.value).count("\n") < 5
    assert not list(tmp_path.iterdir())


def test_a_folder_of_folders_is_a_collection(folder: Path, tmp_path: Path) -> None:
    for name in ("webmasters", "android"):
        write_dataset(tmp_path / "cqa" / name, DOCUMENTS, QUERIES, QRELS)
    assert [data.name for data in open_collection(tmp_path / "cqa")] == ["android", "webmasters"]
    archive = zipped(tmp_path / "cqa", tmp_path / "cqa.zip", top="cqa/")
    assert [data.name for data in open_collection(archive, cache=tmp_path / "cache")] == ["android", "webmasters"]
    assert [data.name for data in open_collection(folder)] == ["mini"]
    with pytest.raises(DataError, match=r"no corpus.jsonl \(it holds android, webmasters\)"):
        open_dataset(tmp_path / "cqa")


def test_a_write_that_fails_keeps_the_old_file(folder: Path) -> None:
    def failing():
        yield DOCUMENTS[0]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_dataset(folder, failing(), QUERIES, QRELS)
    assert list(open_dataset(folder).corpus) == DOCUMENTS
    assert sorted(file.name for file in folder.iterdir()) == ["corpus.jsonl", "qrels", "queries.jsonl"]


# Real data, large data


def shared(name: str) -> Path:
    folder = Path(os.environ.get("LTRR_DATA", Path(__file__).parents[3] / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent (set LTRR_DATA)")
    return folder


MOVIES = {
    **dict.fromkeys(("tags", "genres", "director", "actors", "characters"), "keyword"),
    **dict.fromkeys(("year", "votes", "rating", "popularity", "budget"), "number"),
}
ARTISTS = {"entity_type": "keyword", "n_listeners": "number", "plays": "number", "tags": "keyword"}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "documents", "queries", "fields"),
    [
        ("scifact", 5_183, (722, 87, 300), {}),
        ("msrd-movies", 9_750, (11_617, 1_813, 2_849), MOVIES),
        ("lastfm-hetrec2k", 17_632, (1_317, 225, 668), ARTISTS),
    ],
)
def test_shared_sets(name: str, documents: int, queries: tuple, fields: dict) -> None:
    data = open_dataset(shared(name))
    assert len(data.corpus) == documents
    assert data.splits == ("train", "dev", "test")
    assert tuple(len(data.split(split).queries) for split in data.splits) == queries
    assert data.corpus.fields == fields  # addresses are dropped
    with open(shared(name) / "corpus.jsonl") as file:
        first = json.loads(next(file))
    assert data.corpus[0] == Document(first["_id"], first["title"], first["text"], first["metadata"])


def test_short_files_load_without_a_sound(folder: Path, capsys: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(folder).split("test")
    assert capsys.readouterr() == ("", "")
