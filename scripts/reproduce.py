"""Every figure of docs/results.md: mining, training, evaluations, benchmark, in order; what is done is not done again.

python scripts/reproduce.py [--shared ../shared/data] [--only NAME …] [--list]

About five hours on 2 cores, each training at most 20 minutes. Killed, it goes on with the step it was at; a training
goes on from its last checkpoint. Delete a step's folder to do it again; its results.json alone, to
put together anew what it kept. Afterwards: python scripts/results.py
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

_RUNS = Path("runs")


class Step(NamedTuple):
    """A command and the file whose presence says that it is done."""

    name: str
    done: str
    command: str  # {data} = the folder of data sets


def fit(name: str, config: str, data: str, *options: str) -> Step:
    """A training with its own run folder."""
    given = f"--data.path {{data}}/{data} --id {name} --trainer.logger false"
    command = f"train.py fit --config configs/{config}.yaml {given} {' '.join(options)}"
    return Step(name, f"{name}/export/ltrr.json", command)


def table(name: str, data: str, *options: str) -> Step:
    """An evaluation on test."""
    command = f"scripts/evaluate.py --data {{data}}/{data} --split test --out runs/{name} {' '.join(options)}"
    return Step(name, f"{name}/results.json", command)


def measured(name: str, benchmarks: str) -> Step:
    """Benchmarks, by name or subject."""
    return Step(name, f"{name}/rows.jsonl", f"scripts/benchmarks/run.py {benchmarks} --out runs/{name}/rows.jsonl")


def mined(name: str, data: str, *options: str) -> Step:
    """Negatives or candidates."""
    command = f"scripts/mine.py --data {{data}}/{data} --out runs/mined/{name} {' '.join(options)}"
    return Step(f"mined/{name}", f"mined/{name}/mining.json", command)


_SCIFACT, _MSRD = "scifact", "msrd-movies"
_NEGATIVES = "--data.negatives '[\"runs/mined/scifact/negatives.trec\"]'"
_RRF = "--fusion.method rrf"
_EXPAND = "scripts/expand.py --model runs/doc2query-scifact/export --data {data}/scifact --num_queries 10"
_ANYBODY = "--data {data}/msrd-movies --data.query_fields '[]'"  # nobody is named: customers are drawn
_RECUR = f"{_ANYBODY} --data.qrels qrels-random --fusion.added '{{memory: 3}}'"  # the weight was chosen on its dev
_CATALOGUE = "--data runs/quickstart/catalogue"
_STEPS = "--trainer.max_epochs -1 --trainer.check_val_every_n_epoch null"
_LINEAR, _UCB = "ltrr.learners.linucb.LinUCB", "{class: ltrr.policies.explorers.UCB, width: 0.1}"
_PEERS = {  # beside policy-msrd: another learner, another explorer, or both
    "linucb": (_LINEAR, "{}", _UCB),
    "linucb-gains": (_LINEAR, "{noise: 0.1, levels: 2, l2: 1000}", _UCB),
    "linucb-cut": (_LINEAR, "{per: cut, l2: 10000}", _UCB),
    "lints": (_LINEAR, "{}", "{class: ltrr.policies.explorers.Thompson, samples: 32}"),
    "router": ("ltrr.learners.router.SupervisedRouter", "{}", "{class: ltrr.policies.explorers.EpsilonGreedy}"),
    "vowpal": ("_vowpal.Vowpal", "{}", "{class: ltrr.policies.explorers.SquareCB}"),
    "squarecb": (None, None, "{class: ltrr.policies.explorers.SquareCB, floor: 0.05}"),
    "greedy": (None, None, "{class: ltrr.policies.explorers.EpsilonGreedy}"),
    "thompson": (None, None, "{class: ltrr.policies.explorers.Thompson, samples: 32}"),
}


def peer(name: str) -> Step:
    learner, arguments, explorer = _PEERS[name]
    model = f"--model '{{class_path: {learner}, init_args: {arguments}}}' " if learner else ""
    command = f"scripts/simulate.py --data {{data}}/msrd-movies --no-perfect {model}--explore '{explorer}' "
    return Step(f"policy-{name}", f"policy-{name}/results.json", f"{command}--out runs/policy-{name}")


STEPS = [
    table("scifact", _SCIFACT),
    table("msrd", _MSRD),
    mined("scifact", _SCIFACT, "--arm rrf --split train --window 3 60 --num 20"),
    fit("dense-scifact", "dense", _SCIFACT, _NEGATIVES),
    fit(
        "dense-msrd", "dense", _MSRD, _STEPS, "--trainer.max_steps 700 --trainer.val_check_interval 175",
        "--data.batch_size 32 --model.network.max_length 128 --data.dev_documents 4000",
    ),
    table("scifact-dense", _SCIFACT, "--arms.dense.model runs/dense-scifact/export"),
    table("msrd-dense", _MSRD, "--arms.dense.model runs/dense-msrd/export"),
    fit("splade-scifact", "splade", _SCIFACT, _NEGATIVES, "--model.network.model runs/dense-scifact/export"),
    fit(
        "splade-msrd", "splade", _MSRD, _STEPS, "--model.network.model runs/dense-msrd/export",
        "--trainer.max_steps 500 --trainer.val_check_interval 125",
        "--model.network.max_length 128 --data.title_pairs 0 --data.dev_documents 4000",
    ),
    table("scifact-sparse", _SCIFACT, "--arms.sparse.model runs/splade-scifact/export"),
    table("msrd-sparse", _MSRD, "--arms.sparse.model runs/splade-msrd/export"),
    # The ranker learns from what untrained arms bring: the trained ones know the positives of train.
    mined("scifact-ranker", _SCIFACT, "--arm rrf --split train --window 1 50 --margin none"),
    mined("msrd-ranker", _MSRD, "--arm rrf --split train --window 1 50 --margin none"),
    mined("scifact-dev", _SCIFACT, "--arm rrf --split dev --candidates --num 20"),
    mined("msrd-dev", _MSRD, "--arm rrf --split dev --candidates --num 20"),
    fit(
        "cross_encoder-scifact", "cross_encoder", _SCIFACT, "--model.network.model runs/dense-scifact/export",
        "--data.negatives '[\"runs/mined/scifact-ranker/negatives.trec\"]'",
        "--data.candidates runs/mined/scifact-dev/candidates.trec",
    ),
    fit(
        "cross_encoder-msrd", "cross_encoder", _MSRD, "--model.network.model runs/dense-msrd/export",
        "--model.network.max_length 160 --trainer.max_steps 500 --trainer.val_check_interval 125",
        "--data.negatives '[\"runs/mined/msrd-ranker/negatives.trec\"]'",
        "--data.candidates runs/mined/msrd-dev/candidates.trec",
    ),
    table("scifact-ranked", _SCIFACT, _RRF, "--ranker.model runs/cross_encoder-scifact/export"),
    table("msrd-ranked", _MSRD, _RRF, "--ranker.model runs/cross_encoder-msrd/export"),
    # Generated queries, without and with the filter, beside full text tuned on the same queries.
    fit("doc2query-scifact", "doc2query", _SCIFACT),
    Step("expanded-scifact", "expanded-scifact/ltrr.json", f"{_EXPAND} --out runs/expanded-scifact"),
    Step(
        "copied-scifact", "filtered-scifact/manifest.json",
        "-c \"import shutil; shutil.copytree('runs/expanded-scifact', 'runs/filtered-scifact', "
        "ignore=shutil.ignore_patterns('ltrr.json'))\"",
    ),
    Step(
        "filtered-scifact", "filtered-scifact/ltrr.json",
        f"{_EXPAND} --out runs/filtered-scifact --filter runs/cross_encoder-scifact/export",
    ),
    table(
        "scifact-expanded", _SCIFACT, "--arms.lexical.tune fusion --fusion.arms '[lexical, dense]'",
        "--arms.expanded.class ltrr.arms.lexical.Lexical --arms.expanded.expansion runs/expanded-scifact",
        "--arms.filtered.class ltrr.arms.lexical.Lexical --arms.filtered.expansion runs/filtered-scifact",
    ),
    # All trained models together.
    table(
        "scifact-ltrr", _SCIFACT, "--arms.dense.model runs/dense-scifact/export",
        "--arms.sparse.model runs/splade-scifact/export --ranker.model runs/cross_encoder-scifact/export",
    ),
    table(
        "msrd-ltrr", _MSRD, "--arms.dense.model runs/dense-msrd/export",
        "--arms.sparse.model runs/splade-msrd/export --ranker.model runs/cross_encoder-msrd/export",
    ),
    Step("person_queries", "msrd/person_queries.json",
         "scripts/person_queries.py --data {data}/msrd-movies --results runs/msrd"),
    Step("quickstart", "quickstart/cost.json", "scripts/quickstart.py --fresh"),
    # What feedback teaches. The catalogue's generated queries are those of quickstart's 30 steps.
    Step("click_models", "click_models/results.json", "scripts/click_models.py"),
    Step("expanded-catalogue", "expanded-catalogue/ltrr.json",
         "scripts/expand.py --model runs/quickstart/models/doc2query/export --data runs/quickstart/catalogue "
         "--num_queries 3 --max_query_length 12 --max_length 64 --out runs/expanded-catalogue"),
    Step("memory-catalogue", "memory-catalogue/results.json",
         f"scripts/simulate_memory.py {_CATALOGUE} --out runs/memory-catalogue --rounds 1000 5000 50000 --by intent"),
    Step("memory-shared", "memory-shared/results.json",
         f"scripts/simulate_memory.py {_CATALOGUE} --out runs/memory-shared --rounds 5000 50000 --seeds 5 --by intent "
         "--data.query_fields '[locale, time, device]' --observed runs/observed-catalogue"),
    Step("memory-predicted", "memory-predicted/results.json",
         f"scripts/simulate_memory.py {_CATALOGUE} --out runs/memory-predicted --rounds 5000 --by intent "
         "--arms.memory.expansion runs/expanded-catalogue"),
    Step("catalogue-observed", "catalogue-observed/results.json",
         "scripts/evaluate.py --data runs/quickstart/catalogue --split test --out runs/catalogue-observed --by intent "
         "--arms.lexical.tune fusion --arms.observed.class ltrr.arms.lexical.Lexical "
         "--arms.observed.expansion runs/observed-catalogue --fusion.arms '[lexical, structured, dense]'"),
    Step("memory-msrd", "memory-msrd/results.json",
         f"scripts/simulate_memory.py {_ANYBODY} --out runs/memory-msrd --rounds 20000 100000 --seeds 3"),
    Step("memory-msrd-random", "memory-msrd-random/results.json",
         f"scripts/simulate_memory.py {_RECUR} --out runs/memory-msrd-random "
         "--rounds 20000 100000 --seeds 3"),
    Step("memory-msrd-eta", "memory-msrd-eta/results.json",
         f"scripts/simulate_memory.py {_RECUR} --out runs/memory-msrd-eta "
         "--rounds 100000 --seeds 2 --eta 2"),
    Step("attack", "attack/results.json", f"scripts/attack_memory.py {_CATALOGUE} --out runs/attack"),
    Step("attack-patient", "attack-patient/results.json",
         f"scripts/attack_memory.py {_CATALOGUE} --clicks 100 --out runs/attack-patient"),
    Step("fresh", "fresh/results.json", f"scripts/simulate_fresh.py {_CATALOGUE} --out runs/fresh"),
    # What a policy learns.
    Step("policy-msrd", "policy-msrd/results.json",
         "scripts/simulate.py --data {data}/msrd-movies --out runs/policy-msrd"),
    Step("policy-msrd-shuffled", "policy-msrd-shuffled/results.json",
         "scripts/simulate.py --data {data}/msrd-movies --out runs/policy-msrd-shuffled --no-perfect --shuffle"),
    Step("policy-msrd-cascade", "policy-msrd-cascade/results.json",
         "scripts/simulate.py --data {data}/msrd-movies --out runs/policy-msrd-cascade --no-perfect --cascade"),
    Step("policy-scifact", "policy-scifact/results.json",
         "scripts/simulate.py --data {data}/scifact --data.arms.people null --folds 5 --no-perfect --passes 1 5 "
         "--out runs/policy-scifact"),
    Step("policy-catalogue", "policy-catalogue/results.json",
         "scripts/simulate.py --config configs/policy_catalogue.yaml --data runs/quickstart/catalogue --passes 1 5 "
         "--out runs/policy-catalogue"),
    Step("policy-msrd-joins", "policy-msrd-joins/results.json",
         "scripts/simulate.py --data {data}/msrd-movies --change joins:dense --passes 1 2 --no-perfect "
         "--out runs/policy-msrd-joins"),
    Step("policy-msrd-leaves", "policy-msrd-leaves/results.json",
         "scripts/simulate.py --data {data}/msrd-movies --change leaves:title --passes 1 2 --no-perfect "
         "--out runs/policy-msrd-leaves"),
    *map(peer, _PEERS),
    Step("policy-weights", "policy-weights/results.json",
         "scripts/simulate.py --data {data}/msrd-movies --no-perfect --weights --out runs/policy-weights"),
    Step("policy-ranked", "policy-ranked/results.json",
         "scripts/rank_costs.py --policy runs/policy-msrd --ranker runs/cross_encoder-msrd/export "
         "--out runs/policy-ranked"),
    # Trained arms: the policy learns from queries that are new to them; then from those that they were trained on; then
    # with a memory of what customers who asked train queries clicked on.
    Step("observed-msrd", "observed-msrd/manifest.json",
         f"scripts/simulate_memory.py {_ANYBODY} --rounds 100000 --seeds 1 --out runs/memory-observed "
         "--observed runs/observed-msrd"),
    *(Step(f"policy-trained{name}", f"policy-trained{name}/results.json",
           "scripts/simulate.py --data {data}/msrd-movies --no-perfect --data.arms.dense.model runs/dense-msrd/export "
           "--data.arms.sparse '{class: ltrr.arms.sparse.Splade, model: runs/splade-msrd/export}' "
           f"{options} --out runs/policy-trained{name}")
      for name, options in (
          ("", "--learn dev --passes 1 5"), ("-naive", ""),
          ("-memory", "--learn dev --passes 1 5 --data.arms.memory '{class: ltrr.arms.memory.Memory, model: offline, "
                      "expansion: runs/observed-msrd, predicted: 1.0}'"))),
    Step("policy-arms", "policy-arms/results.json",
         "scripts/simulate_arms.py --data {data}/msrd-movies --out runs/policy-arms"),
    Step("policy-depths", "policy-depths/results.json",
         "scripts/simulate_arms.py --data {data}/msrd-movies --drawn_cost 0.01 --model.init_args.shallow '[10, 30]' "
         "--out runs/policy-depths"),
    Step("policy-msrd-ten", "policy-msrd-ten/results.json",
         "scripts/simulate.py --data {data}/msrd-movies --out runs/policy-msrd-ten --passes 10 --no-perfect"),
    Step("ope-simulated", "ope-simulated/results.json", "scripts/ope.py --simulate --out runs/ope-simulated"),
    Step("ope-open-bandit", "ope-open-bandit/results.json",
         "scripts/ope.py --open-bandit {data}/open-bandit --out runs/ope-open-bandit"),
    Step("personal", "personal/results.json",
         "scripts/personal.py --data {data}/lastfm-hetrec2k --out runs/personal"),
    measured("store", "store"),
    measured("benchmark_memory", "memory"),
    measured("benchmark_policy", "policy"),
    measured("benchmark", "arms funnel index encoders training --data {data}/msrd-movies"),
]  # fmt: skip


def commit() -> str:
    """The commit that is checked out, "+" where something was changed since; "" where there is no git."""
    try:
        head, changed = (
            subprocess.run(["git", *what], capture_output=True, text=True).stdout.strip()
            for what in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except FileNotFoundError:
        return ""
    return head + "+" * bool(changed)


def needed(command: str) -> list[Step]:
    """Steps whose folders a command names, and what those need, first things first."""
    out: list[Step] = []
    for step in STEPS:
        if re.search(rf"runs/{step.name}(?![\w-])", command) and step.command != command:
            out += [s for s in (*needed(step.command), step) if s not in out]
    return out


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--only", nargs="*", help="names of steps")
    parser.add_argument("--list", action="store_true", help="show the steps and whether they are done")
    flags = parser.parse_args()
    known = [step.name for step in STEPS]
    if unknown := set(flags.only or ()) - set(known):
        raise ValueError(f"--only: no step {min(unknown)!r}; there are {', '.join(known)}")
    for step in STEPS:
        if flags.only and step.name not in flags.only:
            continue
        done = (_RUNS / step.done).exists()
        command = step.command.replace("{data}", flags.shared)
        print(f"{'done' if done else 'to do'}: {step.name}: python {command}", flush=True)
        if done or flags.list:
            continue
        again = " --ckpt_path last" if (_RUNS / step.name / "ckpt" / "last.ckpt").exists() else ""
        spent = _RUNS / "costs" / f"{step.name.replace('/', '-')}.json"
        begun = (_RUNS / step.name).is_dir()
        kept = begun and spent.exists()  # what it left there cost as much
        earlier = float(json.loads(spent.read_text())["seconds"]) if kept else 0.0
        start = time.perf_counter()
        finished = subprocess.run(f"{sys.executable} {command}{again}", shell=True)
        if finished.returncode:
            raise ValueError(f"{step.name} ended with status {finished.returncode}; the same command goes on there")
        seconds = round(earlier + time.perf_counter() - start, 1)
        cost = {"seconds": seconds, "resumed": begun and not kept, "commit": commit()}
        with atomic_write(spent) as temporary:
            temporary.write_text(json.dumps(cost) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(run)
