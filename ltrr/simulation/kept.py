"""Keeps what takes long to compute in files, so that a killed run goes on; refuses files of another world.

Knows arrays and files; does not know what they hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltrr.files import atomic_write, content_key


def kept(path: Path, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of an npz file, which is computed and written first where it is missing."""
    if not path.exists():
        arrays = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def check_world(folder: Path, *depends: Any) -> None:
    """ValueError where a folder holds outcomes of another world. depends: arms, queries and truth, JSON values."""
    key, mark = content_key(*depends), folder / "world.json"
    if mark.exists() and json.loads(mark.read_text()) != key and any(folder.glob("*.npz")):
        raise ValueError(
            f"--out: {folder} has outcomes of other arms, indexes or judgements; remove it or name another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(mark) as temporary:
        temporary.write_text(json.dumps(key))
