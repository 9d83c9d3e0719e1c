"""What modules that learn from logged rounds share: batches, fitting without a Trainer, exports.

Knows rounds, Lightning modules and files; knows nothing about what is predicted.
Legend: R rounds, M candidates looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltrr.core import Rounds

_VERSION = 1  # of an export's layout
Module = TypeVar("Module")


def examination(given: Sequence[float] | None, num: int) -> np.ndarray:
    """(M,) probability that each position is looked at: 1 / k where None; deeper ones than were given have the last."""
    if given is None:
        return 1.0 / np.arange(1, num + 1)
    if not len(given) or not all(0 < e <= 1 for e in given):
        raise ValueError("model.examination: not probabilities above 0, one a position")
    return np.asarray(given, np.float64)[np.minimum(np.arange(num), len(given) - 1)]


def batches(rounds: Rounds) -> Callable[[np.ndarray], dict[str, Tensor]]:
    """Places of rounds -> a batch."""

    def batch(places: np.ndarray) -> dict[str, Tensor]:
        known, place = rounds.row[places], rounds.some(places).places
        return {
            "row": torch.from_numpy(known.astype(np.int64)),
            "query": torch.from_numpy(rounds.query[known]),
            "candidates": torch.from_numpy(rounds.candidates[known]),
            "clicks": torch.from_numpy(rounds.clicks[places].astype(np.float32)),
            "shown": torch.from_numpy((place >= 0).astype(np.float32)),
            "place": torch.from_numpy(place.astype(np.int64)),
        }

    return batch


def fit(module: Any, rounds: Rounds, seed: int) -> None:
    """Epochs over the rounds, without a Trainer, which takes longer to start than this takes to end.

    module: has `training_step`, `optimizer(steps)` and hparams epochs, batch_size.
    """
    epochs, size = module.hparams["epochs"], module.hparams["batch_size"]
    made = module.optimizer(epochs * -(-len(rounds.row) // size))
    batch = batches(rounds)
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            for rows in torch.randperm(len(rounds.row)).split(size):
                loss = module.training_step(batch(rows.numpy()))
                made["optimizer"].zero_grad()
                loss.backward()
                made["optimizer"].step()
                made["lr_scheduler"]["scheduler"].step()
    module.eval()


def write(module: Any, folder: Path, name: str, beside: Mapping[str, np.ndarray]) -> None:
    """`name`.json (options, columns) and `name`.safetensors (weights, and arrays beside them)."""
    weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    save_file(weights | {key: torch.from_numpy(value) for key, value in beside.items()}, folder / f"{name}.safetensors")
    options = {key: value for key, value in module.hparams.items() if key in signature(type(module)).parameters}
    note = {"version": _VERSION, "options": options, "columns": module.columns}
    (folder / f"{name}.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def read(
    cls: Callable[..., Module], folder: Path, name: str, restore: Callable[[Module, dict[str, Tensor]], None]
) -> Module:
    """What `write` wrote; ValueError names a file that is not there, damaged or of another version.

    restore: builds the module's network from what was written and takes out of it what lay beside the weights.
    """
    try:
        note = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        weights = load_file(folder / f"{name}.safetensors")
        if note["version"] != _VERSION:
            raise ValueError(f"version {note['version']}, this ltrr reads {_VERSION}")
        module: Any = cls(**note["options"])
        of_query, of_candidate = note["columns"]
        module.columns = tuple(of_query), tuple(of_candidate)
        restore(module, weights)
        module.load_state_dict(weights)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: no {name} that this ltrr can read: {error}") from error
    module.id = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
    return module.eval()
