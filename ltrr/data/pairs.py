"""Training pairs from a BEIR set: queries with a positive, negatives, grades and a teacher's scores, in batches.

Knows texts, qrels and TREC run files; knows nothing about tokens or models: the LightningModule's `collate` makes
tensors of examples. What a batch holds follows from the seed and the optimiser's step alone, so that a run that was
killed goes on with the batches that it would have had. Legend: B examples of a batch, N documents of an example.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from ltrr.core import DevSet, Example, Qrels, Query
from ltrr.data.batches import Batches
from ltrr.data.beir import Corpus, document_text, open_dataset
from ltrr.data.corpus import FieldKind
from ltrr.data.expansions import read_expansions
from ltrr.data.lines import DataError
from ltrr.metrics import read_run


class Source(NamedTuple):
    """A query to be learned, before documents are drawn for it."""

    id: str
    query: str
    positives: dict[int, float]  # row -> grade
    judged: tuple[int, ...]  # rows judged not relevant
    mined: tuple[int, ...]
    body: bool  # whether the document goes without its title, which is the query


class Pairs(LightningDataModule):
    """Training and validation data of every module.

    Args:
        path: BEIR folder, zip or hub name.
        split: qrels to learn from; never `test`.
        dev: qrels to validate on; where there are none, a tenth of `split` is held out by a hash of the query's text.
        qrels: folder of the qrels.
        fields: kinds of the metadata fields to keep; null = inferred.
        text_fields: metadata fields whose values follow title and text; null = all fields of words.
        negatives: TREC run files of mined negatives (scripts/mine.py); judged negatives are always used.
        teacher: TREC run file of a teacher's scores, for distillation.
        num_negatives: documents beside the positive, ≥ 0; random documents where too few are known.
        graded: whether further positives may be among those, for losses that know grades.
        title_pairs: pairs of a title and its document's text, as a multiple of the judged queries.
        expansions: folder of generated queries (scripts/expand.py) to learn from as well.
        generated_pairs: how many of those, as a multiple of the judged queries.
        batch_size: queries a batch and device.
        dev_queries: at most so many queries are validated on.
        dev_documents: size of the sampled corpus, beside what the queries' judgements and candidates name.
        candidates: TREC run file with candidates of the dev queries; null = judged and random documents.
        num_candidates: candidates of a dev query, for models that score pairs.
        num_workers: processes that tokenise; 0 = the training process.
        seed: of everything drawn here.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        split: str = "train",
        dev: str = "dev",
        qrels: str = "qrels",
        fields: dict[str, FieldKind] | None = None,
        text_fields: list[str] | None = None,
        negatives: list[str] | None = None,
        teacher: str | None = None,
        num_negatives: int = 1,
        graded: bool = False,
        title_pairs: float = 0.0,
        expansions: str | None = None,
        generated_pairs: float = 0.0,
        batch_size: int = 16,
        dev_queries: int = 300,
        dev_documents: int = 2000,
        candidates: str | None = None,
        num_candidates: int = 20,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if path is None:
            raise ValueError("data.path is not set; give --data.path FOLDER, ZIP or HUBNAME")
        if split == "test":
            raise ValueError("data.split: test queries must never train anything; give another split")
        if generated_pairs and not expansions:
            raise ValueError("data.generated_pairs needs data.expansions, a folder written by scripts/expand.py")
        self._path, self._qrels, self._fields = path, qrels, fields
        self._split, self._dev = split, dev
        self._text_fields = text_fields
        self._negative_files, self._teacher_file = negatives or [], teacher
        self.num_negatives, self._graded = num_negatives, graded
        self._title_pairs, self._expansions, self._generated_pairs = title_pairs, expansions, generated_pairs
        self.batch_size = batch_size
        self._dev_queries, self._dev_documents = dev_queries, dev_documents
        self._candidate_file, self._num_candidates = candidates, num_candidates
        self._num_workers, self.seed = num_workers, seed
        self._ready = False

    # -- what Lightning calls

    def setup(self, stage: str = "fit") -> None:
        """Reads the data set and the run files; DataError or ValueError for anything wrong in them."""
        if self._ready:
            return
        dataset = open_dataset(self._path or "", fields=self._fields, qrels=self._qrels)
        self.corpus, self.name = dataset.corpus, dataset.name
        self._words = self.corpus.word_fields(self._text_fields)
        judged = dataset.split(self._split)
        queries = judged.queries
        if self._dev in dataset.splits:
            held_out, dev_qrels = dataset.split(self._dev)
        else:
            self._dev = f"a tenth of {self._split}"
            held_out, dev_qrels = [q for q in queries if _tenth(q.text)], judged.qrels
            queries = [q for q in queries if not _tenth(q.text)]
        self.train_queries = [q for q in queries if any(g > 0 for g in judged.qrels[q.id].values())]
        held_out = [q for q in held_out if any(g > 0 for g in dev_qrels[q.id].values())]
        if not self.train_queries:
            raise DataError(
                f"{self._path}: no query of {self._qrels}/{self._split}.tsv has a positive; nothing to learn"
            )
        self._teacher = _by_row(self._teacher_file, self.corpus) if self._teacher_file else {}
        self._sources = self._judged_sources(self.train_queries, judged.qrels)
        count = len(self._sources)
        rng = np.random.default_rng(self.seed)
        self._sources += self._title_sources(round(self._title_pairs * count), rng)
        self._sources += self._generated_sources(round(self._generated_pairs * count), rng)
        self.dev_set = self._sampled_dev(held_out, dev_qrels, rng)
        self._ready = True

    def train_dataloader(self) -> DataLoader:
        """Batches of examples, collated by the LightningModule."""
        assert self.trainer is not None
        assert self.trainer.lightning_module is not None
        lengths = np.array([len(s.query) + self._length(next(iter(s.positives))) for s in self._sources])
        sampler = Batches(
            lengths, self.batch_size, self.seed, self.trainer.global_rank, self.trainer.world_size, self._position
        )
        if not len(sampler):
            raise ValueError(
                f"data.batch_size: {len(self._sources)} training pairs do not fill a batch of {self.batch_size} on "
                f"each of {self.trainer.world_size} devices; lower it"
            )
        return _ResumableLoader(
            _Examples(self),
            batch_sampler=sampler,
            collate_fn=self.trainer.lightning_module.collate,  # type: ignore[arg-type]
            num_workers=self._num_workers,
            pin_memory=self.trainer.num_devices > 0 and self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=False,
        )

    def val_dataloader(self) -> DataLoader | list:
        """The dev set as one batch; nothing where no query is held out."""
        return DataLoader([self.dev_set], batch_size=None, collate_fn=_as_it_is) if self.dev_set.ids else []  # type: ignore[arg-type]

    def _position(self, batches: int) -> tuple[int, int]:
        """Epoch and batch of it that come next, from the optimiser's step."""
        assert self.trainer is not None
        every = self.trainer.accumulate_grad_batches
        epoch, step = divmod(self.trainer.global_step, -(-batches // every))
        return epoch, step * every

    # -- what modules and exports ask

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher's scores are given."""
        return self._teacher_file is not None

    def corpus_texts(self, count: int) -> list[str]:
        """Texts of documents drawn at random, at most `count`."""
        rows = np.random.default_rng(self.seed).permutation(len(self.corpus))[:count]
        return [self.text(int(row)) for row in rows]

    def trained_on(self) -> dict[str, Any]:
        """What a model has seen, written beside it so that nothing is tuned on the same queries later."""
        ids = json.dumps(sorted(q.id for q in self.train_queries))
        return {
            "data": self.corpus.fingerprint,
            "name": self.name,
            "splits": [self._split],
            "num_queries": len(self.train_queries),
            "queries": hashlib.sha256(ids.encode()).hexdigest(),
            "selected_on": self._dev,
        }

    def text(self, row: int, *, body: bool = False) -> str:
        """What a model reads of a document; `body` leaves the title out."""
        document = self.corpus[row]
        if body:
            return document.text
        return document_text(document, self._words)

    def _length(self, row: int) -> int:
        document = self.corpus[row]
        return len(document.title) + len(document.text)

    def example(self, index: int, epoch: int) -> Example:
        """The index-th training query with documents drawn for this epoch."""
        source = self._sources[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        positives = list(source.positives)
        first = positives[int(rng.integers(len(positives)))]
        known = [*source.mined, *source.judged]
        if self._graded:
            known += [row for row in positives if row != first]
        chosen = [known[i] for i in rng.permutation(len(known))[: self.num_negatives]]
        while len(chosen) < self.num_negatives:
            row = int(rng.integers(len(self.corpus)))
            if (row not in source.positives and row not in chosen) or len(self.corpus) <= self.num_negatives + 1:
                chosen.append(row)
        rows = [first, *chosen]
        teacher = self._teacher.get(source.id, {})
        return Example(
            source.id,
            source.query,
            [self.text(row, body=source.body) for row in rows],
            rows,
            [source.positives.get(row, 0.0) for row in rows],
            [teacher.get(row, np.nan) for row in rows],
            frozenset(source.positives),
        )

    # -- where pairs come from

    def _judged_sources(self, queries: Sequence[Query], qrels: Qrels) -> list[Source]:
        mined: dict[str, dict[int, float]] = {}
        for path in self._negative_files:
            for query, docs in _by_row(path, self.corpus).items():
                mined.setdefault(query, {}).update(docs)
        unknown = set(mined) - {q.id for q in queries}
        if mined and len(unknown) == len(mined):
            raise DataError(
                f"negatives: no query of {', '.join(self._negative_files)} is in {self._split}; mine that split"
            )
        out = []
        for query in queries:
            grades = {self.corpus.row(doc): float(grade) for doc, grade in qrels[query.id].items()}
            positives = {row: grade for row, grade in grades.items() if grade > 0}
            judged = tuple(row for row in grades if row not in positives)
            own = tuple(row for row in mined.get(query.id, ()) if row not in grades)
            out.append(Source(query.id, query.text, positives, judged, own, False))
        return out

    def _title_sources(self, count: int, rng: np.random.Generator) -> list[Source]:
        rows = rng.permutation(len(self.corpus)) if count else ()
        documents = ((int(row), self.corpus[int(row)]) for row in rows)
        usable = ((row, d) for row, d in documents if d.title.strip() and d.text.strip())
        return [
            Source(f"title:{d.id}", d.title, {row: 1.0}, (), (), True)
            for (row, d), _ in zip(usable, range(count), strict=False)
        ]

    def _generated_sources(self, count: int, rng: np.random.Generator) -> list[Source]:
        if not count:
            return []
        generated = read_expansions(self._expansions or "", self.corpus)
        every = [(row, n, text) for row, texts in enumerate(generated) for n, text in enumerate(texts)]
        chosen = [every[i] for i in rng.permutation(len(every))[:count]]
        return [Source(f"generated:{self.corpus.ids[r]}:{n}", text, {r: 1.0}, (), (), False) for r, n, text in chosen]

    def _sampled_dev(self, queries: Sequence[Query], qrels: Qrels, rng: np.random.Generator) -> DevSet:
        chosen = [queries[i] for i in sorted(rng.permutation(len(queries))[: self._dev_queries])]
        judged = {q.id: {self.corpus.row(doc): g for doc, g in qrels[q.id].items()} for q in chosen}
        given = _by_row(self._candidate_file, self.corpus) if self._candidate_file else {}
        if self._candidate_file and not any(q.id in given for q in chosen):
            raise DataError(f"candidates: {self._candidate_file} has no query of the {self._dev} split")
        named = {row for q in chosen for row in [*judged[q.id], *list(given.get(q.id, ()))[: self._num_candidates]]}
        extra = [int(row) for row in rng.permutation(len(self.corpus)) if int(row) not in named]
        rows = sorted(named | set(extra[: max(self._dev_documents - len(named), 0)])) if chosen else []
        place = {row: i for i, row in enumerate(rows)}
        candidates = []
        for query in chosen:
            own = list(given.get(query.id, ()))[: self._num_candidates] if given else list(judged[query.id])
            if not given:
                drawn = [int(r) for r in rng.permutation(rows)[: self._num_candidates]]
                own = list(dict.fromkeys([*own, *drawn]))[: max(self._num_candidates, len(own))]
            candidates.append(np.array([place[row] for row in own], np.int64))
        return DevSet(
            [q.id for q in chosen],
            [q.text for q in chosen],
            {q.id: qrels[q.id] for q in chosen},
            [self.corpus.ids[row] for row in rows],
            [self.text(row) for row in rows],
            candidates,
        )


class _Examples(Dataset):
    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        return self._pairs.example(index, epoch)


class _ResumableLoader(DataLoader):
    """Its place follows from the optimiser's step, so its state is empty; that it has one tells Lightning so."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def _as_it_is(batch: DevSet) -> DevSet:
    return batch


def _tenth(text: str) -> bool:
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()[0] < 26


def _by_row(path: str, corpus: Corpus) -> dict[str, dict[int, float]]:
    """A run file with corpus rows; DataError for a document that the corpus does not have."""
    try:
        return {
            query: {corpus.row(doc): score for doc, score in docs.items()} for query, docs in read_run(path).items()
        }
    except DataError as error:
        raise DataError(f"{path}: of another corpus ({error})") from None
