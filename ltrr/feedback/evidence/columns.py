"""Arrays that grow, and numbers for keys: what sums of evidence are kept in.

Knows numpy; knows nothing about what is kept. Legend: N keys, E looked up.
"""

from __future__ import annotations

import numpy as np


class Column:
    """A numpy array that grows."""

    def __init__(self, dtype: type, width: int = 0) -> None:
        self._room = np.zeros((64, width) if width else 64, dtype)
        self.values = self._room[:0]

    def grow(self, length: int) -> None:
        """New places are 0."""
        if length > len(self._room):
            room = np.zeros((max(length, 2 * len(self._room)), *self._room.shape[1:]), self._room.dtype)
            room[: len(self.values)] = self.values
            self._room = room
        self.values = self._room[:length]


class Numbers:
    """int64 keys in the order in which they came, found by the million: a hash table with linear probing."""

    def __init__(self) -> None:
        self._keys = Column(np.int64)  # (N,) number -> key
        self._resize(10)

    def __len__(self) -> int:
        return len(self._keys.values)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(E,) numbers of keys, -1 = not there."""
        numbers = np.full(len(keys), -1, np.int64)
        left, at = np.arange(len(keys)), self._home(keys)
        while len(left):
            there = self._table[at]
            same = (there >= 0) & (self._keys.values[there] == keys[left]) if len(self) else there >= 0
            numbers[left[same]] = there[same]
            on = (there >= 0) & ~same
            left, at = left[on], (at[on] + 1) & self._last
        return numbers

    def add(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(E,) numbers of keys, and the places of those that are new, each once."""
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
        """(E,) where keys are looked for first: the high bits of a product (Knuth's multiplicative hashing)."""
        return ((keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> self._shift).astype(np.int64)

    def _resize(self, bits: int) -> None:
        self._table = np.full(1 << bits, -1, np.int32)
        self._last, self._shift = len(self._table) - 1, np.uint64(64 - bits)
        self._place(np.arange(len(self)))

    def _place(self, numbers: np.ndarray) -> None:
        at = self._home(self._keys.values[numbers])
        while len(numbers):
            free = self._table[at] < 0
            self._table[at[free]] = numbers[free]  # of those that want one place, one gets it
            on = self._table[at] != numbers
            numbers, at = numbers[on], (at[on] + 1) & self._last
