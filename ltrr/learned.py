"""A learned policy from a config: its model, its explorer, and the price that keeps its budget on known queries.

Knows what a config says of a policy; knows nothing about how arms, the fused order or the model work.
Legend: Q queries, A arms, M candidates looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ltrr.config import ConfigError, construct, find_class
from ltrr.core import Query
from ltrr.funnel import Drawn
from ltrr.policy.actions import price_for
from ltrr.policy.depth import DepthPolicy
from ltrr.policy.features import Feature, Known, pool_features, pool_names
from ltrr.tuning import Tuning, some

_PRICED = 1000  # queries on which the price of a candidate is set
_GREEDY = {"class": "ltrr.policy.explore.EpsilonGreedy", "epsilon": 0.0}


def open_policy(
    options: Mapping[str, Any],
    arms: Sequence[str],
    depths: Mapping[str, int],
    cut: int,
    tuning: Tuning,
    draw: Callable[[Sequence[Query]], Drawn],
    identities: Sequence[Any],
    context: Sequence[Feature],
) -> DepthPolicy:
    """The policy of `policy.model`.

    Args:
        options: the config's section `policy`: model, budget (null = the cut), explore (null = greedy).
        arms: A names, in the funnel's order.
        depths: arm -> candidates to draw.
        cut: mean candidates where there is no budget.
        tuning: of the queries on which the price is set, their judgements are not looked at.
        draw: queries -> the whole union in fused order.
        identities: of the arms' builds.
        context: columns that are known before retrieval.

    Errors: ConfigError where the model is of other arms, or where there are no queries to set the price on.
    """
    from ltrr.models.bandit import BanditModule  # torch takes seconds to import

    learner, budget = BanditModule.load(str(options["model"])), float(options.get("budget") or cut)
    num = learner.num
    query, each = pool_names(arms, num)
    if learner.columns != (tuple(f.name for f in (*context, *query)), tuple(f.name for f in each)):
        raise ConfigError(
            f"policy.model: {options['model']} was learned from other arms or features than this funnel's "
            f"({', '.join(arms)}); use the arms and `policy.features` that its rounds were logged with"
        )
    spec = dict(options.get("explore") or _GREEDY)
    explorer = construct("policy.explore", find_class("policy.explore", str(spec.pop("class", ""))), spec)
    judged = tuning.judged("fusion")
    if not (queries := some(judged.queries, _PRICED)):
        raise ConfigError(
            "policy.model: there are no train or dev queries on which the price of a candidate can be set"
        )

    def fit() -> dict[str, Any]:
        drawn = draw(queries)
        seen = pool_features(drawn.pool, num)
        known = Known(np.concatenate([drawn.features, seen.query], axis=1), seen.candidates)
        return {"price": price_for(learner.values(known), np.arange(1.0, num + 1), budget)}

    depends = (learner.id, budget, dict(depths), list(identities), judged.key)
    found = tuning.fitted("price", depends, fit, f"{len(queries)} queries of {judged.name}")
    options = {"num": num, "budget": budget, "price": found["price"], "explorer": explorer, "id": learner.id}
    return DepthPolicy(arms, depths, learner, **options)
