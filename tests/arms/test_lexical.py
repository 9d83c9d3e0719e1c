"""The lexical arm: plain BM25 unless told otherwise, an exact prior, named mistakes, and boosts that are tuned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltrr.arms.lexical import Lexical
from ltrr.data.beir import Corpus, Document
from ltrr.data.expansions import Expansion, ExpansionWriter
from ltrr.data.lines import DataError
from ltrr.index.manifest import IndexMissing, IndexRefused
from ltrr.protocols import Arm
from ltrr.query_understanding.fields import log_prior, prior_fields, year_like
from ltrr.types import Candidates, Qrels, Query
from tests.index.test_text import slow_bm25, tokens_of

WORDS = [
    "night",
    "river",
    "fire",
    "love",
    "dance",
    "winter",
    "city",
    "gold",
    "silver",
    "storm",
    "running",
    "walked",
    "café",
    "東京",
]


def documents(seed: int, num: int = 60) -> list[Document]:
    rng = np.random.default_rng(seed)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, most)))

    return [
        Document(
            f"d{i}",
            words(4),
            words(20),
            {
                "genres": [words(2)],
                "year": int(rng.integers(1960, 2020)),
                "plays": None if i % 7 == 0 else int(rng.integers(0, 10**6)),
            },
        )
        for i in range(num)
    ]


CORPUS = Corpus.from_documents(documents(0))
QUERIES = [
    Query(f"q{i}", t) for i, t in enumerate(["love", "run city winter", "cafe 東京", "unheard", "", "1999 1984"])
]


def opened(root: Path, corpus: Corpus = CORPUS, **arguments: Any) -> Lexical:
    arm = Lexical(**arguments)
    arm.build(corpus, root)
    return arm.open(corpus, root)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Lexical:
    return opened(tmp_path_factory.mktemp("plain"))


def test_the_default_is_plain_bm25_of_everything(plain: Lexical) -> None:
    assert isinstance(plain, Arm)
    texts = [f"{d.title} {d.text} {d.metadata['genres'][0]} {d.metadata['year']}" for d in CORPUS]
    found = plain.search(QUERIES, 10)
    scores = [
        slow_bm25(tokens_of([q.text], "english")[0], tokens_of(texts, "english"), 1.2, 0.75) if q.text else [0.0] * 60
        for q in QUERIES
    ]
    everything = [np.arange(60)[np.array(s) > 0] for s in scores]
    expected = Candidates.from_lists(everything, [np.array(s)[d] for s, d in zip(scores, everything, strict=True)], 10)
    np.testing.assert_array_equal(found.docs >= 0, expected.docs >= 0)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    rows, columns = np.nonzero(found.docs >= 0)
    of_found = np.array(scores)[rows, found.docs[rows, columns]]  # rows may swap where scores differ by rounding
    np.testing.assert_allclose(found.scores[rows, columns], of_found, rtol=1e-5)


def test_one_query_is_answered_as_in_a_batch(plain: Lexical) -> None:
    batch = plain.search(QUERIES, 7)
    for i, query in enumerate(QUERIES):
        one = plain.search([query], 7)
        np.testing.assert_array_equal(one.docs[0], batch.docs[i])
        np.testing.assert_array_equal(one.scores[0], batch.scores[i])


def test_queries_without_a_known_word_are_padding(plain: Lexical) -> None:
    found = plain.search(QUERIES, 5)
    np.testing.assert_array_equal((found.docs < 0).all(axis=1), [False, False, False, True, True, False])


def by_row(found: Candidates) -> np.ndarray:
    """(Q, N) scores, 0 = not found."""
    out = np.zeros((len(found.docs), len(CORPUS)))
    query, column = np.nonzero(found.docs >= 0)
    out[query, found.docs[query, column]] = found.scores[query, column]
    return out


def test_the_prior_multiplies_scores(plain: Lexical, tmp_path: Path) -> None:
    found = by_row(opened(tmp_path, prior="plays", prior_strength=0.5).search(QUERIES, 60))
    plays = np.array([d.metadata["plays"] or 0 for d in CORPUS])
    factor = 1 + 0.5 * np.log1p(plays) / np.log1p(plays.max())
    np.testing.assert_allclose(found, by_row(plain.search(QUERIES, 60)) * factor, rtol=1e-5)
    assert factor.min() == 1.0  # a document whose plays are unknown neither gains nor loses


def test_log_prior_is_between_0_and_1() -> None:
    found = log_prior(np.array([np.nan, -5.0, 0.0, 9.0, 99.0]))
    np.testing.assert_allclose(found, [0, 0, 0, 0.5, 1])
    np.testing.assert_array_equal(log_prior(np.zeros(3)), 0)
    assert log_prior(np.zeros(0)).shape == (0,)


def test_years_are_no_prior() -> None:
    assert year_like(CORPUS, "year")
    assert not year_like(CORPUS, "plays")
    assert prior_fields(CORPUS) == ["plays"]


def test_named_fields_and_boosts(tmp_path: Path) -> None:
    fields = {"title": {}, "body": {"sources": ["text", "genres"], "analyser": "folded", "b": 0.0}}
    arms = {
        name: opened(tmp_path / name, fields=fields, boosts=boosts, k1=0.9)
        for name, boosts in {"title": {"title": 1}, "body": {"body": 1}, "both": {"title": 2, "body": 0.5}}.items()
    }
    found = {name: by_row(arm.search(QUERIES, 60)) for name, arm in arms.items()}
    np.testing.assert_allclose(found["both"], 2 * found["title"] + 0.5 * found["body"], rtol=1e-5, atol=1e-6)
    title = slow_bm25(tokens_of(["love"], "english")[0], tokens_of([d.title for d in CORPUS], "english"), 0.9, 0.75)
    np.testing.assert_allclose(found["title"][0], title, rtol=1e-5, atol=1e-6)
    texts = [f"{d.text} {d.metadata['genres'][0]}" for d in CORPUS]
    body = slow_bm25(tokens_of(["love"], "folded")[0], tokens_of(texts, "folded"), 0.9, 0.0)
    np.testing.assert_allclose(found["body"][0], body, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boosts": {"titel": 1.0}}, "unknown field 'titel'; the fields are: title_english"),
        ({"prior": "genres"}, "'genres' is no number field"),
        ({"prior": "year"}, r"'year' is no number field for a prior; this corpus has \['plays'\]"),
        ({"fields": {"title": {"sources": ["body"]}}}, "fields.title.sources: no field 'body'"),
        ({"fields": {"lyrics": {}}}, "fields.lyrics.sources: no field 'lyrics'"),
        ({"fields": {"title": {"analyzer": "english"}}}, "fields.title: unknown key 'analyzer'; known: analyser"),
        ({"fields": {"title": {"analyser": "german"}}}, "fields.title.analyser: no analyser 'german'"),
    ],
)
def test_a_wrong_name_is_named_before_anything_is_built(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Lexical(**arguments).build(CORPUS, tmp_path)
    with pytest.raises(IndexMissing):
        Lexical().open(CORPUS, tmp_path)


def test_open_refuses_what_was_built_otherwise(tmp_path: Path) -> None:
    opened(tmp_path, prior="plays")
    with pytest.raises(IndexRefused, match="config fields"):
        Lexical(prior="plays", k1=0.9).open(CORPUS, tmp_path)
    with pytest.raises(IndexRefused, match="config prior"):
        Lexical().open(CORPUS, tmp_path)
    with pytest.raises(IndexRefused, match="config prior_strength"):
        Lexical(prior="plays", prior_strength=1.0).open(CORPUS, tmp_path)
    with pytest.raises(IndexRefused, match="corpus"):
        Lexical(prior="plays").open(Corpus.from_documents(documents(1)), tmp_path)
    Lexical(prior="plays", boosts={"title_english": 1.0}).open(CORPUS, tmp_path)  # boosts are of the query only


def judged_corpus() -> tuple[Corpus, list[Query], Qrels]:
    """Relevant is what has the query in its title and many plays; texts say it louder and are not relevant."""
    rng = np.random.default_rng(3)
    out, queries, qrels = [], [], {}
    for w in range(40):
        word = f"word{w}"
        queries.append(Query(f"q{w}", word))
        qrels[f"q{w}"] = {}
        for i in range(4):
            out.append(Document(f"t{w}-{i}", f"{word} tune", "a song", {"plays": 10 ** (2 + 4 * (i % 2)), "decoy": 1}))
            qrels[f"q{w}"][f"t{w}-{i}"] = i % 2
            text = f"{word} {word} {word}"
            out.append(Document(f"x{w}-{i}", f"song {i}", text, {"plays": int(rng.integers(1, 10**6)), "decoy": 1}))
    for document in out:
        document.metadata["decoy"] = int(rng.integers(1, 10**6))
    order = rng.permutation(len(out))
    return Corpus.from_documents([out[i] for i in order]), queries, qrels


def test_tune_finds_the_field_and_the_prior_that_tell(tmp_path: Path) -> None:
    corpus, queries, qrels = judged_corpus()
    tuned = Lexical().tune(corpus, queries[:30], qrels)
    assert set(tuned) <= {"boosts", "k1", "b", "prior", "prior_strength"}  # constructor arguments
    title = sum(weight for name, weight in tuned["boosts"].items() if name.startswith("title"))
    assert title > sum(tuned["boosts"].values()) - title  # `all` holds the title, too, so it keeps a share
    assert tuned["prior"] == "plays"
    assert tuned["prior_strength"] > 0

    found = opened(tmp_path / "tuned", corpus, **tuned).search(queries[30:], 2)  # on queries it was not tuned on
    default = opened(tmp_path / "default", corpus).search(queries[30:], 2)

    def hits(found: Candidates) -> float:
        rows: list[list[int]] = found.docs.tolist()
        pairs = [(q.id, d) for q, row in zip(queries[30:], rows, strict=True) for d in row]
        return float(np.mean([qrels[query].get(corpus.ids[d], 0) for query, d in pairs]))

    assert hits(found) == 1.0
    assert hits(default) < 0.5


def test_tune_keeps_what_was_given_and_is_repeatable() -> None:
    corpus, queries, qrels = judged_corpus()
    arm = Lexical(prior="decoy", k1=2.0, b=0.1, boosts={"title_english": 1.0})
    given = {"prior", "k1", "b", "boosts"}
    tuned = arm.tune(corpus, queries, qrels, given=given)
    assert (tuned["k1"], tuned["b"], tuned["prior"]) == (2.0, 0.1, "decoy")
    assert "boosts" not in tuned  # the given ones stay, and strength is chosen for them
    assert arm.tune(corpus, queries, qrels, given=given) == tuned


def test_no_prior_can_be_asked_for() -> None:
    """`prior: null` in a config means none, although a prior would help."""
    corpus, queries, qrels = judged_corpus()
    assert Lexical(prior=None).tune(corpus, queries, qrels, given={"prior"})["prior"] is None


def test_tune_has_nothing_to_say_without_a_positive() -> None:
    corpus, queries, qrels = judged_corpus()
    nothing: Qrels = {q: dict.fromkeys(grades, 0) for q, grades in qrels.items()}
    assert Lexical().tune(corpus, queries, nothing) == {}


def expansions_of(folder: Path, corpus: Corpus, queries: list[list[str]]) -> str:
    """A folder as scripts/expand.py writes it."""
    writer = ExpansionWriter(folder, corpus, model="by hand", settings={}, shard=32)
    for rows in writer.missing():
        writer.write(rows, [[Expansion(q, -1.0, 2) for q in queries[row]] for row in rows])
    writer.finish()
    return str(folder)


def generated(seed: int = 5) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [[" ".join(rng.choice(WORDS, 3)) for _ in range(rng.integers(0, 4))] for _ in range(len(CORPUS))]


def test_generated_queries_are_one_more_field(plain: Lexical, tmp_path: Path) -> None:
    queries = generated()
    folder = expansions_of(tmp_path / "queries", CORPUS, queries)
    names = [f.name for f in Lexical(expansion=folder).text_fields(CORPUS)]
    assert names == [f.name for f in Lexical().text_fields(CORPUS)] + ["expansion_english", "expansion_folded"]
    unweighted = opened(tmp_path / "unweighted", expansion=folder)
    np.testing.assert_allclose(by_row(unweighted.search(QUERIES, 60)), by_row(plain.search(QUERIES, 60)), rtol=1e-6)

    boosts = {"all_english": 1.0, "expansion_english": 0.5}
    found = by_row(opened(tmp_path / "weighted", expansion=folder, boosts=boosts).search(QUERIES, 60))
    texts = tokens_of([" ".join(several) for several in queries], "english")
    for i, query in enumerate(QUERIES):
        more = slow_bm25(tokens_of([query.text], "english")[0], texts, 1.2, 0.75) if query.text else np.zeros(60)
        expected = by_row(plain.search([query], 60))[0] + 0.5 * np.array(more)
        np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-6)


def test_an_own_field_may_join_text_and_generated_queries(tmp_path: Path) -> None:
    """As docT5query does: the queries are appended to the text."""
    queries = generated()
    folder = expansions_of(tmp_path / "queries", CORPUS, queries)
    arm = opened(tmp_path / "index", expansion=folder, fields={"both": {"sources": ["text", "expansion"]}})
    texts = tokens_of([f"{d.text} {' '.join(q)}" for d, q in zip(CORPUS, queries, strict=True)], "english")
    expected = slow_bm25(tokens_of(["love"], "english")[0], texts, 1.2, 0.75)
    np.testing.assert_allclose(by_row(arm.search(QUERIES, 60))[0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no field 'expansion'"):
        Lexical(fields={"both": {"sources": ["text", "expansion"]}}).build(CORPUS, tmp_path)


def test_an_index_knows_which_queries_it_was_built_with(tmp_path: Path) -> None:
    one = expansions_of(tmp_path / "one", CORPUS, generated(5))
    same = expansions_of(tmp_path / "same", CORPUS, generated(5))
    other = expansions_of(tmp_path / "other", CORPUS, generated(6))
    opened(tmp_path / "index", expansion=one)
    Lexical(expansion=same).open(CORPUS, tmp_path / "index")  # where they lie is not what they are
    with pytest.raises(IndexRefused, match="config expansion"):
        Lexical(expansion=other).open(CORPUS, tmp_path / "index")
    with pytest.raises(IndexRefused, match="config expansion"):
        Lexical().open(CORPUS, tmp_path / "index")
    keys = [Lexical.content({"expansion": folder, "k1": 0.9}) for folder in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]
    assert Lexical.content({"k1": 0.9}) == Lexical.content({"expansion": None}) == []  # older caches stay
    with pytest.raises(DataError, match="corpus: made with"):
        opened(tmp_path / "wrong", Corpus.from_documents(documents(1)), expansion=one)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        opened(tmp_path / "wrong", expansion=str(tmp_path / "nowhere"))


def test_tune_weighs_generated_queries_by_what_they_are_worth(tmp_path: Path) -> None:
    corpus, queries, qrels = judged_corpus()
    told = [[""] for _ in range(len(corpus))]
    for grades in qrels.values():  # queries that tell the relevant documents, which nothing else does without a prior
        for doc, grade in grades.items():
            if grade:
                told[corpus.row(doc)] = [corpus[corpus.row(doc)].title.split()[0]]
    noise = [[f"word{n % 40}"] for n in range(len(corpus))]
    shares = []
    for name, texts in (("told", told), ("noise", noise)):
        arm = Lexical(expansion=expansions_of(tmp_path / name, corpus, texts), prior=None)
        boosts = arm.tune(corpus, queries, qrels, given={"prior"})["boosts"]
        shares.append(boosts["expansion_english"] + boosts["expansion_folded"])
        shares[-1] /= sum(boosts.values())
    assert shares[0] > 0.5
    assert shares[1] < 0.1
