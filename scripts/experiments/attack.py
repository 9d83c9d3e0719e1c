"""The most that one hostile customer changes for others through memory: top-10 lists of test queries before and after.

python scripts/experiments/attack.py --config configs/memory.yaml --data FOLDER --out DIR [--rounds 5000]
    [--clicks 10000] [--seeds 5]

Memory learns from simulated customers as in memory.py; then one customer attacks in each of the ways that
ltrr/simulation/attack.py describes (worst, dismiss, crowd, push). Writes DIR/results.json and DIR/table.md.
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.simulation.attack import ATTACKS, damage
from ltrr.simulation.worlds import World
from ltrr.system.system import open_systems

HEADER = "attack", "actions", "ten best hold others", "in another order", "target enters", "change of nDCG@10"


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
    attacks: dict[str, dict[str, list[float]]] = {}
    for kind in ATTACKS:
        seeds = [
            damage(world, kind, rounds=flags.rounds, clicks=flags.clicks, seed=seed)
            for seed in tqdm(range(flags.seeds), kind, unit="seed")
        ]
        attacks[kind] = {measure: [seed[measure] for seed in seeds] for measure in seeds[0]}
    rows = [[kind, *(f"{np.mean(values):.4g}" for values in of.values())] for kind, of in attacks.items()]
    results = {"rounds": flags.rounds, "clicks": flags.clicks, "seeds": flags.seeds, "attacks": attacks}
    write_experiment(flags.out, results, markdown(HEADER, rows))


if __name__ == "__main__":
    main(run)
