"""Customers of a simulation, and how a policy of cuts learns from what they click.

Legend: Q queries, M candidates looked at = cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import yaml
from _simulation import DEPTH, ORDER, Part

from ltrr.config import construct, find_class
from ltrr.evaluation.regret import Chosen
from ltrr.feedback.clicks import Cascade, ClickModel, PositionBased, attraction_of, simulate
from ltrr.policies.explorers import Explorer
from ltrr.policies.features import arms_of
from ltrr.policies.price import Price, best, price_for
from ltrr.policies.table import Table
from ltrr.types import RetrievalFeatures, Rounds

_BATCH = 100  # queries that are asked before the next update
PRICES = np.geomspace(0.02, 50, 60)  # around the price set on dev, for frontiers
_FIRST = 500  # rounds before the first fit; refits follow when there are twice as many
EXPLORE = "{class: ltrr.policies.explorers.Softmax, temperature: 0.02, floor: 0.05}"
_SATISFIED, _LEAVES = 0.7, 0.1  # a cascade's customer stops after a click, after none


def world_of(flags: Any, num: int, perfect: bool) -> World:
    """Customers who see everything and click on what is relevant, or as the flags say."""
    spec = dict(yaml.safe_load(flags.explore) or {})
    explorer: Explorer = construct("--explore", find_class("--explore", str(spec.pop("class", ""))), spec)
    click: ClickModel = PositionBased.power(num, 0.0 if perfect else flags.eta)
    if flags.cascade and not perfect:
        click = Cascade(_SATISFIED, _LEAVES)
    return World(explorer, click, 0.0 if perfect else flags.noise, flags.passes)


def world_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What outcomes depend on of a config's section `data`."""
    names = ("path", "qrels", "query_fields", "arms", "tune", "num_candidates", "features")
    return {name: settings["data"].get(name) for name in names}


@dataclass
class World:
    """How customers are, and how the policy learns from them.

    Attributes:
        explorer: of cuts. click: of those who see a page. noise: clicks on what is seen and not relevant.
        passes: over the queries, after which it is looked at.
    """

    explorer: Explorer
    click: ClickModel
    noise: float
    passes: Sequence[int]

    def learn(
        self, parts: Mapping[str, Part], module: Any, budget: float, rng: np.random.Generator, seed: int
    ) -> Iterator[tuple[int, Rounds]]:
        """Yields how many passes are over, and all rounds so far; the first is over the queries as before a change."""
        before, after = parts["before"], parts["train"]
        num_queries, num = after.grades.shape
        changes = before is not after
        known, grades = after.known, after.grades
        if changes:
            known = RetrievalFeatures(*(np.concatenate(both) for both in zip(before.known, known, strict=True)))
            grades = np.concatenate([before.grades, grades])
        table = Table.of({"all": [num]}, range(1, num + 1))
        attraction = attraction_of(grades, highest=after.highest, noise=self.noise)
        most = max(self.passes)
        order = np.concatenate([rng.permutation(num_queries) for _ in range(most)])
        if changes:
            order[num_queries:] += num_queries
        cuts, clicks = np.zeros(len(order), int), np.zeros((len(order), num), bool)
        depths = np.full(len(arms_of(after.names[1])), DEPTH)
        log = Rounds(order, known.query, known.candidates, cuts, clicks, after.names, depths=depths)
        price, fitted, due = Price(budget), False, _FIRST
        usual = np.cumsum(1 / np.arange(1, num + 1)) / np.sum(1 / np.arange(1, num + 1))  # before anything is known
        price.value = price_for(usual[None], table.costs, budget)
        starts = [p * num_queries + at for p in range(most) for at in range(0, num_queries, _BATCH)]
        for start, stop in pairwise([*starts, len(order)]):
            rows = order[start:stop]
            seen = RetrievalFeatures(known.query[rows], known.candidates[rows])
            values = module.values(seen) if fitted else np.tile(usual, (len(rows), 1))
            worth = values - price.value * table.costs
            unsure = None
            if self.explorer.unsure:
                unsure = module.deviations(seen) if fitted else np.ones_like(worth)
            _, decision = table.draw(self.explorer.probabilities(worth, unsure), rng)
            price.update(decision.cut)
            cuts[start:stop] = decision.cut
            shown = np.arange(num) < decision.cut[:, None]
            clicks[start:stop] = simulate(self.click, np.where(shown, attraction[rows], np.nan), rng).clicks
            whole = stop % num_queries == 0 and stop // num_queries in self.passes
            if stop >= due or whole:
                module.refit(log.first(stop), seed)
                fitted, due = True, due * 2 if stop >= due else due
                sample = rng.choice(num_queries, min(2_000, num_queries), replace=False)
                sample += rows[0] // num_queries * num_queries  # as they are now
                values = module.values(RetrievalFeatures(known.query[sample], known.candidates[sample]))
                price.value = price_for(values, table.costs, budget)
            elif fitted:
                module.update(log._replace(row=rows, cut=cuts[start:stop], clicks=clicks[start:stop]))
            if whole:
                yield stop // num_queries, log.first(stop)


def frozen(module: Any, dev: Part, test: Part, budget: float) -> Chosen:
    """What the module does with test queries, at the price that dev says and at others around it."""
    costs = np.arange(1, dev.grades.shape[1] + 1, dtype=float)
    price = price_for(module.values(dev.known), costs, budget)
    values = module.values(test.known)
    prices = [price, *(PRICES * (price or 1e-3))]
    cuts = np.stack([best(values, costs, each) + 1 for each in prices], axis=1)
    return Chosen(cuts, np.take_along_axis(test.recall[ORDER], cuts - 1, 1))
