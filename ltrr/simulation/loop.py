"""The explore-log-refit loop: a policy serves queries, simulated customers click, and it learns from what was logged.

Knows the contract of policies (`ltrr.protocols`), stored pools and click models; does not know any policy, learner or
arm. All arms ran once (`ltrr.simulation.pools`): a policy sees of them what it lets run. A candidate that a policy
explores at a reserved place of the page is not simulated.
Legend: Q queries, U queries that teach (before arms change, then after it), R rounds, M candidates of the deepest page,
W features as they are logged, P prices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ltrr.feedback.clicks import ClickModel, attraction_of, simulate
from ltrr.protocols import AfterRetrieval, Exploring, Featured, Frontier, Policy, Priced, Ranker, Refitted, offers
from ltrr.simulation.pools import JudgedPools, gain_of, widened
from ltrr.simulation.splits import Fold
from ltrr.types import Query, Rounds

BATCH = 100  # queries that are asked before the next update
_FIRST = 500  # rounds before the first fit; refits follow when there are twice as many
_PRICED = 2_000  # queries on which prices are found again after a refit
PRICES = np.geomspace(0.02, 50, 60)  # times the price that holds the budget: the frontier


class Customers(NamedTuple):
    """How customers look at a page and click."""

    model: ClickModel
    noise: float  # P(click | looked at) of what is not relevant

    def clicks(self, grades: np.ndarray, highest: int, rng: np.random.Generator) -> np.ndarray:
        """(R, M) bool; grades (R, M), NaN = not shown."""
        return simulate(self.model, attraction_of(grades, highest=highest, noise=self.noise), rng).clicks


class Served(NamedTuple):
    """What a policy decided, and what its order of the candidates is worth."""

    features: np.ndarray  # (Q, W) all that it looked at
    cut: np.ndarray  # (Q,) candidates of the page, at most M
    grades: np.ndarray  # (Q, M) of the first candidates in its order, NaN = none
    recall: np.ndarray  # (Q, M) of the first 1 to M


class Log(NamedTuple):
    """Rounds, and what the policy knew of the queries that were asked."""

    row: np.ndarray  # (R,) which of the U
    cut: np.ndarray  # (R,)
    recall: np.ndarray  # (R,) of the page
    clicks: np.ndarray  # (R, M) bool, in the order of the page
    features: np.ndarray  # (U, W) float32, zeros where a query was not asked yet

    def rounds(self, policy: Refitted, some: slice = slice(None)) -> Rounds:
        """The rounds at these places, over the queries that they ask."""
        asked, row = np.unique(self.row[some], return_inverse=True)
        return policy.rounds(self.features[asked], row, self.cut[some], self.clicks[some])


def features_of(policy: Policy, queries: Sequence[Query]) -> np.ndarray:
    """(Q, F) what a policy looks at before retrieval."""
    featured = offers(policy, Featured)
    return featured.features(queries) if featured is not None else np.zeros((len(queries), 0), np.float32)


def serve(policy: Policy, pools: JudgedPools, order: Ranker, num: int) -> Served:
    """Decides for queries whose pools are in fused order; num: M."""
    decision = policy.decide(pools.queries, pools.features)
    pools, features = pools.retrieved(decision.depths, order), pools.features
    if (after := offers(policy, AfterRetrieval)) is not None:
        features, decision, own = after.revise(pools.queries, features, pools.pool, decision)
        pools = pools if own is None else pools.ordered(own)
    grades = widened(np.where(pools.pool.docs >= 0, pools.grades, np.nan), num, np.nan)
    recall = np.cumsum(gain_of(np.nan_to_num(grades), pools.highest), axis=1) / pools.positives[:, None]
    return Served(features, np.clip(decision.cut, 1, num), grades, recall)


def learn(
    policy: Policy,
    fold: Fold,
    customers: Customers,
    *,
    num: int,
    passes: Sequence[int],
    rng: np.random.Generator,
    seed: int = 0,
) -> Iterator[tuple[int, Log]]:
    """Asks each train query once a pass, in random order; yields how many passes are over, and all rounds so far.

    A policy that is `Refitted` learns after every batch, is refitted when the log has doubled and at the end of the
    passes that are yielded. One that is `Priced` holds its budget: prices follow what is spent, and are found again
    after each refit.

    Args:
        num: M. passes: after which the policy is looked at. seed: of refits.
    """
    num_queries, most = len(fold.train.pools.queries), max(passes)
    refitted, priced = offers(policy, Refitted), offers(policy, Priced)
    order = np.concatenate([rng.permutation(num_queries) for _ in range(most)])
    order[num_queries:] += num_queries * fold.changes
    cut, recall, clicks = np.zeros(len(order), int), np.zeros(len(order)), np.zeros((len(order), num), bool)
    log = Log(order, cut, recall, clicks, np.zeros((num_queries * (1 + fold.changes), 0), np.float32))

    def find_prices(pools: JudgedPools) -> None:
        if priced is not None:
            sample = rng.choice(num_queries, min(_PRICED, num_queries), replace=False)
            hold_budget(priced, pools.some(sample), fold.order)
            priced.follow(priced.prices)

    find_prices(fold.before.pools)
    due = _FIRST
    starts = [p * num_queries + at for p in range(most) for at in range(0, num_queries, BATCH)]
    for start, stop in pairwise([*starts, len(order)]):
        # 1) The policy serves a batch of queries, and the customers click.
        rows, batch = order[start:stop], slice(start, stop)
        pools = (fold.before if start < num_queries else fold.train).pools
        served = serve(policy, pools.some(rows % num_queries), fold.order, num)
        page = np.where(np.arange(num) < served.cut[:, None], served.grades, np.nan)
        # 2) The log grows.
        if not start:
            log = log._replace(features=np.zeros((len(log.features), served.features.shape[1]), np.float32))
        log.features[rows] = served.features
        cut[batch], clicks[batch] = served.cut, customers.clicks(page, pools.highest, rng)
        recall[batch] = served.recall[np.arange(len(rows)), served.cut - 1]
        # 3) The policy learns.
        passed = stop // num_queries if stop % num_queries == 0 else 0
        if refitted is not None and (stop >= due or passed in passes):
            refitted.refit(log.rounds(refitted, slice(stop)), seed)
            due = due * 2 if stop >= due else due
            find_prices(pools)
        elif refitted:
            refitted.update(log.rounds(refitted, batch))
        if passed in passes:
            yield passed, log._replace(row=order[:stop], cut=cut[:stop], recall=recall[:stop], clicks=clicks[:stop])


def hold_budget(priced: Priced, pools: JudgedPools, order: Ranker) -> dict[str, float]:
    """Sets, and returns, the prices at which a policy's budgets hold on average over these queries."""
    prices = priced.find_prices(pools.queries, pools.features, pools.retrieve(order))
    priced.set_prices(prices)
    return prices


def frozen(policy: Policy, fold: Fold, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts (Q, 1 + P) of test queries without exploring, and their recall (Q, 1 + P).

    The first ones are at the prices that hold the budgets on dev; a policy with a `Frontier` has others around them.
    """
    exploring = offers(policy, Exploring)
    still = exploring.greedy() if exploring is not None else policy
    priced, frontier = offers(still, Priced), offers(still, Frontier)
    price = hold_budget(priced, fold.dev.pools, fold.order).get("candidates") if priced is not None else None
    served = serve(still, fold.test.pools, fold.order, num)
    cuts = served.cut[:, None]
    if frontier is not None:
        cuts = np.concatenate([cuts, frontier.cuts_at(served.features, (PRICES * (price or 1e-3)).tolist())], axis=1)
    return cuts, np.take_along_axis(served.recall, cuts - 1, 1)
