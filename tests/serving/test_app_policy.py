"""A service with a learned policy of cuts: a restart goes on at the price where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from fastapi.testclient import TestClient

from ltrr.feedback.store import EventStore
from ltrr.funnel import Funnel
from ltrr.learners.relevance import RelevanceLearner
from ltrr.policies.features import QUERY, pool_features, pool_names, query_features
from ltrr.policies.fixed import FixedPolicy
from ltrr.serving.app import create_app
from ltrr.serving.recorder import recorder
from ltrr.system.system import open_systems
from ltrr.types import Query, RetrievalFeatures, Rounds
from tests.served import policy_of

NUM = 6


@pytest.fixture(scope="module")
def config(music, tmp_path_factory) -> Path:
    """Of a service with a policy that has learned from a few random clicks."""
    folder = tmp_path_factory.mktemp("policy")
    lexical = "ltrr.arms.lexical.Lexical"
    arms = {"title": {"class": lexical, "tune": False, "fields": {"title": {"sources": ["title"]}}}}
    arms["all"] = {"class": lexical, "tune": False}
    settings = {"data": {"path": str(music)}, "cache": str(folder / "cache"), "arms": arms}
    settings |= {"serve": {"events": f"sqlite:///{folder}/events.db"}}
    (folder / "c.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (system,) = open_systems(folder / "c.yaml", [])
    queries = [query for split in system.dataset.splits for query in system.dataset.split(split).queries]
    opened = {name: system.arm(name) for name in arms}
    fixed = FixedPolicy(list(arms), dict.fromkeys(arms, 50), 100)
    seen = pool_features(Funnel(opened, fixed, system.order()).draw(queries).pool, NUM)
    query, each = pool_names(list(arms), NUM)
    names = tuple(f.name for f in (*QUERY, *query)), tuple(f.name for f in each)
    known = RetrievalFeatures(np.concatenate([query_features(queries), seen.query], axis=1), seen.candidates)
    clicks = np.random.default_rng(0).random((len(queries), NUM)) < 0.2
    module = RelevanceLearner(hidden=4, epochs=1, prior_precision=3.0)
    module.refit(Rounds(np.arange(len(queries)), *known, np.full(len(queries), NUM), clicks, names))
    module.export(folder)
    floor = {"class": "ltrr.policies.explorers.Softmax", "temperature": 0.02, "floor": 1.0}
    policy = {"class": "ltrr.policies.cut.CutPolicy", "model": str(folder), "budget": 4.0}
    settings["policy"] = policy | {"explore": floor}
    (folder / "c.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder / "c.yaml"


def start(config: Path, *flags: str):
    """A client, and what keeps events."""
    (system,) = open_systems(config, list(flags))
    corpus, funnel = system.corpus, system.funnel()
    kept = recorder(system, system.settings.serve.events, funnel.policy)
    assert kept is not None
    app = create_app(
        funnel, "tiny", len(corpus), lambda row: (corpus.ids[row], corpus[row].title), max_k=20, recorder=kept
    )
    return TestClient(app), kept


def test_a_restart_goes_on_at_the_price_where_it_stopped(config, tmp_path):
    """But for another budget, whose price is another one."""
    flags = ("--serve.events", f"sqlite:///{tmp_path}/e.db")
    client, kept = start(config, *flags)
    for n in range(30):
        client.post("/search", json={"query": f"love {n % 3}", "k": 2})
    kept.loop.close()
    with EventStore(flags[1]) as store:
        last = [seen for batch in store.impressions() for _, seen in batch][-1]
    (name,) = last.prices
    systems = [open_systems(config, [*flags, "--policy.budget", budget])[0] for budget in ("4", "5")]
    policies = [policy_of(system.funnel()) for system in systems]
    first = [price for policy in policies for price in policy.prices.values()]
    assert last.prices[name] != first[0]
    for policy in policies:
        policy.follow(last.prices)
    assert [price for policy in policies for price in policy.prices.values()] == [last.prices[name], first[1]]
    (system,) = open_systems(config, list(flags))
    funnel = system.funnel(seed=9)  # whose draws spend more than the budget
    kept = recorder(system, flags[1], funnel.policy)
    assert kept is not None
    kept.loop.close()
    assert policy_of(funnel).prices == {name: last.prices[name]}
    cuts = funnel.search([Query(f"q{n}", f"love {n % 3}") for n in range(10)], 2).decision.cut
    moved = policy_of(funnel).prices[name] - last.prices[name]
    assert cuts.mean() > 4.0
    assert 0 < moved < 0.2 * first[0]  # it has long been found, so it moves little
