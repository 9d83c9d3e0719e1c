"""What every script shares: --config, --data, --out, dotted overrides, and errors on one screen."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path


def arguments(
    doc: str | None, config: str, out: str | None = None, extra: Callable | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parsed flags and the overrides left over; --data and --out become paths of the config."""
    sys.path.insert(0, os.getcwd())  # so that `class: my_package.my_arm.MyArm` is found where the user is
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(config), help=f"YAML (default {config})")
    parser.add_argument("--data", help="BEIR folder, zip or hub name; overrides data.path")
    if out is not None:
        parser.add_argument("--out", type=Path, default=Path(out) if out else None, help=f"folder (default {out})")
    if extra:
        extra(parser)
    flags, overrides = parser.parse_known_args()
    if flags.data:
        overrides += ["--data.path", json.dumps(flags.data)]  # a string, even where it looks like a number
    return flags, overrides


def main(run: Callable[[], None]) -> None:
    """Runs a script; a user's mistake ends with its message and status 2, not with a traceback."""
    try:
        run()
    except KeyboardInterrupt:
        print(
            "interrupted: what was built before is still in use; run the same command again to go on", file=sys.stderr
        )
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        message = str(error)
        print(f"error: {message if len(message) < 2000 else message[:2000] + ' …'}", file=sys.stderr)
        raise SystemExit(2) from None
