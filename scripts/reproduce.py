"""Runs every step behind docs/results/ in order: mining, training, evaluations, simulations, benchmarks.

python scripts/reproduce.py [--shared ../shared/data] [--only NAME …] [--list]

Skips a step whose result file exists. Resumes a killed run at its step, and a killed training at its last checkpoint.
Delete a step's folder to run it again; delete only its results.json to build the result again from the parts it kept.
Takes about five hours on 2 cores, each training at most 20 minutes. Afterwards run: python scripts/results.py

Knows commands and files; does not know what a step computes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from ltrr.cli.arguments import main
from ltrr.files import atomic_write

COMMANDS = {  # the word that a step below uses -> the start of its command line
    "fit": "train.py fit",
    "evaluate": "scripts/evaluate.py",
    "mine": "scripts/mine.py",
    "expand": "scripts/expand.py",
    "person_queries": "scripts/experiments/person_queries.py",
    "quickstart": "scripts/quickstart.py",
    "click_models": "scripts/experiments/click_models.py",
    "memory": "scripts/experiments/memory.py",
    "attack": "scripts/experiments/attack.py",
    "arrivals": "scripts/experiments/arrivals.py",
    "policy": "scripts/simulate.py",
    "streams": "scripts/experiments/streams.py",
    "arms": "scripts/experiments/arms.py",
    "belief_attack": "scripts/experiments/belief_attack.py",
    "new_arm": "scripts/experiments/new_arm.py",
    "fusion": "scripts/experiments/fusion.py",
    "off_policy": "scripts/ope.py",
    "personal": "scripts/experiments/personal.py",
    "benchmarks": "scripts/benchmarks/run.py",
}
RUNS = Path("runs")


class Step(NamedTuple):
    """A command, and the file below `RUNS` whose presence marks the step as done."""

    name: str
    command: str  # {data} = folder of the data sets
    done: str


def step(name: str, script: str, options: str = "", done: str = "") -> Step:
    """A step that writes results.json to its own folder, or the file `done`."""
    return Step(name, f"{COMMANDS[script]} {options}".strip(), done or f"{name}/results.json")


def folder_step(name: str, script: str, options: str, done: str = "") -> Step:
    """The same for a script that takes its folder as --out."""
    return step(name, script, f"{options} --out runs/{name}", done and f"{name}/{done}")


def fit(name: str, data: str, *options: str) -> Step:
    """A training of the config before the dash in its name."""
    folder = f"--config configs/{name.partition('-')[0]}.yaml --data.path {{data}}/{data} --id {name}"
    return step(name, "fit", " ".join([folder, "--trainer.logger false", *options]), f"{name}/export/ltrr.json")


def table(name: str, data: str, *options: str) -> Step:
    """An evaluation on test queries."""
    return folder_step(name, "evaluate", " ".join([f"--data {data} --split test", *options]))


def mined(name: str, data: str, options: str) -> Step:
    """Negatives or candidates."""
    return folder_step(f"mined/{name}", "mine", f"--data {data} --arm rrf {options}", "mining.json")


SCIFACT, MSRD, CATALOGUE = "{data}/scifact", "{data}/msrd-movies", "runs/quickstart/catalogue"
NEGATIVES = "--data.negatives '[\"runs/mined/scifact/negatives.trec\"]'"
STEPS_ONLY = "--trainer.max_epochs -1 --trainer.check_val_every_n_epoch null"
EXPAND = f"--model runs/doc2query-scifact/export --data {SCIFACT} --num_queries 10"
ANYBODY = f"--data {MSRD} --data.query_fields '[]'"  # queries name no customer: customers are drawn
RECURRING = f"{ANYBODY} --data.qrels qrels-random --fusion.weights '{{memory: 3}}'"  # the weight was chosen on its dev
STRICT = f"{MSRD} --data.qrels qrels-strict"  # no near-duplicate groups across splits
PEERS = {  # beside policy-msrd: another learner and its explorer
    "linucb": ("ltrr.learners.linucb.LinUCB", "UCB, width: 0.1"),
    "router": ("ltrr.learners.router.SupervisedRouter", "EpsilonGreedy"),
    "vowpal": ("ltrr.learners.vowpal.Vowpal", "SquareCB"),
}


def measured(name: str, benchmarks: str) -> Step:
    """Benchmarks, by name or subject; rows.jsonl holds their JSON lines."""
    rows = f"{name}/rows.jsonl"
    return step(name, "benchmarks", f"{benchmarks} --out runs/{rows}", rows)


def peer(name: str) -> Step:
    """A simulation of MSRD's policy of cuts with another learner and explorer."""
    learner, explorer = PEERS[name]
    options = (
        f"--policy.explore '{{class: ltrr.policies.explorers.{explorer}}}' --policy.learner '{{class: {learner}}}'"
    )
    return folder_step(f"policy-{name}", "policy", f"--data {STRICT} --no-perfect {options}")


STEPS = [
    table("scifact", SCIFACT),
    table("msrd", MSRD),
    mined("scifact", SCIFACT, "--split train --window 3 60 --num 20"),
    fit("dense-scifact", "scifact", NEGATIVES),
    fit("dense-msrd", "msrd-movies", STEPS_ONLY, "--trainer.max_steps 700 --trainer.val_check_interval 175",
        "--data.batch_size 32 --model.network.max_length 128 --data.dev_documents 4000"),
    table("scifact-dense", SCIFACT, "--arms.dense.model runs/dense-scifact/export"),
    table("msrd-dense", MSRD, "--arms.dense.model runs/dense-msrd/export"),
    fit("splade-scifact", "scifact", NEGATIVES, "--model.network.model runs/dense-scifact/export"),
    fit("splade-msrd", "msrd-movies", STEPS_ONLY, "--model.network.model runs/dense-msrd/export",
        "--trainer.max_steps 500 --trainer.val_check_interval 125",
        "--model.network.max_length 128 --data.title_pairs 0 --data.dev_documents 4000"),
    table("scifact-sparse", SCIFACT, "--arms.sparse.model runs/splade-scifact/export"),
    table("msrd-sparse", MSRD, "--arms.sparse.model runs/splade-msrd/export"),
    # The ranker learns from candidates of untrained arms: trained ones have seen the positives of train.
    mined("scifact-ranker", SCIFACT, "--split train --window 1 50 --margin none"),
    mined("msrd-ranker", MSRD, "--split train --window 1 50 --margin none"),
    mined("scifact-dev", SCIFACT, "--split dev --candidates --num 20"),
    mined("msrd-dev", MSRD, "--split dev --candidates --num 20"),
    fit("cross_encoder-scifact", "scifact", "--model.network.model runs/dense-scifact/export",
        "--data.negatives '[\"runs/mined/scifact-ranker/negatives.trec\"]'",
        "--data.candidates runs/mined/scifact-dev/candidates.trec"),
    fit("cross_encoder-msrd", "msrd-movies", "--model.network.model runs/dense-msrd/export",
        "--model.network.max_length 160 --trainer.max_steps 500 --trainer.val_check_interval 125",
        "--data.negatives '[\"runs/mined/msrd-ranker/negatives.trec\"]'",
        "--data.candidates runs/mined/msrd-dev/candidates.trec"),
    table("scifact-ranked", SCIFACT, "--fusion.method rrf --ranker.model runs/cross_encoder-scifact/export"),
    table("msrd-ranked", MSRD, "--fusion.method rrf --ranker.model runs/cross_encoder-msrd/export"),
    # Generated queries, without and with the filter, beside full text tuned on the same queries.
    fit("doc2query-scifact", "scifact"),
    folder_step("expanded-scifact", "expand", EXPAND, "ltrr.json"),
    Step("copied-scifact",
         "-c \"import shutil; shutil.copytree('runs/expanded-scifact', 'runs/filtered-scifact', "
         "ignore=shutil.ignore_patterns('ltrr.json'))\"", "filtered-scifact/manifest.json"),
    folder_step("filtered-scifact", "expand", f"{EXPAND} --filter runs/cross_encoder-scifact/export", "ltrr.json"),
    table("scifact-expanded", SCIFACT, "--arms.lexical.tune fusion --fusion.arms '[lexical, dense]'",
          "--arms.expanded.class ltrr.arms.lexical.Lexical --arms.expanded.expansion runs/expanded-scifact",
          "--arms.filtered.class ltrr.arms.lexical.Lexical --arms.filtered.expansion runs/filtered-scifact"),
    # All trained models together.
    table("scifact-ltrr", SCIFACT, "--arms.dense.model runs/dense-scifact/export",
          "--arms.sparse.model runs/splade-scifact/export --ranker.model runs/cross_encoder-scifact/export"),
    table("msrd-ltrr", MSRD, "--arms.dense.model runs/dense-msrd/export",
          "--arms.sparse.model runs/splade-msrd/export --ranker.model runs/cross_encoder-msrd/export"),
    step("person_queries", "person_queries", f"--data {MSRD} --results runs/msrd", "msrd/person_queries.json"),
    step("quickstart", "quickstart", "--fresh", "quickstart/cost.json"),
    # What feedback teaches. The catalogue's generated queries are those of quickstart's 30 steps.
    step("click_models", "click_models"),
    folder_step("expanded-catalogue", "expand", f"--model runs/quickstart/models/doc2query/export --data {CATALOGUE} "
        "--num_queries 3 --max_query_length 12 --max_length 64", "ltrr.json"),
    folder_step("memory-catalogue", "memory", f"--data {CATALOGUE} --rounds 1000 5000 50000 --by intent"),
    folder_step("memory-shared", "memory", f"--data {CATALOGUE} --rounds 5000 50000 --seeds 5 --by intent "
        "--data.query_fields '[locale, time, device]' --observed runs/observed-catalogue"),
    folder_step("memory-predicted", "memory",
        f"--data {CATALOGUE} --rounds 5000 --by intent --arms.memory.expansion runs/expanded-catalogue"),
    table("catalogue-observed", CATALOGUE, "--by intent --arms.lexical.tune fusion",
          "--arms.observed.class ltrr.arms.lexical.Lexical --arms.observed.expansion runs/observed-catalogue",
          "--fusion.arms '[lexical, structured, dense]'"),
    folder_step("memory-msrd", "memory", f"{ANYBODY} --rounds 20000 100000 --seeds 3"),
    folder_step("memory-msrd-random", "memory", f"{RECURRING} --rounds 20000 100000 --seeds 3"),
    folder_step("memory-msrd-eta", "memory", f"{RECURRING} --rounds 100000 --seeds 2 --eta 2"),
    folder_step("attack", "attack", f"--data {CATALOGUE}"),
    folder_step("attack-patient", "attack", f"--data {CATALOGUE} --clicks 100"),
    folder_step("fresh", "arrivals", f"--data {CATALOGUE}"),
    # What a policy learns.
    folder_step("policy-msrd", "policy", f"--data {STRICT} --no-perfect"),
    *map(peer, PEERS),
    folder_step("policy-arms", "arms", f"--data {STRICT}"),
    folder_step("streams", "streams", "--shared {data}"),
    folder_step("attack-belief", "belief_attack", f"--data {STRICT}"),
    folder_step("new-arm", "new_arm", f"--data {STRICT}"),
    folder_step("fusion", "fusion", f"--data {MSRD}:qrels-strict {{data}}/strategyqa-facts {{data}}/boolq-passages "
        f"{CATALOGUE} {SCIFACT}"),
    folder_step("ope-simulated", "off_policy", "--simulate"),
    folder_step("ope-open-bandit", "off_policy", "--open-bandit {data}/open-bandit"),
    folder_step("personal", "personal", "--data {data}/lastfm-hetrec2k"),
    measured("store", "store"),
    measured("benchmark_memory", "memory"),
    measured("benchmark_policy", "policy"),
    measured("benchmark", f"arms funnel index encoders training --data {MSRD} --device cpu"),
]  # fmt: skip


def commit() -> str:
    """The commit that is checked out, with "+" if tracked files changed since; "" without git."""
    try:
        head, changed = (
            subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except FileNotFoundError:
        return ""
    return head + "+" * bool(changed)


def needed(command: str) -> list[Step]:
    """Steps whose folders a command names, after the steps that those need."""
    steps: list[Step] = []
    for other in STEPS:
        if re.search(rf"runs/{other.name}(?![\w-])", command) and other.command != command:
            steps += [s for s in (*needed(other.command), other) if s not in steps]
    return steps


def execute(step: Step, command: str) -> None:
    """Runs a step and records its seconds and commit; raises ValueError if the command fails."""
    again = " --ckpt_path last" if (RUNS / step.name / "ckpt" / "last.ckpt").exists() else ""
    cost_file = RUNS / "costs" / f"{step.name.replace('/', '-')}.json"
    begun = (RUNS / step.name).is_dir()
    before = json.loads(cost_file.read_text()) if begun and cost_file.exists() else {}  # the parts kept cost that
    start = time.perf_counter()
    finished = subprocess.run(f"{sys.executable} {command}{again}", shell=True)
    if finished.returncode:
        raise ValueError(f"{step.name} ended with status {finished.returncode}; run the same command to resume it")
    seconds = round(before.get("seconds", 0.0) + time.perf_counter() - start, 1)
    cost = {"seconds": seconds, "resumed": begun and not before, "commit": commit()}
    with atomic_write(cost_file) as temporary:
        temporary.write_text(json.dumps(cost) + "\n", encoding="utf-8")


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--only", nargs="*", help="names of steps")
    parser.add_argument("--list", action="store_true", help="show the steps and whether they are done")
    flags = parser.parse_args()
    names = [step.name for step in STEPS]
    if unknown := set(flags.only or ()) - set(names):
        raise ValueError(f"--only: no step {min(unknown)!r}; there are {', '.join(names)}")
    for step in STEPS:
        if flags.only and step.name not in flags.only:
            continue
        done = (RUNS / step.done).exists()
        command = step.command.replace("{data}", flags.shared)
        print(f"{'done' if done else 'to do'}: {step.name}: python {command}", flush=True)
        if not (done or flags.list):
            execute(step, command)


if __name__ == "__main__":
    main(run)
