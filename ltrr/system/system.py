"""From a config to opened arms, tuned weights and a funnel: the composition root of every script and the service.

Knows which parts exist and where their files are kept; knows nothing about how any of them works. Everything built or
tuned is cached under `<cache>/<data set>-<fingerprint>/`, keyed by all that it depends on.

    index/<arm>-<key>/        what the arm's `build` writes (index/manifest.py)
    tuned/<what>-<key>.json   what was fitted (tuning.py)

Legend: Q queries, K candidates.
"""

from __future__ import annotations

import importlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ltrr.config import ConfigError, check_known, construct, find_class, read_settings
from ltrr.data.beir import Corpus, Dataset, open_collection
from ltrr.files import content_key
from ltrr.funnel import Funnel, FusedOrder, no_features
from ltrr.fusion import ConvexFusion, NothingToFit, OnlyArms, ReciprocalRankFusion, union
from ltrr.index.manifest import IndexMissing, IndexRefused
from ltrr.policies.cut import CutPolicy
from ltrr.policies.features import ContextFeatures
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import Arm, Policy, Ranker
from ltrr.system.features import history_digest, open_context
from ltrr.system.policies import open_policy
from ltrr.system.tuning import Judged, Tuning, some, trained_on
from ltrr.types import Pool

LOADERS = {  # constructor's argument -> what makes it from the keys `model` and `encoder` (the other arguments)
    "encoder": "ltrr.encoders.backbone.load_encoder",
    "sparse_encoder": "ltrr.encoders.splade.load_sparse_encoder",
    "scorer": "ltrr.encoders.cross_encoder.load_cross_encoder",
}
_DEPTH = 100  # candidates of each arm on which fusion weights are fitted
_RANKED = 300  # queries on which the ranker's weight is fitted: one number, and every pair of query and document costs


def open_systems(config: Path, overrides: Sequence[str], *, hold_out: str = "test") -> list[System]:
    """The systems of a config, one a data set (several for a collection such as CQADupStack)."""
    settings = read_settings(config, overrides)
    data = settings.get("data") or {}
    if not data.get("path"):
        raise ConfigError(f"config {config}: data.path is not set; give --data FOLDER, ZIP or HUBNAME")
    sets = open_collection(
        data["path"],
        fields=data.get("fields"),
        query_fields=data.get("query_fields") or (),
        qrels=data.get("qrels") or "qrels",
    )
    return [System(settings, dataset, hold_out=hold_out) for dataset in sets]


class System:
    """One data set's arms, fusion and funnel, as a config describes them. Queries of `hold_out` are never tuned on."""

    def __init__(self, settings: Mapping[str, Any], dataset: Dataset, *, hold_out: str = "test"):
        self.dataset = dataset
        self.corpus: Corpus = dataset.corpus
        self.settings = settings
        given = (settings.get("arms") or {}).items()
        self.specs: dict[str, dict[str, Any]] = {name: dict(spec) for name, spec in given if spec is not None}
        if not self.specs:
            raise ConfigError("arms: the config names no arm; see configs/funnel.yaml")
        self._ranker_spec = dict(settings.get("ranker") or {})
        self._parts = {f"arms.{n}": s for n, s in self.specs.items()}
        self._parts |= {"ranker": self._ranker_spec} if self._ranker_spec else {}
        for where, spec in self._parts.items():
            if "class" not in spec:
                raise ConfigError(f"{where}: has no `class`; write `class: ltrr.arms.lexical.Lexical` or your own")
            known = inspect.signature(find_class(where, spec["class"])).parameters
            for key in spec:  # here, because a part that waits for its model is not constructed
                check_known(where, key, {"class", "tune", "model", "encoder", *known})
        tune = (settings.get("tune") or {}).get("splits", ["train", "dev"]) or []
        for split in tune:
            check_known("tune.splits", split, {"train", "dev", "test", *dataset.splits})
        named = (settings.get("fusion") or {}).get("arms") or ()
        if len(set(named)) < len(named):
            raise ConfigError(f"fusion.arms: {', '.join(named)} names an arm twice")
        self.folder = Path(settings.get("cache") or "runs/cache") / f"{dataset.name}-{self.corpus.fingerprint[:12]}"
        self._models: dict[str, Any] = {}  # loader and options -> model, which parts share
        self._opened = cache(self._open)  # name -> opened arm
        self._plan = cache(self._planned)  # name -> class, arguments, folder
        trained = self.trained_on(self._parts)
        self.tuning = Tuning(dataset, self.folder / "tuned", splits=tune, hold_out=hold_out, trained=trained)

    # -- arms

    @property
    def has_fields(self) -> bool:
        """Whether documents have metadata, so that structured search has something to search."""
        return bool(self.corpus.fields)

    def usable(self) -> list[str]:
        """Arms that are there (`model: null` is not) and can say something: those about metadata need some."""
        there = [n for n, s in self.specs.items() if not _is_absent(s)]
        needs = {n: getattr(find_class("arms", self.specs[n]["class"]), "needs_fields", False) for n in there}
        return [n for n in there if self.has_fields or not needs[n]]

    def trained_on(self, parts: Iterable[str]) -> list[str]:
        """Splits of this data set on whose queries the models were trained that these parts ("arms.NAME") name."""
        told = [trained_on(v) for part in parts for v in self._parts[part].values() if isinstance(v, str)]
        learned = [each for one in told if one for each in (one, *one.get("origins", []))]
        return sorted({s for each in learned if each["data"] == self.corpus.fingerprint for s in each["splits"]})

    def build(self, name: str, *, report: Callable[[str], None] = print, rebuild: bool = False) -> None:
        """Builds an arm's index where it is missing or refused."""
        arm, root = self.make(name)
        if not hasattr(arm, "build"):
            return
        try:
            if rebuild:
                raise IndexRefused("asked to rebuild")
            arm.open(self.corpus, root)
            report(f"{name}: up to date in {root}")
        except IndexRefused as problem:
            if not isinstance(problem, IndexMissing):
                report(f"{name}: {problem}")
            start = time.perf_counter()
            arm.build(self.corpus, root)
            report(f"{name}: {len(self.corpus):,} documents in {time.perf_counter() - start:.1f} s, {root}")

    def arm(self, name: str) -> Arm:
        """The opened arm of this name, the same one each time; its index is built where it is missing."""
        return self._opened(name)

    def _open(self, name: str) -> Arm:
        arm, root = self.make(name)
        if not hasattr(arm, "build"):
            return arm
        try:
            return arm.open(self.corpus, root)
        except IndexMissing:
            self.build(name)
            return arm.open(self.corpus, root)

    def _planned(self, name: str) -> tuple[type, dict[str, Any], Path]:
        """An arm's class, its arguments (tuned ones where the config leaves them free) and its index folder."""
        check_known("arms", name, self.specs)
        spec = dict(self.specs[name])
        if _is_absent(spec):
            raise ConfigError(f"arms.{name}.model is null, so there is no such arm; give --arms.{name}.model FOLDER")
        cls = find_class(f"arms.{name}", spec.pop("class"))
        if (tune := spec.pop("tune", True)) not in (True, False, "fusion"):
            raise ConfigError(f"arms.{name}.tune: {tune!r} is none of true, false, fusion (on the queries of fusion)")
        if hasattr(cls, "tune") and tune:
            on_fusion = tune == "fusion" or self.trained_on([f"arms.{name}"])
            spec = self._tuned(name, cls, spec, "fusion" if on_fusion else "arms") | spec
        return cls, spec, self.folder / "index" / f"{name}-{content_key(name, *self._basis(cls, spec), spec)}"

    def _basis(self, cls: type, spec: Mapping[str, Any]) -> tuple:
        """What every cached file of a part depends on beside its arguments.

        A class bumps its `revision` when what it builds or tunes changes, so that older caches are not used, and its
        `content(arguments)` are checksums of what lies behind them.
        """
        content = cls.content(spec) if hasattr(cls, "content") else ()
        revision = getattr(cls, "revision", 1)
        return cls.__module__, cls.__qualname__, revision, sorted(self.corpus.fields.items()), *content

    def make(self, name: str) -> tuple[Any, Path]:
        """An arm that is not opened yet, and its index folder."""
        cls, spec, root = self._plan(name)
        return construct(f"arms.{name}", cls, self._inject(f"arms.{name}", cls, spec)), root

    def identity(self, name: str) -> list[str]:
        """What an opened arm's scores depend on: class, arguments and the build in use (which vouches for a model)."""
        root = self._plan(name)[2]
        current = root / "CURRENT"
        return [root.name, current.read_text() if current.exists() else ""]

    def _inject(self, where: str, cls: type, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Gives a constructor its model (from `model`, `encoder`) or the corpus, where it asks for one."""
        arguments, parameters = dict(spec), inspect.signature(cls).parameters
        for parameter in LOADERS.keys() & parameters.keys():
            options = {"model": arguments.pop("model")} if "model" in arguments else {}
            options |= arguments.pop("encoder", None) or {}
            module, _, name = LOADERS[parameter].rpartition(".")
            loader = getattr(importlib.import_module(module), name)  # torch takes seconds: only for who has a model
            if (key := json.dumps([parameter, options], sort_keys=True, default=str)) not in self._models:
                self._models[key] = construct(f"{where}.encoder", loader, options)
            arguments[parameter] = self._models[key]
        if "corpus" in parameters:
            arguments["corpus"] = self.corpus
        return arguments

    # -- what is tuned, and on which queries

    def _tuned(self, name: str, cls: type, spec: Mapping[str, Any], purpose: str) -> dict[str, Any]:
        judged = self.tuning.judged(purpose)
        if not judged.queries or set(inspect.signature(cls).parameters) <= set(spec):
            return {}

        def fit() -> dict[str, Any]:
            where = f"arms.{name}"
            arm = construct(where, cls, self._inject(where, cls, spec))
            return arm.tune(self.corpus, judged.queries, judged.qrels, given=set(spec))

        return self.tuning.fitted(name, (self._basis(cls, spec), spec, judged.key), fit, judged.name)

    @cached_property
    def fusion_arms(self) -> list[str]:
        """The arms that are fused: those the config names, or all usable ones that read the query and are not added."""
        named = (self.settings.get("fusion") or {}).get("arms")
        for name in named or ():
            check_known("fusion.arms", name, self.specs)
        left_out = () if named else ("popular", "personal", "fresh", *self.added)
        fused = [n for n in (named or self.specs) if n in self.usable() and n not in left_out]
        if not fused:
            raise ConfigError("fusion.arms: no arm is left to fuse; those with `model: null` are not there")
        return fused

    @cached_property
    def added(self) -> dict[str, float]:
        """Arms whose scores are probabilities, such as memory's: added to the fused score with these weights."""
        added = (self.settings.get("fusion") or {}).get("added") or {}
        for name in added:
            check_known("fusion.added", name, self.settings["arms"])
        return {name: weight for name, weight in added.items() if name in self.usable()}

    def order(self, method: str | None = None) -> Ranker:
        """The fused order: `rrf`, or `convex` with the config's weights, fitted ones, or equal ones without queries."""
        fusion = self.settings.get("fusion") or {}
        method = method or fusion.get("method", "convex")
        if method == "rrf":
            return OnlyArms([*self.fusion_arms, *self.added], ReciprocalRankFusion(float(fusion.get("k", 60))))
        if fusion.get("weights"):
            for name in fusion["weights"]:
                check_known("fusion.weights", name, self.specs)
            return ConvexFusion(fusion["weights"], fusion.get("norm") or "minmax", self.added)
        equal = dict.fromkeys(self.fusion_arms, 1 / len(self.fusion_arms))
        if not (judged := self.tuning.judged("fusion")).queries:
            return ConvexFusion(equal, added=self.added)

        def fit() -> dict[str, Any]:
            pool = union({name: self.arm(name).search(judged.queries, _DEPTH) for name in self.fusion_arms})
            try:
                fitted, _ = ConvexFusion.fit(pool, self.grades(judged, pool), self.fusion_arms)
            except NothingToFit:
                return {"weights": equal, "norm": "minmax"}
            return {"weights": fitted.weights, "norm": fitted.norm}

        for name in self.fusion_arms:
            self.arm(name)  # built and opened
        identities = [self.identity(name) for name in self.fusion_arms]
        fitted = self.tuning.fitted("convex", (identities, judged.key), fit, judged.name)
        return ConvexFusion(**fitted, added=self.added)

    def grades(self, judged: Judged, pool: Pool) -> np.ndarray:
        """(Q, K) grades of a pool's candidates; unjudged ones and pads are 0."""
        out = np.zeros(pool.docs.shape)
        for i, query in enumerate(judged.queries):
            for doc, grade in judged.qrels[query.id].items():
                out[i, pool.docs[i] == self.corpus.row(doc)] = max(grade, 0)
        return out

    def tuned(self) -> dict[str, Any]:
        """Everything tuned that is in use: name -> {"on": the queries it comes from, "parameters"}."""
        return dict(sorted(self.tuning.in_use.items()))

    # -- the whole

    def funnel(self, seed: int | None = None) -> Funnel:
        """Arms, the policy, the fused order, and the ranker where the config has one. seed: of what explores."""
        return self._funnel(self._ranker, self._policy(seed=seed))

    def _funnel(self, ranker: Ranker | None, policy: Policy) -> Funnel:
        arms = {name: self.arm(name) for name in self.drawn}
        features = self.context if isinstance(policy, CutPolicy) else no_features
        return Funnel(arms, policy, self.order(), ranker, features)

    @cached_property
    def context(self) -> ContextFeatures:
        """What a learned policy knows before retrieval: the groups of `policy.features`."""
        return open_context((self.settings.get("policy") or {}).get("features") or ("text", "time"), self)

    @property
    def drawn(self) -> list[str]:
        """Arms of the funnel: those that are fused or added, and others that are given a depth."""
        fused = {*self.fusion_arms, *self.added}
        return [name for name in self.usable() if name in fused or self.depths.get(name)]

    def _policy(self, seed: int | None = None, **instead: Any) -> Policy:
        """The learned policy, its price set on the queries of fusion, or a fixed decision; instead: of options."""
        options = {**(self.settings.get("policy") or {}), **instead}
        if options.get("arms_model") and not options.get("model"):
            raise ConfigError("policy.arms_model: needs policy.model, which decides the cut of what the arms bring")
        if not options.get("model"):
            return FixedPolicy(self.drawn, self.depths, self.cut)
        order = self.order()
        fused = vars(order) if isinstance(order, ConvexFusion) else self.settings.get("fusion")
        parts: list[Any] = [self.identity(name) for name in self.drawn if self.arm(name)]
        parts += [fused, (self.settings.get("data") or {}).get("query_fields"), *history_digest(options)]
        draw = (self.tuning, lambda policy, queries: self._funnel(None, policy).draw(queries))
        return open_policy(options, self.drawn, self.depths, self.cut, *draw, parts, self.context, seed)

    @property
    def has_ranker(self) -> bool:
        """Whether the config has a ranker that is there: `model: null` is none."""
        return bool(self._ranker_spec) and not _is_absent(self._ranker_spec)

    @cached_property
    def depths(self) -> dict[str, int]:
        """How many candidates the funnel draws of each arm, 0 = off."""
        given = (self.settings.get("policy") or {}).get("depths")
        for name in (depths := given or dict.fromkeys([*self.fusion_arms, *self.added], _DEPTH)):
            check_known("policy.depths", name, self.specs)
        return {name: depth for name, depth in depths.items() if name in self.usable()}

    @property
    def cut(self) -> int:
        """How many candidates of the union the funnel ranks."""
        return (self.settings.get("policy") or {}).get("cut", 100)

    @cached_property
    def _ranker(self) -> Ranker | None:
        """The config's ranker; what it leaves free is fitted on what the funnel draws for the queries of fusion."""
        if not self.has_ranker:
            return None
        spec = {key: value for key, value in self._ranker_spec.items() if value is not None}
        cls = find_class("ranker", spec.pop("class"))
        arguments = self._inject("ranker", cls, spec)
        if "order" in inspect.signature(cls).parameters:
            arguments["order"] = FusedOrder()
        judged = self.tuning.judged("fusion")
        queries = some([q for q in judged.queries if any(judged.qrels[q.id].values())], _RANKED)
        if hasattr(cls, "tune") and "weight" not in spec and queries:
            policy = self._policy(seed=0, explore=None)
            funnel = self._funnel(None, policy)  # its arms are built and opened

            def fit() -> dict[str, Any]:
                pool = funnel.draw(queries).pool
                return construct("ranker", cls, arguments).tune(queries, pool, judged.qrels)

            priced = policy.price.name if isinstance(policy, CutPolicy) else self.cut
            drawn = [self.depths, priced, self.settings.get("fusion"), *map(self.identity, self.drawn)]
            depends = (self._basis(cls, spec), spec, getattr(arguments.get("scorer"), "id", None), drawn, judged.key)
            on = f"{len(queries)} queries of {judged.name}"
            arguments = arguments | self.tuning.fitted("ranker", depends, fit, on)
        return construct("ranker", cls, arguments)


def _is_absent(spec: Mapping[str, Any]) -> bool:
    """Whether a part waits for its model."""
    return spec.get("model", "") is None
