"""Events to evidence: for each (query, entity), how often it was examined and how well that went, by customer.

Knows sessions, examination probabilities and rewards; knows nothing about where events are stored, how evidence is
summed or how queries are looked up. What comes out is a function of the set of events: order, delay and repetition
change nothing, so a replay gives what went on online. Times are microseconds since 1970. Legend: E increments.
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
from ltrr.feedback.evidence.sums import Increments, Sums
from ltrr.types import ActionRow, ImpressionRow

_CUT = 3 * 3_600_000_000  # microseconds: longer sessions are cut, so that none grows without end
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_Session = tuple[str, str, int]  # customer, session, which _CUT since 1970


class _SessionEvidence(NamedTuple):
    """What sessions say: worth of an impression's rows; credit, as often as it is given."""

    worths: dict[str, tuple[ImpressionRow, dict[int, float]]]
    credits: Counter[tuple[str, int, float]]  # (impression, row, value)


def light(
    events: Iterable[Impression | Action], rows: Mapping[str, int]
) -> tuple[list[ImpressionRow], list[ActionRow]]:
    """Events as learners take them; rows: entity -> corpus row."""
    seen, did = [], []
    for event in events:
        time = microseconds(event.time - EPOCH)
        if isinstance(event, Impression):
            shown, customer = [rows.get(entity, -1) for entity in event.shown], event.context.customer or ""
            seen.append(ImpressionRow(event.id, event.session or event.id, customer, time, event.normalised, shown))
        else:
            row = rows.get(event.entity, -1)
            did.append(ActionRow(event.id, event.impression, row, event.kind, time, event.seconds))
    return seen, did


def worth(reward: Reward, seen: ImpressionRow, did: Iterable[ActionRow]) -> dict[int, float]:
    """Row -> reward, of rows that were shown."""
    shown = {*seen.rows} - {-1}
    return reward.best(
        (d.row, d.kind, timedelta(microseconds=d.time - seen.time), d.seconds) for d in did if d.row in shown
    )


class Ledger:
    """Turns events into sums, and takes back what later events of a session change.

    Args:
        sums: where evidence goes.
        rows: entity -> corpus row; what is not there is left out.
        examination: probability that a customer looks at each position; deeper ones have the last. By default 1 / rank.
        reward: what actions are worth; a success is a reward above 0, of at most 1.
        credit: of a click after a reformulation, the part that goes to the query before (its square to the one before
            that, …), where that had brought nothing.
        patience: how long after a query a reformulation of it may come.
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
        self._open: dict[_Session, dict[str, ImpressionRow]] = defaultdict(dict)  # -> impression -> seen
        self._session_of: dict[str, _Session] = {}  # impression -> session
        self._actions: dict[str, dict[str, ActionRow]] = defaultdict(dict)  # impression -> action -> did

    def add(self, events: Iterable[Impression | Action]) -> None:
        """Takes events; what was there already changes nothing."""
        self.take(*light(events, self._rows))

    def take(self, seen: Sequence[ImpressionRow], did: Sequence[ActionRow]) -> None:
        """As `add`, from what a store gives without making events of it."""
        touched = {_session(s) for s in seen} | self._sessions(did)
        before = self._told(touched)
        for s in seen:
            self._remember(s)
        for d in did:
            self._actions[d.impression].setdefault(d.id, d)
        touched |= self._sessions(did)
        self.sums.now = max([self.sums.now, *(e.time for e in seen), *(e.time for e in did)])
        self._replace(before, self._told(touched))

    def seal(self) -> None:
        """Forgets the events of sessions that are over for so long that nothing late is awaited; their sums stay."""
        old = self.sums.now - self._grace
        for session in [s for s, seen in self._open.items() if max(e.time for e in seen.values()) < old]:
            for impression in self._open.pop(session):
                del self._session_of[impression]
                self._actions.pop(impression, None)
        for impression in [i for i, did in self._actions.items() if max(d.time for d in did.values()) < old]:
            if impression not in self._session_of:  # its impression never came
                del self._actions[impression]

    def erase(self, customer: str) -> None:
        """Takes back all evidence of a customer, credit that their clicks gave included."""
        for session in [s for s, seen in self._open.items() if any(e.customer == customer for e in seen.values())]:
            before = self._told({session})
            for impression in [e.id for e in self._open[session].values() if e.customer == customer]:
                del self._open[session][impression], self._session_of[impression]
                self._actions.pop(impression, None)
            self._replace(before, self._told({session}))
            if not self._open[session]:
                del self._open[session]
        self.sums.erase(customer)

    def state(self) -> str:
        """What is needed of events whose sessions are not sealed, as JSON."""
        seen = [s for session in self._open.values() for s in session.values()]
        return json.dumps([seen, [d for did in self._actions.values() for d in did.values()]])

    def restore(self, state: str) -> None:
        """Goes on from `state`; their sums are in the sums' own state."""
        seen, did = json.loads(state)
        for fields in seen:
            self._remember(ImpressionRow(*fields))
        for d in (ActionRow(*fields) for fields in did):
            self._actions[d.impression][d.id] = d

    # -- how

    def _remember(self, seen: ImpressionRow) -> None:
        session = self._session_of.setdefault(seen.id, _session(seen))
        self._open[session].setdefault(seen.id, seen)

    def _sessions(self, did: Iterable[ActionRow]) -> set[_Session]:
        return {self._session_of[d.impression] for d in did if d.impression in self._session_of}

    def _told(self, sessions: Iterable[_Session]) -> _SessionEvidence:
        """What whole sessions say."""
        worths: dict[str, tuple[ImpressionRow, dict[int, float]]] = {}
        credits: Counter[tuple[str, int, float]] = Counter()
        did = self._actions
        for session in sessions:
            if session not in self._open:
                continue
            whole = sorted(self._open[session].values(), key=lambda s: (s.time, s.id))
            wins = [worth(self._reward, s, did[s.id].values()) if s.id in did else {} for s in whole]
            for i, (s, values) in enumerate(zip(whole, wins, strict=True)):
                worths[s.id] = s, values
                for row in [row for row, value in values.items() if value > 0]:
                    for back in range(1, i + 1):
                        earlier = whole[i - back]
                        if s.time - earlier.time > self._patience or any(v > 0 for v in wins[i - back].values()):
                            break
                        if earlier.query != s.query:
                            credits[earlier.id, row, self._credit**back * min(values[row], 1.0)] += 1
        return _SessionEvidence(worths, credits)

    def _replace(self, old: _SessionEvidence, new: _SessionEvidence) -> None:
        """Adds to the sums what leads from `old` to `new`."""
        parts = []
        for told, other in ((new, old), (old, new)):
            changed = [one for i, one in told.worths.items() if other.worths.get(i) != one]
            later = [(told.worths[i][0], row, v) for i, row, v in (told.credits - other.credits).elements()]
            parts.append(self._increments(changed, later))
        self.sums.add(Increments.difference(*parts))

    def _increments(
        self,
        worths: Sequence[tuple[ImpressionRow, dict[int, float]]],
        later: Sequence[tuple[ImpressionRow, int, float]],
    ) -> Increments:
        """Evidence of impressions with the worth of their rows, and of credit: (earlier impression, row, value)."""
        seen = [s for s, _ in worths]
        better = [
            (i, s.rows.index(row), value) for i, (s, values) in enumerate(worths) for row, value in values.items()
        ]
        counts = np.fromiter((len(s.rows) for s in seen), np.int64, len(seen))
        starts = np.cumsum(counts) - counts
        rows = np.fromiter(chain.from_iterable(s.rows for s in seen), np.int64, int(counts.sum()))
        position = np.minimum(np.arange(len(rows)) - np.repeat(starts, counts), len(self._examination) - 1)
        trials, successes = self._examination[position], np.zeros(len(rows))
        for i, j, value in better:
            at = starts[i] + j
            successes[at] = min(max(value, 0.0), 1.0)
            trials[at] = trials[at] if value >= 0 else 1.0  # dismissed: it was looked at
        of = [*seen, *(s for s, *_ in later)]
        counts = np.concatenate([counts, np.ones(len(later), np.int64)])
        query, customer, time = (
            np.repeat(np.fromiter(column, np.int64, len(of)), counts)
            for column in (
                (self.sums.query(s.query) for s in of),
                (self.sums.customer(s.customer) for s in of),
                (s.time for s in of),
            )
        )
        rows = np.concatenate([rows, np.array([row for _, row, _ in later], np.int64)])
        credit = np.array([value for *_, value in later])
        values = np.stack([np.concatenate([successes, credit]), np.concatenate([trials, credit])], axis=1)
        known = rows >= 0
        return Increments(query[known], rows[known], customer[known], time[known], values[known])


def _session(seen: ImpressionRow) -> _Session:
    """Of one customer: what others do under the same name is another session."""
    return seen.customer, seen.session, seen.time // _CUT


def microseconds(span: timedelta) -> int:
    """Whole ones."""
    return span // timedelta(microseconds=1)
