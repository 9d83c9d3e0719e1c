"""What is fitted on judged queries: which of them may serve for what, and where the outcome is kept.

Knows splits, hashes and JSON files; knows nothing about arms, rankers or how anything is fitted.

    <folder>/<what>-<key>.json   {"on": the queries it comes from, "parameters": what came out}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltrr.config import ConfigError, check_value
from ltrr.data.beir import Dataset
from ltrr.files import atomic_write, content_key
from ltrr.types import Qrels, Query

_MANY = 300  # dev queries from which dev alone serves for fusion


class Judged(NamedTuple):
    """Queries to tune on."""

    queries: list[Query]
    qrels: Qrels
    name: str  # what they are, for reports
    key: str  # hash of all of it, for caches


def trained_on(folder: str | Path) -> dict[str, Any] | None:
    """What a model's `ltrr.json` says of its training: {"data": corpus fingerprint, "splits", "queries": sha256}.

    "origins" has the same of what it started from or learned from: base model, generated queries.
    None where the folder has none: the model is from elsewhere. ConfigError for a file that cannot be read.
    """
    path = Path(folder) / "ltrr.json"
    if not path.is_file():
        return None
    try:
        told = check_value(str(path), json.loads(path.read_text(encoding="utf-8")), dict[str, Any])
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error}); export the model again") from None
    for key, hint in (("data", str), ("splits", list[str])):
        check_value(f"{path}: {key}", told.get(key), hint)
    return told


class Tuning:
    """Judged queries for a purpose, and what was fitted on them.

    Args:
        folder: where outcomes are kept.
        splits: those that may be tuned on, if the data set has them.
        hold_out: the split that is evaluated, never tuned on.
        trained: splits on whose queries a model in use was trained. It is better on them than on others, so nothing
            that weighs it against something else is fitted there.
    """

    def __init__(
        self, dataset: Dataset, folder: Path, *, splits: Sequence[str], hold_out: str, trained: Collection[str]
    ) -> None:
        self._dataset, self._folder, self._trained = dataset, folder, trained
        self._splits = [s for s in splits if s in dataset.splits and s != hold_out]
        self.judged = cache(self._judged)  # purpose -> Judged
        self.in_use: dict[str, Any] = {}  # name -> {"on", "parameters"} of all that was fitted or read here

    def _judged(self, purpose: str) -> Judged:
        """Judged queries for "arms" or "fusion" (and the ranker's weight), never the same for both.

        Arms are tuned on train. Fusion weights are fitted on dev where it has 300 queries, because they would trust an
        arm too much on the queries that it was tuned on; otherwise train is halved, and dev goes to fusion. A split
        that a model was trained on goes to arms whole.
        """
        parts = {s: self._dataset.split(s) for s in self._splits}
        own_dev = "dev" in parts and len(parts["dev"].queries) >= _MANY
        chosen: list[tuple[str, list[Query]]] = []
        for split, part in parts.items():
            if split in self._trained or (own_dev and split != "dev"):
                if purpose == "arms":
                    chosen.append((split, part.queries))
            elif split == "dev":
                if purpose == "fusion":
                    chosen.append((split, part.queries))
            else:
                half = [q for q in part.queries if _half(q.text) == (purpose == "fusion")]
                chosen.append((f"half of {split}", half))
        qrels: Qrels = {}
        for part in parts.values():
            qrels |= part.qrels
        queries = [q for _, several in chosen for q in several]
        graded = {q.id: qrels[q.id] for q in queries}
        key = content_key(sorted((q.id, q.text, sorted(graded[q.id].items())) for q in queries))
        return Judged(queries, graded, " + ".join(n for n, q in chosen if q) or "nothing", key)

    def fitted(self, name: str, depends: tuple, fit: Callable[[], dict[str, Any]], queries: str) -> dict[str, Any]:
        """What `fit` returned when all that it depends on was the same, or returns now."""
        path = self._folder / f"{name}-{content_key(self._dataset.corpus.fingerprint, depends)}.json"
        if not path.exists():
            text = json.dumps({"on": queries, "parameters": fit()}, indent=1)
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        try:
            self.in_use[name] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: damaged ({error}); delete it, and it is fitted again") from None
        return self.in_use[name]["parameters"]


def some(queries: Sequence[Query], num: int | None) -> list[Query]:
    """At most `num` of the queries, picked by a hash of their ids: a sample that does not depend on their order."""
    if num is None:
        return list(queries)
    return sorted(queries, key=lambda query: hashlib.sha256(query.id.encode()).digest())[:num]


def halves(queries: Sequence[Query]) -> np.ndarray:
    """(Q,) bool: two halves of queries for one purpose, equal texts in the same."""
    return np.array([_half(query.text, 1) for query in queries], bool)


def _half(text: str, coin: int = 0) -> bool:
    """A coin by the text, so that equal texts fall on the same side; different coins know nothing of each other."""
    return hashlib.sha256(text.strip().lower().encode()).digest()[coin] % 2 == 1
