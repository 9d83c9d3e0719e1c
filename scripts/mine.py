"""Negatives, teacher scores and candidates to train on, as TREC run files, from what an arm or a fusion finds.

python scripts/mine.py --config configs/funnel.yaml --data FOLDER --arm dense --split train --out runs/mined/NAME
    [--window 5 100] [--num 30] [--margin 0.05 | none] [--teacher runs/cross_encoder-1/export] [--limit N]
python scripts/mine.py --data FOLDER --arm rrf --split dev --candidates [--num 50] --out runs/mined/NAME

The negatives of a query are the best `num` within the ranks of `window`, without its known positives and without what
is likely a positive that nobody judged: dropped is what scores above best - margin * |best|, best being the score of
the query's best positive (NV-Retriever, arXiv 2407.15831). The arm scores both (a positive that it does not find among
1,000 is below all that it finds), or the teacher where there is one, which reads the whole window. What was judged not
relevant is never dropped; queries without a positive are left out. --candidates takes the best `num` as they are,
positives included: what a ranker is trained and validated on.

Writes into DIR
    negatives.trec     query, document, the arm's score (candidates.trec with --candidates)
    teacher.trec       the teacher's scores of those documents and of the positives
    mining.json        settings, models, counts and the share that was dropped; written last

A collection such as CQADupStack gets a folder for each of its sets. The same command writes the same files.
Legend: P pairs of a query and a document.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError, check_known
from ltrr.data.beir import document_text
from ltrr.files import atomic_write
from ltrr.funnel import Funnel
from ltrr.metrics import drop_self, to_run, write_run
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import Scorer
from ltrr.system.system import System, open_systems
from ltrr.system.tuning import some
from ltrr.types import Query, Run

FUSIONS = ("rrf", "convex")
DEEP = 1000  # ranks among which a positive's score is looked for
SERVED = 100  # candidates of each arm that the funnel fuses
_BATCH = 256


def search(system: System, name: str, queries: Sequence[Query], depth: int) -> Run:
    """What an arm or a fusion finds, best first, without the query itself."""
    if name in FUSIONS:
        arms = {arm: system.arm(arm) for arm in system.fusion_arms}
        policy = FixedPolicy(list(arms), dict.fromkeys(arms, depth + 1), depth + 1)
        found = Funnel(arms, policy, system.order(name)).draw(queries).fused
    else:
        found = system.arm(name).search(queries, depth + 1)
    return drop_self(to_run([query.id for query in queries], found, system.corpus.ids))


def clear(
    found: Mapping[str, float], grades: Mapping[str, int], scores: Mapping[str, float], margin: float | None
) -> dict[str, float]:
    """Those of `found` (document -> the arm's score) that neither their grade nor their score makes a positive.

    scores: of the positives and of `found`, by whoever compares them; a positive without one is below all.
    """
    negatives = {doc: score for doc, score in found.items() if grades.get(doc, 0) == 0}
    if margin is None:
        return negatives
    best = max(scores.get(doc, -math.inf) for doc, grade in grades.items() if grade > 0)
    limit = best - margin * abs(best) if best > -math.inf else best
    return {doc: score for doc, score in negatives.items() if doc in grades or scores[doc] <= limit}


def mine(system: System, flags: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Writes the files of one data set and returns what mining.json holds."""
    check_known("--arm", flags.arm, [*system.usable(), *FUSIONS])
    corpus, (queries, qrels) = system.corpus, system.dataset.split(flags.split)
    positives = {query: [doc for doc, grade in grades.items() if grade > 0] for query, grades in qrels.items()}
    queries = some([q for q in queries if flags.candidates or positives[q.id]], flags.limit)
    fields = corpus.word_fields((system.settings.ranker or {}).get("text_fields"))
    teacher = load_teacher(flags.teacher) if flags.teacher else None
    depth = max(flags.num, SERVED) if flags.candidates else DEEP
    first, last = (1, flags.num) if flags.candidates else flags.window

    chosen: Run = {}
    taught: Run = {}
    num_seen = num_dropped = 0
    for start in tqdm(range(0, len(queries), _BATCH), "mine", unit="batch"):
        batch = queries[start : start + _BATCH]
        # 1) What the arm finds, and of it the window.
        found = search(system, flags.arm, batch, depth)
        windows = {query: dict(islice(scores.items(), first - 1, last)) for query, scores in found.items()}

        # 2) What the teacher says of it and of the positives.
        told: Run = {q.id: {} for q in batch}
        if teacher:
            pairs = [(q, doc) for q in batch for doc in dict.fromkeys([*positives[q.id], *windows[q.id]])]
            texts = [document_text(corpus[corpus.row(doc)], fields) for _, doc in pairs]
            scores = teacher.score([q.text for q, _ in pairs], texts).tolist()
            for (q, doc), score in zip(pairs, scores, strict=True):
                told[q.id][doc] = score

        # 3) What is clear enough to learn from.
        for query, window in windows.items():
            own, kept = positives[query], window
            if not flags.candidates:
                kept = clear(window, qrels[query], told[query] or found[query], flags.margin)
                unknown = len(window.keys() - own)
                num_seen, num_dropped = num_seen + unknown, num_dropped + unknown - len(kept)
            chosen[query] = dict(islice(kept.items(), flags.num))
            taught[query] = {doc: s for doc, s in told[query].items() if doc in chosen[query] or doc in own}

    arms = system.fusion_arms if flags.arm in FUSIONS else [flags.arm]
    report = {
        "dataset": system.dataset.name,
        "data": corpus.fingerprint,
        "split": flags.split,
        "arm": flags.arm,
        "arms": {
            name: {"model": system.specs[name].get("model"), "build": system.indexes.identity(name)} for name in arms
        },
        "teacher": {"model": flags.teacher, "id": teacher.id} if teacher else None,
        "candidates": flags.candidates,
        "window": [first, last],
        "num": flags.num,
        "margin": None if flags.candidates else flags.margin,
        "num_queries": len(chosen),
        "num_queries_without": sum(not docs for docs in chosen.values()),
        "num_documents": sum(map(len, chosen.values())),
        "share_dropped": num_dropped / max(num_seen, 1),
        "tuned": system.tuned(),
    }
    write_run(chosen, out / ("candidates.trec" if flags.candidates else "negatives.trec"), flags.arm)
    if teacher:
        write_run(taught, out / "teacher.trec", "teacher")
    with atomic_write(out / "mining.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def load_teacher(model: str) -> Scorer:
    from ltrr.encoders.cross_encoder import load_cross_encoder  # torch takes seconds to import

    return load_cross_encoder(model)


def check(flags: argparse.Namespace) -> None:
    """ConfigError for flags that cannot be meant."""
    first, last = flags.window
    if not 1 <= first <= last <= DEEP:
        raise ConfigError(f"--window: {first} {last}; give two ranks, 1 <= first <= last <= {DEEP}")
    for name in ("num", "limit"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise ConfigError(f"--{name}: {value} is below 1")
    if flags.margin is not None and not 0 <= flags.margin < 1:
        raise ConfigError(f"--margin: {flags.margin} is not within [0, 1); it is a share of the positive's score")
    if flags.split == "test" and (not flags.candidates or flags.teacher):
        raise ConfigError(
            "--split test: negatives and teacher scores of test queries must not train anything; "
            "with --candidates (and no --teacher) you get what a ranker is tested on"
        )


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/funnel.yaml",
        "runs/mined",
        lambda parser: (
            parser.add_argument("--arm", required=True, help="an arm of the config, rrf or convex"),
            parser.add_argument("--split", default="train"),
            parser.add_argument("--window", type=int, nargs=2, default=[5, 100], help="first and last rank, from 1"),
            parser.add_argument("--num", type=int, default=30, help="documents of a query at most"),
            parser.add_argument(
                "--margin", type=margin, default=0.05, help="share of the best positive's score, or none"
            ),
            parser.add_argument("--teacher", help="a cross-encoder: folder or hub name"),
            parser.add_argument("--limit", type=int, help="only so many queries, picked by a hash of their ids"),
            parser.add_argument("--candidates", action="store_true", help="the best `num` as they are"),
        ),
    )
    check(flags)
    systems = open_systems(flags.config, overrides)
    for system in systems:
        out = flags.out if len(systems) == 1 else flags.out / system.dataset.name
        report = mine(system, flags, out)
        shown = {key: report[key] for key in ("num_queries", "num_queries_without", "num_documents", "share_dropped")}
        print(f"{system.dataset.name}, {flags.split}: {json.dumps(shown)}. Written: {out}/")


def margin(text: str) -> float | None:
    return None if text == "none" else float(text)


if __name__ == "__main__":
    main(run)
