"""The main job on the embedded catalogue, or on --data: training, indexes, the table, plots, and what to try next.

python scripts/quickstart.py [--data FOLDER|ZIP|HUBNAME] [--no-training] [--fresh]

Trains a bi-encoder, SPLADE, doc2query and a cross-encoder for a few steps each (configs/*.yaml with fewer steps), then
indexes and evaluates everything but doc2query, of which it shows some queries: writing them for all documents
(scripts/expand.py) would take longer than all the rest. On the catalogue simulated customers then ask and click, and
what a policy learns from them is compared with rules and a click boost. Run again, it takes what is there; with --fresh
it starts from nothing, and writes what that cost to cost.json. Data without train queries is searched with untrained
models.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ltrr.cli.arguments import arguments, main
from ltrr.data.beir import Corpus, open_collection
from ltrr.data.synthetic_music.catalogue import write_catalogue
from ltrr.files import atomic_write
from ltrr.system.evaluate import evaluate_system
from ltrr.system.system import open_systems
from ltrr.system.tuning import trained_on

_TRAIN = Path(__file__).parent.parent / "train.py"
_SIMULATE = Path(__file__).parent / "simulate.py"
_STREAM = "--stream --zipf 1.0 --rounds 20000 --mean-cut 5 --seeds 2"
_CATALOGUE = Path("runs/quickstart/catalogue")
_SMALL = {  # model -> what differs from its config: minutes on 2 cores
    "dense": {
        "trainer.max_steps": 50,
        "data.batch_size": 32,
        "model.network.max_length": 64,
    },
    "splade": {
        "trainer.max_steps": 45,
        "data.batch_size": 16,
        "model.network.max_length": 64,
    },
    "cross_encoder": {
        "trainer.max_steps": 35,
        "data.batch_size": 8,
        "data.num_candidates": 10,
        "model.network.max_length": 64,
    },
    "doc2query": {
        "trainer.max_steps": 30,
        "data.batch_size": 16,
        "data.num_candidates": 5,
        "model.network.max_length": 64,
    },
}
_FEWER = 3
_ALL = {"data.dev_queries": 100, "data.dev_documents": 500, "trainer.logger": "false", "trainer.max_epochs": -1}


def train(data: str, fingerprint: str, root: Path) -> dict[str, Path]:
    """Four small fits under root; name -> export folder. A finished one of the same corpus is taken as it is."""
    from ltrr.encoders.training import emulates_bfloat16  # torch takes seconds to import

    exports = {name: root / name / "export" for name in _SMALL}
    if slow := emulates_bfloat16("auto"):
        print(f"   this processor has no bfloat16: one in {_FEWER} of the steps, so that you do not wait for too long")
    for name, options in _SMALL.items():
        if (told := trained_on(exports[name])) and told["data"] == fingerprint:
            print(f"   {name}: trained already, {exports[name]}")
            continue
        shutil.rmtree(root / name, ignore_errors=True)  # of other data, or unfinished
        steps = options["trainer.max_steps"] // (_FEWER if slow else 1)
        given = {
            "config": Path("configs") / f"{name}.yaml",
            "data.path": data,
            "trainer.default_root_dir": root,
            "id": name,
            "trainer.val_check_interval": steps,
            "trainer.check_val_every_n_epoch": "null",
            **_ALL,
            **options,
            "trainer.max_steps": steps,
        }
        start = time.perf_counter()
        command = [sys.executable, str(_TRAIN), "fit", *(f"--{key}={value}" for key, value in given.items())]
        if status := subprocess.run(command).returncode:  # a process each: what one fit held is free for the next
            raise ValueError(f"training {name} ended with status {status}; what it said stands above")
        print(f"   {name}: {time.perf_counter() - start:.0f} s, {exports[name]}")
    return exports


def show_generated(model: Path, corpus: Corpus) -> None:
    """Queries that doc2query writes for the first documents."""
    from ltrr.encoders.generator import load_generator

    documents = [corpus[row] for row in range(min(3, len(corpus)))]
    generator = load_generator(str(model))
    for document, found in zip(documents, generator.sample([d.text for d in documents], 3, seed=0), strict=True):
        print(f"   {document.title!r} may be asked for as {', '.join(repr(one.query) for one in found)}")


def learn_from_clicks(out: Path) -> None:
    """Compares rules, a click boost and the belief on a stream of recurring queries, over untrained arms."""
    command = [sys.executable, str(_SIMULATE), *_STREAM.split(), "--data", str(_CATALOGUE), "--out", str(out)]
    if status := subprocess.run(command).returncode:
        raise ValueError(f"the simulation of customers ended with status {status}; what it said stands above")


def run() -> None:
    start = time.perf_counter()
    flags, overrides = arguments(
        __doc__,
        "configs/quickstart.yaml",
        "runs/quickstart",
        lambda parser: (
            parser.add_argument("--no-training", action="store_true", help="untrained arms only"),
            parser.add_argument("--fresh", action="store_true", help="train and index again, whatever is there"),
        ),
    )
    if not flags.data:
        print(f"1) The embedded music catalogue (synthetic; docs/data-model.md) -> {_CATALOGUE}")
        write_catalogue(_CATALOGUE)
    elif flags.config == Path("configs/quickstart.yaml"):
        flags.config = Path("configs/funnel.yaml")
    models: list[str] = []
    data = flags.data or str(_CATALOGUE)
    sets = open_collection(data)
    if flags.fresh:
        shutil.rmtree(flags.out / "models", ignore_errors=True)
        for system in open_systems(flags.config, overrides):
            shutil.rmtree(system.folder, ignore_errors=True)
    if flags.no_training or len(sets) > 1 or "train" not in sets[0].splits:
        print("2) No training: " + ("not wanted" if flags.no_training else "this data has no train queries of one set"))
    else:
        print("2) Four models, trained for a few steps each")
        exports = train(data, sets[0].corpus.fingerprint, flags.out / "models")
        show_generated(exports["doc2query"], sets[0].corpus)
        models = [f"--arms.dense.model {exports['dense']}", f"--arms.sparse.model {exports['splade']}"]
        models.append(f"--ranker.model {exports['cross_encoder']}")
        overrides += " ".join(models).split()
    systems = open_systems(flags.config, overrides)
    for system in systems:
        print(f"3) Indexes of {system.dataset.name}")
        for name in system.usable():
            system.indexes.build(name, report=lambda line: print("  ", line))
        print("4) Retrieval arms, their fusions and the whole funnel on the test queries")
        out = flags.out if len(systems) == 1 else flags.out / system.dataset.name
        evaluate_system(system, "test", out, "lexical", None if flags.data else "intent")
    if not flags.data:
        print("5) What clicks teach: 20,000 rounds of queries that recur, each system scored before it learns")
        if flags.fresh:
            shutil.rmtree(flags.out / "stream", ignore_errors=True)
        learn_from_clicks(flags.out / "stream")
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in processes) / 2**20
    cost = {"seconds": round(time.perf_counter() - start, 1), "peak_gib": round(peak, 2)}
    if flags.fresh:
        with atomic_write(flags.out / "cost.json") as temporary:
            temporary.write_text(json.dumps(cost) + "\n", encoding="utf-8")
    print(f"{cost['seconds']:.0f} s, peak memory {cost['peak_gib']:.1f} GiB. Written: {flags.out}/")
    stream = "" if flags.data else f" and {flags.out}/stream/stream.png"
    print(f"Look at {flags.out}/plots/quality.png{stream}, and try next:")
    given = (f" --data {flags.data}" if flags.data else "") + "".join(f" {model}" for model in models)
    config = f" --config {flags.config}" if flags.data else ""
    print(f'  .venv/bin/python scripts/explain.py "tayler love"{config}{given}')
    print(f"  .venv/bin/python serve.py{given}      # then POST /search on http://127.0.0.1:8000/docs")
    print("  .venv/bin/python train.py fit --config configs/dense.yaml --data.path YOUR_BEIR_FOLDER")
    print("  .venv/bin/python scripts/evaluate.py --data YOUR_BEIR_FOLDER --arms.dense.model runs/dense-1/export")


if __name__ == "__main__":
    main(run)
