"""Features before retrieval: the groups that a config names, with the parser, statistics or encoder that each needs.

Knows which arm provides what; does not know how features are computed from it (policies/features.py) or who reads
them. No judgement is looked at. Legend: Q queries, A arms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ltrr.config import ConfigError, check_known
from ltrr.data.beir import Corpus, Dataset, field_values
from ltrr.feedback.events import normalised
from ltrr.index import manifest
from ltrr.policies import features
from ltrr.policies.history import History
from ltrr.protocols import Embedding, Profiled
from ltrr.query_understanding.fields import number_column, year_like, years
from ltrr.query_understanding.vocabulary import Vocabulary, normalise
from ltrr.system.indexes import Indexes

HISTORY = "history.npz"  # beside policy.model
_FEW, _COMMON = 64, 16  # values of a field that says what kind something is; how many of them have a column
_CACHED = 100_000  # documents whose kinds are kept at hand


class Features:
    """Makes the features that policies of one data set name.

    Args:
        indexes: the arms that parse, embed or know customers.
        dataset: whose queries say which locales there are.
        arms: of the funnel, in its order.
    """

    def __init__(self, indexes: Indexes, dataset: Dataset, arms: Sequence[str]) -> None:
        self._indexes, self._dataset, self._arms = indexes, dataset, arms
        self._vocabulary = cache(partial(_vocabulary, indexes))

    def open(self, names: Sequence[str], history: Path | None = None) -> features.ContextFeatures:
        """The groups of these names, in their order.

        history: file of the group `history` (`history_file`); without it nothing is known. Errors: ConfigError for an
        unknown name, and for a group whose arm the config does not have.
        """
        locales = {query.context.locale or "" for query in self._dataset.queries} - {""}
        groups: dict[str, Callable[[], features.Group]] = {
            "text": lambda: features.TEXT,
            "time": lambda: features.TIME,
            "locale": lambda: features.locale_features(sorted(locales)),
            "idf": lambda: _idf(self._vocabulary()),
            "understanding": lambda: _understanding(self._vocabulary()),
            "embedding": lambda: features.embedding_features(self._embedding("embedding").embed),
            "customer": lambda: self._customer(),
            "history": lambda: self.history(self._arms, history).group,
        }
        for name in names:
            check_known("policy.features", name, groups)
        return features.ContextFeatures([groups[name]() for name in names])

    def history(self, arms: Sequence[str], path: Path | None = None) -> History:
        """What a file knows of these arms (None: nothing); queries are alike where the config's dense arm says so."""
        kinds = {name: self._indexes.kind(name) for name in arms}
        history = History(kinds, normalised, self._embedding("history").embed)
        if path:
            history.load(path)
        return history

    def _arm(self, kind: str, group: str) -> Any:
        """The first arm of a kind."""
        for name in self._indexes.usable():
            if self._indexes.kind(name) == kind:
                return self._indexes.arm(name)
        raise ConfigError(f"policy.features: {group!r} needs a {kind} arm; add one to `arms`, or leave {group!r} out")

    def _embedding(self, group: str) -> Embedding:
        return self._arm("dense", group)

    def _customer(self) -> features.Group:
        arm: Profiled = self._arm("personal", "customer")
        return _customer(self._indexes.corpus, arm, self._vocabulary())


def history_file(section: Mapping[str, Any]) -> Path | None:
    """What a policy of this section reads; None where its features have no history, or nobody wrote one yet."""
    model, names = section.get("model"), section.get("features") or ()
    path = Path(model or "") / HISTORY
    return path if model and "history" in names and path.is_file() else None


def history_digest(section: Mapping[str, Any]) -> list[str]:
    """What features depend on beside arms and names: none, or the checksum of `history_file`."""
    path = history_file(section)
    return [hashlib.sha256(path.read_bytes()).hexdigest()] if path else []


def _vocabulary(indexes: Indexes) -> Vocabulary:
    """The corpus's words and values, of all its fields, whatever the arms are."""
    corpus, root = indexes.corpus, indexes.folder / "index" / "vocabulary"

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


def _customer(corpus: Corpus, arm: Profiled, vocabulary: Vocabulary) -> features.Group:
    kinds, ids = _kinds(vocabulary), vocabulary.tags()
    at, fields = {v: i for i, v in enumerate(kinds)}, sorted({kind.partition("=")[0] for kind in kinds.values()})

    @lru_cache(_CACHED)
    def of(row: int) -> np.ndarray:
        document = corpus[row]
        values = {ids[field, value] for field in fields for value, _ in field_values(document, field)}
        return np.array([v in values for v in at], np.float32)

    def shares(customer: str) -> Sequence[float]:
        rows, weights = arm.profile(customer)
        total = np.maximum(weights, 0.0).sum()
        if not total:
            return [np.nan] * (1 + len(kinds))
        return [np.log1p(total), *(np.maximum(weights, 0.0) @ np.stack([of(row) for row in rows.tolist()]) / total)]

    return features.customer_features(shares, list(kinds.values()))
