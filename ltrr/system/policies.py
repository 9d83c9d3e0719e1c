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

import numpy as np

from ltrr.config import ConfigError, construct
from ltrr.evaluation.replay import Log
from ltrr.feedback.clicks import attraction_of
from ltrr.files import content_key
from ltrr.policies.features import TEXT, TIME, ContextFeatures, Feature, Group, context_names
from ltrr.protocols import Calibrating, Featured, Policy, Priced, PricedFromLog, offers
from ltrr.system.features import history_digest, history_file
from ltrr.system.parts import Parts, class_of, is_absent
from ltrr.system.tuning import Judged, Tuning, some
from ltrr.types import Pool, Query

FIXED = "ltrr.policies.fixed.FixedPolicy"
_PRICED = 1000  # queries on which prices are set
_COMPUTED = {"text": TEXT, "time": TIME}  # features that need no data set
_FEATURES = tuple(_COMPUTED)  # of a policy that reads features, where its section names none
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
    if given.pop("learn", False):
        warnings.warn("policy.learn: is gone; a policy that learns as it serves is a Belief", stacklevel=2)
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
        grades: judged queries, their pool -> (Q, K).
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
        grades: Callable[[Judged, Pool], np.ndarray],
    ) -> None:
        self._arms, self._depths, self._parts, self._features = [*arms], dict(depths), parts, features
        self._tuning, self._retrieve, self._identities, self._grades = tuning, retrieve, identities, grades

    def make(self, section: Mapping[str, Any], seed: int | None = None) -> Policy:
        """The policy of a section, calibrated and at prices that hold its budgets on known queries. seed: of draws."""
        section = current_section(section)
        section |= self._calibration(section)
        policy = self.unpriced(section, seed)
        if (priced := offers(policy, Priced)) is not None:
            self._set_prices(priced, policy, section)
        return policy

    def unpriced(self, section: Mapping[str, Any], seed: int | None = None) -> Policy:
        """The policy of a section, at prices that nobody has set yet."""
        given = {"arms": self._arms, "depths": self._depths} | ({} if seed is None else {"seed": seed})
        return _constructed(current_section(section), self._parts, self._features, **given)

    def _calibration(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """What the class of a section fits on judged queries, where the section does not give it."""
        calibrating = offers(policy := self.unpriced(section), Calibrating)
        judged = self._tuning.judged("fusion")
        if calibrating is None or "calibration" in section or not judged.queries:
            return {}

        def fit() -> dict[str, Any]:
            pool = self._retrieve(judged.queries, policy)
            grades = self._grades(judged, pool)
            try:
                return calibrating.calibrate(pool, attraction_of(grades, highest=int(max(grades.max(initial=1), 1))))
            except ValueError:  # nothing relevant was retrieved
                return {}

        depends = section["class"], self._depths, [*self._identities()], judged.key
        fitted = self._tuning.fitted("calibration", depends, fit, judged.name)
        return {name: value for name, value in fitted.items() if name not in section}

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
            features = featured.features(queries) if featured is not None else ContextFeatures(())(queries)
            return priced.find_prices(queries, features, lambda before: self._retrieve(queries, before))

        on = f"{len(queries)} queries of {judged.name}"
        priced.set_prices(self._tuning.fitted("price", depends, fit, on), content_key(*depends))


def policy_of_log(section: Mapping[str, Any], log: Log) -> Policy:
    """The policy of a section for the arms and depths of a log, at prices that hold its budgets on the log's rounds.

    No data set is needed. Features of a model are read from the log; without a model, `text` and `time` are computed.
    Errors: ConfigError for other features, and for a policy that needs a corpus.
    """
    section, parts = current_section(section), Parts(None)
    columns = _context_columns(section, parts)

    def features(names: Sequence[str], history: Path | None) -> ContextFeatures:
        if columns is not None:
            return ContextFeatures([_logged_group(columns, log)])
        for name in names:
            if name not in _COMPUTED:
                raise ConfigError(f"policy.features: {name!r} needs a data set; a log has {', '.join(_COMPUTED)}")
        return ContextFeatures([_COMPUTED[name] for name in names])

    policy = _constructed(section, parts, features, arms=[*log.arms], depths=log.depths)
    if (priced := offers(policy, PricedFromLog)) is not None:
        priced.price_from([row for row, ran in zip(log.features, log.executed, strict=True) if ran])
    return policy


def _context_columns(section: Mapping[str, Any], parts: Parts) -> tuple[str, ...] | None:
    """Names of the features before retrieval that the learner of a section knows; None without a learner's model."""
    if "model" in section and "learner" in inspect.signature(class_of("policy", section)).parameters:
        return context_names(parts.load("policy", "learner", {"model": section["model"]}).columns[0])
    below = [value for value in section.values() if isinstance(value, Mapping) and "class" in value]
    nested = (_context_columns(value, parts) for value in below)
    return next((columns for columns in nested if columns is not None), None)


def _logged_group(columns: Sequence[str], log: Log) -> Group:
    """The first columns of each round's features, by the query's id; NaN where fewer were logged."""
    rows, num = {seen.id: seen.features for seen in log.impressions}, len(columns)
    unknown = (np.nan,) * num
    return Group(
        tuple(Feature(name, "as logged") for name in columns),
        lambda queries: np.array([(*rows[query.id], *unknown)[:num] for query in queries], np.float64),
    )


def _constructed(
    section: Mapping[str, Any], parts: Parts, features: Callable[[Sequence[str], Path | None], Any], **given: Any
) -> Policy:
    """Other nested sections, such as an explorer or a policy that decides before, are made by `Parts`."""
    cls = class_of("policy", section)
    arguments = {key: value for key, value in section.items() if key != "class"}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and "features" in value:
            raise ConfigError(f"policy.{name}.features: leave it out; it reads the features of `policy.features`")
    names = arguments.pop("features", _FEATURES if "features" in inspect.signature(cls).parameters else None)
    if names is not None:
        given["features"] = features(names, history_file({"features": names} | arguments))
    return construct("policy", cls, parts.arguments("policy", cls, arguments, **given))


def _without_exploring(section: Mapping[str, Any]) -> dict[str, Any]:
    """What prices depend on: they are found without exploring, and 4 is the same budget as 4.0."""
    kept = {key: value for key, value in section.items() if key not in ("explore", "shadow")}
    whole = {key: float(value) if type(value) is int else value for key, value in kept.items()}
    return {key: _without_exploring(value) if isinstance(value, Mapping) else value for key, value in whole.items()}
