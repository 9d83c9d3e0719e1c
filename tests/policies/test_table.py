"""The table lists what is feasible, propensities are those of the draw, and the price keeps a budget."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ltrr.policies.price import Price, best, price_for
from ltrr.policies.table import Table, greedy

LEVELS = {"lexical": (0, 10, 100), "dense": (0, 10, 100)}
CUTS = (5, 10, 20, 40)


@pytest.fixture
def table() -> Table:
    return Table.of(LEVELS, CUTS, arm_costs={"dense": 4.0}, candidate_cost=0.5)


def test_all_that_is_feasible_is_listed_once(table):
    wanted = {(a, b, cut) for a, b in product(*LEVELS.values()) for cut in CUTS if a + b >= cut}
    listed = [(*depths, cut) for depths, cut in zip(table.depths.tolist(), table.cuts.tolist(), strict=True)]
    assert len(listed) == len(wanted)
    assert set(listed) == wanted
    for depths, cut, cost in zip(table.depths, table.cuts, table.costs, strict=True):
        assert cost == 4.0 * (depths[1] > 0) + 0.5 * cut
    assert (np.diff(table.costs) >= 0).all()


def test_what_a_query_may_cost_is_capped(table):
    capped = Table.of(LEVELS, CUTS, arm_costs={"dense": 4.0}, candidate_cost=0.5, cap=10.0)
    assert len(capped) == (table.costs <= 10.0).sum()
    assert capped.costs.max() <= 10.0


def test_propensities_are_those_of_the_draw(table):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(len(table)))
    num = 40_000
    drawn, decision = table.draw(np.tile(probabilities, (num, 1)), rng)
    shares = np.bincount(drawn, minlength=len(table)) / num
    assert np.abs(shares - probabilities).max() < 5 * np.sqrt(probabilities.max() / num)
    np.testing.assert_allclose(decision.propensity, probabilities[drawn])
    for row in range(50):
        for part, column in enumerate([*table.depths.T, table.cuts]):
            same = column == [*decision.depths[row], decision.cut[row]][part]
            assert decision.marginals[row, part] == pytest.approx(probabilities[same].sum())


def test_draws_never_fall_on_what_has_no_probability(table):
    """Also where sums are rounded: a propensity of 0 would make every estimate infinite."""
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.full(len(table), 0.05), 20_000)
    probabilities[:, rng.random(len(table)) < 0.5] = 0.0
    _, decision = table.draw(probabilities, rng)
    assert (decision.propensity > 0).all()
    assert (decision.marginals >= decision.propensity[:, None]).all()


def test_a_certain_draw_has_propensity_1(table):
    certain = np.zeros((3, len(table)))
    certain[:, [2]] = 1.0
    drawn, decision = table.draw(certain, np.random.default_rng(0))
    assert drawn.tolist() == [2, 2, 2]
    assert (decision.propensity == 1).all()
    assert (decision.marginals == 1).all()


def test_the_price_of_logged_queries_keeps_the_budget():
    rng = np.random.default_rng(1)
    costs = np.arange(1.0, 31.0)
    values = np.cumsum(rng.random((500, 30)) / np.arange(1, 31), axis=1)
    for budget in (2.0, 7.5, 20.0):
        price = price_for(values, costs, budget)
        mean = costs[best(values, costs, price)].mean()
        assert budget - 0.1 <= mean <= budget
    assert price_for(values, costs, 30.0) == 0.0
    with pytest.raises(ValueError, match="below the cheapest"):
        price_for(values, costs, 0.5)


def test_dual_ascent_comes_to_the_same_price():
    rng = np.random.default_rng(2)
    costs = np.arange(1.0, 31.0)
    values = np.cumsum(rng.random((4000, 30)) / np.arange(1, 31), axis=1)
    price = Price(8.0, step=0.05)
    spent = []
    for start in range(0, 4000, 20):
        own = costs[best(values[start : start + 20], costs, price.value)]
        price.update(own)
        spent.append(own.mean())
    assert np.mean(spent[100:]) == pytest.approx(8.0, rel=0.05)
    assert price.value == pytest.approx(price_for(values, costs, 8.0), rel=0.15)


def test_greedy_finds_the_best_of_additive_gains_and_never_what_is_not_feasible():
    depths, costs = np.array([0, 5, 10, 20]), [np.array([0.0, 1.0, 2.0, 4.0])] * 3
    weight = np.array([1.0, 0.5, 0.1])

    def gain(levels: np.ndarray) -> np.ndarray:
        return np.where(levels.any(axis=1), np.sqrt(depths[levels]) @ weight, -np.inf)

    everything = np.array(list(product(range(4), repeat=3)))
    for price in (0.05, 0.3, 1.0, 5.0):
        net = gain(everything) - price * costs[0][everything].sum(axis=1)
        found = greedy(gain, costs, price, np.array([3, 3, 3]))
        assert gain(found[None])[0] - price * costs[0][found].sum() == pytest.approx(net.max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": {"a": ()}, "cuts": CUTS}, "policy.a"),
        ({"levels": {"a": (0, 0)}, "cuts": CUTS}, "distinct numbers"),
        ({"levels": LEVELS, "cuts": (0, 5)}, "policy.cuts"),
        ({"levels": LEVELS, "cuts": CUTS, "arm_costs": {"sparse": 1.0}}, "no arm 'sparse'"),
        ({"levels": LEVELS, "cuts": CUTS, "cap": 1.0}, "the cheapest 5"),
        ({"levels": {str(i): range(20) for i in range(4)}, "cuts": CUTS}, "more than 20,000"),
    ],
)
def test_what_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Table.of(**arguments)
