"""Which queries teach a policy, which set its prices and which test it: splits of a data set, or folds of groups.

Knows judged pools; does not know policies or clicks. Legend: Q queries, M cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ltrr.config import check_known
from ltrr.protocols import Ranker
from ltrr.simulation.pools import JudgedPools
from ltrr.simulation.truth import recall_by_cut, recall_by_mean, recall_of_slots, rules_of

_PARTS_OF_DEV = 5  # one group of queries in so many sets prices where no other queries do


class Parts(NamedTuple):
    """Queries that teach, that set prices, and that test."""

    train: JudgedPools
    dev: JudgedPools
    test: JudgedPools


class Part(NamedTuple):
    """Queries as a policy sees them, in fused order, and the recall of systems that do not learn."""

    pools: JudgedPools
    recall: dict[str, np.ndarray]  # system -> (Q, M)

    def shuffled(self) -> Part:
        """The same where a policy sees another query's text, features and candidates: there is nothing to learn."""
        pools, order = self.pools, np.random.default_rng(0).permutation(len(self.pools.queries))
        other = pools.some(order)
        return self._replace(pools=pools._replace(queries=other.queries, features=other.features, pool=other.pool))


class Fold(NamedTuple):
    """A world that a policy learns in and is tested in."""

    before: Part  # the train queries in the first pass, before arms change; `train` where none does
    train: Part
    dev: Part
    test: Part
    order: Ranker
    slots: dict[int, np.ndarray]  # candidates -> (Q,) recall of test queries where each arm has the slots best on dev

    @property
    def changes(self) -> bool:
        """Whether arms are others after the first pass."""
        return self.before is not self.train

    def shuffled(self) -> Fold:
        """The same where a policy sees other queries' features."""
        train = self.train.shuffled()
        return self._replace(before=train, train=train, dev=self.dev.shuffled(), test=self.test.shuffled())


def by_split(read: Callable[[Sequence[str]], JudgedPools], *, train: str, dev: str, test: str) -> Parts:
    """Parts that are splits; one that teaches and sets prices is halved by group. read: splits -> their pools."""
    if "test" in (train, dev):
        raise ValueError("--learn, --price: test queries neither teach nor set prices")
    if test == train:
        raise ValueError(f"--split {test}: these queries teach; what is learned from them is not tested on them")
    pools = {split: read([split]) for split in dict.fromkeys((train, dev, test))}
    if dev != train:
        return Parts(pools[train], pools[dev], pools[test])
    sets_prices = pools[train].groups % _PARTS_OF_DEV == 0
    prices, teaches = (pools[train].some(np.flatnonzero(part)) for part in (sets_prices, ~sets_prices))
    return Parts(teaches, prices, pools[test])


def by_group(whole: JudgedPools, num: int) -> list[Parts]:
    """`num` folds of whole groups: one tests, the next sets prices, the others teach."""
    fold, out = fold_of_groups(whole.groups, num), []
    for test in range(num):
        dev = (test + 1) % num
        rows = (fold != test) & (fold != dev), fold == dev, fold == test
        out.append(Parts(*(whole.some(np.flatnonzero(part)) for part in rows)))
    return out


def make_fold(parts: Parts, order: Ranker, num: int, budgets: Sequence[int], change: str | None = None) -> Fold:
    """Queries in fused order, with the recall of systems that do not learn.

    Args:
        num: M. budgets: candidates for which slots of arms are chosen.
        change: joins:ARM or leaves:ARM, after the first pass; None = arms stay.
    """
    before = parts.train
    if change:
        kind, _, arm = change.partition(":")
        check_known("--change", kind, {"joins", "leaves"})
        check_known(f"--change {kind}", arm, before.pool.arms)
        if kind == "joins":
            before = before.without([arm])
        else:
            parts = Parts(*(part.without([arm]) for part in parts))

    rules = rules_of(parts.train.fused(order), num)

    def made(pools: JudgedPools) -> Part:
        fused = pools.fused(order)
        of_rules = {name: recall_by_mean(rule, fused, num) for name, rule in rules.items()}
        return Part(fused, recall_by_cut(fused, num) | of_rules)

    train, dev, test = map(made, parts)
    slots = {budget: recall_of_slots(dev.pools, test.pools, order, budget) for budget in budgets}
    return Fold(made(before) if change else train, train, dev, test, order, slots)


def fold_of_groups(groups: np.ndarray, num: int) -> np.ndarray:
    """(Q,) which of `num` folds of about equal size each query is in; a group is never torn."""
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold, filled = np.zeros(len(names), int), np.zeros(num)
    for group in order:
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    return fold[np.searchsorted(names, groups)]
