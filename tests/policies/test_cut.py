"""A policy that decides the cut after retrieval: what it logs, what it spends, and the config that names it."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml

from ltrr.config import ConfigError
from ltrr.data.beir import open_dataset
from ltrr.feedback.events import impressions_of
from ltrr.feedback.store import EventStore
from ltrr.funnel import Funnel
from ltrr.fusion import ReciprocalRankFusion
from ltrr.learners.arm_loss import ArmLossLearner
from ltrr.learners.relevance import RelevanceLearner
from ltrr.learners.rounds_data import read_rounds
from ltrr.policies.cut import CutPolicy
from ltrr.policies.explorers import EpsilonGreedy, Softmax
from ltrr.policies.features import QUERY, pool_names, query_features
from ltrr.policies.fixed import FixedPolicy
from ltrr.policies.price import Price
from ltrr.protocols import AfterRetrieval
from ltrr.system.system import System
from ltrr.types import Query, RetrievalFeatures
from tests.helpers import script
from tests.scripts.test_simulate_policy import CONFIG
from tests.test_funnel import QUERIES, RandomArm

NUM = 8
ARMS = {name: RandomArm(seed) for seed, name in enumerate("ab")}


class ByFused:
    """Values that rise faster for queries whose first candidate has a larger fused score."""

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        steep = 1 + 20 * known.candidates[:, 0, 2:3]
        return 1 - np.exp(-steep * np.arange(1, NUM + 1) / 10)


def policy(explorer, budget=3.0, price=0.01) -> CutPolicy:
    before = FixedPolicy(list(ARMS), {"a": 10, "b": 10}, NUM)
    return CutPolicy(before, ByFused(), num=NUM, price=Price(budget, start=price), explorer=explorer, seed=0)


def funnel(made) -> Funnel:
    return Funnel(ARMS, made, ReciprocalRankFusion(), None, query_features)


def test_what_is_logged_gives_the_whole_distribution_again(tmp_path):
    """Also where the price moves from page to page."""
    made = policy(Softmax(0.1, 0.1))
    assert isinstance(made, AfterRetrieval)
    assert not isinstance(FixedPolicy(["a"], {}, 1), AfterRetrieval)
    made.adapt()
    pages = [funnel(made).search([query], 20) for query in QUERIES]
    with EventStore(f"sqlite:///{tmp_path}/e.db") as store:  # through the database
        ids, now = [f"d{i}" for i in range(50)], datetime.now(UTC)
        store.append([seen for page in pages for seen in impressions_of(page, ids, times=[now], policy="one")])
        logged = [impression for batch in store.impressions() for _, impression in batch]
        assert store.latest("one") == logged[-1]
        assert store.latest("another") is None
    (named,) = logged[0].prices
    assert len({impression.prices[named] for impression in logged}) > 5
    query, each = pool_names(list(ARMS), NUM)
    split = len(QUERY) + len(query)
    features = np.array([impression.features for impression in logged], np.float32)
    known = RetrievalFeatures(features[:, :split], features[:, split:].reshape(len(QUERIES), NUM, len(each)))
    for row, impression in enumerate(logged):
        again = made.probabilities(made.believed(known), impression.prices[named])
        assert impression.drawn is not None
        assert impression.propensity == pytest.approx(again[row, impression.drawn.cut - 1])
        assert impression.marginals == pytest.approx((1, 1, impression.propensity))
        assert len(impression.shown) == impression.drawn.cut
        assert impression.drawn.depths == (10, 10)


def test_the_rest_of_the_page_is_as_with_that_cut_fixed():
    page = funnel(policy(EpsilonGreedy(0.0))).search(QUERIES, 20)
    assert (page.decision.propensity == 1).all()
    for i, query in enumerate(QUERIES):
        fixed = Funnel(
            ARMS, FixedPolicy(list(ARMS), {"a": 10, "b": 10}, int(page.decision.cut[i])), ReciprocalRankFusion()
        )
        alone = fixed.search([query], 20)
        np.testing.assert_array_equal(page.shown.docs[i][: alone.shown.docs.shape[1]], alone.shown.docs[0])


def test_the_price_follows_what_is_spent():
    made = policy(Softmax(0.02, 0.05), budget=4.0, price=0.0)
    whole, spent = funnel(made), []
    assert len({made.price.value, *(funnel(made).draw(QUERIES) and made.price.value for _ in range(3))}) == 1
    made.adapt()
    queries = [Query(f"q{i}", "x") for i in range(400)]
    for start in range(0, 4000, 10):
        spent.append(whole.draw(queries[start % 400 : start % 400 + 10]).decision.cut.mean())
    assert np.mean(spent[200:]) == pytest.approx(4.0, abs=0.35)


@pytest.fixture(scope="module")
def learned(music, tmp_path_factory) -> tuple[Path, Path, dict]:
    """A data set, an export, and the settings of a funnel that uses it."""
    root = tmp_path_factory.mktemp("learned")
    data = root / "tiny"
    shutil.copytree(music, data)
    if not (data / "qrels" / "dev.tsv").exists():
        shutil.copy(data / "qrels" / "train.tsv", data / "qrels" / "dev.tsv")
    (root / "policy.yaml").write_text(CONFIG.format(cache=root / "cache"), encoding="utf-8")
    flags = ("--config", root / "policy.yaml", "--data", data, "--out", root / "out", "--budgets", 3, "--log")
    script("scripts/simulate.py", *flags, "--seeds", 1, "--no-perfect")
    module = RelevanceLearner(hidden=8, epochs=5)
    module.refit(read_rounds(root / "out" / "rounds-3.npz"))
    (root / "export").mkdir()
    module.export(root / "export")
    lexical = "ltrr.arms.lexical.Lexical"
    arms = {"title": {"class": lexical, "tune": False, "fields": {"title": {"sources": ["title"]}}}}
    arms["all"] = {"class": lexical, "tune": False}
    return data, root / "export", {"arms": arms, "cache": str(root / "cache"), "tune": {"splits": ["train"]}}


def test_a_config_names_a_learned_policy(learned):
    data, export, settings = learned
    system = System(settings | {"policy": {"model": str(export), "budget": 3.0}}, open_dataset(data))
    queries = system.dataset.split("test").queries
    drawn = system.funnel().draw(queries)
    assert len({*drawn.decision.cut.tolist()}) > 1
    assert 1 <= drawn.decision.cut.mean() <= 5
    assert "price" in system.tuned()
    again = System(settings | {"policy": {"model": str(export), "budget": 3.0}}, open_dataset(data))
    np.testing.assert_array_equal(again.funnel().draw(queries).decision.cut, drawn.decision.cut)
    softmax = {"class": "ltrr.policies.explorers.Softmax", "temperature": 0.1}
    explored = System(
        settings | {"policy": {"model": str(export), "explore": softmax, "budget": 3.0}}, open_dataset(data)
    )
    assert (explored.funnel().draw(queries).decision.propensity < 1).any()


def test_a_config_lets_arms_be_off(learned, tmp_path):
    """Arms that are off do not run, their mean cost is the budget, and what is logged is the product of both draws."""
    data, export, settings = learned
    rounds = read_rounds(export.parent / "out" / "rounds-3.npz")
    module = ArmLossLearner(cut=3)
    module.refit(rounds, 0, RelevanceLearner.load(export))
    module.export(tmp_path)
    softmax = {"class": "ltrr.policies.explorers.Softmax", "temperature": 0.05, "floor": 0.3}
    options = {"model": str(export), "budget": 3.0, "explore": softmax, "arms_model": str(tmp_path)}
    given = options | {"arms_costs": {"all": 2.0}, "arms_budget": 1.6}
    system = System(settings | {"policy": given}, open_dataset(data))
    queries = [*system.dataset.split("test").queries] * 40
    drawn = system.funnel().draw(queries)
    ran = ~np.isnan(drawn.pool.ranks[:, :, :-1]).all(axis=1)  # (Q, A) that returned something
    off = drawn.decision.depths == 0
    assert not (ran & off).any()
    assert 0.1 < off[:, 0].mean() < 0.9
    assert (~off).any(axis=1).all()
    cuts, arms = drawn.decision.marginals[:, 2], drawn.decision.propensity / drawn.decision.marginals[:, 2]
    assert (arms <= drawn.decision.marginals[:, :2].min(axis=1) + 1e-9).all()
    assert len({*np.round(cuts, 6).tolist()}) > 10
    greedy = options | {"explore": None, "arms_costs": {"all": 2.0}, "arms_budget": 1.6}
    system = System(settings | {"policy": greedy}, open_dataset(data))
    judged = system.tuning.judged("fusion").queries
    cost = (system.funnel().draw(judged).decision.depths > 0) @ np.array([1.0, 2.0])
    assert cost.mean() <= 1.6 + 1e-9
    assert "arms_price" in system.tuned()
    cuts = system.funnel().draw(judged).decision.cut  # of what those arms bring, not of what all would
    assert 2.0 < cuts.mean() <= 3.0
    module = ArmLossLearner(cut=3, shallow=(2, 4))
    module.refit(rounds, 0, RelevanceLearner.load(export))
    module.export(tmp_path)
    deep = given | {"arms_drawn_cost": 0.01, "arms_cap": 2.5, "arms_budget": 2.2}
    system = System(settings | {"policy": deep}, open_dataset(data))
    drawn = system.funnel().draw(queries)
    paid = (drawn.decision.depths > 0) @ np.array([1.0, 2.0]) + 0.01 * drawn.decision.depths.sum(axis=1)
    assert paid.max() <= 2.5
    assert {0, 2, 4} < {*drawn.decision.depths.ravel().tolist()}
    returned = (~np.isnan(drawn.pool.ranks[:, :, :-1])).sum(axis=1)
    assert (returned <= drawn.decision.depths).all()
    adapting = system.funnel().policy
    assert {name.split()[0] for name in drawn.decision.prices} == {"arms", "candidates"}
    adapting.adapt(dict.fromkeys(drawn.decision.prices, 7.0))
    assert adapting.price.value == adapting._before.price.value == 7.0
    adapting.decide(np.zeros((20, len(system.context.columns)), np.float32))
    assert adapting._before.price.value != 7.0
    dearer = System(settings | {"policy": deep | {"arms_costs": {"all": 2.1}}}, open_dataset(data)).funnel().policy
    dearer.adapt(dict.fromkeys(drawn.decision.prices, 7.0))
    assert dearer._before.price.value != 7.0  # other costs, another price
    with pytest.raises(ValueError, match="arms_cap"):
        System(settings | {"policy": deep | {"arms_cap": 0.1}}, open_dataset(data)).funnel()
    with pytest.raises(ConfigError, match=r"needs policy\.model"):
        System(settings | {"policy": {"arms_model": str(tmp_path)}}, open_dataset(data)).funnel()
    with pytest.raises(ConfigError, match="arms_budget"):
        System(settings | {"policy": options}, open_dataset(data)).funnel()
    turned = {"all": settings["arms"]["all"], "title": settings["arms"]["title"]}
    with pytest.raises(ConfigError, match="learned from the arms"):
        System(settings | {"arms": turned, "policy": given}, open_dataset(data)).funnel()


def test_explorers_that_are_unsure_are_told_how_much(learned):
    """UCB is served; Thompson's propensities are estimates, which a log must not hold."""
    data, export, settings = learned
    options = {"model": str(export), "budget": 3.0, "explore": {"class": "ltrr.policies.explorers.UCB", "width": 50.0}}
    queries = open_dataset(data).split("test").queries
    bold = System(settings | {"policy": options}, open_dataset(data)).funnel().draw(queries).decision
    greedy = (
        System(settings | {"policy": options | {"explore": None}}, open_dataset(data)).funnel().draw(queries).decision
    )
    assert (bold.cut != greedy.cut).any()
    thompson = options | {"explore": {"class": "ltrr.policies.explorers.Thompson"}}
    with pytest.raises(ConfigError, match="must be exact"):
        System(settings | {"policy": thompson}, open_dataset(data)).funnel()


def test_evaluate_py_shows_what_a_policy_serves_without_a_ranker(learned, tmp_path):
    data, export, settings = learned
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    flags = ("--config", tmp_path / "f.yaml", "--data", data, "--split", "test", "--out", tmp_path / "out")
    script("scripts/evaluate.py", *flags, "--policy.model", export, "--policy.budget", 3)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["systems"]) == ["title", "all", "rrf", "convex", "ltrr"]
    system = System(settings | {"policy": {"model": str(export), "budget": 3.0}}, open_dataset(data))
    queries = system.dataset.split("test").queries
    cut = system.funnel().draw(queries).fused.docs
    mean = (cut >= 0).sum() / len(queries)
    assert f"`ltrr` rows\nhold {mean:.3g} candidates a query in the mean" in (tmp_path / "out" / "table.md").read_text()


def test_a_policy_of_other_arms_is_refused(learned):
    data, export, settings = learned
    fewer = settings | {"arms": {"all": settings["arms"]["all"]}, "policy": {"model": str(export), "budget": 3.0}}
    with pytest.raises(ConfigError, match="learned from the arms"):
        System(fewer, open_dataset(data)).funnel()
    with pytest.raises(ConfigError, match="other features"):
        System(settings | {"policy": {"model": str(export), "features": ["text"]}}, open_dataset(data)).funnel()
    shallow = {"model": str(export), "depths": {"title": 20, "all": 100}}
    with pytest.raises(ConfigError, match=r"--policy\.depths '\{\"title\": 100, \"all\": 100\}'"):
        System(settings | {"policy": shallow}, open_dataset(data)).funnel()
    with pytest.raises(ConfigError, match="no train or dev queries"):
        System(settings | {"tune": {"splits": []}, "policy": {"model": str(export)}}, open_dataset(data)).funnel()
    with pytest.raises(ValueError, match="no policy"):
        System(settings | {"policy": {"model": "none"}}, open_dataset(data)).funnel()


def test_arms_that_the_funnel_never_asks_are_no_part_of_a_policy(learned):
    data, export, settings = learned
    popular = {"popular": {"class": "ltrr.arms.popular.Popular"}, "gone": None}
    policy = {"model": str(export), "budget": 3.0}
    more = System(settings | {"arms": settings["arms"] | popular, "policy": policy}, open_dataset(data))
    assert "popular" in more.usable()
    assert [*more.funnel().arms] == ["title", "all"]


def test_a_price_is_of_the_fused_order_that_it_was_set_on(learned):
    data, export, settings = learned
    names = set()
    for fusion in ({}, {"method": "rrf"}, {"weights": {"title": 0.1, "all": 0.9}}, {"method": "rrf"}):
        config = settings | {"fusion": fusion, "policy": {"model": str(export), "budget": 3.0}}
        names.add(System(config, open_dataset(data)).funnel().policy.price.name)
    assert len(names) == 3
