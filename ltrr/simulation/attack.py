"""One hostile customer: teaches a learner wrong things, and the change in other customers' pages is measured.

Knows a world, its learner and pages; does not know how the learner defends itself. The events reach the learner as the
service would send them: the customer cannot choose which documents are shown.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from ltrr.feedback.clicks import PositionBased
from ltrr.feedback.events import Action, impressions_of
from ltrr.funnel import Funnel
from ltrr.simulation.customers import Simulation
from ltrr.simulation.worlds import BATCH, PAGE, LearningArm, World, shown_by
from ltrr.types import Context, Query

ATTACKS = {
    "worst": "asks train queries in turn and clicks the last document of the page",
    "dismiss": "asks train queries in turn and dismisses the first document",
    "crowd": "asks train queries with their words reversed and clicks the last document",
    "push": "asks a train query, clicks nothing, asks by the title of one document and clicks that document",
}


def damage(world: World, kind: str, *, rounds: int = 5_000, clicks: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Teaches a learner by honest customers, then by one attacker, and compares the pages of test queries.

    Returns the attacker's actions, the shares of pages with other documents, with another order, and with the document
    that `push` promotes where it was not shown before, and the mean change in nDCG@10. kind: a key of ATTACKS.
    """
    if kind not in ATTACKS:
        raise ValueError(f"attack: kind: there is no {kind!r}, only {', '.join(ATTACKS)}")
    learner = world.learner()
    funnel = world.funnel(learner)
    customers = Simulation(
        funnel.search, world.train, world.train_qrels, world.corpus.ids,
        model=PositionBased.power(PAGE, 1.0), reformulated=world.titles(), seed=seed,
    )  # fmt: skip
    last = datetime.min.replace(tzinfo=UTC)
    for batch in customers.rounds(rounds, BATCH):
        learner.observe(batch.events)
        last = max([last, *(event.time for event in batch.events)])
    before, quality = _pages(world, funnel), world.quality(shown_by(funnel))["nDCG@10"]
    target, num = attack(world, funnel, learner, kind, clicks=clicks, begin=last, seed=seed)
    after = _pages(world, funnel)
    return {
        "actions": num,
        "other_entities": float((np.sort(before) != np.sort(after)).any(axis=1).mean()),
        "other_order": float((before != after).any(axis=1).mean()),
        "target_enters": float(((after == target).any(axis=1) & ~(before == target).any(axis=1)).mean()),
        "nDCG@10_change": float((world.quality(shown_by(funnel))["nDCG@10"] - quality).mean()),
    }


def attack(
    world: World, funnel: Funnel, learner: LearningArm, kind: str, *, clicks: int, begin: datetime, seed: int
) -> tuple[int, int]:
    """Sends one customer's actions, one every two seconds; the row that `push` promotes, and the number of actions."""
    ids, context = world.corpus.ids, Context("attacker")
    target = int(np.random.default_rng(seed).integers(len(ids)))
    title, num = world.corpus[target].title, 0
    for start in range(0, clicks, BATCH):
        numbers = range(start, min(start + BATCH, clicks))
        queries = [replace(world.train[n % len(world.train)], context=context) for n in numbers]
        if kind == "crowd":
            queries = [replace(query, text=" ".join(query.text.split()[::-1])) for query in queries]
        times = [begin + timedelta(seconds=2 * n) for n in numbers]
        sessions = [f"attack-{n}" for n in numbers]
        pages = impressions_of(funnel.search(queries, PAGE), ids, times=times, sessions=sessions)
        events: list = list(pages)
        if kind == "push":
            queries = [Query("push", title, context)] * len(numbers)
            times = [time + timedelta(seconds=1) for time in times]
            pages = impressions_of(funnel.search(queries, PAGE), ids, times=times, sessions=sessions)
            events += pages
        place, action = (0, "dismiss") if kind == "dismiss" else (-1, "click")
        for page in pages:
            document = ids[target] if kind == "push" else page.shown[place] if page.shown else ""
            if document in page.shown:
                events.append(Action(f"{page.id}-x", page.id, document, action, page.time))
                num += 1
        learner.observe(events)
    return target, num


def _pages(world: World, funnel: Funnel) -> np.ndarray:
    """(Q, PAGE) rows shown for the test queries."""
    starts = range(0, len(world.test), BATCH)
    return np.concatenate([funnel.search(world.test[s : s + BATCH], PAGE).shown.docs for s in starts])
