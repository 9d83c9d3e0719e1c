"""Keeps served pages and customers' actions, and teaches the parts that learn from them.

Knows a system, its policy and the event store; does not know HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltrr.feedback.events import impressions_of
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.files import content_key
from ltrr.protocols import Learning, Online, Policy, Priced, Sourced, offers
from ltrr.system.system import System
from ltrr.types import Page


@dataclass(frozen=True)
class Recorder:
    """Keeps pages and actions.

    ids: of corpus rows. policy: name and version of the policy. models: part -> id of its weights or index.
    """

    loop: Loop
    ids: Sequence[str]
    policy: str = ""
    models: Mapping[str, str] = field(default_factory=dict)

    def show(self, page: Page, session: str | None) -> None:
        """Returns when the page's impressions are on disk and learned."""
        seen = impressions_of(page, self.ids, sessions=[session], policy=self.policy, models=self.models)
        self.loop.record(seen)


def recorder(system: System, url: str | None, policy: Policy) -> Recorder | None:
    """Keeps events in the database of this URL, and teaches the arms, and the policy, that learn; None without a URL.

    policy: its prices follow the spending from now on, and start where they were at the last served page.
    """
    online = offers(policy, Online)
    store = EventStore(url) if url else None
    if (priced := offers(policy, Priced)) is not None:
        last = store.latest(policy.id) if store else None
        priced.follow(last.prices if last else {})
    if store is None:
        return None
    arms = {name: system.arm(name) for name in system.usable()}
    identities = {name: system.indexes.identity(name) for name in arms}
    learners = {name: learner for name, arm in arms.items() if (learner := offers(arm, Learning)) is not None}
    versions: dict[str, Any] = {name: (system.specs[name], identities[name]) for name in learners}
    if online is not None and (learner := online.online(store, policy.id)) is not None:
        learners["policy"], versions["policy"] = learner, policy.id
    folder = system.folder / "learned" / content_key("learned", url, versions)
    rows = {document: row for row, document in enumerate(system.corpus.ids)}
    sourced = [offers(learner, Sourced) for learner in learners.values()]
    sources = any(each.sources for each in sourced if each is not None)
    loop = Loop(store, learners, rows, folder, sources=sources)
    return Recorder(loop, system.corpus.ids, policy.id, {arm: " ".join(identities[arm]) for arm in system.drawn})
