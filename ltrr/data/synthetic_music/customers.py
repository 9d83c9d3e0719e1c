"""Draws the customers of the music world, with tastes and habits, and their plays before the query log starts.

Knows the latent world and how customers choose entities; knows nothing about names, queries or truth.
Legend: N entities, G genres, M moods, C customers, H (customer, entity) pairs of the history, B choices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ltrr.data.synthetic_music.truth import liking
from ltrr.data.synthetic_music.world import (
    ARTIST,
    GENRES,
    LAST_DAY,
    MOODS,
    QUERIES_FROM,
    World,
    draw_by_weight,
    percents,
    spread_genres,
    zipf_shares,
)

LOCALES = {"en-US": 0, "en-GB": 0, "es-MX": 1, "es-ES": 1, "fr-FR": 2, "de-DE": 3, "pt-BR": 4, "sv-SE": 5, "it-IT": 6}
LOCALE_SHARES = (0.30, 0.15, 0.13, 0.10, 0.09, 0.08, 0.08, 0.03, 0.04)
DEVICES = {"phone": 0.50, "speaker": 0.20, "desktop": 0.15, "car": 0.10, "tv": 0.05}


class Customers(NamedTuple):
    """C customers in parallel arrays."""

    locale: np.ndarray  # (C,) index into LOCALES
    device: np.ndarray  # (C,) index into DEVICES
    tastes: np.ndarray  # (C, G) uint8 percent
    moods: np.ndarray  # (C, M) uint8 percent
    hour: np.ndarray  # (C,) usual hour of the day
    weekend: np.ndarray  # (C,) bool: queries mostly on Saturday and Sunday
    activity: np.ndarray  # (C,) expected share of the log's queries
    favourites: np.ndarray  # (C, 3) rows of artists


class History(NamedTuple):
    """Plays before the query log starts, sorted by customer, then row."""

    customers: np.ndarray  # (H,)
    rows: np.ndarray  # (H,)
    plays: np.ndarray  # (H,) number of plays
    times: np.ndarray  # (H,) datetime64[s] of the last play


def draw_customers(world: World, num: int, rng: np.random.Generator) -> Customers:
    """Draws C = num customers; their favourite artists depend on their tastes."""
    first, second = rng.choice(len(GENRES), (2, num), p=zipf_shares(len(GENRES)))
    tastes = percents(2 * spread_genres(rng, first) + spread_genres(rng, second), keep=4)
    customers = Customers(
        locale=rng.choice(len(LOCALES), num, p=LOCALE_SHARES),
        device=rng.choice(len(DEVICES), num, p=list(DEVICES.values())),
        tastes=tastes,
        moods=percents(rng.integers(0, 100, (num, len(MOODS))) ** 3),
        hour=rng.choice((7, 12, 18, 22), num),
        weekend=rng.random(num) < 0.3,
        activity=rng.permutation(zipf_shares(num)),
        favourites=np.full((num, 3), -2),
    )
    chosen = choose(world, customers, np.repeat(np.arange(num), 3), np.flatnonzero(world.kind == ARTIST), rng)
    return customers._replace(favourites=chosen.reshape(num, 3))


def choose(
    world: World, customers: Customers, who: np.ndarray, among: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Chooses a row of `among` for each of `who` (B,): draws 32 ∝ √plays, then one by taste, language, favourites."""
    languages, chosen = np.array(list(LOCALES.values())), [np.empty(0, np.int64)]
    for start in range(0, len(who), 4096):
        batch = who[start : start + 4096]
        rows = among[draw_by_weight(rng, np.sqrt(world.plays[among]), (len(batch), 32))]  # (B, 32)
        weights = 300.0 + liking(world.genres[rows], customers.tastes[batch][:, None])
        weights += liking(world.moods[rows], customers.moods[batch][:, None]) / 4
        understood = (world.language[rows] == 0) | (world.language[rows] == languages[customers.locale[batch]][:, None])
        favourite = (world.artist[rows][..., None] == customers.favourites[batch][:, None]).any(2)
        ends = np.cumsum(weights * np.where(understood, 1.0, 0.25) * np.where(favourite, 6.0, 1.0), axis=1)
        drawn = (ends > rng.random((len(batch), 1)) * ends[:, -1:]).argmax(1)
        chosen.append(rows[np.arange(len(batch)), drawn])
    return np.concatenate(chosen)


def draw_history(world: World, customers: Customers, rng: np.random.Generator) -> History:
    """Draws 10 to 60 choices per customer among released entities, last played in the year before the log starts."""
    num, n = len(customers.locale), len(world.kind)
    playable = np.flatnonzero((world.kind != ARTIST) & (world.day < QUERIES_FROM))
    who = np.repeat(np.arange(num), rng.integers(10, 61, num))
    pairs, times = np.unique(who * n + choose(world, customers, who, playable, rng), return_counts=True)
    rows = pairs % n
    since = np.maximum(world.day[rows], QUERIES_FROM - 366).astype(np.int64) * 86_400
    played = since + (rng.random(len(rows)) * (QUERIES_FROM * 86_400 - since)).astype(np.int64)
    return History(pairs // n, rows, times + rng.integers(0, 6, len(rows)) ** 2, played.astype("datetime64[s]"))


def draw_times(customers: Customers, who: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws a time within the log for each customer of `who` (B,), datetime64[s], near their usual hour and days."""
    day = rng.integers(QUERIES_FROM, LAST_DAY + 1, len(who))
    weekday = (day + 3) % 7  # 0 = Monday
    day = np.where(
        customers.weekend[who] & (rng.random(len(who)) < 0.8), day - weekday + rng.integers(5, 7, len(who)), day
    )
    day = np.where(day > LAST_DAY, day - 7, day)
    hour = (customers.hour[who] + np.round(2 * rng.standard_normal(len(who))).astype(int)) % 24
    return (day * 86_400 + hour * 3600 + rng.integers(0, 3600, len(who))).astype("datetime64[s]")
