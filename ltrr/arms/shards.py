"""Encodes a corpus shard by shard, so that a killed build loses at most one shard of work.

Knows documents, files and checksums; does not know what an encoder returns. Each shard is a file `<first row>.npz` in a
work folder, which the next build with the same key reuses (`ltrr.index.manifest.work_folder`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ltrr.data.beir import Corpus, document_text


def encode_shards(
    corpus: Corpus,
    fields: Sequence[str],
    encode: Callable[[list[str]], Mapping[str, np.ndarray]],
    *,
    work: Path,
    size: int,
    name: str,
) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
    """Encodes the shards missing from `work`, then yields rows and arrays of every shard in row order.

    encode: texts (title, text and these metadata fields) -> named arrays. size: documents per shard. name: label of the
    progress bar.
    """
    shards = [range(start, min(start + size, len(corpus))) for start in range(0, len(corpus), size)]
    missing = [rows for rows in shards if not _is_done(work, rows)]
    done = len(corpus) - sum(map(len, missing))
    with tqdm(total=len(corpus), initial=done, desc=name, unit="document", mininterval=1) as progress:
        for rows in missing:
            with _file(work, rows).open("wb") as file:
                np.savez(file, **encode([document_text(corpus[row], fields) for row in rows]))  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            _seal(work, rows).write_text(_digest(work, rows))
            progress.update(len(rows))
    for rows in shards:
        with np.load(_file(work, rows), allow_pickle=False) as arrays:
            yield rows, dict(arrays)


def _file(work: Path, rows: range) -> Path:
    return work / f"{rows.start}.npz"


def _seal(work: Path, rows: range) -> Path:
    return work / f"{rows.start}.sha256"


def _is_done(work: Path, rows: range) -> bool:
    """Whether the shard is complete: a build that was killed or lost power may have left a partial file."""
    seal = _seal(work, rows)
    return seal.exists() and _file(work, rows).exists() and seal.read_text() == _digest(work, rows)


def _digest(work: Path, rows: range) -> str:
    with _file(work, rows).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
