"""Assigns training pairs to the batches of each device, as a function of the seed and the epoch.

Knows the lengths of pairs; knows nothing about their texts. Legend: B pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

_WINDOW = 50  # batches per window; pairs are sorted by length within a window


class Batches:
    """Yields batches of (epoch, index) for one device: pairs of similar length, in an order fixed by the seed.

    All devices get the same number of full batches. Pairs left over are skipped; the next epoch shuffles anew.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        size: int,
        seed: int,
        rank: int,
        world: int,
        position: Callable[[int], tuple[int, int]],
    ) -> None:
        """lengths: of each training pair, in any unit. position: maps the number of batches to (epoch, first batch)."""
        self._lengths, self._size, self._seed = lengths, size, seed
        self._rank, self._world = rank, world
        self._position = position

    def __len__(self) -> int:
        return len(self._lengths) // (self._size * self._world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = self._position(len(self))
        for batch in self.epoch(epoch)[start:]:
            yield [(epoch, int(index)) for index in batch]

    def epoch(self, epoch: int) -> np.ndarray:
        """Returns the pair indexes of one epoch for this device, (batches, B)."""
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._lengths))[: len(self) * self._world * self._size]
        window = _WINDOW * self._size * self._world
        for start in range(0, len(order), window):  # sorted within windows, so that epochs still differ
            part = order[start : start + window]
            order[start : start + window] = part[np.argsort(self._lengths[part], kind="stable")]
        steps = order.reshape(len(self), self._world, self._size)  # all devices of a step get similar lengths
        return steps[rng.permutation(len(self)), self._rank]
