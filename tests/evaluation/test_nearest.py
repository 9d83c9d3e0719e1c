"""The labels of the nearest training queries, against the same as loops."""

from collections.abc import Sequence

import numpy as np

from ltrr.data.beir import Corpus, Document, Split
from ltrr.evaluation.nearest import NearestQueries
from ltrr.types import Query

CORPUS = Corpus.from_documents(Document(f"d{i}", f"title {i}", "", {}) for i in range(30))


class RandomEncoder:
    """Unit vectors by the text's hash; half of all cosines are negative."""

    id = "random"

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        assert is_query
        vectors = np.stack([np.random.default_rng(list(text.encode())).normal(size=6) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def split_of(name: str, size: int) -> Split:
    rng = np.random.default_rng(size)
    queries = [Query(f"{name}{i}", f"{name} text {i}") for i in range(size)]
    judged = [rng.choice(30, rng.integers(1, 5), replace=False) for _ in queries]
    qrels = {q.id: {f"d{d}": int(rng.integers(0, 4)) for d in docs} for q, docs in zip(queries, judged, strict=True)}
    return Split(queries, qrels)


def test_scores_are_the_sums_over_the_nearest_ten() -> None:
    splits, asked = [split_of("train", 25), split_of("more", 8)], split_of("test", 12).queries
    encoder = RandomEncoder()
    found = NearestQueries(encoder, CORPUS, splits).search(asked, 15)
    known = [(query, split.qrels[query.id]) for split in splits for query in split.queries]
    for i, query in enumerate(asked):
        cosine = {
            q.id: float((encoder.encode([query.text], is_query=True) @ encoder.encode([q.text], is_query=True).T)[0, 0])
            for q, _ in known
        }
        near = sorted(known, key=lambda pair: -cosine[pair[0].id])[:10]
        scores: dict[int, float] = {}
        for q, grades in near:
            for doc, grade in grades.items():
                if grade > 0 and cosine[q.id] > 0:
                    scores[CORPUS.row(doc)] = scores.get(CORPUS.row(doc), 0.0) + cosine[q.id] * grade
        best = sorted(scores, key=lambda row: (-round(scores[row], 5), row))[:15]
        filled = found.docs[i] >= 0
        assert found.docs[i][filled].tolist() == best
        np.testing.assert_allclose(found.scores[i][filled], [scores[row] for row in best], rtol=1e-5)


def test_fewer_training_queries_than_neighbours_are_enough() -> None:
    split = Split([Query("t", "same")], {"t": {"d7": 2, "d3": 1, "d1": 0}})
    found = NearestQueries(RandomEncoder(), CORPUS, [split]).search([Query("q", "same")], 4)
    assert found.docs.tolist() == [[7, 3, -1, -1]]  # judged not relevant is no label
    np.testing.assert_allclose(found.scores[0, :2], [2, 1], rtol=1e-5)
