"""Features of each arm's past success: on the query itself, and on similar remembered queries.

Knows queries by a key, the arms that returned each shown candidate, and its reward; knows nothing about how arms work,
how queries are encoded or what customers examine. Compute features before recording feedback; otherwise labels leak
into them. Legend: Q queries, K shown candidates, A arms, D dimensions, M remembered queries.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ltrr.files import atomic_write
from ltrr.policies.features import Feature, Group
from ltrr.types import Query

Embed = Callable[[Sequence[Query]], np.ndarray]
_STRENGTH = 2.0  # prior strength, in pages
_ALIKE, _NEAR = 0.5, 20  # least cosine of a similar query, and most similar queries that count
_OF_AN_ARM = {"success": "credit a page", "results": "candidates a page"}  # column -> unit
_BATCH = 256  # queries compared with the remembered ones at a time
_PROBE = [Query("", "history")]  # its vector shows whether a file was written with the same encoder


class History:
    """Success and number of results of each arm, on a query and on similar queries.

    Success is credit per page: the arms that returned a shown candidate share its reward equally. It is smoothed
    towards the arm's mean over all queries (a Gamma prior). Similar queries are weighted by cosine. For an arm that
    never ran on a query, the figures of arms with the same kind of source are used.

    Args:
        arms: name -> kind of source, A of them.
        key: text -> key; queries with equal keys are the same query.
        embed: queries -> (Q, D) unit vectors, zeros = unknown.
        most: most remembered queries; beyond, the least recently seen ones are dropped.
    """

    def __init__(self, arms: Mapping[str, str], key: Callable[[str], str], embed: Embed, *, most: int = 50_000) -> None:
        self._arms, self._key, self._embed, self._most = tuple(arms), key, embed, most
        kinds = np.array([*arms.values()])
        self._alike = (kinds[:, None] == kinds).astype(float)  # (A, A)
        self._total = np.zeros((3, len(arms)))  # sums of credit, results, and pages on which the arm ran
        self._sums = np.zeros((most, 3, len(arms)))  # the same for each remembered query
        self._vectors = np.zeros((most, 0), np.float32)  # (M, D)
        self._row: dict[str, int] = {}  # key -> row, least recently seen first

    @property
    def group(self) -> Group:
        """Columns on the query itself, then on similar queries; NaN = no arm of that kind ever ran there."""
        each = [(f"{arm}_{what}", unit) for what, unit in _OF_AN_ARM.items() for arm in self._arms]
        columns = [(f"{of}_{name}", unit) for of in ("own", "near") for name, unit in [("pages", "log count"), *each]]
        return Group(tuple(Feature(*column) for column in columns), self.features)

    def features(self, queries: Sequence[Query]) -> np.ndarray:
        """Computes the columns of `group`, (Q, 2 + 4A)."""
        row = np.array([self._row.get(self._key(query.text), -1) for query in queries], np.int64)
        sums = np.where(row[:, None, None] >= 0, self._sums[row], 0.0)
        return np.concatenate([self._rates(sums), self._rates(self._like(queries, row))], axis=1)

    def update(
        self, queries: Sequence[Query], returned: np.ndarray, rewards: np.ndarray, ran: np.ndarray | None = None
    ) -> None:
        """Learns from pages.

        Args:
            returned: (Q, K, A) bool, arms that returned each shown candidate.
            rewards: (Q, K) debiased rewards (click / examination of its place); NaN = nothing was shown there.
            ran: (Q, A) bool, arms that ran; None = all.
        """
        returned = returned & ~np.isnan(rewards)[:, :, None]
        shares = returned / np.maximum(returned.sum(axis=2, keepdims=True), 1)
        credit = np.einsum("qk,qka->qa", np.nan_to_num(rewards), shares)
        pages = np.ones(credit.shape) if ran is None else ran
        sums = np.stack([credit, returned.sum(axis=1), pages], axis=1)  # (Q, 3, A)
        vectors = self._embed(queries)
        if not self._vectors.shape[1]:
            self._vectors = np.zeros((self._most, vectors.shape[1]), np.float32)
        self._total += sums.sum(axis=0)
        for query, vector, page_sums in zip(queries, vectors, sums, strict=True):
            key = self._key(query.text)
            if (row := self._row.pop(key, -1)) < 0:
                full = len(self._row) == self._most
                row = self._row.pop(next(iter(self._row))) if full else len(self._row)
                self._sums[row], self._vectors[row] = 0.0, vector
            self._row[key] = row
            self._sums[row] += page_sums

    def _like(self, queries: Sequence[Query], row: np.ndarray) -> np.ndarray:
        """Sums over the nearest remembered queries except the query itself, weighted by cosine: (Q, 3, A)."""
        num, out = len(self._row), np.zeros((len(queries), *self._total.shape))
        if not num:
            return out
        vectors, near = self._embed(queries), min(_NEAR, num)
        for start in range(0, len(queries), _BATCH):
            batch = slice(start, start + _BATCH)
            cosines = vectors[batch] @ self._vectors[:num].T  # (B, M)
            known = np.flatnonzero(row[batch] >= 0)
            cosines[known, row[batch][known]] = 0.0
            nearest = np.argpartition(-cosines, near - 1, axis=1)[:, :near]
            weights = np.take_along_axis(cosines, nearest, 1)
            out[batch] = np.einsum("bn,bnsa->bsa", weights * (weights >= _ALIKE), self._sums[nearest])
        return out

    def _rates(self, sums: np.ndarray) -> np.ndarray:
        """Converts sums (Q, 3, A) to log pages and smoothed rates, (Q, 1 + 2A)."""
        rates = []
        for groups in (np.eye(len(self._arms)), self._alike):  # each arm, then all arms of its kind
            (credit, results, pages), total = (sums @ groups).transpose(1, 0, 2), self._total @ groups
            prior = _STRENGTH * total[0] / np.maximum(total[2], 1e-9)
            smoothed = [(credit + prior) / (pages + _STRENGTH), results / np.maximum(pages, 1e-9)]
            rates.append(np.where(pages > 0, smoothed, np.nan))  # (2, Q, A)
        pages = np.log1p(sums[:, 2].max(axis=1, keepdims=True))
        return np.concatenate([pages, *np.where(np.isnan(rates[0]), rates[1], rates[0])], axis=1)

    # -- file

    def save(self, path: Path) -> None:
        """Writes one npz file without objects, atomically."""
        num, order = len(self._row), list(self._row.values())
        note = json.dumps({"arms": self._arms, "keys": list(self._row)}).encode()
        arrays = {"total": self._total, "sums": self._sums[order], "vectors": self._vectors[:num][order]}
        arrays["probe"] = self._embed(_PROBE)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, note=np.frombuffer(note, np.uint8), **arrays)

    def load(self, path: Path) -> None:
        """Restores what `save` wrote. Raises ValueError if it is damaged or has other arms or embeddings."""
        again = "write it again: scripts/events.py history"
        try:
            with np.load(path, allow_pickle=False) as file:
                total, sums, vectors, probe = (file[name] for name in ("total", "sums", "vectors", "probe"))
                note = json.loads(file["note"].tobytes())
            arms, keys = note["arms"], note["keys"]
        except (OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: damaged ({error}); {again}") from None
        if tuple(arms) != self._arms:
            raise ValueError(f"{path}: a history of the arms {', '.join(arms)}, not {', '.join(self._arms)}; {again}")
        if probe.shape != (expected := self._embed(_PROBE)).shape or not np.allclose(probe, expected, atol=1e-2):
            raise ValueError(f"{path}: its queries were embedded by another dense arm than this config's; {again}")
        self._row = {key: row for row, key in enumerate(keys)}
        self._total, self._vectors = total, np.zeros((self._most, vectors.shape[1]), np.float32)
        self._sums[: len(sums)], self._vectors[: len(sums)] = sums, vectors
