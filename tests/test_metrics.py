"""Metrics against small references written here, trec_eval's order of ties, and run files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import ir_measures
import numpy as np
import pytest

from ltrr.files import atomic_write
from ltrr.metrics import MEASURES, PerQuery, drop_self, evaluate, read_run, to_run, write_run
from ltrr.types import Candidates, Qrels, Run, top_k

ALL = (*MEASURES, "Judged@10")


def trec_order(docs: dict[str, float]) -> list[str]:
    return [doc for _, doc in sorted(((np.float32(score), doc) for doc, score in docs.items()), reverse=True)]


def reference(name: str, ranked: list[str], grades: dict[str, int]) -> float:
    """The textbook definitions, one ranked list at a time."""
    kind, k = name.split("@")
    top = ranked[: int(k)]
    positives = {doc for doc, grade in grades.items() if grade > 0}
    if kind == "R":
        return len(positives & set(top)) / len(positives)
    if kind == "RR":
        return next((1 / rank for rank, doc in enumerate(top, 1) if doc in positives), 0.0)
    if kind == "Judged":
        return sum(doc in grades for doc in top) / max(len(top), 1)
    best = sorted(grades.values(), reverse=True)[: int(k)]
    gains = [sum(g / math.log2(i + 2) for i, g in enumerate(gs)) for gs in ([grades.get(d, 0) for d in top], best)]
    return gains[0] / gains[1]


def random_case(seed: int, levels: int) -> tuple[Run, Qrels]:
    """Graded qrels and a run of 0 to 140 results a query; few score levels make many ties."""
    rng = np.random.default_rng(seed)
    run, qrels = {}, {}
    for query in map(str, range(25)):
        docs = [f"d{row}" for row in rng.permutation(150)]
        run[query] = {doc: float(rng.integers(levels)) / 8 for doc in docs[: rng.integers(0, 140)]}
        judged = rng.choice(docs, rng.integers(2, 30), replace=False).tolist()
        qrels[query] = {doc: int(rng.integers(0, 4)) for doc in judged} | {judged[0]: 1}
    return run, qrels


@pytest.mark.parametrize("levels", [3, 1_000_000])
@pytest.mark.parametrize("seed", range(3))
def test_every_measure_equals_its_definition(seed: int, levels: int) -> None:
    run, qrels = random_case(seed, levels)
    got = evaluate(run, qrels, ALL)
    wanted = [[reference(m, trec_order(run[query]), qrels[query]) for m in ALL] for query in qrels]
    np.testing.assert_allclose(got.values, wanted, atol=1e-12)
    assert got.query_ids == list(qrels)


def test_equals_ir_measures_where_there_are_no_ties() -> None:
    """RR@10 and Judged@10 are made here from other measures; ir-measures has its own, with other orders of ties."""
    run, qrels = random_case(7, 1_000_000)
    theirs = ir_measures.calc_aggregate([ir_measures.parse_measure(m) for m in ALL], qrels, run)
    assert evaluate(run, qrels, ALL).mean() == pytest.approx({str(m): value for m, value in theirs.items()})


def test_the_order_of_measures_is_the_one_asked_for() -> None:
    run, qrels = random_case(1, 3)
    names = ("Judged@1", "RR@1", "nDCG@3", "RR", "P@10", "Judged@10")
    together = evaluate(run, qrels, names)
    for name in names:  # computing several at once must not mix columns
        np.testing.assert_array_equal(together.of(name), evaluate(run, qrels, (name,)).values[:, 0])


def test_a_silent_query_counts_as_zero_and_one_without_a_positive_not_at_all() -> None:
    qrels = {"silent": {"a": 1}, "empty": {"a": 1}, "hit": {"a": 1, "b": 0}, "hopeless": {"a": 0}, "unjudged": {}}
    got = evaluate({"hit": {"a": 1.0}, "empty": {}, "hopeless": {"a": 1.0}, "stranger": {"a": 1.0}}, qrels, ALL)
    assert got.query_ids == ["silent", "empty", "hit"]
    np.testing.assert_array_equal(got.values, [[0] * 5, [0] * 5, [1] * 5])
    assert got.mean()["R@10"] == pytest.approx(1 / 3)


def test_mistakes_are_named() -> None:
    run, qrels = {"q": {"a": 1.0}}, {"q": {"a": 1}}
    for name, message in (("foo@10", "unknown measure 'foo@10'"), ("Judged", "'Judged' is not"), ("ERR@5", "'ERR@5'")):
        with pytest.raises(ValueError, match=message):
            evaluate(run, qrels, [name])
    with pytest.raises(ValueError, match="no query with a positive"):
        evaluate(run, {"q": {"a": 0}})
    with pytest.raises(ValueError, match=r"R@5 was not computed, only nDCG@10"):
        evaluate(run, qrels).of("R@5")


def test_drop_self_drops_only_the_query_itself() -> None:
    run = {"1": {"1": 9.0, "2": 8.0}, "2": {"1": 3.0}, "3": {}}
    assert drop_self(run) == {"1": {"2": 8.0}, "2": {"1": 3.0}, "3": {}}
    assert run["1"] == {"1": 9.0, "2": 8.0}  # the caller's run stays


IDS = [f"{(row * 7919) % 1000:03d}" for row in range(1000)]  # id order has nothing to do with row order


@pytest.mark.parametrize(
    "scores", [[0.0, -0.0, 0.0], [1.0, np.nextafter(np.float32(1), np.float32(0)), 1.0], [-2.5], [3.4e38]]
)
def test_trec_eval_ranks_a_run_as_the_candidates_were(scores: list[float]) -> None:
    """trec_eval would break ties by id, descending; ours are by row. Also across zero and next to other scores."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.array(scores, np.float32), (20, 60))
    candidates = top_k(rng.permuted(np.tile(np.arange(1000, dtype=np.int32), (20, 1)), axis=1)[:, :60], drawn, 50)
    run = to_run([str(q) for q in range(20)], candidates, IDS)
    for query, docs in enumerate(candidates.docs):
        wanted = [IDS[row] for row in docs]
        assert list(run[str(query)]) == wanted == trec_order(run[str(query)])
        for rank, doc in enumerate(wanted, 1):  # what trec_eval itself makes of it
            assert evaluate({"q": run[str(query)]}, {"q": {doc: 1}}, ["RR"]).values[0, 0] == pytest.approx(1 / rank)


def test_distinct_scores_stay_as_they_are_and_pads_vanish() -> None:
    candidates = Candidates.from_lists(
        [np.array([5, 9, 2]), np.array([], int), np.array([1])],
        [np.array([0.25, -3, 7.1], np.float32), np.array([], np.float32), np.array([1], np.float32)],
        4,
    )
    run = to_run(["x", "y", "z"], candidates, IDS)
    assert run == {"x": {IDS[2]: float(np.float32(7.1)), IDS[5]: 0.25, IDS[9]: -3.0}, "y": {}, "z": {IDS[1]: 1.0}}
    assert to_run([], Candidates.empty(0, 3), IDS) == {}


def test_a_run_file_reads_back_the_same(tmp_path: Path) -> None:
    run, qrels = random_case(3, 5)
    run = {query: docs for query, docs in run.items() if docs} | {"é": {"a": 1e-45, "b": 0.1 + 0.2, "c": -1e30}}
    write_run(run, tmp_path / "deep" / "x.trec", "tag")
    assert read_run(tmp_path / "deep" / "x.trec") == run
    lines = [line.split() for line in (tmp_path / "deep" / "x.trec").read_text("utf-8").splitlines()]
    for query, docs in run.items():  # the rank column is the order that is evaluated, ties included
        mine = [fields for fields in lines if fields[0] == query]
        assert [fields[2] for fields in mine] == trec_order(docs)
        assert [int(fields[3]) for fields in mine] == list(range(1, len(docs) + 1))
    np.testing.assert_array_equal(
        evaluate(read_run(tmp_path / "deep" / "x.trec"), qrels).values, evaluate(run, qrels).values
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"q Q0 b 2 0.5", "line 2: 5 fields where a TREC run has 6; write it as"),
        (b"q Q0 b 2 0.5 tag more", "line 2: 7 fields"),
        (b"", "line 2: 0 fields"),
        (b"q Q0 b 0.5 high tag", "line 2: score 'high' is not a finite number"),
        (b"q Q0 b 2 nan tag", "line 2: score 'nan' is not a finite number"),
        (b"q Q0 b 2 inf tag", "line 2: score 'inf' is not a finite number"),
        (b"q Q0 a 2 0.5 tag", "line 2: document 'a' a second time for query 'q'"),
        (b"q Q0 b\xff 2 0.5 tag", "not UTF-8"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "bad.trec").write_bytes(b"q Q0 a 1 0.9 tag\n" + line + b"\nq Q0 c 3 0.1 tag\n")
    with pytest.raises(ValueError, match=rf"bad\.trec.*{message}"):
        read_run(tmp_path / "bad.trec")


def test_ids_that_a_run_file_cannot_hold_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    for run, tag in (
        ({"q": {"a b": 1.0}}, "t"),
        ({"": {"a": 1.0}}, "t"),
        ({"q": {"a": 1.0, "": 2.0}}, "t"),
        ({}, "t t"),
    ):
        with pytest.raises(ValueError, match="cannot stand in a TREC run"):
            write_run(run, tmp_path / "x.trec", tag)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def half_written() -> None:
        with atomic_write(tmp_path / "x") as temporary:
            temporary.write_text("ne")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        half_written()
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_mean_is_over_queries() -> None:
    assert PerQuery(["a", "b"], ("P@1", "RR"), np.array([[1.0, 0.5], [0.0, 0.25]])).mean() == {"P@1": 0.5, "RR": 0.375}


@pytest.mark.data
def test_the_shared_run_scores_what_an_outside_evaluation_gave() -> None:
    data = Path(os.environ.get("LTRR_DATA", Path(__file__).parents[1] / "../shared/data"))
    if not (data / "runs" / "scifact-minilm.trec").exists():
        pytest.skip(f"no {data / 'runs' / 'scifact-minilm.trec'}: set LTRR_DATA to the shared data")
    qrels: Qrels = {}
    for line in (data / "scifact" / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]:
        query, doc, grade = line.split("\t")
        qrels.setdefault(query, {})[doc] = int(grade)
    got = evaluate(read_run(data / "runs" / "scifact-minilm.trec"), qrels)
    assert len(got.query_ids) == 300
    assert got.mean()["nDCG@10"] == pytest.approx(0.6451, abs=1e-4)
