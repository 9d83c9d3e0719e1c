"""What simulations of a policy share: queries as it knows them, and the truth about them.

Legend: Q queries, M candidates looked at = cuts, K candidates of the whole union, A arms, F features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ltrr.config import ConfigError, check_known, load_config
from ltrr.data.beir import open_dataset
from ltrr.evaluation.regret import query_groups, recall_of
from ltrr.feedback.clicks import attraction_of
from ltrr.files import atomic_write, content_key
from ltrr.funnel import in_order
from ltrr.fusion import ConvexFusion, reciprocal_ranks, take, union
from ltrr.policies.features import Feature, pool_features, pool_names
from ltrr.protocols import Ranker
from ltrr.simulation.allocations import best_slots, slot_order
from ltrr.system.system import System
from ltrr.types import Candidates, Pool, Qrels, Query, RetrievalFeatures

ORDER = "convex"  # the fused order that is cut
DEPTH, _SEARCHED = 100, 250  # candidates of each arm; queries searched at once
_GROUPS_OF_DEV = 5  # one group of queries in so many sets the price where there are no other queries for it


class Searched(NamedTuple):
    """Queries, what all arms returned for them, and the truth."""

    queries: list[Query]
    features: np.ndarray  # (Q, F) before retrieval
    pool: Pool  # of all arms, 100 deep each
    grades: np.ndarray  # (Q, K) of the pool's candidates
    highest: int  # grade of the data set
    positives: np.ndarray  # (Q,) gains of all there are, found or not
    groups: np.ndarray  # (Q,) number of each query's group

    @property
    def gains(self) -> np.ndarray:
        """(Q, K) what each candidate counts in recall."""
        return gain_of(self.grades, self.highest)

    def some(self, rows: np.ndarray) -> Searched:
        """Of the queries at these places."""
        pool = Pool(self.pool.arms, self.pool.docs[rows], self.pool.ranks[rows], self.pool.scores[rows])
        arrays = (self.features[rows], pool, self.grades[rows], self.highest, self.positives[rows], self.groups[rows])
        return Searched([self.queries[row] for row in rows.tolist()], *arrays)

    def without(self, arms: Sequence[str]) -> Searched:
        """Where these arms return nothing; a candidate of nobody else is no candidate."""
        off = np.isin(self.pool.arms, arms)
        ranks, scores = (np.where(off, np.nan, part) for part in (self.pool.ranks, self.pool.scores))
        docs = np.where(np.isnan(ranks).all(axis=2), -1, self.pool.docs)
        pool = Pool(self.pool.arms, docs, ranks.astype(np.float32), scores.astype(np.float32))
        return self._replace(pool=pool, grades=np.where(docs >= 0, self.grades, 0))


class Part(NamedTuple):
    """Queries as the policy knows them, and the truth."""

    known: RetrievalFeatures
    grades: np.ndarray  # (Q, M) in fused order
    recall: dict[str, np.ndarray]  # system -> (Q, M) recall of its first 1 to M
    highest: int  # grade of the data set
    groups: np.ndarray  # (Q,)
    names: tuple[tuple[str, ...], tuple[str, ...]]  # of the columns of `known`
    ids: list[str]  # of the queries
    slots: dict[int, np.ndarray]  # candidates -> (Q,) recall where each arm has the slots that were best on dev


def opened(flags: Any, overrides: Sequence[str], splits: Sequence[str]) -> tuple[dict[str, Any], System]:
    """The config, and the system that its data section describes."""
    known = {"model": None, "data": None, "seed_everything": None, "trainer": None}
    settings = load_config(flags.config, overrides, known)
    data = settings.get("data") or {}
    if not data.get("path"):
        raise ConfigError(f"config {flags.config}: data.path is not set; give --data FOLDER, ZIP or HUBNAME")
    qrels = data.get("qrels") or "qrels"
    dataset = open_dataset(data["path"], query_fields=data.get("query_fields") or (), qrels=qrels)
    for split in splits:
        if split not in dataset.splits:
            raise ConfigError(
                f"{data['path']}: has no split {split!r}, which a policy needs; it has {', '.join(dataset.splits)}"
            )
    arms = {name: spec for name, spec in (data.get("arms") or {}).items() if spec is not None}
    parts = {"arms": arms, "cache": data.get("cache"), "tune": {"splits": data.get("tune") or []}}
    parts |= {"policy": {"features": data.get("features")}}
    return settings, System({"data": {"qrels": qrels}, **parts}, dataset, hold_out=flags.split)


def searched(system: System, splits: Sequence[str]) -> Searched:
    """What all fused arms return for the queries of some splits that have a positive, cached."""
    names = system.fusion_arms
    parts = [system.dataset.split(split) for split in splits]
    queries = [q for part in parts for q in part.queries if any(grade > 0 for grade in part.qrels[q.id].values())]
    qrels: Qrels = {q: grades for part in parts for q, grades in part.qrels.items()}
    arms = {name: system.arm(name) for name in names}
    asked = [[query.id, query.text, query.context] for query in queries]
    identity = [[system.identity(name) for name in names], list(names), asked, qrels, DEPTH]
    path = system.folder / "policy" / f"{'-'.join(splits)}-{content_key(identity)}.npz"
    if not path.exists():
        pieces = []
        for start in tqdm(range(0, len(queries), _SEARCHED), f"search {', '.join(splits)}", unit="batch"):
            some = queries[start : start + _SEARCHED]
            pieces.append(union({name: arm.search(some, DEPTH) for name, arm in arms.items()}))
        width = max(piece.docs.shape[1] for piece in pieces)
        arrays = {"groups": query_groups(queries, qrels)}
        for name, fill in (("docs", -1), ("ranks", np.nan), ("scores", np.nan)):
            padded = [_widened(getattr(piece, name), width, fill) for piece in pieces]
            arrays[name] = np.concatenate(padded)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    columns = [feature.name for feature in system.context.columns]
    known = path.with_name(f"{path.stem}-{content_key(columns)}.npy")
    if not known.exists():
        with atomic_write(known) as temporary, temporary.open("wb") as file:
            np.save(file, system.context(queries), allow_pickle=False)
    features = np.load(known, allow_pickle=False)
    with np.load(path, allow_pickle=False) as file:
        pool, groups = Pool(tuple(names), file["docs"], file["ranks"], file["scores"]), file["groups"]
    rows = [dict(zip(system.corpus.rows([*qrels[q.id]]), qrels[q.id].values(), strict=True)) for q in queries]
    grades = np.array([[own.get(doc, 0) for doc in docs] for own, docs in zip(rows, pool.docs.tolist(), strict=True)])
    every = [system.dataset.split(split).qrels for split in system.dataset.splits]
    highest = max(grade for qrels in every for own in qrels.values() for grade in own.values())
    positives = np.array([gain_of(np.array([*own.values()]), highest).sum() for own in rows])
    return Searched(queries, features, pool, grades, int(highest), positives, groups)


def _widened(values: np.ndarray, width: int, fill: float) -> np.ndarray:
    pads = [(0, 0), (0, width - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, pads, constant_values=fill)


def gain_of(grades: np.ndarray, highest: int) -> np.ndarray:
    """What a candidate counts in recall: as much as customers are drawn to it, which is 1 for all of binary grades."""
    return np.nan_to_num(attraction_of(np.maximum(grades, 0).astype(float), highest=highest))


def fitted_order(part: Searched) -> ConvexFusion:
    """The fused order for these queries."""
    return ConvexFusion.fit(part.pool, part.grades, part.pool.arms)[0]


def order_of(system: System, dev: Searched) -> Ranker:
    """The config's fused order; that for dev where arms were trained on the queries that it would be fitted on."""
    return system.order() if system.tuning.judged("fusion").queries else fitted_order(dev)


def part_of(whole: Searched, order: Ranker, num: int, context: Sequence[Feature]) -> Part:
    """As a policy that cuts the fused order knows them; `num` candidates of each; context: columns of the features."""
    pieces = []
    for start in range(0, len(whole.queries), 1_000):  # the whole union of all queries at once would not fit
        some = whole.some(np.arange(start, min(start + 1_000, len(whole.queries))))
        fused = order.rank(some.queries, some.pool)
        pieces.append(_part(some, in_order(some.pool, fused), fused, num, context))
    known = RetrievalFeatures(
        *(np.concatenate([getattr(p.known, name) for p in pieces]) for name in RetrievalFeatures._fields)
    )
    recall = {name: np.concatenate([p.recall[name] for p in pieces]) for name in pieces[0].recall}
    return Part(
        known,
        np.concatenate([p.grades for p in pieces]),
        recall,
        whole.highest,
        whole.groups,
        pieces[0].names,
        [q.id for q in whole.queries],
        {},
    )


def _part(whole: Searched, pool: Pool, fused: Candidates, num: int, context: Sequence[Feature]) -> Part:
    grades = take(Pool(("grade",), whole.pool.docs, *[whole.grades[:, :, None]] * 2), fused).scores[:, :, 0]
    grades = np.nan_to_num(grades).astype(int)
    gains, seen = gain_of(grades, whole.highest), pool_features(pool, num)
    orders = {name: pool.ranks[:, :, a] for a, name in enumerate(pool.arms[:-1])}
    orders["rrf"] = -reciprocal_ranks(pool._replace(arms=pool.arms[:-1], ranks=pool.ranks[:, :, :-1]))
    orders[ORDER] = pool.ranks[:, :, -1]
    recall = {}
    for name, keys in orders.items():
        places = np.argsort(np.where(pool.docs >= 0, keys, np.inf), axis=1, kind="stable")  # NaN = not returned: last
        returned = np.isfinite(np.take_along_axis(keys, places, 1))
        own = recall_of(np.take_along_axis(gains, places, 1) * returned, whole.positives)
        recall[name] = np.pad(own, [(0, 0), (0, max(0, num - own.shape[1]))], mode="edge")[:, :num]
    shown = np.pad(grades, [(0, 0), (0, max(0, num - grades.shape[1]))])[:, :num].astype(np.float32)
    query = np.concatenate([whole.features, seen.query], axis=1)
    of_pool, each = pool_names(pool.arms[:-1], num)
    names = tuple(f.name for f in (*context, *of_pool)), tuple(f.name for f in each)
    return Part(
        RetrievalFeatures(query, seen.candidates),
        shown,
        recall,
        whole.highest,
        whole.groups,
        names,
        [q.id for q in whole.queries],
        {},
    )


def worlds(system: System, flags: Any, settings: Mapping[str, Any]) -> list[dict[str, Part]]:
    """train, dev and test queries as the policy knows them; one such dict, or one for each fold.

    Folds are of groups over all judged queries. Where there is a change, "before" has the train queries before it.
    """
    data = settings["data"]
    if "test" in (flags.learn, flags.price):
        raise ConfigError("--learn, --price: test queries neither teach nor set prices")
    if not flags.folds and flags.split == flags.learn:
        raise ConfigError(
            f"--split {flags.split}: these queries teach; what is learned from them is not tested on them"
        )
    num, context = int(data.get("num_candidates") or 60), system.context.columns
    if not flags.folds:
        found = {"train": searched(system, [flags.learn]), "test": None, "dev": None}
        for name, split in (("dev", flags.price), ("test", flags.split)):
            found[name] = found["train"] if split == flags.learn else searched(system, [split])
        if flags.price == flags.learn:
            rest = found["train"].groups % _GROUPS_OF_DEV == 0
            found["dev"], found["train"] = (found["train"].some(np.flatnonzero(part)) for part in (rest, ~rest))
        folds = [found]
    else:
        whole = searched(system, [s for s in ("train", "dev", "test") if s in system.dataset.splits])
        fold = _folds(whole.groups, flags.folds)
        folds = []
        for test in range(flags.folds):
            dev = (test + 1) % flags.folds
            rows = {"train": (fold != test) & (fold != dev), "dev": fold == dev, "test": fold == test}
            folds.append({name: whole.some(np.flatnonzero(mine)) for name, mine in rows.items()})
    plain = not flags.folds and flags.learn == "train"
    out = []
    for parts in folds:
        order = order_of(system, parts["dev"]) if plain else fitted_order(parts["train"])
        before = parts["train"]
        if flags.change:
            what, _, arm = flags.change.partition(":")
            check_known("--change", what, {"joins", "leaves"})
            check_known(f"--change {what}", arm, system.fusion_arms)
            if what == "joins":
                before = before.without([arm])
            else:
                parts = {name: part.without([arm]) for name, part in parts.items()}
        made = {name: part_of(part, order, num, context) for name, part in parts.items()}
        made["test"].slots.update({k: _slots(parts["dev"], parts["test"], order, k) for k in flags.budgets})
        out.append(made | {"before": part_of(before, order, num, context) if flags.change else made["train"]})
    return out


def _slots(dev: Searched, test: Searched, order: Ranker, num: int) -> np.ndarray:
    """(Q,) recall of test queries where arms, those first that weigh most in the fused order, fill their slots."""
    weights = getattr(order, "weights", {})
    arms = sorted(range(len(dev.pool.arms)), key=lambda a: -weights.get(dev.pool.arms[a], 0.0))
    slots, _ = best_slots(dev.pool.ranks[:, :, arms], dev.gains, dev.positives, num)
    places = slot_order(test.pool.ranks[:, :, arms], slots)
    found = np.where(places >= 0, np.take_along_axis(test.gains, places, 1), 0.0)
    return found.sum(axis=1) / test.positives


def _folds(groups: np.ndarray, num: int) -> np.ndarray:
    """(Q,) which of `num` folds of about equal size each query is in; a group is never torn."""
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold, held = np.zeros(len(names), int), np.zeros(num)
    for group in order:
        fold[group] = held.argmin()
        held[fold[group]] += sizes[group]
    return fold[np.searchsorted(names, groups)]


def same_world(folder: Path, arms: list, folds: Sequence[Mapping[str, Part]]) -> None:
    """ConfigError where a folder's outcomes were made with other builds of the arms, or other judgements."""
    named = [(name, part) for parts in folds for name, part in parts.items()]
    truth = [[name, len(part.ids), content_key(part.ids), float(part.grades.sum())] for name, part in named]
    key, mark = content_key(arms, truth), folder / "world.json"
    if mark.exists() and json.loads(mark.read_text()) != key and any(folder.glob("*.npz")):
        raise ConfigError(
            f"--out: {folder} has outcomes of other arms, indexes or judgements; remove it or name another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(mark) as temporary:
        temporary.write_text(json.dumps(key))


def shuffled(part: Part) -> Part:
    """With features of other queries."""
    order = np.random.default_rng(0).permutation(len(part.grades))
    return part._replace(known=RetrievalFeatures(part.known.query[order], part.known.candidates[order]))
