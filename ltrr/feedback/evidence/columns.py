"""Stores sums of evidence: arrays that grow, and a hash table that numbers keys.

Knows numpy; does not know what is stored. Legend: N keys, E keys that are looked up.
"""

from __future__ import annotations

import numpy as np


class Column:
    """A numpy array that grows."""

    def __init__(self, dtype: type, width: int = 0) -> None:
        self._room = np.zeros((64, width) if width else 64, dtype)
        self.values = self._room[:0]

    def grow(self, length: int) -> None:
        """Makes `values` this long; new places are 0."""
        if length > len(self._room):
            room = np.zeros((max(length, 2 * len(self._room)), *self._room.shape[1:]), self._room.dtype)
            room[: len(self.values)] = self.values
            self._room = room
        self.values = self._room[:length]


class Numbers:
    """Numbers int64 keys in the order in which they came: a vectorised hash table with linear probing."""

    def __init__(self) -> None:
        self._keys = Column(np.int64)  # (N,) number -> key
        self._resize(10)

    def __len__(self) -> int:
        return len(self._keys.values)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(E,) numbers of keys, -1 = unknown."""
        numbers = np.full(len(keys), -1, np.int64)
        places, cells = np.arange(len(keys)), self._home(keys)  # of keys that are still looked for
        while len(places):
            held = self._table[cells]
            same = (held >= 0) & (self._keys.values[held] == keys[places]) if len(self) else held >= 0
            numbers[places[same]] = held[same]
            collides = (held >= 0) & ~same
            places, cells = places[collides], (cells[collides] + 1) & self._last
        return numbers

    def add(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(E,) numbers of keys, and the places of new keys in `keys`, each key once."""
        numbers = self.find(keys)
        unknown = np.flatnonzero(numbers < 0)
        new, first, inverse = np.unique(keys[unknown], return_index=True, return_inverse=True)
        before = len(self)
        numbers[unknown] = before + inverse
        self._keys.grow(before + len(new))
        self._keys.values[before:] = new
        if 2 * len(self) > len(self._table):
            self._resize((2 * len(self)).bit_length())
        else:
            self._place(np.arange(before, len(self)))
        return numbers, unknown[first]

    def _home(self, keys: np.ndarray) -> np.ndarray:
        """(E,) first cells of keys: the high bits of a product (Knuth's multiplicative hashing)."""
        return ((keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> self._shift).astype(np.int64)

    def _resize(self, bits: int) -> None:
        self._table = np.full(1 << bits, -1, np.int32)
        self._last, self._shift = len(self._table) - 1, np.uint64(64 - bits)
        self._place(np.arange(len(self)))

    def _place(self, numbers: np.ndarray) -> None:
        cells = self._home(self._keys.values[numbers])
        while len(numbers):
            free = self._table[cells] < 0
            self._table[cells[free]] = numbers[free]  # of several numbers for one cell, one gets it
            collides = self._table[cells] != numbers
            numbers, cells = numbers[collides], (cells[collides] + 1) & self._last
