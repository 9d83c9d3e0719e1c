"""How well each arm did before: on the query itself, and on remembered queries like it.

Knows queries by a key, which arms returned what was shown and what that brought; knows nothing about arms' insides, how
queries are encoded or what customers look at. A page's features are asked for before its feedback is told: then no
query sees its own. Legend: Q queries, K shown candidates, A arms, D dimensions, M remembered queries.
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
_STRENGTH = 2.0  # of the prior, in pages
_ALIKE, _NEAR = 0.5, 20  # cosine that a remembered query needs to be like another; at most so many count
_OF_AN_ARM = {"success": "credit a page", "results": "candidates a page"}  # and units
_BATCH = 256  # queries compared with remembered ones at once
_PROBE = [Query("", "history")]  # whose vector says whether vectors are of the same encoder


class History:
    """Success and results of each arm, on a query and on those like it.

    Success is the credit of a page: what a shown candidate brought is shared by the arms that returned it. Its mean is
    smoothed towards the arm's own over all queries (a Gamma prior). Evidence of other queries counts by their cosine.
    Where an arm never ran it is told what arms of its kind of source brought there.

    Args:
        arms: name -> kind of source, A of them.
        key: text -> what makes two queries the same one.
        embed: queries -> (Q, D) unit vectors, zeros = unknown.
        most: the most remembered queries; beyond, those that came back least recently are forgotten.
    """

    def __init__(self, arms: Mapping[str, str], key: Callable[[str], str], embed: Embed, *, most: int = 50_000) -> None:
        self._arms, self._key, self._embed, self._most = tuple(arms), key, embed, most
        kinds = np.array([*arms.values()])
        self._alike = (kinds[:, None] == kinds).astype(float)  # (A, A)
        self._total = np.zeros((3, len(arms)))  # credit, results, pages on which the arm had run
        self._sums = np.zeros((most, 3, len(arms)))  # the same of each remembered query
        self._vectors = np.zeros((most, 0), np.float32)  # (M, D)
        self._row: dict[str, int] = {}  # key -> row, least recent first

    @property
    def group(self) -> Group:
        """Columns of the query itself, then of those like it; NaN = no arm of that kind ever ran there."""
        each = [(f"{arm}_{what}", unit) for what, unit in _OF_AN_ARM.items() for arm in self._arms]
        columns = [(f"{of}_{name}", unit) for of in ("own", "near") for name, unit in [("pages", "log count"), *each]]
        return Group(tuple(Feature(*column) for column in columns), self.features)

    def features(self, queries: Sequence[Query]) -> np.ndarray:
        """(Q, 2 + 4A)."""
        own = np.array([self._row.get(self._key(query.text), -1) for query in queries], np.int64)
        sums = np.where(own[:, None, None] >= 0, self._sums[own], 0.0)
        return np.concatenate([self._rates(sums), self._rates(self._like(queries, own))], axis=1)

    def update(
        self, queries: Sequence[Query], returned: np.ndarray, rewards: np.ndarray, ran: np.ndarray | None = None
    ) -> None:
        """Learns from pages.

        Args:
            returned: (Q, K, A) bool.
            rewards: (Q, K) of each candidate, debiased (click / probability that its place is looked at); NaN = a place
                where nothing was shown.
            ran: (Q, A) bool; None = all arms ran.
        """
        returned = returned & ~np.isnan(rewards)[:, :, None]
        share = returned / np.maximum(returned.sum(axis=2, keepdims=True), 1)
        credit = np.einsum("qk,qka->qa", np.nan_to_num(rewards), share)
        pages = np.ones(credit.shape) if ran is None else ran
        sums = np.stack([credit, returned.sum(axis=1), pages], axis=1)  # (Q, 3, A)
        vectors = self._embed(queries)
        if not self._vectors.shape[1]:
            self._vectors = np.zeros((self._most, vectors.shape[1]), np.float32)
        self._total += sums.sum(axis=0)
        for query, vector, more in zip(queries, vectors, sums, strict=True):
            key = self._key(query.text)
            if (row := self._row.pop(key, -1)) < 0:
                full = len(self._row) == self._most
                row = self._row.pop(next(iter(self._row))) if full else len(self._row)
                self._sums[row], self._vectors[row] = 0.0, vector
            self._row[key] = row
            self._sums[row] += more

    def _like(self, queries: Sequence[Query], own: np.ndarray) -> np.ndarray:
        """(Q, 3, A) sums over the nearest remembered queries but the own one, weighted by their cosine."""
        num, out = len(self._row), np.zeros((len(queries), *self._total.shape))
        if not num:
            return out
        vectors, near = self._embed(queries), min(_NEAR, num)
        for start in range(0, len(queries), _BATCH):
            some = slice(start, start + _BATCH)
            alike = vectors[some] @ self._vectors[:num].T  # (B, M)
            known = np.flatnonzero(own[some] >= 0)
            alike[known, own[some][known]] = 0.0
            nearest = np.argpartition(-alike, near - 1, axis=1)[:, :near]
            weights = np.take_along_axis(alike, nearest, 1)
            out[some] = np.einsum("bn,bnsa->bsa", weights * (weights >= _ALIKE), self._sums[nearest])
        return out

    def _rates(self, sums: np.ndarray) -> np.ndarray:
        """(Q, 1 + 2A) of (Q, 3, A)."""
        rates = []
        for over in (np.eye(len(self._arms)), self._alike):  # the arm itself, and all of its kind
            (credit, results, pages), total = (sums @ over).transpose(1, 0, 2), self._total @ over
            prior = _STRENGTH * total[0] / np.maximum(total[2], 1e-9)
            told = [(credit + prior) / (pages + _STRENGTH), results / np.maximum(pages, 1e-9)]
            rates.append(np.where(pages > 0, told, np.nan))  # (2, Q, A)
        pages = np.log1p(sums[:, 2].max(axis=1, keepdims=True))
        return np.concatenate([pages, *np.where(np.isnan(rates[0]), rates[1], rates[0])], axis=1)

    # -- where it is kept

    def save(self, path: Path) -> None:
        """One file without objects; whole or not at all."""
        num, order = len(self._row), list(self._row.values())
        note = json.dumps({"arms": self._arms, "keys": list(self._row)}).encode()
        arrays = {"total": self._total, "sums": self._sums[order], "vectors": self._vectors[:num][order]}
        arrays["probe"] = self._embed(_PROBE)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, note=np.frombuffer(note, np.uint8), **arrays)

    def load(self, path: Path) -> None:
        """Goes on from what `save` wrote; ValueError for a damaged file, and for one of other arms or embeddings."""
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
        if probe.shape != (own := self._embed(_PROBE)).shape or not np.allclose(probe, own, atol=1e-2):
            raise ValueError(f"{path}: its queries were embedded by another dense arm than this config's; {again}")
        self._row = {key: row for row, key in enumerate(keys)}
        self._total, self._vectors = total, np.zeros((self._most, vectors.shape[1]), np.float32)
        self._sums[: len(sums)], self._vectors[: len(sums)] = sums, vectors
