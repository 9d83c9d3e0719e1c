"""Draws training pairs from a BEIR data set: queries with positives, negatives, grades and teacher scores, in batches.

Knows texts, qrels and TREC run files; knows nothing about tokens or models: the LightningModule's `collate` turns
examples into tensors. The seed and the optimiser's step determine each batch, so a resumed run sees the same batches as
an uninterrupted one. Legend: B examples of a batch, N documents of an example.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from ltrr.data.batches import Batches
from ltrr.data.beir import Dataset as Judgements
from ltrr.data.beir import document_text, open_dataset
from ltrr.data.corpus import FieldKind
from ltrr.data.devset import in_a_tenth, plain, sampled
from ltrr.data.expansions import read_expansions
from ltrr.data.lines import DataError
from ltrr.metrics import read_run
from ltrr.types import DevSet, Example, Qrels, Query


class Source(NamedTuple):
    """A training query, before documents are drawn for it."""

    id: str
    query: str
    positives: dict[int, float]  # row -> grade
    judged: tuple[int, ...]  # rows judged not relevant
    mined: tuple[int, ...]  # rows of mined negatives
    body: bool  # whether documents are read without their title, because the title is the query


class Pairs(LightningDataModule):
    """Training and validation data for every LightningModule of this library.

    Args:
        path: BEIR folder, zip or hub name.
        split: qrels to learn from; never `test`. A data set with only test qrels needs title or generated pairs.
        dev: qrels to validate on; if they do not exist, a hash of the query's text holds out a tenth of `split`.
            Both leave out the queries of the test split, by id and by text.
        qrels: folder of the qrels.
        fields: kinds of the metadata fields to keep; null = inferred.
        text_fields: metadata fields whose values follow title and text; null = all text and keyword fields.
        negatives: one or more TREC run files of mined negatives (scripts/mine.py); judged negatives are always used.
        teacher: TREC run file of a teacher's scores, for distillation.
        num_negatives: documents per example besides the positive, ≥ 0; filled up with random documents.
        graded: whether these documents may include further positives, for losses that use grades.
        title_pairs: number of (title, text) pairs, as a multiple of the judged queries (of the documents if no query is
            judged).
        expansions: folder of generated queries (scripts/expand.py) to learn from as well.
        generated_pairs: number of generated queries, as a multiple like title_pairs.
        batch_size: queries per batch and device.
        dev_queries: largest number of queries to validate on.
        dev_documents: size of the sampled corpus; grows to hold all judged documents and candidates.
        candidates: TREC run file with candidates of the dev queries; null = judged and random documents.
        num_candidates: candidates per dev query, for models that score pairs.
        num_workers: processes that tokenise; 0 = the training process.
        seed: seeds all random draws of this class.
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
        negatives: list[str] | str | None = None,
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
        for name, value in (("split", split), ("dev", dev)):
            if value == "test":
                raise ValueError(f"data.{name}: test queries must never train or select anything; give another split")
        if split == dev:
            raise ValueError(
                f"data.dev: {dev!r} is the training split, too; a name that is no split holds out a tenth of it"
            )
        for name, value, least in (
            ("num_negatives", num_negatives, 0),
            ("batch_size", batch_size, 1),
            ("title_pairs", title_pairs, 0),
            ("generated_pairs", generated_pairs, 0),
        ):
            if value < least:
                raise ValueError(f"data.{name}: {value} must be {least} or more")
        if generated_pairs and not expansions:
            raise ValueError("data.generated_pairs needs data.expansions, a folder written by scripts/expand.py")
        self._path, self._qrels, self._fields, self._text_fields = path, qrels, fields, text_fields
        self._split, self._dev = split, dev
        self._negative_files = [negatives] if isinstance(negatives, str) else negatives or []
        self._teacher_file, self.num_negatives, self._graded = teacher, num_negatives, graded
        self._title_pairs, self._expansions, self._generated_pairs = title_pairs, expansions, generated_pairs
        self.batch_size = batch_size
        self._dev_queries, self._dev_documents = dev_queries, dev_documents
        self._candidate_file, self._num_candidates = candidates, num_candidates
        self._num_workers, self.seed = num_workers, seed
        self._ready = False

    # -- called by Lightning

    def setup(self, stage: str = "fit") -> None:
        """Reads the data set and the run files; raises DataError or ValueError for errors in them."""
        if self._ready:
            return
        dataset = open_dataset(self._path or "", fields=self._fields, qrels=self._qrels)
        self.corpus, self.name = dataset.corpus, dataset.name
        self._words = self.corpus.word_fields(self._text_fields)
        queries, grades = self._judged(dataset, self._split)
        if self._dev in dataset.splits:
            held_out, dev_qrels = self._judged(dataset, self._dev)
        else:
            self._dev = f"a tenth of {self._split}"
            held_out, dev_qrels = [q for q in queries if in_a_tenth(q.text)], grades
            queries = [q for q in queries if not in_a_tenth(q.text)]
        self.train_queries = queries
        if not queries and not self._title_pairs and not self._generated_pairs:
            raise DataError(
                f"{self._path}: no query of {self._qrels}/{self._split}.tsv has a positive; nothing to learn but "
                "data.title_pairs or data.generated_pairs"
            )
        self._teacher = self._run("teacher", self._teacher_file) if self._teacher_file else {}
        self._sources = self._judged_sources(queries, grades)
        count = len(self._sources) or len(self.corpus)
        rng = np.random.default_rng(self.seed)
        self._sources += self._title_sources(round(self._title_pairs * count), rng)
        self._sources += self._generated_sources(round(self._generated_pairs * count), rng)
        self.dev_set = self._sampled_dev(held_out, dev_qrels, rng)
        self._ready = True

    def train_dataloader(self) -> DataLoader:
        """Loads batches of examples, collated by the LightningModule."""
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
        """Loads the dev set as one batch; empty if no query is held out."""
        return DataLoader([self.dev_set], batch_size=None, collate_fn=_as_it_is) if self.dev_set.ids else []  # type: ignore[arg-type]

    def _position(self, batches: int) -> tuple[int, int]:
        """Computes the next epoch and batch from the optimiser's step."""
        assert self.trainer is not None
        every = self.trainer.accumulate_grad_batches
        epoch, step = divmod(self.trainer.global_step, -(-batches // every))
        return epoch, step * every

    # -- called by modules and exports

    @property
    def has_teacher(self) -> bool:
        """Whether the config names a teacher's scores."""
        return self._teacher_file is not None

    def corpus_texts(self, count: int) -> list[str]:
        """Returns the texts of at most `count` random documents."""
        rows = np.random.default_rng(self.seed).permutation(len(self.corpus))[:count]
        return [self.text(int(row)) for row in rows]

    def trained_on(self) -> dict[str, Any]:
        """Describes a model's training data; stored with the model, so that nothing is tuned on the same queries."""
        return {
            "data": self.corpus.fingerprint,
            "name": self.name,
            "splits": [self._split] if self.train_queries else [],
            "num_queries": len(self.train_queries),
            "queries": hashlib.sha256(json.dumps(sorted(q.id for q in self.train_queries)).encode()).hexdigest(),
            "selected_on": self._dev,
            "expansions": self._expansions,
        }

    def text(self, row: int, *, body: bool = False) -> str:
        """Returns the text that a model reads of a document; `body` omits the title."""
        document = self.corpus[row]
        if body:
            return document.text
        return document_text(document, self._words)

    def _length(self, row: int) -> int:
        document = self.corpus[row]
        return len(document.title) + len(document.text)

    def example(self, index: int, epoch: int) -> Example:
        """Returns the index-th training query with the documents drawn for this epoch."""
        source = self._sources[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        positives = list(source.positives)
        first = positives[int(rng.integers(len(positives)))]
        negatives = [*source.mined, *source.judged]
        if self._graded:
            negatives += [row for row in positives if row != first]
        chosen = [negatives[i] for i in rng.permutation(len(negatives))[: self.num_negatives]]
        while len(chosen) < self.num_negatives:
            row = int(rng.integers(len(self.corpus)))
            if row not in source.positives and row not in chosen:
                chosen.append(row)
            elif 2 * (len(source.positives) + len(chosen)) > len(self.corpus):  # few documents are left: list them
                remaining = np.setdiff1d(np.arange(len(self.corpus)), [*positives, *chosen])
                remaining = remaining if len(remaining) else np.setdiff1d(np.arange(len(self.corpus)), positives)
                if not len(remaining):
                    raise DataError(f"{self._path}: all documents are positives of query {source.id!r}; leave it out")
                chosen.append(int(rng.choice(remaining)))
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

    # -- sources of pairs

    def _judged(self, dataset: Judgements, split: str) -> tuple[list[Query], Qrels]:
        """Returns the queries of a split that have a positive and are not in the test split, and the qrels."""
        if set(dataset.splits) <= {"test"} and (self._title_pairs or self._generated_pairs):
            return [], {}
        queries, qrels = dataset.split(split)
        test = dataset.split("test").queries if "test" in dataset.splits else []
        ids, texts = {q.id for q in test}, {plain(q.text) for q in test}
        kept = [q for q in queries if q.id not in ids and plain(q.text) not in texts]
        if len(kept) < len(queries):
            warnings.warn(f"{split}: queries left out as test asks the same: {len(queries) - len(kept)}", stacklevel=2)
        return [q for q in kept if any(g > 0 for g in qrels[q.id].values())], qrels

    def _run(self, name: str, path: str, queries: Iterable[str] = ()) -> dict[str, dict[int, float]]:
        """Reads a run file as corpus rows and scores; raises DataError if missing or of other documents or queries."""
        try:
            run = read_run(path)
            scores = {query: {self.corpus.row(doc): s for doc, s in docs.items()} for query, docs in run.items()}
        except FileNotFoundError:
            raise DataError(f"data.{name}: {path}: no such file; scripts/mine.py writes it") from None
        except DataError as error:
            raise DataError(f"data.{name}: {path}: of another corpus ({error})") from None
        if scores.keys().isdisjoint(queries or [q.id for q in self.train_queries]):
            raise DataError(f"data.{name}: {path} has no query of the split it is for; mine that split")
        return scores

    def _judged_sources(self, queries: Sequence[Query], qrels: Qrels) -> list[Source]:
        mined: dict[str, dict[int, float]] = {}
        for path in self._negative_files:
            for query, docs in self._run("negatives", path).items():
                mined.setdefault(query, {}).update(docs)
        out = []
        for query in queries:
            grades = {self.corpus.row(doc): float(grade) for doc, grade in qrels[query.id].items()}
            positives = {row: grade for row, grade in grades.items() if grade > 0}
            judged = tuple(row for row in grades if row not in positives)
            negatives = tuple(row for row in mined.get(query.id, ()) if row not in grades)
            out.append(Source(query.id, query.text, positives, judged, negatives, False))
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
        run = self._run("candidates", self._candidate_file, [q.id for q in chosen]) if self._candidate_file else {}
        judged = [[self.corpus.row(doc) for doc in qrels[q.id]] for q in chosen]
        ranked = [list(run.get(q.id, ()))[: self._num_candidates] for q in chosen]
        rows, candidates = sampled(judged, ranked, len(self.corpus), self._dev_documents, self._num_candidates, rng)
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
    """Has an empty state, which tells Lightning that it can resume: its place follows from the optimiser's step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def _as_it_is(batch: DevSet) -> DevSet:
    return batch
