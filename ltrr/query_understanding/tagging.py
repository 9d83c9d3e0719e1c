"""Content understanding: documents without a field are tagged from their text with weighted values.

Knows texts and the values that other documents have; knows nothing about queries. For every keyword field with a
vocabulary small enough to learn (values of at least MIN_DOCS documents), one logistic regression a value on TF-IDF
(scikit-learn), with thresholds chosen on held-out documents so that a tag is right at least as often as `precision`.
Legend: B documents, V values of a field.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer

from ltrr.data.beir import Corpus, Document, field_values

MIN_DOCS, MAX_VALUES, MAX_TRAIN = 20, 200, 20_000


class _Model(NamedTuple):
    values: list[str]  # V
    weights: np.ndarray  # (D, V)
    bias: np.ndarray  # (V,)
    threshold: float  # probability from which a tag is given
    precision: float  # on held-out documents, at the threshold
    recall: float


class Tagger:
    """Weighted tags for documents that lack a field. Build it with `fit`."""

    def __init__(self, models: dict[str, _Model], idf: TfidfTransformer | None):
        self._models, self._idf = models, idf
        self.num_tagged = 0  # documents that `tag` gave something

    @classmethod
    def none(cls) -> Self:
        """Tags nothing."""
        return cls({}, None)

    @classmethod
    def fit(cls, corpus: Corpus, fields: Sequence[str], *, precision: float = 0.6, seed: int = 0) -> Self:
        """Learns from documents that have the field; only fields that ≥ 1 % of the documents lack.

        A field is left out where no threshold reaches `precision` on a held-out tenth.
        """
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(corpus))[: 4 * MAX_TRAIN])
        sample = [corpus[int(row)] for row in rows]
        models: dict[str, _Model] = {}
        idf = None
        for field in fields:
            own = [dict(field_values(d, field)) for d in sample]
            have = np.array([bool(v) for v in own])
            df = Counter(value for values in own for value in values)
            common = sorted(v for v, n in df.most_common(MAX_VALUES) if n >= MIN_DOCS)
            if have.mean() > 0.99 or len(common) < 2 or len(df) > 20 * len(common):
                continue
            if idf is None:
                idf = TfidfTransformer(sublinear_tf=True).fit(_counts(sample))
            at = np.flatnonzero(have)[:MAX_TRAIN]
            features = idf.transform(_counts([sample[i] for i in at]))
            labels = MultiLabelBinarizer(classes=common).fit_transform([set(own[i]) & set(common) for i in at])
            held = np.arange(len(at)) % 10 == 0
            epochs: dict[str, Any] = {"max_iter": 20, "tol": None}  # exactly 20 epochs; the stubs know no None
            learner = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed, **epochs)
            many: Any = OneVsRestClassifier(learner).fit(features[~held], labels[~held])
            weights = np.stack([e.coef_[0] for e in many.estimators_], 1).astype(np.float32)
            bias = np.array([e.intercept_[0] for e in many.estimators_], np.float32)
            model = _Model(common, weights, bias, 1.0, 0.0, 0.0)
            threshold, right, share = _threshold(_probability(model, features[held]), labels[held] > 0, precision)
            if threshold < 1:
                models[field] = model._replace(threshold=threshold, precision=right, recall=share)
        return cls(models, idf)

    @property
    def quality(self) -> dict[str, dict[str, float]]:
        """Held-out precision and recall of each field's tags."""
        return {f: {"precision": m.precision, "recall": m.recall} for f, m in self._models.items()}

    def tag(self, documents: Sequence[Document]) -> list[dict[tuple[str, str], float]]:
        """(field, value) -> probability, B dicts; a document gets tags only for fields that it lacks."""
        out: list[dict[tuple[str, str], float]] = [{} for _ in documents]
        if self._idf is None:
            return out
        for field, model in self._models.items():
            at = [i for i, d in enumerate(documents) if not field_values(d, field)]
            if at:
                probability = _probability(model, self._idf.transform(_counts([documents[i] for i in at])))
                for line, column in zip(*np.nonzero(probability >= model.threshold), strict=True):
                    out[at[line]][field, model.values[column]] = round(float(probability[line, column]), 3)
        self.num_tagged += sum(bool(tags) for tags in out)
        return out

    def save(self, folder: Path) -> None:
        """tagging.json: what is tagged and how well (the tags themselves are in the index)."""
        (folder / "tagging.json").write_text(json.dumps(self.quality, indent=1), encoding="utf-8")


def _counts(documents: Sequence[Document]):
    options: dict[str, Any] = {"norm": None}  # raw counts; the stubs know no None
    vectorizer = HashingVectorizer(n_features=2**16, alternate_sign=False, stop_words="english", **options)
    return vectorizer.transform([f"{d.title} {d.text}" for d in documents])


def _probability(model: _Model, features) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(features @ model.weights + model.bias, -30, 30)))


def _threshold(probability: np.ndarray, truth: np.ndarray, precision: float) -> tuple[float, float, float]:
    """The lowest threshold of .2, .3, … .9 with that precision, precision and recall there; 1.0 = none."""
    for threshold in np.arange(0.2, 0.95, 0.1):
        given = probability >= threshold
        if given.any() and (right := float(truth[given].mean())) >= precision:
            return float(threshold), right, float(given[truth].mean())
    return 1.0, 0.0, 0.0
