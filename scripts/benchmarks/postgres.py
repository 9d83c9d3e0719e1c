"""A temporary PostgreSQL server for benchmarks and tests. Knows pg_ctl; does not know which tables it holds."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def postgres_server(options: str = "") -> Iterator[str]:
    """URL of a PostgreSQL server on a socket in a temporary folder. FileNotFoundError where there is no pg_ctl."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)])
    control = shutil.which("pg_ctl", path=path)
    if control is None:
        raise FileNotFoundError("PostgreSQL is absent: no pg_ctl (Debian: apt-get install postgresql)")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        user = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(folder, "postgres", "postgres")
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}

        def run(*command: str) -> None:
            done = subprocess.run(
                [control, "-D", f"{folder}/data", *command], cwd=folder, capture_output=True, text=True, **user
            )
            if done.returncode:
                raise OSError(f"pg_ctl {command[0]}: {done.stdout}{done.stderr}")

        run("init", "-o", "-U postgres -A trust -E UTF8 --locale=C -N")
        try:
            run("start", "-w", "-l", f"{folder}/log", "-o", f"-k {folder} -c listen_addresses='' {options}")
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            with suppress(OSError):
                run("stop", "-m", "immediate")
