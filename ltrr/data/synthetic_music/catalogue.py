"""Writes the embedded music catalogue: a seeded synthetic world of any size, as a BEIR folder.

Knows the metadata and the files of the folder. `world` draws the entities, `names` names and describes them,
`customers` draws the listeners, `queries` their queries, and `truth` grades the entities for a query. The data are
synthetic: docs/data-model.md explains how the truth is made.
Legend: N entities.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ltrr.data.synthetic_music.customers import DEVICES, LOCALES, Customers, History, draw_customers, draw_history
from ltrr.data.synthetic_music.names import CHUNK, describe, draws, name_world
from ltrr.data.synthetic_music.queries import INTENTS, SPLITS, Entry, assign_splits, draw_log
from ltrr.data.synthetic_music.world import (
    ARTIST,
    DECADES,
    GENRES,
    LANGUAGES,
    MOODS,
    PLAYLIST,
    PODCAST,
    TOPICS,
    TYPES,
    Names,
    World,
    doc_id,
    draw_world,
    spawn,
)

VERSION = "1"  # of the generator; increase it when any output byte changes
GENERATOR = "ltrr.data.synthetic_music.catalogue"


def _facts(world: World, names: Names, rows: np.ndarray) -> Iterator[dict]:
    """Yields the complete true metadata of each row, including fields that will not be written."""
    genres, moods, titles = list(GENRES), list(MOODS), names.titles
    member_row = np.cumsum(world.kind == PLAYLIST) - 1  # (N,)
    dates = np.datetime_as_string(world.day[rows].astype("datetime64[D]")).tolist()
    top_three = [
        np.argsort(-w[rows].astype(np.int16), axis=1, kind="stable")[:, :3].tolist()
        for w in (world.genres, world.moods)
    ]
    for row, date, top_genres, top_moods in zip(rows.tolist(), dates, *top_three, strict=True):
        kind, artist, album = world.kind[row], world.artist[row], world.album[row]
        facts: dict = {"type": TYPES[kind]}
        if artist >= 0 and kind != ARTIST:
            facts["artist"] = titles[artist]
        if album >= 0:
            facts["album"] = titles[album]
        if kind == PLAYLIST:
            facts["songs"] = [titles[song] for song in world.members[member_row[row]]]
        if kind == PODCAST:
            facts |= {"host": names.hosts[row], "topic": list(TOPICS)[world.topic[row]]}
        else:
            facts["genres"] = [
                [genres[g], world.genres[row, g].item() / 100] for g in top_genres if world.genres[row, g]
            ]
        facts["mood"] = [[moods[m], world.moods[row, m].item() / 100] for m in top_moods if world.moods[row, m]]
        facts |= {
            "decade": DECADES[world.decade[row]],
            "language": LANGUAGES[world.language[row]],
            "release_date": date,
        }
        yield facts | {"year": int(date[:4]), "popularity": world.plays[row].item()}


def _documents(world: World, names: Names, rng: np.random.Generator) -> Iterator[str]:
    """Yields the corpus, a JSON line per entity. Untagged entities keep their text but lose genres, mood and decade."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for start in range(0, len(world.kind), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(world.kind)))
        for row, facts, u in zip(rows.tolist(), _facts(world, names, rows), draws(rng, len(rows)), strict=True):
            text = describe(facts, world.topic[row], u)
            for field in ("genres", "mood", "decade") if world.untagged[row] else ():
                facts.pop(field, None)
            yield encode({"_id": doc_id(row), "title": names.titles[row], "text": text, "metadata": facts})


def _customer_id(customer: int) -> str:
    """Returns the id of a customer."""
    return f"c{customer:06d}"


def _customer_lines(customers: Customers) -> Iterator[str]:
    """Yields customers as JSON lines: id, locale, language, device, tastes, mood; favourites and hours stay latent."""
    locales, devices, genres, moods = list(LOCALES), list(DEVICES), list(GENRES), list(MOODS)
    for i, (locale, device) in enumerate(zip(customers.locale, customers.device, strict=True)):
        document = {
            "_id": _customer_id(i),
            "locale": locales[locale],
            "language": LANGUAGES[LOCALES[locales[locale]]],
            "device": devices[device],
            "tastes": {genres[g]: customers.tastes[i, g].item() / 100 for g in np.flatnonzero(customers.tastes[i])},
            "mood": {moods[m]: customers.moods[i, m].item() / 100 for m in np.flatnonzero(customers.moods[i])},
        }
        yield json.dumps(document, ensure_ascii=False)


def _history_lines(history: History) -> Iterator[str]:
    """Yields the history as tab-separated lines with a header; the timestamp is that of the last play."""
    yield "customer-id\tentity-id\tplays\ttimestamp"
    for customer, row, plays, time in zip(*history, strict=True):
        yield f"{_customer_id(customer)}\t{doc_id(row)}\t{plays}\t{time}"


def _query_id(place: int) -> str:
    """Returns the id of the query at a place of the log."""
    return f"q{place:06d}"


def _query_lines(log: list[Entry]) -> Iterator[str]:
    """Yields queries as JSON lines; intent, target and idiom are for analysis only, never for an arm or a feature."""
    for i, entry in enumerate(log):
        metadata = {
            "intent": entry.intent,
            "customer": _customer_id(entry.customer),
            "locale": entry.locale,
            "device": entry.device,
            "time": str(entry.time),
            "target": entry.target,
        }
        metadata |= {"idiom": entry.idiom} if entry.idiom else {}
        yield json.dumps({"_id": _query_id(i), "text": entry.text, "metadata": metadata}, ensure_ascii=False)


def _qrels_lines(log: list[Entry], splits: list[str], split: str) -> Iterator[str]:
    """Yields one split's qrels as BEIR's tab-separated lines, with a header."""
    yield "query-id\tcorpus-id\tscore"
    for i, entry in enumerate(log):
        for row, grade in zip(*entry.truth, strict=True) if splits[i] == split else ():
            yield f"{_query_id(i)}\t{doc_id(row)}\t{grade}"


def _write(path: Path, lines: Iterable[str]) -> str:
    """Streams lines to a file and returns its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for line in lines:
            data = f"{line}\n".encode()
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _refuse_foreign(folder: Path) -> None:
    """Raises ValueError unless the folder is absent, empty or a generated catalogue."""
    source = folder / "SOURCE.json"
    ours = source.is_file() and json.loads(source.read_text("utf-8")).get("generator") == GENERATOR
    if folder.exists() and not ours and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something that is not a generated catalogue: name another folder or empty it")


def _check_sizes(num_entities: int, num_customers: int, num_queries: int) -> None:
    for name, value, least in (
        ("num_entities", num_entities, 1_000),
        ("num_customers", num_customers, 10),
        ("num_queries", num_queries, 100),
    ):
        if value < least:
            raise ValueError(f"{name}={value}: the world needs at least {least}")


def write_catalogue(
    folder: Path, *, num_entities: int = 10_000, num_customers: int = 1_000, num_queries: int = 3_000, seed: int = 0
) -> dict:
    """Writes the world of one seed and returns the content of SOURCE.json.

    Streams to a temporary folder beside `folder` and renames it, so that readers never see an unfinished catalogue.
    Replaces an earlier catalogue.

    Args:
        folder: target; missing parents are created.
        num_entities: number of documents, ≥ 1,000.
        num_customers: ≥ 10.
        num_queries: ≥ 100, split 60/15/25 into train, dev and test.
        seed: seeds all random draws.

    Raises:
        ValueError: a size is too small, or the folder holds something else.
    """
    _check_sizes(num_entities, num_customers, num_queries)
    _refuse_foreign(folder)
    rngs = spawn(seed)
    world = draw_world(num_entities, rngs["latent"])
    names = name_world(world, rngs["names"])
    customers = draw_customers(world, num_customers, rngs["customers"])
    history = draw_history(world, customers, rngs["history"])
    log = draw_log(world, names, customers, history, num_queries, rngs["queries"])
    splits = assign_splits(log, rngs["splits"])
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "qrels").mkdir(parents=True)
        files = {
            "corpus.jsonl": _documents(world, names, rngs["texts"]),
            "queries.jsonl": _query_lines(log),
            "customers.jsonl": _customer_lines(customers),
            "history.tsv": _history_lines(history),
            **{f"qrels/{split}.tsv": _qrels_lines(log, splits, split) for split in SPLITS},
        }
        source = {
            "generator": GENERATOR,
            "version": VERSION,
            "note": "synthetic: no real artist, work or listener",
            "seed": seed,
            "num_entities": num_entities,
            "num_customers": num_customers,
            "num_queries": num_queries,
            "splits": {split: splits.count(split) for split in SPLITS},
            "intents": {name: round(sum(e.intent == name for e in log) / len(log), 4) for name in INTENTS},
            "sha256": {name: _write(partial / name, lines) for name, lines in files.items()},
        }
        _write(partial / "SOURCE.json", [json.dumps(source, indent=2)])
        if folder.exists():
            folder.rename(partial / "replaced")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder / "replaced", ignore_errors=True)
    return source
