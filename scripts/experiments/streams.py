"""What clicks teach on streams of recurring queries: four data sets, three budgets, other customers, other worlds.

python scripts/experiments/streams.py [--shared ../shared/data] [--out runs/streams] [--seeds 10] [--only msrd-5 drift]

Rows SET-5, SET-10 and SET-20: Zipf 1 with 60,000 rounds at these means of candidates; SET-few: Zipf .8 with 16,000
rounds at a mean of 5. SET-arms: arms cost 1, dense 3; a belief that chooses arms for each query, beside beliefs that
always run the same set, at equal total cost, 20,000 rounds, half the seeds, without networks. The other rows are MSRD
at a mean of 5, where customers look, click or ask otherwise than usual, the belief goes without one of its parts, or
the world changes in the middle; half the seeds. Writes OUT/results.json, table.md and streams.png, where rows that
--only leaves out stay as they were. Each system's rounds are kept below OUT/SET-…/rounds, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ltrr.cli.arguments import main
from ltrr.cli.stream import FURTHER, compare
from ltrr.config import check_known
from ltrr.data.synthetic_music.catalogue import write_catalogue
from ltrr.evaluation.intervals import over_seeds
from ltrr.evaluation.plots import tidy
from ltrr.evaluation.stream_report import STRATA
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.simulation.stream import Customers
from ltrr.system.system import open_systems

CONFIG = Path("configs/stream.yaml")
SETS = {
    "msrd": ("msrd-movies", "qrels-strict"),
    "strategyqa": ("strategyqa-facts", "qrels"),
    "boolq": ("boolq-passages", "qrels"),
    "catalogue": (None, "qrels"),  # the synthetic one
}
MAIN = [(1.0, 60_000, 5.0), (1.0, 60_000, 10.0), (1.0, 60_000, 20.0), (0.8, 16_000, 5.0)]
ROBUST: dict[str, tuple[str, dict[str, Any]]] = {
    "cascade": ("customers stop at what they want", {"customers": Customers(satisfied=0.7)}),
    "eta2": ("they look at few places, eta 2", {"customers": Customers(eta=2.0)}),
    "attraction.3": ("they click on 3 of 10 that they want", {"customers": Customers(attraction=0.3)}),
    "attraction.1": (
        "they click on 1 of 10 that they want and 1 of 20 others",
        {"customers": Customers(attraction=0.1, noise=0.05)},
    ),
    "noise.3": ("they click on 3 of 10 that they do not want", {"customers": Customers(noise=0.3)}),
    "delay": ("clicks come 1,000 rounds late", {"customers": Customers(delay=1_000)}),
    "duplicates": ("half of the rounds type another text", {"duplicates": 0.5}),
    "whole": ("the belief as it is, beside the next ones", {}),
    "unjudged": (
        "nothing is judged: the belief is calibrated on clicks",
        {"overrides": ["--stream.systems.belief.calibration", "null"]},
    ),
    "still": (
        "the belief explores nothing",
        {"overrides": ["--stream.systems.belief.explore", "{class: ltrr.policies.worth.ReservedPlace, share: 0}"]},
    ),
    "apart": (
        "the belief's candidates tell nothing of each other",
        {"overrides": ["--stream.systems.belief.coupling", "0"]},
    ),
    "same": (
        "the belief gives all queries the same cut",
        {"overrides": ["--stream.systems.belief.same_cut", "true"]},
    ),
    "face": (
        "the belief thinks that all places are looked at",
        {"overrides": ["--stream.systems.belief.eta", "0"]},
    ),
    "plain": ("the belief has no network", {"overrides": ["--stream.systems.belief.learner", "null"]}),
    "alone": ("queries tell nothing of others like them", {"alone": True}),
    "drift": ("a tenth of the queries want something else", {"change": "drift"}),
    "dies": ("the dense arm dies", {"change": "dies:dense"}),
    "joins": ("the dense arm joins", {"change": "joins:dense"}),
    "arrives": ("a tenth of the documents arrive", {"change": "arrives"}),
}
SYSTEMS = ("fixed", "rule", "prior", "network", "boost", "belief")
_USUAL: dict[str, Any] = {"duplicates": 0.0, "change": None, "at": None, **dict.fromkeys(FURTHER)}  # flags
_ARMS = {"zipf": 1.0, "rounds": 20_000, "mean_cut": 5.0}
_PARTS = "same", "face", "still", "alone", "apart", "plain", "unjudged"
_COMPARED = ("network", "rule"), ("network", "prior"), ("belief", "rule")
_NETWORK = (  # the belief's prior alone, shown where queries are new
    "{class: ltrr.policies.belief.Belief, evidence: {class: ltrr.feedback.evidence.tally.Tally}, "
    "learner: {class: ltrr.learners.prior.PriorLearner}, features: [embedding], heed: 0, "
    "explore: {class: ltrr.policies.worth.ReservedPlace, share: 0}}"
)


def _data(flags: Any, name: str) -> list[str]:
    """Overrides that name a data set."""
    folder, qrels = SETS[name]
    path = Path(flags.shared) / folder if folder else flags.out / "catalogue"
    return ["--data.path", str(path), "--data.qrels", qrels]


def row_of(flags: Any, name: str, key: str, label: str, **options: Any) -> dict[str, Any]:
    """One comparison; options: those of `simulate --stream`, and `overrides` of its config."""
    overrides = options.pop("overrides", [])
    if key == f"{name}-few":
        overrides = [*overrides, "--stream.systems.network", _NETWORK]
    (system,) = open_systems(CONFIG, [*_data(flags, name), *overrides])
    given = {"customers": Customers(), **_USUAL, **options}
    out = flags.out / f"{name}-{given['zipf']:g}-{given['mean_cut']:g}"
    setting = SimpleNamespace(out=out, first_seed=0, groups="all", **given)
    results, _, served = compare(system, setting, given["customers"])
    shown = {stratum: part["systems"] for stratum, part in results["strata"].items()}
    systems = [system for system in SYSTEMS if system in shown["all"]]
    return {
        "id": key,
        "set": name,
        "label": label,
        "settings": results["settings"],
        "shares": {stratum: part["share"] for stratum, part in results["strata"].items()},
        "recall": {s: {n: v[n]["recall"] for n in systems} for s, v in shown.items() if v},
        "success": {n: shown["all"][n]["success"] for n in systems},
        "cost": {s: {n: v[n]["cost"] for n in systems} for s, v in shown.items() if v},
        "paired": results["paired"],
        "paired_by_query": results["paired_by_query"],
        "paired_new": results["paired_new"],
        "rounds_until_above": results.get("rounds_until_above"),
        "belief_by_seed": served["belief"].recall.mean(axis=1).tolist(),
        "commit": commit(),
    }


def arms_row(flags: Any, name: str, seeds: int) -> dict[str, Any]:
    """A belief that chooses arms, beside static sets of arms, at equal total cost."""
    data = _data(flags, name)
    (system,) = open_systems(CONFIG, data)
    costs = {arm: 3.0 if arm == "dense" else 1.0 for arm in system.drawn}
    total = 5.0 + sum(costs.values())
    belief = {"class": "ltrr.policies.belief.Belief", "evidence": {"class": "ltrr.feedback.evidence.tally.Tally"}}
    systems: dict[str, Any] = dict.fromkeys(system.settings.stream.systems)
    for size in range(1, len(costs) + 1):
        for some in combinations(costs, size):
            budget = total - sum(costs[arm] for arm in some)
            depths = {arm: 100 * (arm in some) for arm in costs}
            systems["+".join(some)] = {**belief, "budget": budget, "depths": depths}
    systems["belief"] = {**belief, "class": "ltrr.policies.arm_belief.ArmBelief", "budget": total, "costs": costs}
    overrides = [part for key, spec in systems.items() for part in (f"--stream.systems.{key}", json.dumps(spec))]
    (system,) = open_systems(CONFIG, [*data, *overrides])
    given = {**_USUAL, **_ARMS, "seeds": seeds, "arm_costs": costs}
    setting = SimpleNamespace(out=flags.out / f"{name}-arms", first_seed=0, groups="all", **given)
    results, *_ = compare(system, setting, Customers())
    whole = results["strata"]["all"]["systems"]
    best = max((each for each in whole if each != "belief"), key=lambda each: whole[each]["recall"])
    over = results["paired"][f"belief-{best}"]
    return {"id": f"{name}-arms", "set": name, "commit": commit(), "systems": whole, "best": best, "over_best": over}


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/streams"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", metavar="ROW", help="rows, all by default")
    flags = parser.parse_args()
    regimes = {
        f"{name}-{mean:g}" if zipf == 1 else f"{name}-few": (name, zipf, rounds, mean)
        for zipf, rounds, mean in MAIN
        for name in SETS
    }
    of_arms = {f"{name}-arms": name for name in SETS}
    every = [*regimes, *ROBUST, *of_arms]
    wanted = every if flags.only is None else flags.only
    for key in wanted:
        check_known("--only", key, every)
    if any(key.startswith("catalogue") for key in wanted):
        write_catalogue(flags.out / "catalogue")
    measured = {}
    for key, (name, zipf, rounds, mean) in regimes.items():
        if key in wanted:
            label = f"{name}, Zipf {zipf:g}, {rounds:,} rounds, mean {mean:g}"
            regime = {"zipf": zipf, "rounds": rounds, "mean_cut": mean, "seeds": flags.seeds}
            measured[key] = row_of(flags, name, key, label, **regime)
    regime = {"zipf": 1.0, "rounds": 60_000, "mean_cut": 5.0, "seeds": max(2, flags.seeds // 2)}
    for key, (label, options) in ROBUST.items():
        if key in wanted:
            measured[key] = row_of(flags, "msrd", key, label, **regime, **options)
    chosen = {key: arms_row(flags, name, max(2, flags.seeds // 2)) for key, name in of_arms.items() if key in wanted}
    known = flags.out / "results.json"  # rows that are not wanted now stay as they were measured
    before = json.loads(known.read_text()) if known.exists() else {"rows": []}
    measured = {row["id"]: row for row in before["rows"]} | measured
    chosen = {row["id"]: row for row in before.get("arms", [])} | chosen
    rows = [measured[key] for key in (*regimes, *ROBUST) if key in measured]
    arms = [chosen[key] for key in of_arms if key in chosen]
    write_experiment(flags.out, {"rows": rows, "arms": arms}, report(rows, arms), streams=by_stratum(rows))


def report(rows: list[dict[str, Any]], arms: list[dict[str, Any]]) -> list[str]:
    """Recall, differences and what else each row tells."""

    lines = [
        "Recall of the cut over all rounds, what is explored paid for; differences with 95 % intervals over seeds.",
        "",
    ]
    head = ["stream", "best rule", *SYSTEMS, "belief − rule", "belief − boost", "commit"]
    body = [
        [
            row["label"],
            row["settings"]["rule"],
            *(f"{row['recall']['all'][name]:.4f}" if name in row["recall"]["all"] else "-" for name in SYSTEMS),
            _shown(row["paired"]["belief-rule"]),
            _shown(row["paired"]["belief-boost"]),
            row.get("commit", ""),
        ]
        for row in rows
    ]
    lines += [
        *markdown(head, body, text=(0, 1, len(head) - 1)),
        "",
        "Recall by how often the same text was asked before, as rule / boost / belief.",
        "",
    ]
    strata = [*STRATA, "by-query", "test"]
    body = [
        [
            row["label"],
            *(
                " / ".join(f"{row['recall'][s][name]:.3f}" for name in ("rule", "boost", "belief"))
                if s in row["recall"]
                else "-"
                for s in strata
            ),
        ]
        for row in rows
    ]
    lines += markdown(["stream", *strata], body)
    if new := [row for row in rows if "network" in row["recall"]["all"]]:
        lines += ["", "Queries that were never asked before, or 1 to 9 times: recall at (candidates).", ""]
        systems = ("rule", "prior", "network", "boost", "belief")
        head = ["stream", "asked before", *systems, "network − rule", "network − prior", "belief − rule"]
        lines += markdown(head, [_of_new(row, s, systems) for row in new for s in row["paired_new"]], text=(0, 1))
    if arms:
        lines += [
            "",
            "Recall where arms cost 1 and dense 3, at (total cost); the best static set is chosen on these rounds.",
            "",
        ]
        head = ["set", "belief that chooses arms", "best static set", "all arms", "difference to the best static set"]
        body = []
        for row in arms:
            whole = max(row["systems"], key=lambda each: each.count("+"))
            cells = [
                f"{row['systems'][n]['recall']:.4f} ({row['systems'][n]['cost']:.2f})"
                for n in ("belief", row["best"], whole)
            ]
            cells[1] = f"{row['best']} {cells[1]}"
            body.append([row["set"], *cells, _shown(row["over_best"])])
        lines += markdown(head, body, text=(0, 2))
    by_id = {row["id"]: row for row in rows}
    whole = by_id.get("whole", {})
    parts = [by_id[key] for key in _PARTS if key in by_id and by_id[key]["commit"] == whole.get("commit")]
    if parts:
        lines += [
            "",
            f"Without a part, beside the whole belief's {whole['recall']['all']['belief']:.4f}, paired by seed.",
            "",
        ]
        lines += markdown(["without", "recall", "difference"], [_part(row, whole) for row in parts])
    changes = [row for row in rows if row["rounds_until_above"]]
    if changes:
        lines += ["", "Rounds after the change until a window of 500 rounds is above the rule again.", ""]
        lines += markdown(["change", "rounds"], [[row["label"], row["rounds_until_above"]["rule"]] for row in changes])
    return lines


def commit() -> str:
    """The commit that is checked out; "" without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _part(row: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """An ablation beside the whole belief of the same seeds."""
    difference = np.array(row["belief_by_seed"]) - np.array(whole["belief_by_seed"])
    shown = _shown(over_seeds(difference.tolist())._asdict())
    return [row["label"], f"{row['recall']['all']['belief']:.4f}", shown]


def _shown(difference: dict[str, Any]) -> str:
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"


def _of_new(row: dict[str, Any], stratum: str, systems: Sequence[str]) -> list[str]:
    """What systems reach, and spend, where queries are new."""
    cells = [f"{row['recall'][stratum][name]:.4f} ({row['cost'][stratum][name]:.2f})" for name in systems]
    found = row["paired_new"][stratum]
    return [row["label"], stratum, *cells, *(_shown(found[f"{a}-{b}"]) for a, b in _COMPARED)]


def by_stratum(rows: list[dict[str, Any]]) -> Figure:
    """Recall by earlier askings at a mean of 5 candidates, a panel for each data set."""
    shown = [row for row in rows if row["id"] == f"{row['set']}-5"]
    figure = Figure(figsize=(4 * max(len(shown), 1), 3.6), layout="constrained")
    for panel, row in zip(figure.subplots(1, max(len(shown), 1), squeeze=False)[0], shown, strict=False):
        strata = [s for s in STRATA if s in row["recall"]]
        for name in (system for system in SYSTEMS if system in row["recall"]["all"]):
            panel.plot(strata, [row["recall"][s][name] for s in strata], "o-", label=name)
        panel.set(title=row["set"], xlabel="earlier askings", ylabel="recall of the cut")
        tidy(panel)
        panel.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(run)
