"""Checkpoints come at their rounds; groups split the queries that are measured."""

from __future__ import annotations

import numpy as np

from ltrr.simulation.memory import checkpoints, query_groups
from ltrr.simulation.worlds import MEASURES, World
from tests.simulation.test_attack import Listening
from tests.simulation.test_worlds import Parts


def test_feedback_comes_between_the_checkpoints(music) -> None:
    world, learner = World(Parts(music), "memory"), Listening()
    events = []
    for checkpoint in checkpoints(world, learner, [60, 20], seed=2):
        events.append(len(learner.events))
        assert set(checkpoint.quality) == set(MEASURES)
        assert checkpoint.recurring.shape == checkpoint.quality["R@10"].shape
        assert not checkpoint.recurring.any()  # test queries are others than train's
    assert events[0] == 0
    assert 20 <= events[1] < events[2]


def test_a_query_of_three_customers_recurs(music) -> None:
    world = World(Parts(music), "memory", split="train")
    first, last = checkpoints(world, Listening(), [2_000])
    assert not first.recurring.any()
    assert last.recurring.all()


def test_groups_are_split_by_whether_train_asks(music) -> None:
    world = World(Parts(music), "memory")
    label = {query.id: query.id[0] for query in world.test}
    groups = query_groups(world, label)
    assert list(groups) == ["all", "p", "t"]  # no test query is asked in train
    np.testing.assert_array_equal(groups["p"] | groups["t"], groups["all"])
    world.train.append(world.test[0])
    groups = query_groups(world, {})
    assert [int(mask.sum()) for mask in groups.values()] == [len(world.measured), 1, len(world.measured) - 1]
