"""Speed of a learned policy's decisions and updates, as ratios to what bare numpy needs in the same run.

OMP_NUM_THREADS=1 python scripts/benchmark_policy.py [--device cpu|cuda] [--threads 1] [--out runs/benchmark_policy]

    decide    values from the network for 60 candidates, softmax over about 3,000 decisions (depths of four arms and
              cuts), a draw with its joint and marginal propensities: one query at a time, and in batches of 256;
              beside numpy's exp of as many numbers
    update    one round more in the heads (closed form), by candidates shown; beside one rank-one update in numpy
    refit     rounds/s of the trunk and its heads from all rounds

The network is fitted on made-up rounds: speed does not depend on what it believes. One thread each: a service has a
worker a core, and on so little work a second thread waits longer than it helps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from ltrr.cli.arguments import main
from ltrr.files import atomic_write
from ltrr.learners.relevance import RelevanceLearner
from ltrr.policies.explorers import Softmax
from ltrr.policies.table import Table
from ltrr.types import RetrievalFeatures, Rounds

_NUM, _QUERY, _EACH, _BATCH, _QUERIES, _ROUNDS = 60, 121, 14, 256, 2_000, 10_000
_LEVELS = {"title": (0, 5, 10, 30, 100), "all": (0, 5, 10, 30, 100), "people": (0, 10, 30, 100), "dense": (0, 10, 100)}
_CUTS = (1, 2, 3, 5, 8, 10, 12, 15, 20, 30)


def median_ms(action: Callable[[], object], times: int) -> float:
    """Of several runs, after a warm-up."""
    spent = []
    for run in range(times + 3):
        start = time.perf_counter()
        action()
        if run >= 3:
            spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent))


def made_up(rng: np.random.Generator) -> Rounds:
    row, cut = rng.integers(0, _QUERIES, _ROUNDS), rng.integers(1, 20, _ROUNDS)
    query = rng.normal(size=(_QUERIES, _QUERY)).astype(np.float32)
    each = rng.normal(size=(_QUERIES, _NUM, _EACH)).astype(np.float32)
    clicks = (rng.random((_ROUNDS, _NUM)) < 0.1) & (np.arange(_NUM) < cut[:, None])
    return Rounds(row, query, each, cut, clicks)


def measure(device: str) -> dict[str, float]:
    rng = np.random.default_rng(0)
    rounds, module = made_up(rng), RelevanceLearner().to(device)
    start = time.perf_counter()
    module.refit(rounds)
    epochs = module.hparams["epochs"]
    found = {"refit_rounds_per_s": epochs * _ROUNDS / (time.perf_counter() - start)}

    table, explorer = Table.of(_LEVELS, _CUTS, arm_costs=dict.fromkeys(_LEVELS, 1.0)), Softmax()
    cuts, worth = table.cuts - 1, 0.005 * table.costs
    found["decisions"] = len(table)

    def values(known: RetrievalFeatures) -> np.ndarray:
        out = np.take(module.values(known), cuts, axis=1)
        out -= worth
        return out

    for size, name, times in ((1, "alone", 300), (_BATCH, "batch", 40)):
        known = RetrievalFeatures(rounds.query[:size], rounds.candidates[:size])
        believed = values(known)
        probabilities = explorer.probabilities(believed)
        parts = {
            "values": lambda known=known: values(known),
            "softmax": lambda believed=believed: explorer.probabilities(believed),
            "draw": lambda probabilities=probabilities: table.draw(probabilities, rng),
            "whole": lambda known=known: table.draw(explorer.probabilities(values(known)), rng),
            "exp": lambda believed=believed: np.exp(believed),
        }
        found |= {f"{name}_{part}_ms": median_ms(action, times) for part, action in parts.items()}
        found[f"{name}_to_exp"] = found[f"{name}_whole_ms"] / found[f"{name}_exp_ms"]
    found["batch_queries_per_s"] = 1e3 * _BATCH / found["batch_whole_ms"]

    size = module.hparams["hidden"] + 2
    inverse, x, mean = np.eye(size), rng.normal(size=size), np.zeros(size)

    def rank_one() -> None:
        gain = inverse @ x / (1.0 + x @ inverse @ x)
        mean[:] += gain * (1.0 - x @ mean)
        inverse[:] -= np.outer(gain, x @ inverse)

    found["rank_one_ms"] = median_ms(rank_one, 300)
    for shown in (1, 10, _NUM):
        one = rounds.first(1)._replace(cut=np.array([shown]), clicks=np.arange(_NUM)[None] == 0)
        found[f"update_{shown}_shown_ms"] = median_ms(lambda one=one: module.update(one), 300)
        found[f"update_{shown}_shown_to_rank_one"] = found[f"update_{shown}_shown_ms"] / found["rank_one_ms"]
    return found


def batches_of_a_worker(threads: int) -> float:
    """Queries/s in batches of one process beside others."""
    torch.set_num_threads(threads)
    return measure("cpu")["batch_queries_per_s"]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the network")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU; OMP_NUM_THREADS says it of numpy")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_policy"))
    flags = parser.parse_args()
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: here is no GPU; leave it out")
    torch.set_num_threads(flags.threads)
    found = {"device": flags.device, "threads": flags.threads} | measure(flags.device)
    if flags.device == "cpu":  # as a service runs: a worker a core
        with ProcessPoolExecutor(2, get_context("spawn")) as workers:
            rates = [*workers.map(batches_of_a_worker, [flags.threads] * 2)]
        found["two_workers_batch_queries_per_s"] = sum(rates)
    text = json.dumps({n: round(v, 4) if isinstance(v, float) else v for n, v in found.items()}, indent=1)
    flags.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(flags.out / "results.json") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(run)
