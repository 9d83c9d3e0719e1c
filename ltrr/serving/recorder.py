"""Keeps served pages and customers' actions, and teaches the parts that learn from them.

Knows a system, its policy and the event store; does not know HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ltrr.config import ConfigError
from ltrr.feedback.events import impressions_of
from ltrr.feedback.loop import Learner, Loop
from ltrr.feedback.store import EventStore
from ltrr.files import content_key
from ltrr.learners.online_heads import OnlineHeads
from ltrr.policies.cut import CutPolicy
from ltrr.protocols import Policy
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


def recorder(system: System, url: str | None, policy: Policy | None = None) -> Recorder | None:
    """Keeps events in the database of this URL, and teaches the arms, and the policy, that learn; None without a URL.

    policy: its prices follow the spending from now on, and start where they were at the last served page.
    Errors: ConfigError where the policy is to learn and cannot.
    """
    name = getattr(policy, "id", "fixed")
    store, heads = _policy_learner(system, url, policy, name)
    if store is None:
        return None
    arms = {arm: system.arm(arm) for arm in system.usable()}
    identities = {arm: system.identity(arm) for arm in arms}
    learners = {arm: each for arm, each in arms.items() if isinstance(each, Learner)}
    versions = {arm: (system.specs[arm], identities[arm]) for arm in learners} | dict.fromkeys(heads, name)
    folder = system.folder / "learned" / content_key("learned", url, versions)
    rows = {document: row for row, document in enumerate(system.corpus.ids)}
    loop = Loop(store, learners | heads, rows, folder)
    return Recorder(loop, system.corpus.ids, name, {arm: " ".join(identities[arm]) for arm in system.drawn})


def _policy_learner(
    system: System, url: str | None, policy: Policy | None, name: str
) -> tuple[EventStore | None, dict[str, Learner]]:
    """Opens the store and resumes the policy's prices from it; the policy's learner comes back with `policy.learn`."""
    learns = (system.settings.get("policy") or {}).get("learn", False)
    if learns and (url is None or not isinstance(policy, CutPolicy)):
        raise ConfigError("policy.learn: needs policy.model, and serve.events, from which it learns")
    store = EventStore(url) if url else None
    if not isinstance(policy, CutPolicy):
        return store, {}
    last = store.latest(name) if store else None
    policy.adapt(last.prices if last else None)
    return store, {"policy": OnlineHeads(policy.learner, store, name)} if learns and store else {}  # type: ignore
