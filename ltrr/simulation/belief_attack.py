"""One hostile customer teaches a belief wrong things, and the change in what others get is measured.

Knows judged pools and the belief's pages; does not know how evidence defends itself. The attacker's events reach the
belief as a service would send them: one customer asks, sees the first ten candidates and acts on those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np

from ltrr.policies.belief import Belief
from ltrr.simulation.pools import JudgedPools
from ltrr.simulation.stream import Customers, end_of, play, zipf
from ltrr.types import ActionRow, Context, ImpressionRow

ATTACKS = {
    "demote": ("attacker", "asks queries at random and clicks nothing"),
    "promote": ("attacker", "asks queries at random and clicks the last of the ten candidates"),
    "views": ("", "nobody known looks at every query twenty times and clicks nothing"),
}
_PAGE = 10
_VIEWS = 20
_BATCH = 100  # pages between two lessons


def damage_to_belief(
    make: Callable[[], Belief],
    pools: JudgedPools,
    kind: str,
    *,
    rounds: int = 10_000,
    events: int = 10_000,
    customers: int = 1_000,
    seed: int = 0,
) -> dict[str, float]:
    """Teaches a belief by honest customers on a Zipf stream, then by one attacker.

    Args:
        make: a belief with the evidence of a service, for which it has set no price yet.
        pools: of the Q queries, in fused order.
        kind: a key of ATTACKS.
        events: pages that the attacker looks at; `views` looks at 20 of each query.

    Returns: the share of queries whose first ten candidates are others than before (`other_top_ten`; `…_by_evidence`
        where what is believed of all customers is held, which every estimate from more pages moves); and how much
        success and recall of the cut fall, as means over queries and over the honest rounds (`…_by_round`).

    Errors: ValueError for another kind.
    """
    if kind not in ATTACKS:
        raise ValueError(f"attack: kind: there is no {kind!r}, only {', '.join(ATTACKS)}")
    belief, stream = make(), zipf(len(pools.queries), rounds, 1.0, seed, customers)
    play(belief, pools, stream, Customers())
    asked = np.bincount(stream.asked, minlength=len(pools.queries)) / rounds
    belief.learned()
    before, page = _reached(belief, pools)
    held = belief.looks, belief.weights.copy(), belief._learner
    attack(belief, pools, kind, events=events, begin=end_of(rounds), seed=seed)
    after, others = _reached(belief, pools)
    fall = before - after  # (2, Q)
    belief.looks, belief.weights, belief._learner = held
    by_evidence = _reached(belief, pools)[1]
    return {
        "other_top_ten": _others(page, others),
        "other_top_ten_by_evidence": _others(page, by_evidence),
        **dict(zip(("success_fall", "recall_fall"), fall.mean(axis=1).tolist(), strict=True)),
        **dict(zip(("success_fall_by_round", "recall_fall_by_round"), (fall @ asked).tolist(), strict=True)),
    }


def attack(belief: Belief, pools: JudgedPools, kind: str, *, events: int, begin: int, seed: int) -> None:
    """Sends the pages of one customer, a second each, from `begin` on (microseconds since 1970)."""
    rng, (name, _) = np.random.default_rng([seed, 3]), ATTACKS[kind]
    num, number = len(pools.queries), count()
    sent = np.tile(np.arange(num), _VIEWS) if kind == "views" else rng.integers(num, size=events)
    learner = belief.online(None, belief.id)
    for start in range(0, len(sent), _BATCH):
        some = sent[start : start + _BATCH]
        queries = [replace(pools.queries[q], context=Context(name or None)) for q in some.tolist()]
        part = pools.some(some)
        order = belief.worth(queries, part.pool, part.features).order
        assert order is not None
        impressions, actions = [], []
        for query, docs, places in zip(queries, part.pool.docs, order[:, :_PAGE], strict=True):
            rows = [row for row in docs[places].tolist() if row >= 0]
            key, time = f"attack {next(number)}", begin + len(impressions) * 1_000_000 + start * 1_000_000
            impressions.append(ImpressionRow(key, key, name, time, query.text, rows))
            if kind == "promote":
                actions.append(ActionRow(f"{key} click", key, rows[-1], "click", time + 500_000, None))
        learner.take(impressions, actions)


def _reached(belief: Belief, pools: JudgedPools) -> tuple[np.ndarray, np.ndarray]:
    """(2, Q) success and recall of the cut for customers who are not known, and (Q, 10) their first candidates."""
    worth = belief.worth(pools.queries, pools.pool, pools.features)
    assert worth.order is not None
    gains = np.take_along_axis(pools.gains, worth.order, 1)
    cut = np.maximum((worth.worth >= belief.prices["candidates"]).sum(axis=1), 1)
    inside = np.where(np.arange(gains.shape[1]) < cut[:, None], gains, 0.0)
    first = np.take_along_axis(pools.pool.docs, worth.order[:, :_PAGE], 1)
    return np.stack([(inside > 0).any(axis=1), inside.sum(axis=1) / pools.positives]), first


def _others(page: np.ndarray, after: np.ndarray) -> float:
    """Share of the pages (Q, 10) that hold other candidates."""
    return float((np.sort(page) != np.sort(after)).any(axis=1).mean())
