"""Tags given to documents that lack a field: weighted, calibrated by a held-out tenth, and only where missing."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.data.beir import Corpus, Document
from ltrr.query_understanding.tagging import Tagger

WORDS = {"jazz": "saxophone swing brushes club", "metal": "growls distortion blast riffs", "folk": "banjo porch fiddle"}


def world(num: int, missing: float, noise: bool = False) -> tuple[Corpus, list[str]]:
    rng = np.random.default_rng(1)
    truth = [str(g) for g in rng.choice(list(WORDS), num)]
    documents = []
    for i, genre in enumerate(truth):
        words = rng.choice(WORDS[str(rng.choice(list(WORDS))) if noise else genre].split(), 5)
        metadata = {} if rng.random() < missing else {"genre": [genre]}
        documents.append(Document(f"d{i}", "untitled", " ".join(words), metadata | {"kind": "song"}))
    return Corpus.from_documents(documents), truth


def test_missing_values_are_recovered_and_given_ones_left_alone():
    corpus, truth = world(600, 0.2)
    tagger = Tagger.fit(corpus, ["genre", "kind"])
    documents = list(corpus)
    tags = tagger.tag(documents)
    lacking = [i for i, d in enumerate(documents) if "genre" not in d.metadata]
    right = [("genre", truth[i]) in tags[i] for i in lacking]
    assert np.mean(right) > 0.95
    assert all(not tags[i] for i in range(len(documents)) if i not in lacking)
    assert all(0 < p <= 1 for given in tags for p in given.values())
    assert tagger.num_tagged == sum(bool(t) for t in tags)
    assert tagger.quality["genre"]["precision"] >= 0.6


def test_a_field_that_text_does_not_tell_is_not_tagged():
    """Words drawn apart from the genre: no threshold is right often enough, so nothing is invented."""
    corpus, _ = world(600, 0.2, noise=True)
    assert not any(Tagger.fit(corpus, ["genre"]).tag(list(corpus)))


@pytest.mark.parametrize("missing", [0.0, 1.0])
def test_nothing_to_learn_or_nothing_missing(missing):
    corpus, _ = world(100, missing)
    assert not any(Tagger.fit(corpus, ["genre"]).tag(list(corpus)))
