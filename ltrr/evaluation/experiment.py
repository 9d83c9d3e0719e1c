"""Runs and scores systems on the queries of one split, as BEIR does: 1,000 results per query, without the query itself.

Knows searches, rankers and a funnel's two steps; knows nothing about configs or files. Legend: Q queries, K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from ltrr.evaluation.report import SystemResult
from ltrr.fusion import union
from ltrr.metrics import MEASURES, drop_self, evaluate, to_run
from ltrr.protocols import Arm, Ranker
from ltrr.types import Candidates, Qrels, Query, Run

DEPTH = 1000
STAGES = ("ltrr_before_ranking", "ltrr_ranker_alone", "ltrr")  # rows of the whole funnel
_BATCH = 256


class Staged(Protocol):
    """A funnel in two steps: everything before its ranker, then the ranker."""

    def draw(self, queries: Sequence[Query]) -> Any:
        """Retrieves for the ranker; `fused` of the result holds the Candidates in the order before ranking."""
        ...

    def rank_stages(self, queries: Sequence[Query], retrieved: Any, /) -> Sequence[Candidates | None]:
        """Ranks all retrieved candidates at each of STAGES: (Q, K), or None for a stage that the funnel lacks."""
        ...


def evaluate_systems(
    arms: Mapping[str, Arm],
    fusions: Mapping[str, Ranker],
    fused: Sequence[str],
    queries: Sequence[Query],
    qrels: Qrels,
    doc_ids: Sequence[str],
    *,
    funnel: Staged | None = None,
    trained: Mapping[str, Sequence[str]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> tuple[list[SystemResult], dict[str, Run]]:
    """Scores every arm alone, every fusion of the arms named in `fused`, and the funnel before and after ranking.

    `trained`: system -> splits whose queries it was trained on. `notes`: system -> remark for the table. Milliseconds
    per query are wall time in batches of 256, at depth 1,001 (the funnel decides its own depths). A fusion's time
    includes its arms; `ltrr`'s includes the whole funnel. scripts/benchmarks/arms.py times single queries.
    """
    stages = STAGES if funnel else ()
    runs: dict[str, Run] = {name: {} for name in (*arms, *fusions, *stages)}
    seconds = dict.fromkeys(runs, 0.0)
    for arm in arms.values():
        arm.search(queries[:1], 10)  # the first call pays for lazy imports and thread pools
    for start in tqdm(range(0, len(queries), _BATCH), "evaluate", unit="batch", disable=len(queries) < 2 * _BATCH):
        batch = queries[start : start + _BATCH]
        ids = [q.id for q in batch]
        by_arm: dict[str, Candidates] = {}
        for name, arm in arms.items():
            clock = time.perf_counter()
            by_arm[name] = arm.search(batch, DEPTH + 1)  # one more, because one may be the query itself
            seconds[name] += time.perf_counter() - clock
            runs[name] |= _run(ids, by_arm[name], doc_ids)
        for name, ranker in fusions.items():
            clock = time.perf_counter()
            ranked = ranker.rank(batch, union({arm: by_arm[arm] for arm in fused}))
            seconds[name] += time.perf_counter() - clock
            runs[name] |= _run(ids, ranked, doc_ids)
        if funnel:
            times = [time.perf_counter()]
            drawn = funnel.draw(batch)
            times.append(time.perf_counter())
            ranked = funnel.rank_stages(batch, drawn)
            times.append(time.perf_counter())
            for name, stage, end in zip(STAGES, ranked, (times[1], times[2], times[2]), strict=True):
                seconds[name] += end - times[0]
                runs[name] |= _run(ids, stage, doc_ids) if stage else {}
    runs = {name: run for name, run in runs.items() if run or name not in stages}
    for name in fusions:
        seconds[name] += sum(seconds[arm] for arm in fused)
    measures = (*MEASURES, "Judged@10")
    results = [
        SystemResult(
            name,
            evaluate(run, qrels, measures),
            1000 * seconds[name] / len(queries),
            (notes or {}).get(name, ""),
            tuple((trained or {}).get(name, ())),
        )
        for name, run in runs.items()
    ]
    return results, runs


def _run(ids: Sequence[str], candidates: Candidates, doc_ids: Sequence[str]) -> Run:
    run = drop_self(to_run(ids, candidates.first(DEPTH + 1), doc_ids))
    return {query: dict(list(docs.items())[:DEPTH]) for query, docs in run.items()}
