"""From a config's section to an object: what a constructor asks for and a config does not hold is given here.

Knows signatures and loaders of models; does not know what parts do. A section is `{class: package.module.Class,
argument: value, …}`; an argument that is itself such a section is made first.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from ltrr.config import ConfigError, check_known, construct, find_class
from ltrr.data.beir import Corpus

LOADERS = {  # constructor's argument -> what makes it from the keys `model` and `encoder` (the other arguments)
    "encoder": "ltrr.encoders.backbone.load_encoder",
    "sparse_encoder": "ltrr.encoders.splade.load_sparse_encoder",
    "scorer": "ltrr.encoders.cross_encoder.load_cross_encoder",
    "learner": "ltrr.learners.exports.load_learner",
}


def class_of(where: str, spec: Mapping[str, Any]) -> type:
    """The class that a section names; ConfigError where it names none, or an argument that the class does not have."""
    if "class" not in spec:
        raise ConfigError(f"{where}: has no `class`; write `class: ltrr.arms.lexical.Lexical` or your own")
    cls = find_class(where, spec["class"])
    known = inspect.signature(cls).parameters
    for key in spec:  # here, because a part that waits for its model is not constructed
        check_known(where, key, {"class", "tune", "model", "encoder", *known})
    return cls


def is_absent(spec: Mapping[str, Any]) -> bool:
    """Whether a part waits for its model: `model: null`."""
    return spec.get("model", "") is None


class Parts:
    """Makes parts of one corpus, or parts that need none (None); parts that name the same model share it."""

    def __init__(self, corpus: Corpus | None) -> None:
        self._corpus = corpus
        self._models: dict[str, Any] = {}  # loader and options -> model

    def arguments(self, where: str, cls: type, spec: Mapping[str, Any], **given: Any) -> dict[str, Any]:
        """A section's arguments with models, the corpus and `given` values, where the constructor asks for them."""
        parameters = inspect.signature(cls).parameters
        sections = {name: value for name, value in spec.items() if isinstance(value, Mapping) and "class" in value}
        parts = {name: self.make(f"{where}.{name}", section, **given) for name, section in sections.items()}
        arguments = {**spec, **parts}
        for parameter in LOADERS.keys() & (parameters.keys() - parts.keys()):
            if parameter in arguments and arguments[parameter] is None and "model" not in arguments:
                continue  # `encoder: null`: it goes without
            options = {"model": arguments.pop("model")} if "model" in arguments else {}
            options |= arguments.pop("encoder", None) or {}
            if options or parameter != "learner":
                arguments[parameter] = self.load(where, parameter, options)
        corpus = {} if self._corpus is None else {"corpus": self._corpus}
        for name, value in {**corpus, **given}.items():
            if name in parameters:
                arguments.setdefault(name, value)
        return arguments

    def make(self, where: str, spec: Mapping[str, Any], **given: Any) -> Any:
        """The object that a section describes."""
        cls = class_of(where, spec)
        arguments = {name: value for name, value in spec.items() if name not in ("class", "tune")}
        return construct(where, cls, self.arguments(where, cls, arguments, **given))

    def load(self, where: str, parameter: str, options: Mapping[str, Any]) -> Any:
        """The model for a constructor's argument, one of LOADERS; options are the loader's arguments."""
        key = json.dumps([parameter, options], sort_keys=True, default=str)
        if key not in self._models:
            module, _, name = LOADERS[parameter].rpartition(".")
            loader = getattr(importlib.import_module(module), name)  # torch takes seconds: only where there is a model
            self._models[key] = construct(f"{where}.encoder", loader, options)
        return self._models[key]
