"""What a policy of cuts saves the ranker: quality after ranking over the candidates that are ranked.

python scripts/rank_costs.py --policy runs/policy-msrd --ranker runs/cross_encoder-1/export --out DIR [--queries 1000]

Takes the cuts that simulate.py kept (cuts.npz, config.yaml) for its test queries. A cross-encoder scores once every
candidate that any policy may let through; then each query's first candidates, as many as the policy lets through, are
ranked by it and by the fused score, mixed with a weight that was fitted on dev at the deepest cut. Beside it fixed
cuts and all candidates. Writes DIR/results.json, table.md and quality.png; scores are kept under DIR/scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from _simulation import ORDER, opened, order_of, searched
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.encoders.cross_encoder import load_cross_encoder
from ltrr.evaluation.regret import fixed, mean_of
from ltrr.files import atomic_write, content_key
from ltrr.funnel import FusedOrder, in_order
from ltrr.metrics import evaluate, to_run
from ltrr.protocols import Ranker
from ltrr.rankers.cross_encoder import MEASURE, CrossEncoderRanker, fit_weight, interpolate
from ltrr.system.system import System
from ltrr.types import Candidates

_SCORED = 20  # queries between two looks at the clock
_CUTS = (1, 2, 3, 5, 10, 20, 30, 40)  # the same for all, in the table
_DEV = 200  # queries on which the weight is fitted


class Scored:
    """Some queries of a split, their first candidates in fused order, and what the cross-encoder says of each."""

    def __init__(
        self, system: System, order: Ranker, ranker: CrossEncoderRanker, split: str, most: int, num: int, kept: Path
    ) -> None:
        whole = searched(system, [split])
        rows = np.arange(len(whole.queries))
        if most < len(rows):
            rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
        self.rows, some = rows, whole.some(rows)
        self.queries, self.groups = some.queries, some.groups
        pool = in_order(some.pool, order.rank(some.queries, some.pool).first(num))
        self.fused = Candidates(pool.docs, np.where(pool.docs >= 0, pool.scores[:, :, -1], -np.inf))
        self.qrels = {query.id: system.dataset.split(split).qrels[query.id] for query in self.queries}
        path = kept / f"{split}-{most}-{num}.npy"
        if not path.exists():
            pieces = []
            for start in tqdm(range(0, len(rows), _SCORED), f"rank {split}", unit="batch"):
                own = slice(start, start + _SCORED)
                pieces.append(ranker.score(self.queries[own], Candidates(*(part[own] for part in self.fused))))
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(pieces), allow_pickle=False)
        self.cross = np.load(path, allow_pickle=False)

    def quality(self, weight: float, doc_ids: Any) -> np.ndarray:
        """(Q, M) nDCG@10 where the first 1 to M are ranked, and nothing else is shown."""
        ids, out = [query.id for query in self.queries], []
        for cut in tqdm(range(1, self.cross.shape[1] + 1), "cuts", unit="cut"):
            first = self.fused.first(cut)
            ranked = interpolate(first, self.cross[:, :cut], weight).first(10)
            out.append(evaluate(to_run(ids, ranked, doc_ids), self.qrels, [MEASURE]).values[:, 0])
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
    _, system = opened(SimpleNamespace(config=flags.policy / "config.yaml", split=split), overrides, ["dev", split])
    scorer = load_cross_encoder(flags.ranker)
    ranker = CrossEncoderRanker(scorer, system.corpus, FusedOrder(), depth=num)
    order = order_of(system, searched(system, ["dev"]))
    kept = flags.out / "scores" / content_key(scorer.id, vars(order), num, ids)
    dev = Scored(system, order, ranker, "dev", _DEV, num, kept)
    dev_ids = [query.id for query in dev.queries]
    weight = fit_weight(dev.fused, dev.cross, dev_ids, system.corpus.ids, dev.qrels)
    test = Scored(system, order, ranker, split, flags.queries, num, kept)
    if [query.id for query in test.queries] != [ids[row] for row in test.rows]:
        raise ConfigError(f"--policy {flags.policy}: its test queries are not those of the data set now; run it again")
    quality = test.quality(weight, system.corpus.ids)
    full = quality[:, -1]
    results: dict[str, Any] = {"queries": len(test.rows), "all": num, "weight": weight, "quality": float(full.mean())}
    results["rows"], curves = [], {}
    for name, chosen in cuts.items():
        own = chosen[:, test.rows].astype(int)  # (S, Q, 1 + prices)
        reached = np.stack([np.take_along_axis(quality, each - 1, 1) for each in own])
        mean = float(own[:, :, 0].mean())
        same = fixed(quality, mean)
        told = {
            "policy": mean_of(reached[:, :, 0] - full, test.groups),
            "fixed": mean_of((same - full)[None], test.groups),
        }
        told["gain"] = mean_of(reached[:, :, 0] - same, test.groups)
        row = {"K": name, "mean": mean, "share": mean / num} | {n: each._asdict() for n, each in told.items()}
        results["rows"].append(row | {"quality": float(reached[:, :, 0].mean())})
        curves[name] = np.stack([own.mean(axis=(0, 1)), reached.mean(axis=(0, 1))], axis=1)
    shown = [*(cut for cut in _CUTS if cut < num), num]
    results["fixed"] = {str(cut): float(quality[:, cut - 1].mean()) for cut in shown}
    lines = report(results)
    flags.out.mkdir(parents=True, exist_ok=True)
    for name, text in {"results.json": json.dumps(results, indent=1), "table.md": lines}.items():
        with atomic_write(flags.out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    plot(flags.out / "quality.png", quality, curves)
    print(lines)
    print(f"written: {flags.out}/results.json, table.md, quality.png")


def report(results: dict[str, Any]) -> str:
    def cell(told: dict[str, float]) -> str:
        return f"{told['mean']:+.4f} ({told['low']:+.4f} to {told['high']:+.4f})"

    lines = [
        f"{MEASURE} after ranking the first {results['all']} candidates in fused order, all that a policy looks at: "
        f"{results['quality']:.4f} "
        f"({results['queries']:,} queries, weight of the cross-encoder {results['weight']}).",
        "",
        f"| budget | candidates ranked | of all | {MEASURE} | policy − all | same cut − all | policy − same cut |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        cells = [row["K"], f"{row['mean']:.1f}", f"{row['share']:.0%}", f"{row['quality']:.4f}"]
        lines.append(f"| {' | '.join([*cells, *(cell(row[n]) for n in ('policy', 'fixed', 'gain'))])} |")
    cuts = results["fixed"]
    lines += ["", f"| the same cut for all | {' | '.join(cuts)} |", f"| --- |{' ---: |' * len(cuts)}"]
    lines += [f"| {MEASURE} | {' | '.join(f'{value:.4f}' for value in cuts.values())} |"]
    lines += ["", f"Fused by {ORDER}; intervals (95 %) are over groups of queries and seeds together."]
    return "\n".join(lines)


def plot(path: Path, quality: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    """Over mean candidates that are ranked: the same cut for all, and each policy at other prices."""
    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    panel.plot(np.arange(1, quality.shape[1] + 1), quality.mean(axis=0), "k--", label="the same cut for all")
    for name, curve in curves.items():
        ordered = curve[np.argsort(curve[:, 0])]
        (line,) = panel.plot(*ordered.T, label=f"learned at {name}")
        panel.plot(*curve[0], "o", color=line.get_color())
    panel.set_xscale("log")
    panel.set_xlabel("mean candidates that are ranked")
    panel.set_ylabel(f"{MEASURE} after ranking")
    panel.grid(color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(run)
