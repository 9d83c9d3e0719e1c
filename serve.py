"""YAML -> funnel -> HTTP: python serve.py [--config configs/serve.yaml] [--data FOLDER] [--serve.port 8000]."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from _common import arguments, main

from ltrr.config import ConfigError
from ltrr.serving.app import create_app
from ltrr.system import open_systems


def run() -> None:
    flags, overrides = arguments(__doc__, "configs/serve.yaml")
    import uvicorn  # an extra

    systems = open_systems(flags.config, overrides)
    if len(systems) != 1:
        raise ConfigError(f"--data holds {len(systems)} data sets; serve one: --data {flags.data}/NAME")
    system, options = systems[0], systems[0].settings.get("serve") or {}
    corpus = system.corpus
    app = create_app(
        system.funnel(),
        system.dataset.name,
        len(corpus),
        lambda row: (corpus.ids[row], corpus[row].title),
        max_k=options.get("max_k", 100),
    )
    uvicorn.run(app, host=options.get("host", "127.0.0.1"), port=options.get("port", 8000), log_level="info")


if __name__ == "__main__":
    main(run)
