"""A fifth of each listener's artists is left out, and known ones are no results."""

from __future__ import annotations

import numpy as np
import pytest

from ltrr.arms.personal import Personal
from ltrr.data.corpus import Corpus, Document
from ltrr.evaluation.listeners import Listening, Trial

LINES = [(f"u{u}", f"a{(u // 5 * 10 + i) % 20}", str(1 + i)) for u in range(10) for i in range(10)]  # two tastes
CORPUS = Corpus.from_documents(Document(f"a{i}", f"artist {i}", "", {"tags": ["loud"]}) for i in range(20))


class Encoder:
    id = "constant"

    def encode(self, texts, *, is_query: bool = False) -> np.ndarray:
        return np.tile(np.array([1.0, 0.0], np.float32), (len(texts), 1))


@pytest.fixture
def trial(tmp_path) -> Trial:
    return Trial(CORPUS, Encoder(), *Listening(LINES).split(np.random.default_rng(0)), tmp_path / "trial")


def test_a_fifth_is_left_out() -> None:
    rest, out = Listening(LINES).split(np.random.default_rng(0))
    assert {listener: len(artists) for listener, artists in out.items()} == {f"u{u}": 2 for u in range(10)}
    assert len(rest.lines) == 80
    assert all(artist not in rest.artists[listener] for listener, artists in out.items() for artist in artists)


def test_the_arm_and_als_find_artists_of_the_same_taste(trial: Trial) -> None:
    arm = trial.arm(0.0, damping=0.2, ridge=0.2)
    assert isinstance(arm, Personal)
    results = [trial.personal(arm), trial.session(arm), trial.als(factors=4, alpha=20, regularization=1)]
    for best in results:
        assert all(not set(best[u][:10]) & trial._heard[u] for u in best)  # 12 are not heard
    scores = [trial.score(best)["R@10"] for best in results]
    assert all(np.mean([*each.values()]) > 0.9 for each in scores)
    assert trial.recall(trial.popular(arm)) <= 1.0
