"""simulate --stream: systems serve a stream of queries that recur, and are scored before they learn.

    python scripts/simulate.py --stream --config configs/stream.yaml --data FOLDER --out DIR [--zipf 1] [--rounds 60000]
        [--mean-cut 5] [--seeds 10] [--first-seed 0] [--groups known] [--eta 1] [--noise 0.1] [--attraction 1]
        [--cascade] [--delay 0] [--duplicates 0.5] [--reformulated 0.1] [--fresh 0.2] [--in-order] [--page 10]
        [--rank] [--arm-costs '{dense: 3}'] [--alone] [--change drift|dies:ARM|joins:ARM|arrives] [--at 30000]
        [--dotted.overrides …]

Queries are drawn by Zipf's law from all judged ones. Every system sees the same queries, customers and random numbers,
and keeps a mean of --mean-cut candidates a query, explored ones among them. `rule` is the best of the systems that do
not learn, by recall on streams of train and dev queries (seeds 10 to 14); each has the price that holds the mean on the
very stream. Without train and dev queries it is `scaled`, and the belief is calibrated on clicks. Writes
DIR/results.json, table.md and stream.png; each seed's rounds are kept under DIR/rounds, so that a killed run goes on.

--groups known: only queries of train and dev, on which settings are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import yaml
from tqdm import tqdm

from ltrr.cli.arguments import arguments
from ltrr.config import ConfigError, check_known, find_class
from ltrr.evaluation.stream_report import (
    Asked,
    Served,
    by_round,
    by_stratum,
    paired,
    report,
    rounds_below,
    strata_of,
)
from ltrr.evaluation.tables import write_experiment
from ltrr.files import content_key
from ltrr.protocols import ComparesQueries, Ranker, Weighted, offers
from ltrr.simulation.changes import phases, texts_of
from ltrr.simulation.kept import check_world, kept
from ltrr.simulation.pools import JudgedPools
from ltrr.simulation.stream import (
    Arms,
    Customers,
    Played,
    Stream,
    in_order,
    play,
    play_still,
    reformulated,
    simon,
    times_before,
    zipf,
)
from ltrr.system.simulated import world_of
from ltrr.system.streams import (
    World,
    fitted_arguments,
    learns,
    queries_alike,
    section_with,
    stream_world,
    with_features,
)
from ltrr.system.system import System, open_systems

_CHOOSES = range(10, 15)  # seeds of the streams on which the rule is chosen
_REVISION = 1  # of what makes a system's rounds
NEW, NEW_OF = ("0", "1-9"), ("network", "belief")  # strata and systems compared there
FURTHER = ("alone", "arm_costs", "fresh", "in_order", "reformulated", "page", "rank")  # flags, unset by default
_SATISFIED = 0.7  # a cascade's customer stops after a click


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/stream.yaml",
        "runs/stream",
        lambda parser: (
            parser.add_argument("--stream", action="store_true", help="this command"),
            parser.add_argument("--zipf", type=float, default=1.0, help="exponent of Zipf's law"),
            parser.add_argument("--rounds", type=int, default=60_000),
            parser.add_argument("--mean-cut", type=float, default=5.0, help="mean candidates a query"),
            parser.add_argument("--seeds", type=int, default=10),
            parser.add_argument("--first-seed", type=int, default=0),
            parser.add_argument("--groups", choices=("all", "known"), default="all", help="known: train and dev"),
            parser.add_argument("--eta", type=float, default=1.0, help="place k is looked at with k^-eta"),
            parser.add_argument("--noise", type=float, default=0.1, help="clicks on what is seen and not relevant"),
            parser.add_argument("--attraction", type=float, default=1.0, help="clicks on what is seen and relevant"),
            parser.add_argument("--cascade", action="store_true", help="customers stop at what they want"),
            parser.add_argument("--duplicates", type=float, default=0.0, help="share of rounds in another text"),
            parser.add_argument("--fresh", type=float, help="share of rounds with new queries, in place of Zipf's law"),
            parser.add_argument("--in-order", action="store_true", help="queries as the data set, a log, has them"),
            parser.add_argument("--reformulated", type=float, default=0.0, help="share of rounds typed anew at once"),
            parser.add_argument("--page", type=int, help="places that customers see; default: the whole cut"),
            parser.add_argument("--rank", action="store_true", help="the config's ranker orders the cut first"),
            parser.add_argument("--arm-costs", help="YAML, arm -> cost of running it; default: free"),
            parser.add_argument("--alone", action="store_true", help="queries tell nothing of others like them"),
            parser.add_argument("--change", help="drift, dies:ARM, joins:ARM or arrives"),
            parser.add_argument("--at", type=int, help="round of the change; default: half of the rounds"),
            parser.add_argument("--delay", type=int, default=0, help="rounds until a click is known"),
        ),
    )  # fmt: skip
    for name in ("duplicates", "reformulated", "fresh"):
        if not 0 <= (getattr(flags, name) or 0) <= 1:
            raise ConfigError(f"--{name}: {getattr(flags, name)} is not a share from 0 to 1")
    if flags.fresh is not None and flags.in_order:
        raise ConfigError("--fresh, --in-order: one of them at a time")
    if flags.duplicates and (flags.fresh is not None or flags.in_order):
        raise ConfigError("--duplicates: goes with Zipf's law alone; leave --fresh and --in-order out")
    if flags.page is not None and flags.page < 1:
        raise ConfigError(f"--page: {flags.page} is below 1")
    if flags.at is not None and not (flags.change and 0 < flags.at < flags.rounds):
        raise ConfigError(f"--at: {flags.at} is not a round of a stream with --change")
    for name, least in (("seeds", 1), ("rounds", 1), ("mean_cut", 1), ("zipf", 0)):
        if getattr(flags, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(flags, name)} is below {least}")
    try:
        customers = Customers(
            flags.eta, flags.noise, flags.attraction, satisfied=_SATISFIED if flags.cascade else None, delay=flags.delay
        )
    except ValueError as error:
        raise ConfigError(f"--eta, --noise, --attraction, --delay: {error}") from None
    (system,) = open_systems(flags.config, overrides)
    results, asked, served = compare(system, flags, customers)
    shown = [name for name in ("fixed", "rule", "prior", "network", "boost", "belief") if name in served] or [*served]
    write_experiment(flags.out, results, report(results), stream=by_round(asked, served, shown))


def compare(system: System, flags: Any, customers: Customers) -> tuple[dict[str, Any], Asked, dict[str, Served]]:
    """results.json, who was asked, and what each system reached."""
    # 1) The queries, and what every system learns from labels.
    sections = {name: section for name, section in system.settings.stream.systems.items() if section is not None}
    if not sections:
        raise ConfigError("stream.systems: names no system; see configs/stream.yaml")
    world = stream_world(system)
    known = world.of("train", "dev")
    pools = known if flags.groups == "known" else world.pools
    if not len(pools.queries):
        raise ConfigError(f"{system.settings.data.path}: has no judged queries of train or dev")
    check_world(flags.out / "rounds", world_of(system, [pools]))
    sections = {name: section_with(system, section, flags.mean_cut) for name, section in sections.items()}
    train = world.of("train")
    fitted = {name: fitted_arguments(system, section, train) for name, section in sections.items()}
    sections = {name: section | fitted[name] for name, section in sections.items()}
    still = [name for name, section in sections.items() if not learns(system.policies.unpriced(section))]

    texts = texts_of([query.text for query in pools.queries], bool(flags.duplicates or flags.reformulated))
    at = None if flags.change is None else flags.rounds // 2 if flags.at is None else flags.at
    ranker = system.ranker if flags.rank else None
    if flags.rank and ranker is None:
        raise ConfigError("--rank: the config has no ranker; give --ranker.class and its arguments")
    # A seed's systems play one after the other, so one world is kept.
    worlds = lru_cache(maxsize=1)(lambda seed: phases(pools, flags.change, system.order(), seed))
    setting = _Setting(
        worlds, customers, texts, {} if flags.alone else queries_alike(system, texts), at, ranker, _arms(system, flags)
    )

    # 2) Every system serves the stream of every seed.
    played: dict[str, list[Played]] = {name: [] for name in sections}
    streams = []
    for seed in range(flags.first_seed, flags.first_seed + flags.seeds):
        streams.append(_stream(flags, len(pools.queries), seed))
        for name, section in sections.items():
            played[name].append(_rounds(system, flags, setting, section, name, streams[-1], name in still))
    served = {name: Served(*map(np.stack, zip(*each, strict=True))) for name, each in played.items()}

    # 3) The best rule, by train and dev.
    chosen = _best_rule(system, flags, sections, still, known) if still else None
    if chosen is not None:
        served = {"rule": served[chosen], **served}
    queries = np.stack([stream.asked for stream in streams])
    before = np.stack([times_before(texts, stream) for stream in streams])
    asked = Asked(queries, before, np.isin(queries, _tested(world, flags.groups)))
    results: dict[str, Any] = {
        "settings": {
            "dataset": system.dataset.name,
            "qrels": system.settings.data.qrels,
            "zipf": flags.zipf,
            "rounds": flags.rounds,
            "mean_cut": flags.mean_cut,
            "seeds": flags.seeds,
            "first_seed": flags.first_seed,
            "groups": flags.groups,
            "customers": vars(customers),
            "duplicates": flags.duplicates,
            **{name: getattr(flags, name) for name in FURTHER},
            "change": flags.change,
            "change_at": at,
            "rule": chosen,
            "rule_chosen_on": "queries of train and dev"
            if len(known.queries)
            else "nothing: there are no such queries",
            "systems": sections,
            "fused_order": _weights(system),
        },
        "strata": strata_of(asked, served),
        "paired": {},
    }
    of = "belief" if "belief" in served else [*served][-1]
    results["paired"] = paired(asked, served, of)
    results["paired_by_query"] = paired(asked, served, of, "by-query")
    every = by_stratum(asked)
    results["paired_new"] = {  # differences on queries that were never or seldom asked before
        stratum: {k: v for one in NEW_OF if one in served for k, v in paired(asked, served, one, stratum).items()}
        for stratum in NEW
        if every[stratum].any(axis=1).all()
    }
    if at is not None:
        others = {name: rounds_below(served[of], served[name], at) for name in served if name != of}
        results["rounds_until_above"] = others
    return results, asked, served


class _Setting(NamedTuple):
    """What all systems meet."""

    worlds: Callable[[int], tuple[JudgedPools, JudgedPools]]  # seed -> the pools before and after the change
    customers: Customers
    texts: list[list[str]]  # of each query
    alike: Mapping[str, Sequence[tuple[str, float]]]
    at: int | None  # round of the change
    ranker: Ranker | None
    arms: Arms


def _arms(system: System, flags: Any) -> Arms:
    costs = yaml.safe_load(flags.arm_costs) if isinstance(flags.arm_costs, str) else flags.arm_costs or {}
    if not isinstance(costs, Mapping) or not all(isinstance(c, int | float) and c >= 0 for c in costs.values()):
        raise ConfigError(f"--arm-costs: {flags.arm_costs} is no mapping from arms to costs of at least 0")
    names = (*system.drawn,)
    for name in costs:
        check_known("--arm-costs", name, names)
    return Arms(names, np.array([float(costs.get(name, 0.0)) for name in names]), system.order())


def _stream(flags: Any, num_queries: int, seed: int) -> Stream:
    if flags.in_order:
        stream = in_order(num_queries, flags.rounds, seed)
    elif flags.fresh is not None:
        stream = simon(num_queries, flags.rounds, flags.fresh, seed)
    else:
        stream = zipf(num_queries, flags.rounds, flags.zipf, seed, duplicates=flags.duplicates)
    return reformulated(stream, flags.reformulated) if flags.reformulated else stream


def _rounds(
    system: System, flags: Any, setting: _Setting, section: Mapping[str, Any], name: str, stream: Stream, still: bool
) -> Played:
    """A system's rounds with one seed; read where they were played before."""
    world = flags.zipf, flags.rounds, flags.groups, vars(setting.customers), flags.duplicates, flags.change, setting.at
    # What is not as usual; left out otherwise, so that rounds of before it could be are found.
    further = [[name, value] for name in FURTHER if (value := getattr(flags, name)) not in (None, False, 0.0)]
    own = getattr(find_class(f"stream.systems.{name}", section["class"]), "revision", None)  # of the policy's class
    key = content_key(_REVISION, section, world, *further, *([] if own is None else [own]))

    def simulate() -> dict[str, np.ndarray]:
        policy = system.policies.unpriced(section, stream.seed)
        first, later = (with_features(system, policy, pools) for pools in setting.worlds(stream.seed))
        if still:
            cut = len(stream.asked) if setting.at is None else setting.at
            parts = [(first, stream.part(slice(cut))), (later, stream.part(slice(cut, None)))]
            played = [play_still(policy, pools, part) for pools, part in parts if len(part.asked)]
            return dict(zip(Played._fields, map(np.concatenate, zip(*played, strict=True)), strict=True))
        if (comparing := offers(policy, ComparesQueries)) is not None:
            comparing.compare(setting.alike)
        with tqdm(total=flags.rounds, desc=f"{name}, seed {stream.seed}", unit="round", unit_scale=True) as bar:
            return play(
                policy,
                first,
                stream,
                setting.customers,
                texts=setting.texts,
                later=later,
                change_at=setting.at,
                page=flags.page,
                ranker=setting.ranker,
                arms=setting.arms,
                progress=bar.update,
            )._asdict()

    return Played(**kept(flags.out / "rounds" / f"{name}-{stream.seed}-{key}.npz", simulate))


def _best_rule(
    system: System, flags: Any, sections: Mapping[str, Mapping[str, Any]], still: list[str], known: JudgedPools
) -> str:
    """The system, of those that do not learn, with the highest recall on streams of train and dev queries."""
    if not len(known.queries):
        return "scaled" if "scaled" in still else still[0]
    streams = [_stream(flags, len(known.queries), seed) for seed in _CHOOSES]

    def recall(name: str) -> float:
        policy = system.policies.unpriced(sections[name])
        return float(np.mean([play_still(policy, known, stream).recall.mean() for stream in streams]))

    return max(still, key=recall)


def _tested(world: World, groups: str) -> np.ndarray:
    """Numbers of the queries that taught nothing."""
    return np.flatnonzero(world.split == "test") if groups == "all" else np.zeros(0, int)


def _weights(system: System) -> Any:
    weighted = offers(system.order(), Weighted)
    return "rrf" if weighted is None else {name: float(value) for name, value in weighted.weights.items()}
