"""From a config to opened arms, tuned weights and a funnel: the composition root of every script and the service.

Knows which parts exist and where their files are kept; knows nothing about how any of them works. Everything built or
tuned is cached under `<cache>/<data set>-<fingerprint>/`, keyed by all that it depends on.

    index/<arm>-<key>/    what the arm's `build` writes (index/manifest.py)
    tuned/<what>-<key>.json

Legend: Q queries, K candidates.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ltrr.config import ConfigError, check_known, check_value, construct, find_class, load_config
from ltrr.core import Arm, Candidates, Pool, Qrels, Query, Ranker
from ltrr.data.beir import Corpus, Dataset, open_collection
from ltrr.funnel import Funnel
from ltrr.fuse import ConvexFusion, NothingToFit, ReciprocalRankFusion, union
from ltrr.index.manifest import IndexMissing, IndexRefused
from ltrr.metrics import whole_file
from ltrr.policy.baselines import FixedPolicy

SCHEMA: dict[str, Any] = {  # what a config may hold; an arm's keys are its constructor's arguments
    "data.path": str | None,
    "data.fields": dict[str, str] | None,
    "data.query_fields": list[str],
    "data.qrels": str,
    "cache": str,
    "arms": dict[str, dict[str, Any]],
    "tune.splits": list[str],
    "fusion.method": Literal["rrf", "convex"],
    "fusion.arms": list[str] | None,
    "fusion.weights": dict[str, float] | None,
    "fusion.norm": Literal["minmax", "zscore"] | None,
    "fusion.k": float,
    "policy.depths": dict[str, int] | None,
    "policy.cut": int,
    "serve.host": str,
    "serve.port": int,
    "serve.max_k": int,
}
KEYS: dict[str, set[str] | None] = {  # section -> its keys, None = anything
    key.split(".")[0]: {k.split(".")[1] for k in SCHEMA if k.startswith(f"{key.split('.')[0]}.")} or None
    for key in SCHEMA
}
_DEPTH = 100  # candidates of each arm on which fusion weights are fitted
_MANY = 300  # dev queries from which dev alone serves for fusion weights


class Judged(NamedTuple):
    """Queries to tune on."""

    queries: list[Query]
    qrels: Qrels
    name: str  # what they are, for reports
    key: str  # hash of all of it, for caches


def open_systems(config: Path, overrides: Sequence[str], *, hold_out: str = "test") -> list[System]:
    """The systems of a config, one a data set (several for a collection such as CQADupStack)."""
    settings = load_config(config, overrides, KEYS)
    for key, hint in SCHEMA.items():
        section, _, name = key.partition(".")
        place = settings if not name else settings.get(section) or {}
        if (name or section) in place:
            place[name or section] = check_value(f"config {config}: {key}", place[name or section], hint)
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
        self.hold_out = hold_out
        self.specs: dict[str, dict[str, Any]] = {n: dict(s or {}) for n, s in (settings.get("arms") or {}).items()}
        if not self.specs:
            raise ConfigError("arms: the config names no arm; see configs/funnel.yaml")
        for name, spec in self.specs.items():
            if "class" not in spec:
                raise ConfigError(f"arms.{name}: has no `class`; write `class: ltrr.arms.lexical.Lexical` or your own")
        for split in (settings.get("tune") or {}).get("splits", ()):
            check_known("tune.splits", split, {"train", "dev", "test", *dataset.splits})
        named = (settings.get("fusion") or {}).get("arms") or ()
        if len(set(named)) < len(named):
            raise ConfigError(f"fusion.arms: {', '.join(named)} names an arm twice")
        fingerprint = self.corpus.fingerprint[:12]
        self.folder = Path(settings.get("cache") or "runs/cache") / f"{dataset.name}-{fingerprint}"
        self.arm = cache(self._open)  # name -> opened arm
        self._plan = cache(self._planned)  # name -> class, arguments, folder
        self.tuning_queries = cache(self._tuning_queries)  # purpose -> Judged
        self._in_use: dict[str, Any] = {}  # what was tuned, as its files say

    # -- arms

    @property
    def has_fields(self) -> bool:
        """Whether documents have metadata, so that structured search has something to search."""
        return bool(self.corpus.fields)

    def usable(self) -> list[str]:
        """Arms that can say something about this corpus: those that need metadata only where there is some."""
        return [n for n, s in self.specs.items() if self.has_fields or not _needs_fields(s["class"])]

    def build(self, name: str, *, report: Callable[[str], None] = print, rebuild: bool = False) -> None:
        """Builds an arm's index where it is missing or refused."""
        arm, root = self._make(name)
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

    def _open(self, name: str) -> Arm:
        arm, root = self._make(name)
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
        cls = find_class(f"arms.{name}", spec.pop("class"))
        if hasattr(cls, "tune") and spec.pop("tune", True):
            spec = self._tuned(name, cls, spec) | spec
        return cls, spec, self.folder / "index" / f"{name}-{_key(name, *self._basis(cls), spec)}"

    def _basis(self, cls: type) -> tuple:
        """What every cached file of an arm depends on beside its arguments.

        A class bumps its `revision` when what it builds or tunes changes, so that older caches are not used.
        """
        return cls.__module__, cls.__qualname__, getattr(cls, "revision", 1), sorted(self.corpus.fields.items())

    def _make(self, name: str) -> tuple[Any, Path]:
        """An arm that is not opened yet, and its index folder."""
        cls, spec, root = self._plan(name)
        where = f"arms.{name}"
        return construct(where, cls, self._inject(where, cls, spec)), root

    def _identity(self, name: str) -> list[str]:
        """What an opened arm's scores depend on: class, arguments and the build in use (which vouches for a model)."""
        root = self._plan(name)[2]
        current = root / "CURRENT"
        return [root.name, current.read_text() if current.exists() else ""]

    def _inject(self, where: str, cls: type, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Gives a constructor the encoder (from `model`, `encoder`) or the corpus, where it asks for one."""
        arguments = dict(spec)
        parameters = inspect.signature(cls).parameters
        if "encoder" in parameters:
            from ltrr.models.backbone import load_encoder  # torch takes seconds to import: only for arms that encode

            options = {"model": arguments.pop("model", "offline"), **(arguments.pop("encoder", None) or {})}
            arguments["encoder"] = construct(f"{where}.encoder", load_encoder, options)  # type: ignore[arg-type]
        if "corpus" in parameters:
            arguments["corpus"] = self.corpus
        return arguments

    # -- what is tuned, and on which queries

    def _tuning_queries(self, purpose: str) -> Judged:
        """Judged queries for "arms" or "fusion", never of the held-out split and never the same for both.

        Arms are tuned on train. Fusion weights are fitted on dev where it has 300 queries, because they would trust an
        arm too much on the queries that it was tuned on; otherwise train is halved, and dev goes to fusion.
        """
        splits = (self.settings.get("tune") or {}).get("splits", ["train", "dev"]) or []
        known = [s for s in splits if s in self.dataset.splits and s != self.hold_out]
        parts = {s: self.dataset.split(s) for s in known}
        dev = parts.get("dev")
        own_dev = dev is not None and len(dev.queries) >= _MANY
        chosen: list[tuple[str, list[Query]]] = []
        for split, part in parts.items():
            if split == "dev":
                if purpose == "fusion":
                    chosen.append(("dev", part.queries))
            elif own_dev:
                if purpose == "arms":
                    chosen.append((split, part.queries))
            else:
                half = [q for q in part.queries if _half(q.text) == (purpose == "fusion")]
                chosen.append((f"half of {split}", half))
        qrels: Qrels = {}
        for split in known:
            qrels |= parts[split].qrels
        queries = [q for _, several in chosen for q in several]
        graded = {q.id: qrels[q.id] for q in queries}
        key = _key(sorted((q.id, q.text, sorted(graded[q.id].items())) for q in queries))
        return Judged(queries, graded, " + ".join(n for n, q in chosen if q) or "nothing", key)

    def _tuned(self, name: str, cls: type, spec: Mapping[str, Any]) -> dict[str, Any]:
        judged = self.tuning_queries("arms")
        if not judged.queries or set(inspect.signature(cls).parameters) <= set(spec):
            return {}

        def fit() -> dict[str, Any]:
            where = f"arms.{name}"
            arm = construct(where, cls, self._inject(where, cls, spec))
            return arm.tune(self.corpus, judged.queries, judged.qrels, given=set(spec))

        return self._cached(name, (self._basis(cls), spec, judged.key), fit, judged.name)

    @cached_property
    def fusion_arms(self) -> list[str]:
        """The arms that are fused: those the config names, or all usable ones but popular."""
        named = (self.settings.get("fusion") or {}).get("arms")
        for name in named or ():
            check_known("fusion.arms", name, self.specs)
        return [n for n in (named or self.specs) if n in self.usable() and (named or n != "popular")]

    def order(self, method: str | None = None) -> Ranker:
        """The fused order: `rrf`, or `convex` with the config's weights, fitted ones, or equal ones without queries."""
        fusion = self.settings.get("fusion") or {}
        method = method or fusion.get("method", "convex")
        if method == "rrf":
            return _Only(self.fusion_arms, ReciprocalRankFusion(float(fusion.get("k", 60))))
        if fusion.get("weights"):
            for name in fusion["weights"]:
                check_known("fusion.weights", name, self.specs)
            return ConvexFusion(fusion["weights"], fusion.get("norm") or "minmax")
        judged = self.tuning_queries("fusion")
        if not judged.queries:
            return ConvexFusion(dict.fromkeys(self.fusion_arms, 1 / len(self.fusion_arms)))

        def fit() -> dict[str, Any]:
            pool = union({name: self.arm(name).search(judged.queries, _DEPTH) for name in self.fusion_arms})
            try:
                fitted, _ = ConvexFusion.fit(pool, self.grades(judged, pool), self.fusion_arms)
            except NothingToFit:
                return {"weights": dict.fromkeys(self.fusion_arms, 1 / len(self.fusion_arms)), "norm": "minmax"}
            return {"weights": fitted.weights, "norm": fitted.norm}

        for name in self.fusion_arms:
            self.arm(name)  # built and opened
        identities = [self._identity(name) for name in self.fusion_arms]
        found = self._cached("convex", (identities, judged.key), fit, judged.name)
        return ConvexFusion(found["weights"], found["norm"])

    def grades(self, judged: Judged, pool: Pool) -> np.ndarray:
        """(Q, K) grades of a pool's candidates; unjudged ones and pads are 0."""
        out = np.zeros(pool.docs.shape)
        for i, query in enumerate(judged.queries):
            positive = {self.corpus.row(doc): grade for doc, grade in judged.qrels[query.id].items() if grade > 0}
            for row, grade in positive.items():
                out[i, pool.docs[i] == row] = grade
        return out

    def tuned(self) -> dict[str, Any]:
        """Everything tuned that is in use: name -> {"on": the queries it comes from, "parameters"}."""
        return dict(sorted(self._in_use.items()))

    def _cached(self, name: str, depends: tuple, fit: Callable[[], dict[str, Any]], queries: str) -> dict[str, Any]:
        path = self.folder / "tuned" / f"{name}-{_key(self.corpus.fingerprint, depends)}.json"
        if not path.exists():
            text = json.dumps({"on": queries, "parameters": fit()}, indent=1)
            with whole_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        try:
            self._in_use[name] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: damaged ({error}); delete it, and it is fitted again") from None
        return self._in_use[name]["parameters"]

    # -- the whole

    def funnel(self) -> Funnel:
        """Arms and a fixed decision; the fused order is the ranking."""
        policy = self.settings.get("policy") or {}
        names = self.usable()
        depths = policy.get("depths") or dict.fromkeys(self.fusion_arms, _DEPTH)
        for name in depths:
            check_known("policy.depths", name, self.specs)
        on = {name: depth for name, depth in depths.items() if name in names}
        return Funnel({n: self.arm(n) for n in names}, FixedPolicy(names, on, policy.get("cut", 100)), self.order())


class _Only:
    """A Ranker that looks at some arms only; what none of them returned comes last."""

    def __init__(self, arms: Sequence[str], ranker: Ranker):
        self._arms, self._ranker = arms, ranker

    def rank(self, queries: Sequence[Query], pool: Pool) -> Candidates:
        keep = [pool.arms.index(arm) for arm in self._arms]
        names = tuple(self._arms)
        return self._ranker.rank(queries, Pool(names, pool.docs, pool.ranks[:, :, keep], pool.scores[:, :, keep]))


def _needs_fields(path: str) -> bool:
    return bool(getattr(find_class("arms", path), "needs_fields", False))


def _half(text: str) -> bool:
    """A coin by the text, so that equal texts fall on the same side."""
    return hashlib.sha256(text.strip().lower().encode()).digest()[0] % 2 == 1


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]
