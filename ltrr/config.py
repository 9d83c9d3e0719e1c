"""YAML and dotted overrides -> checked settings; a class path and arguments -> an object.

Knows keys, types and signatures; does not know what is built. One YAML holds one experiment: nothing is inherited.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

RENAMED = {  # a module, class or function of version 0.1 -> its path today; kept for one version
    "ltrr.arms.fields": "ltrr.query_understanding.fields",
    "ltrr.arms.tagging": "ltrr.query_understanding.tagging",
    "ltrr.arms.understanding": "ltrr.query_understanding.vocabulary",
    "ltrr.core": "ltrr.types",
    "ltrr.data.catalogue": "ltrr.data.synthetic_music.catalogue",
    "ltrr.data.catalogue_customers": "ltrr.data.synthetic_music.customers",
    "ltrr.data.catalogue_names": "ltrr.data.synthetic_music.names",
    "ltrr.data.catalogue_queries": "ltrr.data.synthetic_music.queries",
    "ltrr.data.catalogue_truth": "ltrr.data.synthetic_music.truth",
    "ltrr.data.catalogue_world": "ltrr.data.synthetic_music.world",
    "ltrr.data.rounds": "ltrr.learners.rounds_data",
    "ltrr.evaluate.beir": "ltrr.evaluation.experiment",
    "ltrr.evaluate.nearest": "ltrr.evaluation.nearest",
    "ltrr.evaluate.regret": "ltrr.evaluation.regret",
    "ltrr.evaluate.report": "ltrr.evaluation.report",
    "ltrr.feedback.simulate": "ltrr.simulation.customers",
    "ltrr.fuse": "ltrr.fusion",
    "ltrr.models.arms": "ltrr.learners.arm_loss",
    "ltrr.models.arms.ArmsModule": "ltrr.learners.arm_loss.ArmLossLearner",
    "ltrr.models.backbone": "ltrr.encoders.backbone",
    "ltrr.models.bandit": "ltrr.learners.relevance",
    "ltrr.models.bandit.BanditModule": "ltrr.learners.relevance.RelevanceLearner",
    "ltrr.models.clicked": "ltrr.learners.rounds_module",
    "ltrr.models.clicked.ClickedModule": "ltrr.learners.rounds_module.RoundsModule",
    "ltrr.models.cross_encoder": "ltrr.encoders.cross_encoder",
    "ltrr.models.dense": "ltrr.encoders.bi_encoder",
    "ltrr.models.depth_network": "ltrr.learners.relevance_network",
    "ltrr.models.depth_network.DepthNetwork": "ltrr.learners.relevance_network.RelevanceNetwork",
    "ltrr.models.doc2query": "ltrr.encoders.doc2query",
    "ltrr.models.fusion": "ltrr.learners.fusion_weights",
    "ltrr.models.fusion.FusionModule": "ltrr.learners.fusion_weights.FusionWeightsLearner",
    "ltrr.models.generator": "ltrr.encoders.generator",
    "ltrr.models.losses": "ltrr.encoders.losses",
    "ltrr.models.sparse_head": "ltrr.encoders.sparse_head",
    "ltrr.models.sparse_network": "ltrr.encoders.sparse_network",
    "ltrr.models.splade": "ltrr.encoders.splade",
    "ltrr.models.training": "ltrr.encoders.training",
    "ltrr.policy.actions": "ltrr.policies.table",
    "ltrr.policy.actions.Price": "ltrr.policies.price.Price",
    "ltrr.policy.arms": "ltrr.policies.arms",
    "ltrr.policy.baselines": "ltrr.policies.fixed",
    "ltrr.policy.depth": "ltrr.policies.cut",
    "ltrr.policy.depth.DepthPolicy": "ltrr.policies.cut.CutPolicy",
    "ltrr.policy.explore": "ltrr.policies.explorers",
    "ltrr.policy.features": "ltrr.policies.features",
    "ltrr.policy.features.Known": "ltrr.types.RetrievalFeatures",
    "ltrr.policy.history": "ltrr.policies.history",
    "ltrr.policy.linear": "ltrr.learners.linear",
    "ltrr.policy.ope": "ltrr.evaluation.estimate",
    "ltrr.policy.peers": "ltrr.learners.linucb",
    "ltrr.policy.peers.SupervisedRouter": "ltrr.learners.router.SupervisedRouter",
    "ltrr.ranking.ranker": "ltrr.rankers.cross_encoder",
}
# Constructor arguments that the system gives, where a config does not.
INJECTED = (
    "encoder",
    "sparse_encoder",
    "scorer",
    "corpus",
    "order",
    "learner",
    "features",
    "before",
    "explore",
    "evidence",
    "looks",
)


class ConfigError(ValueError):
    """The message names the file and key, and what would be right."""


def load_config(path: Path, overrides: Sequence[str], known: Mapping[str, set[str] | None]) -> dict[str, Any]:
    """Reads a YAML file and applies `--a.b.c value` pairs (values are YAML).

    `known` maps top-level keys to the keys that stand below (None = anything). ConfigError names an unknown key with
    the nearest known one.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"config {path}: no such file; the ones that come with ltrr are in configs/") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path}: not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"config {path}: must be a mapping of {', '.join(known)}")
    if len(overrides) % 2 or any(not key.startswith("--") for key in overrides[::2]):
        raise ConfigError(f"overrides come in pairs `--key.key value`, got: {' '.join(overrides)}")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        parts, place = key[2:].split("."), config
        for part in parts[:-1]:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
            if not isinstance(place, dict):
                raise ConfigError(f"{key}: {part!r} holds a value, nothing can be set below it")
        try:
            place[parts[-1]] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"{key}: {value!r} is not YAML") from None
    check_keys(config, known, f"config {path}")
    return config


def check_keys(config: Mapping[str, Any], known: Mapping[str, set[str] | None], where: str) -> None:
    """ConfigError for an unknown key of a config or of one of its sections."""
    for top, below in config.items():
        check_known(where, top, known)
        if (names := known[top]) is not None:
            if not isinstance(below, Mapping | None):
                raise ConfigError(f"{where}: {top} is {below!r}, must be a mapping of {', '.join(sorted(names))}")
            for name in below or ():
                check_known(f"{where}: {top}", name, names)


def check_known(where: str, name: str, known: Sequence[str] | Mapping | set[str]) -> None:
    """ConfigError where `name` is not one of `known`, with the nearest one."""
    if name not in known:
        near = difflib.get_close_matches(str(name), [str(k) for k in known], 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"{where}: unknown key {name!r}{hint} Known: {', '.join(sorted(map(str, known)))}")


def check_value(where: str, value: Any, hint: Any) -> Any:
    """The value as the type asks for it; ConfigError names the key and what is wrong with it."""
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        below = "".join(f".{part}" for part in first["loc"] if isinstance(part, str) and part in str(value))
        raise ConfigError(f"{where}{below}: {first['msg']}, got {str(value)[:200]!r}") from None


def current_path(path: str) -> str:
    """Translates a `package.module.Class` of version 0.1 to its path today, with a DeprecationWarning; others stay."""
    module, _, name = path.rpartition(".")
    current = RENAMED.get(path) or (f"{RENAMED[module]}.{name}" if module in RENAMED else path)
    if current != path:
        warnings.warn(f"{path} has moved: write {current}", DeprecationWarning, stacklevel=2)
    return current


def find_class(where: str, path: str) -> type:
    """The class at `package.module.Class`, which may be its path of version 0.1."""
    path = current_path(path)
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
        if not inspect.isclass(cls):
            raise AttributeError(f"{name} is no class")
        return cls
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}.class: cannot import {path!r} ({error}); write package.module.Class") from None


def construct(where: str, cls: type, arguments: Mapping[str, Any]) -> Any:
    """cls(**arguments); the signature is the schema, ConfigError names an argument that it does not have or lacks."""
    parameters = inspect.signature(cls).parameters
    hints = get_type_hints(cls.__init__ if inspect.isclass(cls) else cls)
    checked = dict(arguments)
    for name, value in arguments.items():
        check_known(where, name, parameters)
        if name in hints and name not in INJECTED:
            checked[name] = check_value(f"{where}.{name}", value, hints[name])
    try:
        return cls(**checked)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


# -- what a config of the funnel may hold


class _Section(BaseModel):
    """Keys and types of one section; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """The data set."""

    path: str | None = None  # BEIR folder, zip or hub name
    fields: dict[str, Literal["text", "keyword", "number", "date"]] | None = (
        None  # metadata field -> kind; null = inferred
    )
    query_fields: list[str] = []  # query metadata that may become context
    qrels: str = "qrels"  # folder of the judgements


class TuneSection(_Section):
    """Queries on which the config's free parameters are fitted."""

    splits: list[str] | None = ["train", "dev"]


class FusionSection(_Section):
    """The fused order."""

    method: Literal["rrf", "convex"] = "convex"
    arms: list[str] | None = None  # null = all that read the query
    weights: dict[str, float] | None = None  # null = fitted; memory's 1, as its scores are probabilities
    norm: Literal["minmax", "zscore"] | None = None
    k: float = 60.0  # of rrf


class ServeSection(_Section):
    """The service."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_k: int = 100  # candidates of a page, at most
    events: str | None = None  # URL of the event store; null = nothing is kept
    keep_days: float | None = None  # after which events are removed; null = never
    snapshot_s: float = 600.0  # seconds between snapshots of what was learned


class StreamSection(_Section):
    """What `simulate --stream` compares."""

    systems: dict[str, dict[str, Any] | None] = {}  # name -> class and arguments of a policy


class Settings(_Section):
    """A config of the funnel: arms, policy and ranker are classes and their constructors' arguments."""

    data: DataSection = DataSection()
    cache: str = "runs/cache"
    arms: dict[str, dict[str, Any] | None] = {}  # null = there is no such arm
    tune: TuneSection = TuneSection()
    fusion: FusionSection = FusionSection()
    policy: dict[str, Any] = {}
    ranker: dict[str, Any] | None = None
    serve: ServeSection = ServeSection()
    stream: StreamSection = StreamSection()

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str = "settings") -> Self:
        """Checked settings; ConfigError names an unknown key with the nearest known one, or a value of a wrong type."""
        check_keys(settings, KEYS, where)
        given = {key: value for key, value in settings.items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            loc = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{where}: {loc}: {first['msg']}, got {str(first['input'])[:200]!r}") from None


KEYS: dict[str, set[str] | None] = {  # section -> its keys, None = anything
    name: set(field.default.__class__.model_fields) if isinstance(field.default, _Section) else None
    for name, field in Settings.model_fields.items()
}


def read_settings(config: Path, overrides: Sequence[str]) -> Settings:
    """A config with overrides; ConfigError names the key that is unknown or of a wrong type."""
    return Settings.of(load_config(config, overrides, KEYS), f"config {config}")
