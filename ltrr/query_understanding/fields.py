"""Reads the documents' metadata for the arms: field texts, number columns, years, and popularity priors.

Knows documents and the kinds of their fields; knows nothing about indexes or queries.
Legend: B documents of a batch, F text fields, N documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from tqdm import tqdm

from ltrr.data.beir import Corpus, Document, field_number, field_values
from ltrr.index.text import TextField


def log_prior(values: np.ndarray) -> np.ndarray:
    """Scales values to log(1 + v) / log(1 + largest v) in [0, 1]; unknown (NaN) and negative values become 0."""
    logs = np.log1p(np.maximum(np.nan_to_num(values), 0.0))
    return logs / max(float(logs.max(initial=0.0)), 1e-9)


def year_like(corpus: Corpus, field: str) -> bool:
    """Whether a number field holds years: of the first 1,000 documents' values, ≥ 95 % are integers in 1000..2100."""
    if corpus.fields[field] != "number":
        return False
    values = np.array([field_number(corpus[row], field) for row in range(min(1000, len(corpus)))])
    values = values[~np.isnan(values) & (values != 0)]
    return len(values) > 0 and bool(np.mean((values % 1 == 0) & (values >= 1000) & (values <= 2100)) >= 0.95)


def source_text(document: Document, source: str) -> str:
    """Returns the title, the text, or a metadata field's values as one string."""
    if source == "title":
        return document.title
    if source == "text":
        return document.text
    value = document.metadata.get(source)
    if isinstance(value, int | float):
        return str(int(value)) if value == int(value) else str(value)
    return " ".join(name for name, _ in field_values(document, source))


def field_texts(documents: Sequence[Document], fields: Sequence[TextField]) -> list[tuple[str, ...]]:
    """Returns the texts of F fields for each of B documents: B tuples of F strings."""
    return [tuple(" ".join(source_text(d, s) for s in field.sources) for field in fields) for d in documents]


def expanded(document: Document, row: int, expansions: Sequence[Sequence[str]] | None) -> Document:
    """Returns the document with the queries generated for its row as an extra metadata field, `expansion`."""
    if expansions is None:
        return document
    return replace(document, metadata={**document.metadata, "expansion": " ".join(expansions[row])})


def documents_of(
    corpus: Corpus, what: str, size: int = 1000, *, expansions: Sequence[Sequence[str]] | None = None
) -> Iterator[list[Document]]:
    """Yields the corpus in row order, `size` documents at a time; a large one shows a progress bar named `what`."""
    quiet = len(corpus) < 50_000
    documents = enumerate(tqdm(corpus, what, len(corpus), unit="document", disable=quiet, mininterval=1))
    while batch := [expanded(document, row, expansions) for row, document in islice(documents, size)]:
        yield batch


def number_column(corpus: Corpus, field: str) -> np.ndarray:
    """Reads a number or date field of every document, (N,) float64, NaN = unknown."""
    return np.fromiter((field_number(d, field) for d in corpus), np.float64, len(corpus))


def prior_fields(corpus: Corpus) -> list[str]:
    """Lists the number fields that may measure popularity or quality: all except years."""
    return [f for f, kind in corpus.fields.items() if kind == "number" and not year_like(corpus, f)]


def years(days: np.ndarray) -> np.ndarray:
    """Converts days since 1970-01-01 to calendar years; NaN stays NaN."""
    known = ~np.isnan(days)
    out = np.full(len(days), np.nan)
    out[known] = days[known].astype("datetime64[D]").astype("datetime64[Y]").astype(int) + 1970
    return out


def telling_prior(corpus: Corpus, qrels: Sequence[Mapping[str, int]]) -> str | None:
    """Finds the number field in which positives have the highest mean percentile; None if that is below 60 %."""
    rows = corpus.rows([doc for grades in qrels for doc, grade in grades.items() if grade > 0])
    shares = {}
    for field in prior_fields(corpus):
        column = np.nan_to_num(number_column(corpus, field))
        shares[field] = float((np.searchsorted(np.sort(column), column[rows]) / len(column)).mean())
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] >= 0.6 else None
