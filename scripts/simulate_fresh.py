"""New entities arrive while customers search: what a place of the page for the explorer brings, and what it costs.

python scripts/simulate_fresh.py --config configs/fresh.yaml --data FOLDER --out DIR [--rounds 5000] [--seeds 10]
    [--slots 0.1 0.3] [--position 5] [--new 0.2] [--head 1] [--eta 1] [--noise 0.1]

A share `--new` of the entities, drawn anew for each seed, comes into being over the first four fifths of the rounds; no
arm returns them before. Customers ask train queries, the r-th of a random order with a share ∝ r^-head, and memory
learns from their clicks, the same way without the explorer and with each share of pages (`--slots`) whose place
`--position` goes to it. At the end memory is tried without the explorer, on test queries and on train queries.
Intervals are Student's over seeds, differences are paired. Writes DIR/results.json, DIR/table.md and DIR/fresh.png.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from simulate_memory import World
from tqdm import tqdm

from ltrr.arms.fresh import Fresh, Slotted
from ltrr.arms.memory import Memory
from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError, construct
from ltrr.feedback.clicks import PositionBased
from ltrr.files import atomic_write
from ltrr.funnel import Funnel
from ltrr.metrics import drop_self, evaluate, to_run
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import Arm
from ltrr.simulation.feedback import Batch, Simulation
from ltrr.system.system import open_systems
from ltrr.types import Candidates, Page, Qrels, Query, Run

DURING = {  # measure -> what it says
    "new_slots": "places shown that have new entities, share",
    "new_once": "new entities shown at least once, share",
    "new_thrice": "new entities shown at least 3 times, share",
    "new_clicks": "clicks on new entities, a round",
    "clicks": "clicks, a round",
    "nDCG@10_shown": "nDCG@10 of what was shown, of what had arrived",
    "distinct": "entities shown at least once, share of all",
    "gini": "Gini coefficient of how often entities were shown",
}
AFTER = {
    "new_R@10_test": "R@10 of new entities, test queries, at the end",
    "new_R@10_asked": "R@10 of new entities, train queries as often as asked, at the end",
    "nDCG@10_test": "nDCG@10, test queries, at the end",
    "nDCG@10_asked": "nDCG@10, train queries as often as asked, at the end",
}
MEASURES = DURING | AFTER
UNTAUGHT, WITHOUT = "nothing learned", "without"
_DEPTH, _BATCH, _PAGE = 100, 250, 10
_START, _PAUSE, _DAY = datetime(2026, 1, 1, tzinfo=UTC), timedelta(seconds=60), timedelta(days=1)


class Arrived:
    """An Arm that returns another's candidates, of those that are there `now`; the other does not hear who asks."""

    def __init__(self, arm: Arm, arrivals: np.ndarray) -> None:
        self._arm, self._arrivals, self.now = arm, arrivals, np.inf

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k)."""
        anonymous = [replace(query, context=replace(query.context, customer=None)) for query in queries]
        docs, scores = self._arm.search(anonymous, _DEPTH)
        there = (docs >= 0) & (self._arrivals[np.maximum(docs, 0)] <= self.now)
        order = np.argsort(~there, axis=1, kind="stable")[:, :k]
        docs, scores = np.where(there, docs, -1), np.where(there, scores, -np.inf)
        return Candidates(np.take_along_axis(docs, order, 1), np.take_along_axis(scores, order, 1))


def at_their_time(search: Callable[..., Page], arms: Sequence[Arrived]) -> Callable[[Sequence[Query], int], Page]:
    """A search that asks queries one after another at the simulation's times, among what had arrived by the first."""
    asked = 0

    def timed(queries: Sequence[Query], k: int) -> Page:
        nonlocal asked
        for arm in arms:
            arm.now = asked
        times = [_START + _PAUSE * (asked + i) for i in range(len(queries))]
        asked += len(queries)
        whole = [replace(q, context=replace(q.context, time=t)) for q, t in zip(queries, times, strict=True)]
        return search(whole, k)

    return timed


def simulate(world: World, explorer: Fresh, flags: Any, seed: int) -> dict[str, dict[str, float]]:
    """System -> measure -> value. The same entities are new and the same queries are asked with each system."""
    rng, ids = np.random.default_rng([seed, 20]), world.system.corpus.ids
    new = rng.random(len(ids)) < flags.new  # (N,)
    arrivals = np.where(new, rng.integers(1, max(int(0.8 * flags.rounds), 2), len(ids)), 0)
    shares = (1.0 + rng.permutation(len(world.train))) ** -flags.head  # (Q,)
    explorer = copy.copy(explorer)
    explorer.born = np.where(new, _START.timestamp() / 86_400 + _PAUSE / _DAY * arrivals, np.nan)
    taught = {key: value for key, value in world.system.specs[world.name].items() if key != "class"}
    found: dict[str, dict[str, float]] = {}
    for epsilon in (0.0, *flags.slots):
        arms = {name: Arrived(arm, arrivals) for name, arm in world._static.items() if name != flags.explorer}
        memory = construct(f"arms.{world.name}", Memory, {"corpus": world.system.corpus, **taught})
        policy = FixedPolicy([*arms, world.name], dict.fromkeys([*arms, world.name], _DEPTH), _DEPTH)
        funnel = Funnel({**arms, world.name: memory}, policy, world.order)
        if not epsilon:
            found[UNTAUGHT] = after(world, funnel, new, shares)
        search = Slotted(funnel.search, explorer, position=flags.position - 1, epsilon=epsilon).search
        simulation = Simulation(
            at_their_time(search if epsilon else funnel.search, list(arms.values())),
            world.train,
            world.train_qrels,
            ids,
            model=PositionBased.power(_PAGE, flags.eta),
            noise=flags.noise,
            shares=shares,
            arrivals=arrivals,
            seed=seed,
        )
        batches = []
        for batch in simulation.rounds(flags.rounds, _BATCH):
            memory.observe(batch.events)
            batches.append(batch)
        for arm in arms.values():
            arm.now = np.inf
        found[f"{epsilon:g}" if epsilon else WITHOUT] = during(world, batches, arrivals) | after(
            world, funnel, new, shares
        )
    return found


def during(world: World, batches: Sequence[Batch], arrivals: np.ndarray) -> dict[str, float]:
    """What was shown and clicked; arrivals (N,), 0 = not new."""
    docs = np.concatenate([batch.page.shown.docs.ravel() for batch in batches])  # (R · K,)
    clicks = np.concatenate([batch.clicks.ravel() for batch in batches])
    rounds = sum(len(batch.queries) for batch in batches)
    real = docs >= 0
    new = real & (arrivals[np.maximum(docs, 0)] > 0)
    shown = np.bincount(docs[real], minlength=len(arrivals))  # (N,)
    of_new = shown[arrivals > 0]
    return {
        "new_slots": float(new.sum() / real.sum()),
        "new_once": float((of_new >= 1).mean()),
        "new_thrice": float((of_new >= 3).mean()),
        "new_clicks": float((clicks & new).sum() / rounds),
        "clicks": float(clicks.sum() / rounds),
        "nDCG@10_shown": quality_shown(world, batches, arrivals),
        "distinct": float((shown > 0).mean()),
        "gini": gini(shown),
    }


def quality_shown(world: World, batches: Sequence[Batch], arrivals: np.ndarray) -> float:
    """Mean nDCG@10 of the pages for which something relevant had arrived, judged by what had."""
    run: Run = {}
    qrels: Qrels = {}
    corpus = world.system.corpus
    arrival = dict(zip(corpus.ids, arrivals.tolist(), strict=True))
    for batch in batches:
        run |= to_run(batch.page.impressions, batch.page.shown, corpus.ids)
        for impression, q in zip(batch.page.impressions, batch.queries.tolist(), strict=True):
            now = int(impression.split("-")[1])
            grades = world.train_qrels[world.train[q].id]
            qrels[impression] = {entity: grade for entity, grade in grades.items() if arrival[entity] <= now}
    return evaluate(run, qrels, ("nDCG@10",)).mean()["nDCG@10"]


def after(world: World, funnel: Funnel, new: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    """What the funnel finds now that everything has arrived; new (N,), shares (Q,) of the train queries."""
    corpus, out = world.system.corpus, {}
    fresh = {entity for entity, is_new in zip(corpus.ids, new.tolist(), strict=True) if is_new}
    for name, queries, qrels, weights in (
        ("test", world.test, world.test_qrels, np.ones(len(world.test))),
        ("asked", world.train, world.train_qrels, shares),
    ):
        run: Run = {}
        for start in range(0, len(queries), _BATCH):
            some = queries[start : start + _BATCH]
            run |= drop_self(to_run([q.id for q in some], funnel.search(some, _PAGE + 1).shown, corpus.ids))
        of_new = {q: {e: g for e, g in grades.items() if e in fresh} for q, grades in qrels.items()}
        weight = {query.id: w for query, w in zip(queries, weights.tolist(), strict=True)}
        for measure, judged, called in (("nDCG@10", qrels, "nDCG@10"), ("R@10", of_new, "new_R@10")):
            found = evaluate(run, judged, (measure,))
            out[f"{called}_{name}"] = float(np.average(found.of(measure), weights=[weight[q] for q in found.query_ids]))
    return out


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of (N,) counts: 0 = all the same, towards 1 = one has all."""
    ordered, n = np.sort(counts), len(counts)
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * max(ordered.sum(), 1)) - (n + 1) / n)


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean of the seeds and Student's 95 % interval."""
    mean, half = float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def verdict(slot: str, differences: dict[str, dict[str, float]]) -> str:
    """What the explorer brought and cost, in words; clicks decide whether it pays."""

    def told(measure: str, more: str, less: str, neither: str) -> str:
        cell = differences[measure]
        return more if cell["low"] > 0 else less if cell["high"] < 0 else neither

    pays = told("clicks", "pays", "does not pay: it costs clicks", "does not pay: no change in clicks is told")
    seen = told("new_thrice", "more", "fewer", "no more")
    learned = [told(f"new_R@10_{name}", "better", "worse", "no better") for name in ("test", "asked")]
    clicks, thrice = (differences[measure]["mean"] for measure in ("clicks", "new_thrice"))
    return (
        f"- On {slot} of the pages the explorer {pays} ({clicks:+.4f} a round). It shows {seen} new entities at least "
        f"3 times ({thrice:+.4f}); at the end test queries find them {learned[0]}, train queries {learned[1]}."
    )


def plot(path: Path, systems: dict[str, dict[str, dict[str, float]]]) -> None:
    chosen = ("new_thrice", "new_R@10_asked", "clicks", "distinct")
    figure, panels = plt.subplots(1, len(chosen), figsize=(14, 3.5), layout="constrained")
    for panel, measure in zip(panels, chosen, strict=True):
        cells = [cells[measure] for name, cells in systems.items() if name != UNTAUGHT]
        mean = np.array([cell["mean"] for cell in cells])
        spread = mean - [cell["low"] for cell in cells]
        panel.errorbar(range(len(cells)), mean, spread, fmt="o-", capsize=4)
        panel.set_xticks(range(len(cells)), [name for name in systems if name != UNTAUGHT])
        panel.set_xlabel("share of pages that explore")
        panel.set_title(MEASURES[measure], fontsize=9)
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/fresh.yaml",
        "runs/fresh",
        lambda parser: (
            parser.add_argument("--rounds", type=int, default=5_000),
            parser.add_argument("--seeds", type=int, default=10),
            parser.add_argument("--slots", type=float, nargs="+", default=[0.1, 0.3], help="shares of pages"),
            parser.add_argument("--position", type=int, default=5, help="place of the explorer, 1 to 10"),
            parser.add_argument("--new", type=float, default=0.2, help="share of the entities that arrive later"),
            parser.add_argument("--head", type=float, default=1.0, help="the r-th query is asked with r^-head"),
            parser.add_argument("--eta", type=float, default=1.0, help="position k is looked at with k^-eta"),
            parser.add_argument("--noise", type=float, default=0.1, help="clicks on what is not relevant"),
            parser.add_argument("--arm", default="memory", help="the arm that learns"),
            parser.add_argument("--explorer", default="fresh", help="the arm that explores"),
        ),
    )
    if flags.seeds < 2:
        raise ConfigError(f"--seeds {flags.seeds}: intervals need at least 2")
    if not 1 <= flags.position <= _PAGE:
        raise ConfigError(f"--position {flags.position} is not on a page of {_PAGE}")
    if not all(0 < slot <= 1 for slot in flags.slots):
        raise ConfigError(
            f"--slots {flags.slots}: shares of pages are within 0 and 1; without the explorer is always there"
        )
    (system,) = open_systems(flags.config, overrides)
    if flags.explorer not in system.specs:
        raise ConfigError(f"arms: there is no arm {flags.explorer!r} to explore; see configs/fresh.yaml")
    world, explorer = World(system, flags.arm), system.arm(flags.explorer)
    assert isinstance(explorer, Fresh)
    seeds = [simulate(world, explorer, flags, seed) for seed in tqdm(range(flags.seeds), "simulate", unit="seed")]
    systems = {
        name: {m: interval([found[name][m] for found in seeds]) for m in measured}
        for name, measured in seeds[0].items()
    }
    differences = {
        name: {m: interval([found[name][m] - found[WITHOUT][m] for found in seeds]) for m in MEASURES}
        for name in list(systems)[2:]
    }
    lines = [
        "| measure | " + " | ".join([*systems, *(f"{name} − without" for name in differences)]) + " |",
        "| --- |" + " ---: |" * (len(systems) + len(differences)),
    ]
    for measure, meaning in MEASURES.items():
        columns = [cells.get(measure) for cells in (*systems.values(), *differences.values())]
        shown = ["" if c is None else f"{c['mean']:.4f} ({c['low']:.4f} to {c['high']:.4f})" for c in columns]
        lines.append(f"| {meaning} | {' | '.join(shown)} |")
    lines += ["", *(verdict(slot, cells) for slot, cells in differences.items())]
    results = {
        "dataset": system.dataset.name,
        "seeds": flags.seeds,
        "rounds": flags.rounds,
        "new": flags.new,
        "position": flags.position,
        "systems": systems,
        "differences": differences,
    }
    with atomic_write(flags.out / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")
    with atomic_write(flags.out / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(flags.out / "fresh.png", systems)
    print("\n".join(lines))
    print(f"written: {flags.out}/results.json, table.md, fresh.png")


if __name__ == "__main__":
    main(run)
