"""The belief, named in a config, is evaluated and served; it learns from /feedback and an erasure takes it back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from ltrr.cli.fit import TrainingCLI
from ltrr.feedback.store import EventStore
from ltrr.policies.belief import Belief
from ltrr.serving.app import create_app
from ltrr.serving.recorder import recorder
from ltrr.system.system import open_systems
from tests.helpers import ROOT, script

BELIEF = ("--policy.class", "ltrr.policies.belief.Belief", "--policy.budget", "6")


@pytest.mark.parametrize("name", ["belief.Belief", "rules.Calibrated", "rules.RangeScaled", "boost.ClickBoost"])
def test_policies_of_worth_are_evaluated(name: str, music: Path, fast_config: Path, tmp_path: Path) -> None:
    flags = ("--policy.class", f"ltrr.policies.{name}", "--policy.budget", 6)
    script("scripts/evaluate.py", "--config", fast_config, "--data", music, "--out", tmp_path / "out", *flags)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "ltrr" in results["systems"]
    if "rules.R" not in name and "boost" not in name:
        assert any(key.startswith("calibration") for key in results["tuned"])


def test_it_learns_what_is_served_and_shows_what_it_explores(music: Path, fast_config: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    evidence = json.dumps({"class": "ltrr.policies.evidence.CorpusEvidence", "distinct": 2, "encoder": None})
    flags = ["--data.path", str(music), "--serve.events", url, *BELIEF, "--policy.evidence", evidence]

    def start() -> tuple[TestClient, object, Belief]:
        (system,) = open_systems(fast_config, flags)
        corpus, funnel = system.corpus, system.funnel(seed=1)
        kept = recorder(system, system.settings.serve.events, funnel.policy)
        app = create_app(
            funnel, "tiny", len(corpus), lambda row: (corpus.ids[row], corpus[row].title), recorder=kept, max_k=20
        )
        assert isinstance(funnel.policy, Belief)
        return TestClient(app), kept, funnel.policy

    client, kept, belief = start()
    asked = {"query": "tayler vale songs", "k": 20}
    first = client.post("/search", json=asked).json()["results"]
    wanted = first[-1]["id"]
    for n in range(6):
        shown = client.post("/search", json=asked | {"context": {"customer": f"c{n}"}}).json()
        found = wanted in [result["id"] for result in shown["results"]]
        action = {"id": "a", "impression": shown["impression"], "entity": wanted, "kind": "click"}
        if found:
            client.post("/feedback", json={"actions": [action]})
    after = [result["id"] for result in client.post("/search", json=asked).json()["results"]]
    assert after.index(wanted) <= 1  # the first place may be explored
    kept.loop.close()  # type: ignore[attr-defined]
    with EventStore(url) as store:
        seen = [impression for batch in store.impressions() for _, impression in batch]
    explored = [impression for impression in seen if impression.explored]
    assert explored
    assert all(each.shown[each.explored_place] == each.explored for each in explored)
    assert all(0 < each.explored_propensity <= 0.2 for each in explored)
    client, _, again = start()  # a restart keeps what was learned
    order = [result["id"] for result in client.post("/search", json=asked).json()["results"]]
    assert order.index(wanted) <= 1
    served = client.get("/policy").json()
    assert served["id"] == "belief"
    (price,) = served["prices"].values()
    assert price > 0
    assert served["status"]["own evidence counts"] <= 1
    assert served["status"]["fallen back to the prior"] is None
    for n in range(6):
        client.delete(f"/customers/c{n}")
    order = [result["id"] for result in client.post("/search", json=asked).json()["results"]]
    assert wanted not in order[:1]
    np.testing.assert_array_equal(belief.weights.shape, again.weights.shape)


@pytest.mark.filterwarnings("ignore")  # Lightning's, on small data
def test_a_neural_prior_is_fitted_on_rounds_served_and_fitted_again(music: Path, fast_config: Path, tmp_path: Path):
    """docs/policy.md: simulated rounds -> train.py fit -> a belief that serves from it -> rounds of what was served."""
    flags = ("--config", fast_config, "--data", music, "--budgets", 5, "--seeds", 1, "--no-perfect", "--log")
    policy = (
        "{class: ltrr.policies.cut.CutPolicy, learner: {class: ltrr.learners.relevance.RelevanceLearner, epochs: 1}}"
    )
    more = ("--policy", policy, "--policy.num", 30, "--logger", "null", "--price", "train")
    script("scripts/simulate.py", *flags, *more, "--out", tmp_path / "sim")
    fit = ["fit", f"--config={ROOT / 'configs' / 'policy.yaml'}", "--trainer.logger=false", "--trainer.max_epochs=2"]
    fit += [
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu",
    ]
    TrainingCLI([*fit, f"--data.path={tmp_path / 'sim' / 'rounds-5.npz'}", "--id=first"])
    url, export = f"sqlite:///{tmp_path}/events.db", tmp_path / "first" / "export"
    served = ["--policy.class", "ltrr.policies.belief.Belief", "--policy.budget", "6", "--policy.num", "30"]
    served += ["--policy.model", str(export), "--policy.features", "[text, time]"]
    (system,) = open_systems(fast_config, ["--data.path", str(music), "--serve.events", url, *served])
    funnel = system.funnel(seed=1)
    kept = recorder(system, url, funnel.policy)
    assert kept is not None
    for query in system.dataset.split("train").queries[:25]:
        kept.show(funnel.search([query], 10), None)
    kept.loop.close()
    rounds = tmp_path / "served.npz"
    done = script("scripts/events.py", "--events", url, "rounds", "--model", export, "--out", rounds, "--wait", 0)
    assert "25 rounds" in done.stdout
    assert "left out: none" in done.stdout
    TrainingCLI([*fit, f"--data.path={rounds}", "--id=second"])
    assert (tmp_path / "second" / "export" / "prior.safetensors").exists()
