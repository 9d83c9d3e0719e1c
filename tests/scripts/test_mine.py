"""scripts/mine.py: what is written against the same rules as loops over an arm's answers; what is refused."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from ltrr.data.beir import Dataset, Document, field_values, open_dataset, write_dataset
from ltrr.fusion import ReciprocalRankFusion, union
from ltrr.metrics import read_run, to_run
from ltrr.types import Query, Run
from tests.helpers import ROOT
from tests.system import test_system

SCRIPT = str(ROOT / "scripts/mine.py")


class Length:
    """A teacher: minus the characters by which query and document differ, so that scores are negative."""

    id = "length@0"

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        return np.array([-float(abs(len(q) - len(d))) for q, d in zip(queries, documents, strict=True)], np.float32)


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """The config's arm lies in test_system; the teacher takes the cross-encoder's place."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    fake = SimpleNamespace(load_cross_encoder=lambda model: Length())
    monkeypatch.setitem(sys.modules, "ltrr.encoders.cross_encoder", fake)


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    arms = {"words": {"class": "tests.system.test_system.Words"}, "popular": {"class": "ltrr.arms.popular.Popular"}}
    fusion = {"arms": ["words", "popular"]}
    path.write_text(yaml.safe_dump({"cache": str(tmp_path / "cache"), "arms": arms, "fusion": fusion}))
    return path


@pytest.fixture
def mine(config, music, tmp_path, monkeypatch):
    """Runs the script in this process; the folder it wrote."""

    def run(*flags: object, data: Path = music, out: str = "out") -> Path:
        folder = tmp_path / out
        command = ["mine.py", "--config", config, "--data", data, "--out", folder, *flags]
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        runpy.run_path(SCRIPT, run_name="__main__")
        return folder

    return run


def answers(dataset: Dataset, queries: Sequence[Query], k: int) -> Run:
    arm = test_system.Words(dataset.corpus)
    return to_run([q.id for q in queries], arm.search(queries, k), dataset.corpus.ids)


def slow_negatives(found: Run, dataset: Dataset, split: str, window: tuple[int, int], margin: float, num: int) -> Run:
    out: Run = {}
    for query in dataset.split(split).queries:
        grades = dataset.split(split).qrels[query.id]
        scores = list(found[query.id].items())
        best = max(dict(scores).get(doc, -np.inf) for doc, grade in grades.items() if grade > 0)
        kept = [
            (doc, s) for doc, s in scores[window[0] - 1 : window[1]] if doc not in grades and s <= best * (1 - margin)
        ]
        out[query.id] = dict(kept[:num])
    return out


def close(run: Run, expected: Run) -> None:
    assert {q: list(docs) for q, docs in run.items()} == {q: list(docs) for q, docs in expected.items() if docs}
    for query, docs in run.items():
        assert docs == pytest.approx(expected[query], abs=1e-5)


@pytest.mark.parametrize(("window", "margin", "num"), [((2, 20), 0.05, 30), ((1, 9), 0.4, 4)])
def test_negatives_are_those_of_the_rules_one_by_one(mine, music, window, margin, num) -> None:
    out = mine("--arm", "words", "--window", *window, "--margin", margin, "--num", num)
    dataset = open_dataset(music)
    expected = slow_negatives(answers(dataset, dataset.queries, 66), dataset, "train", window, margin, num)
    assert sum(map(len, expected.values())) > 30  # the rules leave something
    close(read_run(out / "negatives.trec"), expected)
    report = json.loads((out / "mining.json").read_text())
    assert report["num_documents"] == sum(map(len, expected.values()))
    assert report["num_queries"] == len(expected) == 30
    assert report["num_queries_without"] == sum(not docs for docs in expected.values())
    assert (report["window"], report["margin"], report["num"]) == (list(window), margin, num)
    assert report["data"] == dataset.corpus.fingerprint
    assert 0 < report["share_dropped"] < 1
    assert {path.name for path in out.iterdir()} == {"negatives.trec", "mining.json"}


def test_the_same_command_writes_the_same_and_a_limit_picks_of_it(mine) -> None:
    whole = mine("--arm", "words", "--window", 2, 30, out="a")
    again = mine("--arm", "words", "--window", 2, 30, out="b")
    few = mine("--arm", "words", "--window", 2, 30, "--limit", 7, out="c")
    for name in ("negatives.trec", "mining.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()
    run, part = read_run(whole / "negatives.trec"), read_run(few / "negatives.trec")
    assert json.loads((few / "mining.json").read_text())["num_queries"] == 7
    assert part == {query: run[query] for query in part}


def test_a_teacher_says_which_are_likely_positives(mine, music) -> None:
    out = mine("--arm", "words", "--window", 1, 40, "--num", 66, "--teacher", "any")
    dataset = open_dataset(music)
    corpus, (queries, qrels) = dataset.corpus, dataset.split("train")
    found, taught = answers(dataset, queries, 66), read_run(out / "teacher.trec")
    negatives = read_run(out / "negatives.trec")
    for query in queries:

        def score(doc: str, text: str = query.text) -> float:
            document = corpus[corpus.row(doc)]
            fields = [n for f in corpus.word_fields() for n, _ in field_values(document, f)]
            return Length().score([text], [" ".join([document.title, document.text, *fields])])[0]

        positives = list(qrels[query.id])
        best = max(map(score, positives))
        kept = [d for d in list(found[query.id])[:40] if d not in positives and score(d) <= best - 0.05 * abs(best)]
        assert list(negatives.get(query.id, {})) == kept
        assert taught[query.id] == pytest.approx({doc: score(doc) for doc in [*positives, *kept]})
    assert json.loads((out / "mining.json").read_text())["teacher"] == {"model": "any", "id": "length@0"}


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_candidates_are_the_best_as_they_are(mine, music, split) -> None:
    out = mine("--arm", "words", "--split", split, "--candidates", "--num", 5)
    dataset = open_dataset(music)
    close(read_run(out / "candidates.trec"), answers(dataset, dataset.split(split).queries, 5))
    assert not (out / "negatives.trec").exists()


def test_a_fusion_is_searched_like_an_arm(mine, music) -> None:
    out = mine("--arm", "rrf", "--split", "dev", "--candidates", "--num", 8)
    dataset = open_dataset(music)
    queries = dataset.split("dev").queries
    popular = runpy.run_path(SCRIPT)["open_systems"]  # the arm as a config makes it
    (system,) = popular(Path(out.parent / "mine.yaml"), ["--data.path", str(music)])
    pool = union({name: system.arm(name).search(queries, 101) for name in ("words", "popular")})
    best = ReciprocalRankFusion().rank(queries, pool).first(8)
    close(read_run(out / "candidates.trec"), to_run([q.id for q in queries], best, dataset.corpus.ids))
    assert set(json.loads((out / "mining.json").read_text())["arms"]) == {"words", "popular"}


def test_what_is_clear_enough() -> None:
    clear = runpy.run_path(SCRIPT)["clear"]
    found = {1: 9.0, 2: 8.0, 3: 7.5, 4: 6.0, 5: -1.0}
    assert clear(found, {2: 1}, found, 0.1) == {4: 6.0, 5: -1.0}  # the limit is 7.2
    assert clear(found, {2: 1, 4: 3}, found, 0.0) == {3: 7.5, 5: -1.0}  # the best positive counts, whatever its grade
    assert clear(found, {2: 1, 1: 0}, found, 0.1) == {1: 9.0, 4: 6.0, 5: -1.0}  # judged not relevant: known to be clear
    assert clear(found, {2: 1}, found, None) == {1: 9.0, 3: 7.5, 4: 6.0, 5: -1.0}
    assert clear(found, {77: 1, 5: 0}, found, 0.1) == {5: -1.0}  # its positive scores below all of these
    logits = {1: -2.0, 2: -2.1, 3: -2.3, 4: -9.0}
    assert clear(found, {7: 1}, {7: -2.0, 5: 0.0, **logits}, 0.1) == {3: 7.5, 4: 6.0}  # a margin below a negative score


def test_a_query_is_no_candidate_of_itself_and_needs_a_positive(mine, tmp_path) -> None:
    """ArguAna's queries are documents; a query whose labels are all 0 teaches nothing."""
    documents = [Document(f"d{i}", "same words", "", {}) for i in range(6)]
    queries = [{"_id": name, "text": "same words"} for name in ("d1", "q")]
    write_dataset(tmp_path / "data", documents, queries, {"train": {"d1": {"d0": 1}, "q": {"d3": 0}}})
    flags = ("--arm", "words", "--window", 1, 9, "--margin", "none")
    out = mine(*flags, data=tmp_path / "data")
    assert {q: sorted(docs) for q, docs in read_run(out / "negatives.trec").items()} == {"d1": ["d2", "d3", "d4", "d5"]}
    out = mine(*flags, "--candidates", "--num", 5, data=tmp_path / "data", out="candidates")
    found = {q: sorted(docs) for q, docs in read_run(out / "candidates.trec").items()}
    assert found == {"d1": ["d0", "d2", "d3", "d4", "d5"], "q": ["d0", "d1", "d2", "d3", "d4"]}


BAD: dict[str, tuple[list[Any], str]] = {
    "negatives of test": (["--split", "test"], "must not train anything"),
    "teacher on test": (["--split", "test", "--candidates", "--teacher", "x"], "must not train anything"),
    "unknown arm": (["--arm", "wrods"], "did you mean 'words'"),
    "arm that is not there": (
        ["--arm", "sparse", "--arms.sparse", "{class: tests.system.test_system.FakeSparseArm, model: null}"],
        "sparse",
    ),
    "unknown split": (["--split", "trian"], "trian"),
    "window backwards": (["--window", "9", "3"], "--window: 9 3"),
    "window from 0": (["--window", "0", "3"], "--window: 0 3"),
    "no window": (["--window", "3"], "--window"),
    "no negatives": (["--num", "0"], "--num: 0"),
    "no queries": (["--limit", "0"], "--limit: 0"),
    "margin of words": (["--margin", "much"], "--margin"),
    "margin above 1": (["--margin", "1.5"], "--margin: 1.5"),
    "unknown field": (
        [
            "--ranker.class",
            "ltrr.rankers.cross_encoder.CrossEncoderRanker",
            "--ranker.model",
            "null",
            "--ranker.text_fields",
            "[mood]",
        ],
        "mood",
    ),
    "unknown key": (["--arms.words.bosot", "2"], "boost"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_flag_names_the_culprit_and_writes_nothing(name, mine, capsys, tmp_path) -> None:
    flags, culprit = BAD[name]
    with pytest.raises(SystemExit) as stop:
        mine(*([] if "--arm" in flags else ["--arm", "words"]), *flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    message = message[message.index("error: ") :]
    assert culprit in message
    assert len(message.splitlines()) <= 20  # one screen
    assert not (tmp_path / "out").exists()


def test_the_arm_must_be_named(mine, capsys) -> None:
    with pytest.raises(SystemExit):
        mine()
    assert "--arm" in capsys.readouterr().err
