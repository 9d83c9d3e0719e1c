"""Speed of a learned policy: decisions, updates and refits, against the numpy operation that bounds each.

The network is fitted on random rounds, because speed does not depend on its beliefs. Torch has one thread: a service
runs a worker on each core, and a second thread waits longer than it helps on so little work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
from registry import Options, Row, benchmark
from timing import each_ms, median_ms, seconds
from tqdm import tqdm

from ltrr.feedback.evidence.evidence import Evidence
from ltrr.policies.belief import Belief
from ltrr.policies.explorers import Softmax
from ltrr.policies.features import RetrievalFeatures
from ltrr.policies.table import Table
from ltrr.types import ActionRow, ImpressionRow, Pool, Query, Rounds

if TYPE_CHECKING:
    from ltrr.learners.relevance import RelevanceLearner

_NUM, _QUERY, _EACH, _BATCH, _QUERIES, _ROUNDS = 60, 121, 14, 256, 2_000, 10_000
_LEVELS = {"title": (0, 5, 10, 30, 100), "all": (0, 5, 10, 30, 100), "people": (0, 10, 30, 100), "dense": (0, 10, 100)}
_PAIRS, _PAGES, _ENTITIES, _VOCABULARY = 1_000_000, 5_000, 20_000, 8_000  # of the belief's evidence
_CUTS = (1, 2, 3, 5, 8, 10, 12, 15, 20, 30)


def _rounds(rng: np.random.Generator) -> Rounds:
    """Random rounds."""
    row, cut = rng.integers(0, _QUERIES, _ROUNDS), rng.integers(1, 20, _ROUNDS)
    query = rng.normal(size=(_QUERIES, _QUERY)).astype(np.float32)
    each = rng.normal(size=(_QUERIES, _NUM, _EACH)).astype(np.float32)
    clicks = (rng.random((_ROUNDS, _NUM)) < 0.1) & (np.arange(_NUM) < cut[:, None])
    return Rounds(row, query, each, cut, clicks)


def _fitted(device: str, rounds: Rounds) -> tuple[RelevanceLearner, float]:
    """A learner of these rounds, and the seconds of its fit."""
    import torch

    from ltrr.learners.relevance import RelevanceLearner

    torch.set_num_threads(1)
    learner = RelevanceLearner().to(device)
    return learner, seconds(lambda: learner.refit(rounds))


@benchmark()
def refit(options: Options) -> Iterator[Row]:
    """Rounds/s in which trunk and heads are refitted from all rounds."""
    learner, spent = _fitted(options.device, _rounds(np.random.default_rng(0)))
    yield Row("rounds", learner.hparams["epochs"] * _ROUNDS / spent, "rounds/s")


class _Decisions:
    """The parts of a decision for a batch of queries: values, softmax, draw."""

    def __init__(self, learner: RelevanceLearner, rounds: Rounds, num_queries: int):
        self.table = Table.of(_LEVELS, _CUTS, arm_costs=dict.fromkeys(_LEVELS, 1.0))
        self._learner, self._explorer, self._rng = learner, Softmax(), np.random.default_rng(0)
        self._features = RetrievalFeatures(rounds.query[:num_queries], rounds.candidates[:num_queries])
        self._cuts, self._prices = self.table.cuts - 1, 0.005 * self.table.costs
        values = self.values()
        probabilities = self._explorer.probabilities(values)
        self.parts: dict[str, Callable[[], object]] = {
            "values": self.values,
            "softmax": lambda: self._explorer.probabilities(values),
            "draw": lambda: self.table.draw(probabilities, self._rng),
            "exp": lambda: np.exp(values),
        }

    def values(self) -> np.ndarray:
        """(Q, decisions) recall of each decision less its price."""
        out = np.take(self._learner.values(self._features), self._cuts, axis=1)
        out -= self._prices
        return out

    def whole(self) -> object:
        """Decides for all queries."""
        return self.table.draw(self._explorer.probabilities(self.values()), self._rng)


@benchmark()
def decide(options: Options) -> Iterator[Row]:
    """Time of a decision among 3,000, alone and in batches of 256, against numpy's exp of as many numbers.

    A decision takes values from the network for 60 candidates, a softmax over depths of four arms and cuts, and a draw
    with its joint and marginal propensities.
    """
    rounds = _rounds(np.random.default_rng(0))
    learner, _ = _fitted(options.device, rounds)
    for num_queries, name, times in ((1, "alone", 300), (_BATCH, "batch", 40)):
        decisions = _Decisions(learner, rounds, num_queries)
        if name == "alone":
            yield Row("decisions", len(decisions.table), "decisions")
        parts = {part: Row(f"{name}, {part}", median_ms(run, times), "ms") for part, run in decisions.parts.items()}
        yield from parts.values()
        yield Row(f"{name}, whole", median_ms(decisions.whole, times), "ms").against(parts["exp"])


@benchmark()
def workers(options: Options) -> Iterator[Row]:
    """Decisions/s in batches of 256 by one worker, then by two at once, on the CPU."""
    rates = {}
    for number in (1, 2):
        with ProcessPoolExecutor(number, get_context("spawn")) as pool:
            rates[number] = sum(pool.map(_batches_per_s, [_BATCH] * number))
    alone = Row("1 worker", rates[1], "queries/s")
    yield alone
    yield Row("2 workers", rates[2], "queries/s").against(alone)


def _batches_per_s(num_queries: int) -> float:
    """Queries/s of one process beside others."""
    rounds = _rounds(np.random.default_rng(0))
    decisions = _Decisions(_fitted("cpu", rounds)[0], rounds, num_queries)
    return 1e3 * num_queries / median_ms(decisions.whole, 40)


@benchmark()
def update(options: Options) -> Iterator[Row]:
    """Time of one more round in the heads, by candidates shown, against one rank-one update in numpy."""
    rng = np.random.default_rng(0)
    rounds = _rounds(rng)
    learner, _ = _fitted(options.device, rounds)
    size = learner.hparams["hidden"] + 2
    inverse, x, mean = np.eye(size), rng.normal(size=size), np.zeros(size)

    def rank_one() -> None:
        gain = inverse @ x / (1.0 + x @ inverse @ x)
        mean[:] += gain * (1.0 - x @ mean)
        inverse[:] -= np.outer(gain, x @ inverse)

    limit = Row("rank one", median_ms(rank_one, 300), "ms")
    yield limit
    for shown in (1, 10, _NUM):
        one = rounds.first(1)._replace(cut=np.array([shown]), clicks=np.arange(_NUM)[None] == 0)
        yield Row(f"{shown} shown", median_ms(lambda one=one: learner.update(one), 300), "ms").against(limit)


@benchmark()
def belief(options: Options) -> Iterator[Row]:
    """One decision of the belief over 300 candidates where a million pairs are remembered, without encoding."""
    rng, width = np.random.default_rng(0), 300
    texts = [" ".join(f"w{w}" for w in rng.zipf(1.3, 3) % _VOCABULARY) for _ in range(_PAIRS // 30)]
    titles = (f"w{word}" for word in rng.zipf(1.3, _ENTITIES) % _VOCABULARY)
    evidence = Evidence({f"e{i}": i for i in range(_ENTITIES)}, titles, neighbours=20, distinct=1, cells=True)
    for start in tqdm(range(0, _PAIRS // 10, _PAGES), "pages", unit_scale=_PAGES, disable=None):
        pages, clicks = [], []
        for n in range(start, start + _PAGES):
            q = n // 3  # each text is asked three times, and shows ten other entities each time
            rows = ((q * 7919 + np.arange(10) + 10 * (n % 3)) % _ENTITIES).tolist()
            pages.append(ImpressionRow(f"i{n}", f"s{n}", f"c{n % 5_000}", n * 1_000_000, texts[q % len(texts)], rows))
            clicks.append(ActionRow(f"a{n}", f"i{n}", rows[n % 4], "click", n * 1_000_000, None))
        evidence.take(pages, clicks)
    policy = Belief(["all"], {"all": width}, budget=5, num=width, evidence=evidence, seed=0)
    scores = -np.sort(-rng.random((1, width, 2)), axis=1).astype(np.float32)
    empty = np.zeros((1, 0), np.float32)

    def decide(n: int) -> None:
        q = (n * 7) % len(texts)
        docs = ((q * 7919 + np.arange(width)) % _ENTITIES).astype(np.int32)[None]
        query = [Query("q", texts[q])]
        policy.revise(query, empty, Pool(("all", "fused"), docs, scores, scores), policy.decide(query, empty))

    decide(0)  # indexes the words of all remembered queries
    each = each_ms(decide, range(1, 1_001))
    yield Row(f"decision over {width} candidates, a million pairs, median", float(np.median(each)), "ms")
    yield Row("decision, p95", float(np.quantile(each, 0.95)), "ms")
