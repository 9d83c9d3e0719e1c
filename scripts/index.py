"""Builds the indexes that a config names, where they are missing, damaged or of something else.

python scripts/index.py --config configs/funnel.yaml --data FOLDER [--out CACHE] [--arms.dense.model runs/x/export]

Killed, it leaves the old indexes in use; run again, it goes on where encoding stopped.
"""

from __future__ import annotations

from ltrr.cli.arguments import arguments, main
from ltrr.system.system import open_systems


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/funnel.yaml",
        "",
        lambda parser: (
            parser.add_argument("--arm", action="append", help="only this arm (may be repeated)"),
            parser.add_argument("--rebuild", action="store_true", help="build again what is whole"),
        ),
    )
    if flags.out:
        overrides += ["--cache", str(flags.out)]
    for system in open_systems(flags.config, overrides):
        for name in flags.arm or system.usable():
            system.indexes.build(name, rebuild=flags.rebuild)


if __name__ == "__main__":
    main(run)
