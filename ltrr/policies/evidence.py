"""The evidence that policies learn from in a service: shows and clicks on the documents of one corpus.

Knows the corpus and `ltrr.feedback.evidence`; does not know what a policy makes of it.
"""

from __future__ import annotations

from ltrr.data.beir import Corpus
from ltrr.data.expansions import predictions
from ltrr.feedback.evidence.evidence import Evidence
from ltrr.protocols import Encoder


class CorpusEvidence(Evidence):
    """Evidence of shows by cell on the documents of a corpus, for policies.

    Args:
        corpus: gives each entity its row, and titles whose words weigh the more the rarer they are.
        encoder: for remembered queries of similar meaning; null = by words alone.
        distinct: customers with a success, or without one, that a pair needs before others may see it.
        cap: the most trials of one customer that count for one pair.
        budget: the most trials of one customer, decayed, that count for others in all.
        half_life: days after which evidence counts half.
        neighbours: the most remembered queries for each query, by words and by meaning each.
        alike: similarity in [0, 1] that those need.
        expansion: folder of generated queries (scripts/expand.py), which say what documents are wanted for; or null.
        predicted: P(wanted) of a query that the generator was certain of, 0 to 1; others have p^(1 / tokens) of it.

    Errors: ValueError for `predicted` outside 0 and 1; DataError for a folder of another corpus.
    """

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder | None = None,
        *,
        distinct: int = 3,
        cap: float = 3.0,
        budget: float = 300.0,
        half_life: float = 90.0,
        neighbours: int = 20,
        alike: float = 0.5,
        expansion: str | None = None,
        predicted: float = 0.5,
    ) -> None:
        if not 0 <= predicted <= 1:
            raise ValueError(f"evidence.predicted: {predicted} is not within 0 and 1")
        super().__init__(
            {entity: row for row, entity in enumerate(corpus.ids)},
            (document.title for document in corpus),
            encoder,
            distinct=distinct,
            cap=cap,
            budget=budget,
            half_life=half_life,
            neighbours=neighbours,
            alike=alike,
            cells=True,
        )
        if expansion is not None:
            self.predict(*predictions(expansion, corpus, predicted))
