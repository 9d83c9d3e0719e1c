"""Writes docs/results/, one page an experiment, and README.md's table from the results of scripts/reproduce.py.

python scripts/results.py [--runs runs] [--out docs/results] [--readme README.md]

A page holds two written parts: commands, cost and goals up to `<!-- figures -->`, and the figures from there to
`<!-- end -->`. Commands, costs and goals are written each time; figures that --runs does not have stay as they are, so
that steps can be measured on different machines. Title, question and remarks of a page are edited by hand.

Knows pages, goals (docs/results/goals.yaml), results.json and the JSON lines of benchmarks; does not know how a figure
was computed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from reproduce import STEPS, Step, needed

from ltrr.cli.arguments import main
from ltrr.files import atomic_write

PEERS = {  # step -> learner, explorer; all with the same queries, features and arms, each with rounds of its own
    "policy-msrd": ("ours", "softmax"),
    "policy-linucb": ("linear, each candidate; expected clicks", "UCB: CombLinUCB"),
    "policy-router": ("supervised router", "ε-greedy"),
    "policy-vowpal": ("Vowpal Wabbit, each cut", "SquareCB"),
}
GOAL_HEAD = ["| what | measured | goal |", "| --- | ---: | --- |"]
COST_HEAD = ["| step | minutes | commit |", "| --- | ---: | --- |"]


class Goal(NamedTuple):
    """A figure that was asked for; goals.yaml explains the fields."""

    name: str
    figure: str
    bound: str
    minus: str = ""
    pick: str = ""
    complement: bool = False
    inverse: bool = False
    readme: bool = False

    @property
    def page(self) -> str:
        """The step that measures it."""
        return self.figure.partition("/")[0]

    def value(self, results: dict[str, dict]) -> float:
        """The figure in the results of all steps; raises KeyError if its step was not measured."""
        values = list(reach(results, self.figure.split("/")))
        value = {"max": max, "min": min}[self.pick](values) if self.pick else values[0]
        if self.minus:
            value -= next(reach(results, self.minus.split("/")))
        value = 1 - value if self.complement else value
        return 1 / value if self.inverse else value

    def met(self, value: float | None) -> bool:
        """Whether a figure keeps the bound; one that was not measured does not."""
        sign, _, number = self.bound.rpartition(" ")
        if value is None:
            return False
        if sign.startswith("within"):  # "within .002 of"
            return abs(value - float(number)) <= float(sign.split()[1])
        return {">=": value >= float(number), ">": value > float(number), "<=": value <= float(number)}[sign]

    def row(self, value: float | None, name: str) -> str:
        return f"| {name} | {'not measured' if value is None else f'{value:.4g}'} | {self.bound} |"


def reach(node: Any, path: list[str]) -> Iterator[float]:
    """The figures at a path of goals.yaml; raises KeyError or IndexError if a part of it is missing."""
    if not path:
        yield node
        return
    key, *rest = path
    if key == "*":
        children = list(node.values()) if isinstance(node, dict) else node
    elif isinstance(node, dict):
        children = [v for k, v in node.items() if k != key[1:]] if key.startswith("!") else [node[key]]
    elif "=" in key:
        wanted = {name: values.split("|") for name, _, values in (pair.partition("=") for pair in key.split(","))}
        children = [row for row in node if all(str(row[name]) in values for name, values in wanted.items())]
        if any(
            value not in [str(row[name]) for row in children] for name, values in wanted.items() for value in values
        ):
            raise KeyError(key)  # a row is missing
    else:
        children = [node[int(key)]]
    for child in children:
        yield from reach(child, rest)


def read_json(path: Path) -> dict:
    """A JSON file, {} if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_rows(path: Path) -> dict[str, dict[str, dict]]:
    """Benchmark -> case -> row, from JSON lines; the last row of a case counts. {} if the file does not exist."""
    rows: dict[str, dict[str, dict]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        rows.setdefault(row["benchmark"], {})[row["case"]] = row
    return rows


def results_of(runs: Path, step: Step) -> dict:
    """The figures of a step: the rows of benchmarks, or its results.json and the JSON file that marks it as done."""
    done = runs / step.done
    return (
        read_rows(done) if done.suffix == ".jsonl" else read_json(runs / step.name / "results.json") | read_json(done)
    )


def rows_of(text: str) -> dict[str, list[str]]:
    """First cell -> other cells, of a page's Markdown tables without links."""
    lines = (line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---"))
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {first.removeprefix("[").partition("](")[0]: rest for first, *rest in rows}


def fill(path: Path, parts: dict[str, list[str]]) -> None:
    """Writes parts of a page, each from its marker `<!-- NAME -->` to the next marker; an empty part stays."""
    text = path.read_text(encoding="utf-8")
    for name, lines in parts.items():
        before, marker, after = text.partition(f"<!-- {name} -->\n")
        if not marker or "<!-- " not in after:
            raise ValueError(f"{path}: no part from <!-- {name} --> to another marker")
        if lines:
            text = before + marker + "\n".join(lines) + "\n" + after[after.index("<!-- ") :]
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def table(results: dict) -> list[str]:
    """Compared systems or benchmarks as a Markdown table."""
    if "baseline" in results:  # person queries: systems, each beside the baseline
        head = f"| system | {results['measure']} | 95 % interval | p (Holm) against {results['baseline']} |"
        lines = [f"{results['n']} queries.", "", head, "| --- | ---: | ---: | ---: |"]
        for name, row in results["systems"].items():
            p = "" if row["p"] is None else f"{row['p']:.4f}"
            lines.append(f"| {name} | {row['mean']:.4f} | {row['low']:.3f} to {row['high']:.3f} | {p} |")
        return lines
    lines = ["| benchmark | case | value | unit | ratio | to |", "| --- | --- | ---: | --- | ---: | --- |"]
    for name, cases in results.items():
        for case, row in cases.items():
            ratio = f"{row['ratio']:.4g} | {row['ratio_to']}" if "ratio" in row else " | "
            lines.append(f"| {name} | {case} | {row['value']:.4g} | {row['unit']} | {ratio} |")
    return lines


def figures_of(runs: Path, step: Step, results: dict, plots: Path) -> list[str]:
    """A step's table, tuned parameters and plots, which are copied beside the pages; nothing if it was not run."""
    if not results:
        return []
    written = runs / step.name / "table.md"
    lines = written.read_text(encoding="utf-8").strip("\n").splitlines() if written.exists() else table(results)
    if lines[0].startswith("# "):  # the page has a title
        lines = lines[2:]
    tuned = results.get("tuned", {})
    lines += [""] * bool(tuned)
    lines += [f"- {name}: on {v['on']}: `{json.dumps(v['parameters'])}`" for name, v in sorted(tuned.items())]
    for plot in sorted([*(runs / step.name).glob("*.png"), *(runs / step.name).glob("plots/*.png")]):
        plots.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plot, plots / f"{step.name}-{plot.name}")
        lines += ["", f"![{plot.stem} of {step.name}]({plots.name}/{step.name}-{plot.name})"]
    return lines


def peers(results: dict[str, dict]) -> list[str]:
    """Gap closed and cost saved of each learner and explorer; nothing unless all were measured."""
    if not all(results[name] for name in PEERS):
        return []
    keys = [(figure, f"K={k}") for figure in ("gap_closed", "cost_saved") for k in (5, 10, 20)]
    heads = " | ".join(f"{figure.replace('_', ' ')}, {k}" for figure, k in keys)
    lines = [f"| learner | explorer | seeds | {heads} |", f"| --- | --- | ---: |{' ---: |' * len(keys)}"]
    for name, (learner, explorer) in PEERS.items():
        values = [results[name][figure][k] for figure, k in keys]
        cells = " | ".join(f"{v['mean']:.2f} ({v['low']:.2f} to {v['high']:.2f})" for v in values)
        lines.append(f"| {learner} | {explorer} | {results[name]['seeds']} | {cells} |")
    return lines


def costs_of(runs: Path, before: str) -> dict[str, str]:
    """Step -> row with its minutes and commit, earlier measurements included."""
    rows = {name: cells for name, cells in rows_of(before).items() if name != "step"}
    for path in (runs / "costs").glob("*.json"):
        cost = read_json(path)
        minutes = f"{cost['seconds'] / 60:.1f}{', its last part' if cost['resumed'] else ''}"
        rows[path.stem] = [minutes, cost.get("commit", "not recorded")]
    return {name: f"| {name} | {' | '.join(cells)} |" for name, cells in sorted(rows.items())}


def commands_of(steps: list[Step], costs: dict[str, str]) -> list[str]:
    """The commands of steps as a code block, and what those steps cost."""
    rows = [costs[name] for step in steps if (name := step.name.replace("/", "-")) in costs]
    commands = [f"    python {step.command}".replace("{data}", "../shared/data") for step in steps]
    return ["", "## Command and cost", "", *commands, "", *(COST_HEAD if rows else []), *rows]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--readme", type=Path, default=Path(__file__).parents[1] / "README.md")
    flags = parser.parse_args()
    pages = {path.stem: path for path in sorted(flags.out.glob("*.md"))}
    goals = [Goal(**row) for row in yaml.safe_load((flags.out / "goals.yaml").read_text(encoding="utf-8"))]
    steps = {step.name: step for step in STEPS}
    results = {name: results_of(flags.runs, step) for name, step in steps.items()}

    # 1) Goals and costs: new figures where there are any, else those of the pages.
    before = rows_of(pages["index"].read_text(encoding="utf-8"))
    values: dict[str, float | None] = {}
    for goal in goals:
        try:
            values[goal.name] = goal.value(results)
        except (KeyError, IndexError):
            cell = before.get(goal.name, ["not measured"])[0]
            values[goal.name] = None if cell == "not measured" else float(cell)
    costs = costs_of(flags.runs, pages["costs"].read_text(encoding="utf-8"))

    # 2) One page an experiment.
    met: dict[str, str] = {}
    for name, path in pages.items():
        if name == "policy-peers":
            head, figures = commands_of([steps[peer] for peer in PEERS], costs), peers(results)
        elif name in steps:
            head = commands_of([*needed(steps[name].command), steps[name]], costs)
            figures = figures_of(flags.runs, steps[name], results[name], flags.out / "plots")
        else:
            continue
        if asked := [goal for goal in goals if goal.page == name]:
            met[name] = f"{sum(goal.met(values[goal.name]) for goal in asked)} of {len(asked)}"
            rows = [goal.row(values[goal.name], goal.name) for goal in asked]
            head += ["", "## Goals", "", f"Met: {met[name]}.", "", *GOAL_HEAD, *rows]
        fill(path, {"command": [*head, "", "## Figures", ""], "figures": figures and ["", *figures, ""]})

    # 3) The index, the costs, README's headlines and the goals that are missed.
    links = []
    for name in dict.fromkeys([*steps, *pages]):  # in the order of steps, other pages after them
        if name in pages and name != "index":
            title = pages[name].read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            links.append(f"- [{title}]({name}.md){f': {met[name]} goals met' if name in met else ''}")
    rows = [goal.row(values[goal.name], f"[{goal.name}]({goal.page}.md)") for goal in goals]
    fill(
        pages["index"],
        {"pages": ["", "## Pages", "", *links, ""], "goals": ["", "## Goals", "", *GOAL_HEAD, *rows, ""]},
    )
    fill(pages["costs"], {"figures": ["", *COST_HEAD, *costs.values(), ""]})
    headlines = [goal.row(values[goal.name], goal.name) for goal in goals if goal.readme]
    missed = [goal.row(values[goal.name], goal.name) for goal in goals if not goal.met(values[goal.name])]
    count = f"{len(goals) - len(missed)} of {len(goals)} goals are met; these are not, or not measured yet:"
    fill(flags.readme, {"results": [*GOAL_HEAD, *headlines, "", count, "", *GOAL_HEAD, *missed]})
    print(f"written: {flags.out}, {flags.readme}")


if __name__ == "__main__":
    main(run)
