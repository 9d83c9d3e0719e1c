"""Before retrieval: which arms a query can do without, or needs less deep, learned from clicks, and what that saves.

python scripts/simulate_arms.py --config configs/arms_policy.yaml --data FOLDER --out DIR [--seeds 10]
    [--budgets 5 10 20] [--costs '{dense: 3}'] [--drawn_cost 0.01 --model.init_args.shallow '[10, 30]']
    [--dotted.overrides …]

First all arms run for every train query and a policy of cuts learns from clicks, as in simulate.py. What it believes of
the candidates that each arm returned then teaches a second one, that knows only the query, what is lost where some arms
do not run, or (shallow) are drawn less deep. Frozen, with a price that keeps the mean cost of arms on dev, it chooses
arms for each test query; what they return is fused as ever and cut at the same number for all. Beside it: the best
static choice of arms and depths on dev at the same mean cost, two of them mixed where need be, and hindsight. Writes
DIR/results.json, table.md and frontier.png; each seed's outcome is kept under DIR/seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import yaml
from _simulation import DEPTH, opened, order_of, same_world, searched, worlds
from _world import EXPLORE, world_key, world_of
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError, construct, find_class
from ltrr.evaluation.regret import Interval, mean_of
from ltrr.files import atomic_write, content_key
from ltrr.learners.relevance import RelevanceLearner
from ltrr.policies.arms import Costs, ListedArms, feasible_arms
from ltrr.policies.price import best, price_for
from ltrr.policies.table import Table
from ltrr.simulation.allocations import outcomes

_REVISION = 3  # of what makes a seed's outcome
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of all arms' cost
_PRICES = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 80)])
_LOSS = 0.003  # of recall, that is worth nothing
_SHOWN = 31  # choices in the table; where there are more, only those on a hull of static ones


class Truth(NamedTuple):
    """What each choice of arms finds."""

    recall: np.ndarray  # (Q, N) of the first `cut`
    groups: np.ndarray  # (Q,)


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/arms_policy.yaml",
        "runs/arms",
        lambda parser: (
            parser.add_argument("--seeds", type=int, default=10),
            parser.add_argument(
                "--budgets", type=int, nargs="+", default=[5, 10, 20], help="candidates that are ranked"
            ),
            parser.add_argument("--costs", default="{}", help="YAML of an arm's cost where it runs (default 1)"),
            parser.add_argument("--drawn_cost", type=float, default=0.0, help="of each candidate that an arm draws"),
            parser.add_argument("--eta", type=float, default=1.0, help="position k is looked at with k^-eta"),
            parser.add_argument("--noise", type=float, default=0.1, help="clicks on what is seen and not relevant"),
            parser.add_argument("--explore", default=EXPLORE, help="YAML of a class of ltrr.policies.explorers"),
            parser.add_argument("--split", default="test", help="the queries that are searched, in place of test"),
        ),
    )
    if flags.seeds < 1 or min(flags.budgets) < 1:
        raise ConfigError("--seeds, --budgets: must be 1 or more")
    vars(flags).update(passes=[1], cascade=False, folds=0, learn="train", price="dev", change=None)
    settings, system = opened(flags, overrides, ["train", "dev", flags.split])
    if flags.split in ("train", "dev"):
        told = (
            "teaches" if flags.split == "train" else "sets prices and static choices: good for choosing settings only"
        )
        print(f"note: --split {flags.split}: it also {told}; this is no result")
    costs = yaml.safe_load(flags.costs)
    if not isinstance(costs, dict) or not all(isinstance(cost, int | float) and cost > 0 for cost in costs.values()):
        raise ConfigError(f"--costs: {flags.costs!r} is no mapping of arms to costs above 0")
    if flags.drawn_cost < 0:
        raise ConfigError(f"--drawn_cost: {flags.drawn_cost} is below 0")
    arms, shallow = system.fusion_arms, list((settings["model"].get("init_args") or {}).get("shallow") or [])
    feasible = feasible_arms(dict.fromkeys(arms, DEPTH), shallow, Costs(costs, flags.drawn_cost), max(flags.budgets))
    if not isinstance(feasible, ListedArms):
        raise ConfigError("model.shallow: more choices of depths than can be listed, so hindsight is not known")
    table = feasible.table
    truth: dict[str, dict[int, Truth]] = {}
    order = order_of(system, searched(system, ["dev"]))
    for split in ("dev", flags.split):
        whole = searched(system, [split])
        decisions = Table(
            np.repeat(table.depths, len(flags.budgets), axis=0),
            np.tile(np.array(flags.budgets, np.int32), len(table)),
            np.repeat(table.costs, len(flags.budgets)),
        )
        found = outcomes(decisions, whole.pool, order, whole.gains, whole.positives)
        truth[split] = {k: Truth(found[:, i :: len(flags.budgets)], whole.groups) for i, k in enumerate(flags.budgets)}
    (parts,) = worlds(system, flags, settings)
    if max(flags.budgets) > (num := parts["train"].grades.shape[1]):
        raise ConfigError(f"--budgets: {max(flags.budgets)} is above data.num_candidates, {num}, the deepest cut")
    same_world(flags.out / "seeds", [*map(system.identity, arms)], [parts])
    num_context = len(system.context.columns)
    results: dict[str, Any] = {"dataset": system.dataset.name, "arms": arms, "costs": table.costs.tolist()}
    results |= {"choices": _names(table, arms), "seeds": flags.seeds, "K": {}}
    curves = {}
    for budget in flags.budgets:
        known = {name: part.known.query[:, :num_context] for name, part in parts.items() if name in ("dev", "test")}
        values = []
        for seed in tqdm(range(flags.seeds), f"K={budget}", unit="seed"):
            told = learned(flags, settings, parts, known, budget, seed)
            values.append({name: feasible.values(losses) for name, losses in told.items()})
        dev, test = truth["dev"][budget], truth[flags.split][budget]
        row, curves[budget] = compared(table, values, dev, test)
        row["static"] = {n: float(r) for n, r in zip(_names(table, arms), test.recall.mean(axis=0), strict=True)}
        results["K"][str(budget)] = row
    lines = report(results)
    flags.out.mkdir(parents=True, exist_ok=True)
    for name, text in {"results.json": json.dumps(results, indent=1), "table.md": lines}.items():
        with atomic_write(flags.out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    plot(flags.out / "frontier.png", curves)
    print(lines)
    print(f"written: {flags.out}/results.json, table.md, frontier.png")


def learned(flags: Any, settings: Mapping, parts: Mapping, known: Mapping, budget: int, seed: int) -> dict:
    """What one seed's heads expect to be lost for dev and test queries, (Q, P); read where it was made before."""
    data = world_key(settings)
    key = content_key(_REVISION, settings["model"], data, flags.eta, flags.noise, flags.explore, flags.split)
    path = flags.out / "seeds" / f"{key}-{budget}-{seed}.npz"
    if not path.exists():
        spec = settings["model"]
        module = construct("model", find_class("model", spec["class_path"]), dict(spec.get("init_args") or {}))
        module.hparams["cut"] = budget
        teacher, rng = RelevanceLearner(), np.random.default_rng([seed, budget, False])
        world = world_of(flags, parts["train"].grades.shape[1], False)
        for _, log in world.learn(parts, teacher, budget, rng, seed):
            module.refit(log, seed, teacher)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: module.losses(own).astype(np.float32) for name, own in known.items()})
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def compared(table: Table, values: list[dict], dev: Truth, test: Truth) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The policy at shares of all arms' cost, static choices and hindsight there; curves of (cost, recall)."""
    most, full = table.costs.max(), test.recall[:, -1]
    hull = static_hull(table.costs, dev.recall.mean(axis=0))
    rows = []
    for share in _SHARES:
        target = share * most
        if target < table.costs.min():
            continue
        chosen = [best(v["test"], table.costs, price_for(v["dev"], table.costs, target)) for v in values]
        cost = float(np.mean([table.costs[c].mean() for c in chosen]))
        lost = full - np.stack([_at(test.recall, c) for c in chosen])
        static = full - mixed(table.costs, test.recall, hull, cost)
        told = {"policy": mean_of(lost, test.groups), "static": mean_of(static[None], test.groups)}
        told["saved"] = mean_of(static[None] - lost, test.groups)
        hindsight = _at(test.recall, best(test.recall, table.costs, price_for(test.recall, table.costs, cost)))
        row = {name: interval._asdict() for name, interval in told.items()}
        rows.append({"share": share, "cost": cost / most, "hindsight": float((full - hindsight).mean())} | row)
    chosen = [[best(v["test"], table.costs, price) for price in _PRICES] for v in values]
    policy = np.array([[[table.costs[c].mean(), _at(test.recall, c).mean()] for c in own] for own in chosen]).mean(0)
    costs = np.linspace(table.costs[hull[0]], most, 100)
    static = np.array([[cost, mixed(table.costs, test.recall, hull, cost).mean()] for cost in costs])
    curves = {"policy": policy, "static": static}
    free = {"policy": _cheapest(table, values, dev, test), "static": _cheapest_static(table, hull, dev, test)}
    return {"full": float(full.mean()), "rows": rows, "saved_within_loss": free, "hull": hull}, curves


def _cheapest(table: Table, values: list[dict], dev: Truth, test: Truth) -> dict[str, Any]:
    """Each seed at the price at which its choices cost least on dev among those that lose at most _LOSS there."""
    enough, costs, lost = dev.recall[:, -1].mean() - _LOSS, [], []
    for v in values:
        tried = [best(v["dev"], table.costs, price) for price in _PRICES]
        good = [p for p, c in zip(_PRICES, tried, strict=True) if _at(dev.recall, c).mean() >= enough]
        chosen = best(v["test"], table.costs, max(good, default=0.0))
        costs.append(table.costs[chosen].mean())
        lost.append(test.recall[:, -1] - _at(test.recall, chosen))
    return {
        "saved": 1 - float(np.mean(costs)) / table.costs.max(),
        "lost": mean_of(np.stack(lost), test.groups)._asdict(),
    }


def _cheapest_static(table: Table, hull: list[int], dev: Truth, test: Truth) -> dict[str, Any]:
    """The same of static choices and their mixtures."""
    enough = dev.recall[:, -1].mean() - _LOSS
    tried = np.linspace(table.costs[hull[0]], table.costs.max(), 400)
    good = [cost for cost in tried if mixed(table.costs, dev.recall, hull, cost).mean() >= enough]
    cost = float(min(good, default=table.costs.max()))
    lost = test.recall[:, -1] - mixed(table.costs, test.recall, hull, cost)
    return {"saved": 1 - cost / table.costs.max(), "lost": mean_of(lost[None], test.groups)._asdict()}


def static_hull(costs: np.ndarray, recall: np.ndarray) -> list[int]:
    """Choices that no mixture of others beats, by (N,) costs ascending and mean recall."""
    hull: list[int] = []
    for n in range(len(costs)):
        if hull and recall[n] <= recall[hull[-1]]:
            continue
        if hull and costs[n] == costs[hull[-1]]:
            hull.pop()
        while len(hull) > 1 and _slope(costs, recall, hull[-2], n) >= _slope(costs, recall, hull[-2], hull[-1]):
            hull.pop()
        hull.append(n)
    return hull


def _slope(costs: np.ndarray, recall: np.ndarray, a: int, b: int) -> float:
    return (recall[b] - recall[a]) / (costs[b] - costs[a])


def mixed(costs: np.ndarray, recall: np.ndarray, hull: list[int], cost: float) -> np.ndarray:
    """(Q,) recall where a share of queries has one choice of the hull and the rest the next, at that mean cost."""
    upper = next((i for i, n in enumerate(hull) if costs[n] >= cost), len(hull) - 1)
    lower = max(upper - 1, 0)
    a, b = hull[lower], hull[upper]
    share = 1.0 if a == b else float(np.clip((cost - costs[a]) / (costs[b] - costs[a]), 0, 1))
    return (1 - share) * recall[:, a] + share * recall[:, b]


def _at(recall: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.take_along_axis(recall, chosen[:, None], 1)[:, 0]


def _names(table: Table, arms: list[str]) -> list[str]:
    """Arms that run; their depth where it is not the whole one."""
    named = [
        [f"{arm} to {d}" if d < DEPTH else arm for arm, d in zip(arms, row, strict=True) if d] for row in table.depths
    ]
    return [" + ".join(row) for row in named]


def _cell(told: Mapping[str, float] | Interval) -> str:
    told = told if isinstance(told, Mapping) else told._asdict()
    return f"{told['mean']:+.4f} ({told['low']:+.4f} to {told['high']:+.4f})"


def report(results: Mapping[str, Any]) -> str:
    lines = []
    for budget, row in results["K"].items():
        free = row["saved_within_loss"]
        lines += [
            f"K = {budget}: all arms find {row['full']:.4f}. Where it loses {_LOSS} on dev, the policy saves "
            f"{free['policy']['saved']:.1%} of the arms' cost and loses",
            f"{_cell(free['policy']['lost'])} here; static choices save {free['static']['saved']:.1%} and lose "
            f"{_cell(free['static']['lost'])}.",
            "",
            "| cost aimed at | cost | policy loses | static choices lose at that cost | policy better by | hindsight |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for each in row["rows"]:
            cells = [
                f"{each['share']:.0%}",
                f"{each['cost']:.1%}",
                *(_cell(each[n]) for n in ("policy", "static", "saved")),
            ]
            lines.append(f"| {' | '.join(cells)} | {each['hindsight']:+.4f} |")
        lines.append("")
    lines += ["| arms | cost | " + " | ".join(f"recall, K = {budget}" for budget in results["K"]) + " |"]
    lines.append(f"| --- | ---: |{' ---: |' * len(results['K'])}")
    best = {n for row in results["K"].values() for n in row["hull"]}
    for n, (name, cost) in enumerate(zip(results["choices"], results["costs"], strict=True)):
        if len(results["choices"]) > _SHOWN and n not in best:
            continue
        cells = [f"{row['static'][name]:.4f}" for row in results["K"].values()]
        lines.append(f"| {name} | {cost:g} | {' | '.join(cells)} |")
    if len(results["choices"]) > _SHOWN:
        lines.append(f"| the best on dev at some cost, of {len(results['choices'])} |{' |' * (len(results['K']) + 1)}")
    lines += [
        "",
        "Cost: of the arms that run, of all arms'. Loses: of recall. Intervals (95 %): groups of queries and seeds.",
    ]
    return "\n".join(lines)


def plot(path: Any, curves: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Recall over the mean cost of arms."""
    figure, panels = plt.subplots(1, len(curves), figsize=(4 * len(curves), 4), layout="constrained", squeeze=False)
    for panel, (budget, own) in zip(panels[0], curves.items(), strict=True):
        panel.plot(*own["static"].T, "k--", label="static choices, mixed")
        order = np.argsort(own["policy"][:, 0])
        panel.plot(*own["policy"][order].T, label="learned")
        panel.set_title(f"{budget} candidates")
        panel.set_xlabel("mean cost of arms")
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("recall")
    panels[0, 0].legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(run)
