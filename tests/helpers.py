"""What tests of all packages use: paths, the shared data sets, and scripts in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = ("love", "river", "night", "paper", "winter", "crazy", "golden", "home", "street", "summer")


def shared(name: str) -> Path:
    """A folder of the shared data; skips where it is absent."""
    folder = Path(os.environ.get("LTRR_DATA", ROOT / "../shared/data")) / name
    if not folder.exists():
        pytest.skip(f"shared data {name} is absent (LTRR_DATA)")
    return folder


def script(name: str, *arguments: object, check: bool = True, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """Runs a script of this checkout in a fresh process."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert not check or done.returncode == 0, done.stderr
    return done
