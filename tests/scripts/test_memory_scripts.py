"""What the scripts around memory write, in a tiny world: contracts that reproduce.py and results.py read."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ltrr.arms.lexical import Lexical
from ltrr.data.beir import open_dataset
from ltrr.data.expansions import read_expansions, write_observed
from ltrr.data.lines import DataError
from ltrr.feedback.clicks import load
from ltrr.feedback.events import Action, Impression
from ltrr.feedback.store import EventStore
from ltrr.types import Context, Query
from tests.helpers import script

CONFIG = """cache: {cache}
arms:
  lexical: {{class: ltrr.arms.lexical.Lexical, tune: false}}
  memory: {{class: ltrr.arms.memory.Memory}}
fusion: {{arms: [lexical], weights: {{lexical: 1.0}}, added: {{memory: 1.0}}}}
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
    done = script("scripts/simulate_memory.py", *flags, "--rounds", 30, 200, "--seeds", 2, "--by", "intent")
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
    done = script("scripts/attack_memory.py", *flags, "--rounds", 60, "--clicks", 40, "--seeds", 2)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["attacks"]) == {"worst", "dismiss", "crowd", "push"}
    for measures in results["attacks"].values():
        assert all(num > 0 for num in measures["actions"]) or measures is results["attacks"]["push"]
        assert set(measures) == {"actions", "other_entities", "other_order", "target_enters", "nDCG@10_change"}
        assert all(len(values) == 2 for values in measures.values())
    assert (tmp_path / "out" / "table.md").read_text() in done.stdout


def lived(path: Path) -> str:
    """URL of a store in which four customers click d0 for zorp, and one for blib."""
    url, time = f"sqlite:///{path}", datetime(2026, 1, 5, tzinfo=UTC)
    with EventStore(url) as store:
        for n, (customer, query) in enumerate([*((f"c{i}", "Zorp!") for i in range(4)), ("c0", "blib")]):
            seen = Impression(f"i{n}", time, query, ("s0", "s1"), context=Context(customer))
            store.append([seen, Action(f"a{n}", seen.id, "s0", "click", time + timedelta(seconds=9))])
    return url


def test_observed_queries_come_from_the_store_and_full_text_finds_with_them(
    music: Path, config: Path, tmp_path: Path
) -> None:
    url, out = lived(tmp_path / "events.db"), tmp_path / "observed"
    flags = ("--config", config, "--data", music, "--events", url)
    assert f"1 queries of 1 documents in {out}" in script("scripts/observed.py", *flags, "--out", out).stdout
    corpus = open_dataset(music).corpus
    assert [(corpus.ids[row], e.query) for row, e in read_expansions(out, corpus).pairs()] == [("s0", "zorp")]
    arm = Lexical(expansion=str(out), boosts={"expansion_english": 1.0})
    arm.build(corpus, tmp_path / "index")
    arm.open(corpus, tmp_path / "index")
    found = arm.search([Query("q", "zorp"), Query("q", "blib")], 3)
    assert corpus.ids[found.docs[0, 0]] == "s0"
    assert (found.docs[1] < 0).all()
    wrong = script("scripts/observed.py", "--config", config, "--data", music, "--out", out, check=False)
    assert "--events" in wrong.stderr
    wrong = script("scripts/observed.py", *flags[:4], "--events", "sqlite:///no.db", "--out", out, check=False)
    assert "no such file" in wrong.stderr
    wrong = script("scripts/observed.py", *flags, "--out", out, "--arm", "lexical", check=False)
    assert "observes no queries" in wrong.stderr


def test_observed_queries_follow_predicted_ones(music: Path, tmp_path: Path) -> None:
    corpus = open_dataset(music).corpus
    write_observed(tmp_path / "p", corpus, [(3, "predicted", 0.5)])
    write_observed(tmp_path / "o", corpus, [(3, "b", 0.5), (3, "a", 1.0)], read_expansions(tmp_path / "p", corpus))
    assert read_expansions(tmp_path / "o", corpus)[3] == ["predicted", "a", "b"]
    with pytest.raises(DataError, match="another folder"):
        write_observed(tmp_path / "o", corpus, [(3, "b", 0.5)])


def test_the_store_tells_where_customers_look(music: Path, tmp_path: Path) -> None:
    """Clicks that were simulated with known examination, through the store, into memory's override; then Parquet."""
    corpus, rng = open_dataset(music).corpus, np.random.default_rng(0)
    url, start, truth = f"sqlite:///{tmp_path}/e.db", datetime.now(UTC) - timedelta(days=40), (1.0, 0.5, 0.2)
    with EventStore(url) as store:
        for first in range(0, 6000, 500):
            events = []
            for n in range(first, first + 500):
                time = start if n < 100 else start + timedelta(days=39)
                shown = tuple(corpus.ids[row] for row in rng.permutation(6)[:3])
                seen = Impression(f"i{n}", time, "q", shown)
                looked = rng.random(3) < np.array(truth) * 0.6
                events += [
                    seen,
                    *(Action(f"a{n}-{k}", seen.id, shown[k], "click", time) for k in np.flatnonzero(looked)),
                ]
            store.append(events)
    flags = ("--events", url)
    done = script("scripts/events.py", *flags, "examination", tmp_path / "clicks.json", "--positions", 3).stdout
    name, value = done.splitlines()[-1].split(" ", 1)
    assert name == "--arms.memory.examination"
    assert json.loads(value.strip("'")) == pytest.approx(truth, abs=0.04)
    assert load(tmp_path / "clicks.json").examination == pytest.approx(truth, abs=0.04)
    assert script("scripts/events.py", *flags, "status").stdout.startswith("6,000 impressions")
    script("scripts/events.py", *flags, "export", tmp_path / "parquet")
    assert len([*(tmp_path / "parquet/impressions").glob("day=*/*.parquet")]) == 2
    assert script("scripts/events.py", *flags, "expire", 30).stdout.startswith("removed: 100 impressions")
    assert script("scripts/events.py", *flags, "status").stdout.startswith("5,900 impressions")
    for command in (("--events", "sqlite:///nothing.db", "status"), (*flags, "expire", -1), (*flags, "expire", "inf")):
        wrong = script("scripts/events.py", *command, check=False)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    script("scripts/events.py", *flags, "expire", 0.001)
    script("scripts/events.py", *flags, "export", tmp_path / "empty")
    assert [*(tmp_path / "empty").rglob("*.parquet")] == []
