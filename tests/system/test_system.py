"""The composition root: parts that wait for a model, models that are injected, what is kept away from trained models,
and the one funnel that is served and evaluated. Arms are fakes, so that nothing is indexed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ltrr.config import ConfigError, Settings
from ltrr.data.beir import Corpus, document_text
from ltrr.system.system import System, open_systems
from ltrr.types import Candidates, Qrels, Query, top_k

WORDS = {"class": f"{__name__}.Words"}
RANKER = {"class": "ltrr.rankers.cross_encoder.CrossEncoderRanker"}


def shared_words(query: str, document: str) -> int:
    return len(set(query.lower().split()) & set(document.lower().split()))


class Words:
    """An arm without a model or an index: documents that share most words with the query."""

    def __init__(self, corpus: Corpus, *, boost: float = 1.0):
        self._boost = boost
        self._texts = [document_text(document, []) for document in corpus]

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        scores = self._boost * np.array([[shared_words(q.text, text) for text in self._texts] for q in queries])
        return top_k(np.broadcast_to(np.arange(len(self._texts)), scores.shape), scores, k)


class Tunable(Words):
    """Chooses nothing, and remembers on which queries; `notes` is a folder whose content matters."""

    tuned_on: list[str] = []  # noqa: RUF012

    def __init__(self, corpus: Corpus, *, boost: float = 1.0, notes: str = ""):
        super().__init__(corpus, boost=boost)

    @staticmethod
    def content(arguments: Mapping[str, Any]) -> list[str]:
        path = Path(arguments.get("notes", "")) / "notes.txt"
        return [path.read_text()] if path.exists() else []

    def tune(self, corpus: Corpus, queries: Sequence[Query], qrels: Qrels, given: set[str]) -> dict[str, float]:
        assert set(qrels) == {q.id for q in queries}
        self.tuned_on[:] = [q.id for q in queries]
        return {"boost": 1.0}


class FakeEncoder:
    """What a loader makes: remembers how it was asked for."""

    def __init__(self, model: str = "default", *, max_length: int = 0):
        self.model, self.max_length = model, max_length


class FakeArm:
    """An arm with a model, dense or sparse: always the first documents."""

    def __init__(self, encoder: FakeEncoder, corpus: Corpus):
        self.encoder = encoder

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        return Candidates.from_lists([np.arange(3)] * len(queries), [-np.arange(3.0)] * len(queries), k)


class FakeSparseArm(FakeArm):
    def __init__(self, sparse_encoder: FakeEncoder):
        self.encoder = sparse_encoder


class FakeScorer:
    """Counts words, of metadata too; remembers about which queries it was asked."""

    asked: list[str] = []  # noqa: RUF012

    def __init__(self, model: str = "default"):
        self.id = model

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        self.asked.extend(queries)
        return np.array([shared_words(q, d) for q, d in zip(queries, documents, strict=True)], np.float32)


@pytest.fixture(autouse=True)
def loaders(monkeypatch):
    fakes = {"encoder": "FakeEncoder", "sparse_encoder": "FakeEncoder", "scorer": "FakeScorer"}
    monkeypatch.setattr("ltrr.system.parts.LOADERS", {name: f"{__name__}.{fake}" for name, fake in fakes.items()})
    FakeScorer.asked.clear()


@pytest.fixture
def make(music, tmp_path):
    """System of the music data with these sections in its config."""

    def made(*, hold_out: str = "test", **sections: Any) -> System:
        path = tmp_path / "config.yaml"
        sections = {
            "data": {"path": str(music)},
            "cache": str(tmp_path / "cache"),
            "arms": {"words": WORDS},
        } | sections
        path.write_text(yaml.safe_dump(sections, sort_keys=False))
        (system,) = open_systems(path, [], hold_out=hold_out)
        return system

    return made


def trained(folder: Path, fingerprint: str, *splits: str) -> str:
    """A model's folder that says where it was trained."""
    folder.mkdir(exist_ok=True)
    (folder / "ltrr.json").write_text(json.dumps({"data": fingerprint, "splits": list(splits), "queries": "0"}))
    return str(folder)


# Models


def test_models_are_made_from_model_and_encoder(make) -> None:
    options = {"model": "some/name", "encoder": {"max_length": 64}}
    system = make(
        arms={
            "dense": {"class": f"{__name__}.FakeArm", **options},
            "sparse": {"class": f"{__name__}.FakeSparseArm", **options},
            "plain": {"class": f"{__name__}.FakeArm"},
        }
    )
    for name in ("dense", "sparse"):
        encoder = system.arm(name).encoder
        assert (encoder.model, encoder.max_length) == ("some/name", 64)
    assert system.arm("plain").encoder.model == "default"


def test_a_part_whose_model_is_null_is_not_there(make) -> None:
    sparse = {"class": f"{__name__}.FakeSparseArm", "model": None}
    system = make(
        arms={"words": WORDS, "sparse": sparse},
        fusion={"arms": ["words", "sparse"]},
        policy={"depths": {"words": 9, "sparse": 9}},
        ranker=RANKER | {"model": None, "depth": 5},
    )
    assert system.usable() == system.fusion_arms == list(system.depths) == ["words"]
    assert not system.has_ranker
    assert list(system.funnel().arms) == ["words"]
    with pytest.raises(ConfigError, match=r"arms\.sparse\.model is null.*--arms\.sparse\.model FOLDER"):
        system.indexes.build("sparse")
    on = make(arms={"words": WORDS, "sparse": sparse | {"model": "m"}}, ranker=RANKER | {"model": "m"})
    assert on.usable() == on.fusion_arms == ["words", "sparse"]
    assert on.has_ranker
    with pytest.raises(ConfigError, match="no arm is left to fuse"):
        make(arms={"sparse": sparse}).funnel()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"arms": {"s": {"class": f"{__name__}.FakeSparseArm", "model": None, "modle": "x"}}}, "arms.s: .*'modle'"),
        ({"ranker": RANKER | {"model": None, "dept": 3}}, "ranker: unknown key 'dept'; did you mean 'depth'"),
        ({"ranker": {"model": "x"}}, "ranker: has no `class`"),
        ({"ranker": {"class": "ltrr.ranking.none.None", "model": None}}, "ranker.class: cannot import"),
        ({"ranker": "x"}, "ranker"),
        ({"policy": {"class": "ltrr.policies.cut.CutPolicy", "modle": "x"}}, "policy: .*'modle'; did you mean 'model'"),
        ({"policy": {"ct": 9}}, "policy: unknown key 'ct'; did you mean 'cut'"),
        ({"policy": {"class": "ltrr.policies.cut.Cut"}}, "policy.class: cannot import"),
        ({"policy": {"class": "ltrr.policies.fixed.FixedPolicy", "features": ["text"]}}, "policy: .*'features'"),
    ],
)
def test_mistakes_are_named_even_in_parts_that_are_not_there(make, sections, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**sections)


def test_mistakes_in_a_ranker_are_named_when_it_is_made(make) -> None:
    for wrong, message in (({"depth": "many"}, "ranker.depth"), ({"text_fields": ["mood"]}, "mood"), ({"k": 1}, "'k'")):
        with pytest.raises(ValueError, match=message):
            make(ranker=RANKER | {"model": "m", **wrong}).funnel()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fussion": {}}, "settings: unknown key 'fussion'; did you mean 'fusion'"),
        ({"fusion": {"metod": "rrf"}}, "settings: fusion: unknown key 'metod'; did you mean 'method'"),
        ({"fusion": {"method": "sum"}}, r"settings: fusion\.method: .*'rrf' or 'convex', got 'sum'"),
        ({"fusion": ["rrf"]}, r"settings: fusion is \['rrf'\], must be a mapping of arms"),
        ({"serve": {"port": "many"}}, r"settings: serve\.port: .*integer.*'many'"),
        ({"policy": {"class": "ltrr.policies.cut.CutPolicy", "modle": "x"}}, "policy: .*'modle'; did you mean 'model'"),
    ],
)
def test_settings_made_from_python_are_checked(make, wrong, message) -> None:
    """As a YAML file's are, before anything is built; settings that were checked stay as they are."""
    dataset = make().dataset
    with pytest.raises(ConfigError, match=message):
        System({"arms": {"words": WORDS}} | wrong, dataset)
    checked = Settings.of({"arms": {"words": WORDS}, "tune": None})
    assert System(checked, dataset).settings is checked
    assert checked.tune.splits == ["train", "dev"]  # a section that is null is its default


# Where models were trained


@pytest.mark.parametrize("part", ["arm", "ranker"])
def test_nothing_is_weighed_on_queries_that_a_model_was_trained_on(make, tmp_path, part) -> None:
    fingerprint = make().corpus.fingerprint
    dense = {"class": f"{__name__}.FakeArm"}

    def system_of(model: str) -> System:
        if part == "arm":
            return make(arms={"words": WORDS, "dense": dense | {"model": model}})
        return make(arms={"words": WORDS, "dense": dense}, ranker=RANKER | {"model": model})

    where = "arms.dense" if part == "arm" else "ranker"
    here = system_of(trained(tmp_path / "here", fingerprint, "train"))
    assert here.trained_on([where]) == ["train"]
    assert here.trained_on(["arms.words"]) == []
    assert here.tuning.judged("fusion").name == "dev"
    train, dev = ({q.id for q in here.dataset.split(name).queries} for name in ("train", "dev"))
    assert {q.id for q in here.tuning.judged("arms").queries} == train
    for untrained in (
        trained(tmp_path / "elsewhere", "another corpus", "train"),  # zero-shot on this data
        trained(tmp_path / "titles", fingerprint),  # trained on its documents, on no query
        "offline",
    ):
        system = system_of(untrained)
        assert system.trained_on([where]) == []
        assert {q.id for q in system.tuning.judged("fusion").queries} > dev

    elsewhere = {"data": "another corpus", "splits": ["train"], "origins": [{"data": fingerprint, "splits": ["train"]}]}
    trained(tmp_path / "base", "")
    (tmp_path / "base" / "ltrr.json").write_text(json.dumps(elsewhere))
    assert system_of(str(tmp_path / "base")).trained_on([where]) == ["train"]  # what it started from was

    # and the weights that come out were fitted on dev, so that they depend on no train query
    here.order("convex")
    here.funnel()
    assert here.tuned()["convex"]["on"] == "dev"
    if part == "ranker":
        assert here.tuned()["ranker"]["on"] == "15 queries of dev"
        assert set(FakeScorer.asked) == {q.text for q in here.dataset.split("dev").queries}


def test_an_arm_is_not_tuned_on_what_its_own_model_was_trained_on(make, tmp_path) -> None:
    """For example boosts of fields whose text was generated by a model that saw the train queries."""
    notes = trained(tmp_path / "here", make().corpus.fingerprint, "train")
    system = make(arms={"own": {"class": f"{__name__}.Tunable", "notes": notes}})
    system.arm("own")
    assert sorted(Tunable.tuned_on) == sorted(q.id for q in system.dataset.split("dev").queries)
    system = make(arms={"own": {"class": f"{__name__}.Tunable"}, "other": WORDS | {"boost": 2.0}})
    system.arm("own")
    assert Tunable.tuned_on == [q.id for q in system.tuning.judged("arms").queries]


def test_an_arm_to_compare_with_is_tuned_on_the_same_queries(make, tmp_path) -> None:
    notes = trained(tmp_path / "here", make().corpus.fingerprint, "train")
    own = {"class": f"{__name__}.Tunable"}
    system = make(arms={"own": own | {"notes": notes}, "plain": own | {"tune": "fusion"}, "other": own})
    for name in system.specs:
        Tunable.tuned_on.clear()
        system.arm(name)
        split = "train" if name == "other" else "dev"
        assert sorted(Tunable.tuned_on) == sorted(q.id for q in system.dataset.split(split).queries), name
    with pytest.raises(ConfigError, match=r"arms\.own\.tune: 'dev' is none of"):
        make(arms={"own": own | {"tune": "dev"}}).arm("own")


def test_caches_depend_on_what_lies_behind_arguments(make, tmp_path) -> None:
    arms = {"own": {"class": f"{__name__}.Tunable", "notes": str(tmp_path)}}
    before = make(arms=arms).indexes.identity("own")
    assert make(arms=arms).indexes.identity("own") == before
    (tmp_path / "notes.txt").write_text("new")
    Tunable.tuned_on.clear()
    assert make(arms=arms).indexes.identity("own") != before
    assert Tunable.tuned_on  # and was tuned again


# The ranker


def test_the_rankers_weight_is_fitted_once_and_never_on_the_held_out_split(make) -> None:
    sections = {"ranker": RANKER | {"model": "m", "weight": None}}
    first = make(**sections)
    first.funnel()
    fitted = first.tuned()["ranker"]
    assert 0 <= fitted["parameters"]["weight"] <= 1
    assert fitted["on"] == f"{len(first.tuning.judged('fusion').queries)} queries of half of train + dev"
    assert set(FakeScorer.asked) == {q.text for q in first.tuning.judged("fusion").queries}
    held_out = make(hold_out="dev", **sections)  # the ranker too keeps off what is evaluated
    held_out.funnel()
    assert held_out.tuned()["ranker"]["on"].endswith("queries of half of train")

    def asked_again(**changed: Any) -> bool:
        FakeScorer.asked.clear()
        make(**sections | changed).funnel()
        return bool(FakeScorer.asked)

    assert not asked_again()
    assert not asked_again(ranker=RANKER | {"model": "m", "weight": 0.25})  # given: nothing to fit
    assert not asked_again(tune={"splits": []})  # nothing to fit on
    for changed in (
        {"ranker": RANKER | {"model": "another"}},
        {"ranker": RANKER | {"model": "m", "depth": 7}},
        {"policy": {"cut": 12}},
        {"policy": {"depths": {"words": 30}}},
        {"fusion": {"method": "rrf"}},
        {"arms": {"words": WORDS | {"boost": 2.0}}},
        {"tune": {"splits": ["dev"]}},
    ):
        assert asked_again(**changed), changed


def test_a_weight_of_0_is_the_order_before_ranking(make) -> None:
    """Scaled on the cut pool again, scores of several arms would mix to another order."""
    arms = {"words": WORDS, "popular": {"class": "ltrr.arms.popular.Popular"}}
    fusion = {"arms": ["words", "popular"], "weights": {"words": 0.6, "popular": 0.4}}
    system = make(arms=arms, fusion=fusion, ranker=RANKER | {"model": "m", "weight": 0.0}, policy={"cut": 20})
    queries, funnel = system.dataset.split("test").queries, system.funnel()
    drawn = funnel.draw(queries)
    np.testing.assert_array_equal(funnel.rank(queries, drawn).docs, drawn.fused.docs)
    assert (system.order().rank(queries, drawn.pool).docs != drawn.fused.docs).any()  # so the test can fail


def test_the_funnel_ranks_what_it_drew(make) -> None:
    system = make(ranker=RANKER | {"model": "m", "weight": 1.0, "depth": 4}, policy={"cut": 10})
    queries = system.dataset.split("test").queries
    funnel = system.funnel()
    drawn = funnel.draw(queries)
    page = funnel.search(queries, 10)
    for i, query in enumerate(queries):
        before = [row for row in drawn.fused.docs[i].tolist() if row >= 0]
        after = [row for row in page.shown.docs[i].tolist() if row >= 0]
        assert len(before) <= 10
        assert sorted(before) == sorted(after)
        assert after[4:] == before[4:]  # beyond its depth the fused order stays
        texts = [document_text(system.corpus[row], system.corpus.word_fields()) for row in after[:4]]
        shared = [shared_words(query.text, text) for text in texts]
        assert shared == sorted(shared, reverse=True)
