"""The contracts that other work and CI call: flags, files and exit codes of every script, run as a user runs them."""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from ltrr.data.beir import open_dataset
from ltrr.metrics import read_run
from ltrr.system.system import open_systems
from tests.helpers import ROOT, script


def test_evaluate_writes_the_contract(music, fast_config, tmp_path):
    out = tmp_path / "out"
    flags = ("--config", fast_config, "--data", music, "--split", "test", "--out", out, "--by", "intent")
    script("scripts/evaluate.py", *flags)
    assert [line.split(" | ")[0] for line in (out / "by_intent.md").read_text().splitlines()[2:]] == [
        "| attribute",
        "| direct",
    ]
    results = json.loads((out / "results.json").read_text())
    assert (results["dataset"], results["split"], results["num_docs"], results["num_queries"]) == (
        "tiny",
        "test",
        66,
        21,
    )
    assert set(results["systems"]) == {"lexical", "structured", "popular", "rrf", "convex"}
    for name, scores in results["systems"].items():
        assert {"nDCG@10", "R@10", "R@100", "RR@10", "Judged@10", "ms_per_query"} <= set(scores)
        assert all(0 <= value <= 1 for key, value in scores.items() if key != "ms_per_query")
        assert read_run(out / "runs" / f"{name}.trec")
    assert (out / "per_query.parquet").exists()
    assert "| convex |" in (out / "table.md").read_text()
    assert len(list((out / "plots").glob("*.png"))) == 3
    # person queries: structure finds all songs of an artist, and the test split was not tuned on
    assert results["systems"]["structured"]["R@10"] > 0.9
    assert "test" not in json.dumps([entry["on"] for entry in results["tuned"].values()])


@pytest.fixture
def trained_models(music, tiny_backbone, tmp_path) -> list[str]:
    """Overrides that put models trained on train into a dense arm and the ranker: tiny ones, with an export's note."""
    from sentence_transformers import CrossEncoder

    note = json.dumps({"data": open_dataset(music).corpus.fingerprint, "splits": ["train"], "queries": "0"})
    shutil.copytree(tiny_backbone, tmp_path / "dense")
    CrossEncoder(str(tiny_backbone), num_labels=1, device="cpu").save_pretrained(str(tmp_path / "ranker"))
    for name in ("dense", "ranker"):
        (tmp_path / name / "ltrr.json").write_text(note)
    return [
        *("--arms.dense.class", "ltrr.arms.dense.Dense", "--arms.dense.model", str(tmp_path / "dense")),
        *(
            "--ranker.class",
            "ltrr.rankers.cross_encoder.CrossEncoderRanker",
            "--ranker.model",
            str(tmp_path / "ranker"),
        ),
        *("--ranker.depth", "10", "--policy.cut", "20"),
    ]


def test_the_whole_funnel_with_trained_models(music, fast_config, trained_models, tmp_path):
    out = tmp_path / "out"
    script("scripts/evaluate.py", "--config", fast_config, "--data", music, "--out", out, *trained_models)
    results = json.loads((out / "results.json").read_text())
    arms, fusions = ["lexical", "structured", "popular", "dense"], ["rrf", "convex"]
    stages = ["ltrr_before_ranking", "ltrr_ranker_alone", "ltrr"]
    assert list(results["systems"]) == [*arms, "train_labels", *fusions, *stages]
    in_domain = ["dense", "train_labels", *fusions, *stages]
    assert results["in_domain"] == {name: ["train"] for name in in_domain}
    table = (out / "table.md").read_text()
    for shown in ("| lexical |", "| dense † |", "| train_labels † |", "| ltrr (before ranking) † |", "| ltrr † |"):
        assert shown in table
    assert "† in-domain: trained on train queries of this data set." in table
    assert "`ltrr` rows\nhold at most 20 candidates" in table
    # nothing that weighs trained models was fitted on train
    assert results["tuned"]["convex"]["on"] == "dev"
    assert results["tuned"]["ranker"]["on"] == "15 queries of dev"
    assert results["tuned"]["lexical"]["on"] == "train"
    # the ranker only orders, and what is measured is what the service answers with
    before, after = (read_run(out / "runs" / f"{name}.trec") for name in ("ltrr_before_ranking", "ltrr"))
    (system,) = open_systems(fast_config, ["--data.path", str(music), *trained_models])
    funnel = system.funnel()
    for query in system.dataset.split("test").queries:
        assert before[query.id].keys() == after[query.id].keys()
        assert len(after[query.id]) == 20
        served = funnel.search([query], 20).shown.docs[0].tolist()
        assert set(after[query.id]) == {system.corpus.ids[row] for row in served}
        assert list(after[query.id])[:3] == [system.corpus.ids[row] for row in served[:3]]


def test_evaluating_the_split_that_a_model_was_trained_on_is_said(music, fast_config, tmp_path, monkeypatch):
    """In this process, with an arm of test_system whose model is a fake."""
    note = {"data": open_dataset(music).corpus.fingerprint, "splits": ["train"], "queries": "0"}
    (tmp_path / "ltrr.json").write_text(json.dumps(note))
    monkeypatch.setattr("ltrr.system.parts.LOADERS", {"encoder": "tests.system.test_system.FakeEncoder"})
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    flags = ("--config", fast_config, "--data", music, "--split", "train", "--out", tmp_path / "out")
    fakes = "tests.system.test_system"
    arms = f"{{lexical: {{class: {fakes}.Words}}, dense: {{class: {fakes}.FakeArm, model: {tmp_path}}}}}"
    flags = ("evaluate.py", *flags, "--arms", arms)
    monkeypatch.setattr(sys, "argv", [str(flag) for flag in flags])
    runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "trained on this split: no test" in table
    assert "train_labels" not in table  # it would look up the answers


def test_index_then_explain(music, fast_config, tmp_path):
    script("scripts/index.py", "--config", fast_config, "--data", music, "--out", tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("tiny-*/index/*/CURRENT"))) == 3
    shown = script("scripts/explain.py", "tayler vale", "--config", fast_config, "--data", music).stdout
    assert "artist = Taylor Vale" in shown  # misspelt, understood
    assert "structured" in shown


def test_person_queries(music, fast_config, tmp_path):
    out = tmp_path / "out"
    script("scripts/evaluate.py", "--config", fast_config, "--data", music, "--out", out)
    flags = ("--config", fast_config, "--data", music, "--results", out, "--people", "artist")
    # of six artists, The Paper Boats share a word with some of their titles
    assert "5 queries of test" in script("scripts/experiments/person_queries.py", *flags).stdout
    assert json.loads((out / "person_queries.json").read_text())["n"] == 5


def test_collection_is_the_mean_of_its_sets(music, fast_config, tmp_path):
    for name in ("android", "english"):
        shutil.copytree(music, tmp_path / "cqa" / name)
    out = tmp_path / "out"
    script("scripts/evaluate.py", "--config", fast_config, "--data", tmp_path / "cqa", "--out", out)
    whole = json.loads((out / "results.json").read_text())
    parts = [json.loads((out / name / "results.json").read_text()) for name in ("android", "english")]
    assert whole["num_queries"] == sum(part["num_queries"] for part in parts)
    for name, scores in whole["systems"].items():
        expected = sum(part["systems"][name]["nDCG@10"] for part in parts) / 2
        assert scores["nDCG@10"] == pytest.approx(expected)


def test_overrides_reach_arms(music, fast_config, tmp_path):
    flags = ("--config", fast_config, "--data", music, "--arm", "lexical")
    script("scripts/index.py", *flags, "--arms.lexical.k1", "0.7", "--arms.lexical.tune", "false")
    manifest = next((tmp_path / "cache").glob("*/index/lexical-*/build-*/manifest.json"))
    assert json.loads(manifest.read_text())["config"]["fields"][0]["k1"] == 0.7


def _without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _append(folder: Path, name: str, line: str) -> None:
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write(line)


BAD = {
    "no data": (["--data", "{tmp}/nowhere/x"], "nowhere"),
    "no config": (["--config", "{tmp}/none.yaml"], "none.yaml"),
    "unknown split": (["--split", "tset"], "tset"),
    "unknown arm": (["--fusion.arms", "[lexicl]"], "'lexical'"),
    "unknown argument": (["--arms.lexical.bosts", "{{}}"], "boosts"),
    "unknown top key": (["--fussion.method", "rrf"], "fusion"),
    "unknown key below": (["--fusion.metod", "rrf"], "method"),
    "unknown class": (["--arms.new.class", "ltrr.arms.new.New"], "ltrr.arms.new.New"),
    "arm without class": (["--arms.new.k", "3"], "arms.new"),
    "unknown fusion": (["--fusion.method", "sum"], "sum"),
    "unknown prior": (["--arms.lexical.prior", "votes"], "votes"),
    "unknown boost": (["--arms.lexical.boosts", "{{titel: 1}}"], "titel"),
    "unknown source": (["--arms.lexical.fields", "{{x: {{sources: [nowhere]}}}}"], "nowhere"),
    "unknown keyword field": (["--arms.structured.fields", "[mood]"], "mood"),
    "unknown data field": (["--data.fields", "{{mood: keyword}}"], "mood"),
    "wrong kind": (["--data.fields", "{{artist: number}}"], "artist"),
    "unknown kind": (["--data.fields", "{{artist: word}}"], "word"),
    "unknown query field": (["--data.query_fields", "[mood]"], "mood"),
    "unknown baseline": (["--baseline", "bm25"], "bm25"),
    "odd override": (["--arms.lexical.k1"], "--arms.lexical.k1"),
    "wrong type": (["--arms.lexical.k1", "abc"], "arms.lexical.k1"),
    "text for a list": (["--fusion.arms", "lexical"], "fusion.arms"),
    "unknown norm": (["--fusion.norm", "max"], "fusion.norm"),
    "unknown tuning split": (["--tune.splits", "[trian]"], "trian"),
    "an arm twice": (["--fusion.arms", "[lexical, lexical]"], "twice"),
    "no mapping": (["--arms.lexical", "3"], "arms"),
    "out of range": (["--arms.structured.temperature", "0"], "temperature"),
    "cache is a file": (["--cache", "{tmp}/fast.yaml"], "fast.yaml"),
    "unknown ranker key": (["--ranker", "{{class: ltrr.rankers.cross_encoder.CrossEncoderRanker, modle: x}}"], "modle"),
    "ranker without class": (["--ranker.model", "x"], "ranker"),
    "an arm named as a row": (["--arms.ltrr.class", "ltrr.arms.lexical.Lexical"], "arms.ltrr"),
    "not YAML": (["--arms.lexical.boosts", "{{"], "boosts"),
}
BROKEN = {
    "no corpus": (lambda f: _without(f, "corpus.jsonl"), "corpus.jsonl"),
    "no queries": (lambda f: _without(f, "queries.jsonl"), "queries.jsonl"),
    "malformed line": (lambda f: _append(f, "corpus.jsonl", '{"_id": "x", \n'), "corpus.jsonl"),
    "duplicate id": (lambda f: _append(f, "corpus.jsonl", '{"_id": "s1", "text": "again"}\n'), "s1"),
    "unknown document": (lambda f: _append(f, "qrels/test.tsv", "t3\tnobody\t1\n"), "nobody"),
}


def _refused(capsys, monkeypatch, culprit: str, *flags: object) -> None:
    """Runs evaluate.py in this process: it must end with status 2 and one screen that names the culprit."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    message = message[message.index("error: ") :]
    assert culprit in message
    assert len(message.splitlines()) <= 20  # one screen


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_flag_names_the_culprit(name, music, fast_config, tmp_path, capsys, monkeypatch):
    flags, culprit = BAD[name]
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    base = [] if "--config" in flags else ["--config", fast_config]
    base += [] if "--data" in flags else ["--data", music]
    _refused(capsys, monkeypatch, culprit, *base, "--out", tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_names_the_culprit(name, music, fast_config, tmp_path, capsys, monkeypatch):
    harm, culprit = BROKEN[name]
    shutil.copytree(music, tmp_path / "data")
    harm(tmp_path / "data")
    flags = ("--config", fast_config, "--data", tmp_path / "data", "--out", tmp_path / "out")
    _refused(capsys, monkeypatch, culprit, *flags)


def test_a_damaged_index_is_refused_and_index_repairs_it(music, fast_config, tmp_path, capsys, monkeypatch):
    flags = ("--config", fast_config, "--data", music)
    script("scripts/index.py", *flags)
    victim = next((tmp_path / "cache").glob("*/index/lexical-*/build-*/terms.npz"))
    victim.write_bytes(victim.read_bytes()[:-1])
    _refused(capsys, monkeypatch, "terms.npz", *flags, "--out", tmp_path / "out")
    script("scripts/index.py", *flags)
    script("scripts/evaluate.py", *flags, "--out", tmp_path / "out")


@pytest.mark.slow
def test_kill_9_during_any_build_leaves_the_old_index(music, fast_config, tmp_path):
    """Twelve kills at random moments of a rebuild of all arms; after each, the old indexes still answer."""
    flags = ("--config", fast_config, "--data", music)
    script("scripts/index.py", *flags)
    rng = random.Random(0)
    command = [sys.executable, str(ROOT / "scripts/index.py"), *map(str, flags), "--rebuild"]
    start = time.monotonic()
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    whole = time.monotonic() - start
    for _ in range(12):
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert "Taylor Vale" in script("scripts/explain.py", "taylor vale", *flags).stdout


def test_reproduce_lists_commands_that_exist(tmp_path):
    listed = script("scripts/reproduce.py", "--list", "--shared", tmp_path).stdout.splitlines()
    assert len(listed) > 10
    for line in listed:
        command = line.partition(": python ")[2].split()
        assert command[0] == "-c" or (ROOT / command[0]).exists()
        given = dict(pairwise(command))
        if config := given.get("--config"):
            assert (ROOT / config).exists()
        if data := given.get("--data.path") or given.get("--data"):
            assert data.startswith((str(tmp_path), "runs/quickstart/catalogue"))
    done = script("scripts/reproduce.py", "--only", "nothing", check=False)
    assert done.returncode == 2
    assert "no step 'nothing'" in done.stderr
