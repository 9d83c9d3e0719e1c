"""Personal retrieval: finds the entities whose vectors are nearest to those that the customer engaged with.

An entity's vector has two parts: one learned from engagement, and one encoded from its text, which new entities have
too. A customer's vector is a weighted sum over the entities they engaged with. Events change it at once; entity vectors
change only when the index is built. Knows a table of engagement, events and a text encoder; ignores a query's words.
Legend: Q queries, K candidates, N documents, C learned dimensions, D all dimensions.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_LAST, _SESSION = 5, 0.5  # entities of a session that count, and their weight relative to the customer's history
_GRACE, _FORGOTTEN = 7, 10  # days an impression and its actions wait for each other; half-lives until rewards expire
_DAY = microseconds(timedelta(days=1))
_RIDGE = 3.0  # ridge penalty when learned vectors are predicted from text


class Personal:
    """Personal retrieval arm.

    A query's vector is the sum over the entities that the context's customer engaged with plus, at half weight, the
    last entities of the session that the context attribute `session` names. A query without either gets popular
    documents: popular with customers of its locale if the table has locales, else among documents of that `locale`.

    Args:
        encoder: encodes the text part.
        interactions: TSV of engagement (`Engagement.read`); null = no engagement before the first event.
        components: number of dimensions learned from engagement.
        damping: 0 to .5; an entity is divided by its number of engagements to this power.
        ridge: shrinkage of the weaker dimensions, relative to the strongest.
        text: weight of the text part, 0 (encoder not used) to 1 (learned part not used).
        text_fields: metadata fields whose values are encoded after title and text; null = all text and keyword fields.
        half_life: days; engagement that is this much older than the customer's latest counts half.
        reward: rewards of actions (`Reward.configured`); null = the defaults.
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
        self._text, self._text_fields, self._half_life = text, text_fields, half_life
        self._reward, self._lock = Reward.configured(reward), threading.Lock()

    @staticmethod
    def content(arguments: dict[str, Any]) -> list[str]:
        """Returns checksums of the files that these constructor arguments name, for cache keys."""
        path = arguments.get("interactions")
        return [hashlib.sha256(Path(path).read_bytes()).hexdigest()] if path else []

    # -- life cycle: build once, open, search

    def build(self, corpus: Corpus, root: Path) -> None:
        """Learns the entity vectors and writes them under `root`, atomically; resumes a killed encoding."""

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
        """Opens the built index; raises IndexRefused if damaged or of another corpus, table, encoder or config."""
        folder, _ = manifest.open_index(root, **self._basis(corpus))
        with np.load(folder / "personal.npz", allow_pickle=False) as data:
            self._vectors = np.concatenate([data["learned"], data["text"]], axis=1)  # (N, D)
            self._parts = np.split(np.arange(self._vectors.shape[1]), [data["learned"].shape[1]])
            self._factors = data["factors"]  # (N,)
            self._table = Engagement(*(data[f"table_{name}"] for name in Engagement._fields))
            popular = (data[f"popular_{name}"] for name in ("names", "docs", "scores"))
            self._popular = {str(name): (docs, scores) for name, docs, scores in zip(*popular, strict=True)}
        self._customer_numbers = {name: number for number, name in enumerate(self._table.names.tolist())}
        self._starts = np.searchsorted(self._table.who, np.arange(len(self._customer_numbers) + 1))  # (U + 1,)
        self._rows = {entity: row for row, entity in enumerate(corpus.ids)}
        self._restart((), (), ())
        return self

    def search(self, queries: Sequence[Query], k: int) -> Candidates:
        """Finds the (Q, k) best entities with a score above 0; for an unknown customer, at most 1,000 popular ones."""
        vectors, out = self.embed(queries), Candidates.empty(len(queries), k)
        known = np.linalg.norm(vectors, axis=1) > 0
        for start in range(0, len(queries), _BATCH):
            batch = np.flatnonzero(known[start : start + _BATCH]) + start
            scores = vectors[batch] @ self._vectors.T  # (B, N)
            rows = np.where(scores > 0, np.arange(len(self._vectors), dtype=np.int32), -1)
            out.docs[batch], out.scores[batch] = top_k(rows, np.where(rows < 0, np.float32(-np.inf), scores), k)
        for i in np.flatnonzero(~known).tolist():
            docs, scores = self._popular.get(queries[i].context.locale or "", self._popular[""])
            out.docs[i, : len(docs)], out.scores[i, : len(docs)] = docs[:k], scores[:k]
        return out

    def embed(self, queries: Sequence[Query]) -> np.ndarray:
        """Returns (Q, D) float32 query vectors, scored by dot product with entities; zeros for an unknown customer."""
        with self._lock:
            engaged = [self._engaged(query.context.customer) for query in queries]
            visited = [
                self._visited(query.context.attributes.get("session"), query.context.customer) for query in queries
            ]
        weights = np.repeat(np.array([1 - self._text, self._text], np.float32), [len(p) for p in self._parts])
        return (self._sums(engaged) + np.float32(_SESSION) * self._sums(visited)) * weights

    def profile(self, customer: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows a customer engaged with, and weights, below 0 if dismissed; empty for an unknown customer."""
        with self._lock:
            return self._engaged(customer)

    # -- learning

    def observe(self, events: Iterable[Impression | Action]) -> None:
        """Learns from events, in any order; repeated events change nothing."""
        self.take(*light(events, self._rows))

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow], /) -> None:
        """Learns like `observe`, from an event store's rows."""
        with self._lock:
            for impression in impressions:
                self._impressions.setdefault(impression.id, impression)
                self._settle(impression.id)
            for action in actions:
                self._actions.setdefault(action.impression, {}).setdefault(action.id, action)
                self._settle(action.impression)

    def customers(self) -> list[str]:
        """Lists the customers known from events or the table."""
        with self._lock:
            return [*{*self._customer_numbers, *(s.customer for s in self._impressions.values())} - {""}]

    def erase(self, customer: str) -> None:
        """Erases a customer's events and table engagement; entity vectors forget them only at the next build."""
        with self._lock:
            impressions = [i for i in self._impressions.values() if i.customer != customer]
            erased = self._impressions.keys() - {i.id for i in impressions}
            actions = [a for a in self._all_actions() if a.impression not in erased]
            self._restart(impressions, actions, [*self._erased, digest_of(customer)])

    def compact(self) -> None:
        """Drops impressions and actions without a counterpart for a week, and rewards older than ten half-lives."""
        with self._lock:
            now = max((e.time for e in chain(self._impressions.values(), self._all_actions())), default=0)
            unmatched, rewarded = now - _GRACE * _DAY, now - _FORGOTTEN * self._half_life * _DAY  # oldest times kept
            impressions = self._impressions.values()
            impressions = [i for i in impressions if i.time >= (rewarded if self._rewards.get(i.id) else unmatched)]
            kept = {i.id for i in impressions}
            actions = [a for a in self._all_actions() if a.impression in kept or a.time >= unmatched]
            self._restart(impressions, actions, self._erased)

    def save(self, path: Path) -> None:
        """Writes the events since the build to one npz file, atomically and without pickled objects."""
        with self._lock:
            state = [[*self._impressions.values()], [*self._all_actions()], [*self._erased]]
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, state=np.frombuffer(json.dumps(state).encode(), np.uint8))

    def load(self, path: Path) -> None:
        """Restores the events that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            impressions, actions, erased = json.loads(file["state"].tobytes())
        with self._lock:
            self._restart([ImpressionRow(*row) for row in impressions], [ActionRow(*row) for row in actions], erased)

    def _all_actions(self) -> Iterator[ActionRow]:
        return chain.from_iterable(actions.values() for actions in self._actions.values())

    def _restart(
        self, impressions: Iterable[ImpressionRow], actions: Iterable[ActionRow], erased: Iterable[str]
    ) -> None:
        """Replaces the state by these events; erased: digests of erased customers' names."""
        self._impressions = {impression.id: impression for impression in impressions}
        self._actions: dict[str, dict[str, ActionRow]] = {}  # impression -> id of the action -> action
        self._rewards: dict[str, list[tuple[float, str, int, float]]] = {}  # impression -> day, itself, row, reward
        self._rewarded: dict[tuple[str, str | None], set[str]] = {}  # (customer, session; None = all) -> impressions
        self._erased = set(erased)
        for action in actions:
            self._actions.setdefault(action.impression, {})[action.id] = action
        for impression in self._impressions:
            self._settle(impression)

    def _settle(self, id: str) -> None:
        """Computes an impression's rewards, once the impression and an action of it have arrived."""
        if id in self._impressions and id in self._actions:
            impression = self._impressions[id]
            rewards = sorted(worth(self._reward, impression, self._actions[id].values()).items())
            self._rewards[id] = [(impression.time / _DAY, id, row, reward) for row, reward in rewards]
            for key in ((impression.customer, None), (impression.customer, impression.session)):
                self._rewarded.setdefault(key, set()).add(id)

    # -- profiles: rows and weights

    def _history(self, customer: str, session: str | None = None) -> list[tuple[float, str, int, float]]:
        """Lists day, impression, row and reward of the customer's rewards, oldest first."""
        return sorted(e for i in self._rewarded.get((customer, session), ()) for e in self._rewards[i])

    def _engaged(self, customer: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows and decayed weights (table strength or sign(r) · log₂(1 + |r|) of rewards), 0 if none is > 0."""
        u = self._customer_numbers.get(customer or "")
        u = None if u is not None and digest_of(customer or "") in self._erased else u
        part = slice(0, 0) if u is None else slice(self._starts[u], self._starts[u + 1])
        earned = [(day, row, reward) for day, _, row, reward in (self._history(customer) if customer else ())]
        new, rows, rewards = np.array(earned, np.float64).reshape(-1, 3).T
        days = np.concatenate([self._table.days[part], new])
        ages = np.nan_to_num(np.fmax.reduce(days, initial=-np.inf) - days)  # an unknown time counts as age 0
        known, new = np.split(0.5 ** (ages / self._half_life), [len(days) - len(rewards)])
        rows, inverse = np.unique(rows.astype(np.int64), return_inverse=True)
        rewards = np.bincount(inverse, rewards * new, len(rows))
        weights = np.concatenate([self._table.strength[part] * known, np.sign(rewards) * np.log2(1 + np.abs(rewards))])
        return np.concatenate([self._table.rows[part], rows]), weights * (weights > 0).any()

    def _visited(self, session: str | None, customer: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the last liked rows of a session, each with weight 1.

        Includes the session's impressions without a customer; excludes another customer's session of the same name.
        """
        history = sorted(h for who in {customer or "", ""} for h in self._history(who, session)) if session else []
        liked = [row for *_, row, reward in history[::-1] if reward > 0]
        rows = np.array([*dict.fromkeys(liked)][:_LAST], np.int64)
        return rows, np.ones(len(rows))

    def _sums(self, profiles: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Sums entity vectors per profile, (Q, D), and scales each of the two parts to unit length (zeros stay)."""
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
        fields = corpus.word_fields(self._text_fields) if self._encoder else None
        config = {**self._learning, "interactions": self.content({"interactions": self._path}), "text_fields": fields}
        model = self._encoder.id if self._encoder else None
        return {"kind": "personal", "corpus": corpus.fingerprint, "model": model, "config": config}

    def _encoded(self, corpus: Corpus, root: Path) -> np.ndarray:
        """Encodes texts as (N, D - C) half-whitened unit vectors (variance^-1/4); D - C is 0 without an encoder."""
        if (encoder := self._encoder) is None:
            return np.zeros((len(corpus), 0), np.float32)
        fields = corpus.word_fields(self._text_fields)
        work = manifest.work_folder(root, json.dumps([corpus.fingerprint, encoder.id, fields]))
        name, encode = "personal", lambda texts: {"vectors": encoder.encode(texts)}
        shards = encode_shards(corpus, fields, encode, work=work, size=4096, name=name)
        vectors = np.concatenate([arrays["vectors"] for _, arrays in shards])
        variances, axes = np.linalg.eigh(np.cov(vectors.T))  # whiten: text vectors share large components
        scales = np.maximum(variances, 1e-4 * variances[-1]) ** -0.25
        vectors = ((vectors - vectors.mean(axis=0)) @ (axes * scales)).astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
