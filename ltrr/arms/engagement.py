"""Who engaged with what: a table, what it teaches of entities, and what is popular where.

Knows a TSV and a corpus's rows; knows nothing about queries, events or texts.
Legend: N documents, U customers and E engagements of the table, C learned dimensions, L locales, K documents of each.
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

_AGREE = 3  # customers of a locale who must have engaged with a document before it is popular there
_KEPT = 1_000  # documents of each locale


class Engagement(NamedTuple):
    """A table of engagement, ordered by customer and row; each pair once."""

    names: np.ndarray  # (U,) str
    locales: np.ndarray  # (U,) str, "" = unknown
    who: np.ndarray  # (E,) int64 into names
    rows: np.ndarray  # (E,) int64 of documents
    strength: np.ndarray  # (E,) log(1 + weight), relative to the customer's mean
    days: np.ndarray  # (E,) since 1970, of the latest line; NaN = unknown

    @classmethod
    def read(cls, path: Path | None, corpus: Corpus) -> Self:
        """A TSV with a header: customer, entity, weight > 0 and, where the header has them, `timestamp` and `locale`.

        Pairs that come twice are added up; a customer's first locale counts. Without a path it is empty. DataError
        names the line.
        """
        if path is None:
            return cls(*(np.zeros(0, kind) for kind in "UUqqdd"))
        customers: dict[str, tuple[int, str]] = {}  # name -> number, locale
        found: list[tuple[int, int, float, float]] = []  # customer, row, weight, day
        with path.open("rb") as file:
            rows = ((line, line.text.rstrip("\r\n").split("\t")) for line in read_lines(file, path))
            _, header = next(rows, (None, []))
            for line, cells in rows:
                fix = f"by tabs, one value for each of {', '.join(header)}; a weight above 0; ISO 8601 times"
                try:
                    (customer, entity, weight), more = cells[:3], dict(zip(header[3:], cells[3:], strict=True))
                    day = day_of(datetime.fromisoformat(more["timestamp"])) if "timestamp" in more else np.nan
                    if not 0 < float(weight) < float("inf"):
                        raise ValueError
                except ValueError:
                    raise error_at(path, line.number, f"no engagement: {shown(line.text.strip())}", fix) from None
                if entity not in corpus:
                    fix = "remove the line, or give the corpus that these interactions are about"
                    raise error_at(path, line.number, "no document has this id", fix, id=entity)
                number, _ = customers.setdefault(customer, (len(customers), more.get("locale", "")))
                found.append((number, corpus.row(entity), float(weight), day))
        number, row, weights, days = np.array(found, np.float64).reshape(-1, 4).T
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
    """(N, C) vectors, of mean square 1 where there is engagement, and the (N,) factors by which engagement is summed.

    The right singular vectors of the customer x entity matrix, in which customers are divided by the root of their sum
    and entities by their count to the power `damping`, times sqrt(s² / (s² + ridge · s₁²)). The sum over a customer's
    entities, times an entity, is then the low-rank ridge regression of Jin et al. 2021, "Towards a better understanding
    of linear models for recommendation".
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
    """The most popular documents of each locale, "" = of all: names (L,), docs and scores (L, K)."""
    fields = [] if len(table.rows) else prior_fields(corpus)
    overall = log_prior(number_column(corpus, fields[0]) if fields else np.bincount(table.rows, minlength=len(corpus)))
    of = {"": overall}
    if table.locales.any():
        places = table.locales[table.who]
        for name in sorted({*places.tolist()} - {""}):
            counts = np.bincount(table.rows[places == name], minlength=len(corpus))
            of[name] = np.where(counts >= _AGREE, counts, 0) + overall
    elif corpus.fields.get("locale") == "keyword":
        for row, document in enumerate(corpus):
            for name, _ in field_values(document, "locale"):
                of.setdefault(name, np.full(len(corpus), -np.inf))[row] = overall[row]
    scores = np.array([*of.values()], np.float32)  # (L, N)
    rows = np.where(np.isfinite(scores), np.arange(len(corpus), dtype=np.int32), -1)
    docs, scores = top_k(rows, scores, min(_KEPT, len(corpus)))
    return {"names": np.array([*of], np.str_), "docs": docs, "scores": scores}


def day_of(time: datetime) -> float:
    """Days since 1970; a time without a zone is UTC."""
    return time.replace(tzinfo=time.tzinfo or UTC).timestamp() / 86_400
