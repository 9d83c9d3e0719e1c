"""A learned policy from a config: its model, its explorer, and the price that keeps its budget on known queries.

Knows what a config says of a policy; knows nothing about how arms, the fused order or the model work.
Legend: Q queries, A arms, M candidates looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ltrr.config import ConfigError, construct, find_class
from ltrr.files import content_key
from ltrr.funnel import Retrieved
from ltrr.policies.arms import ArmPolicy, Costs, Exploring, feasible_arms
from ltrr.policies.cut import CutPolicy
from ltrr.policies.explorers import EpsilonGreedy, Explorer
from ltrr.policies.features import ContextFeatures, RetrievalFeatures, arms_of, pool_names
from ltrr.policies.fixed import FixedPolicy
from ltrr.policies.price import Price, price_for
from ltrr.protocols import Policy
from ltrr.system.tuning import Tuning, some
from ltrr.types import Query

_PRICED = 1000  # queries on which the price of a candidate is set
_SHADOW = 0.02  # of queries run all arms, where a policy of arms explores
_GREEDY = {"class": "ltrr.policies.explorers.EpsilonGreedy", "epsilon": 0.0}


def open_policy(
    options: Mapping[str, Any],
    arms: Sequence[str],
    depths: Mapping[str, int],
    cut: int,
    tuning: Tuning,
    draw: Callable[[Policy, Sequence[Query]], Retrieved],
    identities: Sequence[Any],
    context: ContextFeatures,
    seed: int | None = None,
) -> CutPolicy:
    """The policy of `policy.model`.

    Args:
        options: the config's section `policy`: model, budget (null = the cut), explore (null = greedy), and, where arms
            may be off or less deep, arms_model, arms_costs (1 where not named), arms_drawn_cost (of each candidate that
            they draw), arms_cap (of a query's arms), arms_budget (their mean cost).
        arms: A names, in the funnel's order.
        depths: arm -> candidates to draw.
        cut: mean candidates where there is no budget.
        tuning: of the queries on which the price is set, their judgements are not looked at.
        draw: what a funnel of these arms with a policy draws.
        identities: of the arms' builds, of the fused order, and of what else `context` depends on.
        context: what is known before retrieval.
        seed: of draws; None = another each time.

    Errors: ConfigError where the model is of other arms, or where there are no queries to set the price on.
    """
    from ltrr.learners.relevance import RelevanceLearner  # torch takes seconds to import

    learner, budget = RelevanceLearner.load(str(options["model"])), float(options.get("budget") or cut)
    num = learner.num
    query, each = pool_names(arms, num)
    columns = tuple(f.name for f in (*context.columns, *query)), tuple(f.name for f in each)
    whole = {arm: depths.get(arm, 0) for arm in arms}
    _check("policy.model", options, learner, columns, arms_of(learner.columns[1]), whole)
    spec = dict(options.get("explore") or _GREEDY)
    explorer = construct("policy.explore", find_class("policy.explore", str(spec.pop("class", ""))), spec)
    if not explorer.exact:
        raise ConfigError(
            f"policy.explore: propensities of {type(explorer).__name__} are estimates, and logged ones must be exact; "
            "use Softmax, SquareCB, EpsilonGreedy or UCB here"
        )
    judged = tuning.judged("fusion")
    if not (queries := some(judged.queries, _PRICED)):
        raise ConfigError("policy.model: there are no train or dev queries on which its price can be set")
    on = f"{len(queries)} queries of {judged.name}"

    depends: tuple[Any, ...] = learner.id, budget, dict(depths), list(identities), judged.key
    before = likely = FixedPolicy(arms, depths, num)  # which arms run decides what candidates are worth
    if options.get("arms_model"):
        priced = context, queries, on, (*identities, judged.key)
        before, likely = _open_arms(options, arms, whole, num, tuning, priced, explorer, seed)
        depends += (before.price.name,)

    def fit() -> dict[str, Any]:
        probe = CutPolicy(likely, learner, num=num, price=Price(budget), explorer=EpsilonGreedy(0.0))
        features, width = draw(probe, queries).features, len(learner.columns[0])
        known = RetrievalFeatures(features[:, :width], features[:, width:].reshape(len(queries), num, -1))
        return {"price": price_for(learner.values(known), np.arange(1.0, num + 1), budget)}

    start = tuning.fitted("price", depends, fit, on)["price"]
    price = Price(budget, start=start, name=f"candidates {content_key(*depends)}")
    return CutPolicy(before, learner, num=num, price=price, explorer=explorer, id=learner.id, seed=seed)


def _open_arms(
    options: Mapping[str, Any],
    arms: Sequence[str],
    depths: Mapping[str, int],
    num: int,
    tuning: Tuning,
    priced: tuple[ContextFeatures, Sequence[Query], str, tuple],
    explorer: Explorer,
    seed: int | None,
) -> tuple[ArmPolicy, ArmPolicy]:
    """The policy of `policy.arms_model`, and as it is without exploring; priced: queries, their name and key."""
    from ltrr.learners.arm_loss import ArmLossLearner

    context, queries, on, key = priced
    learner = ArmLossLearner.load(str(options["arms_model"]))
    columns = tuple(f.name for f in context.columns), tuple(arms)
    _check("policy.arms_model", options, learner, columns, learner.columns[1], depths)
    if (budget := options.get("arms_budget")) is None:
        raise ConfigError("policy.arms_budget: is not set; give the mean cost of the arms that run for a query")
    costs = Costs(options.get("arms_costs") or {}, options.get("arms_drawn_cost") or 0.0, options.get("arms_cap"))
    how = Exploring(explorer, _SHADOW if options.get("explore") else 0.0)
    feasible = feasible_arms(depths, learner.shallow, costs, num)
    feasible.check(how)

    def fit() -> dict[str, Any]:
        return {"price": feasible.price(learner.losses(context(queries)), budget)}

    depends = learner.id, budget, vars(costs), depths, key
    start = tuning.fitted("arms_price", depends, fit, on)["price"]
    price = Price(budget, start=start, name=f"arms {content_key(*depends)}")
    made = partial(ArmPolicy, feasible, learner, price=price, id=learner.id)
    return made(how=how, seed=seed), made(how=Exploring(EpsilonGreedy(0.0)))


def _check(
    key: str, options: Mapping[str, Any], learner: Any, columns: tuple, own: Sequence[str], depths: Mapping[str, int]
) -> None:
    """ConfigError where a model learned from other arms (own), features or depths than a funnel's."""
    model = f"{key}: {options[key.partition('.')[2]]} was learned from"
    if list(own) != list(depths):
        raise ConfigError(
            f"{model} the arms {', '.join(own)}, this funnel has {', '.join(depths)}; give it those arms, in that order"
            " (`--arms.NAME null` takes one away)"
        )
    if learner.columns != columns:
        raise ConfigError(f"{model} other features; use the `policy.features` that its rounds were logged with")
    if learner.depths not in (None, list(depths.values())):
        told = json.dumps(dict(zip(own, learner.depths, strict=True)))
        raise ConfigError(f"{model} arms drawn to other depths; give --policy.depths '{told}'")
