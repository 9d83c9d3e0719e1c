"""Writes an experiment's folder: results.json, a Markdown table and figures; does not know what was measured."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ltrr.evaluation.plots import save
from ltrr.files import atomic_write


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]], text: Container[int] = (0,)) -> list[str]:
    """The lines of a Markdown table. text: numbers of the columns that are aligned left; others hold numbers."""
    rule = "|" + "|".join(" --- " if column in text else " ---: " for column in range(len(header))) + "|"
    return [_line(header), rule, *map(_line, rows)]


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def write_experiment(out: Path, results: Mapping[str, Any], lines: Sequence[str], **figures: Figure) -> None:
    """Writes table.md, one PNG a figure and, last, results.json; prints the table."""
    text = "\n".join(lines) + "\n"
    for name, figure in figures.items():
        save(figure, out / f"{name}.png")
    for name, content in (("table.md", text), ("results.json", json.dumps(results, indent=1) + "\n")):
        with atomic_write(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(text, end="")
    print(f"written: {out}/{', '.join(['results.json', 'table.md', *(f'{name}.png' for name in figures)])}")
