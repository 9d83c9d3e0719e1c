"""Last.fm of HetRec 2011 (Cantador et al. 2011): who listened to which artist, and the tags that listeners gave.

Knows the folder's TSV files beside its corpus; does not know what is learned from them.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ltrr.data.beir import open_dataset
from ltrr.data.corpus import Corpus


def interactions(folder: Path) -> list[tuple[str, str, str]]:
    """(listener, artist, plays) of each line."""
    return [(listener, artist, plays) for listener, artist, plays in _rows(folder / "interactions.tsv")]


def tagged_corpus(folder: Path, num_tags: int = 5) -> Corpus:
    """The artists with their titles and most frequent tags alone.

    A tag counts where its author did not listen to the artist, so that no tag says who listens.
    """
    names = dict(csv.reader((folder / "tags.tsv").open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    heard = {(listener, artist) for listener, artist, _ in interactions(folder)}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for listener, artist, tag, *_ in _rows(folder / "user_taggedartists.tsv"):
        if (listener, artist) not in heard:
            counts[artist][names[tag]] += 1
    best = {a: sorted(tags, key=lambda tag, tags=tags: (-tags[tag], tag))[:num_tags] for a, tags in counts.items()}
    documents = open_dataset(folder).corpus
    return Corpus.from_documents(replace(each, metadata={"tags": best.get(each.id, [])}) for each in documents)


def _rows(path: Path) -> Iterator[tuple[str, ...]]:
    return (tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()[1:])
