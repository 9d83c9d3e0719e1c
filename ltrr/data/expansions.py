"""Queries generated or observed for every document, in a folder of shards (scripts/{expand,observed}.py write it).

Knows JSON lines, checksums and corpus rows; knows nothing about the models that write or judge queries.

    <folder>/manifest.json        what the queries come from; when all is done, the checksums of the shards
    <folder>/<first row>.jsonl    a line a document: {"_id", "queries", "likelihoods", "tokens"}, then "relevance" too

A shard is there as a whole or not at all. Legend: N documents, S documents of a shard.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltrr.data.corpus import Corpus
from ltrr.data.lines import DataError, encode_json
from ltrr.files import atomic_write

FORMAT = 1
_MADE = "Make it: python scripts/expand.py --model runs/doc2query-1/export --data DATA --out DIR"


class Expansion(NamedTuple):
    """One query generated for a document."""

    query: str
    log_likelihood: float  # log p(query | document), a sum over its tokens
    tokens: int  # the end mark included
    relevance: float = math.nan  # by the filter's cross-encoder, higher is better


class ExpansionWriter:
    """Writes a folder of expansions, shard by shard; takes up one that was left unfinished."""

    def __init__(self, folder: Path, corpus: Corpus, *, model: str, settings: Mapping[str, Any], shard: int) -> None:
        """model: id of the generator. settings: whatever else the queries depend on. shard: S.

        DataError where the folder holds expansions of another corpus, model or settings.
        """
        self._folder, self._ids, self._size = folder, corpus.ids, shard
        made = {"corpus": corpus.fingerprint, "documents": len(corpus), "shard": shard, "model": model, **settings}
        made = {"format": FORMAT, **json.loads(json.dumps(made))}
        self._manifest: dict[str, Any] = {"made": made, "scorer": None}
        if (folder / "manifest.json").exists():
            self._manifest = _manifest(folder)
            _compare(folder, self._manifest["made"], made)
        else:
            self._save()

    def missing(self) -> list[range]:
        """Rows of the shards that are not there yet."""
        return [rows for rows in self._shards() if not _path(self._folder, rows.start).exists()]

    def unscored(self, scorer: str) -> list[range]:
        """Rows of the shards that this scorer has not judged; DataError where another has begun to."""
        if self._manifest["scorer"] not in (None, scorer):
            raise _refused(self._folder, "filter", self._manifest["scorer"], scorer)
        found = ((rows, self.read(rows)) for rows in self._shards())
        missing = [rows for rows, several in found if any(math.isnan(e.relevance) for e in chain(*several))]
        if missing:  # no longer finished: shards are about to change
            self._manifest = {"made": self._manifest["made"], "scorer": scorer}
            self._save()
        return missing

    def read(self, rows: range) -> list[list[Expansion]]:
        """A shard."""
        return _parsed(_path(self._folder, rows.start).read_bytes())

    def write(self, rows: range, expansions: Sequence[Sequence[Expansion]]) -> None:
        """Puts a shard in its place, at once."""
        with atomic_write(_path(self._folder, rows.start)) as temporary, temporary.open("wb") as file:
            for row, several in zip(rows, expansions, strict=True):
                line: dict[str, Any] = {
                    "_id": self._ids[row],
                    "queries": [e.query for e in several],
                    "likelihoods": [round(e.log_likelihood, 4) for e in several],
                    "tokens": [e.tokens for e in several],
                }
                if several and not math.isnan(several[0].relevance):
                    line["relevance"] = [round(e.relevance, 4) for e in several]
                file.write(encode_json(line).encode("utf-8", "backslashreplace") + b"\n")

    def finish(self, keep: float | None = None) -> None:
        """Seals the folder. keep: share of all queries, the most relevant, that readers get; None = all."""
        threshold = None
        if keep is not None:
            scores = [e.relevance for rows in self._shards() for several in self.read(rows) for e in several]
            best = np.sort(np.array(scores, np.float64))[::-1]
            threshold = float(best[max(round(keep * len(best)), 1) - 1]) if len(best) else 0.0
        self._manifest |= {
            "keep": keep,
            "threshold": threshold,
            "shards": {path.name: _sha256(path.read_bytes()) for path in self._paths()},
        }
        self._save()

    def _shards(self) -> list[range]:
        total = len(self._ids)
        return [range(start, min(start + self._size, total)) for start in range(0, total, self._size)]

    def _paths(self) -> list[Path]:
        return [_path(self._folder, rows.start) for rows in self._shards()]

    def _save(self) -> None:
        with atomic_write(self._folder / "manifest.json") as temporary:
            temporary.write_text(json.dumps(self._manifest, indent=1) + "\n", encoding="utf-8")


class Expansions(Sequence[list[str]]):
    """The queries of each document that passed the filter: row -> texts. Shards are read and checked when asked for."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        """Use `read_expansions`."""
        self.id = expansion_id(folder)  # of what is read here: the same for equal content
        self._folder, self._manifest = folder, _manifest(folder)
        made = self._manifest["made"]
        _compare(folder, made, {"corpus": corpus.fingerprint})
        self._documents, self._size = made["documents"], made["shard"]
        self._shard = lru_cache(maxsize=2)(self._read)

    def of(self, row: int) -> list[Expansion]:
        """The queries of a document that passed the filter, with their likelihoods, as they were drawn."""
        if not 0 <= row < self._documents:
            raise IndexError(f"row {row} of expansions of {self._documents} documents")
        threshold = self._manifest["threshold"]
        several = self._shard(row // self._size * self._size)[row % self._size]
        return [e for e in several if threshold is None or e.relevance >= threshold]

    def __len__(self) -> int:
        return self._documents

    def __getitem__(self, row: int) -> list[str]:  # type: ignore[override]
        return [e.query for e in self.of(row)]

    def pairs(self) -> Iterator[tuple[int, Expansion]]:
        """(row, query) of all that passed the filter, in the order of rows."""
        return ((row, expansion) for row in range(len(self)) for expansion in self.of(row))

    def _read(self, start: int) -> list[list[Expansion]]:
        path = _path(self._folder, start)
        content = path.read_bytes()
        if _sha256(content) != self._manifest["shards"][path.name]:
            raise DataError(f"{path}: altered since it was written\n  Fix: delete it and run scripts/expand.py again")
        return _parsed(content)


def read_expansions(folder: str | Path, corpus: Corpus) -> Expansions:
    """What scripts/expand.py wrote for this corpus; DataError where it is unfinished, damaged or of another corpus."""
    return Expansions(Path(folder), corpus)


def write_observed(
    folder: Path, corpus: Corpus, observed: Iterable[tuple[int, str, float]], predicted: Expansions | None = None
) -> None:
    """Queries that customers found documents with, after those that a generator wrote and a filter left.

    observed: (row, query, score in (0, 1]); a score stands where a generated query has its likelihood. DataError where
    the folder holds expansions of something else.
    """
    queries: dict[int, list[Expansion]] = defaultdict(list)
    for row, query, score in sorted(observed):
        queries[row].append(Expansion(query, math.log(score), 1))
    of = {"observed": _sha256(repr(sorted(queries.items())).encode()), "predicted": predicted.id if predicted else None}
    writer = ExpansionWriter(folder, corpus, model="observed", settings=of, shard=512)
    for rows in writer.missing():
        earlier = ([e._replace(relevance=math.nan) for e in predicted.of(row)] if predicted else [] for row in rows)
        writer.write(rows, [[*several, *queries[row]] for row, several in zip(rows, earlier, strict=True)])
    writer.finish()


def expansion_id(folder: str | Path) -> str:
    """Checksum of the queries in a finished folder and of its filter; DataError where it is none."""
    manifest = _manifest(Path(folder))
    if "shards" not in manifest:
        raise DataError(
            f"expansions {folder}: not finished\n  Fix: run the same scripts/expand.py command again; it goes on"
        )
    for name in manifest["shards"]:
        if not (Path(folder) / name).exists():
            raise DataError(f"{Path(folder) / name}: missing\n  Fix: run the same scripts/expand.py command again")
    return _sha256(json.dumps([manifest["made"]["corpus"], manifest["threshold"], manifest["shards"]]).encode())


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"expansions {folder}: no manifest.json in it\n  {_MADE}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})\n  {_MADE}") from None
    if not isinstance(found, dict) or found.get("made", {}).get("format") != FORMAT:
        raise DataError(f"{path}: not of this version of ltrr\n  {_MADE}")
    return found


def _compare(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise _refused(folder, key, found.get(key), value)


def _refused(folder: Path, key: str, found: Any, wanted: Any) -> DataError:
    fix = "give another folder, or delete this one"
    return DataError(f"expansions {folder}: {key}: made with {found!r}, asked for {wanted!r}\n  Fix: {fix}")


def _parsed(content: bytes) -> list[list[Expansion]]:
    out = []
    for line in map(json.loads, content.splitlines()):
        relevance = line.get("relevance") or [math.nan] * len(line["queries"])
        columns = (line["queries"], line["likelihoods"], line["tokens"], relevance)
        out.append([Expansion(*values) for values in zip(*columns, strict=True)])
    return out


def _path(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.jsonl"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
