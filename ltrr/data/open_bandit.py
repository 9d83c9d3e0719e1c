"""Reads logs of the Open Bandit data set (Saito et al. 2020).

Knows the columns of its CSV files; does not know estimators. Legend: R rounds.
"""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

_BOUNDS = {"item_id": (0, 99_999), "position": (1, 99), "click": (0, 1e9), "propensity_score": (1e-12, 1)}
_WHOLE = ("item_id", "position")


class OpenBanditLog(NamedTuple):
    """R rounds of one logger in one campaign."""

    item: np.ndarray  # (R,) int, from 0
    position: np.ndarray  # (R,) int, from 0
    click: np.ndarray  # (R,) 0 or 1
    propensity: np.ndarray  # (R,) in (0, 1], of the item


def read_open_bandit(path: Path) -> OpenBanditLog:
    """The log in a CSV file, whose positions start at 1. Errors: ValueError naming the line and the column."""
    if not path.exists():
        raise ValueError(f"{path}: there is no such file; --open-bandit takes a folder with {{random,bts}}/men/men.csv")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in _BOUNDS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: has no column {missing[0]!r}; an Open Bandit log has {', '.join(_BOUNDS)}")
        if not (rows := [(reader.line_num, row) for row in reader]):
            raise ValueError(f"{path}: has no rows; give a log of Open Bandit")
    columns = {name: np.zeros(len(rows)) for name in _BOUNDS}
    for place, (line, row) in enumerate(rows):
        for name, (least, most) in _BOUNDS.items():
            with suppress(TypeError, ValueError):
                columns[name][place] = value = float(row[name])
                if least <= value <= most and (name not in _WHOLE or value % 1 == 0):
                    continue
            raise ValueError(f"{path}, line {line}: {name} is {row[name]!r}, not from {least:g} to {most:g}: mend it")
    item, position = (columns[name].astype(int) for name in _WHOLE)
    return OpenBanditLog(item, position - 1, columns["click"], columns["propensity_score"])
