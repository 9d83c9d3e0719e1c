"""BM25 as a sparse dot product, against BM25 written out and against bm25s."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ltrr.index.text import TextCoder, TextField, count_terms, describe, merge
from ltrr.types import Sparse

WORDS = [
    "night",
    "river",
    "running",
    "rivers",
    "dance",
    "danced",
    "café",
    "CAFE",
    "the",
    "of",
    "Ångström",
    "東京",
    "Москва",
    "love",
    "loves",
    "1999",
    "don't",
]


def random_texts(seed: int, num: int) -> list[str]:
    """Texts of very uneven lengths, some of them empty."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 12) ** 2 // 4)) for _ in range(num)]


def coder_of(texts: Sequence[Sequence[str]], *fields: TextField, batch: int = 7) -> TextCoder:
    return TextCoder.fit(fields, (texts[i : i + batch] for i in range(0, len(texts), batch)))


def dot(query: tuple[np.ndarray, np.ndarray], documents: Sparse) -> np.ndarray:
    """<query, document> of every document by dicts, (B,)."""
    weights = dict(zip(query[0].tolist(), query[1].tolist(), strict=True))
    rows = [documents.row(i) for i in range(len(documents.ptr) - 1)]
    return np.array([sum(weights.get(t, 0.0) * v for t, v in zip(*map(list, row), strict=True)) for row in rows])


def tokens_of(texts: Sequence[str], analyser: str) -> list[list[int]]:
    """What the analyser finds, a term as often as it stands there."""
    counted = count_terms(texts, analyser)
    return [np.repeat(t, v.astype(int)).tolist() for t, v in map(counted.row, range(len(texts)))]


def slow_bm25(query: list[int], documents: list[list[int]], k1: float, b: float) -> list[float]:
    """Robertson & Zaragoza 2009 with Lucene's idf, one document and term at a time."""
    average = sum(map(len, documents)) / len(documents)
    df = Counter(t for tokens in documents for t in set(tokens))
    scores = []
    for tokens in documents:
        tf, score = Counter(tokens), 0.0
        for t in set(query):
            idf = math.log(1 + (len(documents) - df[t] + 0.5) / (df[t] + 0.5))
            score += idf * tf[t] * (k1 + 1) / (tf[t] + k1 * (1 - b + b * len(tokens) / average)) if tf[t] else 0.0
        scores.append(score)
    return scores


@pytest.mark.parametrize("analyser", ["english", "folded"])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (2.0, 0.0), (0.0, 1.0)])
def test_the_dot_product_is_bm25(analyser, k1: float, b: float) -> None:
    texts = random_texts(0, 60)
    coder = coder_of([(t,) for t in texts], TextField("all", ("text",), analyser, k1, b))
    documents = merge(coder.documents([(t,) for t in texts]))
    tokens = tokens_of(texts, analyser)
    for query in ["night", "rivers danced café", "the love 東京 Москва", "love unheard", *WORDS]:
        expected = slow_bm25(tokens_of([query], analyser)[0], tokens, k1, b)
        np.testing.assert_allclose(dot(coder.query(query, np.ones(1)), documents), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4)])
def test_the_dot_product_is_that_of_bm25s(k1: float, b: float) -> None:
    bm25s = pytest.importorskip("bm25s", reason="the extra `bench` is not installed")
    texts = random_texts(1, 80)
    coder = coder_of([(t,) for t in texts], TextField("all", ("text",), "english", k1, b))
    documents = merge(coder.documents([(t,) for t in texts]))
    peer = bm25s.BM25(method="lucene", k1=k1, b=b)
    peer.index([list(map(str, tokens)) for tokens in tokens_of(texts, "english")], show_progress=False)
    for query in ["night", "rivers danced café", "love 1999 東京"]:
        theirs = peer.get_scores(list(map(str, tokens_of([query], "english")[0])))
        ours = dot(coder.query(query, np.ones(1)), documents)
        assert ours.max() > 0
        np.testing.assert_allclose(ours, theirs * (k1 + 1), rtol=1e-5, atol=1e-5)  # Lucene leaves the constant out


def two_fields() -> tuple[TextCoder, list[tuple[str, str]]]:
    texts = list(zip(random_texts(2, 40), random_texts(3, 40), strict=True))
    fields = TextField("title", ("title",), "folded", 1.2, 0.3), TextField("all", ("text",), "english")
    return coder_of(texts, *fields), texts


def test_boosts_are_linear() -> None:
    coder, texts = two_fields()
    documents = merge(coder.documents(texts))
    title, body = (dot(coder.query("love river 東京", np.eye(2)[f]), documents) for f in range(2))
    both = dot(coder.query("love river 東京", np.array([0.5, 3.0])), documents)
    np.testing.assert_allclose(both, 0.5 * title + 3.0 * body, rtol=1e-5)
    assert (title > 0).any()
    assert (body > 0).any()


def test_fields_do_not_share_dimensions() -> None:
    texts = [("love", ""), ("", "love")]
    fields = tuple(TextField(name, (name,), "folded") for name in ("title", "text"))
    coder = coder_of(texts, *fields)
    documents = coder.documents(texts)
    assert len(set(documents[0].terms) & set(documents[1].terms)) == 0
    assert (dot(coder.query("love", np.array([1.0, 0.0])), merge(documents)) > 0).tolist() == [True, False]
    assert (dot(coder.query("love", np.array([0.0, 1.0])), merge(documents)) > 0).tolist() == [False, True]


def test_a_fields_statistics_are_its_own() -> None:
    coder, texts = two_fields()
    for f, field in enumerate(coder.fields):
        alone = coder_of([(t[f],) for t in texts], field)
        expected = dot(alone.query("love river", np.ones(1)), merge(alone.documents([(t[f],) for t in texts])))
        found = dot(coder.query("love river", np.eye(2)[f]), merge(coder.documents(texts)))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_merge_is_a_union_that_adds() -> None:
    a = Sparse(np.array([0, 2, 2, 3]), np.array([5, 2**32 - 1, 7], np.uint32), np.array([1, 2, 3], np.float32))
    b = Sparse(np.array([0, 1, 2, 2]), np.array([5, 0], np.uint32), np.array([10, 4], np.float32))
    merged = merge([a, b])
    rows = [dict(zip(*(x.tolist() for x in merged.row(i)), strict=True)) for i in range(3)]
    assert rows == [{5: 11.0, 2**32 - 1: 2.0}, {0: 4.0}, {7: 3.0}]
    assert merged.terms.dtype == np.uint32


def test_field_scores_are_dot_products() -> None:
    coder, texts = two_fields()
    documents = coder.documents(texts)
    queries = ["love river", "", "unheard", "東京 café 1999", "the"]
    for f, scores in enumerate(coder.field_scores(queries, documents)):
        expected = [dot(coder.query(q, np.eye(2)[f]), documents[f]) for q in queries]
        np.testing.assert_allclose(scores.toarray(), expected, rtol=1e-5, atol=1e-6)


def test_scale_multiplies_documents() -> None:
    coder, texts = two_fields()
    factor = np.linspace(1, 2, len(texts))
    query = coder.query("love river", np.ones(2))
    scaled = dot(query, merge(coder.documents(texts, factor)))
    np.testing.assert_allclose(scaled, factor * dot(query, merge(coder.documents(texts))), rtol=1e-5)


def test_batches_do_not_matter() -> None:
    texts = [(t,) for t in random_texts(4, 30)]
    field = TextField("all", ("text",))
    whole, single = coder_of(texts, field, batch=30), coder_of(texts, field, batch=1)
    np.testing.assert_array_equal(whole.terms, single.terms)
    np.testing.assert_array_equal(whole.idf, single.idf)
    np.testing.assert_allclose(whole.average, single.average)
    together = merge(whole.documents(texts))
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(merge(whole.documents([text])).terms, together.row(i)[0])
        np.testing.assert_array_equal(merge(whole.documents([text])).values, together.row(i)[1])


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    coder, texts = two_fields()
    coder.save(tmp_path / "terms.npz")
    fields = tuple(  # a manifest keeps them as JSON
        TextField(**field | {"sources": tuple(field["sources"])})
        for field in json.loads(json.dumps(describe(coder.fields)))
    )
    loaded = TextCoder.load(tmp_path / "terms.npz", fields)
    assert loaded.fields == coder.fields
    for ours, theirs in zip(merge(coder.documents(texts)), merge(loaded.documents(texts)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(*(c.query("love 東京 the", np.ones(2)) for c in (coder, loaded)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_empty_texts_and_queries_have_no_terms() -> None:
    texts = [("", ""), ("the of", " \n"), ("love", ""), ("", "!?")]
    coder = coder_of(texts, TextField("title", ("title",)), TextField("text", ("text",), "folded"))
    documents = merge(coder.documents(texts))
    np.testing.assert_array_equal(np.diff(documents.ptr), [0, 0, 1, 0])
    for query, boosts in [("", [1, 1]), ("?!", [1, 1]), ("unheard of", [1, 1]), ("love", [0, 0]), ("love", [0, 1])]:
        terms, values = coder.query(query, np.array(boosts))
        assert len(terms) == len(values) == 0
    assert np.isfinite(documents.values).all()
    assert merge(coder.documents([])).ptr.tolist() == [0]


@pytest.mark.parametrize("texts", [[("",), ("!",)], []])
def test_a_collection_without_a_word_answers_nothing(texts: list[tuple[str]]) -> None:
    coder = coder_of(texts, TextField("text", ("text",)))
    assert len(coder.query("love", np.ones(1))[0]) == 0
    assert coder.field_scores(["love"], coder.documents(texts))[0].shape == (1, len(texts))


@pytest.mark.parametrize("word", ["東京", "Москва", "العربية", "καφές", "서울", "emoji🎵word", "naïve"])
def test_words_of_any_script_are_found(word: str) -> None:
    texts = [(f"before {word} after",), ("something else",)]
    for analyser in ("english", "folded"):
        coder = coder_of(texts, TextField("text", ("text",), analyser))
        scores = dot(coder.query(word, np.ones(1)), merge(coder.documents(texts)))
        assert scores[0] > 0
        assert scores[1] == 0


def test_analysers_do_what_their_names_say() -> None:
    def same(analyser: str, *texts: str) -> bool:
        first, second = tokens_of(texts, analyser)
        return first == second and len(first) == 1

    assert same("english", "running", "runs")
    assert same("folded", "CAFÉ", "cafe")
    assert not same("folded", "running", "runs")
    assert tokens_of(["the"], "english") == [[]]  # a stopword
    assert len(tokens_of(["the"], "folded")[0]) == 1  # The The is a band
