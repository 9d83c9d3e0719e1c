"""Writes docs/results.md and the table of README.md from what the commands in it wrote: no figure is typed by hand.

python scripts/results.py [--runs runs] [--out docs/results.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _common import main

from ltrr.metrics import whole_file

_README = Path(__file__).parent.parent / "README.md"
_PARTS = [
    ("SciFact (BEIR), test", "scifact", "scripts/evaluate.py --data ../shared/data/scifact --out runs/scifact"),
    ("MSRD movies, test (by group)", "msrd", "scripts/evaluate.py --data ../shared/data/msrd-movies --out runs/msrd"),
    ("The embedded catalogue (synthetic), test", "quickstart", "scripts/quickstart.py"),
]  # fmt: skip
_GOALS = [  # issue 2's table: what, folder, how to read it, the goal
    ("SciFact lexical nDCG@10", lambda r: r["scifact"]["lexical"]["nDCG@10"], ">=", 0.678),
    ("SciFact lexical R@100", lambda r: r["scifact"]["lexical"]["R@100"], ">=", 0.92),
    ("SciFact dense nDCG@10 (.645 ± .002)", lambda r: r["scifact"]["dense"]["nDCG@10"], "within .002 of", 0.645),
    ("SciFact RRF nDCG@10", lambda r: r["scifact"]["rrf"]["nDCG@10"], ">=", 0.712),
    ("SciFact convex nDCG@10", lambda r: r["scifact"]["convex"]["nDCG@10"], ">=", 0.725),
    ("MSRD lexical nDCG@10", lambda r: r["msrd"]["lexical"]["nDCG@10"], ">=", 0.83),
    ("MSRD lexical R@100", lambda r: r["msrd"]["lexical"]["R@100"], ">=", 0.975),
    ("MSRD best fusion R@10", lambda r: max(r["msrd"][n]["R@10"] for n in ("rrf", "convex")), ">=", 0.925),
    ("MSRD best fusion R@100", lambda r: max(r["msrd"][n]["R@100"] for n in ("rrf", "convex")), ">=", 0.99),
    ("MSRD person queries, structured R@10 − lexical R@10", lambda r: r["people"], ">=", 0.0),
    ("p of that difference (paired randomisation, Holm)", lambda r: r["people p"], "<=", 0.05),
    ("lexical, one query, median ms (MSRD)", lambda r: r["speed"]["lexical, one query"]["median_ms"], "<=", 2),
    ("structured, one query, median ms (MSRD)", lambda r: r["speed"]["structured, one query"]["median_ms"], "<=", 10),
    ("quickstart, seconds after the install", lambda r: r["quickstart cost"]["seconds"], "<=", 180),
    ("quickstart, peak memory, GiB", lambda r: r["quickstart cost"]["peak_gib"], "<=", 4),
]  # fmt: skip


def table(folder: Path) -> str:
    """The Markdown table of an evaluation, without its title."""
    return (folder / "table.md").read_text(encoding="utf-8").split("\n\n", 1)[1]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    flags = parser.parse_args()
    read = {name: json.loads((flags.runs / name / "results.json").read_text()) for _, name, _ in _PARTS}
    people = json.loads((flags.runs / "msrd" / "person_queries.json").read_text())
    speed = json.loads((flags.runs / "benchmark" / "benchmark.json").read_text())
    figures = {name: report["systems"] for name, report in read.items()} | {
        "people": people["systems"]["structured"]["mean"] - people["systems"]["lexical"]["mean"],
        "people p": people["systems"]["structured"]["p"],
        "speed": speed["figures"],
        "quickstart cost": json.loads((flags.runs / "quickstart" / "cost.json").read_text()),
    }
    goals = ["| what | measured | goal |", "| --- | ---: | --- |"]
    goals += [f"| {what} | {find(figures):.4g} | {sign} {goal} |" for what, find, sign, goal in _GOALS]
    lines = [
        "# Results",
        "",
        f"Made by `python scripts/results.py` from what the commands below wrote, on {speed['machine']['cores']} CPU"
        " cores and no GPU. Parameters were fitted on the splits listed under each table and nothing else. Test figures"
        " were seen during development (docs/experiments.md says where), but no parameter was chosen by them.",
        "",
        "## Goals",
        "",
        *goals,
    ]
    for title, name, command in _PARTS:
        lines += ["", f"## {title}", "", f"`python {command}`", "", table(flags.runs / name)]
        lines += [
            f"- {k}: on {v['on']}: `{json.dumps(v['parameters'])}`" for k, v in sorted(read[name]["tuned"].items())
        ]
    lines += [
        "",
        f"## MSRD test queries that name a person and no title (n = {people['n']})",
        "",
        "`python scripts/person_queries.py --data ../shared/data/msrd-movies --results runs/msrd`",
        "",
        f"| system | {people['measure']} | 95 % interval | p (Holm) against {people['baseline']} |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in people["systems"].items():
        p = "" if row["p"] is None else f"{row['p']:.4f}"
        lines.append(f"| {name} | {row['mean']:.4f} | {row['low']:.3f} to {row['high']:.3f} | {p} |")
    lines += [
        "",
        "## Speed",
        "",
        "`python scripts/benchmark.py --data ../shared/data/msrd-movies --device cpu` (compare ratios, not times)",
        "",
        "| what | figures |",
        "| --- | --- |",
    ]
    for name, row in speed["figures"].items():
        lines.append(f"| {name} | {', '.join(f'{key} {value:.3g}' for key, value in row.items())} |")
    with whole_file(flags.out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before, rest = _README.read_text(encoding="utf-8").split("<!-- results -->")
    text = "\n".join([f"{before}<!-- results -->", *goals, "<!-- /results -->"]) + rest.split("<!-- /results -->")[1]
    with whole_file(_README) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written: {flags.out}, {_README}")


if __name__ == "__main__":
    main(run)
