"""Learners to compare with are what their names say: mabwiser's, scikit-learn's and Vowpal Wabbit's numbers.

peers_reference.json: Python 3.11, mabwiser 2.7.4, numpy 2.4.6. From default_rng(7), in this order: query normal (80, 4)
rounded to 6 digits, cut integers(1, 4), clicks random (80, 3) < sigmoid of the query's first three features and within
the cut, new normal (5, 4) rounded likewise. `MAB([1, 2, 3], LearningPolicy.LinUCB(alpha, l2_lambda=2), seed=7)`: arm =
cut, reward = clicks, context = query standardised by mean and deviation of the 80, then √2 as the constant (a ridge of
2 on it is one of 1 on a constant 1); fit on the first 50, partial_fit on the rest. `expected` is predict_expectations
of new with alpha 0, `ucb` with alpha 1.5.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from ltrr.learners.linucb import LinUCB
from ltrr.learners.router import SupervisedRouter
from ltrr.learners.shared import between, levels
from ltrr.policies.explorers import SquareCB, Thompson
from ltrr.policies.features import Standard
from ltrr.types import RetrievalFeatures, Rounds
from tests.helpers import ROOT

EXAMINATION = (1.0, 0.5, 0.25)


def rounds_of(num: int = 300, deepest: int = 8, seed: int = 0) -> Rounds:
    """Half of the queries have their answer on top, half deeper; their first feature and each candidate's tell."""
    rng = np.random.default_rng(seed)
    place = np.where(rng.random(num) < 0.5, 0, rng.integers(2, deepest, num))
    relevant = np.arange(deepest) == place[:, None]
    query = np.stack([(place == 0) + rng.normal(0, 0.2, num), *rng.normal(size=(2, num))], axis=1)
    each = np.stack([relevant + rng.normal(0, 0.5, relevant.shape), rng.normal(size=relevant.shape)], axis=2)
    row, cut = rng.permutation(np.repeat(np.arange(num), 2)), rng.integers(1, deepest + 1, 2 * num)
    examined = rng.random((2 * num, deepest)) < 1 / np.arange(1, deepest + 1)
    clicks = relevant[row] & examined & (np.arange(deepest) < cut[:, None])
    return Rounds(row, query.astype(np.float32), each.astype(np.float32), cut, clicks)


def known_of(rounds: Rounds) -> RetrievalFeatures:
    return RetrievalFeatures(rounds.query, rounds.candidates)


def test_lin_ucb_is_mabwiser_s() -> None:
    told = {
        name: np.array(value) for name, value in json.loads((ROOT / "tests/peers_reference.json").read_text()).items()
    }
    num = len(told["cut"])
    none = np.zeros((num, 3, 1))
    rounds = Rounds(np.arange(num), told["query"], none, told["cut"], told["clicks"].astype(bool))
    learner = LinUCB([1.0], per="cut", l2=float(told["l2"]), alpha=float(told["alpha"]), semi=False)
    learner.refit(rounds)
    known = RetrievalFeatures(told["new"], none[:5])
    values, deviations = learner.values(known), learner.deviations(known)
    np.testing.assert_allclose(values, told["expected"], atol=1e-6)
    np.testing.assert_allclose(values + deviations, told["ucb"], atol=1e-6)


@pytest.mark.parametrize("options", [{"per": "cut"}, {"per": "cut", "semi": False}, {"per": "candidate", "levels": 3}])
def test_any_batches_give_the_same_posterior(options: dict) -> None:
    rounds = rounds_of()
    known = known_of(rounds)
    whole, single = LinUCB(l2=1.0, **options), LinUCB(l2=1.0, **options)
    whole.refit(rounds)
    single.refit(rounds._replace(cut=rounds.cut * 0))  # features are standardised alike, nothing is shown
    for rows in np.array_split(np.random.default_rng(1).permutation(len(rounds.row)), 7):
        single.update(rounds.some(rows))
    np.testing.assert_allclose(single.values(known), whole.values(known), atol=1e-9)
    np.testing.assert_allclose(single.deviations(known), whole.deviations(known), atol=1e-9)


def test_a_page_teaches_each_cut_up_to_its_own() -> None:
    """What semi-bandit feedback says of a cut is what a log of all its pages and deeper ones, cut there, would say."""
    rounds = rounds_of()
    semi, drawn = LinUCB(EXAMINATION, per="cut", l2=1.0), LinUCB(EXAMINATION, per="cut", l2=1.0, semi=False)
    semi.refit(rounds)
    deeper = rounds.cut >= 3
    drawn.refit(rounds._replace(cut=np.where(deeper, 3, 1)))
    np.testing.assert_allclose(semi.values(known_of(rounds))[:, 2], drawn.values(known_of(rounds))[:, 2])


@pytest.mark.parametrize("learner", [LinUCB(levels=3), LinUCB(per="cut"), SupervisedRouter(levels=3)])
def test_what_counts_is_the_place_on_the_page(learner) -> None:
    rounds = rounds_of()
    learner.refit(rounds)
    known = known_of(rounds)
    fused = learner.values(known)
    learner.refit(rounds._replace(place=rounds.places))
    np.testing.assert_array_equal(learner.values(known), fused)
    upside_down = np.where(rounds.places >= 0, rounds.cut[:, None] - 1 - rounds.places, -1)
    learner.refit(rounds._replace(place=upside_down))
    assert abs(learner.values(known) - fused).max() > 0.01


def test_a_candidate_that_is_not_on_the_page_teaches_nothing() -> None:
    rounds = rounds_of()
    seen, more = LinUCB(l2=1.0, levels=3), LinUCB(l2=1.0, levels=3)
    gone = (np.arange(8) == 1) & (rounds.cut[:, None] > 2)
    place = np.where(gone, -1, rounds.places)
    seen.refit(rounds._replace(place=place, clicks=rounds.clicks & ~gone))
    more.refit(rounds._replace(place=place, clicks=rounds.clicks | gone))
    np.testing.assert_array_equal(seen.values(known_of(rounds)), more.values(known_of(rounds)))


def test_candidates_have_a_weighted_ridge_a_level() -> None:
    rounds, l2 = rounds_of(), 3.0
    learner = LinUCB(EXAMINATION, l2=l2, alpha=2.0, levels=3)
    learner.refit(rounds)
    examination = np.array([1.0, 0.5, *[0.25] * 6])  # deeper ones have the last
    query = np.broadcast_to(Standard.of(rounds.query)(rounds.query)[:, None], (300, 8, 3))
    inputs = np.concatenate([query, Standard.of(rounds.candidates)(rounds.candidates)], axis=2).astype(float)
    level = np.array([0, 1, 1, 2, 2, 2, 2, 2])  # the deepest of each are 1, 3 and 8
    expected, variance = np.zeros((300, 8)), np.zeros((300, 8))
    for each in range(3):
        places = np.flatnonzero(level == each)
        r, m = np.nonzero((np.arange(8) < rounds.cut[:, None]) & (level == each))
        constant = np.ones((len(r), 1)) * np.sqrt(l2)  # so that its ridge is 1
        x = np.hstack([inputs[rounds.row[r], m], constant])
        ridge = Ridge(l2, fit_intercept=False).fit(x, rounds.clicks[r, m] / examination[m], examination[m])
        inverse = np.linalg.inv(l2 * np.eye(6) + x.T @ (x * examination[m][:, None]))
        for place in places:
            new = np.hstack([inputs[:, place], np.full((300, 1), np.sqrt(l2))])
            expected[:, place], variance[:, place] = ridge.predict(new), ((new @ inverse) * new).sum(axis=1)
    np.testing.assert_allclose(learner.values(known_of(rounds)), np.cumsum(expected, axis=1), atol=1e-9)
    added = 2.0 * np.cumsum(np.sqrt(variance), axis=1)
    np.testing.assert_allclose(learner.deviations(known_of(rounds)), added, atol=1e-9)


@pytest.mark.parametrize("options", [{"per": "cut"}, {}], ids=str)
def test_it_learns_who_needs_more(options: dict) -> None:
    rounds = rounds_of(2000)
    learner = LinUCB(l2=10.0, **options)
    learner.refit(rounds)
    values = learner.values(known_of(rounds))
    easy = rounds.query[:, 0] > 0.5
    left = values[:, -1] - values[:, 0]
    assert left[~easy].mean() > left[easy].mean() + 0.6  # of a whole click
    drawn = Thompson(50, floor=0.0).probabilities(values - 0.05 * np.arange(1, 9), learner.deviations(known_of(rounds)))
    depth = drawn @ np.arange(1, 9)
    assert depth[~easy].mean() > depth[easy].mean() + 1


def test_the_router_is_logistic_regression_of_the_deepest_click() -> None:
    rounds = rounds_of()
    router = SupervisedRouter(EXAMINATION, l2=4.0, levels=3, heaviest=3.0)
    router.refit(rounds)
    rows = [r for r in range(len(rounds.row)) if rounds.clicks[r].any()]
    deepest = np.array([max(np.flatnonzero(rounds.clicks[r])) + 1 for r in rows])
    weights = np.array([{1: 1.0, 2: 2.0}.get(d, 3.0) for d in deepest])  # 1 / examination, at most `heaviest`
    known = rounds.query[rounds.row[rows]]
    scaled = np.clip((rounds.query - known.mean(axis=0)) / known.std(axis=0), -5, 5)
    model = LogisticRegression(C=0.25, max_iter=300)
    model.fit(scaled[rounds.row[rows]], np.searchsorted([1, 3, 8], deepest), weights)
    within = np.cumsum(model.predict_proba(scaled), axis=1)
    values = router.values(known_of(rounds))
    np.testing.assert_allclose(values[:, [0, 2, 7]], within, atol=1e-3)
    np.testing.assert_allclose(values[:, 1], within[:, :2].mean(axis=1), atol=1e-3)


def test_levels_lie_between_the_first_and_the_last() -> None:
    np.testing.assert_array_equal(levels(60, 4), [1, 4, 15, 60])
    np.testing.assert_array_equal(levels(3, 10), [1, 2, 3])
    np.testing.assert_allclose(np.array([[1.0, 4.0, 5.0]]) @ between(levels(4, 3), 4), [[1.0, 4.0, 4.5, 5.0]])


def test_with_noise_known_values_are_recall() -> None:
    """Relevance r_j of each, r_j / (1 + that of the others) what it adds."""
    rounds = rounds_of()
    plain, recall = LinUCB([1.0], l2=1.0), LinUCB([1.0], l2=1.0, noise=0.2)
    plain.refit(rounds)
    recall.refit(rounds)
    known = known_of(rounds)
    relevance = ((np.diff(plain.values(known), axis=1, prepend=0.0) - 0.2) / 0.8).clip(1e-6, 1)
    expected = np.array([np.cumsum([r / (1 + q.sum() - r) for r in q]) for q in relevance])
    np.testing.assert_allclose(recall.values(known), expected)
    ratio = plain.deviations(known) / recall.deviations(known)
    np.testing.assert_allclose(ratio, np.tile(0.8 * (1 + relevance.sum(axis=1))[:, None], 8))


def test_three_thousand_rounds_of_sixty_candidates_take_seconds() -> None:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2000, 110)).astype(np.float32)
    each = rng.normal(size=(2000, 60, 14)).astype(np.float32)
    row, cut = rng.integers(0, 2000, 2_900), rng.integers(1, 21, 2_900)
    rounds = Rounds(row, query, each, cut, np.zeros((2_900, 60), bool))
    started = time.process_time()
    LinUCB().refit(rounds)
    assert time.process_time() - started < 15


def test_mistakes_are_named() -> None:
    mistakes: list[dict[str, Any]] = [
        {"per": "page"},
        {"l2": 0.0},
        {"alpha": -1.0},
        {"examination": [1.0, 0.0]},
        {"noise": 1.0},
    ]
    for options in mistakes:
        with pytest.raises(ValueError, match=f"model.{next(iter(options))}"):
            LinUCB(**options)
    with pytest.raises(ValueError, match=r"model\.heaviest"):
        SupervisedRouter(heaviest=0.0)
    learner = LinUCB(levels=1)
    with pytest.raises(ValueError, match=r"model\.levels"):
        learner.refit(rounds_of())


@pytest.mark.parametrize("candidates", [True, False])
def test_square_cb_of_vw_s_costs_is_vw_s_square_cb(candidates: bool) -> None:
    vw = pytest.importorskip("vowpalwabbit", reason="the extra `bench` is not installed")
    from ltrr.learners.vowpal import Vowpal

    rounds = rounds_of()
    learner = Vowpal(rate=0.5, levels=4, candidates=candidates)  # VW's own rate
    learner.refit(rounds)
    values = learner.values(known_of(rounds))
    told = vw.Workspace(
        "--cb_explore_adf --squarecb --gamma_scale 50 --gamma_exponent 0 --cb_type mtr -q xa -q ca --quiet"
    )
    learner._workspace, own = told, learner._workspace
    learner.update(rounds)  # the same examples
    lines = [learner._lines(*one) for one in zip(rounds.query, rounds.candidates, strict=True)]
    assert any("|c" in line for line in lines[0]) == candidates
    theirs = np.array([told.predict(one) for one in lines])
    learner._workspace = own
    at_levels = values[:, levels(8, 4) - 1]
    np.testing.assert_allclose(SquareCB(50.0).probabilities(at_levels), theirs, atol=1e-4)
    assert theirs.std(axis=0).min() > 1e-3
    left = values[:, -1] - values[:, 0]
    easy = rounds.query[:, 0] > 0.5
    assert left[~easy].mean() > left[easy].mean()
