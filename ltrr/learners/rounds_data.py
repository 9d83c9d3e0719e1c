"""Reads and writes files of a policy's logged rounds, and serves them as batches for training.

Knows arrays and files; knows nothing about arms, models or the meaning of features.
Legend: R rounds, U queries (each with the features it was logged with), M candidates per query, F features of a query,
C of a candidate.

    <name>.npz   row (R,), query (U, F), candidates (U, M, C), cut (R,), clicks (R, M), names (JSON of the columns);
                 place (R, M) only if pages did not show the fused order up to the cut
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from ltrr.files import atomic_write
from ltrr.types import Rounds

_HELD_OUT = 10  # one query in this many is held out for validation


def write_rounds(path: Path, rounds: Rounds) -> None:
    """Writes one file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: value for name, value in rounds._asdict().items() if name != "names" and value is not None}
    arrays["names"] = np.frombuffer(json.dumps(rounds.names).encode(), np.uint8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_rounds(path: str | Path) -> Rounds:
    """Reads a file of `write_rounds`. Raises ValueError naming the file and what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in Rounds._fields if name not in ("place", "depths") or name in file}
        query, each = json.loads(arrays.pop("names").tobytes())
        rounds = Rounds(**arrays, names=(tuple(query), tuple(each)))
    except FileNotFoundError:
        raise ValueError(f"data.path: no file {path}; scripts/simulate.py --log writes one") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"data.path: {path} holds no rounds of a policy: {error}") from None
    num, width = len(rounds.row), rounds.candidates.shape[1]
    shapes = {"row": (num,), "cut": (num,), "clicks": (num, width), "query": (len(rounds.candidates), len(query))}
    shapes["candidates"] = (len(rounds.query), width, len(each))
    shapes |= {"place": (num, width)} if rounds.place is not None else {}
    for name, shape in shapes.items():
        if getattr(rounds, name).shape != shape:
            raise ValueError(f"data.path: {path}: {name} has shape {getattr(rounds, name).shape}, not {shape}")
    if not num or rounds.row.min() < 0 or rounds.row.max() >= len(rounds.query):
        raise ValueError(f"data.path: {path}: row names queries that do not exist, or there is no round")
    if rounds.cut.min() < 1 or rounds.cut.max() > width:
        raise ValueError(f"data.path: {path}: cut is not within 1 and {width}")
    if rounds.places.min() < -1 or rounds.places.max() >= width:
        raise ValueError(f"data.path: {path}: place is not within -1 and {width - 1}")
    return rounds


class LoggedRounds(LightningDataModule):
    """Training and validation rounds of a policy. Arguments from `qrels` on are keys of configs of 0.1; not read.

    Args:
        path: file of rounds (`scripts/simulate.py --log`).
        batch_size: rounds per batch.
        seed: of the shuffling.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        batch_size: int = 128,
        seed: int = 0,
        qrels: str = "qrels",
        query_fields: list[str] | None = None,
        cache: str = "runs/cache",
        arms: dict[str, dict[str, Any]] | None = None,
        tune: list[str] | None = None,
        num_candidates: int = 60,
        features: list[str] | None = None,
    ) -> None:
        super().__init__()
        if path is None:
            raise ValueError("data.path is not set; give --data.path FILE, which scripts/simulate.py --log writes")
        if batch_size < 1:
            raise ValueError(f"data.batch_size: {batch_size} must be 1 or more")
        self._path, self.batch_size, self.seed = path, batch_size, seed
        self.rounds: Rounds | None = None

    def setup(self, stage: str = "fit") -> None:
        """Reads the file. Raises ValueError if it is damaged or has too few queries."""
        if self.rounds is None:
            self.rounds = read_rounds(self._path)
            self._dev = self.rounds.row % _HELD_OUT == 0
            if self._dev.all() or not self._dev.any():
                raise ValueError(f"data.path: {self._path} has too few queries to hold out one in {_HELD_OUT}")

    def train_dataloader(self) -> DataLoader:
        """The rounds of nine tenths of the queries, shuffled each epoch from the seed."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        order = torch.Generator().manual_seed(self.seed + epoch)
        return self._loader(np.flatnonzero(~self._dev), shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader:
        """The rounds of the held-out queries."""
        return self._loader(np.flatnonzero(self._dev))

    def trained_on(self) -> dict[str, Any]:
        """Note for the export. Rounds are no split; scripts/simulate.py never learns from test queries."""
        return {"data": str(self._path), "splits": ["train"], "queries": ""}

    def _loader(self, rounds: np.ndarray, **order: Any) -> DataLoader:
        assert self.rounds is not None
        collate = partial(batch_of, self.rounds)
        return DataLoader(rounds.tolist(), self.batch_size, collate_fn=collate, **order)


def batch_of(rounds: Rounds, places: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """Builds a batch of the rounds at these places, for `RoundsModule.training_step`."""
    places = np.asarray(places)
    rows, place = rounds.row[places], rounds.some(places).places
    shown = torch.from_numpy((place >= 0).astype(np.float32))
    return {
        "row": torch.from_numpy(rows.astype(np.int64)),
        "query": torch.from_numpy(rounds.query[rows]),
        "candidates": torch.from_numpy(rounds.candidates[rows]),
        "clicks": torch.from_numpy(rounds.clicks[places].astype(np.float32)),
        "shown": shown,
        "place": torch.from_numpy(place.astype(np.int64)),
        "ids": [str(at) for at in places.tolist()],
        "tokens": int(shown.sum()),
    }
