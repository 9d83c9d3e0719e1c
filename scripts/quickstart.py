"""The main job on the embedded catalogue, or on --data: indexes, the table, plots, and what to try next.

python scripts/quickstart.py [--data FOLDER|ZIP|HUBNAME]
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

from _common import arguments, main
from evaluate import evaluate

from ltrr.data.catalogue import write_catalogue
from ltrr.metrics import whole_file
from ltrr.system import open_systems

_CATALOGUE = Path("runs/quickstart/catalogue")


def run() -> None:
    start = time.perf_counter()
    flags, overrides = arguments(__doc__, "configs/quickstart.yaml", "runs/quickstart")
    if not flags.data:
        print(f"1) The embedded music catalogue (synthetic; docs/data-model.md) -> {_CATALOGUE}")
        write_catalogue(_CATALOGUE)
    elif flags.config == Path("configs/quickstart.yaml"):
        flags.config = Path("configs/funnel.yaml")
    systems = open_systems(flags.config, overrides)
    for system in systems:
        print(f"2) Indexes of {system.dataset.name}")
        for name in system.usable():
            system.build(name, report=lambda line: print("  ", line))
        print("3) Retrieval arms and their fusions on the test queries")
        out = flags.out if len(systems) == 1 else flags.out / system.dataset.name
        evaluate(system, "test", out, "lexical", None if flags.data else "intent")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cost = {"seconds": round(time.perf_counter() - start, 1), "peak_gib": round(peak, 2)}
    with whole_file(flags.out / "cost.json") as temporary:
        temporary.write_text(json.dumps(cost) + "\n", encoding="utf-8")
    print(f"{cost['seconds']:.0f} s, peak memory {cost['peak_gib']:.1f} GiB. Written: {flags.out}/")
    print(f"Look at {flags.out}/plots/quality.png, and try next:")
    data = f" --data {flags.data}" if flags.data else ""
    config = f" --config {flags.config}" if flags.data else ""
    print(f'  .venv/bin/python scripts/explain.py "tayler love"{config}{data}')
    print(f"  .venv/bin/python serve.py{data}      # then POST /search on http://127.0.0.1:8000/docs")
    print("  .venv/bin/python scripts/evaluate.py --data YOUR_BEIR_FOLDER --out runs/mine")


if __name__ == "__main__":
    main(run)
