"""Writes docs/results.md and the table of README.md from what the commands in it wrote: no figure is typed by hand.

python scripts/results.py [--runs runs] [--out docs/results.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _common import main
from _goals import GOALS, HEADLINES, met
from reproduce import STEPS, needed

from ltrr.metrics import whole_file

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
    if not any(found.values()):
        return []
    lines = ["", "## Policies of other schools on MSRD, one pass", ""]
    lines += [
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


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    flags = parser.parse_args()
    commands = {step.name: step.command for step in STEPS}
    parts = [(title, name) for title, name in _PARTS if (flags.runs / name / "results.json").exists()]
    read = {name: json.loads((flags.runs / name / "results.json").read_text()) for _, name in parts}
    people = whatever_is_in(flags.runs / "msrd" / "person_queries.json")
    bench = whatever_is_in(flags.runs / "benchmark" / "benchmark.json")
    costs = {path.stem: json.loads(path.read_text()) for path in sorted((flags.runs / "costs").glob("*.json"))}
    figures = {name: report["systems"] for name, report in read.items()} | {
        "people": people.get("systems", {}),
        "speed": bench.get("figures", {}),
        "quickstart cost": whatever_is_in(flags.runs / "quickstart" / "cost.json"),
    }
    figures |= {name: whatever_is_in(flags.runs / name / "results.json") for _, name in _EXPERIMENTS}
    goals = ["| what | measured | goal |", "| --- | ---: | --- |"]
    chosen, missed, num_met = goals[:], goals[:], 0
    assert {what for what, *_ in GOALS} >= HEADLINES
    for what, find, sign, goal in GOALS:
        try:
            value = find(figures)
            goals.append(f"| {what} | {value:.4g} | {sign} {goal} |")
            good = met(value, sign, goal)
        except KeyError:
            goals.append(f"| {what} | not measured | {sign} {goal} |")
            good = False
        num_met += good
        if what in HEADLINES:
            chosen.append(goals[-1])
        if not good:
            missed.append(goals[-1])
    lines = [
        "# Results",
        "",
        "Made by `python scripts/results.py` from what the commands below wrote, on 2 CPU cores and no GPU. What has no"
        " figure was not measured by this version yet."
        " Parameters were fitted on the splits listed under each table and nothing else. docs/experiments.md says which"
        " test figures were seen during development and what came of it.",
        "",
        "## Goals",
        "",
        *goals,
    ]
    for title, name in parts:
        before = needed(commands[name])
        shown = [step.command for step in before] + [commands[name]]
        lines += ["", f"## {title}", ""]
        lines += [f"    python {command}".replace("{data}", "../shared/data") for command in shown]
        if fits := [costs[s.name]["seconds"] for s in before if "train.py" in s.command and s.name in costs]:
            lines += ["", f"Training, together: {sum(fits) / 60:.1f} minutes."]
        lines += ["", table(flags.runs / name)]
        lines += [
            f"- {k}: on {v['on']}: `{json.dumps(v['parameters'])}`" for k, v in sorted(read[name]["tuned"].items())
        ]
    if people:
        title = f"## MSRD test queries that name a person and no title (n = {people['n']})"
        command = "`python scripts/person_queries.py --data ../shared/data/msrd-movies --results runs/msrd`"
        head = f"| system | {people['measure']} | 95 % interval | p (Holm) against {people['baseline']} |"
        lines += ["", title, "", command, "", head, "| --- | ---: | ---: | ---: |"]
        for name, row in people["systems"].items():
            p = "" if row["p"] is None else f"{row['p']:.4f}"
            lines.append(f"| {name} | {row['mean']:.4f} | {row['low']:.3f} to {row['high']:.3f} | {p} |")
    for title, name in _EXPERIMENTS:
        if figures[name]:
            shown = [*(step.command for step in needed(commands[name])), commands[name]]
            lines += [
                "",
                f"## {title}",
                "",
                *(f"    python {c}".replace("{data}", "../shared/data") for c in shown),
                "",
            ]
            lines += experiment(flags.runs / name, figures[name])
    lines += peers(flags.runs, commands)
    if bench:
        command = (
            "`python scripts/benchmark.py --data ../shared/data/msrd-movies --device cpu` (compare ratios, not times)"
        )
        lines += ["", "## Speed", "", command, "", "| what | figures |", "| --- | --- |"]
        for name, row in bench["figures"].items():
            lines.append(f"| {name} | {', '.join(f'{key} {value:.3g}' for key, value in row.items())} |")
    lines += [
        "",
        "## Minutes of each step",
        "",
        "`python scripts/reproduce.py`",
        "",
        "| step | minutes | commit |",
        "| --- | ---: | --- |",
    ]
    lines += [
        f"| {name} | {cost['seconds'] / 60:.1f}{', its last part' if cost['resumed'] else ''} "
        f"| {cost.get('commit', 'not recorded')} |"
        for name, cost in costs.items()
    ]
    with whole_file(flags.out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before, rest = _README.read_text(encoding="utf-8").split("<!-- results -->")
    told = f"{num_met} of {len(GOALS)} goals are met; these are not, or not measured yet:"
    text = (
        "\n".join([f"{before}<!-- results -->", *chosen, "", told, "", *missed, "<!-- /results -->"])
        + rest.split("<!-- /results -->")[1]
    )
    with whole_file(_README) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written: {flags.out}, {_README}")


if __name__ == "__main__":
    main(run)
