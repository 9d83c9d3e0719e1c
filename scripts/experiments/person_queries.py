"""Compares systems on the queries that name a person and not a title: there structure should win over words.

python scripts/experiments/person_queries.py --data FOLDER --results DIR [--people actors director characters]

A query counts when a person or character of a positive shares at least two of its words (stopwords apart) or has all of
their name in it, and no positive's title shares any. Reads DIR/per_query.parquet, which scripts/evaluate.py wrote for
the same split, and writes DIR/person_queries.json.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.data.beir import Corpus, Split, field_values
from ltrr.evaluation.report import bootstrap_interval, holm, paired_randomisation
from ltrr.evaluation.tables import markdown
from ltrr.files import atomic_write
from ltrr.system.system import open_systems


def words(text: str) -> frozenset[str]:
    """Lower-case words without accents and stopwords."""
    folded = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return frozenset(re.findall(r"\w+", folded)) - ENGLISH_STOP_WORDS


def chosen(split: Split, corpus: Corpus, people: list[str]) -> list[str]:
    """Ids of the queries that name a person of a positive and no positive's title."""
    out = []
    for query in split.queries:
        asked = words(query.text)
        positives = [corpus[corpus.row(doc)] for doc, grade in split.qrels[query.id].items() if grade > 0]
        if any(asked & words(document.title) for document in positives):
            continue
        names = [words(name) for d in positives for field in people for name, _ in field_values(d, field)]
        if any(len(asked & name) >= 2 or (name and name <= asked) for name in names):
            out.append(query.id)
    return out


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/funnel.yaml",
        extra=lambda parser: (
            parser.add_argument("--results", type=Path, required=True, help="folder that evaluate.py wrote"),
            parser.add_argument("--split", default="test"),
            parser.add_argument("--people", nargs="+", default=["actors", "director", "characters"]),
            parser.add_argument("--measure", default="R@10"),
            parser.add_argument("--baseline", default="lexical"),
        ),
    )
    system = open_systems(flags.config, overrides)[0]
    for field in flags.people:
        if field not in system.corpus.fields:
            raise ConfigError(f"--people: no field {field!r}; this corpus has {', '.join(system.corpus.fields)}")
    ids = set(chosen(system.dataset.split(flags.split), system.corpus, flags.people))
    table = pq.read_table(flags.results / "per_query.parquet").to_pandas()
    table = table[(table["measure"] == flags.measure) & table["query_id"].isin(ids)]
    values = table.pivot(index="query_id", columns="system", values="value")
    if flags.baseline not in values:
        raise ConfigError(f"--baseline: no system {flags.baseline!r}; there are {', '.join(values.columns)}")
    base = values[flags.baseline].to_numpy()
    others = [name for name in values.columns if name != flags.baseline]
    adjusted = holm([paired_randomisation(values[name].to_numpy(), base) for name in others])
    p_values = dict(zip(others, adjusted.tolist(), strict=True))
    report = {"n": len(values), "measure": flags.measure, "baseline": flags.baseline, "systems": {}}
    print(f"{len(values)} queries of {flags.split} name a person of a positive and no positive's title")
    rows = []
    for name in values.columns:
        column = values[name].to_numpy()
        low, high = bootstrap_interval(column)
        report["systems"][name] = {"mean": column.mean(), "low": low, "high": high, "p": p_values.get(name)}
        p = f"{p_values[name]:.4f}" if name in p_values else "—"
        rows.append([name, f"{column.mean():.4f}", f"{low:.3f}–{high:.3f}", p])
    header = ["system", flags.measure, "95 % interval", f"p (Holm) against {flags.baseline}"]
    print("\n".join(markdown(header, rows)))
    with atomic_write(flags.results / "person_queries.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(run)
