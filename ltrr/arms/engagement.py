"""Reads a table of engagement, learns entity vectors from it, and ranks documents by popularity in each locale.

Knows a TSV file and corpus rows; knows nothing about queries, events or texts.
Legend: N documents, U customers and E entries of the table, C learned dimensions, L locales, K documents per locale.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from ltrr.data.beir import Corpus, field_values
from ltrr.data.lines import error_at, read_lines, shown
from ltrr.query_understanding.fields import log_prior, number_column, prior_fields
from ltrr.types import top_k

_MIN_CUSTOMERS = 3  # of a locale who engaged with a document, before their engagement counts as popularity there
_MAX_POPULAR = 1_000  # documents kept per locale


class Engagement(NamedTuple):
    """Engagement of customers with documents: one entry per (customer, row) pair, sorted by customer, then row."""

    names: np.ndarray  # (U,) str
    locales: np.ndarray  # (U,) str, "" = unknown
    who: np.ndarray  # (E,) int64 index into names
    rows: np.ndarray  # (E,) int64 corpus rows
    strength: np.ndarray  # (E,) log(1 + weight), divided by the customer's mean
    days: np.ndarray  # (E,) time of the pair's latest line, in days since 1970; NaN = unknown

    @classmethod
    def read(cls, path: Path | None, corpus: Corpus) -> Self:
        """Reads a TSV with a header: customer, entity, weight > 0, and optionally `timestamp` and `locale`.

        Weights of a repeated pair are added; a customer has the locale of their first line. No path gives an empty
        table. Raises DataError, which names the line.
        """
        if path is None:
            return cls(*(np.zeros(0, kind) for kind in "UUqqdd"))
        customers: dict[str, tuple[int, str]] = {}  # name -> number, locale
        entries: list[tuple[int, int, float, float]] = []  # customer, row, weight, day
        with path.open("rb") as file:
            rows = ((line, line.text.rstrip("\r\n").split("\t")) for line in read_lines(file, path))
            _, header = next(rows, (None, []))
            for line, cells in rows:
                fix = f"by tabs, one value for each of {', '.join(header)}; a weight above 0; ISO 8601 times"
                try:
                    (customer, entity, weight), optional = cells[:3], dict(zip(header[3:], cells[3:], strict=True))
                    day = day_of(datetime.fromisoformat(optional["timestamp"])) if "timestamp" in optional else np.nan
                    if not 0 < float(weight) < float("inf"):
                        raise ValueError
                except ValueError:
                    raise error_at(path, line.number, f"no engagement: {shown(line.text.strip())}", fix) from None
                if entity not in corpus:
                    fix = "remove the line, or give the corpus that these interactions are about"
                    raise error_at(path, line.number, "no document has this id", fix, id=entity)
                number, _ = customers.setdefault(customer, (len(customers), optional.get("locale", "")))
                entries.append((number, corpus.row(entity), float(weight), day))
        number, row, weights, days = np.array(entries, np.float64).reshape(-1, 4).T
        pairs, inverse = np.unique(number.astype(np.int64) * len(corpus) + row.astype(np.int64), return_inverse=True)
        latest = np.full(len(pairs), np.nan)
        np.fmax.at(latest, inverse, days)
        who, row = np.divmod(pairs, len(corpus))
        logs = np.log1p(np.bincount(inverse, weights))
        strength = logs / (np.bincount(who, logs) / np.bincount(who))[who]
        names, locales = np.array([*customers], np.str_), np.array([place for _, place in customers.values()], np.str_)
        return cls(names, locales, who, row, strength, latest)


def co_engagement(
    table: Engagement, num_documents: int, *, components: int, damping: float, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Learns (N, C) entity vectors and the (N,) factors that weigh entities in a customer's sum.

    Takes the right singular vectors of the customer x entity matrix, times sqrt(s² / (s² + ridge · s₁²)), scaled to a
    mean square norm of 1. Rows of the matrix are divided by the root of the customer's sum, columns by the entity's
    count ** damping. The dot product of a customer's weighted sum and an entity is then the low-rank ridge regression
    of Jin et al. 2021, "Towards a better understanding of linear models for recommendation".
    """
    counts = np.bincount(table.rows, minlength=num_documents)
    factors = (np.maximum(counts, 1.0) ** -damping).astype(np.float32)
    sums = np.bincount(table.who, table.strength)
    values = (table.strength / np.sqrt(sums[table.who]) * factors[table.rows]).astype(np.float32)
    shape = (len(table.names), num_documents)
    if not (components := min(components, *shape)):
        return np.zeros((num_documents, 0), np.float32), factors
    matrix = sparse.csr_matrix((values, (table.who, table.rows)), shape)
    _, singular, right = randomized_svd(matrix, components, random_state=0)
    share = (singular / singular[0]) ** 2
    vectors = right.T * np.sqrt(share / (share + ridge))
    return (vectors / np.sqrt(np.square(vectors).sum() / np.count_nonzero(counts))).astype(np.float32), factors


def popular_of(table: Engagement, corpus: Corpus) -> dict[str, np.ndarray]:
    """Ranks the most popular documents per locale ("" = everywhere): names (L,), docs and scores (L, K)."""
    priors = [] if len(table.rows) else prior_fields(corpus)
    overall = log_prior(number_column(corpus, priors[0]) if priors else np.bincount(table.rows, minlength=len(corpus)))
    by_locale = {"": overall}
    if table.locales.any():
        places = table.locales[table.who]
        for name in sorted({*places.tolist()} - {""}):
            counts = np.bincount(table.rows[places == name], minlength=len(corpus))
            by_locale[name] = np.where(counts >= _MIN_CUSTOMERS, counts, 0) + overall
    elif corpus.fields.get("locale") == "keyword":
        for row, document in enumerate(corpus):
            for name, _ in field_values(document, "locale"):
                by_locale.setdefault(name, np.full(len(corpus), -np.inf))[row] = overall[row]
    scores = np.array([*by_locale.values()], np.float32)  # (L, N)
    rows = np.where(np.isfinite(scores), np.arange(len(corpus), dtype=np.int32), -1)
    docs, scores = top_k(rows, scores, min(_MAX_POPULAR, len(corpus)))
    return {"names": np.array([*by_locale], np.str_), "docs": docs, "scores": scores}


def day_of(time: datetime) -> float:
    """Converts a time to days since 1970; a time without a zone is read as UTC."""
    return time.replace(tzinfo=time.tzinfo or UTC).timestamp() / 86_400
