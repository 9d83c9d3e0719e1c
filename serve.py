"""YAML -> funnel -> HTTP: python serve.py [--config configs/serve.yaml] [--data FOLDER] [--serve.port 8000]."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.files import content_key
from ltrr.protocols import Learning, Online, Policy, Priced, offers
from ltrr.serving.app import Recorder, create_app
from ltrr.system.system import System, open_systems


def recorder(system: System, url: str | None, policy: Policy | None = None) -> Recorder | None:
    """Keeps events in the database of this URL and teaches the arms, and the policy, that learn; None = keeps nothing.

    policy: decides; its prices follow what is spent from now on, from where they were when they were last logged.
    Errors: ConfigError where the policy is to learn and cannot.
    """
    online, priced = offers(policy, Online), offers(policy, Priced)
    if system.settings.policy.get("learn") and (url is None or online is None):
        raise ConfigError("policy.learn: needs policy.model, and serve.events, from which it learns")
    name, store = policy.id if policy else "fixed", EventStore(url) if url else None
    if priced is not None:
        last = store.latest(name) if store else None
        priced.follow(last.prices if last else {})
    if store is None:
        return None
    arms = {name: system.arm(name) for name in system.usable()}
    identities = {name: system.indexes.identity(name) for name in arms}
    learners = {name: learning for name, arm in arms.items() if (learning := offers(arm, Learning)) is not None}
    key: dict[str, Any] = {name: (system.specs[name], identities[name]) for name in learners}
    if online is not None and (learner := online.online(store, name)) is not None:
        learners["policy"], key["policy"] = learner, name
    folder = system.folder / "learned" / content_key("learned", url, key)
    rows = {entity: row for row, entity in enumerate(system.corpus.ids)}
    loop = Loop(store, learners, rows, folder)
    return Recorder(loop, system.corpus.ids, name, {arm: " ".join(identities[arm]) for arm in system.drawn})


def run() -> None:
    flags, overrides = arguments(__doc__, "configs/serve.yaml")
    import uvicorn  # an extra

    systems = open_systems(flags.config, overrides)
    if len(systems) != 1:
        raise ConfigError(f"--data holds {len(systems)} data sets; serve one: --data {flags.data}/NAME")
    system, options = systems[0], systems[0].settings.serve
    corpus = system.corpus
    funnel = system.funnel()
    kept = recorder(system, options.events, funnel.policy)
    app = create_app(
        funnel,
        system.dataset.name,
        len(corpus),
        lambda row: (corpus.ids[row], corpus[row].title),
        max_k=options.max_k,
        recorder=kept,
    )
    with kept.loop if kept else nullcontext():
        if kept:
            kept.loop.keep(timedelta(seconds=options.snapshot_s), options.keep_days)
        uvicorn.run(app, host=options.host, port=options.port, log_level="info")


if __name__ == "__main__":
    main(run)
