"""What orders a union best where nothing is judged: reciprocal ranks or equal weights, beside fitted ones and one arm.

python scripts/experiments/fusion.py --data FOLDER [FOLDER …] --out DIR [--config configs/stream.yaml]

A folder may name its judgements, FOLDER:qrels-strict. Each way orders the whole union of the config's arms for the
test queries of each data set; only *fitted* sees judgements, those of train. Writes DIR/results.json and table.md:
nDCG@10 and its difference to reciprocal ranks, with 95 % bootstrap intervals over queries.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ltrr.cli.arguments import main
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.fusion import ConvexFusion, ReciprocalRankFusion
from ltrr.metrics import evaluate, to_run
from ltrr.protocols import Ranker
from ltrr.system.streams import stream_world
from ltrr.system.system import open_systems

_DRAWS = 2_000


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/stream.yaml"))
    parser.add_argument("--data", nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("runs/fusion"))
    flags = parser.parse_args()
    rows = [row for folder in flags.data for row in _compared(flags.config, folder)]
    names = list(dict.fromkeys(row["order"] for row in rows if not row["arm"]))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    means = {name: float(np.mean([row["difference"] for row in rows if row["order"] == name])) for name in names}
    worst = {name: min(row["difference"] for row in rows if row["order"] == name) for name in names}
    body = [
        [
            row["set"],
            row["order"],
            f"{row['nDCG@10']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}",
        ]
        for row in rows
    ]
    lines = markdown(["data set", "order", "nDCG@10", "difference to rrf", "95 % interval"], body, text=(0, 1, 4))
    lines += ["", f"Over {len(sets)} data sets, difference to rrf: mean and worst.", ""]
    lines += markdown(["order", "mean", "worst"], [[n, f"{means[n]:+.4f}", f"{worst[n]:+.4f}"] for n in names])
    write_experiment(flags.out, {"rows": rows, "mean": means, "worst": worst}, lines)


def _compared(config: Path, given: str) -> list[dict[str, Any]]:
    """The orders of one data set."""
    folder, _, qrels = given.partition(":")
    (system,) = open_systems(config, ["--data.path", folder, *(["--data.qrels", qrels] if qrels else [])])
    pools, arms = stream_world(system).of("test").without([]), [*system.drawn]
    judged, ids = system.dataset.split("test").qrels, system.corpus.ids
    equal = dict.fromkeys(arms, 1 / len(arms))
    orders: dict[str, Ranker] = {"rrf": ReciprocalRankFusion()}
    orders |= {f"equal weights, {norm}": ConvexFusion(equal, norm) for norm in ("minmax", "zscore")}
    orders |= {"fitted on train": system.order("convex")} | {f"{arm} alone": ConvexFusion({arm: 1.0}) for arm in arms}
    names = [query.id for query in pools.queries]
    each = {
        name: evaluate(to_run(names, order.rank(pools.queries, pools.pool), ids), {q: judged[q] for q in names})
        for name, order in orders.items()
    }
    reached = {name: found.of("nDCG@10") for name, found in each.items()}
    rng, rows = np.random.default_rng(0), []
    draws = rng.integers(len(names), size=(_DRAWS, len(names)))
    for name, values in reached.items():
        difference = values - reached["rrf"]
        low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975]).tolist()
        found = {"nDCG@10": float(values.mean()), "difference": float(difference.mean()), "low": low, "high": high}
        rows.append({"set": Path(folder).name, "order": name, "arm": name.endswith(" alone"), **found})
    return rows


if __name__ == "__main__":
    main(run)
