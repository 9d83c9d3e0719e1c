"""A policy learns from simulated clicks how many candidates each query deserves; what that gains over a fixed number.

python scripts/simulate.py --config configs/policy.yaml --data FOLDER --out DIR [--seeds 10] [--budgets 5 10 20]
    [--passes 1] [--eta 1] [--noise 0.1] [--cascade] [--shuffle] [--no-perfect] [--log] [--dotted.overrides …]

Of the config only `model` and `data` are read. Customers ask each train query once a pass, in random order; the policy
draws a cut of the fused union, the page shows what it lets through, clicks teach it. Then it is frozen: its price is
set on dev so that the mean cut there is the budget, and test queries are cut. Base: the best non-learning system on dev
at that fixed cut. All arms run for every query and are charged. Beside it the same with perfect clicks: everything that
is shown is looked at, and nothing else is clicked. Writes DIR/results.json, table.md and frontier.png; each seed's
outcome is kept under DIR/seeds, so that a killed run goes on. --log: also DIR/rounds-K.npz, what the first seed logged
at each budget, for train.py. --cascade: customers look from the top until they are satisfied, the policy believes
1 / rank all the same. --shuffle: every query is told another's features, so that there is nothing to gain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import yaml
from _common import arguments, main
from tqdm import tqdm

from ltrr.config import ConfigError, construct, find_class, load_config
from ltrr.core import Query, Rounds
from ltrr.data.beir import open_dataset
from ltrr.data.rounds import write_rounds
from ltrr.evaluate.regret import (
    Chosen,
    at_mean,
    cost_saved,
    fixed,
    gap_closed,
    mean_of,
    oracle,
    query_groups,
    recall_of,
)
from ltrr.feedback.clicks import Cascade, ClickModel, PositionBased, attraction_of, simulate
from ltrr.funnel import Funnel
from ltrr.fuse import reciprocal_ranks
from ltrr.metrics import whole_file
from ltrr.policy.actions import Price, Table, best, price_for
from ltrr.policy.baselines import FixedPolicy
from ltrr.policy.explore import Softmax
from ltrr.policy.features import QUERY, Known, pool_features, pool_names, query_features
from ltrr.system import System
from ltrr.tuning import key_of

_DEPTH, _BATCH, _SEARCHED = 100, 100, 250
_SATISFIED, _LEAVES = 0.7, 0.1  # a cascade's customer stops after a click, after none
_ORDER = "convex"  # the fused order that is cut
_REVISION = 1  # of what makes a seed's outcome, kept ones of others are not used
_FIRST = 500  # rounds before the first fit; refits follow when there are twice as many
_PRICES = np.geomspace(0.02, 50, 60)  # around the price set on dev, for frontiers


class Part(NamedTuple):
    """A split as the policy knows it, and the truth."""

    known: Known
    grades: np.ndarray  # (Q, M) in fused order
    recall: dict[str, np.ndarray]  # system -> (Q, M) recall of its first 1 to M
    groups: np.ndarray  # (Q,) number of each query's group


def parts_of(system: System, num: int, splits: Sequence[str]) -> dict[str, Part]:
    """Splits as a policy knows them, cached."""
    names = system.fusion_arms
    order = system.order()
    identity = [[system.identity(n) for n in names], vars(order), num, system.settings["data"]["qrels"]]
    out = {}
    for split in splits:
        path = system.folder / "policy" / f"{split}-{key_of(identity)}.npz"
        if not path.exists():
            queries, qrels = system.dataset.split(split)
            queries = [query for query in queries if any(grade > 0 for grade in qrels[query.id].values())]
            funnel = Funnel(
                {n: system.arm(n) for n in names},
                FixedPolicy(names, dict.fromkeys(names, _DEPTH), _DEPTH * len(names)),
                order,
            )
            pieces = []
            for start in tqdm(range(0, len(queries), _SEARCHED), f"search {split}", unit="batch"):
                pieces.append(_known(system, funnel, queries[start : start + _SEARCHED], qrels, num))
            arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
            arrays["groups"] = query_groups(queries, qrels)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
        with np.load(path, allow_pickle=False) as file:
            recall = {n.partition("/")[2]: file[n] for n in file.files if n.startswith("recall/")}
            out[split] = Part(Known(file["query"], file["candidates"]), file["grades"], recall, file["groups"])
    return out


def _known(system: System, funnel: Funnel, queries: list[Query], qrels: Any, num: int) -> dict[str, np.ndarray]:
    pool = funnel.draw(queries).pool
    rows = [dict(zip(system.corpus.rows([*qrels[q.id]]), qrels[q.id].values(), strict=True)) for q in queries]
    grades = np.array([[own.get(doc, 0) for doc in docs] for own, docs in zip(rows, pool.docs.tolist(), strict=True)])
    positives = np.array([sum(grade > 0 for grade in own.values()) for own in rows])
    known = pool_features(pool, num)
    orders = {name: pool.ranks[:, :, a] for a, name in enumerate(pool.arms[:-1])}
    orders["rrf"] = -reciprocal_ranks(pool._replace(arms=pool.arms[:-1], ranks=pool.ranks[:, :, :-1]))
    orders[_ORDER] = pool.ranks[:, :, -1]
    found = {}
    for name, keys in orders.items():
        places = np.argsort(np.where(pool.docs >= 0, keys, np.inf), axis=1, kind="stable")  # NaN = not returned: last
        returned = np.isfinite(np.take_along_axis(keys, places, 1))
        own = recall_of(np.take_along_axis(grades, places, 1) * returned, positives)
        found[f"recall/{name}"] = np.pad(own, [(0, 0), (0, max(0, num - own.shape[1]))], mode="edge")[:, :num]
    shown = np.pad(grades, [(0, 0), (0, max(0, num - grades.shape[1]))])[:, :num].astype(np.float32)
    query = np.concatenate([query_features(queries), known.query], axis=1)
    return {"query": query, "candidates": known.candidates, "grades": shown, **found}


def learn(
    part: Part, module: Any, budget: float, flags: Any, seed: int, perfect: bool
) -> Iterator[tuple[int, Any, Rounds]]:
    """Yields the module and all rounds so far after each of the passes that are asked for."""
    rng = np.random.default_rng([seed, int(budget), perfect])
    num_queries, num = part.grades.shape
    table = Table.of({"all": [num]}, range(1, num + 1))
    explorer = Softmax(flags.temperature, flags.floor)
    attraction = attraction_of(part.grades, highest=int(part.grades.max()), noise=0.0 if perfect else flags.noise)
    model: ClickModel = PositionBased.power(num, 0.0 if perfect else flags.eta)
    if flags.cascade and not perfect:
        model = Cascade(_SATISFIED, _LEAVES)
    order = np.concatenate([rng.permutation(num_queries) for _ in range(max(flags.passes))])
    cuts, clicks = np.zeros(len(order), int), np.zeros((len(order), num), bool)
    log = Rounds(order, part.known.query, part.known.candidates, cuts, clicks)
    price, fitted, due = Price(budget), False, _FIRST
    usual = np.cumsum(1 / np.arange(1, num + 1)) / np.sum(1 / np.arange(1, num + 1))  # before anything is known
    price.value = price_for(usual[None], table.costs, budget)
    starts = [p * num_queries + at for p in range(max(flags.passes)) for at in range(0, num_queries, _BATCH)]
    for start, stop in pairwise([*starts, len(order)]):
        rows = order[start:stop]
        known = Known(part.known.query[rows], part.known.candidates[rows])
        values = module.values(known) if fitted else np.tile(usual, (len(rows), 1))
        _, decision = table.draw(explorer.probabilities(values - price.value * table.costs), rng)
        price.update(decision.cut)
        cuts[start:stop] = decision.cut
        shown = np.arange(num) < decision.cut[:, None]
        clicks[start:stop] = simulate(model, np.where(shown, attraction[rows], np.nan), rng).clicks
        whole = stop % num_queries == 0 and stop // num_queries in flags.passes
        if stop >= due or whole:
            module.refit(log.first(stop), seed)
            fitted, due = True, due * 2 if stop >= due else due
            sample = rng.choice(num_queries, min(2_000, num_queries), replace=False)
            values = module.values(Known(part.known.query[sample], part.known.candidates[sample]))
            price.value = price_for(values, table.costs, budget)
        elif fitted:
            module.update(log._replace(row=rows, cut=cuts[start:stop], clicks=clicks[start:stop]))
        if whole:
            yield stop // num_queries, module, log.first(stop)


def frozen(module: Any, dev: Part, test: Part, budget: float) -> Chosen:
    """What the module does with test queries, at the price that dev says and at others around it."""
    costs = np.arange(1, dev.grades.shape[1] + 1, dtype=float)
    price = price_for(module.values(dev.known), costs, budget)
    values = module.values(test.known)
    cuts = np.stack([best(values, costs, price * factor) + 1 for factor in (1.0, *_PRICES)], axis=1)
    return Chosen(cuts, np.take_along_axis(test.recall[_ORDER], cuts - 1, 1))


def outcome(flags: Any, settings: dict, parts: dict[str, Part], budget: float, seed: int, perfect: bool):
    """Passes -> Chosen of one seed; read where it was made before."""
    data = {name: settings["data"].get(name) for name in ("path", "qrels", "arms", "tune", "num_candidates")}
    world = flags.eta, flags.noise, flags.temperature, flags.floor, flags.split, flags.cascade, flags.shuffle
    key = key_of(_REVISION, settings["model"], data, sorted(flags.passes), world)
    path = flags.out / "seeds" / f"{key}-{budget:g}-{seed}{'-perfect' if perfect else ''}.npz"
    logged = flags.out / f"rounds-{budget:g}.npz" if flags.log and not seed and not perfect else None
    if not path.exists() or (logged and not logged.exists()):
        spec = settings["model"]
        cls = find_class("model", spec["class_path"])
        options = dict(spec.get("init_args") or {})
        if perfect:
            options["examination"] = [1.0]
        arrays = {}
        for passes, module, log in learn(
            parts["train"], construct("model", cls, options), budget, flags, seed, perfect
        ):
            chosen = frozen(module, parts["dev"], parts[flags.split], budget)
            arrays |= {f"{passes}/cuts": chosen.cuts.astype(np.int16), f"{passes}/recall": chosen.recall}
            if logged:
                arms = list(settings["data"]["arms"])
                query, each = pool_names(arms, log.candidates.shape[1])
                columns = [f.name for f in (*QUERY, *query)], [f.name for f in each]
                write_rounds(logged, log._replace(names=tuple(map(tuple, columns))))
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    with np.load(path, allow_pickle=False) as file:
        return {
            passes: Chosen(file[f"{passes}/cuts"].astype(float), file[f"{passes}/recall"]) for passes in flags.passes
        }


def opened(flags: Any, overrides: Sequence[str]) -> tuple[dict[str, Any], System]:
    """The config, and the system that its data section describes."""
    known = {"model": None, "data": None, "seed_everything": None, "trainer": None}
    settings = load_config(flags.config, overrides, known)
    data = settings.get("data") or {}
    if not data.get("path"):
        raise ConfigError(f"config {flags.config}: data.path is not set; give --data FOLDER, ZIP or HUBNAME")
    qrels = data.get("qrels") or "qrels"
    dataset = open_dataset(data["path"], query_fields=data.get("query_fields") or (), qrels=qrels)
    for split in ("train", "dev", flags.split):
        if split not in dataset.splits:
            raise ConfigError(
                f"{data['path']}: has no split {split!r}, which a policy needs; it has {', '.join(dataset.splits)}"
            )
    parts = {"arms": data.get("arms"), "cache": data.get("cache"), "tune": {"splits": data.get("tune") or []}}
    return settings, System({"data": {"qrels": qrels}, **parts}, dataset, hold_out=flags.split)


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
            parser.add_argument("--temperature", type=float, default=0.02, help="of exploration, in recall"),
            parser.add_argument("--floor", type=float, default=0.05, help="queries whose cut is drawn uniformly"),
            parser.add_argument("--split", default="test", help="the queries that are cut, in place of test"),
            parser.add_argument("--cascade", action="store_true", help="customers are not as the policy believes"),
            parser.add_argument("--shuffle", action="store_true", help="queries are told others' features"),
            parser.add_argument("--log", action="store_true", help="also write what the first seed logged"),
            parser.add_argument("--no-perfect", dest="perfect", action="store_false", help="not beside perfect clicks"),
        ),
    )
    for name in ("seeds", "budgets", "passes"):
        if np.min(getattr(flags, name)) < 1:
            raise ConfigError(f"--{name}: {getattr(flags, name)} is below 1")
    settings, system = opened(flags, overrides)
    parts = parts_of(system, int(settings["data"].get("num_candidates") or 60), ["train", "dev", flags.split])
    if flags.shuffle:
        parts = {split: shuffled(part) for split, part in parts.items()}
    test, dev = parts[flags.split], parts["dev"]
    results: dict[str, Any] = {"dataset": system.dataset.name, "queries": len(test.grades), "seeds": flags.seeds}
    results |= {"base": {}, "gap_closed": {}, "cost_saved": {}, "systems": {}, "all": []}
    fronts = {}
    for budget in flags.budgets:
        key = f"K={budget}"
        base = max(dev.recall, key=lambda name: dev.recall[name][:, budget - 1].mean())
        results["base"][key] = base
        told = {name: fixed(own, budget) for name, own in test.recall.items()}
        told["oracle"] = oracle(test.recall[_ORDER], budget)
        for clicks in ("simulated", "perfect") if flags.perfect else ("simulated",):
            outcomes = [
                outcome(flags, settings, parts, budget, seed, clicks == "perfect")
                for seed in tqdm(range(flags.seeds), f"{key} {clicks}", unit="seed")
            ]
            for passes in sorted(flags.passes):
                chosen = [each[passes] for each in outcomes]
                row = compared(test.recall[_ORDER], test.recall[base], chosen, test.groups, budget)
                results["all"].append({"clicks": clicks, "passes": passes, "K": budget} | row)
                if clicks == "simulated" and passes == min(flags.passes):
                    results["gap_closed"][key], results["cost_saved"][key] = row["gap_closed"], row["cost_saved"]
                    told["policy"] = np.stack([c.recall[:, 0] for c in chosen])
                    fronts[budget] = chosen
        for name, values in told.items():
            cell = mean_of(np.atleast_2d(values), test.groups)._asdict()
            results["systems"].setdefault(name, {})[key] = cell
    lines = report(results)
    flags.out.mkdir(parents=True, exist_ok=True)
    written = {
        "results.json": json.dumps(results, indent=1),
        "table.md": lines,
        "config.yaml": yaml.safe_dump(settings),
    }
    for name, text in written.items():
        with whole_file(flags.out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    plot(flags.out / "frontier.png", test.recall[_ORDER], fronts)
    print(lines)
    print(f"written: {flags.out}/results.json, table.md, frontier.png")


def shuffled(part: Part) -> Part:
    """With features of other queries."""
    order = np.random.default_rng(0).permutation(len(part.grades))
    return part._replace(known=Known(part.known.query[order], part.known.candidates[order]))


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
        "gap_closed_at_K": gap_closed(recall, base, [at_mean(c, budget) for c in chosen], groups)._asdict(),
        "cost_saved": cost_saved(base, chosen, groups, budget)._asdict(),
    }


def report(results: dict[str, Any]) -> str:
    lines = ["| clicks | passes | K | mean cut | recall | fixed | oracle | gap closed | at mean K | cost saved |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in results["all"]:
        cells = [row["clicks"], row["passes"], row["K"], f"{row['mean_cut']:.2f}", _cell(row["recall"])]
        cells += [f"{row['fixed']:.4f}", f"{row['oracle']:.4f}"]
        cells += [_cell(row[figure]) for figure in ("gap_closed", "gap_closed_at_K", "cost_saved")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    budgets = list(results["base"])
    lines += ["", f"| recall of the first K | {' | '.join(budgets)} |", f"| --- |{' ---: |' * len(budgets)}"]
    for name, told in results["systems"].items():
        lines.append(f"| {name} | {' | '.join(_cell(told[key]) for key in budgets)} |")
    named = ", ".join(f"{key} {base}" for key, base in results["base"].items())
    lines += [
        "",
        f"Fixed: the best system on dev at a fixed cut ({named}), at the policy's mean cut; oracle: its cuts in",
    ]
    lines += ["hindsight. At mean K: with the price at which these queries' mean cut is K (no judgement is looked at)."]
    lines += ["Intervals (95 %) are over groups of queries and seeds together."]
    return "\n".join(lines)


def plot(path: Path, recall: np.ndarray, fronts: dict[int, list[Chosen]]) -> None:
    """Recall over mean candidates: fixed cuts, each learned policy at other prices, hindsight."""
    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    cuts = np.arange(1, recall.shape[1] + 1)
    panel.plot(cuts, recall.mean(axis=0), "k--", label="the same cut for all")
    panel.plot(cuts, [oracle(recall, cut).mean() for cut in cuts], "k:", label="hindsight")
    for budget, chosen in fronts.items():
        x = np.mean([c.cuts.mean(axis=0) for c in chosen], axis=0)
        y = np.mean([c.recall.mean(axis=0) for c in chosen], axis=0)
        order = np.argsort(x)
        (line,) = panel.plot(x[order], y[order], label=f"learned at {budget}")
        panel.plot(x[0], y[0], "o", color=line.get_color())
    panel.set_xscale("log")
    panel.set_xlabel("mean candidates that are ranked")
    panel.set_ylabel("recall")
    panel.grid(color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def _cell(told: dict[str, float]) -> str:
    return f"{told['mean']:.3f} ({told['low']:.3f} to {told['high']:.3f})"


if __name__ == "__main__":
    main(run)
