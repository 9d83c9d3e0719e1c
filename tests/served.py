"""Pages that a policy of cuts served with a ranker of another order, and what customers did: for tests of learning."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from ltrr.feedback.events import KINDS, Action, Impression, impressions_of
from ltrr.funnel import Funnel
from ltrr.fusion import ReciprocalRankFusion
from ltrr.learners.relevance import RelevanceLearner
from ltrr.policies.cut import CutPolicy
from ltrr.policies.explorers import Softmax
from ltrr.policies.features import QUERY, pool_features, pool_names, query_features
from ltrr.policies.fixed import FixedPolicy
from ltrr.types import Candidates, Context, Pool, Query, RetrievalFeatures, Rounds
from tests.test_funnel import RandomArm

NUM, PAGE = 8, 5
ARMS = {name: RandomArm(seed) for seed, name in enumerate("ab")}
DEPTHS = {"a": 10, "b": 10}
IDS = [f"d{i}" for i in range(50)]
START = datetime(2026, 1, 5, 12, tzinfo=UTC)
QUERIES = [Query(f"q{i}", f"word{i} x", Context(f"c{i % 4}" if i % 3 else None)) for i in range(60)]


class Backwards:
    """A ranker that shows the last of the cut first."""

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        order = np.where(pool.docs >= 0, np.arange(pool.docs.shape[1]), -1).astype(np.float32)
        return Candidates.from_lists(
            [docs[at >= 0] for docs, at in zip(pool.docs, order, strict=True)],
            [at[at >= 0] for at in order],
            pool.docs.shape[1],
        )


def policy_of(funnel: Funnel) -> CutPolicy:
    """The policy of cuts that a funnel has."""
    assert isinstance(funnel.policy, CutPolicy)
    return funnel.policy


def fused() -> np.ndarray:
    """(Q, NUM) documents in fused order."""
    order = Funnel(ARMS, FixedPolicy(list(ARMS), DEPTHS, NUM), ReciprocalRankFusion())
    return order.draw(QUERIES).pool.docs


def model(seed: int = 0) -> RelevanceLearner:
    """That knows a little; the same seed, the same model."""
    rng = np.random.default_rng(seed)
    pool = Funnel(ARMS, FixedPolicy(list(ARMS), DEPTHS, 40), ReciprocalRankFusion()).draw(QUERIES).pool
    seen = pool_features(pool, NUM)
    known = RetrievalFeatures(np.concatenate([query_features(QUERIES), seen.query], axis=1), seen.candidates)
    query, each = pool_names(list(ARMS), NUM)
    names = tuple(f.name for f in (*QUERY, *query)), tuple(f.name for f in each)
    clicks = rng.random((len(QUERIES), NUM)) < 0.3
    out = RelevanceLearner(hidden=6, epochs=1, prior_precision=5.0)
    out.refit(Rounds(np.arange(len(QUERIES)), *known, np.full(len(QUERIES), NUM), clicks, names), seed)
    return out


def events(learner: RelevanceLearner, name: str = "depth x", seed: int = 0) -> tuple[list[Impression], list[Action]]:
    """A page of each query, a minute apart; clicks and dismissals within minutes."""
    rng = np.random.default_rng(seed)
    policy = CutPolicy(
        list(ARMS),
        learner,
        DEPTHS,
        budget=4,
        explore=Softmax(0.1, 0.9),
        features=query_features,
        seed=seed,
    )
    policy.set_prices({"candidates": 0.01})
    page = Funnel(ARMS, policy, ReciprocalRankFusion(), Backwards()).search(QUERIES, PAGE)
    times = [START + timedelta(minutes=i) for i in range(len(QUERIES))]
    page = page._replace(impressions=[f"{seed}-i{i}" for i in range(len(QUERIES))])
    shown = impressions_of(page, IDS, times=times, policy=name)
    did = [
        Action(f"{i.id}-{entity}-{kind}", i.id, entity, kind, i.time + timedelta(minutes=float(rng.exponential(5))))
        for i in shown
        for entity in i.shown
        for kind in rng.choice(np.array(KINDS), rng.choice(3, p=[0.6, 0.3, 0.1]), replace=False).tolist()
        if kind != "play"
    ]
    return shown, did
