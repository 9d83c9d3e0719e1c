"""Shared by modules that learn from logged rounds: fitting with or without a Trainer, and exports.

Knows rounds, Lightning modules and files; does not know what is predicted.
Legend: R rounds, M candidates looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pytorch_lightning import LightningModule
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltrr.encoders.training import adamw
from ltrr.learners.rounds_data import batch_of
from ltrr.policies.features import Standard
from ltrr.types import Rounds

_VERSION = 2  # version of an export's layout
Module = TypeVar("Module", bound="RoundsModule")


def standard_of(weights: Mapping[str, Tensor], name: str) -> Standard:
    """Standardisation of a network's `Columns` module with that name."""
    return Standard(weights[f"{name}.mean"].numpy(), weights[f"{name}.deviation"].numpy())


class RoundsModule(LightningModule):
    """Base of modules that learn from rounds. Hyperparameters: lr, weight_decay, epochs, batch_size."""

    monitor: str  # name under which `score` is logged

    def __init__(self) -> None:
        super().__init__()
        self.columns: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # of queries, of candidates
        self.depths: list[int] | None = None  # depths of the arms in all training rounds; None = they differed
        self.id = ""  # hash of the export's weights

    def prepare(self, rounds: Rounds, seed: int = 0) -> None:
        """Builds a new network for the columns of these rounds."""
        self.depths = None if rounds.depths is None else rounds.depths.tolist()

    def refit(self, rounds: Rounds, seed: int = 0) -> None:
        """Trains a new network on all rounds; the same rounds and seed give the same network.

        Uses no Trainer, whose start would take longer than the training.
        """
        self.prepare(rounds, seed)
        epochs, size = self.hparams["epochs"], self.hparams["batch_size"]
        optimizers = self.optimizer(epochs * -(-len(rounds.row) // size))
        self.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(epochs):
                for places in torch.randperm(len(rounds.row)).split(size):
                    loss = self.training_step(batch_of(rounds, places.numpy()))
                    optimizers["optimizer"].zero_grad()
                    loss.backward()
                    optimizers["optimizer"].step()
                    optimizers["lr_scheduler"]["scheduler"].step()
        self.eval()

    def training_step(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """Computes the mean loss of a batch."""
        raise NotImplementedError

    def score(self, batch: dict[str, Any]) -> Tensor:
        """Validation score of a batch; higher is better."""
        return -self.training_step(batch)

    def validation_step(self, batch: dict[str, Any], index: int = 0) -> None:
        self.log(self.monitor, self.score(batch), batch_size=len(batch["query"]), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return self.optimizer(int(self.trainer.estimated_stepping_batches))

    def optimizer(self, steps: int) -> dict[str, Any]:
        """AdamW with a learning rate that rises for 30 % of the steps, then falls."""
        return adamw(self, self.hparams["lr"], self.hparams["weight_decay"], 0.3, steps)


def write(module: RoundsModule, folder: Path, name: str, extra: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes `name`.json (options, columns) and `name`.safetensors (weights, and extra arrays)."""
    weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    save_file(
        weights | {key: torch.from_numpy(value) for key, value in (extra or {}).items()},
        folder / f"{name}.safetensors",
    )
    options = {key: value for key, value in module.hparams.items() if key in signature(type(module)).parameters}
    note = {"version": _VERSION, "options": options, "columns": module.columns, "depths": module.depths}
    (folder / f"{name}.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def read(
    cls: Callable[..., Module], folder: Path, name: str, restore: Callable[[Module, dict[str, Tensor]], None]
) -> Module:
    """Loads what `write` wrote. Raises ValueError naming a file that is missing, damaged or of another version.

    restore: builds the module's network from the loaded arrays and removes the extra ones from them.
    """
    try:
        note = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        weights = load_file(folder / f"{name}.safetensors")
        if note["version"] != _VERSION:
            raise ValueError(f"version {note['version']}, this ltrr reads {_VERSION}")
        module = cls(**note["options"])
        of_query, of_candidate = note["columns"]
        module.columns, module.depths = (tuple(of_query), tuple(of_candidate)), note["depths"]
        restore(module, weights)
        module.load_state_dict(weights)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: no {name} that this ltrr can read: {error}") from error
    module.id = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
    return module.eval()
