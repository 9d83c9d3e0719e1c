"""What a customer is likely to want: the entities whose vectors are nearest to those of what they engaged with.

An entity's vector has two parts: one learned from who engaged with what, and one of its text, which a new entity has,
too. A customer's is a sum over what they engaged with; events move it at once, while entity vectors stay those of the
last build. Knows a table of engagement, events and a text encoder; knows nothing about a query's words.
Legend: Q queries, K candidates, N documents, C learned dimensions, D all.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy import sparse

from ltrr.arms.engagement import Engagement, co_engagement, popular_of
from ltrr.arms.shards import encode_shards
from ltrr.data.beir import Corpus
from ltrr.feedback.events import Action, Impression, Reward, digest_of
from ltrr.feedback.evidence.ledger import light, microseconds, worth
from ltrr.files import atomic_write
from ltrr.index import manifest
from ltrr.protocols import Encoder
from ltrr.types import ActionRow, Candidates, ImpressionRow, Query, top_k

_BATCH = 128  # queries scored at once
_LAST, _SESSION = 5, 0.5  # entities of a session that count, and their weight beside the customer's 1
_GRACE, _FORGOTTEN = 7, 10  # days that an event waits for its other half; half lives after which nothing counts
_DAY = microseconds(timedelta(days=1))
_RIDGE = 3.0  # documents' worth, of learned vectors that are predicted from text


class Personal:
    """Personal retrieval arm.

    A query's vector: what its context's customer engaged with and, at half that weight, the last entities of the
    session that the context's attribute `session` names. Who is unknown in both gets what is popular in their locale:
    among customers of that locale where the table has locales, otherwise among documents of that `locale`.

    Args:
        encoder: for the text part.
        interactions: TSV of engagement (`Engagement.read`); null = none before the first event.
        components: dimensions that are learned from engagement.
        damping: of entities that many engaged with: their counts to this power divide, 0 to .5.
        ridge: how much weaker dimensions are shrunk, relative to the strongest.
        text: weight of the text part, 0 (the encoder is not asked) to 1 (nothing else counts).
        text_fields: metadata fields whose values are encoded after title and text; null = all fields of words.
        half_life: days; engagement that is this much older than the customer's latest counts half.
        reward: what actions are worth (`Reward.configured`); null = as by default.
    """

    source_kind = "personal"

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        interactions: str | None = None,
        components: int = 256,
        damping: float = 0.2,
        ridge: float = 0.2,
        text: float = 0.4,
        text_fields: Sequence[str] | None = None,
        half_life: float = 365.0,
        reward: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= text <= 1:
            raise ValueError(f"arms.personal.text: {text} is not within 0 to 1")
        self._encoder = encoder if text else None
        self._path = Path(interactions) if interactions else None
        self._learning = {"components": components, "damping": damping, "ridge": ridge}
        self._text, self._named, self._half_life = text, text_fields, half_life
        self._reward, self._lock = Reward.configured(reward), threading.Lock()

    @staticmethod
    def content(arguments: dict[str, Any]) -> list[str]:
        """Checksums of the files that these constructor arguments name, for the keys of caches."""
        path = arguments.get("interactions")
        return [hashlib.sha256(Path(path).read_bytes()).hexdigest()] if path else []

    # -- life: build once, open, search

    def build(self, corpus: Corpus, root: Path) -> None:
        """Learns the entity vectors and writes them under `root`, atomically; an encoding that was killed goes on."""

        def write(folder: Path) -> dict[str, int]:
            table = Engagement.read(self._path, corpus)
            learned, factors = co_engagement(table, len(corpus), **self._learning)
            text = self._encoded(corpus, root)
            new = np.bincount(table.rows, minlength=len(corpus)) == 0
            gram = text[~new].T @ text[~new] + _RIDGE * np.eye(text.shape[1], dtype=np.float32)
            learned[new] = text[new] @ np.linalg.solve(gram, text[~new].T @ learned[~new])
            arrays = {f"table_{name}": value for name, value in table._asdict().items()}
            arrays |= {f"popular_{name}": value for name, value in popular_of(table, corpus).items()}
            np.savez(folder / "personal.npz", learned=learned, text=text, factors=factors, **arrays)
            return {"documents": len(corpus), "customers": len(table.names), "engagements": len(table.rows)}

        manifest.build(root, write=write, **self._basis(corpus))

    def open(self, corpus: Corpus, root: Path) -> Self:
        """Opens what `build` wrote; IndexRefused where it is damaged or of another corpus, table, encoder or config."""
        folder, _ = manifest.open_index(root, **self._basis(corpus))
        with np.load(folder / "personal.npz", allow_pickle=False) as data:
            self._vectors = np.concatenate([data["learned"], data["text"]], axis=1)  # (N, D)
            self._parts = np.split(np.arange(self._vectors.shape[1]), [data["learned"].shape[1]])
            self._factors = data["factors"]  # (N,)
            self._table = Engagement(*(data[f"table_{name}"] for name in Engagement._fields))
            popular = (data[f"popular_{name}"] for name in ("names", "docs", "scores"))
            self._popular = {str(name): (docs, scores) for name, docs, scores in zip(*popular, strict=True)}
        self._number = {name: number for number, name in enumerate(self._table.names.tolist())}
        self._starts = np.searchsorted(self._table.who, np.arange(len(self._number) + 1))  # (U + 1,)
        self._rows = {entity: row for row, entity in enumerate(corpus.ids)}
        self._restart((), (), ())
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """(Q, k) entities with a score above 0; for who is unknown, popular ones, no more than 1,000."""
        vectors, out = self.embed(queries), Candidates.empty(len(queries), k)
        known = np.linalg.norm(vectors, axis=1) > 0
        for start in range(0, len(queries), _BATCH):
            some = np.flatnonzero(known[start : start + _BATCH]) + start
            scores = vectors[some] @ self._vectors.T  # (B, N)
            rows = np.where(scores > 0, np.arange(len(self._vectors), dtype=np.int32), -1)
            out.docs[some], out.scores[some] = top_k(rows, np.where(rows < 0, np.float32(-np.inf), scores), k)
        for i in np.flatnonzero(~known).tolist():
            docs, scores = self._popular.get(queries[i].context.locale or "", self._popular[""])
            out.docs[i, : len(docs)], out.scores[i, : len(docs)] = docs[:k], scores[:k]
        return out

    def embed(self, queries: Sequence[Query]) -> np.ndarray:
        """(Q, D) float32, to be multiplied with entity vectors; zeros for who is unknown."""
        with self._lock:
            own = [self._engaged(query.context.customer) for query in queries]
            last = [self._visited(query.context.attributes.get("session"), query.context.customer) for query in queries]
        weights = np.repeat(np.array([1 - self._text, self._text], np.float32), [len(p) for p in self._parts])
        return (self._sums(own) + np.float32(_SESSION) * self._sums(last)) * weights

    def profile(self, customer: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of what a customer engaged with, and weights, below 0 for what they dismissed; none = unknown."""
        with self._lock:
            return self._engaged(customer)

    # -- learning

    def observe(self, events: Iterable[Impression | Action]) -> None:
        """Learns from events, in any order; those that it has had change nothing."""
        self.take(*light(events, self._rows))

    def take(self, seen: Sequence[ImpressionRow], did: Sequence[ActionRow]) -> None:
        """As `observe`, from the light rows of an event store."""
        with self._lock:
            for s in seen:
                self._seen.setdefault(s.id, s)
                self._settle(s.id)
            for d in did:
                self._did.setdefault(d.impression, {}).setdefault(d.id, d)
                self._settle(d.impression)

    def customers(self) -> list[str]:
        """Names of whom it knows, from events or from the table."""
        with self._lock:
            return [*{*self._number, *(s.customer for s in self._seen.values())} - {""}]

    def erase(self, customer: str) -> None:
        """Forgets a customer, the table's engagement included; entity vectors forget them with the next build."""
        with self._lock:
            seen = [s for s in self._seen.values() if s.customer != customer]
            gone = {s.id for s in self._seen.values() if s.customer == customer}
            did = [d for i, of in self._did.items() if i not in gone for d in of.values()]
            self._restart(seen, did, [*self._erased, digest_of(customer)])

    def compact(self) -> None:
        """Forgets events that were without their other half for a week, and what hardly counts any more."""
        with self._lock:
            now = max(
                (e.time for e in chain(self._seen.values(), *(d.values() for d in self._did.values()))), default=0
            )
            waits, counts = now - _GRACE * _DAY, now - _FORGOTTEN * self._half_life * _DAY
            seen = [s for s in self._seen.values() if s.time >= (counts if self._earned.get(s.id) else waits)]
            kept = {s.id for s in seen}
            did = [d for i, of in self._did.items() for d in of.values() if i in kept or d.time >= waits]
            self._restart(seen, did, self._erased)

    def save(self, path: Path) -> None:
        """What came since the build, in one file without objects; whole or not at all."""
        with self._lock:
            state = [[*self._seen.values()], [d for of in self._did.values() for d in of.values()], [*self._erased]]
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, state=np.frombuffer(json.dumps(state).encode(), np.uint8))

    def load(self, path: Path) -> None:
        """Goes on from what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            seen, did, erased = json.loads(file["state"].tobytes())
        with self._lock:
            self._restart([ImpressionRow(*fields) for fields in seen], [ActionRow(*fields) for fields in did], erased)

    def _restart(self, seen: Iterable[ImpressionRow], did: Iterable[ActionRow], erased: Iterable[str]) -> None:
        self._seen: dict[str, ImpressionRow] = {}
        self._did: dict[str, dict[str, ActionRow]] = {}  # impression -> action -> did
        self._earned: dict[str, list[tuple[float, str, int, float]]] = {}  # impression -> day, itself, row, reward
        self._of: dict[tuple[str, str | None], set[str]] = {}  # (customer, session; None = all) -> impressions
        self._erased = set(erased)  # digest_of names
        for s in seen:
            self._seen[s.id] = s
        for d in did:
            self._did.setdefault(d.impression, {})[d.id] = d
        for impression in self._seen:
            self._settle(impression)

    def _settle(self, impression: str) -> None:
        """What an impression earned, once it and an action are there."""
        if impression in self._seen and impression in self._did:
            seen = self._seen[impression]
            earned = sorted(worth(self._reward, seen, self._did[impression].values()).items())
            self._earned[impression] = [(seen.time / _DAY, impression, row, reward) for row, reward in earned]
            for who in ((seen.customer, None), (seen.customer, seen.session)):
                self._of.setdefault(who, set()).add(impression)

    # -- profiles: rows and weights

    def _history(self, customer: str, session: str | None = None) -> list[tuple[float, str, int, float]]:
        """Day, impression, row and reward of what was earned, oldest first."""
        return sorted(e for i in self._of.get((customer, session), ()) for e in self._earned[i])

    def _engaged(self, customer: str | None) -> tuple[np.ndarray, np.ndarray]:
        """The table's strengths (1 on average) and sign · log₂(1 + |rewards|); nothing where nothing is liked."""
        u = self._number.get(customer or "")
        u = None if u is not None and digest_of(customer or "") in self._erased else u
        part = slice(0, 0) if u is None else slice(self._starts[u], self._starts[u + 1])
        earned = [(day, row, reward) for day, _, row, reward in (self._history(customer) if customer else ())]
        new, rows, rewards = np.array(earned, np.float64).reshape(-1, 3).T
        days = np.concatenate([self._table.days[part], new])
        ages = np.nan_to_num(np.fmax.reduce(days, initial=-np.inf) - days)  # what has no time does not age
        known, new = np.split(0.5 ** (ages / self._half_life), [len(days) - len(rewards)])
        rows, inverse = np.unique(rows.astype(np.int64), return_inverse=True)
        rewards = np.bincount(inverse, rewards * new, len(rows))
        weights = np.concatenate([self._table.strength[part] * known, np.sign(rewards) * np.log2(1 + np.abs(rewards))])
        return np.concatenate([self._table.rows[part], rows]), weights * (weights > 0).any()

    def _visited(self, session: str | None, customer: str | None) -> tuple[np.ndarray, np.ndarray]:
        """The last entities of a customer's session, 1 each, and of its part before it was known who they are.

        Another customer's session of the same name is another one.
        """
        history = sorted(h for who in {customer or "", ""} for h in self._history(who, session)) if session else []
        liked = [row for *_, row, reward in history[::-1] if reward > 0]
        rows = np.array([*dict.fromkeys(liked)][:_LAST], np.int64)
        return rows, np.ones(len(rows))

    def _sums(self, profiles: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """(Q, D) sums of entity vectors, each part of unit length or zero."""
        starts = np.cumsum([0, *(len(rows) for rows, _ in profiles)])
        rows = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in profiles)])
        weights = np.concatenate([np.zeros(0), *(weights for _, weights in profiles)])
        values = (weights * self._factors[rows]).astype(np.float32)
        sums = sparse.csr_matrix((values, rows, starts), (len(profiles), len(self._vectors))) @ self._vectors
        for part in self._parts:
            sums[:, part] /= np.maximum(np.linalg.norm(sums[:, part], axis=1, keepdims=True), 1e-9)
        return sums

    # -- building

    def _basis(self, corpus: Corpus) -> dict[str, Any]:
        fields = corpus.word_fields(self._named) if self._encoder else None
        config = {**self._learning, "interactions": self.content({"interactions": self._path}), "text_fields": fields}
        model = self._encoder.id if self._encoder else None
        return {"kind": "personal", "corpus": corpus.fingerprint, "model": model, "config": config}

    def _encoded(self, corpus: Corpus, root: Path) -> np.ndarray:
        """(N, D - C) unit vectors of the text, halfway whitened; D - C is 0 without an encoder."""
        if (encoder := self._encoder) is None:
            return np.zeros((len(corpus), 0), np.float32)
        fields = corpus.word_fields(self._named)
        work = manifest.work_folder(root, json.dumps([corpus.fingerprint, encoder.id, fields]))
        name, encode = "personal", lambda texts: {"vectors": encoder.encode(texts)}
        shards = encode_shards(corpus, fields, encode, work=work, size=4096, name=name)
        vectors = np.concatenate([arrays["vectors"] for _, arrays in shards])
        variances, axes = np.linalg.eigh(np.cov(vectors.T))  # an encoder's texts share much that tells them not apart
        scales = np.maximum(variances, 1e-4 * variances[-1]) ** -0.25
        vectors = ((vectors - vectors.mean(axis=0)) @ (axes * scales)).astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
