"""A policy of cuts learns from clicks what is there, whatever was looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ltrr.learners.relevance import RelevanceLearner, depth_bins, gains
from ltrr.learners.rounds_data import batch_of
from ltrr.types import RetrievalFeatures, Rounds

NUM, QUERIES = 8, 1500


@pytest.fixture(scope="module")
def world():
    """Half of the queries have their answer on top, half anywhere; a feature tells which, another what is relevant."""
    rng = np.random.default_rng(0)
    easy = rng.random(QUERIES) < 0.5
    place = np.where(easy, 0, rng.integers(0, NUM, QUERIES))
    relevant = np.arange(NUM) == place[:, None]
    hint = relevant + rng.normal(0, 0.5, relevant.shape)
    query = np.stack([easy + rng.normal(0, 0.2, QUERIES), rng.normal(size=QUERIES)], axis=1)
    each = np.stack([hint, np.broadcast_to(np.log1p(np.arange(NUM)), hint.shape)], axis=2)
    return RetrievalFeatures(query.astype(np.float32), each.astype(np.float32)), relevant, easy


def logged(world, cut, examination, noise, seed=1, passes=3):
    known, relevant, _ = world
    rng = np.random.default_rng(seed)
    row = np.tile(np.arange(QUERIES), passes)
    cuts = np.broadcast_to(cut, row.shape) if np.ndim(cut) == 0 else rng.choice(cut, len(row))
    clicked = rng.random((len(row), NUM)) < np.where(relevant[row], 1.0, noise)
    clicked &= rng.random(clicked.shape) < examination
    return Rounds(row, known.query, known.candidates, cuts, clicked & (np.arange(NUM) < cuts[:, None]))


@pytest.fixture(scope="module")
def learned(world):
    module = RelevanceLearner(epochs=15, hidden=16, dropout=0.0)
    module.refit(logged(world, [4, NUM], 1 / np.arange(1, NUM + 1), 0.1))
    return module


def test_relevance_is_learned_though_most_is_never_looked_at(world, learned):
    known, relevant, easy = world
    found = learned.relevance(known)
    assert found[easy, 0].mean() > 0.85
    assert found[easy, 1:].mean() < 0.06
    deep = relevant[~easy, 3:]
    assert found[~easy, 3:][deep].mean() > 2 * found[~easy, 3:][~deep].mean()
    assert found[~easy].sum(axis=1).mean() == pytest.approx(1.0, abs=0.3)  # silence deep down is no failure
    assert learned.noise_level == pytest.approx(0.1, abs=0.04)


def test_values_say_who_needs_more(world, learned):
    known, _, easy = world
    values = learned.values(known)
    assert (np.diff(values, axis=1) >= 0).all()
    assert (values <= 1).all()
    left = values[:, -1] - values[:, 0]
    assert left[~easy].mean() > 3 * left[easy].mean()
    assert (learned.deviations(known) > 0).all()


def test_what_was_cut_off_is_missing_not_zero(world):
    rounds = logged(world, 4, np.ones(NUM), 0.0, passes=1)
    module = RelevanceLearner(examination=[1.0])
    module.prepare(rounds)
    batch = batch_of(rounds, np.arange(64))
    loss = module.eval().training_step(batch)
    batch["clicks"][:, 4:] = 1.0
    torch.testing.assert_close(module.training_step(batch), loss)
    batch["clicks"][:, 3] = 1.0
    assert module.training_step(batch) != loss


def test_examination_is_of_the_place_on_the_page(world):
    """A ranker shows the fused order from its end: who takes the order for the page's learns something else."""
    known, relevant, _ = world
    rng = np.random.default_rng(3)
    row, place = np.tile(np.arange(QUERIES), 2), np.broadcast_to(np.arange(NUM)[::-1], (2 * QUERIES, NUM))
    looked = rng.random(place.shape) < 1 / (1 + place)
    cuts = np.full(len(row), NUM)
    rounds = Rounds(row, known.query, known.candidates, cuts, relevant[row] & looked, place=place)
    found = []
    for given in (rounds, rounds._replace(place=None)):
        module = RelevanceLearner(epochs=8, hidden=16, dropout=0.0)
        module.refit(given)
        module.update(given.first(300))
        assert np.isfinite(module.values(known)).all()
        found.append(module.relevance(known)[:, [0, NUM - 1]].mean(axis=0) / relevant[:, [0, NUM - 1]].mean(axis=0))
    np.testing.assert_allclose(found[0], 1.0, atol=0.25)
    assert found[1][0] < 0.3  # the first candidate stands last and is seldom looked at
    assert found[1][1] > 2


def test_what_is_not_on_the_page_is_missing_though_the_cut_let_it_through(world):
    rounds = logged(world, NUM, np.ones(NUM), 0.0, passes=1)
    place = np.where(np.arange(NUM) % 2 == 0, np.arange(NUM) // 2, -1) + np.zeros((QUERIES, 1), int)
    rounds = rounds._replace(place=place, clicks=rounds.clicks & (place >= 0))
    module = RelevanceLearner(examination=[1.0], value="direct")
    module.prepare(rounds)
    basis, bins, weights, targets = module.observations(rounds)
    assert len(basis) == len(bins) == len(weights) == len(targets) == QUERIES * NUM // 2
    module.update(rounds)
    assert module.cuts is not None
    moved = np.abs(module.cuts.means - np.eye(1, module.cuts.means.shape[1])).max(axis=1) > 0
    assert moved.tolist() == [True] + [False] * (NUM - 1)  # of a page with gaps only what is before the first


def test_heads_learn_from_clicks_between_refits(world):
    known, relevant, _ = world
    rounds = logged(world, NUM, np.ones(NUM), 0.0, passes=1)
    module = RelevanceLearner(examination=[1.0], epochs=2, hidden=16, prior_precision=20.0)
    module.refit(rounds.first(100))
    before = ((module.relevance(known) - relevant) ** 2).mean()
    module.update(rounds._replace(row=rounds.row[100:], cut=rounds.cut[100:], clicks=rounds.clicks[100:]))
    after = ((module.relevance(known) - relevant) ** 2).mean()
    assert after < 0.9 * before
    assert module.deviations(known).mean() < 0.5


def test_cuts_valued_directly_come_to_the_same(world, learned):
    known, *_ = world
    module = RelevanceLearner(epochs=15, hidden=16, dropout=0.0, value="direct")
    module.refit(logged(world, [4, NUM], 1 / np.arange(1, NUM + 1), 0.1))
    values = module.values(known)
    assert (np.diff(values, axis=1) >= 0).all()
    np.testing.assert_allclose(values.mean(axis=0), learned.values(known).mean(axis=0), atol=0.05)
    module.update(logged(world, NUM, np.ones(NUM), 0.0, passes=1).first(50))
    assert not np.array_equal(module.values(known), values)


def test_the_same_rounds_and_seed_give_the_same_policy(world):
    known, *_ = world
    rounds = logged(world, NUM, np.ones(NUM), 0.0, passes=1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = []
    for seed in (3, 3, 4):
        module = RelevanceLearner(epochs=1)
        module.refit(rounds, seed)
        found.append(module.values(known))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)  # whoever draws beside it draws the same


def test_gains_share_what_is_expected():
    np.testing.assert_allclose(gains(np.array([[1.0, 0.0, 0.0]])), [[1, 0, 0]])
    np.testing.assert_allclose(gains(np.array([[1.0, 1.0, 0.0]])), [[0.5, 0.5, 0]])
    assert depth_bins(10).tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 5, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": "x"}, "value"),
        ({"examination": [1.0, 0.0]}, "examination"),
        ({"dropout": 2.0}, "dropout"),
        ({"examination": [2.0]}, "examination"),
    ],
)
def test_what_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RelevanceLearner(**arguments)
