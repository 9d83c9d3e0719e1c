"""Serves a config's funnel over HTTP; does not know the command line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

from ltrr.config import ConfigError
from ltrr.serving.app import create_app
from ltrr.serving.recorder import recorder
from ltrr.system.system import open_systems


def serve(config: Path, overrides: Sequence[str]) -> None:
    """Opens the funnel and answers until the process is stopped; section `serve` of the config names host and port.

    Errors: ConfigError where the data holds several data sets.
    """
    import uvicorn  # an extra

    systems = open_systems(config, overrides)
    system, options = systems[0], systems[0].settings.serve
    if len(systems) != 1:
        folder = system.settings.data.path
        raise ConfigError(f"--data holds {len(systems)} data sets; serve one: --data {folder}/NAME")
    corpus, funnel = system.corpus, system.funnel()
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
