"""Training pairs: what is drawn for a query, which batches a device gets, what is held out, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltrr.data.batches import Batches
from ltrr.data.beir import DataError, Document, open_dataset, write_dataset
from ltrr.data.expansions import Expansion, ExpansionWriter
from ltrr.data.pairs import Pairs
from ltrr.metrics import write_run


def pairs(path: Path, **options) -> Pairs:
    out = Pairs(str(path), **options)
    out.setup()
    return out


def examples(data: Pairs, epoch: int = 0):
    return [data.example(i, epoch) for i in range(len(data._sources))]


def test_an_example_has_a_positive_and_unknown_documents(music):
    data = pairs(music, num_negatives=3)
    judged = open_dataset(music).split("train").qrels
    drawn = examples(data)
    assert {e.id for e in drawn} == set(judged)  # the train queries and no others
    for e in drawn:
        assert len(e.documents) == len(e.rows) == len(e.grades) == len(e.teacher) == len(set(e.rows)) == 4
        assert e.positives == frozenset(data.corpus.row(d) for d, g in judged[e.id].items() if g > 0)
        assert e.rows[0] in e.positives
        assert e.grades[0] == judged[e.id][data.corpus.ids[e.rows[0]]]
        assert e.positives.isdisjoint(e.rows[1:])
        assert e.grades[1:] == [0.0] * 3
        assert np.isnan(e.teacher).all()
        assert e.documents == [data.text(row) for row in e.rows]


def test_draws_follow_from_the_seed_and_change_with_the_epoch(music):
    first, again, other = (examples(pairs(music, num_negatives=3, seed=s)) for s in (1, 1, 2))
    assert [e.rows for e in first] == [e.rows for e in again]
    assert [e.rows for e in first] != [e.rows for e in other]
    data = pairs(music, num_negatives=3, seed=1)
    assert [e.rows for e in examples(data, epoch=1)] != [e.rows for e in first]


def test_mined_negatives_come_first_and_never_a_positive(music, tmp_path):
    train = open_dataset(music).split("train").qrels
    run = {q: {"a0": 3.0, "a1": 2.0, next(iter(docs)): 9.0} for q, docs in train.items()}
    write_run(run, tmp_path / "mined.trec", "test")
    data = pairs(music, num_negatives=2, negatives=[str(tmp_path / "mined.trec")])
    for e in examples(data):
        assert {data.corpus.ids[row] for row in e.rows[1:]} == {"a0", "a1"}


def test_teacher_scores_stand_at_their_documents(music, tmp_path):
    train = open_dataset(music).split("train").qrels
    run = {q: {"a0": 0.25, next(iter(docs)): 0.75} for q, docs in train.items()}
    write_run(run, tmp_path / "scores.trec", "test")
    path = str(tmp_path / "scores.trec")
    data = pairs(music, num_negatives=2, negatives=[path], teacher=path)
    for e in examples(data):
        expected = {"a0": 0.25, data.corpus.ids[e.rows[0]]: 0.75}
        for row, score in zip(e.rows, e.teacher, strict=True):
            np.testing.assert_equal(score, expected.get(data.corpus.ids[row], np.nan))


def test_graded_lists_hold_further_positives(tmp_path, music):
    data = open_dataset(music)
    graded = {"train": {"t0": {"s0": 3, "s1": 1, "s2": 0}}, "dev": {"t2": {"s2": 1}}}
    write_dataset(tmp_path, data.corpus, [{"_id": q.id, "text": q.text} for q in data.queries], graded)
    seen = {(row, g) for epoch in range(8) for e in examples(pairs(tmp_path, num_negatives=2, graded=True), epoch)
            for row, g in zip(e.rows, e.grades, strict=True)}  # fmt: skip
    corpus = data.corpus
    assert seen == {(corpus.row("s0"), 3.0), (corpus.row("s1"), 1.0), (corpus.row("s2"), 0.0)}
    plain = {row for epoch in range(8) for e in examples(pairs(tmp_path, num_negatives=1), epoch) for row in e.rows[1:]}
    assert plain == {corpus.row("s2")}  # judged negatives before random ones, other positives never


def test_title_pairs_leave_the_title_out_of_the_document(music):
    data = pairs(music, title_pairs=1.0)
    made = [e for e in examples(data) if e.id.startswith("title:")]
    assert len(made) == len(data.train_queries)
    for e in made:
        document = data.corpus[data.corpus.row(e.id.removeprefix("title:"))]
        assert (e.query, e.documents[0]) == (document.title, document.text)


def test_the_dev_corpus_holds_every_positive_and_the_named_candidates(music, tmp_path):
    data = pairs(music, dev_documents=30, num_candidates=5)
    dev = data.dev_set
    judged = open_dataset(music).split("dev").qrels
    assert set(dev.ids) == set(judged)
    assert len(dev.documents) == len(dev.doc_ids) == 30
    for query, places in zip(dev.ids, dev.candidates, strict=True):
        assert len(places) == len(set(places.tolist())) == 5
        assert set(judged[query]) <= {dev.doc_ids[i] for i in places}
    write_run({q: {"a3": 2.0, "a4": 1.0} for q in judged}, tmp_path / "c.trec", "test")
    dev = pairs(music, candidates=str(tmp_path / "c.trec"), num_candidates=2).dev_set
    assert [[dev.doc_ids[i] for i in places] for places in dev.candidates] == [["a3", "a4"]] * len(dev.ids)
    scores = dev.run([np.array([0.5, 0.7])] * len(dev.ids))
    assert scores[dev.ids[0]] == {"a3": 0.5, "a4": 0.7}


def test_without_a_dev_split_some_train_queries_are_held_out(music):
    data = pairs(music, dev="none")
    train = set(open_dataset(music).split("train").qrels)
    learned, held = {q.id for q in data.train_queries}, set(data.dev_set.ids)
    assert learned | held == train
    assert learned.isdisjoint(held)
    assert {e.id for e in examples(data)} == learned


def batches(count: int = 103, size: int = 4, rank: int = 0, world: int = 1, position=lambda n: (0, 0)) -> Batches:
    lengths = np.random.default_rng(0).integers(1, 1000, count)
    return Batches(lengths, size, 7, rank, world, position)


def test_devices_share_an_epoch_without_overlap():
    parts = [batches(rank=rank, world=3).epoch(5) for rank in range(3)]
    drawn = np.concatenate([p.ravel() for p in parts])
    assert {p.shape for p in parts} == {(103 // 12, 4)}  # full batches, equally many
    assert len(set(drawn.tolist())) == len(drawn)
    assert not np.array_equal(parts[0], batches(rank=0, world=3).epoch(6))


def test_a_batch_holds_similar_lengths():
    sampler = batches(4000, 8)
    spread = np.ptp(sampler._lengths[sampler.epoch(0)], axis=1).mean()
    assert spread < 0.1 * np.ptp(sampler._lengths)


def test_batches_go_on_where_the_optimiser_stopped():
    whole = [b for e in (0, 1) for b in batches().epoch(e).tolist()]
    late = [[i for _, i in batch] for batch in batches(position=lambda n: divmod(31, n))]
    assert late == whole[31 : 2 * len(batches())]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "data.split: test queries must never train"),
        ({"dev": "test"}, "data.dev: test queries must never train"),
        ({"dev": "train"}, "data.dev: 'train' is the training split, too"),
        ({"num_negatives": -1}, "data.num_negatives: -1 must be 0 or more"),
        ({"batch_size": 0}, "data.batch_size: 0 must be 1 or more"),
        ({"title_pairs": -0.5}, "data.title_pairs: -0.5 must be 0 or more"),
        ({"negatives": "nowhere.trec"}, "data.negatives: nowhere.trec: no such file"),
        ({"teacher": "nowhere.trec"}, "data.teacher: nowhere.trec: no such file"),
        ({"generated_pairs": 1.0}, "needs data.expansions"),
        ({"text_fields": ["mood"]}, "no field 'mood'"),
        ({"split": "trian"}, "no split 'trian'"),
    ],
)
def test_wrong_options_are_named(music, options, message):
    with pytest.raises(ValueError, match=message):
        pairs(music, **options)


def test_a_missing_path_is_named():
    with pytest.raises(ValueError, match=r"give --data\.path"):
        Pairs()


def test_run_files_of_other_data_are_named(music, tmp_path):
    write_run({"t0": {"elsewhere": 1.0}}, tmp_path / "run.trec", "test")
    with pytest.raises(DataError, match=r"run\.trec: of another corpus .*elsewhere"):
        pairs(music, negatives=[str(tmp_path / "run.trec")])
    write_run({"unknown": {"a0": 1.0}}, tmp_path / "run.trec", "test")
    for name in ("negatives", "teacher", "candidates"):
        with pytest.raises(DataError, match=rf"data\.{name}: .*run\.trec has no query of the split"):
            pairs(music, **{name: str(tmp_path / "run.trec")})
    (tmp_path / "run.trec").write_text("")
    with pytest.raises(DataError, match=r"data\.teacher: .*run\.trec has no query"):
        pairs(music, teacher=str(tmp_path / "run.trec"))


def little(folder: Path, train: dict, test: dict, texts: dict[str, str], num_docs: int = 12) -> Path:
    documents = [Document(f"d{i}", f"title {i}", f"text {i}", {}) for i in range(num_docs)]
    queries = [{"_id": name, "text": text} for name, text in texts.items()]
    qrels = {name: split for name, split in (("train", train), ("test", test)) if split}
    write_dataset(folder, documents, queries, qrels)
    return folder


def test_what_test_asks_is_not_learned(tmp_path):
    texts = {"a": "Love  songs", "b": "love songs", "c": "night", "d": "river"}
    relevant = {name: {f"d{i}": 1} for i, name in enumerate(texts)}
    train = {name: relevant[name] for name in "acd"}
    folder = little(tmp_path / "x", train, {name: relevant[name] for name in "bc"}, texts)
    with pytest.warns(UserWarning, match="as test asks the same: 2"):
        data = pairs(folder, dev="none")
    assert {q.id for q in data.train_queries} | set(data.dev_set.ids) == {"d"}


@pytest.mark.parametrize("positives", [10, 11])
def test_negatives_are_found_where_few_documents_are_left(tmp_path, positives):
    relevant = {f"d{i}": 1 for i in range(positives)}
    folder = little(tmp_path / "x", {"q0": relevant, "q1": {"d0": 1}}, {}, {"q0": "love", "q1": "river"})
    data = pairs(folder, dev="none", num_negatives=3)
    drawn = [e for epoch in range(5) for e in examples(data, epoch) if e.id == "q0"]
    for e in drawn:
        assert len(e.rows) == 4
        assert set(e.rows[1:]) <= set(range(positives, 12))
    full = little(tmp_path / "y", {"q0": {f"d{i}": 1 for i in range(12)}}, {}, {"q0": "love"})
    with pytest.raises(DataError, match="all documents are positives of query 'q0'"):
        examples(pairs(full, dev="none"))


def test_without_labels_titles_and_generated_queries_are_learned(tmp_path):
    folder = little(tmp_path / "x", {}, {"q": {"d0": 1}}, {"q": "love"})
    with pytest.raises(DataError, match=r"no split 'train'"):
        pairs(folder)
    data = pairs(folder, title_pairs=0.5)
    assert data.trained_on()["splits"] == []
    assert len(examples(data)) == 6
    for e in examples(data):
        assert (e.query, e.documents[0]) == (f"title {e.rows[0]}", f"text {e.rows[0]}")
    writer = ExpansionWriter(tmp_path / "expanded", data.corpus, model="m", settings={}, shard=5)
    for rows in writer.missing():
        writer.write(rows, [[Expansion(f"words about {row}", -1.0, 3)] for row in rows])
    writer.finish()
    data = pairs(folder, expansions=str(tmp_path / "expanded"), generated_pairs=1.0)
    assert sorted(e.query for e in examples(data)) == sorted(f"words about {i}" for i in range(12))
    for e in examples(data):
        assert e.query == f"words about {e.rows[0]}"
        assert e.documents[0] == f"title {e.rows[0]} text {e.rows[0]}".replace(" text", "\ntext") or e.documents[0]
