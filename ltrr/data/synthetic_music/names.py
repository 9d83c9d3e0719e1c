"""Names and describes the entities of the music world, with words from its own lexicon.

Knows the grammar of names, titles and descriptions; knows nothing about relevance, queries or files. No name refers to
a real artist. Remainders of random integers pick the words, which takes microseconds. Legend: N entities, B rows.
"""

from __future__ import annotations

from string import capwords

import numpy as np

from ltrr.data.synthetic_music.world import (
    ALBUM,
    ARTIST,
    DECADES,
    GENRES,
    LEXICON,
    MOODS,
    PLAYLIST,
    PODCAST,
    SONG,
    STATION,
    TOPICS,
    Names,
    World,
)

CHUNK = 20_000  # rows named, described and written at a time
_ADJECTIVES = LEXICON["adjectives"]
_THINGS = LEXICON["things"]
_AFTER = LEXICON["after"]
_BEFORE = LEXICON["before"]
_LINKS = LEXICON["links"]
_FOREIGN_ADJECTIVES = LEXICON["foreign_adjectives"]  # by language
_GIVEN = LEXICON["given"]
_SURNAME_STARTS = LEXICON["surname_starts"]
_SURNAME_ENDS = LEXICON["surname_ends"]
_BANDS = LEXICON["bands"]
_MIXES = LEXICON["mixes"]
_TEMPLATES = LEXICON["templates"]  # {sound} is the genre's name half of the time; each starts with a slot or capital
_TAILS = LEXICON["tails"]
_SURNAME_MIDDLES = ("", "", "", "", "an", "er", "ol", "in")
_TITLES = (
    *2 * ("{word}",),
    *4 * ("{adjective} {word}",),
    *3 * ("{word} {after}",),
    *2 * ("{before} {word}",),
    *4 * ("{word} {link} {thing}",),
    *2 * ("{thing} {word}",),
    *2 * ("{adjective} {word} {after}",),
    "{given}'s {word}",
)
_FOREIGN_FORMS = "{word}", *3 * ("{word} {adjective}", "{word} {adjective} {adjective2}", "{word} {given}")
_SEEDED_FORMS = "{artist} Radio", "{artist} Radio", "{artist} and Friends", "Fans of {artist}"
_FORMS = {  # of names; each form repeats in proportion to its probability
    ARTIST: (
        *60 * ("{given} {surname}",),
        *15 * ("The {adjective} {band}",),
        *13 * ("{word} {band}",),
        *8 * ("{surname}",),
        *3 * ("{genre} {band}",),
        "{genre} {surname}",
    ),
    ALBUM: _TITLES,
    SONG: _TITLES,
    PLAYLIST: (
        *2 * ("{decade} {genre} {mix}",),
        *2 * ("{mood} {genre} {mix}",),
        "{genre} {mix}",
        *2 * ("{mood} {word} {mix}",),
        *3 * ("{word} {mix}",),
    ),
    STATION: ("{decade} {genre} Radio", "{mood} {genre} Radio", "{genre} Radio", "{mood} {word} Radio", "{word} Radio"),
    PODCAST: ("The {word} Show", "{word} Talk", "{word} Hour", "Inside {word}", "{word} Files", "{word} Weekly"),
}
_WORD_ODDS = (0, 0, 0, 0, 0, 1, 1, 2, 2, 3)  # index of a topic's title word; repeats in proportion to its probability
_WORDS = [t[0].split() for t in TOPICS.values()]
_NOUNS = [t[1].split() for t in TOPICS.values()]  # by language, without English
_PLANTED_TITLES = (
    "Taylor Vale", "Crazy Love", "Love Again", "Crazy Love", "Love Songs", "Love Songs Radio", "Love Out Loud",
)  # fmt: skip
_PLANTED_ARTISTS = ("Taylor Harrowby", "June Vale", "Soul", "Country", "The Blues", "House of Tailors")

_SOUNDS = {name: g[1].split("|") for name, g in GENRES.items()}
_MOOD_WORDS = {name: described.split("|") for name, (described, _) in MOODS.items()}
_TOPIC_TEXTS = [t[3].split("|") for t in TOPICS.values()]
_DECADE_TEXTS = "sixties", "seventies", "eighties", "nineties", "two-thousands", "twenty-tens", "twenty-twenties"


def _label(name: str) -> str:
    return capwords(name).replace("R&b", "R&B").replace("K-pop", "K-Pop")


def draws(rng: np.random.Generator, num: int) -> list[list[int]]:
    """Draws seven integers per row, whose remainders pick the row's words."""
    return rng.integers(0, 2**31, (num, 7)).tolist()


def _slots(u: list[int], topic: int, language: int) -> dict[str, str]:
    """Picks the words that a name may contain, by slot."""
    words = _WORDS[topic] if not language else (_NOUNS[topic][language - 1],)
    surname = _SURNAME_STARTS[u[1] % len(_SURNAME_STARTS)] + _SURNAME_MIDDLES[u[2] % len(_SURNAME_MIDDLES)]
    adjectives = _FOREIGN_ADJECTIVES[language - 1] if language else _ADJECTIVES
    return {
        "word": words[_WORD_ODDS[u[1] % 10] % len(words)],
        "thing": _THINGS[u[4] % len(_THINGS)],
        "adjective": adjectives[u[2] % len(adjectives)],
        "adjective2": adjectives[(u[2] + 1) % len(adjectives)],
        "after": _AFTER[u[3] % len(_AFTER)],
        "before": _BEFORE[u[3] % len(_BEFORE)],
        "link": _LINKS[u[3] % len(_LINKS)],
        "given": _GIVEN[u[0] % len(_GIVEN)],
        "surname": surname + _SURNAME_ENDS[u[3] % len(_SURNAME_ENDS)],
        "band": _BANDS[u[5] % len(_BANDS)],
        "mix": _MIXES[u[5] % len(_MIXES)],
    }


def name_world(world: World, rng: np.random.Generator) -> Names:
    """Names every entity and every podcast's host; artists first, because other names contain theirs."""
    titles, hosts = [""] * len(world.kind), {}
    genres, moods = [_label(g) for g in GENRES], [_label(m) for m in MOODS]
    forced = dict(zip(np.flatnonzero(world.kind == ARTIST).tolist(), _PLANTED_ARTISTS, strict=False))
    forced |= dict(zip(world.planted.tolist(), _PLANTED_TITLES, strict=True))
    for rows in (np.flatnonzero(world.kind == ARTIST), np.flatnonzero(world.kind != ARTIST)):
        for batch in np.array_split(rows, len(rows) // CHUNK + 1):
            columns = [c[batch].tolist() for c in (world.kind, world.artist, world.topic, world.language, world.decade)]
            columns += [weights[batch].argmax(1).tolist() for weights in (world.genres, world.moods)]
            for row, u, kind, artist, topic, language, decade, genre, mood in zip(
                batch.tolist(), draws(rng, len(batch)), *columns, strict=True
            ):
                slots = _slots(u, topic, language if kind not in (ARTIST, PODCAST) else 0)
                slots |= {"genre": genres[genre], "mood": moods[mood], "decade": DECADES[decade]}
                slots["artist"] = titles[artist] if artist >= 0 and kind != ARTIST else ""
                forms = _FOREIGN_FORMS if language and kind in (ALBUM, SONG) else _FORMS[kind]
                if kind == STATION and artist >= 0:
                    forms = _SEEDED_FORMS
                elif kind == ALBUM and u[6] % 12 == 0:
                    forms = ("{artist}",)  # self-titled
                titles[row] = forced.get(row) or forms[u[6] // 12 % len(forms)].format_map(slots)
                if kind == PODCAST:
                    hosts[row] = "{given} {surname}".format_map(slots)
    codes: dict[str, int] = {}
    alike = np.fromiter((codes.setdefault(title.lower(), len(codes)) for title in titles), np.int32, len(titles))
    return Names(titles, hosts, alike)


def describe(facts: dict, topic: int, u: list[int]) -> str:
    """Writes a description that hints at genre, mood, topic and time, without the words of the mood field.

    Args:
        facts: the complete metadata of the entity.
        topic: index into TOPICS.
        u: row of `draws` that picks the words.
    """
    templates, genres = _TEMPLATES[facts["type"]], [g for g, weight in facts.get("genres", ()) if weight >= 0.2]
    topics = _TOPIC_TEXTS[topic]
    sounds = [(*_SOUNDS[g], g, g)[u[i] % 4] for i, g in enumerate(genres[:2])]
    mood_words = [word for m, _ in facts["mood"] for word in _MOOD_WORDS[m]]
    slots = {
        "sound": " and ".join(sounds),
        "mood": mood_words[u[2] % 3],
        "mood2": mood_words[-1 - u[3] % 3],
        "topic": topics[u[5] % len(topics)],
        "topic2": topics[(u[5] + 1) % len(topics)],
        "artist": facts.get("artist", ""),
        "source": f"the album {facts['album']}" if "album" in facts else f"a {facts['year']} single",
        "decade": _DECADE_TEXTS[DECADES.index(facts["decade"])],
        "year": facts["year"],
        "host": facts.get("host", ""),
    }
    text = (templates[u[4] % len(templates)] + _TAILS[u[6] % len(_TAILS)]).format_map(slots)
    if facts["language"] != "English":
        text += f" In {facts['language']}."
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
