"""The policy of a config, with the prices at which its budgets hold.

Knows the section `policy` and the protocols of policies; does not know any policy, arm or fused order by name.
A section is `{class: ltrr.policies.cut.CutPolicy, model: …, budget: …}`; arms, depths and features that a
constructor asks for are given.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltrr.config import ConfigError, construct
from ltrr.files import content_key
from ltrr.policies.features import ContextFeatures
from ltrr.protocols import Featured, Policy, Priced, offers
from ltrr.system.features import history_digest, history_file
from ltrr.system.parts import Parts, class_of, is_absent
from ltrr.system.tuning import Tuning, some
from ltrr.types import Pool, Query

FIXED = "ltrr.policies.fixed.FixedPolicy"
_PRICED = 1000  # queries on which prices are set
_FEATURES = ("text", "time")  # of a policy that reads features, where its section names none
_CUT, _ARMS = "ltrr.policies.cut.CutPolicy", "ltrr.policies.arms.ArmPolicy"
_ARMS_KEYS = {"arms_model": "model", "arms_budget": "budget", "arms_costs": "costs", "arms_cap": "cap"}
_ARMS_KEYS |= {"arms_drawn_cost": "drawn_cost"}  # of version 0.1 -> of `before`


def current_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section with a class and without nulls; keys of version 0.1 are translated, with a warning that says how."""
    given = {key: value for key, value in section.items() if value is not None}
    if "class" in section:
        return given if not is_absent(section) else {"class": FIXED}
    if "model" not in given:
        if "arms_model" in given:
            raise ConfigError("policy.arms_model: needs policy.model, which decides the cut of what the arms bring")
        learned = ("budget", "explore", "learn", "features", *_ARMS_KEYS)  # nothing to do without a model
        return {"class": FIXED} | {key: value for key, value in given.items() if key not in learned}
    cut = given.pop("cut", 100)
    arms = {_ARMS_KEYS[key]: given.pop(key) for key in [*given] if key in _ARMS_KEYS}
    current: dict[str, Any] = {"class": _CUT, "budget": cut} | given
    if "model" in arms:
        if "budget" not in arms:
            raise ConfigError("policy.arms_budget: is not set; give the mean cost of the arms that run for a query")
        current["before"] = (
            {"class": _ARMS} | arms | {key: current[key] for key in ("explore", "depths") if key in current}
        )
    warnings.warn(f"policy: keys of version 0.1; write {current}", DeprecationWarning, stacklevel=2)
    return current


class Policies:
    """Makes the policy of one data set's funnel.

    Args:
        arms: names in the funnel's order. depths: arm -> candidates that it draws where the section does not say.
        features: names of groups, file of their history -> what a policy looks at before retrieval.
        tuning: has the queries on which prices are set; their judgements are not looked at.
        retrieve: queries, a policy -> the union in fused order of what its arms bring.
        identities: what retrieval and features depend on beside the section.
    """

    def __init__(
        self,
        arms: Sequence[str],
        depths: Mapping[str, int],
        *,
        parts: Parts,
        features: Callable[[Sequence[str], Path | None], ContextFeatures],
        tuning: Tuning,
        retrieve: Callable[[Sequence[Query], Policy], Pool],
        identities: Callable[[], Sequence[Any]],
    ) -> None:
        self._arms, self._depths, self._parts, self._features = [*arms], dict(depths), parts, features
        self._tuning, self._retrieve, self._identities = tuning, retrieve, identities

    def make(self, section: Mapping[str, Any], seed: int | None = None) -> Policy:
        """The policy of a section, at prices that hold its budgets on known queries. seed: of draws."""
        policy = self.unpriced(section, seed)
        if priced := offers(policy, Priced):
            self._set_prices(priced, policy, current_section(section))
        return policy

    def unpriced(self, section: Mapping[str, Any], seed: int | None = None) -> Policy:
        """The policy of a section, at prices that nobody has set yet."""
        section = current_section(section)
        return self._constructed("policy", section, arms=self._arms, depths=self._depths, seed=seed)

    def _constructed(self, where: str, section: Mapping[str, Any], **given: Any) -> Any:
        """Other nested sections, such as an explorer or a policy that decides before, are made by `Parts`."""
        cls = class_of(where, section)
        arguments = {key: value for key, value in section.items() if key != "class"}
        names = arguments.pop("features", _FEATURES if "features" in inspect.signature(cls).parameters else None)
        if names is not None:
            given["features"] = self._features(names, history_file({"features": names} | arguments))
        return construct(where, cls, self._parts.arguments(where, cls, arguments, **given))

    def _set_prices(self, priced: Priced, policy: Policy, section: Mapping[str, Any]) -> None:
        judged = self._tuning.judged("fusion")
        if not (queries := some(judged.queries, _PRICED)):
            raise ConfigError("policy: there are no train or dev queries on which its prices can be set")
        depends = (
            policy.id,
            _without_exploring(section),
            self._depths,
            [*self._identities(), *history_digest(section)],
            judged.key,
        )

        def fit() -> dict[str, Any]:
            featured = offers(policy, Featured)
            features = featured.features(queries) if featured else ContextFeatures(())(queries)
            return priced.find_prices(queries, features, lambda before: self._retrieve(queries, before))

        on = f"{len(queries)} queries of {judged.name}"
        priced.set_prices(self._tuning.fitted("price", depends, fit, on), content_key(*depends))


def _without_exploring(section: Mapping[str, Any]) -> dict[str, Any]:
    """What prices depend on: they are found without exploring."""
    kept = {key: value for key, value in section.items() if key not in ("explore", "learn", "shadow")}
    return {key: _without_exploring(value) if isinstance(value, Mapping) else value for key, value in kept.items()}
