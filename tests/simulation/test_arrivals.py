"""Documents are returned from their arrival, times are the simulation's, and arguments are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ltrr.arms.fresh import Fresh
from ltrr.data.beir import open_dataset
from ltrr.simulation.arrivals import AFTER, DURING, UNTAUGHT, WITHOUT, Arrivals, ArrivedArm, gini, timed
from ltrr.simulation.customers import PAUSE, START
from ltrr.simulation.worlds import World
from ltrr.types import Candidates, Context, Query
from tests.simulation.test_worlds import Parts


class Seen:
    """An arm that keeps the queries it is asked."""

    def __init__(self) -> None:
        self.queries: list[Query] = []

    def search(self, queries, k: int) -> Candidates:
        self.queries += queries
        docs = np.tile(np.arange(4, dtype=np.int32), (len(queries), 1))
        return Candidates(docs, -docs.astype(np.float32))


def test_an_arm_returns_documents_from_their_arrival_and_does_not_pass_customers_on() -> None:
    inner = Seen()
    arm = ArrivedArm(inner, np.array([0, 7, 0, 3]))
    query = Query("q", "x", Context(customer="ann", locale="en"))
    for now, docs in ((0, [0, 2, -1]), (3, [0, 2, 3]), (np.inf, [0, 1, 2])):
        arm.now = now
        np.testing.assert_array_equal(arm.search([query], 3).docs, [docs])
    assert [q.context for q in inner.queries] == [Context(locale="en")] * 3


def test_queries_are_asked_one_pause_after_another_among_the_documents_of_the_first() -> None:
    arm, asked = ArrivedArm(Seen(), np.zeros(4)), []

    def keep(queries, k: int) -> Any:
        asked.extend(queries)

    search = timed(keep, [arm])
    for _ in range(2):
        search([Query("q", "x")] * 3, 5)
    assert [q.context.time for q in asked] == [START + PAUSE * i for i in range(6)]
    assert arm.now == 3


def test_all_systems_are_measured_and_the_seed_decides(music, tmp_path) -> None:
    corpus, explorer = open_dataset(music).corpus, Fresh(newest=2)
    explorer.build(corpus, tmp_path)
    arrivals = Arrivals(World(Parts(music), "memory"), explorer.open(corpus, tmp_path), rounds=40, slots=[1.0], new=0.4)
    values = arrivals.simulate(0)
    assert list(values) == [UNTAUGHT, WITHOUT, "1"]
    assert [set(of) for of in values.values()] == [set(AFTER), set(DURING | AFTER), set(DURING | AFTER)]
    assert values == arrivals.simulate(0) != arrivals.simulate(1)
    mistakes: list[dict[str, Any]] = [{"position": 11}, {"slots": [0.0]}, {"new": 1.0}]
    for options in mistakes:
        with pytest.raises(ValueError, match=f"{next(iter(options))}: "):
            Arrivals(World(Parts(music), "memory"), explorer, **options)


def test_gini_is_0_of_equals_and_grows_towards_1() -> None:
    assert gini(np.full(10, 3)) == pytest.approx(0.0)
    assert gini(np.array([0] * 99 + [5])) == pytest.approx(0.99)
