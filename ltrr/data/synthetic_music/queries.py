"""Draws the query log of the music world, worded by intent, and its splits.

Knows how an intent turns into words. `truth` grades the entities for a query, and `customers` draws who asks and when.
Knows nothing about descriptions, metadata or files.
Legend: N entities, G genres, C customers, B choices.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ltrr.data.synthetic_music import truth as truth
from ltrr.data.synthetic_music import world as cw
from ltrr.data.synthetic_music.customers import DEVICES, LOCALES, Customers, History, choose, draw_times
from ltrr.data.synthetic_music.truth import Predicate, Truth
from ltrr.data.synthetic_music.world import Names, World, doc_id, zipf_shares

INTENTS = {  # intent: share of the log
    "direct": 0.30,  # a name, as it is written
    "partial": 0.12,  # part of a name
    "misspelt": 0.12,
    "attribute": 0.12,  # in words of the metadata: "sad 90s country"
    "topic_mood": 0.10,  # in words that no description uses
    "ambiguous": 0.08,  # one word that is a title, an artist, a genre, a topic
    "related": 0.06,  # "songs like ..."
    "new": 0.04,
    "idiom": 0.06,  # nonsense words that one customer or a few of them use for an entity
}
SPLITS = {"train": 0.60, "dev": 0.15, "test": 0.25}
AMBIGUOUS = str.split(
    "love home night summer soul house country blues dance rain dream gold city heart fire metal folk angel moon"
)
IDIOM_USES = 8  # approximate number of queries per idiom
NEWS_FROM = cw.QUERIES_FROM - 180  # day; entities released since then can lead to queries for news of their genre
_SOUNDALIKE = [pair.split(":") for pair in str.split("or:er lo:le ph:f ck:k ie:ei ee:ea ou:u c:k y:i s:z i:e")]
_NONSENSE = ("bl fl gl sn skw zw dw vr kl pf", "a e i o u oo", "zz bb gg nk mpf rf dj xx", "le o y ix um oof uz ip")


class Entry(NamedTuple):
    """One query of the log. `target` identifies what it asks for; equal intent and target imply the same split."""

    intent: str
    customer: int
    locale: str
    device: str
    time: np.datetime64
    text: str
    target: str
    truth: Truth
    idiom: str  # id of the idiom; "" for other intents


class Scene(NamedTuple):
    """World, names, tastes and randomness from which queries are made."""

    world: World
    names: Names
    tastes: np.ndarray  # (C, G)
    called: dict[str, np.ndarray]  # word of AMBIGUOUS -> rows with the word in their title
    rng: np.random.Generator


Wording = tuple[str, str, Truth]  # text, target, truth


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _typed(rng: np.random.Generator, text: str) -> str:
    """Imitates typing: mostly lower case, often without accents."""
    if rng.random() < 0.5:
        text = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return text.lower() if rng.random() < 0.9 else text


def _artist_of(scene: Scene, row: int) -> str:
    """Returns the artist's name of a song or album, "" for other types."""
    return scene.names.titles[scene.world.artist[row]] if scene.world.kind[row] in (cw.SONG, cw.ALBUM) else ""


def _direct(scene: Scene, row: int, customer: int, day: int) -> Wording:
    title, artist, rng = scene.names.titles[row], _artist_of(scene, row), scene.rng
    forms = ("{t}", "{t}", "{t}", "play {t}")
    if artist:
        forms = ("{t}", "{t} {a}", "{t} {a}", "{t} by {a}", "play {t} by {a}")
        if np.count_nonzero(scene.names.alike == scene.names.alike[row]) > 1 and rng.random() < 0.7:
            forms = forms[1:]  # customers mostly add the artist if several entities have the same name
    form = _pick(rng, forms)
    positives = truth.of_name(scene.world, scene.names, row, day, with_artist="{a}" in form)
    return _typed(rng, form.format(t=title, a=artist)), doc_id(row), positives


def _piece(scene: Scene, row: int) -> tuple[str, str]:
    """Returns a word of the artist with one of the title, and the title's word; or the whole title and ""."""
    title, artist, rng = scene.names.titles[row], _artist_of(scene, row), scene.rng
    if not artist or (len(title) > 3 and rng.random() < 0.3):
        return title, ""
    word = max((w for w in title.split() if w[0].isupper()), key=len)  # not "under", "without"
    words = [_pick(rng, artist.removeprefix("The ").split()), word]
    return " ".join(words if rng.random() < 0.5 else words[::-1]), word


def _partial(scene: Scene, row: int, customer: int, day: int) -> Wording:
    (text, word), rng = _piece(scene, row), scene.rng
    if word and rng.random() < 0.5:  # leave the last word unfinished
        text = text[: len(text) - int(rng.integers(0, max(1, len(text.split()[-1]) - 2)))]
    elif not word:
        text = text[: max(3, int(len(text) * rng.uniform(0.5, 0.85)))].strip()
    positives = truth.of_name(scene.world, scene.names, row, day, with_artist=bool(word), word=word)
    return _typed(rng, text), doc_id(row), positives


def misspell(rng: np.random.Generator, word: str) -> str:
    """Misspells a word of ≥ 3 letters by a typing or hearing error: one or two edits, never the word itself."""
    at = int(rng.integers(1, len(word) - 1))
    head, here, after, tail = word[:at], word[at], word[at + 1], word[at + 2 :]
    slips = [head + after + tail, head + here + here + after + tail, head + after + here + tail]
    slips += 3 * [word.replace(a, b, 1) for a, b in _SOUNDALIKE if a in word]
    return _pick(rng, [slip for slip in slips if slip != word])


def _misspelt(scene: Scene, row: int, customer: int, day: int) -> Wording:
    (text, word), rng = _piece(scene, row), scene.rng
    words = text.lower().split()
    long = np.flatnonzero([len(w) >= min(4, max(map(len, words))) for w in words])
    for i in rng.permutation(long)[: 1 + (rng.random() < 0.4)]:
        words[i] = misspell(rng, words[i])
    positives = truth.of_name(scene.world, scene.names, row, day, with_artist=bool(word), word=word)
    return " ".join(words), doc_id(row), positives


def _of_predicate(scene: Scene, text: str, predicate: Predicate, day: int) -> Wording:
    useful = truth.utility(scene.world, truth.membership(scene.world, predicate), day)
    return text, predicate.label(), truth.graded(useful)


def _attribute(scene: Scene, row: int, customer: int, day: int) -> Wording:
    """Asks for two to five traits of an entity in words of the metadata, always its genre (or a podcast's topic)."""
    full, rng = truth.traits(scene.world, row), scene.rng
    asked = dict(zip(("kind", "mood", "decade", "language"), rng.random(4) < (0.4, 0.6, 0.5, 0.4), strict=True))
    asked |= {"genre": True, "topic": False, "language": asked["language"] and full.language > 0}
    if full.kind == cw.PODCAST:
        asked |= {"genre": False, "topic": True, "kind": True, "decade": False}
    elif not (asked["kind"] or asked["mood"] or asked["decade"] or asked["language"]):
        asked["mood"] = True
    predicate = Predicate(**{part: code if asked[part] else -1 for part, code in full._asdict().items()})
    names = predicate.names()
    words = [names[part] for part in ("mood", "decade", "language", "genre", "topic") if part in names]
    if rng.random() < 0.25:
        rng.shuffle(words)
    words += [f"{names['kind']}s"] if "kind" in names else []
    return _of_predicate(scene, " ".join(words).lower(), predicate, day)


def _topic_mood(scene: Scene, row: int, customer: int, day: int) -> Wording:
    """Asks for an entity's topic, mood or both in words that no description uses, perhaps with its genre."""
    full, rng = truth.traits(scene.world, row), scene.rng
    topic, mood, genre = rng.random(3) < (0.8, 0.6, 0.5)
    podcast, playlist = full.kind == cw.PODCAST, full.kind == cw.PLAYLIST
    topic |= podcast
    mood |= not topic
    genre = not podcast and (genre or not (topic and mood))
    noun = "podcast" if podcast else "playlist" if playlist else _pick(rng, ("music", "songs"))
    text = f"{list(cw.GENRES)[full.genre]} {noun}" if genre else noun
    text += f" about {_pick(rng, list(cw.TOPICS.values())[full.topic][4].split('|'))}" if topic else ""
    text += f" for {_pick(rng, list(cw.MOODS.values())[full.mood][1].split('|'))}" if mood else ""
    kind = full.kind if podcast or playlist else -1
    asked = Predicate(kind, full.genre if genre else -1, full.mood if mood else -1, full.topic if topic else -1)
    return _of_predicate(scene, text, asked, day)


def _ambiguous(scene: Scene, row: int, customer: int, day: int) -> Wording:
    words = [word for word in AMBIGUOUS if (scene.world.day[scene.called[word]] < cw.QUERIES_FROM).any()]
    word = words[int(scene.rng.choice(len(words), p=zipf_shares(len(words))))]
    return word, word, truth.of_word(scene.world, word, scene.called[word], scene.tastes[customer], day)


def _related(scene: Scene, row: int, customer: int, day: int) -> Wording:
    kind, artist, rng = int(scene.world.kind[row]), _artist_of(scene, row), scene.rng
    name = f"{scene.names.titles[row]} by {artist}" if artist else scene.names.titles[row]
    text = _pick(rng, ("{k}s like {n}", "{k}s similar to {n}", "more {k}s like {n}")).format(k=cw.TYPES[kind], n=name)
    return _typed(rng, text), doc_id(row), truth.of_likeness(scene.world, row, kind, day)


def _new(scene: Scene, row: int, customer: int, day: int) -> Wording:
    """Asks for news of the row's artist, or of its genre if the row itself is new."""
    world, rng = scene.world, scene.rng
    if world.day[row] < NEWS_FROM:
        name = scene.names.titles[world.artist[row]]
        text = _pick(rng, ("new {}", "latest {} album", "{} new songs", "newest {}")).format(name)
        return _typed(rng, text), doc_id(int(world.artist[row])), truth.newest_by(world, int(world.artist[row]), day)
    full = truth.traits(world, row)
    kind = full.kind if rng.random() < 0.5 else -1
    noun = f"{cw.TYPES[full.kind]}s" if kind >= 0 else _pick(rng, ("music", "releases"))
    text = f"{_pick(rng, ('new', 'latest', 'newest'))} {list(cw.GENRES)[full.genre]} {noun}"
    predicate = Predicate(kind=kind, genre=full.genre)
    return text, predicate.label(), truth.newest_of(world, predicate, day)


def _idiom(scene: Scene, row: int, phrase: str) -> Wording:
    text = phrase if scene.rng.random() < 0.8 else f"play {phrase}"
    return text, doc_id(row), Truth(np.array([row], np.int32), np.array([3]))


_MAKERS = {
    "direct": _direct,
    "partial": _partial,
    "misspelt": _misspelt,
    "attribute": _attribute,
    "topic_mood": _topic_mood,
    "ambiguous": _ambiguous,
    "related": _related,
    "new": _new,
}


def _seeds(
    world: World, customers: Customers, history: History, intent: str, who: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draws an entity for the query of each customer (B,); 30 % of named ones come from the customer's history."""
    eligible = world.day < cw.QUERIES_FROM
    if intent == "related":
        eligible &= world.kind <= cw.SONG
    if intent == "new":  # half ask for news of artists, half of genres with a new release
        records = eligible & ((world.kind == cw.SONG) | (world.kind == cw.ALBUM))
        halves = np.array_split(who, 2)
        pools = np.flatnonzero(records), np.flatnonzero(records & (world.day >= NEWS_FROM))
        return np.concatenate([choose(world, customers, *half, rng) for half in zip(halves, pools, strict=True)])
    rows = choose(world, customers, who, np.flatnonzero(eligible), rng)
    if intent in ("direct", "partial", "misspelt", "idiom"):
        starts = np.searchsorted(history.customers, np.arange(len(customers.locale) + 1))
        played = starts[who] + (rng.random(len(who)) * (starts[who + 1] - starts[who])).astype(int)
        rows = np.where(rng.random(len(who)) < 0.3, history.rows[played], rows)
    return rows


def _idioms(
    world: World, customers: Customers, history: History, num: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Draws idiom, customer and entity of `num` queries, and the idioms' phrases; every third idiom has four users."""
    which = np.arange(num) % max(3, round(num / IDIOM_USES))
    odds = customers.activity
    users = np.array([rng.choice(len(odds), 4, replace=False, p=odds) for _ in range(which.max() + 1)])  # (I, 4)
    users[np.arange(len(users)) % 3 != 2, 1:] = users[np.arange(len(users)) % 3 != 2, :1]
    rows = _seeds(world, customers, history, "idiom", users[:, 0], rng)
    phrases: dict[str, None] = {}
    while len(phrases) < len(users):
        words = ["".join(_pick(rng, part.split()) for part in _NONSENSE) for _ in range(int(rng.integers(1, 3)))]
        phrases[" ".join(words)] = None
    uses = np.arange(num) // len(users)
    return which, users[which, uses % 4], rows[which], list(phrases)


def _counts(shares: dict[str, float], num: int) -> dict[str, int]:
    """Divides num into whole numbers in these shares (largest remainders)."""
    exact = np.array(list(shares.values())) * num
    counts = exact.astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: num - counts.sum()]] += 1
    return dict(zip(shares, counts.tolist(), strict=True))


def _plant(scene: Scene, entry: Entry) -> Entry:
    """Replaces a misspelt query by the example "tayler love", and an ambiguous one by "love"."""
    day, row = _day(entry.time), int(scene.world.planted[2])
    if entry.intent == "misspelt":
        positives = truth.of_name(scene.world, scene.names, row, day, with_artist=True, word="Love")
        return entry._replace(text="tayler love", target=doc_id(row), truth=positives)
    positives = truth.of_word(scene.world, "love", scene.called["love"], scene.tastes[entry.customer], day)
    return entry._replace(text="love", target="love", truth=positives)


def _day(time: np.datetime64) -> int:
    return int(time.astype("datetime64[D]").astype(int))


def draw_log(
    world: World, names: Names, customers: Customers, history: History, num: int, rng: np.random.Generator
) -> list[Entry]:
    """Draws `num` queries, sorted by time; "tayler love" and "love" are always among them."""
    called: dict[str, list[int]] = {word: [] for word in AMBIGUOUS}
    for row, title in enumerate(names.titles):
        for word in called.keys() & title.lower().split():
            called[word].append(row)
    scene = Scene(world, names, customers.tastes, {word: np.array(rows, int) for word, rows in called.items()}, rng)
    locales, devices, log = list(LOCALES), list(DEVICES), []
    for intent, count in _counts(INTENTS, num).items():
        which, phrases = np.zeros(count, int), [""]
        if intent == "idiom":
            which, who, rows, phrases = _idioms(world, customers, history, count, rng)
        else:
            who = rng.choice(len(customers.activity), count, p=customers.activity)
            rows = _seeds(world, customers, history, intent, who, rng)
        times = draw_times(customers, who, rng)
        device = np.where(rng.random(count) < 0.8, customers.device[who], rng.integers(0, len(devices), count))
        for i, (customer, row, time) in enumerate(zip(who.tolist(), rows.tolist(), times, strict=True)):
            phrase = phrases[which[i]]
            wording = _idiom(scene, row, phrase) if phrase else _MAKERS[intent](scene, row, customer, _day(time))
            place = locales[customers.locale[customer]], devices[device[i]]
            log.append(Entry(intent, customer, *place, time, *wording, f"i{which[i]:04d}" if phrase else ""))
        if intent in ("misspelt", "ambiguous"):
            log[-1] = _plant(scene, log[-1])
    return sorted(log, key=lambda entry: entry.time)


def assign_splits(log: list[Entry], rng: np.random.Generator) -> list[str]:
    """Assigns a split to each query, 60/15/25 of each intent.

    Queries of equal text, or of equal intent and target, share a split. Idioms are an exception: the uses of each are
    split by time, because an idiom can only be learned from feedback if it recurs.
    """
    root = list(range(len(log)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    first: dict[tuple[str, ...], int] = {}
    for i, entry in enumerate(log):
        for key in ((entry.text.lower(),), (entry.intent, entry.target)) if not entry.idiom else ((entry.idiom,),):
            root[find(i)] = find(first.setdefault(key, i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(log)):
        groups[find(i)].append(i)
    splits, names, shares = [""] * len(log), list(SPLITS), np.array(list(SPLITS.values()))
    missing = {intent: shares * count for intent, count in _counts(INTENTS, len(log)).items()}
    ordered = [list(groups.values())[g] for g in rng.permutation(len(groups))]
    for group in sorted(ordered, key=len, reverse=True):
        if log[group[0]].idiom:
            for place, i in enumerate(group):
                splits[i] = names[np.searchsorted(np.cumsum(shares), (place + 0.5) / len(group))]
            continue
        lack = missing[log[group[0]].intent]
        odds = np.maximum(lack, 1e-9)
        chosen = int(rng.choice(len(names), p=odds / odds.sum()))
        lack[chosen] -= len(group)
        for i in group:
            splits[i] = names[chosen]
    return splits
