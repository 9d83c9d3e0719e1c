"""Scores a run against qrels with ir-measures' pytrec_eval, query by query, and reads and writes TREC run files.

Knows string ids, scores and grades; knows nothing about corpora, arms or indexes. trec_eval ranks a query's documents
by descending float32 score, ties by descending document id. All measures here and the rank column of written files
follow that order. Legend: Q queries, K candidates, M measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ir_measures
import numpy as np
from ir_measures.providers import PytrecEvalProvider

from ltrr.files import atomic_write
from ltrr.types import Candidates, Qrels, Run

MEASURES = ("nDCG@10", "R@10", "R@100", "RR@10")
_PROVIDER = PytrecEvalProvider()
_LINE = "query Q0 document rank score tag"


class PerQuery(NamedTuple):
    """All measures of each query that has a positive."""

    query_ids: list[str]  # Q
    measures: tuple[str, ...]  # M names as requested
    values: np.ndarray  # (Q, M) float64

    def of(self, measure: str) -> np.ndarray:
        """Values of one measure, (Q,). Raises ValueError if it was not computed."""
        if measure not in self.measures:
            raise ValueError(f"{measure} was not computed, only {', '.join(self.measures)}: add it to `measures`")
        return self.values[:, self.measures.index(measure)]

    def mean(self) -> dict[str, float]:
        """Mean over queries, by measure."""
        return dict(zip(self.measures, self.values.mean(axis=0).tolist(), strict=True))


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES) -> PerQuery:
    """Scores a run on the queries of `qrels`, in their order. Measures are named as in ir-measures ("nDCG@10").

    A grade of 1 or more is a positive. Queries without a positive are left out: pytrec_eval would count 0 for any run.
    Queries without results score 0, as in ir-measures: pytrec_eval alone leaves them out, which rewards runs that
    return nothing. Queries of the run that are not in `qrels` are ignored. In addition to pytrec_eval's measures, RR@k
    is RR if the rank is at most k, else 0; Judged@k is the judged share of the first k results (of all results if there
    are fewer; 0 without results). Errors: ValueError for a measure that is unknown or not computed here, and if no
    query has a positive.
    """
    graded = {query: grades for query, grades in qrels.items() if max(grades.values(), default=0) > 0}
    if not graded:
        raise ValueError("the qrels have no query with a positive (a grade of 1 or more): check the split")
    results = {query: run[query] for query in graded if query in run}
    parsed = [_parse(name) for name in measures]
    judged = [measure for measure in parsed if measure.NAME == "Judged"]
    values_of = _calculate(results, graded, [_source(measure) for measure in parsed if measure not in judged])
    all_graded = {query: dict.fromkeys(grades, 1) for query, grades in graded.items()}
    precision = _calculate(results, all_graded, [_source(measure) for measure in judged])
    num_results = np.array([len(results.get(query, ())) for query in graded])  # (Q,)

    def column(measure) -> np.ndarray:
        if measure in judged:
            k = measure["cutoff"]
            return precision[_source(measure)] * k / np.clip(num_results, 1, k)
        values = values_of[_source(measure)]
        if _is_cut_rr(measure):
            return np.where(values * (measure["cutoff"] + 0.5) > 1, values, 0.0)
        return values

    return PerQuery(list(graded), tuple(measures), np.stack([column(measure) for measure in parsed], axis=1))


def _calculate(run: Run, qrels: Qrels, measures: list) -> dict:
    """Computes pytrec_eval's values (Q,) by measure, in the order of the qrels; 0 for queries missing in the run."""
    row = {query: place for place, query in enumerate(qrels)}
    columns = {measure: np.zeros(len(row)) for measure in measures}
    for metric in _PROVIDER.iter_calc(list(columns), qrels, run) if columns else ():
        columns[metric.measure][row[metric.query_id]] = metric.value
    return columns


def _parse(name: str):  # ir_measures exports no type to annotate with
    try:
        measure = ir_measures.parse_measure(name)
    except (NameError, ValueError) as problem:
        raise ValueError(f"unknown measure {name!r} ({problem}): write it like nDCG@10 or Judged@10") from problem
    if not _PROVIDER.supports(_source(measure)):
        raise ValueError(f"measure {name!r} is not computed here: use one of pytrec_eval's, RR@k or Judged@k")
    return measure


def _source(measure):
    """The measure of pytrec_eval from which this one is computed, usually itself."""
    if _is_cut_rr(measure):
        return ir_measures.RR(rel=measure["rel"], judged_only=measure["judged_only"])
    if measure.NAME == "Judged" and "cutoff" in measure.params:
        return ir_measures.P @ measure["cutoff"]
    return measure


def _is_cut_rr(measure) -> bool:
    return measure.NAME == "RR" and "cutoff" in measure.params


def drop_self(run: Run) -> Run:
    """Drops results whose id equals the query's, as BEIR does for ArguAna and Quora."""
    return {
        query: {doc: score for doc, score in docs.items() if doc != query} if query in docs else docs
        for query, docs in run.items()
    }


def to_run(query_ids: Sequence[str], candidates: Candidates, doc_ids: Sequence[str]) -> Run:
    """Converts candidates (Q, K) to a Run that trec_eval ranks in exactly the candidates' order; pads are skipped.

    `doc_ids[row]` is the id of a corpus row. trec_eval compares float32 scores and breaks ties by id, so each score
    becomes s'_i = min(s_i, largest float32 below s'_(i−1)). Scores that already fall strictly do not change.
    """
    filled = candidates.docs >= 0  # (Q, K), pads last
    assert np.isfinite(candidates.scores[filled]).all(), "a candidate that is no pad has a finite score"
    scores = _strictly_falling(np.where(filled, candidates.scores, 0))
    counts = filled.sum(axis=1).tolist()
    name = doc_ids.__getitem__
    return {
        query: dict(zip(map(name, docs[:n].tolist()), values[:n].tolist(), strict=True))
        for query, docs, values, n in zip(query_ids, candidates.docs, scores, counts, strict=True)
    }


def _strictly_falling(scores: np.ndarray) -> np.ndarray:
    """min(s_i, next float32 below s'_(i−1)) along rows: with floats numbered in order, min_{j≤i}(s_j + j) − i."""
    lowest = np.iinfo(np.int32).min
    bits = scores.astype(np.float32).view(np.int32).astype(np.int64)  # (Q, K)
    number = np.where(bits < 0, lowest - bits, bits)  # adjacent floats get adjacent numbers; −0 and 0 the same
    place = np.arange(scores.shape[1])
    number = np.minimum.accumulate(number + place, axis=1) - place
    return np.where(number < 0, lowest - number, number).astype(np.int32).view(np.float32)


def read_run(path: str | Path) -> Run:
    """Reads a TREC run file: the query, document and score fields; ranks are ignored.

    Errors: ValueError naming file and line if a line does not have six fields, its score is not a finite number, or its
    document was already listed for the query.
    """
    run: Run = {}
    number = 0
    query, docs = "", {}
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                number += 1
                name, _, doc, _, score, _ = line.split()
                if name != query:
                    query, docs = name, run.setdefault(name, {})
                if doc in docs:
                    raise ValueError
                docs[doc] = float(score)
                if not math.isfinite(docs[doc]):
                    raise ValueError
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}, after line {number}: not UTF-8 ({problem}); save the file as UTF-8") from problem
    except ValueError:
        raise ValueError(f"{path}, line {number}: {_diagnosis(line, run)}") from None
    return run


def _diagnosis(line: str, run: Run) -> str:
    fields = line.split()
    if len(fields) != 6:
        return f"{len(fields)} fields where a TREC run has 6; write it as {_LINE!r}"
    try:
        finite = math.isfinite(float(fields[4]))
    except ValueError:
        finite = False
    if not finite:
        return f"score {fields[4]!r} is not a finite number; the fields are {_LINE!r}"
    assert fields[2] in run[fields[0]]
    return f"document {fields[2]!r} a second time for query {fields[0]!r}; keep the line with the better score"


def write_run(run: Run, path: str | Path, tag: str) -> None:
    """Writes a TREC run file, atomically: ranks from 1 in trec_eval's order, scores that read back as the same float.

    Errors: ValueError for an id or a tag that is empty or has white space, which the format cannot represent.
    """
    _check_fields([tag], "tag")
    _check_fields(list(run), "query")
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for query, docs in run.items():
            _check_fields(list(docs), f"document of query {query!r},")
            compared = np.fromiter(docs.values(), np.float32, len(docs)).tolist()
            order = sorted(zip(compared, docs, docs.values(), strict=True), reverse=True)
            out.writelines(
                f"{query} Q0 {doc} {rank} {score!r} {tag}\n" for rank, (_, doc, score) in enumerate(order, start=1)
            )


def _check_fields(names: list[str], what: str) -> None:
    if " ".join(names).split() != names:
        culprit = next(name for name in names if name.split() != [name])
        raise ValueError(f"{what} {culprit!r} cannot stand in a TREC run: give it a name without white space")
