"""YAML -> funnel -> HTTP: python serve.py [--config configs/serve.yaml] [--data FOLDER] [--serve.port 8000]."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from _common import arguments, main

from ltrr.config import ConfigError
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.serving.app import Recorder, create_app
from ltrr.system import System, open_systems
from ltrr.tuning import key_of


def recorder(system: System, url: str | None, policy: str = "fixed") -> Recorder | None:
    """What keeps events in the database of this URL and teaches the arms that learn; None = nothing is kept.

    policy: name and version of what decides.
    """
    if url is None:
        return None
    arms = {name: system.arm(name) for name in system.usable()}
    learners = {name: arm for name, arm in arms.items() if hasattr(arm, "take")}
    identities = {name: system.identity(name) for name in arms}
    folder = system.folder / "learned" / key_of("learned", url, {n: (system.specs[n], identities[n]) for n in learners})
    rows = {entity: row for row, entity in enumerate(system.corpus.ids)}
    loop = Loop(EventStore(url), learners, rows, folder)
    return Recorder(loop, system.corpus.ids, policy, {name: " ".join(i) for name, i in identities.items()})


def run() -> None:
    flags, overrides = arguments(__doc__, "configs/serve.yaml")
    import uvicorn  # an extra

    systems = open_systems(flags.config, overrides)
    if len(systems) != 1:
        raise ConfigError(f"--data holds {len(systems)} data sets; serve one: --data {flags.data}/NAME")
    system, options = systems[0], systems[0].settings.get("serve") or {}
    corpus = system.corpus
    funnel = system.funnel()
    kept = recorder(system, options.get("events"), getattr(funnel.policy, "id", "fixed"))
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
