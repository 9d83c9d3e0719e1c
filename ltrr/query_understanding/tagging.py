"""Content understanding: predicts a keyword field's values from the text of documents that lack the field.

Knows texts and the values of other documents; knows nothing about queries. Each frequent value (at least MIN_DOCS
documents) of a field gets a logistic regression on TF-IDF (scikit-learn); fields with too many rare values are skipped.
Held-out documents choose a threshold per field, so that tags reach the required precision.
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
    threshold: float  # least probability of a tag
    precision: float  # on held-out documents, at the threshold
    recall: float


class Tagger:
    """Tags documents that lack a field with weighted values. Build it with `fit`."""

    def __init__(self, models: dict[str, _Model], idf: TfidfTransformer | None):
        self._models, self._idf = models, idf
        self.num_tagged = 0  # documents to which `tag` added a tag so far

    @classmethod
    def none(cls) -> Self:
        """Makes a tagger that tags nothing."""
        return cls({}, None)

    @classmethod
    def fit(cls, corpus: Corpus, fields: Sequence[str], *, precision: float = 0.6, seed: int = 0) -> Self:
        """Learns from the documents that have a field, for fields that at least 1 % of the documents lack.

        Skips a field if no threshold reaches `precision` on a held-out tenth of its documents.
        """
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(corpus))[: 4 * MAX_TRAIN])
        sample = [corpus[int(row)] for row in rows]
        models: dict[str, _Model] = {}
        idf = None
        for field in fields:
            tags = [dict(field_values(d, field)) for d in sample]
            has_field = np.array([bool(v) for v in tags])
            df = Counter(value for values in tags for value in values)
            common = sorted(v for v, n in df.most_common(MAX_VALUES) if n >= MIN_DOCS)
            if has_field.mean() > 0.99 or len(common) < 2 or len(df) > 20 * len(common):
                continue
            if idf is None:
                idf = TfidfTransformer(sublinear_tf=True).fit(_counts(sample))
            tagged = np.flatnonzero(has_field)[:MAX_TRAIN]
            features = idf.transform(_counts([sample[i] for i in tagged]))
            labels = MultiLabelBinarizer(classes=common).fit_transform([set(tags[i]) & set(common) for i in tagged])
            heldout = np.arange(len(tagged)) % 10 == 0
            epochs: dict[str, Any] = {"max_iter": 20, "tol": None}  # exactly 20 epochs; the type stubs lack None
            learner = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=seed, **epochs)
            classifiers: Any = OneVsRestClassifier(learner).fit(features[~heldout], labels[~heldout])
            weights = np.stack([e.coef_[0] for e in classifiers.estimators_], 1).astype(np.float32)
            bias = np.array([e.intercept_[0] for e in classifiers.estimators_], np.float32)
            model = _Model(common, weights, bias, 1.0, 0.0, 0.0)
            predicted = _probability(model, features[heldout])
            threshold, achieved, recall = _threshold(predicted, labels[heldout] > 0, precision)
            if threshold < 1:
                models[field] = model._replace(threshold=threshold, precision=achieved, recall=recall)
        return cls(models, idf)

    @property
    def quality(self) -> dict[str, dict[str, float]]:
        """Precision and recall of each field's tags on held-out documents."""
        return {f: {"precision": m.precision, "recall": m.recall} for f, m in self._models.items()}

    def tag(self, documents: Sequence[Document]) -> list[dict[tuple[str, str], float]]:
        """Predicts tags of B documents, for the fields that each lacks: B dicts (field, value) -> probability."""
        out: list[dict[tuple[str, str], float]] = [{} for _ in documents]
        if self._idf is None:
            return out
        for field, model in self._models.items():
            missing = [i for i, d in enumerate(documents) if not field_values(d, field)]
            if missing:
                probability = _probability(model, self._idf.transform(_counts([documents[i] for i in missing])))
                for place, column in zip(*np.nonzero(probability >= model.threshold), strict=True):
                    out[missing[place]][field, model.values[column]] = round(float(probability[place, column]), 3)
        self.num_tagged += sum(bool(tags) for tags in out)
        return out

    def save(self, folder: Path) -> None:
        """Writes tagging.json: the tagged fields, with precision and recall (the tags themselves are in the index)."""
        (folder / "tagging.json").write_text(json.dumps(self.quality, indent=1), encoding="utf-8")


def _counts(documents: Sequence[Document]):
    options: dict[str, Any] = {"norm": None}  # raw counts; the type stubs lack None
    vectorizer = HashingVectorizer(n_features=2**16, alternate_sign=False, stop_words="english", **options)
    return vectorizer.transform([f"{d.title} {d.text}" for d in documents])


def _probability(model: _Model, features) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(features @ model.weights + model.bias, -30, 30)))


def _threshold(probability: np.ndarray, truth: np.ndarray, precision: float) -> tuple[float, float, float]:
    """Finds the lowest of .2, .3, … .9 that reaches the precision: threshold, precision, recall; (1, 0, 0) if none."""
    for threshold in np.arange(0.2, 0.95, 0.1):
        predicted = probability >= threshold
        if predicted.any() and (reached := float(truth[predicted].mean())) >= precision:
            return float(threshold), reached, float(predicted[truth].mean())
    return 1.0, 0.0, 0.0
