"""Opens data sets in the BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`; a folder, zip or hub name.

Knows where the files are, and reads queries and qrels; corpus.py reads documents, and its names are re-exported here.
Drops query metadata, except the fields that the caller names.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ltrr.data.corpus import Corpus, Document, FieldKind, document_text, field_number, field_values, is_empty
from ltrr.data.lines import DataError, encode_json, error_at, read_lines, read_records, shown, warn_counted
from ltrr.types import Context, Qrels, Query

__all__ = [
    "Corpus",
    "DataError",
    "Dataset",
    "Document",
    "FieldKind",
    "Split",
    "document_text",
    "field_number",
    "field_values",
    "open_collection",
    "open_dataset",
    "write_dataset",
]

CACHE = Path("~/.cache/ltrr/data")  # extracted zips and downloads
HEADER = ["query-id", "corpus-id", "score"]
SPLITS = ("train", "dev", "test")  # the order in which splits are listed; others follow


class Split(NamedTuple):
    """The queries judged by a qrels file, in the order of queries.jsonl, and their grades."""

    queries: list[Query]
    qrels: Qrels


class Dataset:
    """A corpus, its queries, and the qrels of its splits; a split is read and checked on first use."""

    def __init__(self, folder: Path, corpus: Corpus, queries: list[Query], qrels: Mapping[str, Path]) -> None:
        self.name = folder.resolve().name
        self.corpus = corpus
        self.splits = tuple(qrels)
        self._queries = queries
        self._paths = qrels
        self._loaded: dict[str, Split] = {}

    @property
    def queries(self) -> list[Query]:
        """All queries, judged or not."""
        return self._queries

    def split(self, name: str) -> Split:
        """Returns one split; raises DataError for an unknown name or an error in its file."""
        if name not in self._paths:
            raise DataError(f"{self.name} has no split {name!r}; there are {', '.join(self.splits)}")
        if name not in self._loaded:
            path = self._paths[name]
            qrels = _read_qrels(path, {query.id for query in self._queries}, self.corpus)
            self._loaded[name] = Split([query for query in self._queries if query.id in qrels], qrels)
            if without := [f"id {shown(query)}" for query, grades in qrels.items() if not any(grades.values())]:
                self.corpus.warnings[f"query without a positive ({name})"] = len(without)
                warn_counted(path, "queries without a positive (kept)", without)
        return self._loaded[name]


def open_dataset(
    source: str | Path,
    *,
    fields: Mapping[str, FieldKind] | None = None,
    query_fields: Sequence[str] = (),
    qrels: str = "qrels",
    cache: Path | None = None,
) -> Dataset:
    """Opens a BEIR folder, a zip of one, or a hub name (`BeIR/scifact`, through `datasets`).

    fields: kinds of the metadata fields to keep; by default all are kept and their kinds inferred. query_fields: query
    metadata to keep (customer, locale, time, device, or any other, as an attribute). qrels: name of the folder with
    the grades. cache: folder for extracted zips and downloads. Raises DataError for any error in the data.
    """
    folder = _folder(source, cache)
    contents = f"it holds {', '.join(sorted(f.name for f in folder.iterdir())[:12]) or 'nothing'}"
    for name in ("corpus.jsonl", "queries.jsonl"):
        if not (folder / name).is_file():
            fix = f"give the folder that has corpus.jsonl, queries.jsonl and {qrels}/"
            raise DataError(f"{folder}: no {name} ({contents})\n  Fix: {fix}")
    paths = {path.stem: path for path in (folder / qrels).glob("*.tsv")}
    if not paths:
        raise DataError(f"{folder}: no {qrels}/*.tsv ({contents})\n  Fix: add {qrels}/test.tsv: {', '.join(HEADER)}")
    order = sorted(paths, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    queries = _read_queries(folder / "queries.jsonl", query_fields)
    corpus = Corpus.from_file(folder / "corpus.jsonl", fields)
    return Dataset(folder, corpus, queries, {split: paths[split] for split in order})


def open_collection(
    source: str | Path,
    *,
    fields: Mapping[str, FieldKind] | None = None,
    query_fields: Sequence[str] = (),
    qrels: str = "qrels",
    cache: Path | None = None,
) -> list[Dataset]:
    """Opens all data sets in a folder of BEIR folders (CQADupStack), sorted by name; an ordinary set gives one."""
    folder = _folder(source, cache)
    parts = sorted(path.parent for path in folder.glob("*/corpus.jsonl"))
    parts = parts if parts and not (folder / "corpus.jsonl").exists() else [folder]
    return [open_dataset(part, fields=fields, query_fields=query_fields, qrels=qrels) for part in parts]


def write_dataset(
    folder: Path, documents: Iterable[Document], queries: Iterable[Mapping[str, Any]], qrels: Mapping[str, Qrels]
) -> None:
    """Streams a data set to a BEIR folder, each file atomically. Queries are objects as in queries.jsonl."""
    _write(folder / "corpus.jsonl", map(Document.line, documents))
    _write(folder / "queries.jsonl", (encode_json(dict(query)).encode() + b"\n" for query in queries))
    for split, judged in qrels.items():
        rows = ((query, document, str(grade)) for query, grades in judged.items() for document, grade in grades.items())
        _write(folder / "qrels" / f"{split}.tsv", ("\t".join(row).encode() + b"\n" for row in chain([HEADER], rows)))


def _write(path: Path, lines: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.writelines(lines)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# Queries and qrels


def _context(values: Mapping[str, Any]) -> Context:
    """Makes a context from one query's metadata; raises ValueError for a time that is not ISO 8601."""
    strings = {field: value if isinstance(value, str) else encode_json(value) for field, value in values.items()}
    customer, locale, device, time = (strings.pop(field, None) for field in ("customer", "locale", "device", "time"))
    return Context(customer, locale, None if time is None else datetime.fromisoformat(time), device, strings)


def _read_queries(path: Path, fields: Sequence[str]) -> list[Query]:
    queries: list[Query] = []
    lines: dict[str, int] = {}  # id -> line
    used: dict[str, None] = {}  # metadata fields with a value
    with open(path, "rb") as file:
        for record in read_records(file, path):
            line = record.line.number
            if (first := lines.setdefault(record.id, line)) != line:
                problem = f"this query id is already on line {first}"
                raise error_at(path, line, problem, "one line a query: remove or rename one", id=record.id)
            if not record.text.strip():
                raise error_at(path, line, "a query without text", "write it or remove the line", id=record.id)
            metadata = {field: value for field, value in record.metadata.items() if not is_empty(value)}
            used.update(dict.fromkeys(metadata))
            try:
                context = _context({field: metadata[field] for field in fields if field in metadata})
            except ValueError:
                problem = f"metadata field 'time' is {shown(metadata['time'])}, not ISO 8601"
                raise error_at(path, line, problem, "write it as 2024-05-31T18:30:00Z", id=record.id) from None
            queries.append(Query(record.id, record.text, context))
    if not queries:
        raise DataError(f"{path}: no query in it\n  Fix: one JSON object a line with _id and text")
    for field in fields:
        if field not in used:
            raise DataError(f"query_fields: no query of {path} has a value in {field!r}; there are {list(used)[:50]}")
    return queries


def _read_qrels(path: Path, query_ids: set[str], corpus: Corpus) -> Qrels:
    qrels: Qrels = {}
    with open(path, "rb") as file:
        for line in read_lines(file, path):
            columns = line.text.rstrip("\r\n").split("\t")
            if line.number == 1 and columns == HEADER:
                continue
            if len(columns) != 3:
                problem = f"{len(columns)} column(s) between tabs, not 3: {shown(line.text.strip())}"
                fix = "query-id, corpus-id and score with a tab between (a TREC file's second column must go)"
                raise error_at(path, line.number, problem, fix)
            query, document, score = columns
            if query not in query_ids:
                fix = f"add the query or drop the row (a header is {', '.join(HEADER)})"
                raise error_at(path, line.number, "queries.jsonl has no such query", fix, id=query)
            if document not in corpus:
                fix = "add the document or drop the row"
                raise error_at(path, line.number, "corpus.jsonl has no such document", fix, id=document)
            if not (score.isascii() and score.isdecimal()):
                problem, fix = f"the score of document {shown(document)} is {shown(score)}", "a whole number from 0 on"
                raise error_at(path, line.number, problem, fix, id=query)
            grade = int(score)
            if (first := qrels.setdefault(query, {}).setdefault(document, grade)) != grade:
                problem = f"document {shown(document)} has grade {grade} here and {first} before"
                raise error_at(path, line.number, problem, "keep one row a query and document", id=query)
    if not qrels:
        raise DataError(f"{path}: no row in it\n  Fix: add rows ({', '.join(HEADER)}) or remove the file")
    return qrels


# Folders, zips, the hub


def _folder(source: str | Path, cache: Path | None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return _unzipped(path, cache)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(?<!\.zip)", str(source)):
        return _downloaded(str(source), cache)
    raise DataError(f"{source}: no such folder or zip, and not a hub name (owner/name, as BeIR/scifact)")


def _cached(cache: Path | None, name: str, fill: Callable[[Path], None]) -> Path:
    """Returns the cached folder `name`, or the data set's folder inside it; `fill` writes it once, atomically."""
    root = (cache or CACHE).expanduser()
    target = root / name
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=root))
        try:
            fill(temporary)
            temporary.rename(target)
        except OSError:
            if not target.exists():  # otherwise another process filled it first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    while not (target / "corpus.jsonl").exists():
        folders = [folder for folder in target.iterdir() if folder.is_dir() and folder.name != "__MACOSX"]
        if len(folders) != 1:
            break
        target = folders[0]
    return target


def _unzipped(path: Path, cache: Path | None) -> Path:
    def fill(folder: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    parts = PurePosixPath(member.replace("\\", "/"))
                    if parts.is_absolute() or ".." in parts.parts:
                        raise DataError(f"{path}: refused, its member {shown(member)} would leave the folder")
                archive.extractall(folder / path.stem)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            problem = f"not a folder, nor a zip that can be read ({error})"
            raise DataError(f"{path}: {problem}\n  Fix: give a BEIR folder, or fetch the zip again") from None

    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _cached(cache, digest, fill)


def _downloaded(name: str, cache: Path | None) -> Path:
    """Downloads a BEIR data set of the hub: configurations corpus and queries, grades in `<name>-qrels`."""

    def fill(folder: Path) -> None:
        corpus: Any
        queries: Any
        grades: Any
        try:
            from datasets import load_dataset

            corpus, queries = (load_dataset(name, part)[part] for part in ("corpus", "queries"))
            grades = load_dataset(f"{name}-qrels")
        except Exception as error:  # hub, network and cache raise errors of many types
            reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]
            raise DataError(
                f"{name}: no local folder or zip has this name, and the hub did not give it\n"
                f"  Tried: {name} (corpus and queries) and {name}-qrels; {reason}\n"
                "  Fix: check name and net, or give the path of a local BEIR folder or zip"
            ) from None
        qrels: dict[str, Qrels] = {}
        for split, rows in grades.items():
            judged = qrels.setdefault("dev" if split == "validation" else str(split), {})
            for query, document, score in zip(*(rows[column] for column in HEADER), strict=True):
                judged.setdefault(str(query), {})[str(document)] = int(score)
        documents = (Document(r["_id"], r.get("title") or "", r["text"], r.get("metadata") or {}) for r in corpus)
        write_dataset(folder / name.split("/")[1], documents, queries, qrels)

    return _cached(cache, name.replace("/", "--"), fill)
