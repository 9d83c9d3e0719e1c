"""An attacker's pages are what the service would show, and change nothing for a belief that evidence protects."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.data.beir import Corpus
from ltrr.data.corpus import Document
from ltrr.feedback.evidence.tally import Tally
from ltrr.policies.belief import Belief
from ltrr.policies.evidence import CorpusEvidence
from ltrr.simulation.belief_attack import ATTACKS, attack, damage_to_belief
from ltrr.simulation.pools import JudgedPools
from ltrr.types import Pool, Query

NUM, WIDTH = 20, 15
GIVEN = {"arms": ["all"], "depths": {"all": WIDTH}, "num": WIDTH, "budget": 4.0, "calibration": [4.0, 0.0, -0.5, -2.0]}
CORPUS = Corpus.from_documents([Document(f"d{i}", f"title {i}", "", {}) for i in range(100)])


def pools() -> JudgedPools:
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.random((NUM, WIDTH)), axis=1)
    docs = np.stack([rng.permutation(100)[:WIDTH] for _ in range(NUM)]).astype(np.int32)
    grades = (rng.random((NUM, WIDTH)) < 0.5 * scores**2).astype(int)
    grades[:, 3] = 1
    pool = Pool(("all", "fused"), docs, *[np.repeat(scores[:, :, None], 2, axis=2)] * 2)
    queries = [Query(str(i), f"word{i}") for i in range(NUM)]
    return JudgedPools(queries, np.zeros((NUM, 0)), pool, grades, 1, grades.sum(axis=1).astype(float), np.arange(NUM))


class Listening(Belief):
    """Keeps its events."""

    def online(self, store, policy):
        self.heard = ([], [])
        return self

    def take(self, impressions, actions):
        self.heard[0].extend(impressions)
        self.heard[1].extend(actions)


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attacker_sees_ten_candidates_and_acts_on_the_last(kind: str) -> None:
    belief, world = Listening(**GIVEN, evidence=Tally()), pools()
    attack(belief, world, kind, events=50, begin=10**15, seed=0)
    pages, clicks = belief.heard
    assert len(pages) == (20 * NUM if kind == "views" else 50)
    assert {len(page.rows) for page in pages} == {10}
    assert {page.customer for page in pages} == ({""} if kind == "views" else {"attacker"})
    assert len({page.id for page in pages}) == len(pages)
    assert (np.diff([page.time for page in pages]) == 1_000_000).all()
    assert [click.row for click in clicks] == ([page.rows[-1] for page in pages] if kind == "promote" else [])


@pytest.mark.parametrize("kind", ATTACKS)
def test_trust_keeps_one_customer_from_changing_what_others_get(kind: str) -> None:
    def trusting() -> Belief:
        return Belief(**GIVEN, seed=1, evidence=Tally())

    def careful() -> Belief:
        return Belief(**GIVEN, seed=1, evidence=CorpusEvidence(CORPUS, neighbours=0, budget=30.0))

    given = {"kind": kind, "rounds": 400, "events": 1_000, "customers": 50}
    harm, kept = (damage_to_belief(make, pools(), **given) for make in (trusting, careful))
    assert harm["other_top_ten_by_evidence"] > 0.5
    assert kept["other_top_ten_by_evidence"] <= 0.1
    assert max(kept["success_fall"], kept["success_fall_by_round"]) < 0.02


def test_another_attack_is_named() -> None:
    with pytest.raises(ValueError, match="kind: there is no 'worse'"):
        damage_to_belief(lambda: Belief(**GIVEN), pools(), "worse")
