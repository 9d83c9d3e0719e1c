"""Query understanding: maps words of a query to values of the corpus's fields, as several weighted interpretations.

Knows the values of keyword fields, years and dates, and the words of the corpus; knows nothing about engines or
rankings. No data set is special: types, people, genres and decades come from the documents.

A reading maps some words of a query to a value. Its evidence is the words' information (Σ idf), times the share of the
value that they cover and the certainty of their spelling. Reading a word as plain text has evidence too. An
interpretation is a set of readings that do not overlap; its likelihood is the softmax of its evidence.
Legend: V values, T tokens of the vocabulary, N documents.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import OSA

_WORD = re.compile(r"\w+")
_POSSESSIVE = re.compile(r"['’]s\b")
_DECADE = re.compile(r"(1[0-9]|20)?([0-9])0s")
_LONGEST = 24  # words of a query that are interpreted; later ones are plain text
_PARTIAL = 400  # most values that a single token may match
_FLOOR = 0.05  # least likelihood that the query is plain text
_RECENT = frozenset(["new", "newest", "latest", "recent"])


class Reading(NamedTuple):
    """One meaning of some tokens: any of several values of a field, or a range of a number field."""

    positions: tuple[int, ...]  # of the tokens that it explains
    field: str
    label: str  # the best value as the corpus writes it
    tags: tuple[int, ...]  # value ids; empty for a range
    weights: tuple[float, ...]  # fit of each value, ≤ 1
    span: tuple[float, float] | None  # closed range of a number field
    evidence: float  # nats


class Interpretation(NamedTuple):
    """One way to read the whole query."""

    readings: tuple[Reading, ...]
    text: str  # words left for full-text search, spelling corrected
    likelihood: float  # sums to 1 over the interpretations of a query


def split_words(text: str) -> list[str]:
    """Splits a text into words, without case, accents and possessives."""
    folded = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return _WORD.findall(_POSSESSIVE.sub("", folded))


def normalise(text: str) -> list[str]:
    """Splits a text into words without the plural s, so that `Songs` matches the type `song`."""
    return [_singular(word) for word in split_words(text)]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" and not word[0].isdigit() else word


class Vocabulary:
    """Index of a corpus's field values and words by token. Build it with `fit`."""

    def __init__(
        self, fields: Sequence[str], values: Sequence[str], owner: np.ndarray, df: np.ndarray, words: Sequence[str],
        word_df: np.ndarray, named: np.ndarray, num_docs: int, ranges: dict[str, tuple[float, float, float]],
        pairs: np.ndarray,
    ):  # fmt: skip
        self.fields, self.values = list(fields), list(values)
        self.owner, self.df = owner, df  # (V,) number of the value's field, (V,) documents with the value
        self.words, self.word_df, self.named = list(words), word_df, named  # T; (T,); (T,) bool: in a title or value
        self.num_docs, self.ranges = num_docs, ranges  # number field -> (lowest, highest, start of the newest tenth)
        self.idf = np.log1p((num_docs - word_df + 0.5) / (word_df + 0.5))  # (T,)
        self._word = {word: i for i, word in enumerate(self.words)}
        self._names = [word for word, is_name in zip(self.words, named, strict=True) if is_name]
        self._pairs = pairs  # (P, 2) word and value, sorted by word, then by falling frequency of the value
        self._ptr = np.searchsorted(pairs[:, 0], np.arange(len(self.words) + 1))
        self._posting = pairs[:, 1]
        self._mass = np.bincount(pairs[:, 1], self.idf[pairs[:, 0]], len(self.values))  # (V,) information of the value
        self._correct = lru_cache(10_000)(self._correct_uncached)

    @classmethod
    def fit(cls, documents: Iterable[tuple[str, str, dict[str, list[str]]]], numbers: dict[str, np.ndarray]) -> Self:
        """Learns from (title, text, field -> values) of every document and the number fields' columns (N,)."""
        value_df: Counter[tuple[str, str]] = Counter()
        word_df: Counter[str] = Counter()
        names: set[str] = set()
        num_docs = 0
        for title, text, values in documents:
            num_docs += 1
            pairs = {(field, value) for field, listed in values.items() for value in listed}
            value_df.update(pairs)
            name_words = set(normalise(title)).union(*(normalise(value) for _, value in pairs))
            names |= name_words
            word_df.update(name_words.union(normalise(text)))
        keys, words = sorted(value_df), sorted(word_df)
        fields = sorted({field for field, _ in keys})
        ranges = {name: _range(column) for name, column in numbers.items() if not np.isnan(column).all()}
        word_number, field_number = ({key: i for i, key in enumerate(several)} for several in (words, fields))
        df = np.array([value_df[key] for key in keys], np.int64)
        pairs = np.array(
            [(word_number[word], v) for v, (_, value) in enumerate(keys) for word in set(normalise(value))], np.int64
        ).reshape(-1, 2)
        return cls(
            fields,
            [value for _, value in keys],
            np.array([field_number[field] for field, _ in keys], np.int32),
            df,
            words,
            np.array([word_df[word] for word in words], np.int64),
            np.array([word in names for word in words], bool),
            num_docs,
            ranges,
            pairs[np.lexsort((-df[pairs[:, 1]], pairs[:, 0]))],
        )

    def tags(self) -> dict[tuple[str, str], int]:
        """Maps (field, value) to value ids."""
        owner = self.owner.tolist()
        return {(self.fields[owner[i]], value): i for i, value in enumerate(self.values)}

    def save(self, folder: Path) -> None:
        """Writes vocabulary.json and vocabulary.npz."""
        text = {"fields": self.fields, "values": self.values, "words": self.words, "ranges": self.ranges}
        (folder / "vocabulary.json").write_text(json.dumps(text | {"num_docs": self.num_docs}), encoding="utf-8")
        np.savez(
            folder / "vocabulary.npz",
            owner=self.owner,
            df=self.df,
            word_df=self.word_df,
            named=self.named,
            pairs=self._pairs,
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Loads the vocabulary that `save` wrote."""
        text = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        with np.load(folder / "vocabulary.npz", allow_pickle=False) as a:
            ranges = {name: tuple(bounds) for name, bounds in text["ranges"].items()}
            return cls(text["fields"], text["values"], a["owner"], a["df"], text["words"], a["word_df"], a["named"],
                       text["num_docs"], ranges, a["pairs"])  # fmt: skip

    def share(self, part: set[str], whole: set[str]) -> float:
        """Information (Σ idf) of `part` as a share of that of `whole`, 0..1."""
        return sum(map(self._information, part)) / max(sum(map(self._information, whole)), 1e-9)

    # -- one query, in steps

    def interpret(
        self, text: str, *, most: int = 6, text_evidence: float = 0.5, temperature: float = 2.0
    ) -> list[Interpretation]:
        """Lists the interpretations with a likelihood of at least 2 %, likeliest first.

        Args:
            text: the query as typed.
            most: largest number of interpretations.
            text_evidence: evidence of a word read as plain text, as a share of its idf, 0..1.
            temperature: nats; larger = more even likelihoods.
        """
        raw = split_words(text)
        raw, tail = raw[:_LONGEST], raw[_LONGEST:]
        # 1) correct the spelling: each token and its certainty
        spelt = [self._spell(_singular(word)) for word in raw]
        # 2) list the possible readings
        readings = self._value_readings(spelt) + self._number_readings(raw, spelt)
        # 3) combine readings that do not overlap
        plain = [text_evidence * self._information(word) for word, _ in spelt]
        chosen = _combine(readings, plain, most)
        # 4) turn evidence into likelihoods
        scores = np.array([score for score, _ in chosen]) / temperature
        likelihood = np.exp(scores - scores.max())
        likelihood /= likelihood.sum()
        least = np.array([_FLOOR if not picked else 0.0 for _, picked in chosen])  # plain text is never ruled out
        likelihood = np.maximum(likelihood, least)
        kept = [(p, picked) for p, (_, picked) in zip(likelihood, chosen, strict=True) if p >= 0.02]
        total = sum(p for p, _ in kept)
        out = []
        for p, picked in kept:
            used = {position for reading in picked for position in reading.positions}
            rest = [
                word if sure < 1 else raw[i]  # a known word stays as typed: analysers stem it themselves
                for i, (word, sure) in enumerate(spelt)
                if i not in used
            ]
            out.append(Interpretation(picked, " ".join(rest + tail), float(p / total)))
        return sorted(out, key=lambda one: -one.likelihood)

    def _spell(self, token: str) -> tuple[str, float]:
        """Returns the token, or the nearest word of a name if no document has it, and its certainty (1 = unedited)."""
        return (token, 1.0) if token in self._word or len(token) < 4 else self._correct(token)

    def _correct_uncached(self, token: str) -> tuple[str, float]:
        edits = 1 if len(token) < 6 else 2
        near = process.extract(token, self._names, scorer=OSA.distance, score_cutoff=edits, limit=8)
        if not near:
            return token, 1.0

        def appeal(hit: tuple[str, float, int]) -> float:  # an edit costs 3 nats, a wrong first letter 1 more
            word, distance, _ = hit
            return float(np.log(self.word_df[self._word[word]])) - 3 * distance - (word[0] != token[0])

        word, distance, _ = max(near, key=appeal)
        return word, 1.0 - 0.15 * distance

    def _information(self, word: str) -> float:
        at = self._word.get(word)
        return float(self.idf[at]) if at is not None else 0.0

    def _value_readings(self, spelt: Sequence[tuple[str, float]]) -> list[Reading]:
        """Lists the readings as field values; a value matches the positions whose words it contains."""
        matched: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for position, (word, _) in enumerate(spelt):
            at = self._word.get(word)
            if at is not None:
                posting = self._posting[self._ptr[at] : self._ptr[at + 1]][:_PARTIAL]
                matched.append(posting)
                places.append(np.full(len(posting), position))
        if not matched:
            return []
        info = np.array([self._information(word) for word, _ in spelt])
        sure = np.array([certainty for _, certainty in spelt])
        value, place = np.concatenate(matched), np.concatenate(places)
        ids, inverse = np.unique(value, return_inverse=True)
        mask = np.bincount(inverse, 2.0**place).astype(np.int64)  # (v,) bit set of positions
        covered = np.bincount(inverse, info[place]) / np.maximum(self._mass[ids], 1e-9)  # (v,) share of the value
        covered = np.minimum(covered, 1.0)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, key in enumerate(zip(self.owner[ids].tolist(), mask.tolist(), strict=True)):
            groups.setdefault(key, []).append(i)
        readings = []
        for (field, bits), members in groups.items():
            positions = tuple(p for p in range(len(spelt)) if bits >> p & 1)
            gaps = set(range(positions[0], positions[-1])) - set(positions)
            if any(info[g] > 2.5 for g in gaps):  # only words with little information, like `of`, may be skipped
                continue
            fit = covered[members] * (
                0.5 + 0.5 * np.log1p(self.df[ids[members]]) / np.log1p(self.df.max()) if len(positions) == 1 else 1.0
            )
            order = np.lexsort((ids[members], -fit))[:32]
            order = order[fit[order] >= 0.5 * fit[order[0]]]
            best = float(fit[order[0]])
            if float(covered[members][order[0]]) < (0.4 if len(positions) == 1 else 0.3):
                continue
            evidence = best * float((info * sure)[list(positions)].sum())
            chosen = ids[members][order]
            others = f" (+{len(chosen) - 1})" if len(chosen) > 1 else ""
            readings.append(
                Reading(
                    positions,
                    self.fields[field],
                    self.values[chosen[0]] + others,
                    tuple(chosen.tolist()),
                    tuple((fit[order] / best).round(4).tolist()),
                    None,
                    evidence,
                )
            )
        return sorted(_same_name(readings), key=lambda r: -r.evidence)[:24]

    def _number_readings(self, raw: Sequence[str], spelt: Sequence[tuple[str, float]]) -> list[Reading]:
        """Lists the readings as years, decades, `before 1990`, `since 2010` or `new` of year and date fields."""
        readings: dict[tuple, Reading] = {}
        for name, (low, high, recent) in self.ranges.items():
            for i, word in enumerate(raw):
                span, positions = None, (i,)
                decade = _DECADE.fullmatch(word)
                if word.isdigit() and len(word) == 4 and low <= int(word) <= high:
                    span = (float(word), float(word))
                    before = raw[i - 1] if i else ""
                    if before in ("before", "until", "since", "after", "from"):
                        span = (low, span[1]) if before in ("before", "until") else (span[0], high)
                        positions = (i - 1, i)
                elif decade:
                    century = decade[1] or ("20" if decade[2] in "012" else "19")
                    start = float(century + decade[2] + "0")
                    span = (start, start + 9) if start <= high and start + 9 >= low else None
                elif word in _RECENT:
                    span = (recent, high)
                if span:
                    label = f"{span[0]:.0f}" if span[0] == span[1] else f"{span[0]:.0f}–{span[1]:.0f}"
                    strength = 0.6 if word in _RECENT else 1.0
                    evidence = strength * max(self._information(spelt[i][0]), 3.0)
                    readings.setdefault((positions, label), Reading(positions, name, label, (), (), span, evidence))
        return list(readings.values())  # a range that fits two fields is read once, for the first


def _same_name(readings: Sequence[Reading]) -> list[Reading]:
    """Joins readings of the same words as the same name in several fields (an actor who is also a tag)."""
    groups: dict[tuple, list[Reading]] = {}
    for reading in readings:
        name = tuple(normalise(reading.label)) if len(reading.tags) == 1 else (reading.field, reading.label)
        groups.setdefault((reading.positions, name), []).append(reading)
    out = []
    for members in groups.values():
        best = max(members, key=lambda r: r.evidence)
        tags = tuple(t for r in members for t in r.tags)
        weights = tuple(round(w * r.evidence / best.evidence, 4) for r in members for w in r.weights)
        fields = "|".join(dict.fromkeys(r.field for r in sorted(members, key=lambda r: -r.evidence)))
        out.append(best._replace(field=fields, tags=tags, weights=weights))
    return out


def _combine(readings: Sequence[Reading], plain: Sequence[float], most: int) -> list[tuple[float, tuple[Reading, ...]]]:
    """Finds the `most` best sets of readings that do not overlap, by evidence; the empty set is always among them."""
    beam: list[tuple[float, frozenset[int], tuple[Reading, ...]]] = [(sum(plain), frozenset(), ())]
    for reading in sorted(readings, key=lambda r: (-r.evidence, r.field, r.label)):
        gain = reading.evidence - sum(plain[p] for p in reading.positions)
        grown = [
            (score + gain, used.union(reading.positions), (*picked, reading))
            for score, used, picked in beam
            if used.isdisjoint(reading.positions)
        ]
        beam = sorted(beam + grown, key=lambda state: -state[0])[: 4 * most]
    kept = [(score, picked) for score, _, picked in beam[:most]]
    return kept if any(not picked for _, picked in kept) else [*kept[: most - 1], (sum(plain), ())]


def _range(column: np.ndarray) -> tuple[float, float, float]:
    known = column[~np.isnan(column)]
    return float(known.min()), float(known.max()), float(np.quantile(known, 0.9))
