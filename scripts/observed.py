"""Writes the queries with which customers found each document, for full-text search: from the event store.

python scripts/observed.py --config configs/serve.yaml --data FOLDER --events sqlite:///runs/events.db --out DIR
                           [--predicted runs/expanded]

The arm `memory` of the config says how many customers must agree on a pair before its query is written. --predicted: a
folder of scripts/expand.py, whose queries come first. To search with them: --arms.lexical.expansion DIR (a folder is
never written again: give each time a new one).
"""

from __future__ import annotations

from pathlib import Path

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.data.expansions import read_expansions, write_observed
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.protocols import Learning, ObservesQueries, offers
from ltrr.system.system import open_systems


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/serve.yaml",
        "",
        lambda parser: (
            parser.add_argument("--events", help="URL of the event store (default: the config's serve.events)"),
            parser.add_argument("--predicted", type=Path, help="folder of generated queries"),
            parser.add_argument("--arm", default="memory", help="the arm that learns from events"),
        ),
    )
    if not flags.out:
        raise ConfigError("--out: where to write is not set; give --out DIR")
    database = (flags.events or "").removeprefix("sqlite:///")
    if flags.events and database != flags.events and not Path(database).exists():
        raise ConfigError(f"--events {flags.events}: there is no such file")
    (system,) = open_systems(flags.config, overrides)
    url = flags.events or system.settings.serve.events
    if not url:
        raise ConfigError("--events: no event store is named, nor serve.events in the config")
    if flags.arm not in system.specs:
        raise ConfigError(f"arms: there is no arm {flags.arm!r} that learns; see configs/serve.yaml")
    predicted = read_expansions(flags.predicted, system.corpus) if flags.predicted else None
    arm = system.indexes.make(flags.arm)[0]
    memory, learning = offers(arm, ObservesQueries), offers(arm, Learning)
    if memory is None or learning is None:
        raise ConfigError(f"--arm {flags.arm}: this arm observes no queries; name a memory arm")
    with EventStore(url) as store:
        Loop(store, {flags.arm: learning}, memory.rows)
    observed = memory.observed()
    write_observed(flags.out, system.corpus, observed, predicted)
    print(f"{len(observed):,} queries of {len({row for row, *_ in observed}):,} documents in {flags.out}")


if __name__ == "__main__":
    main(run)
