"""YAML -> funnel -> HTTP: python serve.py [--config configs/serve.yaml] [--data FOLDER] [--serve.port 8000]."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.files import content_key
from ltrr.learners.online_heads import OnlineHeads
from ltrr.policies.cut import CutPolicy
from ltrr.protocols import Policy
from ltrr.serving.app import Recorder, create_app
from ltrr.system.system import System, open_systems


def recorder(system: System, url: str | None, policy: Policy | None = None) -> Recorder | None:
    """What keeps events in the database of this URL and teaches the arms, and the policy, that learn; None = nothing.

    policy: what decides; its prices follow what is spent from now on, from where they were when it was last asked.
    """
    learns = (system.settings.get("policy") or {}).get("learn", False)
    if learns and (url is None or not isinstance(policy, CutPolicy)):
        raise ConfigError("policy.learn: needs policy.model, and serve.events, from which it learns")
    name, store = getattr(policy, "id", "fixed"), EventStore(url) if url else None
    if isinstance(policy, CutPolicy):
        last = store.latest(name) if store else None
        policy.adapt(last.prices if last else None)
    if store is None:
        return None
    arms = {name: system.arm(name) for name in system.usable()}
    learners = {name: arm for name, arm in arms.items() if hasattr(arm, "take")}
    identities = {name: system.identity(name) for name in arms}
    made = {n: (system.specs[n], identities[n]) for n in learners}
    if learns and isinstance(policy, CutPolicy):
        learners["policy"], made["policy"] = OnlineHeads(policy.learner, store, name), name  # type: ignore[arg-type]
    folder = system.folder / "learned" / content_key("learned", url, made)
    rows = {entity: row for row, entity in enumerate(system.corpus.ids)}
    loop = Loop(store, learners, rows, folder)
    return Recorder(loop, system.corpus.ids, name, {arm: " ".join(identities[arm]) for arm in system.drawn})


def run() -> None:
    flags, overrides = arguments(__doc__, "configs/serve.yaml")
    import uvicorn  # an extra

    systems = open_systems(flags.config, overrides)
    if len(systems) != 1:
        raise ConfigError(f"--data holds {len(systems)} data sets; serve one: --data {flags.data}/NAME")
    system, options = systems[0], systems[0].settings.get("serve") or {}
    corpus = system.corpus
    funnel = system.funnel()
    kept = recorder(system, options.get("events"), funnel.policy)
    app = create_app(
        funnel,
        system.dataset.name,
        len(corpus),
        lambda row: (corpus.ids[row], corpus[row].title),
        max_k=options.get("max_k", 100),
        recorder=kept,
    )
    with kept.loop if kept else nullcontext():
        if kept:
            kept.loop.keep(timedelta(seconds=options.get("snapshot_s", 600)), options.get("keep_days"))
        uvicorn.run(app, host=options.get("host", "127.0.0.1"), port=options.get("port", 8000), log_level="info")


if __name__ == "__main__":
    main(run)
