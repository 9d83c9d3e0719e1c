"""Groups of features by name, on a small catalogue: each says what it is called, and none looks at judgements."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ltrr.arms.personal import Personal
from ltrr.config import ConfigError
from ltrr.data.beir import open_dataset
from ltrr.policies.features import QUERY, ContextFeatures
from ltrr.system.system import System
from ltrr.types import Candidates, Context, Query

GROUPS = ["text", "time", "locale", "idf", "understanding", "embedding", "customer", "history"]
NOON = datetime(2026, 3, 7, 12, tzinfo=UTC)
QUERIES = [
    Query("a", "nora quinn songs", Context(customer="fan", locale="en-GB", time=NOON)),
    Query("b", "jazz night", Context(customer="stranger")),
    Query("c", "qwertyqwerty", Context(locale="fr-FR")),
    Query("d", "?"),
]


class Vectors:
    """Somebody's own dense arm: a text's vector is drawn from it."""

    source_kind = "dense"

    def search(self, queries, k):
        return Candidates.empty(len(queries), k)

    def embed(self, queries):
        rows = [np.random.default_rng([*q.text.encode()]).normal(size=24) * bool(q.text.strip()) for q in queries]
        return np.array([row / max(np.linalg.norm(row), 1e-9) for row in rows], np.float32)


class Tastes:
    """The personal arm without an encoder, whose loading takes seconds."""

    source_kind = "personal"

    def __init__(self, interactions: str):
        self._arm = Personal(interactions=interactions, text=0.0)
        self.build, self.search = self._arm.build, self._arm.search

    def open(self, corpus, root):
        return self._arm.open(corpus, root)


class Looks:
    """Somebody's own policy, which looks at features."""

    id = "looks"

    def __init__(self, features: ContextFeatures, model: str = ""):
        self.features = features

    def decide(self, queries, features):
        raise NotImplementedError


def looked_at(system: System) -> ContextFeatures:
    """Features at which the policy of a system looks."""
    policy = system.policy()
    assert isinstance(policy, Looks)
    return policy.features


@pytest.fixture(scope="module")
def data(music, tmp_path_factory) -> Path:
    """The music catalogue, of whose queries some name a locale, and a table: a fan of jazz songs."""
    folder = tmp_path_factory.mktemp("context") / "tiny"
    shutil.copytree(music, folder)
    lines = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
    for i, line in enumerate(lines):
        line["metadata"]["locale"] = ("en-GB", "de-DE")[i % 2]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    rows = [f"fan\ts{i}\t{10 + i}" for i in range(2, 60, 4)] + [f"other\ts{i}\t9" for i in range(0, 20)]
    (folder / "interactions.tsv").write_text("\n".join(["customer\tentity\tweight", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory) -> dict:
    arms = {
        "lexical": {"class": "ltrr.arms.lexical.Lexical", "tune": False},
        "dense": {"class": f"{__name__}.Vectors"},
        "personal": {"class": f"{__name__}.Tastes", "interactions": str(data / "interactions.tsv")},
        "mine": {"class": "tests.test_funnel.RandomArm", "seed": 0},
    }
    return {"arms": arms, "cache": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def system(data, settings) -> System:
    return System(settings, open_dataset(data, query_fields=["locale"]))


@pytest.fixture(scope="module")
def found(system) -> dict[str, np.ndarray]:
    """Column -> value of each of QUERIES."""
    features = system.features.open(GROUPS)
    values = features(QUERIES)
    assert values.shape == (len(QUERIES), len(features.columns))
    assert values.dtype == np.float32
    assert not np.isinf(values).any()
    assert all(feature.unit for feature in features.columns)
    columns = dict(zip((feature.name for feature in features.columns), values.T, strict=True))
    assert len(columns) == values.shape[1], "each name once"
    return columns


def test_without_names_it_is_text_and_time(system, settings):
    plain = System(settings | {"policy": {"class": f"{__name__}.Looks"}}, system.dataset)
    assert looked_at(plain).columns == QUERY
    both = system.features.open(["time", "text"])
    assert [f.name for f in both.columns] == [f.name for f in (*QUERY[3:], *QUERY[:3])]


def test_a_person_and_a_genre_are_understood(found):
    assert found["names_artist"][0] > 0.6
    assert found["names_genres"][1] > 0.3
    assert found["names_genres=jazz"][1] == pytest.approx(found["names_genres"][1])
    assert found["names_genres=metal"][1] == 0
    assert found["names_type=song"][0] > found["names_type=song"][1]
    for name in ("names_artist", "names_genres", "names_type"):
        assert found[name][2:].tolist() == [0, 0]
    assert found["plain"][2] == pytest.approx(1)
    assert found["plain"][0] < 0.2
    assert (found["ambiguity"][2], found["meanings"][2]) == (0, 1)
    assert found["likeliest"][0] <= 1


def test_rare_words_weigh_more_and_unknown_ones_are_counted(system):
    context = system.features.open(["idf"])
    texts = ["song", "ilse", "song qwerty", "qwerty", ""]
    rarest, mean, unknown = context([Query(text, text) for text in texts]).T
    assert rarest[1] > rarest[0] > 0
    assert mean[2] == mean[0]
    assert unknown[:4].tolist() == [0, 0, 0.5, 1]
    assert np.isnan(rarest[3:]).all()
    assert np.isnan(unknown[4])


def test_locales_are_those_that_queries_have(found):
    assert [name for name in found if name.startswith("locale_")] == ["locale_de-DE", "locale_en-GB"]
    np.testing.assert_array_equal(found["locale_en-GB"], [1, np.nan, 0, np.nan])
    np.testing.assert_array_equal(found["locale_de-DE"], [0, np.nan, 0, np.nan])


def test_a_known_customer_has_a_taste(found):
    kinds = {name: values for name, values in found.items() if name.startswith("customer_")}
    assert all(np.isnan(values[1:]).all() for values in kinds.values())
    assert found["customer_type=song"][0] == pytest.approx(1)
    assert found["customer_type=artist"][0] == 0
    assert found["customer_genres=jazz"][0] == pytest.approx(1)
    assert found["customer_genres=pop"][0] == 0
    assert found["customer_engaged"][0] > 0


def test_alike_texts_have_alike_embeddings_and_none_has_none(system):
    embedded = system.features.open(["embedding"])
    one, same, other, empty = embedded([Query(str(i), text) for i, text in enumerate(("a b", "a b", "paper", " "))])
    np.testing.assert_allclose(one, same, atol=1e-5)
    assert np.abs(one - other).max() > 1e-3
    assert np.isnan(empty).all()
    np.testing.assert_allclose(embedded([Query("x", "a b")])[0], one, atol=1e-5)  # whatever stands beside it


def test_history_comes_from_the_file_beside_the_model(system, settings, tmp_path):
    history = system.features.history(system.drawn)
    returned = np.ones((1, 2, len(system.drawn)), bool)
    history.update(QUERIES[:1], returned, np.array([[1.0, 0.0]]))
    history.save(tmp_path / "history.npz")
    policy = {"class": f"{__name__}.Looks", "features": ["history"], "model": str(tmp_path)}
    context = looked_at(System(settings | {"policy": policy}, system.dataset))
    again = Query("again", "Nora  QUINN songs!")  # as normalised, the same
    np.testing.assert_allclose(context([again])[0], history.features([again])[0], rtol=1e-6)
    assert context([again])[0, 0] == pytest.approx(np.log(2))
    assert system.features.open(["history"])([again])[0, 0] == 0


def test_judgements_change_nothing(system, settings, data, found, tmp_path):
    blind = tmp_path / "tiny"
    shutil.copytree(data, blind)
    for path in (blind / "qrels").iterdir():
        header, *lines = path.read_text("utf-8").splitlines()
        ids = [line.split("\t") for line in lines]
        told = [
            f"{query}\t{doc}\t{1 + i % 2}"
            for i, ((query, *_), (_, doc, _)) in enumerate(zip(ids, ids[::-1], strict=True))
        ]
        path.write_text("\n".join([header, *dict.fromkeys(told)]) + "\n", encoding="utf-8")
    other = System(settings | {"cache": str(tmp_path / "cache")}, open_dataset(blind, query_fields=["locale"]))
    assert other.dataset.split("test").qrels != system.dataset.split("test").qrels
    features = other.features.open(GROUPS)
    assert features.columns == system.features.open(GROUPS).columns
    np.testing.assert_allclose(features(QUERIES), np.stack([*found.values()], axis=1), atol=1e-5)


def test_what_a_config_lacks_is_named(system, settings):
    with pytest.raises(ConfigError, match="did you mean 'locale'"):
        system.features.open(["locales"])
    fewer = System(settings | {"arms": {"lexical": settings["arms"]["lexical"]}}, system.dataset)
    for group, kind in (("embedding", "dense"), ("history", "dense"), ("customer", "personal")):
        with pytest.raises(ConfigError, match=f"'{group}' needs a {kind} arm"):
            fewer.features.open([group])
