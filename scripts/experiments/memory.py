"""Memory learns from simulated clicks: quality on test queries after each amount of feedback.

python scripts/experiments/memory.py --config configs/memory.yaml --data FOLDER --out DIR [--rounds 5000 50000]
    [--seeds 10] [--eta 1] [--noise 0.1] [--direct 0.5] [--by intent] [--split test]
    [--drift ROUNDS] [--observed DIR] [--data.qrels qrels-random]

Customers ask train queries and their clicks teach the memory arm; test queries are asked in between and teach nothing.
Rows: `without` has no memory arm, `0` only its predictions, `train_labels` the positives of the ten nearest train
queries, weighted by similarity. `--by` reads a field of the queries' metadata for the analysis alone. `--observed`
writes the queries with which the last seed's customers found documents (see scripts/observed.py). Memory believes that
customers look at position k with probability 1 / k, whatever `--eta` is.
Writes DIR/results.json, DIR/table.md and DIR/curve.png.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.data.beir import Split, open_dataset
from ltrr.data.expansions import write_observed
from ltrr.encoders.backbone import load_encoder
from ltrr.evaluation.groups import by_group
from ltrr.evaluation.nearest import NearestQueries
from ltrr.evaluation.plots import curves
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.files import atomic_write
from ltrr.protocols import ObservesQueries
from ltrr.simulation.memory import checkpoints, query_groups
from ltrr.simulation.worlds import MEASURES, World, shown_by
from ltrr.system.system import open_systems

WITHOUT, LABELS = "without", "train_labels"
HEADER = "queries", "n", "rounds", *MEASURES, *(f"p ({m})" for m in MEASURES), "used", "R@10 of those"
FOOT = (
    f"p: paired randomisation against `{WITHOUT}`, of a query's mean over seeds, not adjusted.",
    "used: share of queries asked before, in these words, twice by their own customer or by three customers.",
)


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/memory.yaml",
        "runs/memory",
        lambda parser: (
            parser.add_argument("--rounds", type=int, nargs="+", default=[5_000, 50_000]),
            parser.add_argument("--seeds", type=int, default=10),
            parser.add_argument("--eta", type=float, default=1.0, help="position k is looked at with k^-eta"),
            parser.add_argument("--noise", type=float, default=0.1, help="clicks on irrelevant documents"),
            parser.add_argument("--direct", type=float, default=0.5, help="who ask again by the title, 0 = nobody"),
            parser.add_argument("--drift", type=int, help="rounds after which a tenth of the queries trade wishes"),
            parser.add_argument("--arm", default="memory", help="the arm that learns"),
            parser.add_argument("--observed", type=Path, help="folder for the queries that found documents"),
            parser.add_argument("--split", default="test", help="the queries on which quality is measured"),
            parser.add_argument("--by", help="also by this field of the queries' metadata, for example intent"),
        ),
    )  # fmt: skip
    if flags.seeds < 1:
        raise ConfigError(f"--seeds {flags.seeds}: at least 1")
    if flags.observed and flags.observed.exists():
        raise ConfigError(f"--observed {flags.observed}: is there already; remove it or name a new folder")
    # 1) The world, and the two systems that do not learn.
    (system,) = open_systems(flags.config, overrides, hold_out=flags.split)
    by = open_dataset(str(system.settings.data.path), query_fields=[flags.by]).queries if flags.by else []
    world = World(system, flags.arm, flags.split)
    labels = NearestQueries(load_encoder(), system.corpus, [Split(world.train, world.train_qrels)])
    fixed = {WITHOUT: world.quality(shown_by(world.funnel(world.learner(), depth=0)))}
    fixed[LABELS] = world.quality(labels.search)

    # 2) Rounds of feedback, for each seed.
    how: dict[str, Any] = {name: getattr(flags, name) for name in ("eta", "noise", "direct", "drift")}
    seeds, learner = [], world.learner()
    for seed in tqdm(range(flags.seeds), "simulate", unit="seed"):
        learner = world.learner()
        seeds.append(list(checkpoints(world, learner, flags.rounds, **how, seed=seed)))
    if flags.observed and isinstance(learner, ObservesQueries):
        write_observed(flags.observed, system.corpus, learner.observed())
        with atomic_write(flags.observed / "ltrr.json") as temporary:  # customers asked train queries
            temporary.write_text(json.dumps({"data": system.corpus.fingerprint, "splits": ["train"]}) + "\n")

    # 3) Every group of queries, after each amount of feedback.
    systems = {name: {m: np.stack([values[m]] * flags.seeds) for m in MEASURES} for name, values in fixed.items()}
    used = {}
    for checkpoint in zip(*seeds, strict=True):
        name = f"{checkpoint[0].rounds:,}"
        systems[name] = {m: np.stack([seed.quality[m] for seed in checkpoint]) for m in MEASURES}
        used[name] = np.stack([seed.recurring for seed in checkpoint])
    masks = query_groups(world, {q.id: q.context.attributes.get(flags.by, "") for q in by})
    groups, rows = by_group(systems, masks, baseline=WITHOUT, subset=("used", "R@10", used))
    results = {"dataset": system.dataset.name, "split": flags.split, "seeds": flags.seeds}
    results |= {"queries": len(world.measured), "groups": groups}
    lines = {name: {r: group["rounds"][r]["R@10"] for r in used} for name, group in groups.items()}
    curve = curves(lines, "simulated rounds", "R@10 on the queries that are measured")
    write_experiment(flags.out, results, [*markdown(HEADER, rows, text=(0, 2)), "", *FOOT], curve=curve)


if __name__ == "__main__":
    main(run)
