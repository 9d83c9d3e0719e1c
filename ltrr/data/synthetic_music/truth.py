"""Grades the entities of the music world for a query, from their latent truth.

Knows the latent world and the names; knows nothing about a query's wording, its customer, descriptions or files.
Judgements hold on the day of the query (unreleased entities are not relevant); no retrieval system takes part.
Legend: N entities, G genres, P positives of a query; grades are 1 to 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ltrr.data.synthetic_music.world import (
    ALBUM,
    DECADES,
    GENRES,
    LANGUAGES,
    MOODS,
    SONG,
    STATION,
    TOPICS,
    TYPES,
    Names,
    World,
)
from ltrr.types import top_k

MAX_POSITIVES = 30  # of one query


class Truth(NamedTuple):
    """The positives of one query."""

    rows: np.ndarray  # (P,) int32
    grades: np.ndarray  # (P,)


class Predicate(NamedTuple):
    """Conditions on an entity, as indexes into the world's lists; −1 = no condition."""

    kind: int = -1
    genre: int = -1
    mood: int = -1
    topic: int = -1
    decade: int = -1
    language: int = -1

    def names(self) -> dict[str, str]:
        """Returns the conditions in words of the metadata: part -> name."""
        words = TYPES, list(GENRES), list(MOODS), list(TOPICS), DECADES, LANGUAGES
        return {f: w[code] for f, w, code in zip(self._fields, words, self, strict=True) if code >= 0}

    def label(self) -> str:
        """Returns the conditions as one string: "genre=pop mood=sad"."""
        return " ".join(f"{part}={name}" for part, name in self.names().items())


def traits(world: World, row: int) -> Predicate:
    """Returns an entity's narrowest predicate, with its main genre (none for a podcast), main mood, and the rest."""
    genre = int(world.genres[row].argmax()) if world.genres[row].any() else -1
    rest = (int(column[row]) for column in (world.topic, world.decade, world.language))
    return Predicate(int(world.kind[row]), genre, int(world.moods[row].argmax()), *rest)


def liking(genres: np.ndarray, tastes: np.ndarray) -> np.ndarray:
    """Computes the dot product of genres (..., G) and tastes (..., G), both in percent: int32 in 0..10,000."""
    return np.einsum("...g,...g->...", genres.astype(np.int32), tastes.astype(np.int32))


def membership(world: World, predicate: Predicate) -> np.ndarray:
    """Computes the fit to a predicate, (N,) float32 in [0, 1]: a product, with genre and mood at 1 from 50 % weight."""
    match = np.ones(len(world.kind), np.float32)
    for code, weights in ((predicate.genre, world.genres), (predicate.mood, world.moods)):
        if code >= 0:
            match *= np.minimum(weights[:, code] / np.float32(50), 1)
    columns = world.kind, world.topic, world.decade, world.language
    for code, column in zip((predicate.kind, *predicate[3:]), columns, strict=True):
        if code >= 0:
            match *= column == code
    return match


def utility(world: World, match: np.ndarray, day: int) -> np.ndarray:
    """Computes match (N,) × (.4 + .6 appeal), or 0 if not released by `day`: (N,) float32 in [0, 1]."""
    return match * (np.float32(0.4) + np.float32(0.6) * world.appeal) * (world.day <= day)


def graded(useful: np.ndarray, cap: int = MAX_POSITIVES, steps: tuple[float, ...] = (0.5, 0.7, 0.85)) -> Truth:
    """Grades the `cap` most useful entities by the steps they reach; if none reaches the first, only the best."""
    rows = np.flatnonzero(useful >= min(np.float32(steps[0]), useful.max()))
    best = top_k(rows[None].astype(np.int32), useful[None, rows], min(cap, len(rows)))
    return Truth(best.docs[0], np.digitize(best.scores[0], steps).clip(min=1))


def of_name(world: World, names: Names, row: int, day: int, *, with_artist: bool, word: str = "") -> Truth:
    """Grades a query that names an entity.

    The target gets 3. Titles of its artist with `word` (the only word of the title in the query) get 2. The artist, the
    album or its songs, titles of the same name, and an artist's stations and five most played songs get 1. Equal names
    by other artists get 1 if the query names no artist.
    """
    grades: dict[int, int] = {}
    if not with_artist:
        same = np.flatnonzero(names.alike == names.alike[row])
        grades |= dict.fromkeys(same[np.argsort(-world.plays[same], kind="stable")[:10]].tolist(), 1)
    artist = world.artist[row]
    if artist >= 0:
        by_artist = np.flatnonzero(world.artist == artist)
        related = (names.alike[by_artist] == names.alike[row]) | (by_artist == artist) | (by_artist == world.album[row])
        related |= world.album[by_artist] == row
        related |= (world.kind[by_artist] == STATION) & (row == artist)
        grades |= dict.fromkeys(by_artist[related].tolist(), 1)
        if row == artist:
            songs = by_artist[world.kind[by_artist] == SONG]
            grades |= dict.fromkeys(songs[np.argsort(-world.plays[songs], kind="stable")[:5]].tolist(), 1)
        grades |= {other: 2 for other in by_artist.tolist() if word in names.titles[other].split()}
    grades.pop(row, None)
    others = [other for other in grades if world.day[other] <= day]
    return Truth(np.array([row, *others], np.int32), np.array([3, *(grades[other] for other in others)]))


def of_word(world: World, word: str, called: np.ndarray, tastes: np.ndarray, day: int) -> Truth:
    """Grades a query of one ambiguous word: the five best of each type by match, appeal and customer's tastes (G,).

    The match is 1 if the entity's name contains the word, .9 × weight of a genre with it, or .6 for a topic with it.
    """
    match = np.zeros(len(world.kind), np.float32)
    for code, (words, *_) in enumerate(TOPICS.values()):
        if word.capitalize() in words.split():
            match[world.topic == code] = 0.6
    for code, genre in enumerate(GENRES):
        if word in genre.split():
            match = np.maximum(match, np.float32(0.9) * membership(world, Predicate(genre=code)))
    match[called] = 1
    rows = np.flatnonzero(match)
    taste = np.minimum(liking(world.genres[rows], tastes) / np.float32(3000), 1)
    match[rows] *= np.float32(0.7) + np.float32(0.3) * taste
    useful, steps = (
        utility(world, match, day),
        (0.28, 0.55, 0.75),
    )  # a released entity whose name has the word reaches .28
    by_type = (np.where(world.kind == kind, useful, 0) for kind in range(len(TYPES)))
    parts = [graded(by_kind, cap=5, steps=steps) for by_kind in by_type if by_kind.max() >= steps[0]]
    return Truth(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def of_likeness(world: World, row: int, kind: int, day: int) -> Truth:
    """Grades "like this one": the 20 of a type most alike in genres (.5), moods (.3), topic (.1) and decade (.1)."""
    alike = 50 * np.minimum(world.genres, world.genres[row]).sum(1, dtype=np.int32)  # (N,) in 0..5,000
    alike += 30 * np.minimum(world.moods, world.moods[row]).sum(1, dtype=np.int32)
    alike += 1000 * ((world.topic == world.topic[row]).astype(np.int32) + (world.decade == world.decade[row]))
    alike[(world.kind != kind) | (np.arange(len(alike)) == row)] = 0
    return graded(utility(world, (alike / 10_000).astype(np.float32), day), cap=20, steps=(0.4, 0.5, 0.6))


def newest_by(world: World, artist: int, day: int) -> Truth:
    """Grades an artist's ten newest records: 3 within 120 days of the newest, 2 within three years, else 1."""
    rows = np.flatnonzero(
        (world.artist == artist) & ((world.kind == SONG) | (world.kind == ALBUM)) & (world.day <= day)
    )
    rows = rows[np.argsort(-world.day[rows], kind="stable")[:10]]
    age = world.day[rows[0]] - world.day[rows]
    return Truth(rows.astype(np.int32), np.where(age <= 120, 3, np.where(age <= 1095, 2, 1)))


def newest_of(world: World, predicate: Predicate, day: int) -> Truth:
    """Grades at most 20 new records of a genre by match × recency (1 on `day`, 0 after 400 days) × (.4 + .6 appeal)."""
    recency = np.clip(1 - (day - world.day) / np.float32(400), 0, 1).astype(np.float32)
    records = (world.kind == SONG) | (world.kind == ALBUM)
    return graded(utility(world, membership(world, predicate) * recency * records, day), cap=20, steps=(0.1, 0.4, 0.6))
