"""What the scripts around memory write, in a tiny world: contracts that reproduce.py and results.py read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ltrr.arms.lexical import Lexical
from ltrr.data.beir import open_dataset
from ltrr.data.expansions import read_expansions, write_observed
from ltrr.data.lines import DataError
from ltrr.feedback.clicks import PositionBased, load
from ltrr.feedback.events import Action, Impression
from ltrr.feedback.store import EventStore
from ltrr.types import Context, Query
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
                shown = tuple(corpus.ids[int(row)] for row in rng.permutation(6)[:3])
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
    model = load(tmp_path / "clicks.json")
    assert isinstance(model, PositionBased)
    assert model.examination == pytest.approx(truth, abs=0.04)
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
