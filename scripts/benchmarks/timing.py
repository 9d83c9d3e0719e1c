"""Ways to time an action. Knows clocks; does not know what is timed. Legend: N items."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


def seconds(action: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def best_of(action: Callable[[], object], times: int) -> float:
    """Seconds of the fastest run."""
    return min(seconds(action) for _ in range(times))


def median_ms(action: Callable[[], object], times: int) -> float:
    """Median milliseconds of a run, after three that do not count."""
    return 1e3 * float(np.median([seconds(action) for _ in range(times + 3)][3:]))


def each_ms(answer: Callable[[Any], object], items: Iterable[Any]) -> np.ndarray:
    """(N,) milliseconds of each item, one at a time."""
    return 1e3 * np.array([seconds(lambda item=item: answer(item)) for item in items])
