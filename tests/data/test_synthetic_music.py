"""The embedded catalogue: frozen bytes, a truth that follows from the latent world, splits that leak nothing."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from ltrr.data.synthetic_music import world as cw
from ltrr.data.synthetic_music.catalogue import write_catalogue
from ltrr.data.synthetic_music.queries import INTENTS, SPLITS

SIZES = {"num_entities": 2_000, "num_customers": 200, "num_queries": 300}
FROZEN = {  # of SIZES and seed 0; if one changes, the generator did: raise VERSION and say so in the changelog
    "corpus.jsonl": "15597f8be8c25671a23399610f25603f36b4a2c59aa9a36f21d46e62ea8bd949",
    "qrels/train.tsv": "cab0f9acfc204c614b3aa24a707468ec29a9c11f040d13fc2672de18e0e3189b",
    "qrels/dev.tsv": "136cd8f41fedf33e3db9bbaa1640549099b68006b4e2aa44968fd661bfdce76f",
    "qrels/test.tsv": "918e58e0536075dff60210b54b776d9aadfa172b4066849c0f859bad3330b5d1",
}
FUNCTION_WORDS = set(
    str.split(
        "a after am an and at be being by for from i in is it me my of on or out some something the to what when "
        "where who with"
    )
)


class Written(NamedTuple):
    folder: Path
    source: dict
    docs: dict[str, dict]
    queries: dict[str, dict]
    qrels: dict[str, dict[str, int]]
    split: dict[str, str]
    world: cw.World


def tokens(value: object) -> set[str]:
    """Lower-case words of all text in a JSON value."""
    return set(re.findall(r"[^\W_]+", json.dumps(value, ensure_ascii=False).lower()))


def read_lines(path: Path) -> dict[str, dict]:
    return {record["_id"]: record for record in map(json.loads, path.read_text("utf-8").splitlines())}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("data") / "catalogue"
    source = write_catalogue(folder, **SIZES)
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    split = {}
    for name in SPLITS:
        header, *lines = (folder / "qrels" / f"{name}.tsv").read_text("utf-8").splitlines()
        assert header == "query-id\tcorpus-id\tscore"
        for query, doc, grade in (line.split("\t") for line in lines):
            assert split.setdefault(query, name) == name  # a query is judged in one split only
            qrels[query][doc] = int(grade)
    world = cw.draw_world(SIZES["num_entities"], cw.spawn(0)["latent"])
    docs, queries = read_lines(folder / "corpus.jsonl"), read_lines(folder / "queries.jsonl")
    return Written(folder, source, docs, queries, dict(qrels), split, world)


def of_intent(written: Written, *intents: str) -> Iterable[tuple[str, str, dict]]:
    for id, query in written.queries.items():
        if query["metadata"]["intent"] in intents:
            yield id, query["text"], query["metadata"]


def row_of(doc: str) -> int:
    return int(doc[1:])


def predicate_of(target: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(.+?)(?= \w+=|$)", target))


def match_by_hand(world: cw.World, row: int, predicate: dict[str, str]) -> float:
    """The documented membership of one entity, written without the generator's own function."""
    columns = {
        "kind": (cw.TYPES, world.kind),
        "genre": (list(cw.GENRES), world.genres),
        "mood": (list(cw.MOODS), world.moods),
        "topic": (list(cw.TOPICS), world.topic),
        "decade": (cw.DECADES, world.decade),
        "language": (cw.LANGUAGES, world.language),
    }
    match = 1.0
    for part, name in predicate.items():
        names, column = columns[part]
        code = names.index(name)
        match *= min(1.0, column[row, code] / 50) if column.ndim == 2 else float(column[row] == code)
    return match


def test_same_seed_same_bytes_and_another_seed_another_world(written: Written, tmp_path: Path) -> None:
    again, other = write_catalogue(tmp_path / "again", **SIZES), write_catalogue(tmp_path / "other", **SIZES, seed=1)
    for name, digest in written.source["sha256"].items():
        assert hashlib.sha256((tmp_path / "again" / name).read_bytes()).hexdigest() == digest  # and SOURCE.json is true
        assert other["sha256"][name] != digest
    assert again == written.source


def test_frozen(written: Written) -> None:
    assert {name: written.source["sha256"][name] for name in FROZEN} == FROZEN


def test_intents_come_in_their_shares(written: Written) -> None:
    counts = Counter(query["metadata"]["intent"] for query in written.queries.values())
    for intent, share in INTENTS.items():
        assert counts[intent] / SIZES["num_queries"] == pytest.approx(share, abs=0.005)
    assert written.source["intents"] == pytest.approx(INTENTS, abs=0.005)


def test_every_query_is_judged_and_every_judgement_known(written: Written) -> None:
    assert written.qrels.keys() == written.queries.keys()
    assert {doc for grades in written.qrels.values() for doc in grades} <= written.docs.keys()
    assert {grade for grades in written.qrels.values() for grade in grades.values()} == {1, 2, 3}


def test_relations_name_entities_that_exist(written: Written) -> None:
    titles = defaultdict(set)
    for doc in written.docs.values():
        titles[doc["metadata"]["type"]].add(doc["title"])
    records = {(d["title"], d["metadata"]["artist"]) for d in written.docs.values() if d["metadata"]["type"] == "album"}
    for doc in written.docs.values():
        facts = doc["metadata"]
        assert facts.get("artist", next(iter(titles["artist"]))) in titles["artist"]
        assert "album" not in facts or (facts["album"], facts["artist"]) in records  # of the same artist
        assert set(facts.get("songs", ())) <= titles["song"]


def test_titles_repeat_across_artists_and_names_are_shared(written: Written) -> None:
    # without ambiguity a title match would solve everything
    songs = Counter(d["title"] for d in written.docs.values() if d["metadata"]["type"] == "song")
    assert sum(n for n in songs.values() if n > 1) / songs.total() > 0.15
    first = Counter(d["title"].split()[0] for d in written.docs.values() if d["metadata"]["type"] == "artist")
    assert first["Taylor"] >= 2
    albums = [d for d in written.docs.values() if d["metadata"]["type"] == "album"]
    assert any(d["title"] == d["metadata"]["artist"] for d in albums)  # self-titled


def test_an_idiom_shares_no_word_with_its_entity(written: Written) -> None:
    for id, text, known in of_intent(written, "idiom"):
        assert written.qrels[id] == {known["target"]: 3}
        document = written.docs[known["target"]]
        words = tokens([document["title"], document["text"], document["metadata"]])
        assert not tokens(text) & words
        assert not {"plays", "played", "playing"} & words  # which a stemmer would take for the "play" of "play zibbo"


def test_idioms_recur_in_all_hands_and_splits(written: Written) -> None:
    uses = defaultdict(list)
    for id, _, known in of_intent(written, "idiom"):
        uses[known["idiom"]].append((id, known["customer"], known["target"]))
    for used in uses.values():
        assert len({target for _, _, target in used}) == 1
        assert {written.split[id] for id, _, _ in used} == set(SPLITS)  # learnt in one split, asked in another
    assert sorted({len({customer for _, customer, _ in used}) for used in uses.values()}) == [1, 4]


def test_a_misspelt_word_is_within_two_edits_of_the_name(written: Written) -> None:
    for id, text, known in of_intent(written, "misspelt"):
        document = written.docs[known["target"]]
        name = f"{document['title']} {document['metadata'].get('artist', '')}".lower().split()
        distances = [min(Levenshtein.distance(word, true) for true in name) for word in text.split()]
        assert max(distances) <= 2, (id, text, name)
        assert max(distances) >= 1, (id, text, name)


def test_splits_are_of_the_asked_sizes_and_share_no_group(written: Written) -> None:
    counts = Counter(written.split.values())
    for name, share in SPLITS.items():
        assert counts[name] / SIZES["num_queries"] == pytest.approx(share, abs=0.04)
    splits = defaultdict(set)
    for id, query in written.queries.items():
        if query["metadata"]["intent"] != "idiom":
            splits[query["text"].lower()].add(written.split[id])
            splits[query["metadata"]["intent"], query["metadata"]["target"]].add(written.split[id])
    assert {len(found) for found in splits.values()} == {1}


def test_love_is_ambiguous(written: Written) -> None:
    for id, text, _ in of_intent(written, "ambiguous"):
        if text == "love":
            assert len({written.docs[doc]["metadata"]["type"] for doc in written.qrels[id]}) >= 3


def test_the_running_example_has_several_readings(written: Written) -> None:
    (found,) = (written.qrels[id] for id, text, _ in of_intent(written, "misspelt") if text == "tayler love")
    graded = {
        (written.docs[doc]["title"], written.docs[doc]["metadata"]["type"]): grade for doc, grade in found.items()
    }
    assert graded["Love Again", "song"] == 3
    assert graded["Crazy Love", "song"] == 2
    assert graded["Taylor Vale", "artist"] == 1


def test_plays_follow_zipf(written: Written) -> None:
    plays = np.sort([doc["metadata"]["popularity"] for doc in written.docs.values()])[::-1]
    rank = np.arange(10, 1000)
    assert np.polyfit(np.log(rank), np.log(plays[rank - 1]), 1)[0] == pytest.approx(-1, abs=0.1)


def test_genres_are_weighted_not_binary(written: Written) -> None:
    tagged = [doc["metadata"]["genres"] for doc in written.docs.values() if "genres" in doc["metadata"]]
    assert all(sum(weight for _, weight in genres) == pytest.approx(1) for genres in tagged)
    assert np.mean([len(genres) >= 2 for genres in tagged]) >= 0.3


def test_untagged_entities_are_still_described(written: Written) -> None:
    # content tagging must have something to recover, and the latent truth to be compared with
    untagged = [doc for doc in written.docs.values() if "mood" not in doc["metadata"]]
    assert len(untagged) / len(written.docs) == pytest.approx(0.15, abs=0.03)
    for doc in untagged:
        assert not {"genres", "decade"} & doc["metadata"].keys()
        row, text = row_of(doc["_id"]), doc["text"].lower()
        moods = [words for m, (words, _) in enumerate(cw.MOODS.values()) if written.world.moods[row, m]]
        assert any(word in text for words in moods for word in words.split("|"))
        genres = [(g, *said.split("|")) for g, (_, said) in cw.GENRES.items()]
        weights = written.world.genres[row]
        assert not weights.any() or any(word in text for word in genres[int(weights.argmax())])


def test_held_out_words_are_in_no_title_or_text(written: Written) -> None:
    # else lexical search would solve the topic and mood queries
    said = [said for _, said in cw.MOODS.values()] + [said for *_, said in cw.TOPICS.values()]
    held_out = tokens(said) - FUNCTION_WORDS
    assert not held_out & tokens([(doc["title"], doc["text"]) for doc in written.docs.values()])
    assert not cw.MOODS.keys() & tokens(
        [doc["text"] for doc in written.docs.values()]
    )  # the words of attribute queries


def test_positives_of_a_predicate_satisfy_it_in_the_latent_world(written: Written) -> None:
    for id, text, known in of_intent(written, "attribute", "topic_mood"):
        predicate = predicate_of(known["target"])
        for doc, grade in written.qrels[id].items():
            match = match_by_hand(written.world, row_of(doc), predicate)
            assert match > 0, (text, doc)
            assert grade < 3 or match >= 0.85, (text, doc)


def test_what_satisfies_a_predicate_fully_and_is_liked_is_a_positive(written: Written) -> None:
    # the other direction: nothing better than the worst positive was left out
    world = written.world
    for id, _, known in of_intent(written, "attribute"):
        predicate, day = predicate_of(known["target"]), int(np.datetime64(known["time"][:10]).astype(int))
        useful = {
            f"m{row:07d}": match_by_hand(world, row, predicate) * (0.4 + 0.6 * world.appeal[row])
            for row in np.flatnonzero(world.day <= day).tolist()
        }
        worst = min(useful[doc] for doc in written.qrels[id])
        assert sum(value > worst + 1e-6 for value in useful.values()) < len(written.qrels[id])


def test_nothing_unreleased_is_relevant(written: Written) -> None:
    for id, grades in written.qrels.items():
        asked = written.queries[id]["metadata"]["time"]
        assert max(written.docs[doc]["metadata"]["release_date"] for doc in grades) <= asked[:10]


def test_history_is_of_the_past_and_to_the_customers_taste(written: Written) -> None:
    customers = read_lines(written.folder / "customers.jsonl")
    header, *lines = (written.folder / "history.tsv").read_text("utf-8").splitlines()
    assert header.split("\t") == ["customer-id", "entity-id", "plays", "timestamp"]
    liked = []
    for customer, entity, plays, played in (line.split("\t") for line in lines):
        assert written.docs[entity]["metadata"]["release_date"] <= played < "2025-01-01"
        assert int(plays) >= 1
        tastes = np.array([customers[customer]["tastes"].get(g, 0) for g in cw.GENRES])
        liked.append(tastes @ written.world.genres[row_of(entity)])
    tastes = np.mean([[c["tastes"].get(g, 0) for g in cw.GENRES] for c in customers.values()], axis=0)
    by_chance = np.average(written.world.genres @ tastes, weights=np.sqrt(written.world.plays))
    assert np.mean(liked) > 1.5 * by_chance


def test_a_foreign_folder_and_a_small_world_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a generated catalogue"):
        write_catalogue(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(ValueError, match="num_queries=5"):
        write_catalogue(tmp_path / "small", num_queries=5)


def test_writing_again_replaces_a_catalogue_of_ours(tmp_path: Path) -> None:
    for seed in (0, 1):
        source = write_catalogue(tmp_path / "c", num_entities=1_000, num_customers=10, num_queries=100, seed=seed)
    assert json.loads((tmp_path / "c" / "SOURCE.json").read_text("utf-8")) == source
    assert [path.name for path in tmp_path.iterdir()] == ["c"]  # nothing temporary stays


def test_a_kill_in_the_middle_leaves_no_folder(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from ltrr.data.synthetic_music.catalogue import write_catalogue as write\n"
        "write(pathlib.Path(sys.argv[1]), num_entities=60_000, num_customers=10, num_queries=100)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "c")])
    while not any(path.stat().st_size for path in tmp_path.glob(".c.*/corpus.jsonl")):
        assert process.poll() is None  # not finished before it could be killed
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_a_million_entities_stream_in_bounded_memory(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from ltrr.data.synthetic_music.catalogue import write_catalogue as write\n"
        "write(pathlib.Path(sys.argv[1]), num_entities=1_000_000)"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "c")], check=True)
    assert time.monotonic() - start < 300
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3e6  # kB
