"""Run + Qrels -> scores of every query, by ir-measures' pytrec_eval, and TREC run files.

Knows string ids, scores and grades; knows nothing about corpora, arms or indexes. trec_eval ranks a query's documents
by score descending, compared as float32, then by document id descending; every measure here, and the rank column of a
written file, follows that one order. Legend: Q queries, K candidates, M measures.
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
    """Every measure of every query that has a positive."""

    query_ids: list[str]  # Q
    measures: tuple[str, ...]  # M names as asked for
    values: np.ndarray  # (Q, M) float64

    def of(self, measure: str) -> np.ndarray:
        """(Q,) values of one measure; ValueError where it was not computed."""
        if measure not in self.measures:
            raise ValueError(f"{measure} was not computed, only {', '.join(self.measures)}: add it to `measures`")
        return self.values[:, self.measures.index(measure)]

    def mean(self) -> dict[str, float]:
        """The mean over the queries, by measure."""
        return dict(zip(self.measures, self.values.mean(axis=0).tolist(), strict=True))


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES) -> PerQuery:
    """Scores a run on the queries of `qrels`, in their order, with names as ir-measures writes them ("nDCG@10").

    A grade of 1 or more is a positive. A query with no positive is left out: pytrec_eval gives it 0 whatever the run,
    and would count that 0. A query with no results scores 0, as in ir-measures: pytrec_eval alone leaves it out, which
    rewards a run for its silence. A query of the run that `qrels` does not name is ignored. Beside what pytrec_eval
    has, RR@k is its RR where the rank is at most k, else 0, and Judged@k is the judged share of the first k results
    (of all, where there are fewer), 0 with none. Errors: ValueError for a measure that is unknown or not computed here,
    and where no query has a positive.
    """
    graded = {query: grades for query, grades in qrels.items() if max(grades.values(), default=0) > 0}
    if not graded:
        raise ValueError("the qrels have no query with a positive (a grade of 1 or more): check the split")
    found = {query: run[query] for query in graded if query in run}
    parsed = [_parse(name) for name in measures]
    shares = [measure for measure in parsed if measure.NAME == "Judged"]
    plain = _calculate(found, graded, [_source(measure) for measure in parsed if measure not in shares])
    all_relevant = {query: dict.fromkeys(grades, 1) for query, grades in graded.items()}
    precision = _calculate(found, all_relevant, [_source(measure) for measure in shares])
    num_found = np.array([len(found.get(query, ())) for query in graded])  # (Q,)

    def column(measure) -> np.ndarray:
        if measure in shares:
            k = measure["cutoff"]
            return precision[_source(measure)] * k / np.clip(num_found, 1, k)
        values = plain[_source(measure)]
        if _is_cut_rr(measure):
            return np.where(values * (measure["cutoff"] + 0.5) > 1, values, 0.0)
        return values

    return PerQuery(list(graded), tuple(measures), np.stack([column(measure) for measure in parsed], axis=1))


def _calculate(run: Run, qrels: Qrels, measures: list) -> dict:
    """pytrec_eval's (Q,) values by measure, in the order of the qrels, 0 where the run has no such query."""
    row = {query: place for place, query in enumerate(qrels)}
    columns = {measure: np.zeros(len(row)) for measure in measures}
    for metric in _PROVIDER.iter_calc(list(columns), qrels, run) if columns else ():
        columns[metric.measure][row[metric.query_id]] = metric.value
    return columns


def _parse(name: str):  # ir_measures has no public name for the type
    try:
        measure = ir_measures.parse_measure(name)
    except (NameError, ValueError) as problem:
        raise ValueError(f"unknown measure {name!r} ({problem}): write it like nDCG@10 or Judged@10") from problem
    if not _PROVIDER.supports(_source(measure)):
        raise ValueError(f"measure {name!r} is not computed here: use one of pytrec_eval's, RR@k or Judged@k")
    return measure


def _source(measure):
    """The measure of pytrec_eval that this one is made from, mostly itself."""
    if _is_cut_rr(measure):
        return ir_measures.RR(rel=measure["rel"], judged_only=measure["judged_only"])
    if measure.NAME == "Judged" and "cutoff" in measure.params:
        return ir_measures.P @ measure["cutoff"]
    return measure


def _is_cut_rr(measure) -> bool:
    return measure.NAME == "RR" and "cutoff" in measure.params


def drop_self(run: Run) -> Run:
    """BEIR's rule for ArguAna and Quora: a result whose id equals the query's is dropped."""
    return {
        query: {doc: score for doc, score in docs.items() if doc != query} if query in docs else docs
        for query, docs in run.items()
    }


def to_run(query_ids: Sequence[str], candidates: Candidates, doc_ids: Sequence[str]) -> Run:
    """Candidates (Q, K) of the queries, pads skipped, as a Run that trec_eval ranks in exactly the candidates' order.

    `doc_ids[row]` is the id of a corpus row. trec_eval keeps float32, so a tie is not broken by anything finer: each
    score becomes s'_i = min(s_i, the float32 just below s'_(i−1)). Scores that leave room stay as they are.
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
    """min(s_i, next float32 below s'_(i−1)) along a row: with floats numbered in order, min_j≤i(s_j + j) − i."""
    lowest = np.iinfo(np.int32).min
    bits = scores.astype(np.float32).view(np.int32).astype(np.int64)  # (Q, K)
    number = np.where(bits < 0, lowest - bits, bits)  # neighbouring floats have neighbouring numbers; −0 = 0
    place = np.arange(scores.shape[1])
    number = np.minimum.accumulate(number + place, axis=1) - place
    return np.where(number < 0, lowest - number, number).astype(np.int32).view(np.float32)


def read_run(path: str | Path) -> Run:
    """A TREC run file; only the query, document and score fields count, ranks do not.

    Errors: ValueError naming file and line where a line is not six fields, its score not a finite number, or its
    document already listed for the query.
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
    """A TREC run file of that tag, ranks from 1 in trec_eval's order, scores that read back to the same float.

    Errors: ValueError for an id or a tag that is empty or has white space, which the format cannot hold.
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
