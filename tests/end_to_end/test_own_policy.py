"""A policy of one's own, a class in one file, decides in every command as any policy of ltrr does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ltrr.feedback.store import EventStore
from ltrr.metrics import read_run
from ltrr.serving.app import create_app
from ltrr.serving.recorder import recorder
from ltrr.system.system import open_systems
from tests import own_policy
from tests.helpers import script

FLAGS = ("--policy.class", "tests.own_policy.ByLength", "--policy.per_word", "3")


def test_it_is_of_thirty_lines_and_inherits_from_nothing() -> None:
    assert len(Path(own_policy.__file__).read_text().splitlines()) <= 30
    assert own_policy.ByLength.__bases__ == (object,)


def test_it_is_evaluated(music: Path, fast_config: Path, tmp_path: Path) -> None:
    """The row `ltrr` holds three candidates for each word of a query."""
    script("scripts/evaluate.py", "--config", fast_config, "--data", music, "--out", tmp_path / "out", *FLAGS)
    assert "ltrr" in json.loads((tmp_path / "out" / "results.json").read_text())["systems"]
    (system,) = open_systems(fast_config, ["--data.path", str(music), *FLAGS])
    run = read_run(tmp_path / "out" / "runs" / "ltrr.trec")
    queries = system.dataset.split("test").queries
    assert {q.id: len(run[q.id]) for q in queries} == {q.id: 3 * len(q.text.split()) for q in queries}
    assert "in the mean" in (tmp_path / "out" / "table.md").read_text()


def test_it_serves_and_its_pages_are_logged_with_its_name(music: Path, fast_config: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    (system,) = open_systems(fast_config, ["--data.path", str(music), "--serve.events", url, *FLAGS])
    funnel, corpus = system.funnel(), system.corpus
    kept = recorder(system, system.settings.serve.events, funnel.policy)
    assert kept
    app = create_app(
        funnel, "tiny", len(corpus), lambda row: (corpus.ids[row], corpus[row].title), recorder=kept, max_k=20
    )
    with kept.loop:
        shown = TestClient(app).post("/search", json={"query": "tayler vale songs", "k": 20}).json()
    assert len(shown["results"]) == 9
    with EventStore(url) as store:
        ((_, seen),) = [pair for batch in store.impressions() for pair in batch]
    assert (seen.id, seen.policy, seen.drawn.cut, seen.propensity) == (shown["impression"], "by length 3", 9, 1.0)
    assert list(seen.shown) == [result["id"] for result in shown["results"]]


def test_mistakes_in_its_section_are_named(music: Path, fast_config: Path) -> None:
    with pytest.raises(ValueError, match="policy: unknown key 'per_wrod'; did you mean 'per_word'"):
        open_systems(fast_config, ["--data.path", str(music), *FLAGS, "--policy.per_wrod", "3"])
