"""Evaluates a system: its arms, their fusions and, where it has a ranker or a learned policy, the whole funnel.

Knows which rows the table has and which models each row uses; does not know how a search works or a report looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltrr.config import ConfigError
from ltrr.data.beir import open_dataset
from ltrr.evaluation.experiment import STAGES, evaluate_systems
from ltrr.evaluation.nearest import NearestQueries
from ltrr.evaluation.report import SystemResult, table, write_report
from ltrr.evaluation.tables import markdown
from ltrr.files import atomic_write
from ltrr.system.system import System

FUSIONS = ("rrf", "convex")
LABELS = "train_labels"


def table_by(source: str, field: str, results: Sequence[SystemResult]) -> str:
    """nDCG@10 / R@100 of every system by a field of the queries' metadata, which is read for the analysis alone."""
    group = {q.id: q.context.attributes.get(field, "") for q in open_dataset(source, query_fields=[field]).queries}
    ids, rows = results[0].per_query.query_ids, []
    for name in sorted({group[i] for i in ids}):
        at = [row for row, i in enumerate(ids) if group[i] == name]
        means = [[r.per_query.of(measure)[at].mean() for measure in ("nDCG@10", "R@100")] for r in results]
        rows.append([name, len(at), *(f"{ndcg:.3f} / {recall:.3f}" for ndcg, recall in means)])
    return "\n".join(markdown([field, "queries", *(r.shown for r in results)], rows)) + "\n"


def evaluate_system(system: System, split: str, out: Path, baseline: str | None, by: str | None = None) -> dict:
    """Writes and prints the table of one data set, and writes its runs and plots; returns results.json.

    Args:
        split: queries to evaluate on; nothing is tuned on them.
        out: folder.
        baseline: the system with which others are compared; None = `lexical`, else the first arm.
        by: also a table by this field of the queries' metadata.

    Errors: ConfigError for an arm with the name of another row, and for an unknown baseline.
    """
    # 1) The rows, the models that each uses, and the queries of this data set on which these were trained.
    queries, qrels = system.dataset.split(split)
    fusions = FUSIONS if len(system.fusion_arms) > 1 else ()
    learned = system.learns
    stages = STAGES if system.has_ranker else STAGES[-1:] * learned
    for name in system.specs:
        if name in (*FUSIONS, *STAGES, LABELS):
            raise ConfigError(f"arms.{name}: the table has a row of this name already; call the arm something else")
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

    # 2) Search and score.
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
    # 3) Report.
    held = f"at most {system.settings.policy.get('cut') or 100} candidates a query"
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
