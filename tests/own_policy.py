"""A policy of one's own, for tests that plug it in: `policy: {class: tests.own_policy.ByLength}`."""

import numpy as np

from ltrr.types import Decision


class ByLength:
    """Ranks so many candidates for each word of the query."""

    def __init__(self, arms, depths, *, per_word: int = 2):
        self.id = f"by length {per_word}"
        self._depths = np.array([depths.get(arm, 0) for arm in arms], np.int32)
        self._per_word = per_word

    def decide(self, queries, features):
        cut = np.array([self._per_word * len(query.text.split()) for query in queries], np.int32)
        marginals = np.ones((len(queries), len(self._depths) + 1))
        return Decision(np.tile(self._depths, (len(queries), 1)), np.maximum(cut, 1), np.ones(len(queries)), marginals)
