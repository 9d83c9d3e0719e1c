"""A stream of queries that recur: policies serve it, are scored before they learn, and learn from simulated clicks.

Knows judged pools in fused order, the contract of policies and how customers look; does not know any policy.
Labels serve the truth alone. Every system sees the same queries, customers and random numbers.
Legend: R rounds, Q queries, K candidates of the union, L places of the longest page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ltrr.feedback.events import normalised
from ltrr.funnel import in_order as pool_in_order
from ltrr.funnel import reserve
from ltrr.policies.price import least_price
from ltrr.protocols import AfterRetrieval, Online, Policy, Priced, Ranker, Valuing, offers
from ltrr.simulation.pools import JudgedPools
from ltrr.types import ActionRow, Candidates, Decision, ImpressionRow, Pool, Query

_LONGEST = 128  # L: what is shown below is never looked at
_DRAWN = 1_000  # rounds whose random numbers are drawn at once
_PRICED = 2_000  # queries on which prices are found before the first round
_SECOND = 1_000_000  # microseconds
_START = 1_767_225_600 * _SECOND  # 2026-01-01
_PAUSE = 60 * _SECOND  # between rounds


@dataclass(frozen=True)
class Customers:
    """How customers look at a page and click.

    Args:
        eta: place k is looked at with (k + 1)^-eta.
        noise: P(click | looked at, not relevant).
        attraction: P(click | looked at) of what has the highest grade; lower grades lie between the two.
        satisfied: None = they look as above; else they go down the page and stop after a click with this probability.
        leaves: likewise after a candidate without a click.
        delay: rounds until a click is known.

    Errors: ValueError names what is no probability.
    """

    eta: float = 1.0
    noise: float = 0.1
    attraction: float = 1.0
    satisfied: float | None = None
    leaves: float = 0.1
    delay: int = 0

    def __post_init__(self) -> None:
        for name in ("noise", "attraction", "satisfied", "leaves"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"customers.{name}: {value} is not from 0 to 1")
        if self.delay < 0 or self.eta < 0:
            raise ValueError("customers: eta and delay are at least 0")

    def clicks(self, gains: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """(K,) bool for a page of gains (K,) in [0, 1]; draws (2, K or more), uniform."""
        num = len(gains)
        likes = draws[0, :num] < self.noise + (self.attraction - self.noise) * gains
        if self.satisfied is None:
            return likes & (draws[1, :num] < np.arange(1.0, num + 1) ** -self.eta)
        stops = draws[1, :num] < np.where(likes, self.satisfied, self.leaves)
        return likes & (np.cumsum(stops) - stops == 0)


class Stream(NamedTuple):
    """Who asks what, round by round."""

    asked: np.ndarray  # (R,) which of the Q
    customers: np.ndarray  # (R,) number of the customer
    seed: int
    way: np.ndarray | None = None  # (R,) which of the query's texts is typed; None = the first
    session: np.ndarray | None = None  # (R,) the round with which each one's session began; None = each its own

    def part(self, some: slice) -> Stream:
        """Some of the rounds."""
        way, session = (None if part is None else part[some] for part in (self.way, self.session))
        return Stream(self.asked[some], self.customers[some], self.seed, way, session)


class Arms(NamedTuple):
    """What a policy's choice of arms leads to."""

    names: tuple[str, ...]  # A, in the policy's order
    costs: np.ndarray  # (A,) of running each
    order: Ranker  # the fused order of what those that run bring


class Played(NamedTuple):
    """What a policy reached, round by round, before it learned from the round."""

    recall: np.ndarray  # (R,) of the cut, without what was explored
    success: np.ndarray  # (R,) bool: anything relevant in the cut
    cost: np.ndarray  # (R,) candidates, with what was explored


def zipf(
    num_queries: int, rounds: int, exponent: float, seed: int, num_customers: int = 1_000, duplicates: float = 0.0
) -> Stream:
    """Queries by Zipf's law: the r-th most frequent, in random order, has a share of r^-exponent.

    duplicates: share of the rounds in which the query's second text is typed.
    """
    if exponent < 0 or rounds < 1 or num_queries < 1:
        raise ValueError("stream: needs a query, a round and an exponent of at least 0")
    rng = np.random.default_rng(seed)
    weight = np.arange(1, num_queries + 1) ** -float(exponent)
    shares = np.empty(num_queries)
    shares[rng.permutation(num_queries)] = weight / weight.sum()
    asked, customers = rng.choice(num_queries, rounds, p=shares), rng.integers(num_customers, size=rounds)
    return Stream(asked, customers, seed, (rng.random(rounds) < duplicates).astype(np.int64) if duplicates else None)


def simon(num_queries: int, rounds: int, fresh: float, seed: int, num_customers: int = 1_000) -> Stream:
    """A share of the rounds, while there are any, asks a query nobody asked before; others repeat an earlier round.

    What was asked often is asked more, so that frequencies follow a power law (Simon 1955).
    """
    if not 0 < fresh <= 1:
        raise ValueError(f"stream: a share of {fresh} fresh queries is not above 0 and at most 1")
    rng = np.random.default_rng(seed)
    new, order = rng.random(rounds) < fresh, rng.permutation(num_queries)
    repeats, known = (rng.random(rounds) * np.arange(rounds)).astype(np.int64), 0
    asked = np.empty(rounds, np.int64)
    for n in range(rounds):
        if not n or (new[n] and known < num_queries):
            asked[n], known = order[known], known + 1
        else:
            asked[n] = asked[repeats[n]]
    return Stream(asked, rng.integers(num_customers, size=rounds), seed)


def in_order(num_queries: int, rounds: int, seed: int, num_customers: int = 1_000) -> Stream:
    """All queries in the data set's own order, such as a log's, and again from the first when they are over."""
    return Stream(
        np.arange(rounds) % num_queries, np.random.default_rng(seed).integers(num_customers, size=rounds), seed
    )


def reformulated(stream: Stream, share: float) -> Stream:
    """After a share of the rounds the customer at once types the query's second text, in the same session."""
    rng = np.random.default_rng([stream.seed, 2])
    again = np.flatnonzero(rng.random(len(stream.asked) - 1) < share)
    again = again[np.diff(again, prepend=-2) > 1]  # not twice in a row
    asked, customers, session = stream.asked.copy(), stream.customers.copy(), np.arange(len(stream.asked))
    way = np.zeros(len(asked), np.int64) if stream.way is None else stream.way.copy()
    asked[again + 1], customers[again + 1], session[again + 1] = asked[again], customers[again], again
    way[again], way[again + 1] = 0, 1
    return stream._replace(asked=asked, customers=customers, way=way, session=session)


def times_before(texts: Sequence[Sequence[str]], stream: Stream) -> np.ndarray:
    """(R,) how often the same text was typed before each round; texts: each query's, normalised."""
    numbers: dict[str, int] = {}
    of = [[numbers.setdefault(text, len(numbers)) for text in ways] for ways in texts]
    way = np.zeros(len(stream.asked), np.int64) if stream.way is None else stream.way
    keys = np.array([of[q][w] for q, w in zip(stream.asked.tolist(), way.tolist(), strict=True)])
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    out = np.empty(len(keys), np.int64)
    out[order] = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    return out


def end_of(rounds: int) -> int:
    """When a stream of so many rounds is over, in microseconds since 1970."""
    return _START + _PAUSE * rounds


def play(
    policy: Policy,
    pools: JudgedPools,
    stream: Stream,
    customers: Customers,
    *,
    texts: Sequence[Sequence[str]] | None = None,
    later: JudgedPools | None = None,
    change_at: int | None = None,
    page: int | None = None,
    ranker: Ranker | None = None,
    arms: Arms | None = None,
    watch: Callable[[int, np.ndarray, np.ndarray, Decision], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Played:
    """A policy that learns serves the stream; its prices follow what is spent.

    Args:
        pools: of the Q queries, in fused order.
        texts: the ways in which each query is typed, normalised; None = its text.
        later: the pools from round `change_at` on.
        page: places that customers see; None = the whole cut.
        ranker: orders the cut before it is shown.
        arms: for policies that may leave some off; None = all run, free of charge.
        watch: is told, of each round, the query's number, the page (K,), what was clicked (K,) bool, and the decision.
        progress: is told rounds that are over, now and then.
    """
    after, online, priced = offers(policy, AfterRetrieval), offers(policy, Online), offers(policy, Priced)
    learner = online.online(None, policy.id) if online is not None else None
    rounds = len(stream.asked)
    out = Played(np.zeros(rounds, np.float32), np.zeros(rounds, bool), np.zeros(rounds, np.float32))
    texts = texts or [[normalised(query.text)] for query in pools.queries]
    world, late = _World(pools, texts), deque[tuple[ImpressionRow, list[ActionRow]]]()
    if priced is not None:
        some = pools.some(np.random.default_rng(stream.seed).permutation(len(pools.queries))[:_PRICED])
        priced.set_prices(priced.find_prices(some.queries, some.features, lambda _: some.pool))
        priced.follow(priced.prices)
    for start, stop in pairwise([*range(0, rounds, _DRAWN), rounds]):
        draws = np.random.default_rng([stream.seed, start]).random((stop - start, 2, _LONGEST), np.float32)
        for n in range(start, stop):
            # 1) The policy decides.
            if n == change_at and later is not None:
                world = _World(later, texts)
            way = 0 if stream.way is None else int(stream.way[n])
            query, features, pool, gains = world.of(int(stream.asked[n]), way)
            if query.context.customer is None:
                query = replace(query, context=replace(query.context, customer=f"customer {stream.customers[n]}"))
            decision = policy.decide([query], features)
            if arms is not None:
                pool = world.drawn(int(stream.asked[n]), way, decision.depths, arms)
            fused = Candidates(pool.docs, pool.scores[:, :, -1])
            if after is not None:
                _, decision, own = after.revise([query], features, pool, decision)
                fused = fused if own is None else own
            cut = int(decision.cut[0])
            shown = Candidates(fused.docs[:, :cut], fused.scores[:, :cut])
            # 2) It is scored.
            each = gains.of(shown.docs[0])
            out.recall[n], out.success[n] = each.sum() / gains.total, (each > 0).any()
            explores = decision.explored is not None and decision.explored[0] >= 0
            out.cost[n] = cut + explores + (0.0 if arms is None else float(arms.costs @ (decision.depths[0] > 0)))
            # 3) A customer looks and clicks.
            if ranker is not None:
                shown = ranker.rank([query], pool_in_order(_unfused(pool), shown))
            if page is not None:
                shown = shown.first(page)
            rows = reserve(shown, decision, page or cut + 1)[0].docs[0]
            if ranker is not None or len(rows) != cut or explores:
                each = gains.of(rows)
            clicks = customers.clicks(each, draws[n - start])
            if watch is not None:
                watch(int(stream.asked[n]), rows, clicks, decision)
            if learner is not None:
                session = n if stream.session is None else int(stream.session[n])
                late.append(_events(n, session, query, rows, clicks))
                # 4) The policy learns from clicks that are known by now.
                while len(late) > customers.delay:
                    impression, actions = late.popleft()
                    learner.take([impression], actions)
        if progress is not None:
            progress(stop - start)
    return out


def play_still(policy: Policy, pools: JudgedPools, stream: Stream) -> Played:
    """A policy that does not learn serves the stream, at the price that holds its budget on this very stream.

    So a rule has the best price that it can have; no judgement is looked at.
    """
    asked, row, times = np.unique(stream.asked, return_inverse=True, return_counts=True)
    some = pools.some(asked)
    priced, after, valuing = offers(policy, Priced), offers(policy, AfterRetrieval), offers(policy, Valuing)
    if valuing is not None:
        worth = valuing.worth(some.queries, some.pool, some.features).worth

        def mean_cost(price: float) -> float:
            return float(times @ np.maximum((worth >= price).sum(axis=1), 1) / times.sum())

        valuing.set_prices({"candidates": least_price(mean_cost, 1.0, valuing.budget, "policy.budget")})
    elif priced is not None:
        priced.set_prices(priced.find_prices(some.queries, some.features, lambda _: some.pool))
    decision, docs = policy.decide(some.queries, some.features), some.pool.docs
    if after is not None:
        _, decision, own = after.revise(some.queries, some.features, some.pool, decision)
        if own is not None:
            some = some.ordered(own)
            docs = some.pool.docs
    inside = np.where(np.arange(docs.shape[1]) < decision.cut[:, None], some.gains, 0.0)
    recall, success = inside.sum(axis=1) / some.positives, np.any(inside > 0, axis=1)
    return Played(recall[row], np.asarray(success)[row], decision.cut[row].astype(float))


def _unfused(pool: Pool) -> Pool:
    return Pool(pool.arms[:-1], pool.docs, pool.ranks[:, :, :-1], pool.scores[:, :, :-1])


class _Gains(NamedTuple):
    """What the candidates of one query are worth."""

    by_row: dict[int, float]  # corpus row -> gain, of what is relevant
    total: float

    def of(self, rows: np.ndarray) -> np.ndarray:
        """(K,) gains of corpus rows."""
        return np.array([self.by_row.get(row, 0.0) for row in rows.tolist()])


class _World:
    """Queries with their pools, one at a time."""

    def __init__(self, pools: JudgedPools, texts: Sequence[Sequence[str]]) -> None:
        self._pools, self._gains, self._texts = pools, pools.gains, texts
        self._kept: dict[tuple[int, int], tuple[Query, np.ndarray, Pool, _Gains]] = {}
        self._drawn: dict[tuple[int, bytes], Pool] = {}

    def drawn(self, q: int, way: int, depths: np.ndarray, arms: Arms) -> Pool:
        """A query's pool where arms are drawn to depths (1, A)."""
        pool = self.of(q, way)[2]
        at = [pool.arms.index(arm) for arm in arms.names]
        if not (pool.ranks[:, :, at] >= depths[:, None]).any():  # as deep as all arms were drawn
            return pool
        key = q, depths.tobytes()
        if key not in self._drawn:
            own = self._pools.some(np.array([q]))
            own = own._replace(
                pool=Pool(arms.names, own.pool.docs, own.pool.ranks[:, :, at], own.pool.scores[:, :, at])
            )
            self._drawn[key] = own.drawn(depths).fused(arms.order).pool
        return self._drawn[key]

    def of(self, q: int, way: int) -> tuple[Query, np.ndarray, Pool, _Gains]:
        """A query as it is typed, its features (1, F), its pool and what is relevant."""
        if (q, way) not in self._kept:
            pool, one = self._pools.pool, slice(q, q + 1)
            real = self._gains[q] > 0
            gains = dict(zip(pool.docs[q, real].tolist(), self._gains[q, real].tolist(), strict=True))
            query = replace(self._pools.queries[q], text=self._texts[q][way])
            cut = Pool(pool.arms, pool.docs[one], pool.ranks[one], pool.scores[one])
            self._kept[q, way] = query, self._pools.features[one], cut, _Gains(gains, float(self._pools.positives[q]))
        return self._kept[q, way]


def _events(
    number: int, session: int, query: Query, page: np.ndarray, clicks: np.ndarray
) -> tuple[ImpressionRow, list[ActionRow]]:
    time, name, rows = _START + _PAUSE * number, str(number), page.tolist()
    impression = ImpressionRow(name, str(session), query.context.customer or "", time, query.text, rows)
    actions = [
        ActionRow(f"{name}-{k}", name, rows[k], "click", time + (2 + k) * _SECOND, None)
        for k in np.flatnonzero(clicks).tolist()
    ]
    return impression, actions
