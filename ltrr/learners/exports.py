"""Loads the export of any learner, and writes exports of learners without a network.

Knows files; does not know what learners predict. Learners with a network write NAME.json and NAME.safetensors (see
`ltrr.learners.rounds_module`); other learners write learner.json and learner.npz. Nothing is a pickle.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltrr.files import atomic_write

_NETWORKS = {  # file NAME -> module.class
    "prior": "prior.PriorLearner",
    "policy": "relevance.RelevanceLearner",
    "arms": "arm_loss.ArmLossLearner",
}
_OTHERS = {"LinUCB": "linucb", "SupervisedRouter": "router", "Vowpal": "vowpal"}  # class -> module
_VERSION = 1


def load_learner(model: str) -> Any:
    """Loads the learner of an `export` folder. Raises ValueError if there is none or it is damaged."""
    folder = Path(model)
    for name, path in _NETWORKS.items():
        if (folder / f"{name}.json").is_file():
            module, _, cls = path.partition(".")
            return getattr(importlib.import_module(f"ltrr.learners.{module}"), cls).load(folder)  # lazy: torch is slow
    if (folder / "learner.json").is_file():
        name = read_note(folder).get("learner")
        if name not in _OTHERS:
            raise ValueError(f"{folder}/learner.json: there is no learner {name!r}; there are {', '.join(_OTHERS)}")
        return getattr(importlib.import_module(f"ltrr.learners.{_OTHERS[name]}"), name).load(folder)
    raise ValueError(
        f"{folder}: holds no learner (prior.json, policy.json, arms.json or learner.json); name a run's `export`"
    )


def write_arrays(folder: Path, learner: Any, options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes learner.json (class, options, columns, depths) and learner.npz (arrays)."""
    note = {"version": _VERSION, "learner": type(learner).__name__, "options": dict(options)}
    note |= {"columns": learner.columns, "depths": learner.depths}
    with atomic_write(folder / "learner.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    with atomic_write(folder / "learner.json") as temporary:
        temporary.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def read_note(folder: Path) -> dict[str, Any]:
    """Reads learner.json. Raises ValueError if it is damaged or of another version."""
    try:
        note = json.loads((folder / "learner.json").read_text(encoding="utf-8"))
        if note["version"] != _VERSION:
            raise ValueError(f"version {note['version']}, this ltrr reads {_VERSION}")
        return note
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}/learner.json: damaged ({error}); export the learner again") from None


def read_arrays(cls: type, folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Builds a learner with the options, columns, depths and id of an export; returns it with the export's arrays."""
    note = read_note(folder)
    try:
        learner = cls(**note["options"])
        learner.columns, learner.depths = (tuple(note["columns"][0]), tuple(note["columns"][1])), note["depths"]
        with np.load(folder / "learner.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: damaged ({error}); export the learner again") from None
    learner.id = hashlib.sha256((folder / "learner.npz").read_bytes()).hexdigest()
    return learner, arrays
