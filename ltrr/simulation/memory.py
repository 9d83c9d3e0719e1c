"""Memory's world: an arm learns from simulated clicks, and its funnel is measured after each amount of feedback.

Knows a world and its customers; does not know how the arm learns. Legend: Q queries that are measured.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ltrr.feedback.clicks import PositionBased
from ltrr.feedback.events import normalised
from ltrr.simulation.customers import Simulation
from ltrr.simulation.worlds import BATCH, PAGE, LearningArm, World, shown_by


class Checkpoint(NamedTuple):
    """The funnel after some rounds of feedback."""

    rounds: int
    quality: dict[str, np.ndarray]  # measure -> (Q,)
    recurring: np.ndarray  # (Q,) bool: asked before, twice by the query's own customer or by three customers


def checkpoints(
    world: World,
    learner: LearningArm,
    rounds: Sequence[int],
    *,
    eta: float = 1.0,
    noise: float = 0.1,
    direct: float = 0.5,
    drift: int | None = None,
    seed: int = 0,
) -> Iterator[Checkpoint]:
    """Teaches a learner and measures its funnel before any feedback and after each number of rounds, ascending.

    Args:
        rounds: amounts of feedback, in rounds from the start.
        eta: customers look at position k with probability k^-eta.
        noise: P(click | looked at) of an irrelevant document.
        direct: P(a customer who clicked nothing asks again by the title of the wanted document), 0 = never.
        drift: rounds after which a tenth of the queries exchange their wanted documents; None = never.
        seed: of the customers.
    """
    funnel = world.funnel(learner)
    asked: dict[str, Counter[str | None]] = defaultdict(Counter)  # query -> customer -> times
    customers = Simulation(
        funnel.search,
        world.train,
        world.train_qrels,
        world.corpus.ids,
        model=PositionBased.power(PAGE, eta),
        noise=noise,
        reformulated=world.titles() if direct else None,
        drift=drift,
        persistence=direct,
        seed=seed,
    )
    done = 0
    for end in (0, *sorted(rounds)):
        for batch in customers.rounds(end - done, BATCH):
            learner.observe(batch.events)
            for query in batch.page.queries:
                asked[normalised(query.text)][query.context.customer] += 1
        done = end
        times = [(asked[normalised(query.text)], query.context.customer) for query in world.measured]
        recurring = np.array([len(by) >= 3 or by[customer] >= 2 for by, customer in times], bool)
        yield Checkpoint(end, world.quality(shown_by(funnel)), recurring)


def query_groups(world: World, label: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Group -> (Q,) bool: all queries, those of each label, and each of these split by whether train asks the text.

    label: query id -> its group; empty = no groups by label. A group is split where both parts hold a query.
    """
    ids = [query.id for query in world.measured]
    groups = {"all": np.ones(len(ids), bool)}
    groups |= {name: np.array([label[i] == name for i in ids]) for name in sorted(set(label.values()))}
    train = {normalised(query.text) for query in world.train}
    in_train = np.array([normalised(query.text) in train for query in world.measured])
    for name, mask in list(groups.items()):
        if (mask & in_train).any() and (mask & ~in_train).any():
            groups |= {f"{name}, asked in train": mask & in_train, f"{name}, not asked in train": mask & ~in_train}
    return {name: mask for name, mask in groups.items() if mask.any()}
