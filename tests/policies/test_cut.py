"""A policy that decides the cut after retrieval: what it logs, what it spends, and the config that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pytest
import yaml

from ltrr.config import ConfigError
from ltrr.data.beir import open_dataset
from ltrr.feedback.events import impressions_of
from ltrr.feedback.store import EventStore
from ltrr.funnel import Funnel, in_order
from ltrr.fusion import ReciprocalRankFusion
from ltrr.learners.arm_loss import ArmLossLearner
from ltrr.learners.relevance import RelevanceLearner
from ltrr.policies.cut import CutPolicy
from ltrr.policies.explorers import EpsilonGreedy, Softmax
from ltrr.policies.features import QUERY, pool_features, pool_names, query_features
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import AfterRetrieval, CutLearner, offers
from ltrr.system.system import System
from ltrr.types import Decision, Pool, Query, RetrievalFeatures, Rounds
from tests.helpers import script
from tests.served import policy_of
from tests.test_funnel import QUERIES, RandomArm

NUM = 8
ARMS = {name: RandomArm(seed) for seed, name in enumerate("ab")}
DEPTHS = {"a": 10, "b": 10}
CUT, BEFORE = "ltrr.policies.cut.CutPolicy", "ltrr.policies.arms.ArmPolicy"


class ByFused:
    """Values that rise faster for queries whose first candidate has a larger fused score."""

    id, num, depths = "fused", NUM, None

    def __init__(self) -> None:
        query, each = pool_names([*ARMS], NUM)
        self.columns = tuple(f.name for f in (*QUERY, *query)), tuple(f.name for f in each)

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        steep = 1 + 20 * known.candidates[:, 0, 2:3]
        return 1 - np.exp(-steep * np.arange(1, NUM + 1) / 10)


def by_fused() -> CutLearner:
    """A learner of which a policy reads values and never asks for a refit."""
    return cast(CutLearner, ByFused())


def policy(explorer, budget=3.0, price=0.01) -> CutPolicy:
    made = CutPolicy([*ARMS], by_fused(), DEPTHS, budget=budget, explore=explorer, features=query_features, seed=0)
    made.set_prices({"candidates": price})
    return made


def price_of(made) -> float:
    """The price of a candidate."""
    (price,) = (value for name, value in made.prices.items() if name.startswith("candidates"))
    return price


def funnel(made) -> Funnel:
    return Funnel(ARMS, made, ReciprocalRankFusion())


def test_what_is_logged_gives_the_whole_distribution_again(tmp_path):
    """Also where the price moves from page to page."""
    made = policy(Softmax(0.1, 0.1))
    assert offers(made, AfterRetrieval)
    assert not offers(FixedPolicy(["a"], {}, 1), AfterRetrieval)
    made.follow({})
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
        again = made.probabilities(known, made.values(known), impression.prices[named])
        assert impression.drawn is not None
        assert impression.propensity == pytest.approx(again[row, impression.drawn.cut - 1])
        assert impression.marginals == pytest.approx((1, 1, impression.propensity))
        assert len(impression.shown) == impression.drawn.cut
        assert impression.drawn.depths == (10, 10)


def test_the_rest_of_the_page_is_as_with_that_cut_fixed():
    page = funnel(policy(EpsilonGreedy(0.0))).search(QUERIES, 20)
    assert (page.decision.propensity == 1).all()
    for i, query in enumerate(QUERIES):
        fixed = Funnel(ARMS, FixedPolicy([*ARMS], DEPTHS, int(page.decision.cut[i])), ReciprocalRankFusion())
        alone = fixed.search([query], 20)
        np.testing.assert_array_equal(page.shown.docs[i][: alone.shown.docs.shape[1]], alone.shown.docs[0])


def test_the_price_follows_what_is_spent():
    made = policy(Softmax(0.02, 0.05), budget=4.0, price=0.0)
    whole, spent = funnel(made), []
    assert len({price_of(made), *(funnel(made).draw(QUERIES) and price_of(made) for _ in range(3))}) == 1
    made.follow({})
    queries = [Query(f"q{i}", "x") for i in range(400)]
    for start in range(0, 4000, 10):
        spent.append(whole.draw(queries[start % 400 : start % 400 + 10]).decision.cut.mean())
    assert np.mean(spent[200:]) == pytest.approx(4.0, abs=0.35)


class Shy:
    """Runs arm `a` alone where a unit of cost must bring more than half; its price is always found to be 0.7."""

    def __init__(self, prices: Mapping[str, float] | None = None, greedy: bool = False) -> None:
        self.id, self.prices, self.is_greedy = "shy", dict(prices or {"arms": 0.0}), greedy
        self.followed: Mapping[str, float] = {}

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        deep = {"a": 10} if next(iter(self.prices.values())) > 0.5 else DEPTHS
        return FixedPolicy([*ARMS], deep, NUM).decide(queries, features)._replace(prices=dict(self.prices))

    def greedy(self) -> Shy:
        return Shy(self.prices, greedy=True)

    def find_prices(self, queries: Sequence[Query], features: np.ndarray, retrieve) -> dict[str, float]:
        return {"arms": 0.7}

    def set_prices(self, prices: Mapping[str, float], label: str = "") -> None:
        self.prices = {f"arms {label}".strip(): prices["arms"]}

    def follow(self, logged: Mapping[str, float]) -> None:
        self.followed = logged


@pytest.mark.parametrize("shy", [False, True])
def test_prices_are_of_what_the_arms_bring_at_theirs(shy):
    """The least price of a candidate at which the budget holds, where arms run as they do at their own price."""
    before = Shy() if shy else None
    made = CutPolicy(
        [*ARMS], by_fused(), DEPTHS, budget=3.0, before=before, explore=Softmax(0.1), features=query_features, seed=0
    )
    features, asked = query_features(QUERIES), []

    def retrieve(policy) -> Pool:
        asked.append(policy)
        brought = Funnel(ARMS, policy, ReciprocalRankFusion()).draw(QUERIES)
        return in_order(brought.union, ReciprocalRankFusion().rank(QUERIES, brought.union))

    prices = made.find_prices(QUERIES, features, retrieve)
    assert {*prices} == ({"arms", "candidates"} if shy else {"candidates"})
    assert {*made.prices.values()} == {0.0}  # finding them sets none
    (probe,) = asked
    if shy:
        assert probe.is_greedy
        assert probe.prices == {"arms": 0.7}
    seen = pool_features(retrieve(FixedPolicy([*ARMS], {"a": 10} if shy else DEPTHS, NUM)), NUM)
    values = made.values(RetrievalFeatures(np.concatenate([features, seen.query], axis=1), seen.candidates))

    def mean_cut(price: float) -> float:
        cuts = [1 + max(range(NUM), key=lambda n: row[n] - price * (n + 1)) for row in values.tolist()]
        return float(np.mean(cuts))

    assert mean_cut(prices["candidates"] * 1.001) <= 3.0 < mean_cut(prices["candidates"] * 0.999)

    made.set_prices(prices, "mine")
    named = {f"{name} mine": value for name, value in prices.items()}
    assert made.prices == named
    assert funnel(made.greedy()).draw(QUERIES).decision.prices == named
    assert funnel(made.greedy()).draw(QUERIES).decision.cut.mean() <= 3.0
    made.follow({"candidates mine": 0.25, "arms mine": 0.5})
    assert made.prices["candidates mine"] == 0.25
    if before:
        assert before.followed == {"candidates mine": 0.25, "arms mine": 0.5}


def test_a_budget_that_no_cut_has_is_named():
    for budget in (0.5, NUM + 1):
        with pytest.raises(ValueError, match=rf"policy\.budget: {budget:g} candidates are not from 1 to {NUM}"):
            CutPolicy([*ARMS], by_fused(), DEPTHS, budget=budget, features=query_features)


def test_greedy_draws_take_none_of_a_policys_own():
    """So what it serves does not depend on whether its prices were found, or read from a cache."""
    one, other = policy(Softmax(0.1, 0.5)), policy(Softmax(0.1, 0.5))
    funnel(one.greedy()).draw(QUERIES)
    np.testing.assert_array_equal(funnel(one).draw(QUERIES).decision.cut, funnel(other).draw(QUERIES).decision.cut)


class Learned(NamedTuple):
    """A data set, an export of a learner, the rounds it learned from, and settings of a funnel of the same arms."""

    data: Path
    export: Path
    rounds: Rounds
    settings: dict


@pytest.fixture(scope="module")
def learned(music, tmp_path_factory) -> Learned:
    """From 20 random pages of each training query, on which customers click what is relevant and looked at."""
    root = tmp_path_factory.mktemp("learned")
    data, lexical = root / "tiny", "ltrr.arms.lexical.Lexical"
    shutil.copytree(music, data)
    arms = {"title": {"class": lexical, "tune": False, "fields": {"title": {"sources": ["title"]}}}}
    arms["all"] = {"class": lexical, "tune": False}
    settings = {"arms": arms, "cache": str(root / "cache"), "tune": {"splits": ["train"]}}
    system = System(settings, open_dataset(data))
    queries, qrels = system.dataset.split("train")
    module = RelevanceLearner(hidden=8, epochs=5)
    drawing = CutPolicy([*arms], module, dict.fromkeys(arms, 100), budget=3, num=12, features=query_features)
    logging = Funnel({name: system.arm(name) for name in arms}, drawing, system.order())
    drawn = logging.draw(queries)
    rng, row = np.random.default_rng(0), np.repeat(np.arange(len(queries)), 20)
    cut = rng.integers(1, 13, len(row))
    docs = system.retrieve(queries, drawing).docs[:, :12]
    relevant = np.array(
        [[d >= 0 and system.corpus.ids[d] in qrels[q.id] for d in r] for q, r in zip(queries, docs, strict=True)]
    )
    clicks = relevant[row] & (np.arange(12) < cut[:, None]) & (rng.random((len(row), 12)) < 1 / np.arange(1, 13))
    rounds = drawing.rounds(drawn.features, row, cut, clicks)
    module.refit(rounds)
    (root / "export").mkdir()
    module.export(root / "export")
    return Learned(data, root / "export", rounds, settings)


def opened(learned: Learned, policy: dict, **settings) -> System:
    return System(learned.settings | {"policy": policy} | settings, open_dataset(learned.data))


def cut_policy(learned: Learned, **options) -> dict:
    """The section of a policy that decides cuts."""
    return {"class": CUT, "model": str(learned.export), "budget": 3.0} | options


def test_a_config_names_a_learned_policy(learned):
    system = opened(learned, cut_policy(learned))
    queries = system.dataset.split("test").queries
    drawn = system.funnel().draw(queries)
    assert len({*drawn.decision.cut.tolist()}) > 1
    assert 1 <= drawn.decision.cut.mean() <= 5
    assert "price" in system.tuned()
    again = opened(learned, cut_policy(learned))
    np.testing.assert_array_equal(again.funnel().draw(queries).decision.cut, drawn.decision.cut)
    softmax = {"class": "ltrr.policies.explorers.Softmax", "temperature": 0.1}
    explored = opened(learned, cut_policy(learned, explore=softmax))
    assert (explored.funnel().draw(queries).decision.propensity < 1).any()


def test_a_section_of_0_1_decides_the_same(learned, arms_model):
    """Its keys are translated, with a warning that says what to write."""
    old = {"model": str(learned.export), "budget": 3.0, "arms_model": arms_model(), "arms_budget": 1.6}
    before = {"class": BEFORE, "model": old["arms_model"], "budget": 1.6, "costs": {"all": 2.0}}
    new = opened(learned, cut_policy(learned, before=before))
    queries = new.dataset.split("test").queries
    with pytest.warns(DeprecationWarning, match=r"'class': 'ltrr\.policies\.cut\.CutPolicy'.*'before': "):
        funnel = opened(learned, old | {"arms_costs": {"all": 2.0}}).funnel()
    for one, other in zip(funnel.draw(queries).decision[:4], new.funnel().draw(queries).decision[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert policy_of(funnel).prices == policy_of(new.funnel()).prices
    with pytest.raises(ConfigError, match=r"needs policy\.model"):
        opened(learned, {"arms_model": old["arms_model"]}).funnel()
    with pytest.raises(ConfigError, match="arms_budget"):
        opened(learned, {name: value for name, value in old.items() if name != "arms_budget"}).funnel()


@pytest.fixture
def arms_model(learned, tmp_path):
    """Exports a learner of what arms are worth."""

    def export(**options) -> str:
        module = ArmLossLearner(cut=3, **options)
        module.refit(learned.rounds, 0, RelevanceLearner.load(learned.export))
        module.export(tmp_path)
        return str(tmp_path)

    return export


def test_a_config_lets_arms_be_off(learned, arms_model):
    """Arms that are off do not run, their mean cost is the budget, and what is logged is the product of both draws."""
    softmax = {"class": "ltrr.policies.explorers.Softmax", "temperature": 0.05, "floor": 0.3}
    arms = {"class": BEFORE, "model": arms_model(), "budget": 1.6, "costs": {"all": 2.0}}
    given = cut_policy(learned, explore=softmax, before=arms | {"explore": softmax})
    system = opened(learned, given)
    queries = [*system.dataset.split("test").queries] * 40
    drawn = system.funnel().draw(queries)
    ran = ~np.isnan(drawn.pool.ranks[:, :, :-1]).all(axis=1)  # (Q, A) that returned something
    off = drawn.decision.depths == 0
    assert not (ran & off).any()
    assert 0.1 < off[:, 0].mean() < 0.9
    assert (~off).any(axis=1).all()
    cuts, chosen = drawn.decision.marginals[:, 2], drawn.decision.propensity / drawn.decision.marginals[:, 2]
    assert (chosen <= drawn.decision.marginals[:, :2].min(axis=1) + 1e-9).all()
    assert len({*np.round(cuts, 6).tolist()}) > 10
    system = opened(learned, cut_policy(learned, before=arms))
    judged = system.tuning.judged("fusion").queries
    cost = (system.funnel().draw(judged).decision.depths > 0) @ np.array([1.0, 2.0])
    assert cost.mean() <= 1.6 + 1e-9
    assert {*system.tuned()["price"]["parameters"]} == {"arms", "candidates"}
    cuts = system.funnel().draw(judged).decision.cut  # of what those arms bring, not of what all would
    assert 2.0 < cuts.mean() <= 3.0
    with pytest.raises(ConfigError, match=r"policy\.before: .*'budget'"):
        opened(learned, given | {"before": {"class": BEFORE, "model": arms["model"]}}).funnel()
    turned = {"all": learned.settings["arms"]["all"], "title": learned.settings["arms"]["title"]}
    with pytest.raises(ValueError, match="learned from the arms"):
        opened(learned, given, arms=turned).funnel()


def test_a_config_lets_arms_be_drawn_less_deep(learned, arms_model):
    softmax = {"class": "ltrr.policies.explorers.Softmax", "temperature": 0.05, "floor": 0.3}
    arms = {"class": BEFORE, "model": arms_model(shallow=(2, 4)), "budget": 2.2, "costs": {"all": 2.0}}
    arms |= {"explore": softmax, "drawn_cost": 0.01, "cap": 2.5}

    def with_arms(**options) -> System:
        return opened(learned, cut_policy(learned, explore=softmax, before=arms | options))

    system = with_arms()
    queries = [*system.dataset.split("test").queries] * 40
    drawn = system.funnel().draw(queries)
    paid = (drawn.decision.depths > 0) @ np.array([1.0, 2.0]) + 0.01 * drawn.decision.depths.sum(axis=1)
    assert paid.max() <= 2.5
    assert {0, 2, 4} < {*drawn.decision.depths.ravel().tolist()}
    returned = (~np.isnan(drawn.pool.ranks[:, :, :-1])).sum(axis=1)
    assert (returned <= drawn.decision.depths).all()
    following, prices = policy_of(system.funnel()), drawn.decision.prices
    assert prices is not None
    assert {name.split()[0]: name for name in following.prices}.keys() == {"arms", "candidates"}
    following.follow(dict.fromkeys(prices, 7.0))
    assert {*following.prices.values()} == {7.0}
    following.decide(queries[:20], following.features(queries[:20]))
    assert [value == 7.0 for name, value in sorted(following.prices.items())] == [False, True]  # arms were paid for
    dearer = policy_of(with_arms(costs={"all": 2.1}).funnel())
    dearer.follow(dict.fromkeys(prices, 7.0))
    assert 7.0 not in dearer.prices.values()  # other costs, another price
    with pytest.raises(ValueError, match="arms_cap"):
        with_arms(cap=0.1).funnel()


def test_explorers_that_are_unsure_are_told_how_much(learned):
    """UCB is served; Thompson's propensities are estimates, which a log must not hold."""
    queries = open_dataset(learned.data).split("test").queries
    ucb = {"class": "ltrr.policies.explorers.UCB", "width": 50.0}
    bold = opened(learned, cut_policy(learned, explore=ucb)).funnel().draw(queries).decision
    greedy = opened(learned, cut_policy(learned)).funnel().draw(queries).decision
    assert (bold.cut != greedy.cut).any()
    with pytest.raises(ValueError, match="must be exact"):
        opened(learned, cut_policy(learned, explore={"class": "ltrr.policies.explorers.Thompson"})).funnel()


def test_evaluate_py_shows_what_a_policy_serves_without_a_ranker(learned, tmp_path):
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(learned.settings, sort_keys=False))
    flags = ("--config", tmp_path / "f.yaml", "--data", learned.data, "--split", "test", "--out", tmp_path / "out")
    flags += ("--policy.class", CUT, "--policy.model", learned.export, "--policy.budget", 3)
    script("scripts/evaluate.py", *flags)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["systems"]) == ["title", "all", "rrf", "convex", "ltrr"]
    system = opened(learned, cut_policy(learned))
    queries = system.dataset.split("test").queries
    cut = system.funnel().draw(queries).fused.docs
    mean = (cut >= 0).sum() / len(queries)
    assert f"`ltrr` rows\nhold {mean:.3g} candidates a query in the mean" in (tmp_path / "out" / "table.md").read_text()


def test_a_policy_of_other_arms_is_refused(learned):
    with pytest.raises(ValueError, match="learned from the arms"):
        opened(learned, cut_policy(learned), arms={"all": learned.settings["arms"]["all"]}).funnel()
    with pytest.raises(ValueError, match="other features"):
        opened(learned, cut_policy(learned, features=["text"])).funnel()
    with pytest.raises(ValueError, match=r"--policy\.depths '\{\"title\": 100, \"all\": 100\}'"):
        opened(learned, cut_policy(learned, depths={"title": 20, "all": 100})).funnel()
    with pytest.raises(ConfigError, match="no train or dev queries"):
        opened(learned, cut_policy(learned), tune={"splits": []}).funnel()
    with pytest.raises(ValueError, match="no learner"):
        opened(learned, cut_policy(learned, model="none")).funnel()


def test_arms_that_the_funnel_never_asks_are_no_part_of_a_policy(learned):
    popular = {"popular": {"class": "ltrr.arms.popular.Popular"}, "gone": None}
    more = opened(learned, cut_policy(learned), arms=learned.settings["arms"] | popular)
    assert "popular" in more.usable()
    assert [*more.funnel().arms] == ["title", "all"]


def test_a_price_is_of_the_fused_order_that_it_was_set_on(learned):
    names = set()
    for fusion in ({}, {"method": "rrf"}, {"weights": {"title": 0.1, "all": 0.9}}, {"method": "rrf"}):
        names |= {*policy_of(opened(learned, cut_policy(learned), fusion=fusion).funnel()).prices}
    assert len(names) == 3
