"""Small worlds for tests of simulations: a config of two arms, and pools that are drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltrr.fusion import ConvexFusion, union
from ltrr.simulation.pools import JudgedPools
from ltrr.types import Candidates, Query

ARMS = ("a", "b")
DEPTHS: dict[str, int] = dict.fromkeys(ARMS, 8)
ORDER = ConvexFusion({"a": 0.6, "b": 0.4})

CONFIG = """
data: {{path: null}}
cache: {cache}
arms:
  title: {{class: ltrr.arms.lexical.Lexical, tune: false, fields: {{title: {{sources: [title]}}}}}}
  all: {{class: ltrr.arms.lexical.Lexical, tune: false}}
tune: {{splits: [train]}}
policy:
  class: ltrr.policies.cut.CutPolicy
  learner: {{class: ltrr.learners.relevance.RelevanceLearner, hidden: 8, epochs: 1}}
  num: 12
  budget: 3
  explore: {{class: ltrr.policies.explorers.Softmax}}
"""


def simulation_config(folder: Path) -> Path:
    """A config of scripts/simulate.py whose indexes and searches are kept in this folder."""
    path = folder / "simulate.yaml"
    path.write_text(CONFIG.format(cache=folder / "cache"), encoding="utf-8")
    return path


def random_pools(num: int = 40, seed: int = 0) -> JudgedPools:
    """Queries of which a word says whether the answer is the best candidate of arm `a`, or one of its last."""
    rng = np.random.default_rng(seed)
    docs = {arm: np.stack([rng.permutation(12)[:8] for _ in range(num)]).astype(np.int32) for arm in ARMS}
    scores = -np.sort(-rng.random((2, num, 8)), axis=2).astype(np.float32)
    pool = union({arm: Candidates(docs[arm], own) for arm, own in zip(ARMS, scores, strict=True)})
    easy = rng.random(num) < 0.5
    wanted = np.where(easy, docs["a"][:, 0], docs["a"][:, 6])
    queries = [Query(f"q{i}", "plain" if first else "rather hard") for i, first in enumerate(easy)]
    grades = (pool.docs == wanted[:, None]).astype(int)
    features = np.stack([easy, rng.random(num)], axis=1).astype(np.float32)
    return JudgedPools(queries, features, pool, grades, 1, np.ones(num), np.arange(num) // 2)
