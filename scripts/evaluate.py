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

from collections.abc import Sequence
from pathlib import Path

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.data.beir import open_dataset
from ltrr.evaluation.experiment import STAGES, evaluate_systems
from ltrr.evaluation.nearest import NearestQueries
from ltrr.evaluation.report import SystemResult, table, write_mean, write_report
from ltrr.files import atomic_write
from ltrr.system.system import System, open_systems

FUSIONS = ("rrf", "convex")
LABELS = "train_labels"


def table_by(source: str, field: str, results: Sequence[SystemResult]) -> str:
    """nDCG@10 / R@100 of every system by a field of the queries' metadata, which is read here for analysis only."""
    group = {q.id: q.context.attributes.get(field, "") for q in open_dataset(source, query_fields=[field]).queries}
    ids = results[0].per_query.query_ids
    names = sorted({group[i] for i in ids})
    lines = [
        f"| {field} | queries | {' | '.join(r.shown for r in results)} |",
        "| --- |" + " ---: |" * (1 + len(results)),
    ]
    for name in names:
        at = [row for row, i in enumerate(ids) if group[i] == name]
        cells = [
            f"{r.per_query.of('nDCG@10')[at].mean():.3f} / {r.per_query.of('R@100')[at].mean():.3f}" for r in results
        ]
        lines.append(f"| {name} | {len(at)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def evaluate(system: System, split: str, out: Path, baseline: str | None, by: str | None = None) -> dict:
    """Table, runs and plots of one data set; a table by a field of the queries' metadata where asked for."""
    queries, qrels = system.dataset.split(split)
    fusions = FUSIONS if len(system.fusion_arms) > 1 else ()
    learned = system.learns
    stages = STAGES if system.has_ranker else STAGES[-1:] * learned
    for name in system.specs:
        if name in (*FUSIONS, *STAGES, LABELS):
            raise ConfigError(f"arms.{name}: the table has a row of this name already; call the arm something else")
    # Which models make each row, and on which queries of this data set they were trained.
    parts = {name: [f"arms.{name}"] for name in system.usable()}
    parts |= {fusion: [f"arms.{name}" for name in system.fusion_arms] for fusion in fusions}
    drawn = [f"arms.{name}" for name, depth in system.depths.items() if depth]
    ranked = [*drawn, *["ranker"] * system.has_ranker]
    parts |= {stage: drawn if stage == STAGES[0] else ranked for stage in stages}
    trained = {name: splits for name, of in parts.items() if (splits := system.trained_on(of))}
    labelled = sorted({s for splits in trained.values() for s in splits} & set(system.dataset.splits) - {split})
    baseline = baseline or ("lexical" if "lexical" in parts else next(iter(parts)))
    if baseline not in (known := [*parts, *([LABELS] if labelled else [])]):
        raise ConfigError(f"--baseline: no system {baseline!r}; there will be {', '.join(known)}")

    arms = {name: system.arm(name) for name in system.usable()}
    if labelled:
        from ltrr.encoders.backbone import load_encoder  # torch takes seconds to import

        arms[LABELS] = NearestQueries(load_encoder(), system.corpus, [system.dataset.split(s) for s in labelled])
        trained[LABELS] = labelled
    results, runs = evaluate_systems(
        arms,
        {name: system.order(name) for name in fusions},
        system.fusion_arms,
        queries,
        qrels,
        system.corpus.ids,
        funnel=system.funnel(seed=0) if stages else None,
        trained=trained,
        notes={name: "trained on this split: no test" for name, splits in trained.items() if split in splits},
    )
    held = f"at most {system.settings.policy.get('cut', 100)} candidates a query"
    if learned:
        served = [len(found) for found in runs[STAGES[-1]].values()]
        held = f"{sum(served) / len(served):.3g} candidates a query in the mean"
    report = write_report(
        out,
        dataset=system.dataset.name,
        split=split,
        num_docs=len(system.corpus),
        results=results,
        baseline=baseline,
        runs=runs,
        tuned=system.tuned(),
        footnote=f" `ltrr` rows\nhold {held}, other rows 1,000." if stages else "",
    )
    print(f"\n{system.dataset.name}, {split}: {len(queries):,} queries, {len(system.corpus):,} documents")
    print(table(results, baseline))
    if by:
        groups = table_by(str(system.settings.data.path), by, results)
        with atomic_write(out / f"by_{by}.md") as temporary:
            temporary.write_text(groups, encoding="utf-8")
        print(f"nDCG@10 / R@100 by {by}\n{groups}")
    return report


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
        evaluate(systems[0], flags.split, flags.out, flags.baseline, flags.by)
    else:
        reports = [evaluate(s, flags.split, flags.out / s.dataset.name, flags.baseline) for s in systems]
        whole = write_mean(flags.out, Path(flags.data).name, reports)
        print(f"mean of {len(reports)} sets:", {n: round(s["nDCG@10"], 4) for n, s in whole["systems"].items()})
    print(f"written: {flags.out}/results.json, table.md, per_query.parquet, runs/, plots/")


if __name__ == "__main__":
    main(run)
