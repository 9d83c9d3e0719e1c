"""What a policy knows before retrieval: the groups of features that a config names, with what they need.

Knows where parsers, statistics, encoders and customers are to be found; knows nothing about how features are computed
from them (policies/features.py). No judgement is looked at. Legend: Q queries, A arms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ltrr.config import ConfigError, check_known, find_class
from ltrr.data.beir import Corpus, Dataset, field_values
from ltrr.feedback.events import normalised
from ltrr.index import manifest
from ltrr.policies import features
from ltrr.policies.history import History
from ltrr.query_understanding.fields import number_column, year_like, years
from ltrr.query_understanding.vocabulary import Vocabulary, normalise

HISTORY = "history.npz"  # beside policy.model
_FEW, _COMMON = 64, 16  # values of a field that says what kind something is; how many of them have a column
_CACHED = 100_000  # documents whose kinds are kept at hand


class Arms(Protocol):
    """Opened arms of one data set, as far as features need them."""

    dataset: Dataset
    corpus: Corpus
    folder: Path
    specs: dict[str, dict[str, Any]]
    settings: Mapping[str, Any]

    @property
    def drawn(self) -> list[str]: ...

    def usable(self) -> list[str]: ...

    def arm(self, name: str) -> Any: ...


def open_context(names: Sequence[str], system: Arms) -> features.ContextFeatures:
    """The groups of these names, in their order.

    `history` is that of history.npz beside `policy.model`; without that file nothing is known. Errors: ConfigError for
    an unknown name, and for a group whose arm the config does not have.
    """
    vocabulary = cache(partial(_vocabulary, system))
    groups = {
        "text": lambda: features.TEXT,
        "time": lambda: features.TIME,
        "locale": lambda: features.locale_features(
            sorted({query.context.locale or "" for query in system.dataset.queries} - {""})
        ),
        "idf": lambda: _idf(vocabulary()),
        "understanding": lambda: _understanding(vocabulary()),
        "embedding": lambda: features.embedding_features(_arm(system, "dense", "embedding").embed),
        "customer": lambda: _customer(system, vocabulary()),
        "history": lambda: open_history(system, system.drawn, history_file(system.settings.get("policy"))).group,
    }
    for name in names:
        check_known("policy.features", name, groups)
    return features.ContextFeatures([groups[name]() for name in names])


def open_history(system: Arms, arms: Sequence[str], path: Path | None = None) -> History:
    """What a file knows of these arms (None: nothing); queries are alike where the config's dense arm says so."""
    kinds = {name: getattr(find_class("arms", system.specs[name]["class"]), "source_kind", name) for name in arms}
    history = History(kinds, normalised, _arm(system, "dense", "history").embed)
    if path:
        history.load(path)
    return history


def history_file(options: Mapping[str, Any] | None) -> Path | None:
    """What a policy of these options reads; None where its features have no history, or nobody wrote one yet."""
    model, names = (options or {}).get("model"), (options or {}).get("features") or ()
    path = Path(model or "") / HISTORY
    return path if model and "history" in names and path.is_file() else None


def history_digest(options: Mapping[str, Any] | None) -> list[str]:
    """What the context depends on beside arms and config: none, or the checksum of `history_file`."""
    path = history_file(options)
    return [hashlib.sha256(path.read_bytes()).hexdigest()] if path else []


def _arm(system: Arms, kind: str, group: str) -> Any:
    """The first arm of a kind."""
    for name in system.usable():
        if getattr(find_class("arms", system.specs[name]["class"]), "source_kind", "") == kind:
            return system.arm(name)
    raise ConfigError(f"policy.features: {group!r} needs a {kind} arm; add one to `arms`, or leave {group!r} out")


def _vocabulary(system: Arms) -> Vocabulary:
    """The corpus's words and values, of all its fields, whatever the arms are."""
    corpus, root = system.corpus, system.folder / "index" / "vocabulary"

    def write(folder: Path) -> dict[str, int]:
        keywords = [f for f, kind in corpus.fields.items() if kind == "keyword"]
        numbers = {f: number_column(corpus, f) for f in corpus.fields if year_like(corpus, f)}
        numbers |= {f: years(number_column(corpus, f)) for f, kind in corpus.fields.items() if kind == "date"}
        documents = ((d.title, d.text, {f: [v for v, _ in field_values(d, f)] for f in keywords}) for d in corpus)
        Vocabulary.fit(documents, numbers).save(folder)
        return {"documents": len(corpus)}

    basis: Any = {"kind": "vocabulary", "corpus": corpus.fingerprint, "config": dict(corpus.fields)}
    try:
        folder, _ = manifest.open_index(root, **basis)
    except manifest.IndexRefused:
        manifest.build(root, model=None, write=write, **basis)
        folder, _ = manifest.open_index(root, **basis)
    return Vocabulary.load(folder)


def _kinds(vocabulary: Vocabulary) -> dict[int, str]:
    """Value id -> "field=value", the most common of each field that has few values, such as types and genres."""
    out = {}
    for number, field in enumerate(vocabulary.fields):
        own = np.flatnonzero(vocabulary.owner == number)
        common = own[np.argsort(-vocabulary.df[own], kind="stable")][:_COMMON]
        out |= {v: f"{field}={vocabulary.values[v]}" for v in common.tolist() if 1 < len(own) <= _FEW}
    return out


def _idf(vocabulary: Vocabulary) -> features.Group:
    idf = dict(zip(vocabulary.words, vocabulary.idf.tolist(), strict=True))
    return features.idf_features(lambda text: np.array([idf.get(word, np.nan) for word in normalise(text)]))


def _understanding(vocabulary: Vocabulary) -> features.Group:
    kinds = _kinds(vocabulary)

    def parse(text: str) -> list[tuple[float, set[str]]]:
        out = []
        for one in vocabulary.interpret(text):
            fields = {field for reading in one.readings for field in reading.field.split("|")}
            out.append((one.likelihood, fields | {kinds[t] for r in one.readings for t in r.tags if t in kinds}))
        return out

    return features.understanding_features(parse, [*vocabulary.fields, *vocabulary.ranges, *kinds.values()])


def _customer(system: Arms, vocabulary: Vocabulary) -> features.Group:
    arm, kinds, ids = _arm(system, "personal", "customer"), _kinds(vocabulary), vocabulary.tags()
    at, fields = {v: i for i, v in enumerate(kinds)}, sorted({kind.partition("=")[0] for kind in kinds.values()})

    @lru_cache(_CACHED)
    def of(row: int) -> np.ndarray:
        document = system.corpus[row]
        values = {ids[field, value] for field in fields for value, _ in field_values(document, field)}
        return np.array([v in values for v in at], np.float32)

    def shares(customer: str) -> Sequence[float]:
        rows, weights = arm.profile(customer)
        total = np.maximum(weights, 0.0).sum()
        if not total:
            return [np.nan] * (1 + len(kinds))
        return [np.log1p(total), *(np.maximum(weights, 0.0) @ np.stack([of(row) for row in rows.tolist()]) / total)]

    return features.customer_features(shares, list(kinds.values()))
