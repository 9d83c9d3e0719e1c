"""Draws the embedded music world: the latent truth of every entity, and the lists that it refers to.

Knows the kind, genres, moods, topic, decade, language, plays, quality and relations of entities; knows nothing about
names, texts, customers, queries or files. Weights are whole percents, so that sums and intersections are exact on every
machine. Legend: N entities, G genres, M moods, T topics, B rows of a batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

TYPES = ("artist", "album", "song", "playlist", "station", "podcast")
ARTIST, ALBUM, SONG, PLAYLIST, STATION, PODCAST = range(6)
TYPE_SHARES = (0.10, 0.12, 0.62, 0.07, 0.03, 0.06)
TYPE_HEAT = (0.8, -0.2, 0.0, -0.2, -0.2, -0.3)  # added to log appeal before plays are ranked
DECADES = ("60s", "70s", "80s", "90s", "2000s", "2010s", "2020s")
LANGUAGES = ("English", "Spanish", "French", "German", "Portuguese", "Swedish", "Italian")
LANGUAGE_SHARES = (0.64, 0.11, 0.07, 0.06, 0.06, 0.03, 0.03)
QUERIES_FROM, LAST_DAY = (int(np.datetime64(d).astype(int)) for d in ("2025-01-01", "2025-06-30"))  # days since 1970
NUM_MEMBERS = 6  # songs listed by a playlist
PARTS = ("latent", "names", "texts", "customers", "history", "queries", "splits")  # add a new part at the end

LEXICON = json.loads(Path(__file__).with_name("lexicon.json").read_text(encoding="utf-8"))
# name: [genres it mixes with, its words in descriptions]; the most common genres come first.
GENRES: dict[str, list[str]] = LEXICON["genres"]
# name: [its words in descriptions, its words in queries]. No description or title uses the content words of the query
# wordings; a test compares the vocabularies. The same holds for TOPICS.
MOODS: dict[str, list[str]] = LEXICON["moods"]
# name: [title words, most common first; its noun in the other languages; moods; words in descriptions; in queries]
TOPICS: dict[str, list[str]] = LEXICON["topics"]
NUM_MUSIC_TOPICS = list(TOPICS).index("relationships")  # the topics after these occur in podcasts only

_genre_names = list(GENRES)
_NEAR = np.array([[_genre_names.index(n) for n in near.split(",")] for near, _ in GENRES.values()])  # (G, 3)
_TOPIC_MOODS = np.array([[list(MOODS).index(m) for m in t[2].split(",")] for t in TOPICS.values()])  # (T, 2)
_YEAR_STARTS = np.arange("1960", "2027", dtype="datetime64[Y]").astype("datetime64[D]").astype(int)


class World(NamedTuple):
    """The latent truth, in parallel arrays; a row is a corpus row. −1 = none."""

    kind: np.ndarray  # (N,) int8 index into TYPES
    artist: np.ndarray  # (N,) int32 row of the artist (an artist's is itself, a station's its seed artist)
    album: np.ndarray  # (N,) int32 row of a song's album
    members: np.ndarray  # (number of playlists, NUM_MEMBERS) int32 song rows, playlists in row order
    genres: np.ndarray  # (N, G) uint8 percent, sums to 100; all 0 for podcasts
    moods: np.ndarray  # (N, M) uint8 percent, sums to 100
    topic: np.ndarray  # (N,) int8 index into TOPICS
    decade: np.ndarray  # (N,) int8 index into DECADES
    language: np.ndarray  # (N,) int8 index into LANGUAGES
    day: np.ndarray  # (N,) int32 release, days since 1970
    plays: np.ndarray  # (N,) int64, Zipf-distributed
    appeal: np.ndarray  # (N,) float32 in [0, 1], .7 percentile of plays + .3 quality
    untagged: np.ndarray  # (N,) bool: genres, mood and decade are left out of the metadata
    planted: np.ndarray  # (7,) rows: the star, its album, its two songs, a playlist, a station and a podcast about love


def doc_id(row: int) -> str:
    """Returns the corpus id of a row."""
    return f"m{row:07d}"


class Names(NamedTuple):
    """Names of the entities of a World."""

    titles: list[str]  # N
    hosts: dict[int, str]  # podcast row -> host
    alike: np.ndarray  # (N,) int32, equal for titles that differ only in case


def spawn(seed: int) -> dict[str, np.random.Generator]:
    """Makes an independent random generator for each of PARTS, so that a change in one part does not affect others."""
    children = np.random.SeedSequence(seed).spawn(len(PARTS))
    return {part: np.random.Generator(np.random.PCG64(child)) for part, child in zip(PARTS, children, strict=True)}


def percents(raw: np.ndarray, keep: int = 3) -> np.ndarray:
    """Converts (B, K) non-negative integers to whole percents of the `keep` largest: (B, K) uint8, rows sum to 100."""
    raw = raw.astype(np.int32)
    kept = np.argsort(-raw, axis=1, kind="stable")[:, :keep]  # (B, keep)
    values = np.take_along_axis(raw, kept, 1)
    values = 100 * values // values.sum(axis=1, keepdims=True)
    values[values < 8] = 0  # drop traces
    values[:, 0] += 100 - values.sum(axis=1)
    out = np.zeros(raw.shape, np.uint8)
    np.put_along_axis(out, kept, values.astype(np.uint8), 1)
    return out


def spread(rng: np.random.Generator, primary: np.ndarray, others: np.ndarray, num: int, odds: float) -> np.ndarray:
    """Draws (B, num) int16 raw weights: for `primary` (B,) always, for `others` (B,) with probability `odds`."""
    raw = np.zeros((len(primary), num), np.int16)
    rows = np.arange(len(primary))
    raw[rows, others] += (rng.integers(15, 80, len(primary)) * (rng.random(len(primary)) < odds)).astype(np.int16)
    raw[rows, primary] += rng.integers(50, 101, len(primary)).astype(np.int16)
    return raw


def spread_genres(rng: np.random.Generator, primary: np.ndarray) -> np.ndarray:
    """Draws (B, G) raw weights of a primary genre (B,), often mixed with a similar one."""
    return spread(rng, primary, _NEAR[primary, rng.integers(0, 3, len(primary))], len(GENRES), 0.55)


def zipf_shares(num: int) -> np.ndarray:
    """Returns (num,) probabilities ∝ 1 / (rank + 2), rank from 1."""
    weights = 1 / np.arange(3, num + 3)
    return weights / weights.sum()


def draw_world(n: int, rng: np.random.Generator) -> World:
    """Draws a world of n entities in four steps: relations, likeness (genres, moods, …), dates, plays."""
    counts = np.round(np.array(TYPE_SHARES) * n).astype(int)
    counts[SONG] += n - counts.sum()
    kind = rng.permutation(np.repeat(np.arange(len(TYPES), dtype=np.int8), counts))
    fame = rng.standard_normal(n)
    artist, album, planted = _relations(rng, kind, fame)
    child = (artist >= 0) & (kind != ARTIST)
    parent = np.where(child, artist, np.arange(n))
    genres, moods, topic, language = _likeness(rng, kind, parent, planted)
    day, decade = _dates(rng, kind, parent, album, planted)
    quality = np.round(100 * rng.beta(3, 2, n)).astype(np.int64)
    heat = fame + np.where(child, 0.7 * fame[parent] - 0.3 * fame, 0)  # .7 of the artist's fame, .7 of its own
    heat += np.array(TYPE_HEAT)[kind] + quality / 60
    heat[planted] += 2
    rank = np.empty(n, np.int64)
    rank[np.argsort(-heat, kind="stable")] = np.arange(n)
    plays = np.round(1e8 / (rank + 2) * (0.9 + 0.2 * rng.random(n))).astype(np.int64)
    appeal = np.round(0.7 * (1 - rank / n) + 0.3 * quality / 100, 3).astype(np.float32)
    untagged = rng.random(n) < 0.15
    members = _members(rng, kind, plays, genres, moods)
    return World(
        kind, artist, album, members, genres, moods, topic, decade, language, day, plays, appeal, untagged, planted
    )


def _relations(rng: np.random.Generator, kind: np.ndarray, fame: np.ndarray) -> tuple[np.ndarray, ...]:
    """Draws artist (N,), album (N,) and the planted rows: the most famous artist gets an album with two songs."""
    artists, albums, songs, playlists, stations, podcasts = (np.flatnonzero(kind == k) for k in range(len(TYPES)))
    star = artists[np.argmax(fame[artists])]
    hits = songs[len(songs) // 2 :][:2]
    others = (rows[len(rows) // 2] for rows in (playlists, stations, podcasts))
    planted = np.array([star, albums[len(albums) // 2], *hits, *others])
    odds = np.exp(0.8 * fame[artists])
    odds /= odds.sum()
    artist, album = np.full(len(kind), -1, np.int32), np.full(len(kind), -1, np.int32)
    artist[artists] = artists
    artist[albums] = rng.choice(artists, len(albums), p=odds)
    artist[planted[1]] = star
    album[songs] = np.where(rng.random(len(songs)) < 0.85, rng.choice(albums, len(songs)), -1)
    album[hits] = planted[1]
    artist[songs] = np.where(album[songs] >= 0, artist[album[songs]], rng.choice(artists, len(songs), p=odds))
    seed = rng.choice(artists, len(stations), p=odds)
    artist[stations] = np.where(rng.random(len(stations)) < 0.6, seed, -1)
    artist[planted[5]] = -1
    return artist, album, planted


def _likeness(
    rng: np.random.Generator, kind: np.ndarray, parent: np.ndarray, planted: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Draws genres (N, G), moods (N, M), topic (N,) and language (N,); an entity with a parent resembles it."""
    n, names, podcasts = len(kind), list(GENRES), np.flatnonzero(kind == PODCAST)
    child = parent != np.arange(n)
    primary = rng.choice(len(GENRES), n, p=zipf_shares(len(GENRES)))
    primary[planted] = names.index("love songs")
    inherited = np.where(rng.random(n) < 0.7, primary[parent], _NEAR[primary[parent], rng.integers(0, 3, n)])
    raw = spread_genres(rng, np.where(child, inherited, primary))
    raw[planted[0]] = 0
    raw[planted[0], [names.index("pop"), names.index("country")]] = 70, 30
    raw[child] += raw[parent[child]]
    genres = percents(raw)
    genres[podcasts] = 0
    topic = rng.choice(NUM_MUSIC_TOPICS, n, p=zipf_shares(NUM_MUSIC_TOPICS)).astype(np.int8)
    topic = np.where(rng.random(n) < 0.25, topic[parent], topic)
    topic[podcasts] = rng.integers(NUM_MUSIC_TOPICS, len(TOPICS), len(podcasts))
    topic[planted], topic[planted[-1]] = 0, NUM_MUSIC_TOPICS
    usual = _TOPIC_MOODS[topic, rng.integers(0, 2, n)]
    mood = np.where(rng.random(n) < 0.6, usual, rng.choice(len(MOODS), n, p=zipf_shares(len(MOODS))))
    moods = percents(spread(rng, mood, rng.integers(0, len(MOODS), n), len(MOODS), 0.5))
    language = rng.choice(len(LANGUAGES), n, p=LANGUAGE_SHARES).astype(np.int8)
    language[planted] = 0
    return genres, moods, topic, language[parent]


def _dates(
    rng: np.random.Generator, kind: np.ndarray, parent: np.ndarray, album: np.ndarray, planted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws release day (N,) and decade (N,); records follow their artist's debut, songs have their album's day."""
    n = len(kind)
    year = np.clip(2024 - rng.exponential(22, n).astype(int), 1960, 2024)
    year = np.minimum(year[parent] + np.where(parent != np.arange(n), (16 * rng.random(n) ** 2).astype(int), 0), 2026)
    day = _YEAR_STARTS[year - 1960] + rng.integers(0, 365, n)
    day = np.where(kind >= PLAYLIST, rng.integers(LAST_DAY - 3800, LAST_DAY + 1, n), day)
    day = np.where(day > LAST_DAY, rng.integers(LAST_DAY - 900, LAST_DAY + 1, n), day)
    day[planted] -= np.where(day[planted] >= QUERIES_FROM, 365, 0)
    day = np.where(album >= 0, day[album], day)
    decade = (np.searchsorted(_YEAR_STARTS, day, "right") - 1) // 10
    music = np.clip(6 - rng.exponential(1.8, n).astype(int), 0, 6)  # decade of the music of playlists and stations
    return day.astype(np.int32), np.where((kind == PLAYLIST) | (kind == STATION), music, decade).astype(np.int8)


def _members(
    rng: np.random.Generator, kind: np.ndarray, plays: np.ndarray, genres: np.ndarray, moods: np.ndarray
) -> np.ndarray:
    """Picks songs, (number of playlists, NUM_MEMBERS): the most similar of 40 drawn ∝ √plays."""
    playlists, songs = np.flatnonzero(kind == PLAYLIST), np.flatnonzero(kind == SONG)
    drawn = songs[draw_by_weight(rng, np.sqrt(plays[songs]), (len(playlists), 40))]  # (P, 40)
    out = np.empty((len(playlists), NUM_MEMBERS), np.int32)
    for start in range(0, len(playlists), 4096):
        rows, batch = playlists[start : start + 4096], drawn[start : start + 4096]
        likeness = 2 * np.minimum(genres[rows][:, None], genres[batch]).sum(2, dtype=np.int32)  # (B, 40)
        likeness += np.minimum(moods[rows][:, None], moods[batch]).sum(2, dtype=np.int32)
        best = np.argsort(-likeness, axis=1, kind="stable")[:, :NUM_MEMBERS]
        out[start : start + 4096] = np.take_along_axis(batch, best, 1)
    return out


def draw_by_weight(rng: np.random.Generator, weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Draws indices of this shape with replacement, ∝ weights (W,)."""
    ends = np.cumsum(weights, dtype=np.float64)
    return np.searchsorted(ends, rng.random(shape) * ends[-1], "right").clip(max=len(weights) - 1)
