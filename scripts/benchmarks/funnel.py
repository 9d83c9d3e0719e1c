"""Cost of the funnel beyond its arms. Knows the funnel and its arms from outside. Legend: Q queries, A arms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from registry import Options, Row, benchmark
from timing import best_of, seconds

from ltrr.fusion import ConvexFusion, union

_K, _BATCH, _DEEP = 10, 256, 1000


@benchmark(data=True)
def overhead(options: Options) -> Iterator[Row]:
    """Time of one query through the funnel, against the sum of its arms searched alone to the same depths.

    Both answer each query in turn, alternating in who goes first, so that they share the machine's noise. The fastest
    of --repeats (3) answers counts, after one that does not: some arms remember the words of earlier queries.
    """
    funnel, depths, queries = options.system.funnel(), options.system.depths, options.queries
    arms = [(name, arm, depths[name]) for name, arm in funnel.arms.items() if depths.get(name)]
    times = 1 + (options.repeats or 3)
    spent = np.zeros((times, len(queries), 1 + len(arms)))  # (times, Q, 1 + A) ms: the funnel, then each arm
    for time in range(times):
        for number, query in enumerate(queries):
            actions = [lambda query=query: funnel.search([query], _K)]
            actions += [lambda arm=arm, k=depth, query=query: arm.search([query], k) for _, arm, depth in arms]
            order = range(len(actions)) if (time + number) % 2 else range(len(actions) - 1, -1, -1)
            for action in order:
                spent[time, number, action] = 1e3 * seconds(actions[action])
    counted = spent[1:]
    for (name, *_), column in zip(arms, counted[:, :, 1:].min(axis=0).T, strict=True):
        yield Row(f"{name} alone, median", float(np.median(column)), "ms")
    # The sum comes before the minimum: fastest answers of several arms add up to less than their fastest sum.
    whole, alone = counted[:, :, 0].min(axis=0), counted[:, :, 1:].sum(axis=2).min(axis=0)  # (Q,)
    total = Row("arms alone, median of sums", float(np.median(alone)), "ms")
    yield total
    yield Row("funnel, median", float(np.median(whole)), "ms").against(total)
    yield Row("funnel, p95", float(np.quantile(whole, 0.95)), "ms")
    yield Row("funnel less arms, median", float(np.median(whole - alone)), "ms")


@benchmark(data=True)
def fusion(options: Options) -> Iterator[Row]:
    """Time of the union and convex fusion of 256 queries, 1,000 candidates of each arm."""
    system, queries = options.system, options.queries[:_BATCH]
    candidates = {name: system.arm(name).search(queries, _DEEP) for name in system.fusion_arms}
    order, times = ConvexFusion(dict.fromkeys(candidates, 1.0)), options.repeats or 3
    keys = np.concatenate([lists.docs for lists in candidates.values()], axis=1).astype(np.uint64)
    limit = Row("numpy's sort of as many numbers", 1e3 * best_of(lambda: np.sort(keys, axis=1), times), "ms")
    yield limit
    spent = best_of(lambda: order.rank(queries, union(candidates)), times)
    yield Row(f"union and convex fusion, {len(queries)} queries", 1e3 * spent, "ms").against(limit)
