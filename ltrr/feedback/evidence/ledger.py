"""Turns events into evidence: how often each (query, entity) was examined and how well that went, by customer.

Knows sessions, examination probabilities and rewards; does not know where events are stored, how evidence is summed or
how queries are looked up. The result is a function of the set of events: order, delay and repetition change nothing, so
a replay gives the same evidence as learning online. Times are microseconds since 1970.
Legend: E increments, I impressions, K shown entities, S the shown entities of all I.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import NamedTuple

import numpy as np

from ltrr.feedback.events import Action, Impression, Reward
from ltrr.feedback.evidence.cells import cells_of
from ltrr.feedback.evidence.sums import Increments, Sums
from ltrr.types import ActionRow, ImpressionRow

_CUT = 3 * 3_600_000_000  # microseconds: longer sessions are cut, so that none grows without end
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Session = tuple[str, str, int]  # customer, session, number of its _CUT since 1970


class _SessionEvidence(NamedTuple):
    """Evidence of whole sessions."""

    worths: dict[str, tuple[ImpressionRow, dict[int, float]]]  # impression -> itself, the worth of its rows
    credits: Counter[tuple[str, int, float]]  # (impression, row, value) -> how often it is credited


def light(
    events: Iterable[Impression | Action], rows: Mapping[str, int]
) -> tuple[list[ImpressionRow], list[ActionRow]]:
    """Converts events to the rows that learners take; rows: entity -> corpus row."""
    impressions, actions = [], []
    for event in events:
        time = microseconds(event.time - EPOCH)
        if isinstance(event, Impression):
            shown, customer = [rows.get(entity, -1) for entity in event.shown], event.context.customer or ""
            session, arms = event.session or event.id, returned_by(event.ranks)
            impressions.append(
                ImpressionRow(event.id, session, customer, time, event.normalised, shown, event.arms, arms)
            )
        else:
            row = rows.get(event.entity, -1)
            actions.append(ActionRow(event.id, event.impression, row, event.kind, time, event.seconds))
    return impressions, actions


def returned_by(ranks: Iterable[Iterable[int | None]]) -> list[int]:
    """(K,) numbers whose bit a is set if arm a returned the entity; ranks (K, A), None = it did not."""
    return [sum([1 << a for a, rank in enumerate(of) if rank is not None]) for of in ranks]


def worth(reward: Reward, impression: ImpressionRow, actions: Iterable[ActionRow]) -> dict[int, float]:
    """Row -> reward, for the rows that were shown."""
    shown = {*impression.rows} - {-1}
    return reward.best(
        (a.row, a.kind, timedelta(microseconds=a.time - impression.time), a.seconds) for a in actions if a.row in shown
    )


class Ledger:
    """Adds the evidence of events to sums, and takes back what later events of a session change.

    Args:
        sums: where evidence goes.
        rows: entity -> corpus row; entities without one are left out.
        examination: probability that a customer looks at each position; deeper ones have the last. By default 1 / rank.
        reward: what actions are worth; a success is a reward above 0, of at most 1.
        credit: part of a click's worth that goes to the query before the reformulation (its square to the one before
            that, …), where that query had no success.
        patience: longest time between a query and its reformulation.
        grace: how long after a session its late events still count.
    """

    def __init__(
        self,
        sums: Sums,
        rows: Mapping[str, int],
        *,
        examination: Sequence[float] = tuple(1 / k for k in range(1, 21)),
        reward: Reward | None = None,
        credit: float = 0.5,
        patience: timedelta = timedelta(minutes=10),
        grace: timedelta = timedelta(days=7),
    ) -> None:
        self.sums = sums
        self._rows, self._reward = rows, reward or Reward()
        self._examination = np.asarray(examination, np.float64)
        self._credit, self._patience, self._grace = credit, microseconds(patience), microseconds(grace)
        self._open: dict[_Session, dict[str, ImpressionRow]] = defaultdict(dict)  # -> id -> impression
        self._session_of: dict[str, _Session] = {}  # impression -> session
        self._actions: dict[str, dict[str, ActionRow]] = defaultdict(dict)  # impression -> id -> action

    def add(self, events: Iterable[Impression | Action]) -> None:
        """Learns from events; known ones change nothing."""
        self.take(*light(events, self._rows))

    def take(self, impressions: Sequence[ImpressionRow], actions: Sequence[ActionRow]) -> None:
        """Learns from the rows of an event store; known ones change nothing."""
        touched = {_session(impression) for impression in impressions} | self._sessions(actions)
        before = self._evidence(touched)
        for impression in impressions:
            self._remember(impression)
        for action in actions:
            self._actions[action.impression].setdefault(action.id, action)
        touched |= self._sessions(actions)
        self.sums.now = max([self.sums.now, *(e.time for e in impressions), *(e.time for e in actions)])
        self._replace(before, self._evidence(touched))

    def seal(self) -> None:
        """Forgets the events of sessions that are too old for late events; their evidence stays in the sums."""
        oldest = self.sums.now - self._grace
        for session in [s for s, of in self._open.items() if max(e.time for e in of.values()) < oldest]:
            for impression in self._open.pop(session):
                del self._session_of[impression]
                self._actions.pop(impression, None)
        for impression in [i for i, of in self._actions.items() if max(a.time for a in of.values()) < oldest]:
            if impression not in self._session_of:  # its impression never came
                del self._actions[impression]

    def erase(self, customer: str) -> None:
        """Takes back all evidence of a customer, including credit from their clicks."""
        for session in [s for s, of in self._open.items() if any(e.customer == customer for e in of.values())]:
            before = self._evidence({session})
            for impression in [e.id for e in self._open[session].values() if e.customer == customer]:
                del self._open[session][impression], self._session_of[impression]
                self._actions.pop(impression, None)
            self._replace(before, self._evidence({session}))
            if not self._open[session]:
                del self._open[session]
        self.sums.erase(customer)

    def state(self) -> str:
        """The events of sessions that are not sealed, as JSON."""
        impressions = [impression for of in self._open.values() for impression in of.values()]
        return json.dumps([impressions, [action for of in self._actions.values() for action in of.values()]])

    def restore(self, state: str) -> None:
        """Continues from `state`; the evidence of its events is in the state of the sums."""
        impressions, actions = json.loads(state)
        for fields in impressions:
            self._remember(ImpressionRow(*fields))
        for action in (ActionRow(*fields) for fields in actions):
            self._actions[action.impression][action.id] = action

    # -- how

    def _remember(self, impression: ImpressionRow) -> None:
        session = self._session_of.setdefault(impression.id, _session(impression))
        self._open[session].setdefault(impression.id, impression)

    def _sessions(self, actions: Iterable[ActionRow]) -> set[_Session]:
        return {self._session_of[a.impression] for a in actions if a.impression in self._session_of}

    def _evidence(self, sessions: Iterable[_Session]) -> _SessionEvidence:
        """Evidence of whole sessions."""
        worths: dict[str, tuple[ImpressionRow, dict[int, float]]] = {}
        credits: Counter[tuple[str, int, float]] = Counter()
        for session in sessions:
            if session not in self._open:
                continue
            whole = sorted(self._open[session].values(), key=lambda e: (e.time, e.id))
            wins = [
                worth(self._reward, e, self._actions[e.id].values()) if e.id in self._actions else {} for e in whole
            ]
            for i, (impression, values) in enumerate(zip(whole, wins, strict=True)):
                worths[impression.id] = impression, values
                for row in [row for row, value in values.items() if value > 0]:
                    for back in range(1, i + 1):
                        earlier = whole[i - back]
                        late = impression.time - earlier.time > self._patience
                        if late or any(value > 0 for value in wins[i - back].values()):
                            break
                        if earlier.query != impression.query:
                            credits[earlier.id, row, self._credit**back * min(values[row], 1.0)] += 1
        return _SessionEvidence(worths, credits)

    def _replace(self, old: _SessionEvidence, new: _SessionEvidence) -> None:
        """Adds to the sums the difference between `old` and `new`."""
        parts = []
        for one, other in ((new, old), (old, new)):
            changed = [pair for i, pair in one.worths.items() if other.worths.get(i) != pair]
            credited = [(one.worths[i][0], row, v) for i, row, v in (one.credits - other.credits).elements()]
            parts.append(self._increments(changed, credited))
        self.sums.add(Increments.difference(*parts))

    def _increments(
        self,
        worths: Sequence[tuple[ImpressionRow, dict[int, float]]],
        credited: Sequence[tuple[ImpressionRow, int, float]],
    ) -> Increments:
        """Evidence of impressions with the worth of their rows, and of credit: (earlier impression, row, value).

        No arm returned a credited candidate for the earlier query, so credit has no source.
        """
        impressions = [impression for impression, _ in worths]
        counts = np.fromiter((len(impression.rows) for impression in impressions), np.int64, len(impressions))  # (I,)
        starts = np.cumsum(counts) - counts
        rows = np.fromiter(chain.from_iterable(e.rows for e in impressions), np.int64, int(counts.sum()))  # (S,)
        start_of = np.repeat(starts, counts)  # (S,)
        place_of = np.arange(len(rows)) - start_of
        trials, successes = self._examination[np.minimum(place_of, len(self._examination) - 1)], np.zeros(len(rows))
        dismissed = np.zeros(len(rows), bool)
        for start, (impression, values) in zip(starts.tolist(), worths, strict=True):
            for row, value in values.items():
                place = start + impression.rows.index(row)
                successes[place] = min(max(value, 0.0), 1.0)
                trials[place] = trials[place] if value >= 0 else 1.0  # dismissed: it was looked at
                dismissed[place] = value < 0
        cells = np.where(dismissed, 0, cells_of(successes > 0, place_of, start_of))  # the first place is looked at
        of = [*impressions, *(earlier for earlier, *_ in credited)]
        sources = np.concatenate([self._sources(impressions, counts), np.zeros(len(credited), np.int64)])
        counts = np.concatenate([counts, np.ones(len(credited), np.int64)])
        query, customer, time = (
            np.repeat(np.fromiter(column, np.int64, len(of)), counts)
            for column in (
                (self.sums.query(e.query) for e in of),
                (self.sums.customer(e.customer) for e in of),
                (e.time for e in of),
            )
        )
        rows = np.concatenate([rows, np.array([row for _, row, _ in credited], np.int64)])
        credit = np.array([value for *_, value in credited])
        values = np.stack([np.concatenate([successes, credit]), np.concatenate([trials, credit])], axis=1)
        cells = np.concatenate([cells, np.full(len(credited), -1)])
        columns = (query, rows, customer, time, sources, values, cells, np.ones(len(rows)))
        return Increments(*(column[rows >= 0] for column in columns))

    def _sources(self, impressions: Sequence[ImpressionRow], counts: np.ndarray) -> np.ndarray:
        """(S,) bits of the sums' arms that returned each shown candidate; 0 = unknown, or not kept."""
        out = np.zeros(int(counts.sum()), np.int64)
        if not self.sums.sources:
            return out
        names = [tuple(e.arms) for e in impressions]
        numbers = {arms: [*map(self.sums.arm, arms)] for arms in dict.fromkeys(names)}
        order = {arms: n for n, arms in enumerate(numbers)}
        which = np.repeat(np.array([order[arms] for arms in names], np.int64), counts)  # (S,)
        each = (e.returned_by or (0,) * len(e.rows) for e in impressions)
        bits = np.fromiter(chain.from_iterable(each), np.int64, len(out))  # (S,) of the impression's own arms
        for arms, n in order.items():
            for bit, number in enumerate(numbers[arms]):
                out |= ((which == n) & (bits >> bit & 1)) << number
        return out


def _session(impression: ImpressionRow) -> _Session:
    """One customer's session; another customer's session of the same name is another session."""
    return impression.customer, impression.session, impression.time // _CUT


def microseconds(span: timedelta) -> int:
    """Whole microseconds."""
    return span // timedelta(microseconds=1)
