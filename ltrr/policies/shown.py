"""Remembers what a learner read of the pairs that were shown, so that it can learn from them when evidence has come.

Knows texts, corpus rows and inputs; does not know where evidence comes from, or learners.
Legend: P pairs of a query and a candidate, I inputs of each, K candidates of a page, X columns of a calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ltrr.feedback.evidence.cells import Shows

_MOST = 200_000  # pairs; the oldest half of the queries goes when there are more


class ShownPairs:
    """Inputs, and columns of the calibration, of pairs, each as it was shown first."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}  # normalised query -> corpus row -> both
        self._num = 0

    def __len__(self) -> int:
        """P."""
        return self._num

    def add(self, text: str, rows: np.ndarray, inputs: np.ndarray, columns: np.ndarray) -> None:
        """Adds the candidates of a page: rows (K,), inputs (K, I), columns (K, X)."""
        own = self._of.setdefault(text, {})
        before = len(own)
        for row, each, columns_of in zip(rows.tolist(), inputs, columns, strict=True):
            own.setdefault(row, (each, columns_of))
        self._num += len(own) - before
        if self._num > _MOST:
            for old in list(self._of)[: len(self._of) // 2]:
                self._num -= len(self._of.pop(old))

    def priors(self, shown: Shows, calibration: Sequence[float]) -> np.ndarray | None:
        """(P,) calibrated log odds of pairs, NaN = not remembered; None = the shows do not name their pairs."""
        if shown.query is None or shown.rows is None:
            return None
        weights, out = np.array(calibration), np.full(len(shown.rows), np.nan)
        order = np.argsort(shown.query, kind="stable")
        ends = np.searchsorted(shown.query[order], np.arange(len(shown.texts) + 1))
        for n, text in enumerate(shown.texts):
            if (own := self._of.get(text)) is not None:
                for place in order[ends[n] : ends[n + 1]].tolist():
                    if (pair := own.get(int(shown.rows[place]))) is not None:
                        out[place] = pair[1] @ weights
        return out

    def with_evidence(
        self, said: Callable[[str, np.ndarray, np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs (P, I), columns (P, X) and evidence (P,) of queries with any; those without are forgotten.

        said: text, rows (K,), columns (K, X) -> what evidence adds to the log odds (K,), 0 = there is none.
        """
        inputs, columns, evidence = [np.zeros((0, 0))], [np.zeros((0, 0))], [np.zeros(0)]
        for text, own in [*self._of.items()]:
            each, of_each = map(np.stack, zip(*own.values(), strict=True))
            new = said(text, np.fromiter(own, np.int64, len(own)), of_each)
            if new.any():
                inputs.append(each)
                columns.append(of_each)
                evidence.append(new)
            else:
                self._num -= len(self._of.pop(text))
        some = slice(1 if len(evidence) > 1 else 0, None)  # the first has no width
        return np.concatenate(inputs[some]), np.concatenate(columns[some]), np.concatenate(evidence)
