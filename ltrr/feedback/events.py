"""Logged events: an impression (the decision and the page of a query) and actions (the customer's responses).

Knows the types of events, how a page becomes impressions and how actions become a reward; knows nothing about storage,
arms or models. Entities are document ids, so a log stays valid when corpus rows change.
Legend: A arms, F context features, G action features of an arm, K shown entities.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self, TypeVar, get_args

import numpy as np

from ltrr.types import Context, Decision, Page

Kind = Literal["click", "like", "favourite", "play", "dismiss"]
_SKEW = timedelta(minutes=5)  # tolerated lag of a client's clock
_LOOSE = re.compile(r"(?<![\w+#])[+#]+|[+#]+(?=\w)")  # + and # that do not end a word
KINDS: tuple[str, ...] = get_args(Kind)
Entity = TypeVar("Entity", bound=Hashable)


class Allocation(NamedTuple):
    """Depths and cut of a decision, without its probability."""

    depths: tuple[int, ...]  # A, 0 = the arm is not run
    cut: int  # candidates of the fused union that are ranked


@dataclass(frozen=True, slots=True)
class Impression:
    """One page of results. Raises ValueError naming the first invalid field."""

    id: str
    time: datetime  # with a time zone
    query: str  # as typed
    shown: tuple[str, ...]  # K entities, best first
    scores: tuple[float, ...] = ()  # K scores of the ranker
    ranks: tuple[tuple[int | None, ...], ...] = ()  # K rows of A: rank in each arm, 0 = first, None = not returned
    session: str | None = None
    context: Context = field(default_factory=Context)
    arms: tuple[str, ...] = ()  # A names of arms
    features: tuple[float, ...] = ()  # F features of query and context, as the policy read them
    action_features: tuple[tuple[float, ...], ...] = ()  # A rows of G
    drawn: Allocation = field(default_factory=lambda: Allocation((), 0))  # the decision of the policy
    executed: Allocation | None = None  # what ran; None = as drawn
    propensity: float = 1.0  # of the whole drawn decision, in (0, 1]
    marginals: tuple[float, ...] = ()  # A + 1: propensity of each arm's depth and, last, of the cut
    prices: Mapping[str, float] = field(default_factory=dict)  # λ of each budget at decision time
    policy: str = ""  # name and version
    models: Mapping[str, str] = field(default_factory=dict)  # part -> id of its weights
    explored: str | None = None  # entity that the policy explored at a reserved place; None = it explored none
    explored_place: int = -1  # its place on the page, 0 = first
    explored_propensity: float = 1.0  # of exploring this entity, or none, in (0, 1]

    def __post_init__(self) -> None:
        _check_id("impression", self.id)
        _check_time(f"impression {self.id!r}", self.time)
        where = f"impression {self.id!r}"
        if not 0 < self.propensity <= 1:
            raise ValueError(f"{where}: propensity {self.propensity} is not within (0, 1]")
        if not 0 < self.explored_propensity <= 1:
            raise ValueError(f"{where}: explored_propensity {self.explored_propensity} is not within (0, 1]")
        if self.explored_place != (self.shown.index(self.explored) if self.explored in self.shown else -1):
            raise ValueError(f"{where}: explored_place {self.explored_place} does not show {self.explored!r}")
        if any(not 0 < p <= 1 for p in self.marginals):
            raise ValueError(f"{where}: marginals {self.marginals} are not all within (0, 1]")
        if len(set(self.shown)) < len(self.shown):
            raise ValueError(f"{where}: shown has an entity twice; each has one position")
        for name in ("scores", "ranks"):
            if (length := len(getattr(self, name))) not in (0, len(self.shown)):
                raise ValueError(f"{where}: {name} has {length} entries for {len(self.shown)} shown entities")
        for name, length, wanted in (
            ("drawn.depths", len(self.drawn.depths), {0, len(self.arms)}),
            ("marginals", len(self.marginals), {0, len(self.arms) + 1}),
            ("action_features", len(self.action_features), {0, len(self.arms)}),
            *(("ranks", len(row), {len(self.arms)}) for row in self.ranks),
        ):
            if length not in wanted:
                raise ValueError(f"{where}: {name} has {length} entries for {len(self.arms)} arms")

    @property
    def normalised(self) -> str:
        """The normalised query, which is memory's key."""
        return normalised(self.query)


@dataclass(frozen=True, slots=True)
class Action:
    """A customer's action on a shown entity. Raises ValueError naming the first invalid field."""

    id: str
    impression: str
    entity: str
    kind: Kind
    time: datetime  # with a time zone
    seconds: float | None = None  # seconds played

    def __post_init__(self) -> None:
        _check_id("action", self.id)
        _check_id(f"action {self.id!r}: impression", self.impression)
        _check_time(f"action {self.id!r}", self.time)
        if self.kind not in KINDS:
            raise ValueError(f"action {self.id!r}: kind {self.kind!r} is none of {', '.join(KINDS)}")
        if self.seconds is not None and not 0 <= self.seconds < float("inf"):
            raise ValueError(f"action {self.id!r}: seconds {self.seconds} is no time played (0 or more)")


@dataclass(frozen=True, slots=True)
class Reward:
    """Turns actions into a reward: the sum over an impression's entities of each entity's best action.

    weights: kind -> reward; 0 if absent.
    dwell: least seconds for a play to count.
    window: how long after the impression actions count.
    """

    weights: Mapping[str, float] = field(
        default_factory=lambda: {"click": 1.0, "play": 1.0, "like": 1.5, "favourite": 2.0, "dismiss": -1.0}
    )
    dwell: float = 30.0
    window: timedelta = timedelta(days=1)

    def __post_init__(self) -> None:
        if unknown := set(self.weights) - set(KINDS):
            raise ValueError(f"reward.weights: {min(unknown)!r} is none of {', '.join(KINDS)}")

    @classmethod
    def configured(cls, options: Mapping[str, Any] | None) -> Self:
        """Builds a reward from a config: {"weights": {kind: reward}, "dwell": seconds, "days": window}."""
        options = dict(options or {})
        if unknown := set(options) - {"weights", "dwell", "days"}:
            raise ValueError(f"reward: there is no {min(unknown)!r}; there are weights, dwell, days")
        if "days" in options:
            options["window"] = timedelta(days=options.pop("days"))
        return cls(**options)

    def of_entities(self, time: datetime, actions: Sequence[Action]) -> dict[str, float]:
        """Rewards by entity of an impression shown at `time`, independent of the order or repetition of actions.

        The best action on an entity counts, so a dismissal counts only if nothing better happened.
        """
        return self.best((a.entity, a.kind, a.time - time, a.seconds) for a in actions)

    def best(self, did: Iterable[tuple[Entity, str, timedelta, float | None]]) -> dict[Entity, float]:
        """Like `of_entities`, from tuples (entity, kind, delay after the impression, seconds)."""
        worth: dict[Entity, float] = {}
        for entity, kind, delay, seconds in did:
            counts = -_SKEW <= delay <= self.window
            if counts and (kind != "play" or seconds is None or seconds >= self.dwell):
                value = self.weights.get(kind, 0.0)
                worth[entity] = max(worth.get(entity, value), value)
        return worth

    def of(self, time: datetime, actions: Sequence[Action]) -> float:
        """The impression's reward."""
        return sum(self.of_entities(time, actions).values())


@lru_cache(maxsize=1 << 16)
def normalised(query: str) -> str:
    """Normalises case, accents, punctuation, spaces and compatibility forms: "Tayler  LOVE!" -> "tayler love".

    Keeps marks that distinguish words (vowel signs, tone marks, dakuten), and + and # at the end of a word ("c++").
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", query).casefold())
    marked = (c for c in folded if not (10 <= unicodedata.combining(c) <= 35 or unicodedata.combining(c) >= 200))
    kept = (c if c.isalnum() or c in "+#" or unicodedata.category(c)[0] == "M" else " " for c in marked)
    return " ".join(_LOOSE.sub(" ", "".join(kept)).split()) or " ".join(query.split())


def digest_of(customer: str) -> str:
    """SHA-256 of a customer's name, which is stored instead of the name at an erasure."""
    return hashlib.sha256(customer.encode("utf-8", "surrogatepass")).hexdigest()


def impressions_of(
    page: Page,
    ids: Sequence[str],
    *,
    times: Sequence[datetime] | None = None,
    sessions: Sequence[str | None] | None = None,
    policy: str = "",
    models: Mapping[str, str] | None = None,
) -> list[Impression]:
    """Builds a page's impressions; `ids[row]` is the id of a corpus row. times: one per query; None = now."""
    times = times or [datetime.now(UTC)] * len(page.queries)
    out = []
    for q, query in enumerate(page.queries):
        real = page.shown.docs[q] >= 0
        ranks = [tuple(None if np.isnan(r) else int(r) for r in row) for row in page.ranks[q][real]]
        out.append(
            Impression(
                id=page.impressions[q],
                time=times[q],
                query=query.text,
                shown=tuple(map(ids.__getitem__, page.shown.docs[q][real].tolist())),
                scores=tuple(page.shown.scores[q][real].tolist()),
                ranks=tuple(ranks),
                session=sessions[q] if sessions else None,
                context=query.context,
                arms=page.arms,
                features=tuple(
                    math.nan if x != x else x for x in page.features[q].tolist()
                ),  # the one object math.nan equals itself in tuples
                drawn=Allocation(tuple(page.decision.depths[q].tolist()), int(page.decision.cut[q])),
                propensity=float(page.decision.propensity[q]),
                marginals=tuple(page.decision.marginals[q].tolist()),
                prices=page.decision.prices or {},
                policy=policy,
                models=models or {},
                **_explored(page.decision, q, ids),
            )
        )
    return out


def _explored(decision: Decision, q: int, ids: Sequence[str]) -> dict[str, Any]:
    """The fields of an impression that say which candidate of query q was explored."""
    if decision.explored is None:
        return {}
    row = int(decision.explored[q])
    propensity = 1.0 if decision.explored_propensity is None else float(decision.explored_propensity[q])
    if row < 0 or decision.explored_place is None:
        return {"explored_propensity": propensity}
    return {
        "explored": ids[row],
        "explored_place": int(decision.explored_place[q]),
        "explored_propensity": propensity,
    }


def _check_id(what: str, text: str) -> None:
    if not isinstance(text, str) or not 1 <= len(text) <= 200:
        raise ValueError(f"{what}: id {text!r} is not a text of 1 to 200 characters")


def _check_time(what: str, time: datetime) -> None:
    if time.tzinfo is None:
        raise ValueError(f"{what}: time {time.isoformat()} has no time zone; write +00:00 for UTC")
    if not 1900 < time.year < 2200:  # a margin for time zones and sums of times
        raise ValueError(f"{what}: time {time.isoformat()} is not within 1901 and 2199")
