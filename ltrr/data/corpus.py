"""Reads the documents of a data set: a JSON-lines file that is checked once, fingerprinted, and parsed on demand.

Knows the kind of each metadata field and how to read its values; knows nothing about queries, folders, analysers or
models. Legend: N documents.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from ltrr.data.lines import DataError, Record, decode_json, encode_json, error_at, read_records, shown, warn_counted

FieldKind = Literal["text", "keyword", "number", "date"]

SAMPLE = 10_000  # documents with a value from which a field's kind is inferred
SHARE = 0.95  # of these documents that must agree

_canonical = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode
_date = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].+)?")
_epoch = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the corpus. `metadata` is as in the file; read it with `field_values` and `field_number`."""

    id: str
    title: str
    text: str
    metadata: dict[str, Any]

    def line(self) -> bytes:
        """Encodes the document as a line of corpus.jsonl."""
        record = {"_id": self.id, "title": self.title, "text": self.text, "metadata": self.metadata}
        return encode_json(record).encode("utf-8", "backslashreplace") + b"\n"


def field_values(document: Document, field: str) -> list[tuple[str, float]]:
    """Returns (value, weight) pairs of a keyword or text field, in the file's order; the default weight is 1.

    The file may hold a string, a list of strings, a list of [name, weight] pairs or a dict name -> weight; a number
    or boolean becomes its JSON string. A missing value, or one of another shape, gives an empty list.
    """
    value = document.metadata.get(field)
    return [] if is_empty(value) else _weighted(value) or []


def field_number(document: Document, field: str) -> float:
    """Returns a number, or a date (ISO 8601, by default UTC) as days since 1970-01-01; NaN if missing."""
    value: Any = document.metadata.get(field)
    return float(value) if _is_number(value) else _days(value)


def document_text(document: Document, fields: Sequence[str]) -> str:
    """Joins title, text and the values of these metadata fields by spaces: the text that models read."""
    values = [value for field in fields for value, _ in field_values(document, field)]
    return " ".join(part for part in (document.title, document.text, *values) if part)


def is_empty(value: object) -> bool:
    """Whether a metadata value is empty."""
    return value is None or value in ("", [], {})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _days(value: object) -> float:
    if not isinstance(value, str) or not _date.fullmatch(value):
        return np.nan
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return np.nan
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _epoch).total_seconds() / 86_400


def _name(value: object) -> str | None:
    return value if isinstance(value, str) else encode_json(value) if isinstance(value, bool | int | float) else None


def _weighted(value: object) -> list[tuple[str, float]] | None:
    """Returns names with weights; None for a value of another shape (nested objects, lists of lists)."""
    if isinstance(value, dict):
        return [(name, float(w)) for name, w in value.items()] if all(map(_is_number, value.values())) else None
    pairs = []
    for item in value if isinstance(value, list) else [value]:
        weight: Any = 1.0
        if isinstance(item, list) and len(item) == 2 and _is_number(item[1]):
            item, weight = item
        if (name := _name(item)) is None:
            return None
        pairs.append((name, float(weight)))
    return pairs


def _fits(kind: FieldKind, value: object) -> bool:
    if kind == "number":
        return _is_number(value)
    return not np.isnan(_days(value)) if kind == "date" else _weighted(value) is not None


@dataclass(slots=True)
class _FieldSample:
    """Counts over the first SAMPLE documents with a value in a field."""

    documents: int = 0
    numbers: int = 0
    dates: int = 0
    urls: int = 0
    weighted: int = 0  # documents whose value is one name or several
    lists: int = 0
    names: int = 0
    words: int = 0

    def add(self, value: object) -> None:
        names = [name for name, _ in _weighted(value) or ()]
        self.documents += 1
        self.numbers += _is_number(value)
        self.dates += not np.isnan(_days(value))
        self.urls += bool(names) and all(name.startswith(("http://", "https://")) for name in names)
        self.weighted += bool(names)
        self.lists += isinstance(value, list | dict)
        self.names += len(names)
        self.words += sum(len(name.split()) for name in names)

    def kind(self) -> FieldKind | None:
        """Infers the kind; None if the field is not worth searching (addresses, nested objects, no values)."""
        enough = max(SHARE * self.documents, 1)
        if self.numbers >= enough:
            return "number"
        if self.dates >= enough:
            return "date"
        if self.urls >= enough or self.weighted < enough:
            return None
        return "keyword" if self.lists > self.documents / 2 or self.words <= 5 * self.names else "text"


class Corpus:
    """The documents: row -> document, id -> row. Rows are 0..N-1 in the file's order.

    A document is parsed from the memory-mapped file on access; only ids and two offsets per document stay in memory.
    `fields` holds the kind of every metadata field worth searching. If kinds are declared, documents keep only those
    fields, and a value of another kind is an error; if kinds are inferred, such a value counts as missing.
    `fingerprint` is the sha256 of all content (id, title, text, whole metadata, in order), independent of the location
    and of declared kinds. `warnings` counts odd but usable documents.
    """

    def __init__(
        self, stream: BinaryIO, source: object, data: Callable[[], Any], fields: Mapping[str, FieldKind] | None
    ) -> None:
        """Use `from_file` or `from_documents`. `data()` returns the bytes from which documents are later parsed."""
        self.source = source
        self._declared = None if fields is None else dict(fields)
        for field, kind in (self._declared or {}).items():
            if kind not in get_args(FieldKind):
                raise DataError(f"fields: {field!r} is declared as {kind!r}; the kinds are {get_args(FieldKind)}")
        self._rows: dict[str, int] = {}
        offsets, lines, empty = array("q"), array("q"), []
        samples: dict[str, _FieldSample] = {}
        digest = hashlib.sha256()
        for record in read_records(stream, source):
            line = record.line.number
            row = self._rows.setdefault(record.id, len(lines))
            if row < len(lines):
                problem = f"this document id is already on line {lines[row]}"
                raise error_at(source, line, problem, "one line a document: remove or rename one", id=record.id)
            self._learn(record, samples)
            digest.update(_canonical([record.id, record.title, record.text, record.metadata]).encode() + b"\n")
            offsets.extend((record.line.start, record.line.end))
            lines.append(line)
            if not record.title.strip() and not record.text.strip():
                empty.append(f"line {line}, id {shown(record.id)}")
        if not lines:
            raise DataError(f"{source}: no document in it\n  Fix: one JSON object a line with _id, title and text")
        self.ids: Sequence[str] = list(self._rows)
        self.fingerprint = digest.hexdigest()
        self.fields = self._kinds(samples)
        self.warnings: dict[str, int] = {"empty document": len(empty)} if empty else {}
        if empty:
            warn_counted(source, "empty document (no title and no text; kept)", empty)
        self._offsets = np.frombuffer(offsets, np.int64).reshape(-1, 2)  # (N, 2)
        self._data = data()

    @classmethod
    def from_documents(cls, documents: Iterable[Document], fields: Mapping[str, FieldKind] | None = None) -> Corpus:
        """Makes a corpus in memory, checked like a file (line n is the n-th document)."""
        data = b"".join(map(Document.line, documents))
        return cls(io.BytesIO(data), "documents in memory", lambda: data, fields)

    @classmethod
    def from_file(cls, path: Path, fields: Mapping[str, FieldKind] | None = None) -> Corpus:
        """Reads, checks and fingerprints a corpus.jsonl; raises DataError. Do not edit the file while it is in use."""
        with open(path, "rb") as file:
            return cls(file, path, lambda: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), fields)

    def _learn(self, record: Record, samples: dict[str, _FieldSample]) -> None:
        for field, value in record.metadata.items():
            sample = samples.get(field) or samples.setdefault(field, _FieldSample())
            if sample.documents < SAMPLE and not is_empty(value):
                sample.add(value)
        for field, kind in (self._declared or {}).items():
            value = record.metadata.get(field)
            if not is_empty(value) and not _fits(kind, value):
                problem = f"metadata field {field!r} is declared as {kind}, but is {shown(value)}"
                raise error_at(self.source, record.line.number, problem, "correct the value or the kind", id=record.id)

    def _kinds(self, samples: Mapping[str, _FieldSample]) -> dict[str, FieldKind]:
        if self._declared is None:
            return {field: kind for field, sample in samples.items() if (kind := sample.kind())}
        known = [field for field, sample in samples.items() if sample.documents]
        for field in self._declared:
            if field not in known:
                raise DataError(
                    f"fields: no document of {self.source} has a value in {field!r}; there are {known[:50]}"
                )
        return self._declared

    def word_fields(self, named: Sequence[str] | None = None) -> list[str]:
        """Lists the metadata fields that models read: `named`, by default all text and keyword fields; or DataError."""
        for field in named or ():
            if field not in self.fields:
                raise DataError(f"text_fields: no field {field!r} in the corpus; there are {', '.join(self.fields)}")
        return [f for f, kind in self.fields.items() if kind in ("text", "keyword")] if named is None else list(named)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Document:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a corpus of {len(self)} documents (-1 is padding)")
        start, end = self._offsets[row]
        record = decode_json(self._data[start:end].decode())
        metadata = record.get("metadata") or {}
        if self._declared is not None:
            metadata = {field: value for field, value in metadata.items() if field in self._declared}
        return Document(record["_id"], record.get("title") or "", record["text"], metadata)

    def __iter__(self) -> Iterator[Document]:
        return map(self.__getitem__, range(len(self)))

    def __contains__(self, doc_id: object) -> bool:
        return doc_id in self._rows

    def row(self, doc_id: str) -> int:
        """Returns the row of a document id; raises DataError for an unknown one."""
        try:
            return self._rows[doc_id]
        except KeyError:
            raise DataError(f"{self.source}: no document has the id {shown(doc_id)}") from None

    def rows(self, doc_ids: Sequence[str]) -> np.ndarray:
        """Returns the rows of document ids, (len(doc_ids),) int32; raises DataError for an unknown one."""
        return np.fromiter(map(self.row, doc_ids), np.int32, len(doc_ids))
