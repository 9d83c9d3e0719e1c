"""Writes queries that each document may answer, with their likelihoods (doc2query), and drops the irrelevant ones.

python scripts/expand.py --model runs/doc2query-1/export --data FOLDER --out DIR [--num_queries 20] [--top_k 10]
                         [--filter runs/cross_encoder-1/export --keep 0.7]

DIR gets one line a document, in shards; ltrr/data/expansions.py says what is in a line. Killed, it keeps whole shards,
and the same command goes on with the missing ones. --filter (doc2query--, Gospodinov et al. 2023) scores every query
against its document and keeps the best share of all; it may come later, on a finished DIR. Another --keep scores
nothing again. To search with them: --arms.lexical.expansion DIR. To train on them: --data.expansions DIR. A collection
such as CQADupStack gets a folder for each of its sets.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Sequence
from typing import Any, Protocol

from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.data.beir import Corpus, document_text
from ltrr.data.expansions import Expansion, ExpansionWriter
from ltrr.files import atomic_write
from ltrr.protocols import Scorer
from ltrr.system.system import open_systems
from ltrr.system.tuning import trained_on


class Generator(Protocol):
    """ltrr.encoders.generator.Generator, or a fake."""

    id: str

    def sample(
        self, texts: Sequence[str], num_queries: int, *, seed: int, top_k: int, top_p: float, temperature: float
    ) -> Sequence[Sequence[Any]]: ...


def generate(writer: ExpansionWriter, texts: Texts, generator: Generator, num_queries: int, **sampling: Any) -> None:
    """Writes the shards that are not there yet."""
    missing = writer.missing()
    with _progress("expand", texts, missing) as progress:
        for rows in missing:
            found = generator.sample([texts[row] for row in rows], num_queries, **sampling)
            writer.write(rows, [[Expansion(*one) for one in several] for several in found])
            progress.update(len(rows))


def judge(writer: ExpansionWriter, texts: Texts, scorer: Scorer) -> None:
    """Adds the relevance of each query to its document, in the shards that lack it."""
    missing = writer.unscored(scorer.id)
    with _progress("filter", texts, missing) as progress:
        for rows in missing:
            shard = writer.read(rows)
            pairs = [(e.query, texts[row]) for row, several in zip(rows, shard, strict=True) for e in several]
            scores = iter(scorer.score([q for q, _ in pairs], [text for _, text in pairs]).tolist())
            writer.write(rows, [[e._replace(relevance=next(scores)) for e in several] for several in shard])
            progress.update(len(rows))


class Texts:
    """What the models read of a document, by row."""

    def __init__(self, corpus: Corpus) -> None:
        self.fields = corpus.word_fields()
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus)

    def __getitem__(self, row: int) -> str:
        return document_text(self._corpus[row], self.fields)


def _progress(name: str, texts: Texts, missing: list[range]) -> tqdm:
    todo = sum(map(len, missing))
    return tqdm(
        total=len(texts), initial=len(texts) - todo, desc=name, unit="document", disable=not todo, mininterval=1
    )


def _share(text: str) -> float:
    if not 0 < (share := float(text)) <= 1:
        raise ArgumentTypeError(f"{share} is not a share above 0 and at most 1")
    return share


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ArgumentTypeError(f"{number} is not at least 1")
    return number


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/funnel.yaml",
        "",
        lambda parser: (
            parser.add_argument("--model", required=True, help="export folder of a doc2query run, or a hub name"),
            parser.add_argument(
                "--num_queries", type=_positive, default=20, help="sampled for a document (default 20)"
            ),
            parser.add_argument("--top_k", type=int, default=10, help="tokens drawn from, 0 = all (default 10)"),
            parser.add_argument("--top_p", type=float, default=1.0, help="probability drawn from (default 1)"),
            parser.add_argument("--temperature", type=float, default=1.0, help="above 0 (default 1)"),
            parser.add_argument("--max_length", type=_positive, help="tokens of a document (default: as trained)"),
            parser.add_argument(
                "--max_query_length", type=_positive, default=32, help="tokens of a query (default 32)"
            ),
            parser.add_argument("--seed", type=int, default=0),
            parser.add_argument("--shard", type=_positive, default=512, help="documents of a shard (default 512)"),
            parser.add_argument("--filter", help="export folder of a cross-encoder run, or a hub name"),
            parser.add_argument("--keep", type=_share, default=0.7, help="share of the queries kept (default 0.7)"),
        ),
    )
    if not flags.out:
        raise ConfigError("--out: where to write is not set; give --out DIR")
    systems = open_systems(flags.config, overrides)
    from ltrr.encoders.generator import load_generator  # torch takes seconds to import: not for --help

    generator = load_generator(flags.model, max_length=flags.max_length, max_query_length=flags.max_query_length)
    sampling = {"top_k": flags.top_k, "top_p": flags.top_p, "temperature": flags.temperature, "seed": flags.seed}
    for system in systems:
        # 1) Queries, where shards are missing.
        folder = flags.out / system.dataset.name if len(systems) > 1 else flags.out
        texts = Texts(system.corpus)
        settings = {"num_queries": flags.num_queries, **sampling, "fields": texts.fields}
        writer = ExpansionWriter(folder, system.corpus, model=generator.id, settings=settings, shard=flags.shard)
        generate(writer, texts, generator, flags.num_queries, **sampling)

        # 2) The filter.
        if flags.filter:
            from ltrr.encoders.cross_encoder import load_cross_encoder

            judge(writer, texts, load_cross_encoder(flags.filter))
        writer.finish(flags.keep if flags.filter else None)

        # 3) What the models have learned from, so that searches with these queries are known to be in-domain.
        notes = [note for model in (flags.model, flags.filter) if model and (note := trained_on(model))]
        notes = [each for note in notes for each in (note, *note.pop("origins", []))]
        if notes:
            with atomic_write(folder / "ltrr.json") as temporary:
                temporary.write_text(json.dumps({**notes[0], "origins": notes[1:]}) + "\n", encoding="utf-8")
        print(f"{len(texts):,} documents in {folder}")


if __name__ == "__main__":
    main(run)
