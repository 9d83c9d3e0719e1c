"""The world of arrivals: documents arrive while customers search, and an explorer has a place on a share of the pages.

Knows a world, its learner, an explorer and times of arrival; does not know how the explorer draws. Exposure, diversity
and clicks are measured during the rounds, retrieval of the new documents at their end.
Legend: R rounds, K positions, N documents, Q train queries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np

from ltrr.arms.fresh import Fresh, Slotted
from ltrr.feedback.clicks import PositionBased
from ltrr.funnel import Funnel
from ltrr.metrics import evaluate, to_run
from ltrr.protocols import Arm
from ltrr.simulation.customers import PAUSE, START, Batch, Simulation, first_arrived
from ltrr.simulation.worlds import BATCH, DEPTH, PAGE, World, shown_by
from ltrr.types import Candidates, Page, Qrels, Query, Run

DURING = {  # measure -> meaning
    "new_slots": "places shown that have new entities, share",
    "new_once": "new entities shown at least once, share",
    "new_thrice": "new entities shown at least 3 times, share",
    "new_clicks": "clicks on new entities, a round",
    "clicks": "clicks, a round",
    "nDCG@10_shown": "nDCG@10 of what was shown, of what had arrived",
    "distinct": "entities shown at least once, share of all",
    "gini": "Gini coefficient of how often entities were shown",
}
AFTER = {
    "new_R@10_test": "R@10 of new entities, test queries, at the end",
    "new_R@10_asked": "R@10 of new entities, train queries as often as asked, at the end",
    "nDCG@10_test": "nDCG@10, test queries, at the end",
    "nDCG@10_asked": "nDCG@10, train queries as often as asked, at the end",
}
UNTAUGHT, WITHOUT = "nothing learned", "without"  # systems beside those that explore


class ArrivedArm:
    """An Arm that returns another's candidates, those that have arrived by round `now`; customers are not passed on."""

    def __init__(self, arm: Arm, arrivals: np.ndarray) -> None:
        self._arm, self._arrivals, self.now = arm, arrivals, np.inf

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k)."""
        anonymous = [replace(query, context=replace(query.context, customer=None)) for query in queries]
        return first_arrived(self._arm.search(anonymous, DEPTH), self._arrivals, self.now, k)[0]


def timed(search: Callable[..., Page], arms: Sequence[ArrivedArm]) -> Callable[[Sequence[Query], int], Page]:
    """A search that sets each query's time to the simulation's, with the documents of the batch's first round."""
    asked = 0

    def search_in_time(queries: Sequence[Query], k: int) -> Page:
        nonlocal asked
        for arm in arms:
            arm.now = asked
        times = [START + PAUSE * (asked + i) for i in range(len(queries))]
        asked += len(queries)
        return search([replace(q, context=replace(q.context, time=t)) for q, t in zip(queries, times, strict=True)], k)

    return search_in_time


class Arrivals:
    """Simulates arrivals with and without an explorer: the same documents are new and the same queries are asked.

    Args:
        world: its static arms do not include the explorer.
        explorer: an opened arm; its dates are replaced by the times of arrival.
        rounds: number of rounds; documents arrive over the first four fifths.
        slots: shares of pages on which the explorer has a place, each above 0 and at most 1.
        position: place of the explorer, 1 to 10.
        new: share of the documents that arrive after the start, above 0 and below 1.
        head: the r-th query of a random order is asked with a share ∝ r^-head.
        eta: customers look at position k with probability k^-eta.
        noise: P(click | looked at) of an irrelevant document.

    Errors: ValueError that names the argument.
    """

    def __init__(
        self,
        world: World,
        explorer: Fresh,
        *,
        rounds: int = 5_000,
        slots: Sequence[float] = (0.1, 0.3),
        position: int = 5,
        new: float = 0.2,
        head: float = 1.0,
        eta: float = 1.0,
        noise: float = 0.1,
    ) -> None:
        if not 1 <= position <= PAGE:
            raise ValueError(f"position: {position} is not on a page of {PAGE}")
        if not all(0 < slot <= 1 for slot in slots):
            raise ValueError(
                f"slots: {list(slots)}: shares of pages are above 0 and at most 1; `without` is always run"
            )
        if not 0 < new < 1:
            raise ValueError(f"new: {new} is not a share above 0 and below 1")
        self._world, self._explorer, self._rounds, self._slots, self._position = (
            world,
            explorer,
            rounds,
            slots,
            position,
        )
        self._new, self._head, self._eta, self._noise = new, head, eta, noise

    def simulate(self, seed: int) -> dict[str, dict[str, float]]:
        """System (UNTAUGHT, with measures of AFTER alone, WITHOUT, each share of pages) -> measure -> value."""
        # 1) Draw the arrivals and the popularity of queries.
        world, rng, num = self._world, np.random.default_rng([seed, 20]), len(self._world.corpus.ids)
        new = rng.random(num) < self._new  # (N,)
        arrivals = np.where(new, rng.integers(1, max(int(0.8 * self._rounds), 2), num), 0)  # (N,)
        shares = (1.0 + rng.permutation(len(world.train))) ** -self._head  # (Q,)
        explorer = copy.copy(self._explorer)
        explorer.born = np.where(new, START.timestamp() / 86_400 + PAUSE / timedelta(days=1) * arrivals, np.nan)
        values: dict[str, dict[str, float]] = {}
        for epsilon in (0.0, *self._slots):
            # 2) Let customers teach a new learner, with this share of pages for the explorer.
            arms = {name: ArrivedArm(arm, arrivals) for name, arm in world.static.items()}
            learner = world.learner(encode=False)  # there are many runs
            funnel = world.funnel(learner, static=arms)
            if not epsilon:
                values[UNTAUGHT] = _after(world, funnel, new, shares)
            slotted = Slotted(funnel.search, explorer, position=self._position - 1, epsilon=epsilon)
            customers = Simulation(
                timed(slotted.search if epsilon else funnel.search, list(arms.values())),
                world.train,
                world.train_qrels,
                world.corpus.ids,
                model=PositionBased.power(PAGE, self._eta),
                noise=self._noise,
                shares=shares,
                arrivals=arrivals,
                seed=seed,
            )
            batches = []
            for batch in customers.rounds(self._rounds, BATCH):
                learner.observe(batch.events)
                batches.append(batch)
            # 3) Measure, at the end without the explorer and with all documents.
            for arm in arms.values():
                arm.now = np.inf
            name = f"{epsilon:g}" if epsilon else WITHOUT
            values[name] = _during(world, batches, arrivals) | _after(world, funnel, new, shares)
        return values


def _during(world: World, batches: Sequence[Batch], arrivals: np.ndarray) -> dict[str, float]:
    """The measures of DURING; arrivals (N,), 0 = not new."""
    docs = np.concatenate([batch.page.shown.docs.ravel() for batch in batches])  # (R · K,)
    clicks = np.concatenate([batch.clicks.ravel() for batch in batches])
    rounds = sum(len(batch.queries) for batch in batches)
    real = docs >= 0
    new = real & (arrivals[np.maximum(docs, 0)] > 0)
    shown = np.bincount(docs[real], minlength=len(arrivals))  # (N,)
    of_new = shown[arrivals > 0]
    return {
        "new_slots": float(new.sum() / real.sum()),
        "new_once": float((of_new >= 1).mean()),
        "new_thrice": float((of_new >= 3).mean()),
        "new_clicks": float((clicks & new).sum() / rounds),
        "clicks": float(clicks.sum() / rounds),
        "nDCG@10_shown": _quality_shown(world, batches, arrivals),
        "distinct": float((shown > 0).mean()),
        "gini": gini(shown),
    }


def _quality_shown(world: World, batches: Sequence[Batch], arrivals: np.ndarray) -> float:
    """Mean nDCG@10 of the pages, judged by the documents that had arrived, where one of those is relevant."""
    run: Run = {}
    qrels: Qrels = {}
    arrival = dict(zip(world.corpus.ids, arrivals.tolist(), strict=True))
    for batch in batches:
        run |= to_run(batch.page.impressions, batch.page.shown, world.corpus.ids)
        for impression, q in zip(batch.page.impressions, batch.queries.tolist(), strict=True):
            now = int(impression.split("-")[1])
            grades = world.train_qrels[world.train[q].id]
            qrels[impression] = {document: grade for document, grade in grades.items() if arrival[document] <= now}
    return evaluate(run, qrels, ("nDCG@10",)).mean()["nDCG@10"]


def _after(world: World, funnel: Funnel, new: np.ndarray, shares: np.ndarray) -> dict[str, float]:
    """The measures of AFTER; new (N,) bool, shares (Q,) of the train queries."""
    out: dict[str, float] = {}
    arrived = {document for document, is_new in zip(world.corpus.ids, new.tolist(), strict=True) if is_new}
    for name, queries, qrels, weights in (
        ("test", world.test, world.test_qrels, np.ones(len(world.test))),
        ("asked", world.train, world.train_qrels, shares),
    ):
        run = world.run(shown_by(funnel), queries)
        of_new = {q: {d: g for d, g in grades.items() if d in arrived} for q, grades in qrels.items()}
        weight = {query.id: w for query, w in zip(queries, weights.tolist(), strict=True)}
        for measure, judged, label in (("nDCG@10", qrels, "nDCG@10"), ("R@10", of_new, "new_R@10")):
            values = evaluate(run, judged, (measure,))
            mean = np.average(values.of(measure), weights=[weight[q] for q in values.query_ids])
            out[f"{label}_{name}"] = float(mean)
    return out


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of (N,) counts: 0 = all are equal, towards 1 = one document has all."""
    ordered, n = np.sort(counts), len(counts)
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * max(ordered.sum(), 1)) - (n + 1) / n)
