"""Which arms a query can do without, or needs less deep, learned from clicks, and what that saves.

python scripts/experiments/arms.py --config configs/experiments/arms.yaml --data FOLDER --out DIR [--seeds 10]
    [--budgets 5 10 20] [--policy.before.costs '{dense: 3}']
    [--policy.before.drawn_cost 0.01 --policy.before.learner.shallow '[10, 30]'] [--dotted.overrides …]

The config's policy of cuts first learns from clicks on pages of all arms, as in simulate.py. Its beliefs about the
candidates that each arm returned then teach the learner of the policy that decides `before`, which knows only the
query, how much recall is lost where some arms do not run, or (shallow) are drawn less deep. Frozen, with a price that
keeps the mean cost of arms on dev, it chooses arms for each test query; what they return is fused as ever and cut at
the same number for all. Beside it: the best static choice of arms and depths on dev at the same mean cost, two of them
mixed where need be, and hindsight. Writes DIR/results.json, table.md and frontier.png; each seed's outcome is kept
under DIR/seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError, construct, find_class
from ltrr.evaluation.cut_report import cell
from ltrr.evaluation.plots import tidy
from ltrr.evaluation.regret import mean_of
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.feedback.clicks import PositionBased
from ltrr.files import content_key
from ltrr.learners.arm_loss import ArmLossLearner
from ltrr.learners.relevance import RelevanceLearner
from ltrr.policies.arm_choices import Costs, ListedArms, feasible_arms
from ltrr.policies.cut import CutPolicy
from ltrr.simulation.arms import Choices, mixed, recall_of_choices, taken
from ltrr.simulation.kept import check_world, kept
from ltrr.simulation.loop import Customers, learn
from ltrr.simulation.splits import Fold, by_split, make_fold
from ltrr.system.simulated import num_of, order_of, pools_reader, section_of, settings_of, world_of
from ltrr.system.system import System, open_systems

_REVISION = 4  # of what makes a seed's outcome
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of all arms' cost
_LOSS = 0.003  # of recall, that is worth nothing
_FORM = "+.4f"  # of numbers in the table
_SHOWN = 31  # choices in the table; where there are more, only those on a hull of static ones
Values = Sequence[Mapping[str, np.ndarray]]  # one a seed: "dev" and "test" -> (Q, N) predicted values of choices


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/experiments/arms.yaml",
        "runs/arms",
        lambda parser: (
            parser.add_argument("--seeds", type=int, default=10),
            parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10, 20], help="candidates ranked"),
            parser.add_argument("--eta", type=float, default=1.0, help="position k is looked at with k^-eta"),
            parser.add_argument("--noise", type=float, default=0.1, help="clicks on what is seen and not relevant"),
            parser.add_argument("--split", default="test", help="the queries that are searched, in place of test"),
        ),
    )
    if flags.seeds < 1 or min(flags.budgets) < 1:
        raise ConfigError("--seeds, --budgets: must be 1 or more")
    if flags.split == "dev":
        print("note: --split dev: it also sets prices and static choices: good for choosing settings only, no result")
    (system,) = open_systems(flags.config, overrides, hold_out=flags.split)
    if max(flags.budgets) > (num := num_of(system)):
        raise ConfigError(f"--budgets: {max(flags.budgets)} is above policy.num, {num}, the deepest cut")
    choices = choices_of(system, max(flags.budgets))

    # 1) What every choice of arms finds.
    read = pools_reader(system, policy_of(system, max(flags.budgets)))
    parts = by_split(read, train="train", dev="dev", test=flags.split)
    order = order_of(system, parts.dev)
    recall = [recall_of_choices(choices.table, pools, order, flags.budgets) for pools in (parts.dev, parts.test)]
    fold = make_fold(parts, order, num, ())
    check_world(flags.out / "seeds", world_of(system, parts))

    # 2) What the policy learns, with each seed, and how it compares.
    names = _names(system, choices)
    results: dict[str, Any] = {"dataset": system.dataset.name, "arms": system.drawn}
    results |= {"costs": choices.table.costs.tolist(), "choices": names, "seeds": flags.seeds, "K": {}}
    curves = {}
    for budget in flags.budgets:
        losses = [
            kept(_path(flags, system, budget, seed), lambda s=seed, b=budget: learned(flags, system, fold, b, s))
            for seed in tqdm(range(flags.seeds), f"K={budget}", unit="seed")
        ]
        values = [{name: choices.values(each) for name, each in seed.items()} for seed in losses]
        found = Choices(choices.table.costs, recall[0][budget], recall[1][budget])
        results["K"][str(budget)] = compared(found, values, parts.test.groups)
        results["K"][str(budget)]["static"] = dict(zip(names, found.test.mean(axis=0).tolist(), strict=True))
        curves[budget] = found.frontiers([seed["test"] for seed in values])
    write_experiment(flags.out, results, report(results), frontier=plot(curves))


def choices_of(system: System, deepest: int) -> ListedArms:
    """The choices of arms and depths of the policy that decides before the cut."""
    before = system.settings.policy.get("before") or {}
    costs = before.get("costs") or {}
    if not isinstance(costs, dict) or not all(isinstance(cost, int | float) and cost > 0 for cost in costs.values()):
        raise ConfigError(f"policy.before.costs: {costs!r} is no mapping of arms to costs above 0")
    shallow = (before.get("learner") or {}).get("shallow") or []
    depths = {name: system.depths[name] for name in system.drawn}
    choices = feasible_arms(depths, shallow, Costs(costs, before.get("drawn_cost") or 0.0), deepest)
    if not isinstance(choices, ListedArms):
        raise ConfigError("policy.before.learner.shallow: more choices than can be listed: hindsight is not known")
    return choices


def policy_of(system: System, budget: int, seed: int = 0) -> CutPolicy:
    """The policy of cuts, with all arms on."""
    section = {key: value for key, value in section_of(system, budget).items() if key != "before"}
    return cast(CutPolicy, system.policies.unpriced(section, seed))


def learned(flags: Any, system: System, fold: Fold, budget: int, seed: int) -> dict[str, np.ndarray]:
    """What one seed expects to be lost for dev and test queries, (Q, P)."""
    spec = dict(system.settings.policy["before"]["learner"])
    cls = find_class("policy.before.learner", spec.pop("class", ""))
    learner: ArmLossLearner = construct("policy.before.learner", cls, spec | {"cut": budget})
    policy, num, rng = policy_of(system, budget, seed), num_of(system), np.random.default_rng([seed, budget, False])
    customers = Customers(PositionBased.power(num, flags.eta), flags.noise)
    for _, log in learn(policy, fold, customers, num=num, passes=[1], rng=rng, seed=seed):
        learner.refit(log.rounds(policy), seed, cast(RelevanceLearner, policy.learner))
    pools = {"dev": fold.dev.pools, "test": fold.test.pools}
    return {name: learner.losses(part.features).astype(np.float32) for name, part in pools.items()}


def _path(flags: Any, system: System, budget: int, seed: int) -> Any:
    settings = settings_of(system)
    for free in ("costs", "drawn_cost", "budget"):  # what is lost does not depend on them
        settings["policy"]["before"].pop(free, None)
    key = content_key(_REVISION, settings, flags.eta, flags.noise, flags.split)
    return flags.out / "seeds" / f"{key}-{budget}-{seed}.npz"


def compared(choices: Choices, values: Values, groups: np.ndarray) -> dict[str, Any]:
    """The policy at shares of all arms' cost, static choices and hindsight there."""
    costs, full, hull = choices.costs, choices.test[:, -1], choices.hull

    def static(cost: float) -> np.ndarray:
        return full - mixed(costs, choices.test, hull, cost)

    rows = []
    for share in _SHARES:
        if (target := share * costs.max()) < costs.min():
            continue
        chosen = [choices.at_cost(seed["dev"], seed["test"], target) for seed in values]
        cost = float(np.mean([costs[c].mean() for c in chosen]))
        lost = full - np.stack([taken(choices.test, c) for c in chosen])
        hindsight = full - taken(choices.test, choices.at_cost(choices.test, choices.test, cost))
        row = {"policy": lost, "static": static(cost)[None], "saved": static(cost)[None] - lost}
        intervals = {name: mean_of(each, groups)._asdict() for name, each in row.items()}
        rows.append({"share": share, "cost": cost / costs.max(), "hindsight": float(hindsight.mean())} | intervals)
    chosen = [choices.within_loss(seed["dev"], seed["test"], _LOSS) for seed in values]
    free = {
        "policy": (
            np.mean([costs[c].mean() for c in chosen]),
            np.stack([full - taken(choices.test, c) for c in chosen]),
        )
    }
    least = choices.static_within_loss(_LOSS)
    free["static"] = np.float64(least), static(least)[None]
    saved = {
        name: {"saved": 1 - float(cost) / costs.max(), "lost": mean_of(lost, groups)._asdict()}
        for name, (cost, lost) in free.items()
    }
    return {"full": float(full.mean()), "rows": rows, "saved_within_loss": saved, "hull": hull}


def _names(system: System, choices: ListedArms) -> list[str]:
    """Arms that run; their depth where it is not the whole one."""
    whole = choices.table.depths[-1]
    return [
        " + ".join(
            f"{arm} to {d}" if d < most else arm for arm, d, most in zip(system.drawn, row, whole, strict=True) if d
        )
        for row in choices.table.depths
    ]


def report(results: Mapping[str, Any]) -> list[str]:
    lines = []
    header = (
        "cost aimed at",
        "cost",
        "policy loses",
        "static choices lose at that cost",
        "policy better by",
        "hindsight",
    )
    for budget, row in results["K"].items():
        free = row["saved_within_loss"]
        lines += [
            f"K = {budget}: all arms find {row['full']:.4f}. Where it loses {_LOSS} on dev, the policy saves "
            f"{free['policy']['saved']:.1%} of the arms' cost and loses",
            f"{cell(free['policy']['lost'], _FORM)} here; static choices save {free['static']['saved']:.1%} and lose "
            f"{cell(free['static']['lost'], _FORM)}.",
            "",
        ]
        rows = [
            (
                *(f"{each['share']:.0%}", f"{each['cost']:.1%}"),
                *(cell(each[name], _FORM) for name in ("policy", "static", "saved")),
                format(each["hindsight"], _FORM),
            )
            for each in row["rows"]
        ]
        lines += [*markdown(header, rows), ""]
    on_hull = {n for row in results["K"].values() for n in row["hull"]}
    few = len(results["choices"]) <= _SHOWN
    rows = [
        (name, f"{cost:g}", *(f"{row['static'][name]:.4f}" for row in results["K"].values()))
        for n, (name, cost) in enumerate(zip(results["choices"], results["costs"], strict=True))
        if few or n in on_hull
    ]
    lines += markdown(("arms", "cost", *(f"recall, K = {budget}" for budget in results["K"])), rows)
    if not few:
        lines.append(f"| the best on dev at some cost, of {len(results['choices'])} |{' |' * (len(results['K']) + 1)}")
    foot = "Cost: of the arms that run, of all arms'. Loses: of recall. Intervals (95 %): groups of queries and seeds."
    return [*lines, "", foot]


def plot(curves: Mapping[int, Mapping[str, np.ndarray]]) -> Figure:
    """Recall over the mean cost of arms."""
    figure = Figure(figsize=(4 * len(curves), 4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (budget, curve) in zip(panels, curves.items(), strict=True):
        panel.plot(*curve["static"].T, "k--", label="static choices, mixed")
        panel.plot(*curve["policy"][np.argsort(curve["policy"][:, 0])].T, label="learned")
        panel.set(title=f"{budget} candidates", xlabel="mean cost of arms")
        tidy(panel)
    panels[0].set_ylabel("recall")
    panels[0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(run)
