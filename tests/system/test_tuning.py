"""Which judged queries may serve for what, and what was fitted is kept until what it depends on changes."""

import json
from pathlib import Path

import pytest

from ltrr.config import ConfigError
from ltrr.data.beir import Dataset, Document, open_dataset, write_dataset
from ltrr.system.tuning import Tuning, some, trained_on
from ltrr.types import Query


def dataset_of(folder: Path, **sizes: int) -> Dataset:
    """One document; queries "<split><n>" of every split are answered by it."""
    queries = [{"_id": f"{s}{i}", "text": f"about {s} {i}"} for s, size in sizes.items() for i in range(size)]
    qrels = {split: {f"{split}{i}": {"d": 1} for i in range(size)} for split, size in sizes.items()}
    write_dataset(folder, [Document("d", "title", "text", {})], queries, qrels)
    return open_dataset(folder)


def tuning_of(dataset: Dataset, *, hold_out: str = "test", trained: tuple[str, ...] = ()) -> Tuning:
    return Tuning(dataset, Path("unused"), splits=["train", "dev"], hold_out=hold_out, trained=trained)


def ids(tuning: Tuning, purpose: str) -> set[str]:
    judged = tuning.judged(purpose)
    assert set(judged.qrels) == {q.id for q in judged.queries}
    return {q.id for q in judged.queries}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Dataset:
    return dataset_of(tmp_path_factory.mktemp("small"), train=40, dev=10, test=10)


TRAIN, DEV = {f"train{i}" for i in range(40)}, {f"dev{i}" for i in range(10)}


def test_arms_and_fusion_never_share_a_query_and_none_is_of_test(small: Dataset) -> None:
    tuning = tuning_of(small)
    arms, fusion = ids(tuning, "arms"), ids(tuning, "fusion")
    assert arms.isdisjoint(fusion)
    assert arms | fusion == TRAIN | DEV
    assert fusion > DEV
    assert tuning.judged("fusion").name == "half of train + dev"
    assert tuning.judged("arms").key != tuning.judged("fusion").key


def test_a_large_dev_serves_fusion_alone(tmp_path: Path) -> None:
    tuning = tuning_of(dataset_of(tmp_path, train=40, dev=300, test=1))
    assert ids(tuning, "arms") == TRAIN
    assert ids(tuning, "fusion") == {f"dev{i}" for i in range(300)}


def test_fusion_keeps_off_queries_that_a_model_was_trained_on(small: Dataset) -> None:
    tuning = tuning_of(small, trained=("train",))
    assert (ids(tuning, "arms"), ids(tuning, "fusion")) == (TRAIN, DEV)
    assert tuning.judged("fusion").name == "dev"
    nothing = tuning_of(small, trained=("train", "dev")).judged("fusion")
    assert (nothing.queries, nothing.name) == ([], "nothing")


def test_the_split_under_evaluation_is_never_tuned_on(small: Dataset) -> None:
    for trained in ((), ("train",)):
        tuning = tuning_of(small, hold_out="dev", trained=trained)
        assert ids(tuning, "arms") | ids(tuning, "fusion") == TRAIN
        assert ids(tuning, "fusion") if not trained else not ids(tuning, "fusion")


def test_what_was_fitted_is_read_until_what_it_depends_on_changes(small: Dataset, tmp_path: Path) -> None:
    calls: list[int] = []

    def fit() -> dict[str, int]:
        calls.append(1)
        return {"k": len(calls)}

    def new() -> Tuning:
        return Tuning(small, tmp_path, splits=["train"], hold_out="test", trained=())

    first = new()
    assert first.fitted("arm", ("a", 1), fit, "train") == {"k": 1}
    assert first.in_use == {"arm": {"on": "train", "parameters": {"k": 1}}}
    assert new().fitted("arm", ("a", 1), fit, "train") == {"k": 1}  # another process
    assert new().fitted("arm", ("a", 2), fit, "train") == {"k": 2}
    assert len(calls) == 2
    for path in tmp_path.iterdir():
        path.write_text("{")
    with pytest.raises(ConfigError, match=r"arm-\w+\.json: damaged .*delete it"):
        new().fitted("arm", ("a", 1), fit, "train")


def test_some_queries_are_the_same_whatever_their_order() -> None:
    queries = [Query(f"q{i}", "text") for i in range(50)]
    picked = some(queries, 10)
    assert picked == some(queries[::-1], 10)
    assert len({q.id for q in picked}) == 10
    assert picked != queries[:10]
    assert picked == some(queries, 20)[:10]
    assert some(queries, None) == queries
    assert len(some(queries, 99)) == 50


def test_trained_on_reads_what_an_export_says(tmp_path: Path) -> None:
    assert trained_on(tmp_path) is None
    assert trained_on("offline") is None
    told = {"data": "f" * 64, "splits": ["train"], "queries": "0", "name": "x"}
    (tmp_path / "ltrr.json").write_text(json.dumps(told))
    assert trained_on(tmp_path) == told


@pytest.mark.parametrize("text", ["{", "[]", '{"data": "x"}', '{"data": "x", "splits": "train"}', '{"splits": []}'])
def test_a_damaged_note_is_named_and_not_taken_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "ltrr.json").write_text(text)
    with pytest.raises(ConfigError, match=r"ltrr\.json"):
        trained_on(tmp_path)
