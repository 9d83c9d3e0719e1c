"""One data set's arms, fused order, policy and funnel, as a config describes them: what scripts and the service open.

Knows which parts a funnel has; does not know how any of them is made (the other files of this package). All that is
built or fitted is cached under `<cache>/<data set>-<fingerprint>/`, keyed by all that it depends on.

    index/<arm>-<key>/        what the arm's `build` writes (indexes.py)
    tuned/<what>-<key>.json   what was fitted (tuning.py)

Legend: Q queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ltrr.config import ConfigError, Settings, check_known, read_settings
from ltrr.data.beir import Dataset, open_collection
from ltrr.funnel import Funnel, in_order
from ltrr.protocols import Arm, Exploring, Policy, Priced, Ranker, offers
from ltrr.system.features import Features, history_digest
from ltrr.system.indexes import Indexes, trained_splits
from ltrr.system.orders import DEPTH, Orders
from ltrr.system.parts import Parts, class_of, is_absent
from ltrr.system.policies import FIXED, Policies, current_section
from ltrr.system.tuning import Tuning
from ltrr.types import Pool, Query


def open_systems(config: Path, overrides: Sequence[str], *, hold_out: str = "test") -> list[System]:
    """The systems of a config, one a data set (several for a collection such as CQADupStack)."""
    settings = read_settings(config, overrides)
    data = settings.data
    if not data.path:
        raise ConfigError(f"config {config}: data.path is not set; give --data FOLDER, ZIP or HUBNAME")
    sets = open_collection(data.path, fields=data.fields, query_fields=data.query_fields, qrels=data.qrels)
    return [System(settings, dataset, hold_out=hold_out) for dataset in sets]


class System:
    """One data set's arms, fusion and funnel.

    Args:
        settings: as a YAML file has them, or checked already.
        hold_out: the split that is evaluated; nothing is tuned on its queries.
    """

    def __init__(self, settings: Mapping[str, Any] | Settings, dataset: Dataset, *, hold_out: str = "test"):
        self.settings = settings = settings if isinstance(settings, Settings) else Settings.of(settings)
        self.dataset, self.corpus = dataset, dataset.corpus
        self.specs = {name: dict(spec) for name, spec in settings.arms.items() if spec is not None}
        if not self.specs:
            raise ConfigError("arms: the config names no arm; see configs/funnel.yaml")
        self._ranker_spec = dict(settings.ranker or {})
        self._sections = {f"arms.{name}": spec for name, spec in self.specs.items()}
        self._sections |= {"ranker": self._ranker_spec} if self._ranker_spec else {}
        self._policy_spec = {
            name: value for name, value in current_section(settings.policy).items() if name != "depths"
        }
        for where, spec in (*self._sections.items(), ("policy", self._policy_spec)):
            class_of(where, spec)
        splits = settings.tune.splits or []
        for split in splits:
            check_known("tune.splits", split, {"train", "dev", "test", *dataset.splits})
        self.folder = Path(settings.cache) / f"{dataset.name}-{self.corpus.fingerprint[:12]}"
        trained = self.trained_on(self._sections)
        self.tuning = Tuning(dataset, self.folder / "tuned", splits=splits, hold_out=hold_out, trained=trained)
        parts = Parts(self.corpus)
        self.indexes = Indexes(self.corpus, self.specs, self.folder, parts, self.tuning)
        ranked = self._policy_spec.get("cut") or self._policy_spec.get("budget") or DEPTH  # candidates of a ranker
        self.orders = Orders(
            settings.fusion, self.indexes, self.tuning, parts, int(ranked) if self.has_ranker else None
        )
        self._parts = parts

    # -- arms

    def usable(self) -> list[str]:
        """Arms whose model is set, without metadata arms if the corpus has no metadata."""
        return self.indexes.usable()

    def arm(self, name: str) -> Arm:
        """The opened arm of this name, the same one each time; its index is built where it is missing."""
        return self.indexes.arm(name)

    def make(self, name: str) -> tuple[Any, Path]:
        """An arm that is not opened yet, and its index folder."""
        return self.indexes.make(name)

    def identity(self, name: str) -> list[str]:
        """What an opened arm's scores depend on."""
        return self.indexes.identity(name)

    def trained_on(self, sections: Iterable[str]) -> list[str]:
        """Splits of this data set on whose queries the models of these sections ("arms.NAME") were trained."""
        return trained_splits([self._sections[name] for name in sections], self.corpus.fingerprint)

    @cached_property
    def fusion_arms(self) -> list[str]:
        """The arms that are fused."""
        return self.orders.arms

    def order(self, method: str | None = None) -> Ranker:
        """The fused order: `rrf` or `convex`."""
        return self.orders.order(method)

    def tuned(self) -> dict[str, Any]:
        """Tuned parameters in use: name -> {"on": the queries on which they were fitted, "parameters"}."""
        return dict(sorted(self.tuning.in_use.items()))

    # -- the whole

    @cached_property
    def depths(self) -> dict[str, int]:
        """How many candidates the funnel draws of each arm, 0 = off."""
        named = self.settings.policy.get("depths")
        for name in (depths := named or dict.fromkeys(self.fusion_arms, DEPTH)):
            check_known("policy.depths", name, self.specs)
        return {name: depth for name, depth in depths.items() if name in self.usable()}

    @property
    def drawn(self) -> list[str]:
        """Arms of the funnel: those that are fused, and others that are given a depth."""
        return [name for name in self.usable() if name in self.fusion_arms or self.depths.get(name)]

    @cached_property
    def features(self) -> Features:
        """What policies may look at before retrieval."""
        return Features(self.indexes, self.dataset, self.drawn)

    @cached_property
    def policies(self) -> Policies:
        """Makes policies of this funnel."""
        return Policies(
            self.drawn,
            self.depths,
            parts=self._parts,
            features=self.features.open,
            tuning=self.tuning,
            retrieve=self.retrieve,
            identities=self._retrieved_by,
            grades=self.orders.grades,
        )

    def policy(self, seed: int | None = None) -> Policy:
        """The config's policy, at prices that hold its budgets on the queries of fusion. seed: of what explores."""
        return self.policies.make(self._policy_spec, seed)

    def funnel(self, seed: int | None = None) -> Funnel:
        """Arms, the policy, the fused order, and the ranker where the config has one. seed: of what explores."""
        return self._funnel(self.policy(seed), self.ranker)

    def retrieve(self, queries: Sequence[Query], policy: Policy) -> Pool:
        """The whole union of what a policy's arms bring, in fused order."""
        pool = self._funnel(policy).draw(queries).union
        return in_order(pool, self.order().rank(queries, pool))

    def _funnel(self, policy: Policy, ranker: Ranker | None = None) -> Funnel:
        return Funnel({name: self.arm(name) for name in self.drawn}, policy, self.order(), ranker)

    def _retrieved_by(self) -> list[Any]:
        """What retrieval depends on: the arms' builds, the fused order, what queries bring along."""
        identities = [self.indexes.identity(name) for name in self.drawn if self.arm(name)]
        return [*identities, self.orders.identity(), self.settings.data.query_fields]

    @property
    def has_ranker(self) -> bool:
        """Whether the config has a ranker whose model is set."""
        return bool(self._ranker_spec) and not is_absent(self._ranker_spec)

    @property
    def learns(self) -> bool:
        """Whether the config's policy is another than a fixed one with a single cut for all queries."""
        return self._policy_spec["class"] != FIXED

    @cached_property
    def ranker(self) -> Ranker | None:
        """The config's ranker; what it leaves free is fitted on what the funnel draws for the queries of fusion."""
        if not self.has_ranker:
            return None
        policy = self.policy(seed=0)
        exploring, priced = offers(policy, Exploring), offers(policy, Priced)
        funnel = self._funnel(exploring.greedy() if exploring is not None else policy)  # its arms are built and opened
        prices = None if priced is None else [*priced.prices]
        depends = [self.depths, self.settings.policy, prices, *self._retrieved_by()]
        depends += history_digest(self.settings.policy)
        return self.orders.ranker(self._ranker_spec, lambda queries: funnel.draw(queries).pool, depends)
