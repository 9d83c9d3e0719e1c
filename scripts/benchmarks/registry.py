"""The rows that benchmarks yield, the options that they read, and the table of all benchmarks by name.

Knows neither any benchmark nor how rows are printed. A benchmark is a generator function in a file of its subject:

    @benchmark(data=True)
    def latency(options: Options) -> Iterator[Row]:
        "One line that `run.py --list` shows."
        yield Row("lexical, median", 0.34, "ms")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from ltrr.system.system import System
    from ltrr.types import Query

_QUERIES = 300


class Row(NamedTuple):
    """One figure. A ratio compares it with the row of the same benchmark that `ratio_to` names."""

    case: str
    value: float
    unit: str
    ratio: float | None = None  # value / value of `ratio_to`
    ratio_to: str | None = None

    def against(self, peer: Row) -> Self:
        """The same row with its ratio to a peer's row. Both must have the same unit."""
        assert self.unit == peer.unit
        return self._replace(ratio=self.value / peer.value, ratio_to=peer.case)


@dataclass
class Options:
    """What the command line sets. None leaves a number to each benchmark."""

    config: Path
    overrides: list[str]  # dotted overrides of the config, the data set among them
    device: str = "cpu"  # cpu or cuda
    events: int | None = None
    repeats: int | None = None
    postgres: str | None = None  # URL of an empty database; None = a temporary server

    @cached_property
    def system(self) -> System:
        """The opened system of the config. Errors: ConfigError."""
        from ltrr.system.system import open_systems

        return open_systems(self.config, self.overrides)[0]

    @property
    def queries(self) -> list[Query]:
        """The first 300 test queries."""
        return self.system.dataset.split("test").queries[:_QUERIES]


class Benchmark(NamedTuple):
    """A registered benchmark."""

    measure: Callable[[Options], Iterator[Row]]
    needs_data: bool
    summary: str  # first line of its docstring


BENCHMARKS: dict[str, Benchmark] = {}  # "subject.function" -> benchmark


def benchmark(data: bool = False) -> Callable[[Callable[[Options], Iterator[Row]]], Callable]:
    """Registers a function as "subject.function", its file being the subject. data: whether it needs --data."""

    def register(measure: Callable[[Options], Iterator[Row]]) -> Callable[[Options], Iterator[Row]]:
        summary = (measure.__doc__ or "").partition("\n")[0]
        BENCHMARKS[f"{measure.__module__}.{measure.__name__}"] = Benchmark(measure, data, summary)
        return measure

    return register
