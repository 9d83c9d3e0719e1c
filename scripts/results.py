"""Writes docs/results.md and the table of README.md from what the commands in it wrote: no figure is typed by hand.

python scripts/results.py [--runs runs] [--out docs/results.md]

What --runs does not have stays as the document has it, so that a few steps can be measured again elsewhere.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _goals import GOALS, HEADLINES, met
from reproduce import STEPS, needed

from ltrr.cli.arguments import main
from ltrr.files import atomic_write

_README = Path(__file__).parent.parent / "README.md"
_PARTS = [  # title, folder; trained models come after what they are compared with
    ("SciFact (BEIR), test, nothing trained", "scifact"),
    ("MSRD movies, test (by group), nothing trained", "msrd"),
    ("SciFact, trained bi-encoder", "scifact-dense"),
    ("MSRD, trained bi-encoder", "msrd-dense"),
    ("SciFact, trained SPLADE", "scifact-sparse"),
    ("MSRD, trained SPLADE", "msrd-sparse"),
    ("SciFact, trained cross-encoder over RRF of untrained arms", "scifact-ranked"),
    ("MSRD, trained cross-encoder over RRF of untrained arms", "msrd-ranked"),
    ("SciFact, full text with generated queries", "scifact-expanded"),
    ("SciFact, all trained models", "scifact-ltrr"),
    ("MSRD, all trained models", "msrd-ltrr"),
    ("The embedded catalogue (synthetic), test, trained for a few steps", "quickstart"),
    ("The catalogue, full text with the queries that simulated customers found documents with", "catalogue-observed"),
]
_EXPERIMENTS = [  # title, step; with a table.md, or with figures in results.json
    ("Memory on the catalogue, simulated clicks", "memory-catalogue"),
    ("Memory on the catalogue where everybody asks everything, simulated clicks", "memory-shared"),
    ("Memory on the catalogue that starts from predicted scores", "memory-predicted"),
    ("Memory on MSRD, recurring queries (random split), simulated clicks", "memory-msrd-random"),
    ("The same, where customers look less far than memory believes (η 2)", "memory-msrd-eta"),
    ("Memory on MSRD, no recurring queries (split by group), simulated clicks", "memory-msrd"),
    ("A policy of cuts on MSRD, one pass over the train queries", "policy-msrd"),
    ("The same after ten passes", "policy-msrd-ten"),
    ("Off-policy estimates on simulated logs", "ope-simulated"),
    ("Off-policy estimates on the Open Bandit logs", "ope-open-bandit"),
    ("A policy of cuts where every query is told another's features", "policy-msrd-shuffled"),
    ("The same where customers look from the top until they are satisfied", "policy-msrd-cascade"),
    ("A policy of cuts on SciFact, five folds over all judged queries", "policy-scifact"),
    ("A policy of cuts on the catalogue", "policy-catalogue"),
    ("A policy of cuts on MSRD where the dense arm joins after the first pass", "policy-msrd-joins"),
    ("A policy of cuts on MSRD where the title arm falls silent after the first pass", "policy-msrd-leaves"),
    ("Arms switched off before retrieval on MSRD", "policy-arms"),
    ("Arms drawn to 0, 10, 30 or 100, each candidate at a hundredth of an arm's cost", "policy-depths"),
    ("Weights of the arms learned query by query, beside a policy of cuts, on MSRD", "policy-weights"),
    ("What a policy of cuts saves a cross-encoder on MSRD", "policy-ranked"),
    ("A policy of cuts on MSRD over trained arms, learned from queries that are new to them", "policy-trained"),
    ("The same, learned from the queries that the arms were trained on", "policy-trained-naive"),
    ("The same with a memory of what train's customers clicked on, learned from new queries", "policy-trained-memory"),
    ("One customer's 10,000 clicks", "attack"),
    ("One customer's 100 clicks, within their budget", "attack-patient"),
    ("An explorer for entities that arrive later, on the catalogue", "fresh"),
    ("Personal retrieval on Last.fm, a fifth of each listener's artists left out", "personal"),
    ("Click models: error of estimated examination, 200,000 impressions", "click_models"),
    ("Event store", "store"),
    ("Memory at size", "benchmark_memory"),
    ("Decisions and updates of a policy", "benchmark_policy"),
]
_BENCHMARKS = ("store", "benchmark_memory", "benchmark_policy", "benchmark")  # steps of scripts/benchmarks/run.py
_PEERS = {  # step -> learner, explorer; on the same queries, features and arms, each with rounds of its own
    "policy-msrd": ("ours", "softmax"),
    "policy-squarecb": ("ours", "SquareCB"),
    "policy-greedy": ("ours", "ε-greedy"),
    "policy-thompson": ("ours", "Thompson"),
    "policy-linucb": ("linear, each candidate; expected clicks", "UCB: CombLinUCB"),
    "policy-linucb-gains": ("the same with our recall, told the true noise", "UCB"),
    "policy-linucb-cut": ("linear, each cut", "UCB: LinUCB"),
    "policy-lints": ("linear, each candidate; expected clicks", "Thompson: LinTS"),
    "policy-router": ("supervised router", "ε-greedy"),
    "policy-vowpal": ("Vowpal Wabbit, each cut", "SquareCB"),
}


def whatever_is_in(path: Path) -> dict:
    """A JSON file, {} where it is not there yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def benchmark_rows(path: Path) -> dict[str, dict]:
    """Reads JSON lines: "benchmark: case" -> value, unit, ratio, ratio_to. The last row of a case counts."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    keys, rows = ("value", "unit", "ratio", "ratio_to"), [json.loads(line) for line in lines]
    return {f"{row['benchmark']}: {row['case']}": {key: row[key] for key in keys if key in row} for row in rows}


def table(folder: Path) -> str:
    """The Markdown table of an evaluation, without its title."""
    return (folder / "table.md").read_text(encoding="utf-8").split("\n\n", 1)[1]


def experiment(folder: Path, found: dict) -> list[str]:
    """Its table, or one of the figures in its results.json."""
    if (folder / "table.md").exists():
        return (folder / "table.md").read_text(encoding="utf-8").splitlines()
    flat = {k: v for k, v in found.items() if not isinstance(v, dict)}
    rows = ({"": flat} if flat else {}) | {k: v for k, v in found.items() if isinstance(v, dict)}
    return ["| what | figures |", "| --- | --- |"] + [
        f"| {name} | {', '.join(f'{key} {_short(value)}' for key, value in row.items())} |"
        for name, row in rows.items()
    ]


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def peers(runs: Path, commands: dict[str, str]) -> list[str]:
    """Gap closed and cost saved of each learner, where it was measured."""
    found = {step: whatever_is_in(runs / step / "results.json") for step in _PEERS}
    if not all(found.values()):
        return []
    lines = [
        "Each cut and router read the query's columns (fused scores and how arms' scores fall are among them), Vowpal"
    ]
    lines += [
        "Wabbit also those of the candidate at the cut, the others all candidates'. Settings were chosen on dev",
        "(docs/experiments.md).",
        "",
    ]
    lines += [f"    python {commands[step]}".replace("{data}", "../shared/data") for step in _PEERS if found[step]]
    keys = [f"K={k}" for k in (5, 10, 20)]
    heads = [f"{figure}, {key}" for figure in ("gap closed", "cost saved") for key in keys]
    lines += ["", f"| learner | explorer | seeds | {' | '.join(heads)} |", f"| --- | --- | ---: |{' ---: |' * 6}"]
    for step, (learner, explorer) in _PEERS.items():
        if told := found[step]:
            values = [told[figure][key] for figure in ("gap_closed", "cost_saved") for key in keys]
            cells = [f"{v['mean']:.2f} ({v['low']:.2f} to {v['high']:.2f})" for v in values]
            lines.append(f"| {learner} | {explorer} | {told['seeds']} | {' | '.join(cells)} |")
    return lines


def kept_of(path: Path) -> dict[str, list[str]]:
    """Title -> lines of each section of the document as it is."""
    sections: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith("## "):
            sections[line[3:]] = []
        elif sections:
            sections[[*sections][-1]].append(line)
    return {title: "\n".join(lines).strip("\n").splitlines() for title, lines in sections.items()}


def rows_of(lines: list[str]) -> dict[str, list[str]]:
    """First cell -> the others, of a Markdown table."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return {first: rest for first, *rest in rows[2:]}


def evaluation(runs: Path, name: str, command: str, costs: dict) -> list[str]:
    """Commands, minutes of training, table and what was tuned of a step that evaluates."""
    before, tuned = needed(command), json.loads((runs / name / "results.json").read_text())["tuned"]
    lines = _shown([*(step.command for step in before), command])
    if fits := [costs[s.name]["seconds"] for s in before if "train.py" in s.command and s.name in costs]:
        lines += ["", f"Training, together: {sum(fits) / 60:.1f} minutes."]
    lines += ["", table(runs / name)]
    return lines + [f"- {k}: on {v['on']}: `{json.dumps(v['parameters'])}`" for k, v in sorted(tuned.items())]


def named(people: dict) -> list[str]:
    """Queries that name a person."""
    head = f"| system | {people['measure']} | 95 % interval | p (Holm) against {people['baseline']} |"
    lines = _shown(["scripts/person_queries.py --data {data}/msrd-movies --results runs/msrd"])
    lines += ["", f"{people['n']} queries.", "", head, "| --- | ---: | ---: | ---: |"]
    for name, row in people["systems"].items():
        p = "" if row["p"] is None else f"{row['p']:.4f}"
        lines.append(f"| {name} | {row['mean']:.4f} | {row['low']:.3f} to {row['high']:.3f} | {p} |")
    return lines


def minutes(costs: dict, before: list[str]) -> list[str]:
    """Of each step, those of earlier measurements included."""
    rows = rows_of(before)
    for name, cost in costs.items():
        spent = f"{cost['seconds'] / 60:.1f}{', its last part' if cost['resumed'] else ''}"
        rows[name] = [spent, cost.get("commit", "not recorded")]
    lines = [*_shown(["scripts/reproduce.py"]), "", "| step | minutes | commit |", "| --- | ---: | --- |"]
    return lines + [f"| {name} | {' | '.join(rest)} |" for name, rest in sorted(rows.items())]


def goals(figures: dict, before: list[str]) -> tuple[list[str], list[str], list[str], int]:
    """Rows of all goals, of the headlines, of those that are not met, and how many are."""
    every, old = ["| what | measured | goal |", "| --- | ---: | --- |"], rows_of(before)
    chosen, missed, num_met = every[:], every[:], 0
    assert {what for what, *_ in GOALS} >= HEADLINES
    for what, find, sign, goal in GOALS:
        try:
            value: float | None = find(figures)
        except KeyError:
            told = old.get(what, ["not measured"])[0]
            value = None if told == "not measured" else float(told)
        every.append(f"| {what} | {'not measured' if value is None else f'{value:.4g}'} | {sign} {goal} |")
        good = value is not None and met(value, sign, goal)
        num_met += good
        if what in HEADLINES:
            chosen.append(every[-1])
        if not good:
            missed.append(every[-1])
    return every, chosen, missed, num_met


def _shown(commands: list[str]) -> list[str]:
    return [f"    python {command}".replace("{data}", "../shared/data") for command in commands]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    flags = parser.parse_args()
    runs, commands, kept = flags.runs, {step.name: step.command for step in STEPS}, kept_of(flags.out)
    read = {name: whatever_is_in(runs / name / "results.json") for _, name in (*_PARTS, *_EXPERIMENTS)}
    read |= {name: benchmark_rows(runs / name / "rows.jsonl") for name in _BENCHMARKS}
    costs = {path.stem: json.loads(path.read_text()) for path in sorted((runs / "costs").glob("*.json"))}
    people = whatever_is_in(runs / "msrd" / "person_queries.json")
    figures = {name: read[name]["systems"] for _, name in _PARTS if read[name]}
    figures |= {name: read[name] for _, name in _EXPERIMENTS}
    figures |= {"people": people.get("systems", {})}
    figures["benchmarks"] = {case: row for name in _BENCHMARKS for case, row in read[name].items()}
    figures["quickstart cost"] = whatever_is_in(runs / "quickstart" / "cost.json")
    every, chosen, missed, num_met = goals(figures, kept.get("Goals", []))
    made = {"Goals": every}
    made |= {title: evaluation(runs, name, commands[name], costs) if read[name] else [] for title, name in _PARTS}
    made["MSRD test queries that name a person and no title"] = named(people) if people else []
    for title, name in _EXPERIMENTS:
        shown = [*(step.command for step in needed(commands[name])), commands[name]]
        made[title] = [*_shown(shown), "", *experiment(runs / name, read[name])] if read[name] else []
    made["Policies of other schools on MSRD, one pass"] = peers(runs, commands)
    bench = _shown([commands["benchmark"]])
    bench += ["", "Compare ratios, not times.", "", *experiment(runs / "benchmark", read["benchmark"])]
    made["Speed"] = bench if read["benchmark"] else []
    made["Minutes of each step"] = minutes(costs, kept.get("Minutes of each step", []))
    lines = [
        "# Results",
        "",
        "Made by `python scripts/results.py` from what the commands below wrote, on 2 CPU cores and no GPU. What has no"
        " figure was not measured by this version yet."
        " Parameters were fitted on the splits listed under each table and nothing else. docs/experiments.md says which"
        " test figures were seen during development and what came of it.",
    ]
    for title, own in made.items():
        if own := own or kept.get(title, []):
            lines += ["", f"## {title}", "", *own]
    with atomic_write(flags.out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before, rest = _README.read_text(encoding="utf-8").split("<!-- results -->")
    told = f"{num_met} of {len(GOALS)} goals are met; these are not, or not measured yet:"
    text = (
        "\n".join([f"{before}<!-- results -->", *chosen, "", told, "", *missed, "<!-- /results -->"])
        + rest.split("<!-- /results -->")[1]
    )
    with atomic_write(_README) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written: {flags.out}, {_README}")


if __name__ == "__main__":
    main(run)
