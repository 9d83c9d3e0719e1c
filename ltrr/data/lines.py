"""Reads text files line by line, and reports every error with file, line, id and fix.

Knows UTF-8, JSON objects and the keys that documents and queries share (`_id`, `title`, `text`, `metadata`); knows
nothing about corpora, qrels or folders.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

QUIET = 100_000  # lines read before a progress bar appears

# NaN and Infinity are not JSON, but pandas writes them: read them as null
decode_json = json.JSONDecoder(parse_constant=lambda _: None).decode
encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_surrogate = re.compile(r"\\u[dD][89a-fA-F]")


class DataError(ValueError):
    """Raised for an error in the user's data; the message names file, line, id and the fix."""


def shown(value: object) -> str:
    """Quotes a value for an error message, cut to 80 characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def error_at(source: object, line: int, problem: str, fix: str, *, id: object = None) -> DataError:
    """Makes the error for one line, with the `id` if it is known."""
    at = f"{source}, line {line}" + ("" if id is None else f", id {shown(id)}")
    return DataError(f"{at}: {problem}\n  Fix: {fix}")


def warn_counted(source: object, kind: str, examples: Sequence[str]) -> None:
    """Issues one warning for all cases of a kind, with their count and the first example."""
    warnings.warn(f"{source}: {kind}: {len(examples)}, the first is {examples[0]}", stacklevel=5)


class Line(NamedTuple):
    number: int  # from 1
    start: int  # byte offset in the file, as `end`; a byte order mark is excluded
    end: int
    text: str


class Record(NamedTuple):
    """A line that holds a JSON object with a valid id and text."""

    line: Line
    id: str
    text: str
    title: str
    metadata: dict[str, Any]


def read_lines(stream: BinaryIO, source: object) -> Iterator[Line]:
    """Yields the non-blank lines of a UTF-8 file, with a progress bar if long; raises DataError if it is not UTF-8."""
    end = 0
    for number, raw in enumerate(_with_progress(stream, source), 1):
        start, end = end, end + len(raw)
        if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
            start, raw = 3, raw[3:]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"byte {start + error.start} of the file (0x{raw[error.start]:02x}) is not UTF-8"
            fix = "save the file as UTF-8 (iconv -f <its encoding> -t utf-8)"
            raise error_at(source, number, problem, fix) from None
        if not text.isspace():
            yield Line(number, start, end, text)


def read_records(stream: BinaryIO, source: object) -> Iterator[Record]:
    """Yields the checked objects of a JSON-lines file; raises DataError for the first line that is not a record."""
    for line in read_lines(stream, source):
        try:
            record = decode_json(line.text)
        except (ValueError, RecursionError) as error:
            fix = "one complete JSON object a line, strings in double quotes, line breaks within them as \\n"
            raise error_at(source, line.number, f"not JSON ({error}): {shown(line.text.strip())}", fix) from None
        if not isinstance(record, dict):
            problem = f"a {type(record).__name__}, not an object: {shown(record)}"
            raise error_at(source, line.number, problem, 'one JSON object a line: {"_id": "…", "text": "…"}')
        problem, fix = _fault(record, line.text)
        if problem:
            raise error_at(source, line.number, problem, fix, id=record.get("_id"))
        title, metadata = record.get("title") or "", record.get("metadata") or {}
        yield Record(line, record["_id"], record["text"], title, metadata)


def _fault(record: dict[str, Any], text: str) -> tuple[str, str]:
    """Returns (problem, fix) of an object, or empty strings if it is valid."""
    for key in ("_id", "text"):
        if key not in record:
            return f"no {key!r} (it has {shown(list(record))})", f"give every line a string {key!r}"
    for key in ("_id", "text", "title"):
        value = record.get(key)
        if not isinstance(value, str) and not (key == "title" and value is None):
            problem = f"{key!r} is {shown(value)} ({type(value).__name__}), not a string"
            return problem, f'write it in double quotes, as "{key}": "{str(value)[:40]}"'
    if record["_id"].split() != [record["_id"]]:
        fix = "an id of one or more characters without white space, at which run files are split"
        return "'_id' is empty or holds white space", fix
    if not isinstance(record.get("metadata") or {}, dict):
        return f"'metadata' is {shown(record['metadata'])}, not an object", 'write {"field": value}, or leave it out'
    if _surrogate.search(text):
        try:
            encode_json(record).encode()
        except UnicodeEncodeError as error:
            half = f"half a surrogate pair ({error.object[error.start]!a})"
            return half, "write the whole character, in UTF-8 or as two \\u escapes"
    return "", ""


def _with_progress(stream: BinaryIO, source: object) -> Iterator[bytes]:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    yield from islice(stream, QUIET)
    if (done := stream.tell()) < size:
        name, total = Path(str(source)).name, round(QUIET * size / done)
        yield from tqdm(stream, f"reading {name}", total, initial=QUIET, unit=" lines", unit_scale=True, delay=1)
