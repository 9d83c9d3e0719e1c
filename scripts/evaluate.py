"""The BEIR table of a config's arms, their fusions and, where it has a ranker or a learned policy, the whole funnel.

python scripts/evaluate.py --config configs/funnel.yaml --data FOLDER|ZIP|HUBNAME --split test --out DIR

Builds missing indexes and tunes what the config leaves free on train and dev (never on the split that is evaluated),
then writes DIR/results.json, DIR/table.md, DIR/per_query.parquet, DIR/runs/*.trec and DIR/plots/*.png. A collection
such as CQADupStack gets a folder for each of its sets, and the mean over the sets in DIR/results.json.

Rows beside the arms: `rrf` and `convex`; `ltrr`, the funnel that serve.py answers with, `ltrr_before_ranking`, and
`ltrr_ranker_alone`, whose order does not mix in the fused one; and, where a model was trained on queries of this data
set, `train_labels`: the positives of the nearest of those queries.
"""

from __future__ import annotations

from pathlib import Path

from ltrr.cli.arguments import arguments, main
from ltrr.evaluation.report import write_mean
from ltrr.system.evaluate import evaluate_system
from ltrr.system.system import open_systems


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/funnel.yaml",
        "runs/evaluate",
        lambda parser: (
            parser.add_argument("--split", default="test"),
            parser.add_argument("--by", help="also by this field of the queries' metadata, for example intent"),
            parser.add_argument("--baseline", help="system that p-values compare with (lexical, else the first arm)"),
        ),
    )
    systems = open_systems(flags.config, overrides, hold_out=flags.split)
    if len(systems) == 1:
        evaluate_system(systems[0], flags.split, flags.out, flags.baseline, flags.by)
    else:
        reports = [evaluate_system(s, flags.split, flags.out / s.dataset.name, flags.baseline) for s in systems]
        whole = write_mean(flags.out, Path(flags.data).name, reports)
        print(f"mean of {len(reports)} sets:", {n: round(s["nDCG@10"], 4) for n, s in whole["systems"].items()})
    print(f"written: {flags.out}/results.json, table.md, per_query.parquet, runs/, plots/")


if __name__ == "__main__":
    main(run)
