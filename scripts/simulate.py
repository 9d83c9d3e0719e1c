"""A policy learns from simulated clicks how many candidates each query deserves; what that gains over a fixed number.

python scripts/simulate.py --config configs/policy.yaml --data FOLDER --out DIR [--seeds 10] [--budgets 5 10 20]
    [--passes 1] [--eta 1] [--noise 0.1] [--cascade] [--shuffle] [--no-perfect] [--log] [--folds 5] [--learn dev]
    [--change joins:ARM|leaves:ARM] [--explore '{class: ltrr.policies.explorers.UCB}'] [--dotted.overrides …]

Of the config `model`, `data` and the trainer's logger are read. Customers ask each train query once a pass, in random
order; the policy draws a cut of the fused union, the page shows what it lets through, clicks teach it. Then it is
frozen: its price is set on dev so that the mean cut there is the budget, and test queries are cut. Base: the best
non-learning system on dev at that fixed cut. All arms run for every query and are charged. Beside it the same with
perfect clicks: everything that is shown is looked at, and nothing else is clicked. Writes DIR/results.json, table.md,
frontier.png, regret.png and cuts.npz (what test queries got, for rank_costs.py); each seed's outcome is kept under
DIR/seeds, so that a killed run goes on.

--log: also DIR/rounds-K.npz, what the first seed logged at each budget, for train.py.
--cascade: customers look from the top until they are satisfied, the policy believes 1 / rank all the same.
--shuffle: every query is told another's features, so that there is nothing to gain.
--folds: all judged queries in so many folds of whole groups: one is tested, the next sets the price, the others teach.
--learn: another split than train, where arms were trained on train; --price likewise for dev. The same: split by group.
--weights: a further learner reorders the candidates from the same rounds (FusionWeightsLearner) and cuts them at K.
--change: after the first pass an arm joins, or falls silent; rows tell what one more pass teaches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from _policy_plots import CURVE, plot_frontier, plot_regret
from _simulation import ORDER, Part, opened, same_world, shuffled, worlds
from _world import EXPLORE, frozen, world_key, world_of
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError, construct, find_class
from ltrr.evaluation.regret import Chosen, at_mean, cost_saved, fixed, gap_closed, mean_of, oracle
from ltrr.files import atomic_write, content_key
from ltrr.learners.fusion_weights import FusionWeightsLearner
from ltrr.learners.rounds_data import write_rounds
from ltrr.types import Rounds

_REVISION = 2  # of what makes a seed's outcome, kept ones of others are not used
_WINDOWS = 40  # of the rounds, for curves


def outcome(
    flags: Any, settings: Mapping, parts: dict[str, Part], fold: int, budget: float, seed: int, perfect: bool
) -> tuple[dict[int, Chosen], np.ndarray, np.ndarray]:
    """Passes -> Chosen of one seed; its curve (windows, len(CURVE)); (Q,) recall at the budget in the order that is
    learned from the first passes' rounds, (0,) without --weights. Read where they were made before."""
    data = world_key(settings)
    world = flags.eta, flags.noise, flags.explore, flags.cascade, flags.shuffle
    split = flags.learn, flags.price, flags.split, flags.folds, flags.change
    key = content_key(
        _REVISION, settings["model"], data, sorted(flags.passes), world, split, *["weights"] * flags.weights
    )
    path = flags.out / "seeds" / f"{key}-{budget:g}-{fold}-{seed}{'-perfect' if perfect else ''}.npz"
    logged = flags.out / f"rounds-{budget:g}.npz" if flags.log and not (seed or fold or perfect) else None
    mark = logged.with_suffix(".key") if logged else path  # whose rounds are logged there
    if not path.exists() or (logged and not (logged.exists() and mark.exists() and mark.read_text() == key)):
        spec = settings["model"]
        options = dict(spec.get("init_args") or {}) | ({"examination": [1.0]} if perfect else {})
        if perfect and options.get("noise") is not None:
            options["noise"] = 0.0
        module = construct("model", find_class("model", spec["class_path"]), options)
        rng = np.random.default_rng([seed, int(budget), perfect, *[fold] * (fold > 0)])
        arrays: dict[str, np.ndarray] = {}
        for passes, log in world_of(flags, parts["train"].grades.shape[1], perfect).learn(
            parts, module, budget, rng, seed
        ):
            chosen = frozen(module, parts["dev"], parts["test"], budget)
            arrays |= {f"{passes}/cuts": chosen.cuts.astype(np.int16), f"{passes}/recall": chosen.recall}
            arrays["curve"] = curve_of(log, parts)
            if flags.weights and "weights" not in arrays:
                arrays["weights"] = reordered(log, parts["test"], seed)[:, int(budget) - 1]
            if logged:
                write_rounds(logged, log)
                mark.write_text(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    with np.load(path, allow_pickle=False) as file:
        done = {p: Chosen(file[f"{p}/cuts"].astype(float), file[f"{p}/recall"]) for p in flags.passes}
        return done, file["curve"], file["weights"] if flags.weights else np.zeros(0)


def reordered(log: Rounds, test: Part, seed: int) -> np.ndarray:
    """(Q, M) recall by cut where the weights of the arms are learned from these rounds, query by query."""
    module = FusionWeightsLearner()
    module.refit(log, seed)
    each = np.diff(test.recall[ORDER], axis=1, prepend=0)
    return np.cumsum(np.take_along_axis(each, module.order(test.known), 1), axis=1)


def curve_of(log: Rounds, parts: Mapping[str, Part]) -> np.ndarray:
    """(windows, len(CURVE)) what was found while learning, beside fixed cuts and hindsight at the same mean cut."""
    several = [parts["before"], parts["train"]] if parts["before"] is not parts["train"] else [parts["train"]]
    recall = {name: np.concatenate([part.recall[name] for part in several]) for name in (ORDER, "rrf")}
    out, start = [], 0
    for rounds in np.array_split(np.arange(len(log.row)), min(_WINDOWS, len(log.row))):
        row, cut = log.row[rounds], log.cut[rounds]
        own = recall[ORDER][row]
        told = own[np.arange(len(row)), cut - 1], *(fixed(recall[n][row], cut.mean()) for n in (ORDER, "rrf"))
        start += len(row)
        out.append([start, cut.mean(), *(t.mean() for t in told), oracle(own, cut.mean()).mean()])
    return np.array(out)


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/policy.yaml",
        "runs/policy",
        lambda parser: (
            parser.add_argument("--seeds", type=int, default=10),
            parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10, 20], help="mean candidates a query"),
            parser.add_argument("--passes", type=int, nargs="+", default=[1], help="over the train queries"),
            parser.add_argument("--eta", type=float, default=1.0, help="position k is looked at with k^-eta"),
            parser.add_argument("--noise", type=float, default=0.1, help="clicks on what is seen and not relevant"),
            parser.add_argument("--explore", default=EXPLORE, help="YAML of a class of ltrr.policies.explorers"),
            parser.add_argument("--split", default="test", help="the queries that are cut, in place of test"),
            parser.add_argument("--learn", default="train", help="the queries that teach, in place of train"),
            parser.add_argument("--price", default="dev", help="the queries that set the price, in place of dev"),
            parser.add_argument("--folds", type=int, default=0, help="of all queries, in place of splits"),
            parser.add_argument("--change", help="joins:ARM or leaves:ARM, after the first pass"),
            parser.add_argument("--cascade", action="store_true", help="customers are not as the policy believes"),
            parser.add_argument("--shuffle", action="store_true", help="queries are told others' features"),
            parser.add_argument("--weights", action="store_true", help="beside it, learn arms' weights query by query"),
            parser.add_argument("--log", action="store_true", help="also write what the first seed logged"),
            parser.add_argument("--no-perfect", dest="perfect", action="store_false", help="not beside perfect clicks"),
        ),
    )
    for name in ("seeds", "budgets", "passes"):
        if np.min(getattr(flags, name)) < 1:
            raise ConfigError(f"--{name}: {getattr(flags, name)} is below 1")
    if flags.folds and flags.folds < 3:
        raise ConfigError(f"--folds: {flags.folds} is below 3: one is tested, one sets the price, the others teach")
    if flags.folds and flags.log:
        raise ConfigError("--folds, --log: what is logged of folds would teach about test queries; give splits instead")
    if flags.shuffle and flags.change:
        raise ConfigError("--shuffle, --change: one of them at a time")
    settings, system = opened(flags, overrides, [] if flags.folds else [flags.learn, flags.price, flags.split])
    if max(flags.budgets) > (num := int(settings["data"].get("num_candidates") or 60)):
        raise ConfigError(f"--budgets: {max(flags.budgets)} is above data.num_candidates, {num}, the deepest cut")
    folds = worlds(system, flags, settings)
    same_world(flags.out / "seeds", [*map(system.identity, system.fusion_arms)], folds)
    if flags.shuffle:
        folds = [{name: shuffled(part) for name, part in parts.items()} for parts in folds]
        folds = [parts | {"before": parts["train"]} for parts in folds]
    groups = np.concatenate([parts["test"].groups for parts in folds])
    recall = {n: np.concatenate([parts["test"].recall[n] for parts in folds]) for n in folds[0]["test"].recall}
    results: dict[str, Any] = {"dataset": system.dataset.name, "queries": len(groups), "seeds": flags.seeds}
    results |= {"priced_on_itself": not flags.folds and flags.split == flags.price}
    results |= {"base": {}, "gap_closed": {}, "cost_saved": {}, "regret": {}, "systems": {}, "all": []}
    fronts, curves = {}, {}
    for budget in flags.budgets:
        key = f"K={budget}"
        bases = [max(p["dev"].recall, key=lambda n, p=p: p["dev"].recall[n][:, budget - 1].mean()) for p in folds]
        base = np.concatenate([parts["test"].recall[name] for parts, name in zip(folds, bases, strict=True)])
        results["base"][key] = " / ".join(sorted(set(bases)))
        told = {name: fixed(own, budget) for name, own in recall.items()}
        told["slots"] = np.concatenate([parts["test"].slots[budget] for parts in folds])
        told["oracle"] = oracle(recall[ORDER], budget)
        for clicks in ("simulated", "perfect") if flags.perfect else ("simulated",):
            outcomes = [
                [outcome(flags, settings, p, f, budget, seed, clicks == "perfect") for f, p in enumerate(folds)]
                for seed in tqdm(range(flags.seeds), f"{key} {clicks}", unit="seed")
            ]
            for passes in sorted(flags.passes):
                chosen = [_joined([done[passes] for done, *_ in each]) for each in outcomes]
                row = compared(recall[ORDER], base, chosen, groups, budget)
                results["all"].append({"clicks": clicks, "passes": passes, "K": budget} | row)
                if clicks == "simulated" and passes == min(flags.passes):
                    results["gap_closed"][key], results["cost_saved"][key] = row["gap_closed"], row["cost_saved"]
                    told["policy"] = np.stack([c.recall[:, 0] for c in chosen])
                    fronts[budget] = chosen
            if clicks == "simulated":
                curves[budget] = alike([curve for each in outcomes for _, curve, _ in each])
                results["regret"][key] = regret_of(curves[budget])
                if flags.weights:
                    told["weights by query"] = np.stack(
                        [np.concatenate([own for *_, own in each]) for each in outcomes]
                    )
        for name, values in told.items():
            cell = mean_of(np.atleast_2d(values), groups)._asdict()
            results["systems"].setdefault(name, {})[key] = cell
    lines = report(results)
    flags.out.mkdir(parents=True, exist_ok=True)
    if not (flags.folds or flags.change) and flags.learn == "train":
        told = {f"K={budget}": np.stack([c.cuts for c in fronts[budget]]).astype(np.int16) for budget in fronts}
        with atomic_write(flags.out / "cuts.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, split=flags.split, num=recall[ORDER].shape[1], ids=np.array(folds[0]["test"].ids), **told)
    written = {
        "results.json": json.dumps(results, indent=1),
        "table.md": lines,
        "config.yaml": yaml.safe_dump(settings, sort_keys=False),
    }
    for name, text in written.items():
        with atomic_write(flags.out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    plot_frontier(flags.out / "frontier.png", recall[ORDER], fronts)
    plot_regret(flags.out / "regret.png", curves)
    track(settings, flags, results, curves)
    print(lines)
    print(f"written: {flags.out}/results.json, table.md, frontier.png, regret.png")


def _joined(folds: Sequence[Chosen]) -> Chosen:
    return Chosen(*(np.concatenate(part) for part in zip(*folds, strict=True)))


def alike(curves: Sequence[np.ndarray]) -> np.ndarray:
    """(S, windows, len(CURVE)) where folds of few rounds have fewer windows than others."""
    fewest = min(map(len, curves))
    return np.stack([curve[np.linspace(0, len(curve) - 1, fewest).round().astype(int)] for curve in curves])


def regret_of(curves: np.ndarray) -> dict[str, float]:
    """Recall that hindsight found and these did not, a round of learning: means of (S, windows, len(CURVE))."""
    rounds = np.diff(curves[0, :, 0], prepend=0)
    means = np.average(curves.mean(axis=0), axis=0, weights=rounds)
    return {name: float(means[-1] - means[CURVE.index(name)]) for name in ("policy", ORDER, "rrf")}


def track(settings: Mapping, flags: Any, results: Mapping, curves: Mapping[int, np.ndarray]) -> None:
    """The run for Weights & Biases, or whatever logger the config's trainer has."""
    spec = (settings.get("trainer") or {}).get("logger")
    if not spec:
        return
    options = dict(spec.get("init_args") or {}) | {"save_dir": str(flags.out), "name": flags.out.name}
    logger = find_class("trainer.logger", spec["class_path"])(**options)
    logger.log_hyperparams({"settings": settings, "flags": {k: str(v) for k, v in vars(flags).items()}})
    for budget, curve in curves.items():
        for row in curve.mean(axis=0):
            told = {f"K={budget}/{name}": value for name, value in zip(CURVE[1:], row[1:].tolist(), strict=True)}
            logger.log_metrics(told | {f"K={budget}/rounds": row[0]})
    cells = [("gap_closed", "gap closed"), ("cost_saved", "cost saved")]
    logger.log_metrics({f"{key}/{named}": told["mean"] for n, named in cells for key, told in results[n].items()})
    for name in ("frontier", "regret"):
        if hasattr(logger, "log_image"):
            logger.log_image(name, [str(flags.out / f"{name}.png")])
    logger.finalize("success")


def compared(
    recall: np.ndarray, base: np.ndarray, chosen: list[Chosen], groups: np.ndarray, budget: int
) -> dict[str, Any]:
    """A row of results: the policy at its mean cut, the base and hindsight there."""
    mean = float(np.mean([c.cuts[:, 0].mean() for c in chosen]))
    return {
        "mean_cut": mean,
        "recall": mean_of(np.stack([c.recall[:, 0] for c in chosen]), groups)._asdict(),
        "fixed": float(fixed(base, mean).mean()),
        "oracle": float(oracle(recall, mean).mean()),
        "gap_closed": gap_closed(recall, base, chosen, groups)._asdict(),
        "gap_over_order": gap_closed(recall, recall, chosen, groups)._asdict(),
        "gap_closed_at_K": _at_mean(recall, base, chosen, groups, budget),
        "cost_saved": cost_saved(base, chosen, groups, budget)._asdict(),
    }


def _at_mean(
    recall: np.ndarray, base: np.ndarray, chosen: list[Chosen], groups: np.ndarray, budget: int
) -> dict[str, float] | None:
    """Gap closed at the mean cut that was asked for; None where no price leads there."""
    try:
        same = [at_mean(c, budget) for c in chosen]
    except ValueError:
        return None
    return gap_closed(recall, base, same, groups)._asdict()


def report(results: dict[str, Any]) -> str:
    lines = [
        "| clicks | passes | K | mean cut | recall | fixed | oracle "
        "| gap closed | over its own order | at mean K | cost saved |"
    ]
    lines.append(f"| --- |{' ---: |' * 10}")
    for row in results["all"]:
        cells = [row["clicks"], row["passes"], row["K"], f"{row['mean_cut']:.2f}", _cell(row["recall"])]
        cells += [f"{row['fixed']:.4f}", f"{row['oracle']:.4f}"]
        cells += [_cell(row[figure]) for figure in ("gap_closed", "gap_over_order", "gap_closed_at_K", "cost_saved")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    budgets = list(results["base"])
    lines += ["", f"| recall of the first K | {' | '.join(budgets)} |", f"| --- |{' ---: |' * len(budgets)}"]
    for name, told in results["systems"].items():
        lines.append(f"| {name} | {' | '.join(_cell(told[key]) for key in budgets)} |")
    lines += ["", "| lost to hindsight while learning, recall a round | " + " | ".join(budgets) + " |"]
    lines.append(f"| --- |{' ---: |' * len(budgets)}")
    for name in next(iter(results["regret"].values())):
        cells = [f"{results['regret'][key][name]:.4f}" for key in budgets]
        lines.append(f"| {name if name == 'policy' else f'fixed, {name}'} | {' | '.join(cells)} |")
    named = ", ".join(f"{key} {base}" for key, base in results["base"].items())
    lines += [
        "",
        f"Fixed: the best system on dev at a fixed cut ({named}), at the policy's mean cut; oracle: its cuts in",
    ]
    lines += [
        "hindsight. Over its own order: the base is a fixed cut of the order that the policy cuts. At mean K: with"
    ]
    lines += ["the price at which these queries' mean cut is K (no judgement is looked at)."]
    lines += ["Cost saved is read off the policy's frontier here, where its recall reaches the base's."]
    lines += ["Intervals (95 %) are over groups of queries and seeds together."]
    if results["priced_on_itself"]:
        lines += ["The price and the base were chosen on these very queries: good for choosing settings, no result."]
    return "\n".join(lines)


def _cell(told: dict[str, float] | None) -> str:
    if told is None:
        return "never there"
    return f"{told['mean']:.3f} ({told['low']:.3f} to {told['high']:.3f})"


if __name__ == "__main__":
    main(run)
