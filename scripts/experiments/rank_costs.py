"""What a policy of cuts saves the ranker: quality after ranking over the candidates that are ranked.

python scripts/experiments/rank_costs.py --policy runs/policy-msrd --ranker runs/cross_encoder-1/export --out DIR
    [--queries 1000]

Takes the cuts that simulate.py kept (cuts.npz, config.yaml) for its test queries. A cross-encoder scores once every
candidate that any policy may let through; then each query's first candidates, as many as the policy lets through, are
ranked by it and by the fused score, mixed with a weight that was fitted on dev at the deepest cut. Beside it fixed
cuts and all candidates. Writes DIR/results.json, table.md and quality.png; scores are kept under DIR/scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.encoders.cross_encoder import load_cross_encoder
from ltrr.evaluation.cut_report import cell, frontier
from ltrr.evaluation.regret import Chosen, fixed, mean_of
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.files import content_key
from ltrr.funnel import FusedOrder
from ltrr.metrics import evaluate, to_run
from ltrr.policies.fixed import FixedPolicy
from ltrr.rankers.cross_encoder import MEASURE, CrossEncoderRanker, fit_weight, interpolate
from ltrr.simulation.kept import kept
from ltrr.simulation.pools import JudgedPools
from ltrr.simulation.truth import ORDER
from ltrr.system.simulated import order_of, pools_reader
from ltrr.system.system import open_systems
from ltrr.types import Candidates, Qrels

_SCORED = 20  # queries between two looks at the clock
_CUTS = (1, 2, 3, 5, 10, 20, 30, 40)  # the same for all, in the table
_DEV = 200  # queries on which the weight is fitted


class Scored:
    """Some queries, their first candidates in fused order, and the cross-encoder's score of each.

    Args:
        pools: of these queries, in fused order. qrels: of their split.
        num: candidates. path: where scores are kept.
    """

    def __init__(self, pools: JudgedPools, qrels: Qrels, ranker: CrossEncoderRanker, num: int, path: Path) -> None:
        self.ids, self.groups = [query.id for query in pools.queries], pools.groups
        fused = self.fused = FusedOrder().rank(pools.queries, pools.pool).first(num)
        self.qrels = {query: qrels[query] for query in self.ids}

        def score() -> dict[str, np.ndarray]:
            pieces = []
            for start in tqdm(range(0, len(self.ids), _SCORED), f"rank {path.stem}", unit="batch"):
                some = slice(start, start + _SCORED)
                pieces.append(ranker.score(pools.queries[some], Candidates(*(part[some] for part in fused))))
            return {"scores": np.concatenate(pieces)}

        self.cross = kept(path, score)["scores"]

    def quality(self, weight: float, doc_ids: Sequence[str]) -> np.ndarray:
        """(Q, M) nDCG@10 where the first 1 to M are ranked, and nothing else is shown."""
        out = []
        for cut in tqdm(range(1, self.cross.shape[1] + 1), "cuts", unit="cut"):
            ranked = interpolate(self.fused.first(cut), self.cross[:, :cut], weight).first(10)
            out.append(evaluate(to_run(self.ids, ranked, doc_ids), self.qrels, [MEASURE]).values[:, 0])
        return np.stack(out, axis=1)


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "",
        "runs/rank_costs",
        lambda parser: (
            parser.add_argument("--policy", type=Path, required=True, help="folder of a run of simulate.py"),
            parser.add_argument("--ranker", required=True, help="export of a cross-encoder, a folder or hub name"),
            parser.add_argument("--queries", type=int, default=1_000, help="of the policy's test queries, at most"),
        ),
    )
    try:
        with np.load(flags.policy / "cuts.npz", allow_pickle=False) as file:
            cuts = {name: file[name] for name in file.files if name.startswith("K=")}
            split, num, ids = str(file["split"]), int(file["num"]), file["ids"].tolist()
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"--policy {flags.policy}: has no cuts.npz, as simulate.py writes without --folds, --learn and --change"
            f" ({error})"
        ) from None

    # 1) The same queries and candidates as in the simulation.
    (system,) = open_systems(flags.policy / "config.yaml", overrides, hold_out=split)
    read = pools_reader(system, FixedPolicy(system.drawn, system.depths))
    dev, test = read(["dev"]), read([split])
    if [query.id for query in test.queries] != ids:
        raise ConfigError(f"--policy {flags.policy}: its test queries are not those of the data set now; run it again")
    order, rows = order_of(system, dev), sample(len(ids), flags.queries)

    # 2) The cross-encoder's scores, and the weight with which they are mixed with the fused ones.
    scorer = load_cross_encoder(flags.ranker)
    ranker = CrossEncoderRanker(scorer, system.corpus, FusedOrder(), depth=num)
    folder = flags.out / "scores" / content_key(scorer.id, vars(order), num, ids)

    def scored(split: str, pools: JudgedPools, rows: np.ndarray) -> Scored:
        path = folder / f"{split}-{len(rows)}-{num}.npz"
        return Scored(pools.some(rows).fused(order), system.dataset.split(split).qrels, ranker, num, path)

    on_dev = scored("dev", dev, sample(len(dev.queries), _DEV))
    weight = fit_weight(on_dev.fused, on_dev.cross, on_dev.ids, system.corpus.ids, on_dev.qrels)
    on_test = scored(split, test, rows)
    quality = on_test.quality(weight, system.corpus.ids)

    # 3) Quality at the policy's cuts.
    full = quality[:, -1]
    results: dict[str, Any] = {"queries": len(rows), "all": num, "weight": weight, "quality": float(full.mean())}
    results["rows"], reached = [], {}
    for name, chosen in cuts.items():
        seeds = [each[rows].astype(int) for each in chosen]  # (Q, 1 + prices) each
        reached[name] = [Chosen(each.astype(float), np.take_along_axis(quality, each - 1, 1)) for each in seeds]
        mean, ranked = (
            float(np.mean([each[:, 0].mean() for each in seeds])),
            np.stack([c.recall[:, 0] for c in reached[name]]),
        )
        same = fixed(quality, mean)
        row = {"policy": ranked - full, "fixed": (same - full)[None], "gain": ranked - same}
        intervals = {key: mean_of(values, on_test.groups)._asdict() for key, values in row.items()}
        row = {"K": name, "mean": mean, "share": mean / num, "quality": float(ranked.mean())} | intervals
        results["rows"].append(row)
    shown = [*(cut for cut in _CUTS if cut < num), num]
    results["fixed"] = {str(cut): float(quality[:, cut - 1].mean()) for cut in shown}
    label = f"{MEASURE} after ranking"
    write_experiment(flags.out, results, report(results), quality=frontier(quality, reached, label, hindsight=False))


def sample(num: int, most: int) -> np.ndarray:
    """At most so many of the rows 0 to num − 1, ascending, the same ones each time."""
    return np.arange(num) if most >= num else np.sort(np.random.default_rng(0).choice(num, most, replace=False))


def report(results: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{MEASURE} after ranking the first {results['all']} candidates in fused order, all that a policy looks at: "
        f"{results['quality']:.4f} ({results['queries']:,} queries, weight of the cross-encoder "
        f"{results['weight']}).",
        "",
    ]
    header = "budget", "candidates ranked", "of all", MEASURE, "policy − all", "same cut − all", "policy − same cut"
    rows = [
        (row["K"], f"{row['mean']:.1f}", f"{row['share']:.0%}", f"{row['quality']:.4f}",
         *(cell(row[name], "+.4f") for name in ("policy", "fixed", "gain")))
        for row in results["rows"]
    ]  # fmt: skip
    lines += markdown(header, rows)
    cuts = results["fixed"]
    lines += ["", *markdown(("the same cut for all", *cuts), [(MEASURE, *(f"{value:.4f}" for value in cuts.values()))])]
    return [*lines, "", f"Fused by {ORDER}; intervals (95 %) are over groups of queries and seeds together."]


if __name__ == "__main__":
    main(run)
