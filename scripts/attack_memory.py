"""What one hostile customer can do to others through memory: top-10 lists of test queries before and after.

python scripts/attack_memory.py --config configs/memory.yaml --data FOLDER --out DIR [--rounds 5000] [--clicks 10000]
    [--seeds 5]

Memory learns from simulated customers as in simulate_memory.py. Then one customer id acts:

    worst   asks train queries, in turn, and clicks what stands last on the page: raises it, and lowers those above
    dismiss asks train queries, in turn, and dismisses what stands first
    crowd   asks train queries with their words turned round, in turn, and clicks what stands last
    push    asks a train query, clicks nothing, asks by the title of one entity and clicks that: wants it everywhere

Writes DIR/results.json and DIR/table.md. Events are given to memory as the service would; the customer cannot choose
what was shown.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from simulate_memory import World
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.feedback.clicks import PositionBased
from ltrr.feedback.events import Action, impressions_of
from ltrr.files import atomic_write
from ltrr.funnel import Funnel
from ltrr.simulation.feedback import Simulation
from ltrr.system.system import open_systems
from ltrr.types import Context, Query

_PAGE, _BATCH = 10, 250
ATTACKS = ("worst", "dismiss", "crowd", "push")


def pages(world: World, funnel: Funnel) -> np.ndarray:
    """(Q, 10) rows shown for test queries."""
    starts = range(0, len(world.test), _BATCH)
    return np.concatenate([funnel.search(world.test[s : s + _BATCH], _PAGE).shown.docs for s in starts])


def attack(
    world: World, funnel: Funnel, memory: Any, kind: str, clicks: int, begin: datetime, seed: int
) -> tuple[int, int]:
    """Actions of one customer, one every two seconds: the row that `push` wants, and how many there were."""
    rng = np.random.default_rng(seed)
    ids, who = world.system.corpus.ids, Context("attacker")
    target = int(rng.integers(len(ids)))
    num = 0
    title = world.system.corpus[target].title
    for start in range(0, clicks, _BATCH):
        number = np.arange(start, min(start + _BATCH, clicks))
        asked = [replace(world.train[n % len(world.train)], context=who) for n in number.tolist()]
        if kind == "crowd":
            asked = [replace(query, text=" ".join(query.text.split()[::-1])) for query in asked]
        times = [begin + timedelta(seconds=2 * n) for n in number.tolist()]
        names = [f"attack-{n}" for n in number.tolist()]
        seen = impressions_of(funnel.search(asked, _PAGE), ids, times=times, sessions=names)
        events = list(seen)
        if kind == "push":
            asked = [Query("push", title, who)] * len(number)
            times = [time + timedelta(seconds=1) for time in times]
            seen = impressions_of(funnel.search(asked, _PAGE), ids, times=times, sessions=names)
            events += seen
        for impression in seen:
            at = 0 if kind == "dismiss" else -1
            wanted = ids[target] if kind == "push" else impression.shown[at] if impression.shown else ""
            if wanted in impression.shown:
                done = "dismiss" if kind == "dismiss" else "click"
                events.append(Action(f"{impression.id}-x", impression.id, wanted, done, impression.time))
                num += 1
        memory.observe(events)
    return target, num


def measure(world: World, kind: str, flags: Any, seed: int) -> dict[str, float]:
    """Shares of test queries whose ten best are other ones, or in another order, after the attack."""
    funnel, memory = world.funnel()
    simulation = Simulation(
        funnel.search, world.train, world.train_qrels, world.system.corpus.ids,
        model=PositionBased.power(_PAGE, 1.0), reformulated=world.direct(), seed=seed,
    )  # fmt: skip
    last = datetime.min.replace(tzinfo=UTC)
    for batch in simulation.rounds(flags.rounds, _BATCH):
        memory.observe(batch.events)
        last = max([last, *(event.time for event in batch.events)])
    before, quality = pages(world, funnel), world.quality(funnel)["nDCG@10"]
    target, num = attack(world, funnel, memory, kind, flags.clicks, last, seed)
    after = pages(world, funnel)
    return {
        "actions": num,
        "other_entities": float((np.sort(before) != np.sort(after)).any(axis=1).mean()),
        "other_order": float((before != after).any(axis=1).mean()),
        "target_enters": float(((after == target).any(axis=1) & ~(before == target).any(axis=1)).mean()),
        "nDCG@10_change": float((world.quality(funnel)["nDCG@10"] - quality).mean()),
    }


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/memory.yaml",
        "runs/attack",
        lambda parser: (
            parser.add_argument("--rounds", type=int, default=5_000),
            parser.add_argument("--clicks", type=int, default=10_000),
            parser.add_argument("--seeds", type=int, default=5),
            parser.add_argument("--arm", default="memory", help="the arm that learns"),
        ),
    )
    (system,) = open_systems(flags.config, overrides)
    world = World(system, flags.arm)
    lines = [
        "| attack | actions | ten best hold others | in another order | target enters | change of nDCG@10 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    results: dict[str, Any] = {"rounds": flags.rounds, "clicks": flags.clicks, "seeds": flags.seeds, "attacks": {}}
    for kind in ATTACKS:
        found = [measure(world, kind, flags, seed) for seed in tqdm(range(flags.seeds), kind, unit="seed")]
        results["attacks"][kind] = {name: [one[name] for one in found] for name in found[0]}
        cells = [f"{np.mean(values):.4g}" for values in results["attacks"][kind].values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    flags.out.mkdir(parents=True, exist_ok=True)
    for name, text in (("results.json", json.dumps(results, indent=1)), ("table.md", "\n".join(lines))):
        with atomic_write(flags.out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(run)
