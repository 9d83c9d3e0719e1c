"""ltrr/system/policies.py: policies of a section for a log, without a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ltrr.config import ConfigError
from ltrr.evaluation.replay import Log, replay
from ltrr.learners.linucb import LinUCB
from ltrr.policies.cut import CutPolicy
from ltrr.policies.explorers import Softmax
from ltrr.protocols import Featured, Priced, offers
from ltrr.system.policies import policy_of_log
from ltrr.types import Decision, Query
from tests.evaluation.test_replay import ARMS, DEPTHS, NUM, TEXTS, WORDS, ByWords, cut_policy, impressions, pool, served

CUT, OWN = "ltrr.policies.cut.CutPolicy", "tests.system.test_policies.Looks"


class Looks(ByWords):
    """A policy of one's own that looks at features, and may hold a learner."""

    def __init__(
        self,
        arms: Sequence[str],
        depths: Mapping[str, int],
        features: Callable[[Sequence[Query]], np.ndarray],
        learner: object = None,
    ) -> None:
        super().__init__(arms, depths)
        self.features = features

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        return super().decide(queries, features)._replace(cut=features[:, 0].astype(np.int32))


class Corpus(ByWords):
    """A policy of one's own that needs documents."""

    def __init__(self, arms: Sequence[str], depths: Mapping[str, int], corpus: object) -> None:
        super().__init__(arms, depths)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A learner of what is clicked on pages of 600 queries, all of whose candidates are looked at."""
    policy = CutPolicy(ARMS, LinUCB(), DEPTHS, budget=3.0, num=NUM, features=TEXTS, seed=0)
    queries = [Query(f"i{i}", WORDS[i % 3]) for i in range(600)]
    revised = policy.revise(queries, TEXTS(queries), pool(600), policy.decide(queries, TEXTS(queries)))
    clicks = np.random.default_rng(0).random((600, NUM)) < 0.5 / np.arange(1, NUM + 1)
    policy.refit(policy.rounds(revised.features, np.arange(600), np.full(600, NUM), clicks))
    policy.learner.export(tmp_path)
    return tmp_path


def test_a_model_reads_the_logs_features_at_a_price_that_holds_its_budget(export: Path) -> None:
    log = served(cut_policy(explore=Softmax(0.1, 0.5)))
    policy = policy_of_log({"class": CUT, "model": str(export), "budget": 4.0}, log)
    priced, featured = offers(policy, Priced), offers(policy, Featured)
    assert priced
    assert featured
    assert 0 < priced.prices["candidates"] < 1
    assert 3 < replay(log, policy).cut <= 4
    np.testing.assert_allclose(featured.features(log.queries), TEXTS(log.queries))
    whole = policy_of_log({"class": CUT, "model": str(export), "budget": NUM}, log)
    assert replay(log, whole).cut > 4


def test_a_section_of_version_0_1_is_read(export: Path) -> None:
    log = served(cut_policy(explore=Softmax(0.1, 0.5)), 90)
    with pytest.warns(DeprecationWarning, match="keys of version"):
        old = policy_of_log({"model": str(export), "budget": 4.0}, log)
    new = policy_of_log({"class": CUT, "model": str(export), "budget": 4.0}, log)
    np.testing.assert_array_equal(replay(log, old).logged.target, replay(log, new).logged.target)


def test_a_policy_of_ones_own_gets_features(export: Path) -> None:
    """Computed from the query or, with a learner, as they were logged; NaN is what was not logged."""
    log = served(cut_policy(explore=Softmax(0.1, 0.5)), 90)
    words = np.array([len(seen.query.split()) for seen in log.impressions])
    assert replay(log, policy_of_log({"class": OWN}, log)).cut == pytest.approx(words.mean())
    bare = impressions(log.decision, [seen.query for seen in log.impressions])
    logged = Log([*log.impressions[:80], *bare[80:]], log.reward)
    featured = offers(policy_of_log({"class": OWN, "model": str(export)}, logged), Featured)
    assert featured
    seen = featured.features(logged.queries)
    np.testing.assert_allclose(seen[:80, 0], words[:80])
    assert np.isnan(seen[80:]).all()


def test_features_of_a_nested_policy_are_refused() -> None:
    """It reads those of the whole policy; others would be passed to its constructor as names."""
    log = served(cut_policy(explore=Softmax(0.1, 0.5)), 30)
    with pytest.raises(ConfigError, match=r"policy\.before\.features: leave it out"):
        policy_of_log({"class": CUT, "budget": 3, "before": {"class": OWN, "features": ["text"]}}, log)


def test_what_needs_a_data_set_is_refused() -> None:
    log = served(cut_policy(explore=Softmax(0.1, 0.5)), 30)
    with pytest.raises(ConfigError, match=re.escape("policy.features: 'idf' needs a data set; a log has text, time")):
        policy_of_log({"class": OWN, "features": ["text", "idf"]}, log)
    with pytest.raises(ConfigError, match="corpus"):
        policy_of_log({"class": "tests.system.test_policies.Corpus"}, log)
