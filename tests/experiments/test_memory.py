"""The figures that the experiments on memory write, in a tiny world: reproduce.py and results.py read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ltrr.data.beir import open_dataset
from ltrr.data.expansions import read_expansions
from tests.helpers import script

CONFIG = """cache: {cache}
arms:
  lexical: {{class: ltrr.arms.lexical.Lexical, tune: false}}
  memory: {{class: ltrr.arms.memory.Memory}}
fusion: {{arms: [lexical, memory], weights: {{lexical: 1.0}}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(cache=tmp_path / "cache"), encoding="utf-8")
    return path


def test_memory_is_simulated_beside_what_it_is_compared_with(music: Path, config: Path, tmp_path: Path) -> None:
    out, observed = tmp_path / "out", tmp_path / "observed"
    data = tmp_path / "tiny"
    shutil.copytree(music, data)
    head, *lines = (data / "qrels" / "test.tsv").read_text().splitlines()
    asked = open_dataset(music).split("train").queries[0]
    entity = next(iter(open_dataset(music).split("train").qrels[asked.id]))
    lines += [f"again\t{entity}\t1"]
    (data / "qrels" / "test.tsv").write_text("\n".join([head, *reversed(lines)]))  # another order than the queries'
    with (data / "queries.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "again", "text": asked.text, "metadata": {"intent": "again"}}) + "\n")
    flags = ("--config", config, "--data", data, "--out", out, "--observed", observed)
    done = script("scripts/experiments/memory.py", *flags, "--rounds", 30, 200, "--seeds", 2, "--by", "intent")
    results = json.loads((out / "results.json").read_text())
    assert (results["seeds"], results["dataset"]) == (2, "tiny")
    assert {"all", "attribute", "direct", "again"} <= set(results["groups"])
    rounds = results["groups"]["all"]["rounds"]
    assert list(rounds) == ["without", "train_labels", "0", "30", "200"]
    for cells in rounds.values():
        for cell in (cells["nDCG@10"], cells["R@10"]):
            assert cell["low"] <= cell["mean"] <= cell["high"]
            assert 0 < cell["p"] <= 1
    assert rounds["0"] == rounds["without"]  # nothing is predicted here
    for intent, recall in (("direct", 1.0), ("attribute", 0.9)):
        cells = results["groups"][intent]["rounds"]["without"]["R@10"]
        assert cells["mean"] == pytest.approx(recall)
    used = results["groups"]["again"]["rounds"]["200"]["used"]
    assert used["share"] == 1.0
    assert used["R@10"]["mean"] > 0
    assert "used" not in rounds["0"]
    assert rounds["200"]["nDCG@10"]["mean"] != rounds["0"]["nDCG@10"]["mean"]
    assert (out / "curve.png").stat().st_size > 1000
    assert (out / "table.md").read_text() in done.stdout
    corpus = open_dataset(music).corpus
    queries = list(read_expansions(observed, corpus).pairs())
    asked = {query.text.lower() for query in open_dataset(music).split("train").queries}
    assert queries
    assert {e.query for _, e in queries} <= asked
    assert json.loads((observed / "ltrr.json").read_text()) == {"data": corpus.fingerprint, "splits": ["train"]}


def test_an_attack_is_measured(music: Path, config: Path, tmp_path: Path) -> None:
    flags = ("--config", config, "--data", music, "--out", tmp_path / "out")
    done = script("scripts/experiments/attack.py", *flags, "--rounds", 60, "--clicks", 40, "--seeds", 2)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["attacks"]) == {"worst", "dismiss", "crowd", "push"}
    for measures in results["attacks"].values():
        assert all(num > 0 for num in measures["actions"]) or measures is results["attacks"]["push"]
        assert set(measures) == {"actions", "other_entities", "other_order", "target_enters", "nDCG@10_change"}
        assert all(len(values) == 2 for values in measures.values())
    assert (tmp_path / "out" / "table.md").read_text() in done.stdout
