"""Stores the queries generated or observed for every document, in a folder of shards (scripts/{expand,observed}.py).

Knows JSON lines, checksums and corpus rows; knows nothing about the models that write or judge queries.

    <folder>/manifest.json        the origin of the queries; once finished, also the checksums of the shards
    <folder>/<first row>.jsonl    one line per document: {"_id", "queries", "likelihoods", "tokens"[, "relevance"]}

Shards are written atomically. Legend: N documents, S documents of a shard.
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
_MAKE_IT = "Make it: python scripts/expand.py --model runs/doc2query-1/export --data DATA --out DIR"


class Expansion(NamedTuple):
    """One query generated for a document."""

    query: str
    log_likelihood: float  # log p(query | document), summed over its tokens
    tokens: int  # number of tokens, the end mark included
    relevance: float = math.nan  # score of the filter's cross-encoder, higher is better; NaN = not scored


class ExpansionWriter:
    """Writes a folder of expansions, shard by shard; resumes an unfinished one."""

    def __init__(self, folder: Path, corpus: Corpus, *, model: str, settings: Mapping[str, Any], shard: int) -> None:
        """model: id of the generator. settings: all else on which the queries depend. shard: S.

        Raises DataError if the folder holds expansions of another corpus, model or settings.
        """
        self._folder, self._ids, self._size = folder, corpus.ids, shard
        origin = {"corpus": corpus.fingerprint, "documents": len(corpus), "shard": shard, "model": model, **settings}
        origin = {"format": FORMAT, **json.loads(json.dumps(origin))}
        self._manifest: dict[str, Any] = {"made": origin, "scorer": None}
        if (folder / "manifest.json").exists():
            self._manifest = _manifest(folder)
            _compare(folder, self._manifest["made"], origin)
        else:
            self._save()

    def missing(self) -> list[range]:
        """Lists the rows of each shard that is not written yet."""
        return [rows for rows in self._shards() if not _path(self._folder, rows.start).exists()]

    def unscored(self, scorer: str) -> list[range]:
        """Lists the rows of each shard that this scorer has not judged; raises DataError if another scorer began."""
        if self._manifest["scorer"] not in (None, scorer):
            raise _refused(self._folder, "filter", self._manifest["scorer"], scorer)
        shards = ((rows, self.read(rows)) for rows in self._shards())
        missing = [rows for rows, several in shards if any(math.isnan(e.relevance) for e in chain(*several))]
        if missing:  # unfinished again: the caller is about to change shards
            self._manifest = {"made": self._manifest["made"], "scorer": scorer}
            self._save()
        return missing

    def read(self, rows: range) -> list[list[Expansion]]:
        """Reads a shard: the expansions of each of its documents."""
        return _parsed(_path(self._folder, rows.start).read_bytes())

    def write(self, rows: range, expansions: Sequence[Sequence[Expansion]]) -> None:
        """Writes a shard atomically."""
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
        """Seals the folder. keep: share of all queries that readers get, the most relevant first; None = all."""
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
    """The queries of each document that passed the filter: row -> texts. Shards are read and checked on access."""

    def __init__(self, folder: Path, corpus: Corpus) -> None:
        """Use `read_expansions`."""
        self.id = expansion_id(folder)  # equal for equal content
        self._folder, self._manifest = folder, _manifest(folder)
        origin = self._manifest["made"]
        _compare(folder, origin, {"corpus": corpus.fingerprint})
        self._documents, self._size = origin["documents"], origin["shard"]
        self._shard = lru_cache(maxsize=2)(self._read)

    def of(self, row: int) -> list[Expansion]:
        """Lists the queries of a document that passed the filter, with likelihoods, in the order they were drawn."""
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
        """Yields (row, query) of all queries that passed the filter, in row order."""
        return ((row, expansion) for row in range(len(self)) for expansion in self.of(row))

    def _read(self, start: int) -> list[list[Expansion]]:
        path = _path(self._folder, start)
        content = path.read_bytes()
        if _sha256(content) != self._manifest["shards"][path.name]:
            raise DataError(f"{path}: altered since it was written\n  Fix: delete it and run scripts/expand.py again")
        return _parsed(content)


def read_expansions(folder: str | Path, corpus: Corpus) -> Expansions:
    """Opens what scripts/expand.py wrote for a corpus; raises DataError if unfinished, damaged or of another corpus."""
    return Expansions(Path(folder), corpus)


def write_observed(
    folder: Path, corpus: Corpus, observed: Iterable[tuple[int, str, float]], predicted: Expansions | None = None
) -> None:
    """Writes queries that led customers to documents, after the generated queries that passed the filter.

    observed: (row, query, score in (0, 1]); the score is stored in place of a likelihood. predicted: the generated
    queries. Raises DataError if the folder holds expansions of another origin.
    """
    queries: dict[int, list[Expansion]] = defaultdict(list)
    for row, query, score in sorted(observed):
        queries[row].append(Expansion(query, math.log(score), 1))
    settings = {"observed": _sha256(repr(sorted(queries.items())).encode())}
    settings |= {"predicted": predicted.id if predicted else None}
    writer = ExpansionWriter(folder, corpus, model="observed", settings=settings, shard=512)
    for rows in writer.missing():
        earlier = ([e._replace(relevance=math.nan) for e in predicted.of(row)] if predicted else [] for row in rows)
        writer.write(rows, [[*several, *queries[row]] for row, several in zip(rows, earlier, strict=True)])
    writer.finish()


def predictions(folder: str | Path, corpus: Corpus, certain: float) -> tuple[list[str], list[int], list[float]]:
    """Generated queries, corpus rows and how likely each row is what the query wants: `certain` · p^(1 / tokens)."""
    pairs = [*read_expansions(folder, corpus).pairs()]
    scores = [certain * math.exp(e.log_likelihood / max(e.tokens, 1)) for _, e in pairs]
    return [e.query for _, e in pairs], [row for row, _ in pairs], scores


def expansion_id(folder: str | Path) -> str:
    """Returns the checksum of a finished folder's queries and filter; raises DataError if it is not finished."""
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
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"expansions {folder}: no manifest.json in it\n  {_MAKE_IT}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})\n  {_MAKE_IT}") from None
    if not isinstance(manifest, dict) or manifest.get("made", {}).get("format") != FORMAT:
        raise DataError(f"{path}: not of this version of ltrr\n  {_MAKE_IT}")
    return manifest


def _compare(folder: Path, actual: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if actual.get(key) != value:
            raise _refused(folder, key, actual.get(key), value)


def _refused(folder: Path, key: str, actual: Any, wanted: Any) -> DataError:
    fix = "give another folder, or delete this one"
    return DataError(f"expansions {folder}: {key}: made with {actual!r}, asked for {wanted!r}\n  Fix: {fix}")


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
