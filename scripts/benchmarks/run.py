"""Runs benchmarks and prints each figure as one JSON line on stdout; progress goes to stderr.

python scripts/benchmarks/run.py [NAME …] [--data FOLDER] [--device cpu|cuda] [--events N] [--repeats N] [--out FILE]

NAME is a benchmark (funnel.overhead) or its subject (funnel); no name means all. Compare ratios, not times: machines
are noisy, and both sides of a ratio were measured in the same run. Each benchmark has a process of its own. --out
appends the rows to a file when all benchmarks are done, so that the file never holds half a run.

    {"benchmark", "case", "value", "unit"[, "ratio", "ratio_to"], "device", "cores"}

`ratio` is the value divided by that of the case `ratio_to`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import arms  # noqa: F401  each file registers its benchmarks
import encoders  # noqa: F401
import funnel  # noqa: F401
import index  # noqa: F401
import memory  # noqa: F401
import policy  # noqa: F401
import store  # noqa: F401
import training  # noqa: F401
from registry import BENCHMARKS, Options

from ltrr.cli.arguments import arguments, main
from ltrr.config import check_known
from ltrr.files import atomic_write


def selected(names: list[str]) -> list[str]:
    """Benchmarks of these names and subjects, all for none. Errors: ConfigError that says which name is nearest."""
    known = {*BENCHMARKS, *(name.partition(".")[0] for name in BENCHMARKS)}
    for name in names:
        check_known("benchmarks", name, known)
    return [name for name in BENCHMARKS if not names or {name, name.partition(".")[0]} & set(names)]


def measure(name: str, options: Options) -> list[str]:
    """Runs one benchmark; prints its JSON lines as they come and returns them."""
    lines, stdout = [], sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is progress
        for row in BENCHMARKS[name].measure(options):
            figures = {key: value for key, value in row._asdict().items() if value is not None}
            line = {"benchmark": name, **figures, "device": options.device, "cores": os.cpu_count()}
            lines.append(json.dumps(line))
            print(lines[-1], file=stdout, flush=True)
    return lines


def append(path: Path, lines: list[str]) -> None:
    """Adds lines to a file, all or none."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    with atomic_write(path) as temporary:
        temporary.write_text(before + "".join(f"{line}\n" for line in lines), encoding="utf-8")


def run() -> None:
    flags, overrides = arguments(__doc__ or "", "configs/funnel.yaml", extra=_add_flags)
    names = selected(flags.names)
    if flags.list:
        print("\n".join(f"{name:<20}  {BENCHMARKS[name].summary}" for name in names))
        return
    if not flags.data and (needing := [name for name in names if BENCHMARKS[name].needs_data]):
        raise ValueError(f"--data: is not set, and {', '.join(needing)} need it; give --data FOLDER, ZIP or HUBNAME")
    options = Options(flags.config, overrides, flags.device, flags.events, flags.repeats, flags.postgres)
    lines: list[str] = []
    # One process a benchmark, so that none sees another's memory peak or number of threads.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as process:
        for name in names:
            lines += process.submit(measure, name, options).result()
    if flags.out:
        append(flags.out, lines)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmark or subject (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of encoders and networks")
    parser.add_argument("--events", type=int, help="events of a store or a memory (default: each benchmark's own)")
    parser.add_argument("--repeats", type=int, help="runs of each measurement (default: each benchmark's own)")
    parser.add_argument("--postgres", metavar="URL", help="an empty database (default: a temporary server)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to which the rows are appended")
    parser.add_argument("--list", action="store_true", help="show the benchmarks and what they measure")


if __name__ == "__main__":
    main(run)
