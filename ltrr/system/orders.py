"""The fused order and the ranker of a config, with the weights that it leaves free fitted on judged queries.

Knows fusion, rankers and what tuning gives; does not know policies or features. Legend: Q queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ltrr.config import ConfigError, FusionSection, check_known, construct
from ltrr.funnel import FusedOrder
from ltrr.fusion import ConvexFusion, NothingToFit, OnlyArms, ReciprocalRankFusion, union
from ltrr.protocols import Ranker, TunableRanker
from ltrr.system.indexes import Indexes, basis
from ltrr.system.parts import Parts, class_of
from ltrr.system.tuning import Judged, Tuning, halves, some
from ltrr.types import Pool

DEPTH = 100  # candidates of each arm on which fusion weights are fitted
_RANKED = 300  # queries on which the ranker's weight is fitted: one number, and every pair of query and document costs
_BESIDE = ("popular", "personal", "fresh")  # arms that do not read the query: they are fused where a config names them


class Orders:
    """How the candidates of one data set's arms are ordered."""

    def __init__(
        self, fusion: FusionSection, indexes: Indexes, tuning: Tuning, parts: Parts, ranked: int | None = None
    ) -> None:
        """ranked: candidates that a ranker gets; None = the fused order is the page."""
        self._fusion, self._indexes, self._tuning, self._parts = fusion, indexes, tuning, parts
        self._ranked = ranked
        if len(set(fusion.arms or ())) < len(fusion.arms or ()):
            raise ConfigError(f"fusion.arms: {', '.join(fusion.arms or ())} names an arm twice")
        for key, names in (("arms", fusion.arms), ("weights", fusion.weights)):
            for name in names or ():
                check_known(f"fusion.{key}", name, indexes.specs)

    @property
    def arms(self) -> list[str]:
        """The arms that are fused: those the config names, or all usable ones that read the query."""
        named, usable = self._fusion.arms, self._indexes.usable()
        beside = () if named else _BESIDE
        fused = [name for name in (named or self._indexes.specs) if name in usable and name not in beside]
        if not fused:
            raise ConfigError("fusion.arms: no arm is left to fuse; those with `model: null` are not there")
        return fused

    def order(self, method: str | None = None) -> Ranker:
        """The fused order: `rrf`, or `convex` with the config's weights, fitted ones, or equal ones without queries.

        Scores that are probabilities, such as memory's, are added as they are, with weight 1 where the config has none.
        """
        fusion = self._fusion
        if (method or fusion.method) == "rrf":
            return OnlyArms(self.arms, ReciprocalRankFusion(fusion.k))
        unscaled = [name for name in self.arms if self._indexes.gives_probabilities(name)]
        arms = [name for name in self.arms if name not in unscaled]
        weights = {**dict.fromkeys(unscaled, 1.0), **(fusion.weights or {})}
        if not arms or any(name in weights for name in arms):
            return ConvexFusion(weights, fusion.norm or "minmax", unscaled)
        equal = ConvexFusion.equal(arms)
        if not (judged := self._tuning.judged("fusion")).queries:
            return ConvexFusion(equal.weights | weights, equal.norm, unscaled)

        def fit() -> dict[str, Any]:
            pool = union({name: self._indexes.arm(name).search(judged.queries, DEPTH) for name in arms})
            grades, parts = self.grades(judged, pool), halves(judged.queries)
            try:
                fitted, refused = ConvexFusion.choose(pool, grades, arms, parts, self._ranked)
            except NothingToFit:
                return {"weights": equal.weights, "norm": equal.norm}
            return {"weights": fitted.weights, "norm": fitted.norm, **({"refused": refused} if refused else {})}

        for name in arms:
            self._indexes.arm(name)  # built and opened
        identities = [self._indexes.identity(name) for name in arms]
        fitted = self._tuning.fitted("convex", (identities, judged.key, self._ranked, 2), fit, judged.name)
        return ConvexFusion(fitted["weights"] | weights, fitted["norm"], unscaled)

    def identity(self) -> Any:
        """What the fused order depends on beside the arms' builds."""
        order = self.order()
        return vars(order) if isinstance(order, ConvexFusion) else self._fusion.model_dump()

    def grades(self, judged: Judged, pool: Pool) -> np.ndarray:
        """(Q, K) grades of a pool's candidates; unjudged ones and pads are 0."""
        out = np.zeros(pool.docs.shape)
        for i, query in enumerate(judged.queries):
            for doc, grade in judged.qrels[query.id].items():
                out[i, pool.docs[i] == self._indexes.corpus.row(doc)] = max(grade, 0)
        return out

    def ranker(self, spec: Mapping[str, Any], draw: Callable[[Sequence], Pool], drawn: Sequence[Any]) -> Ranker:
        """A config's ranker; what it leaves free is fitted on what the funnel draws for the queries of fusion.

        draw: queries -> the cut pool that is ranked. drawn: what that depends on.
        """
        spec = {key: value for key, value in spec.items() if value is not None}
        cls = class_of("ranker", spec)
        del spec["class"]
        arguments = self._parts.arguments("ranker", cls, spec, order=FusedOrder())
        judged = self._tuning.judged("fusion")
        queries = some([q for q in judged.queries if any(judged.qrels[q.id].values())], _RANKED)
        if issubclass(cls, TunableRanker) and "weight" not in spec and queries:

            def fit() -> dict[str, Any]:
                return construct("ranker", cls, arguments).tune_on(queries, draw(queries), judged.qrels)

            scorer = arguments.get("scorer")
            basis_of = basis(cls, spec, self._indexes.corpus)
            depends = (basis_of, spec, scorer.id if scorer else None, [*drawn], judged.key)
            arguments |= self._tuning.fitted("ranker", depends, fit, f"{len(queries)} queries of {judged.name}")
        return construct("ranker", cls, arguments)
