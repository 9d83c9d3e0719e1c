"""What a simulation takes from a system: judged pools of the funnel's arms, and the config's policy as it is at first.

Knows systems and the section `policy`; does not know what is simulated (`ltrr.simulation`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ltrr.config import ConfigError, find_class
from ltrr.evaluation.regret import query_groups
from ltrr.protocols import Policy, Ranker
from ltrr.simulation.loop import features_of
from ltrr.simulation.pools import JudgedPools, judged_pools
from ltrr.simulation.truth import fitted_order
from ltrr.system.policies import current_section
from ltrr.system.system import System

NUM = 60  # candidates of the deepest page where the policy does not say


def section_of(system: System, budget: float | None = None, perfect: bool = False) -> dict[str, Any]:
    """The section `policy` with a budget, where its class has one.

    perfect: its learner, where it has such arguments, believes that customers look at everything that is shown, and
    click on nothing that is not relevant.
    """
    section = {key: value for key, value in current_section(system.settings.policy).items() if key != "depths"}
    if budget is not None and "budget" in _arguments("policy", section):
        section["budget"] = budget
    if perfect and "learner" in section:
        learner = dict(section["learner"])
        if "examination" in _arguments("policy.learner", learner):
            learner["examination"] = [1.0]
        if learner.get("noise") is not None:
            learner["noise"] = 0.0
        section["learner"] = learner
    return section


def num_of(system: System) -> int:
    """Candidates of the deepest page."""
    return int(system.settings.policy.get("num") or NUM)


def _arguments(where: str, section: dict[str, Any]) -> Any:
    return inspect.signature(find_class(where, section.get("class", ""))).parameters


def settings_of(system: System) -> dict[str, Any]:
    """What a simulation's outcomes depend on of a config."""
    return system.settings.model_dump(exclude={"cache", "serve", "ranker"})


def world_of(system: System, parts: Iterable[JudgedPools]) -> list[Any]:
    """Builds of the arms, and queries and truth of each part: outcomes of others are of another world."""
    truth = [[[query.id for query in part.queries], float(part.grades.sum())] for part in parts]
    return [[system.indexes.identity(name) for name in system.drawn], truth]


def check_splits(system: System, splits: Sequence[str]) -> None:
    """ConfigError where the data set lacks one of these splits."""
    for split in splits:
        if split not in system.dataset.splits:
            raise ConfigError(
                f"{system.settings.data.path}: has no split {split!r}, which a policy needs; "
                f"it has {', '.join(system.dataset.splits)}"
            )


def pools_reader(system: System, policy: Policy) -> Callable[[Sequence[str]], JudgedPools]:
    """Splits -> what the funnel's arms return for their judged queries, with the features that a policy looks at."""

    def read(splits: Sequence[str]) -> JudgedPools:
        check_splits(system, splits)
        arms = {name: system.arm(name) for name in system.drawn}  # built where they are missing
        return judged_pools(
            system.dataset,
            splits,
            arms,
            system.depths,
            features=lambda queries: features_of(policy, queries),
            groups=query_groups,
            folder=system.folder / "policy",
            identities=[system.indexes.identity(name) for name in arms],
        )

    return read


def order_of(system: System, dev: JudgedPools) -> Ranker:
    """The config's fused order; that for dev where arms were trained on the queries that it would be fitted on."""
    return system.order() if system.tuning.judged("fusion").queries else fitted_order(dev)
