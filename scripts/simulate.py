"""A policy learns from simulated clicks; what it gains over the same number of candidates for every query.

python scripts/simulate.py --config configs/simulate.yaml --data FOLDER --out DIR [--seeds 10] [--budgets 5 10 20]
    [--passes 1] [--eta 1] [--noise 0.1] [--cascade] [--shuffle] [--no-perfect] [--log] [--folds 5] [--learn dev]
    [--change joins:ARM|leaves:ARM] [--weights] [--logger YAML] [--dotted.overrides …]

The config is a funnel's; its section `policy` names any policy, learner and explorer:
    --policy.learner.class ltrr.learners.linucb.LinUCB --policy.explore.class ltrr.policies.explorers.UCB
Customers ask each train query once a pass, in random order; the policy decides, the page shows the candidates that it
lets through, clicks teach it. Then it is frozen: its prices are set on dev so that its budget holds there, and test
queries are served. Base: the best system that does not learn, on dev at a fixed cut of the budget. Beside it the same
with perfect clicks: everything that is shown is looked at, and nothing else is clicked. Writes DIR/results.json,
table.md, config.yaml, frontier.png, regret.png and cuts.npz (cuts of test queries, for experiments/rank_costs.py). Each
seed's outcome is kept under DIR/seeds, so that a killed run goes on.

--log: also DIR/rounds-K.npz, what the first seed logged at each budget, for train.py.
--cascade: customers look from the top until they are satisfied; learners believe 1 / rank all the same.
--shuffle: the policy sees another query's text, features and candidates, so that there is nothing to gain.
--folds: all judged queries in so many folds of whole groups: one is tested, the next sets prices, the others teach.
--learn: another split than train, where arms were trained on train; --price likewise for dev. The same: split by group.
--weights: a further learner reorders the candidates from the same rounds (FusionWeightsLearner) and cuts them at K.
--change: after the first pass an arm joins, or falls silent; rows tell what one more pass teaches.
--logger: class and arguments of a Lightning logger that tracks the run; null = none.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from ltrr.cli import stream
from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError, find_class
from ltrr.evaluation.cut_report import CURVE, alike, compared, curve_of, frontier, regret, regret_of, report
from ltrr.evaluation.regret import Chosen, fixed, mean_of, oracle
from ltrr.evaluation.tables import write_experiment
from ltrr.feedback.clicks import Cascade, PositionBased
from ltrr.files import atomic_write, content_key
from ltrr.learners.fusion_weights import FusionWeightsLearner
from ltrr.learners.rounds_data import write_rounds
from ltrr.protocols import Policy, Refitted, offers
from ltrr.simulation.kept import check_world, kept
from ltrr.simulation.loop import Customers, Log, frozen, learn, serve
from ltrr.simulation.splits import Fold, by_group, by_split, make_fold
from ltrr.simulation.truth import ORDER, fitted_order
from ltrr.system.simulated import check_splits, num_of, order_of, pools_reader, section_of, settings_of, world_of
from ltrr.system.system import System, open_systems
from ltrr.types import RetrievalFeatures

_REVISION = 3  # of what makes a seed's outcome, kept ones of others are not used
_SATISFIED, _LEAVES = 0.7, 0.1  # a cascade's customer stops after a click, after none
_LOGGER = "{class: pytorch_lightning.loggers.WandbLogger, project: ltrr, offline: true}"


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/simulate.yaml",
        "runs/policy",
        lambda parser: (
            parser.add_argument("--seeds", type=int, default=10),
            parser.add_argument("--budgets", type=int, nargs="+", default=[5, 10, 20], help="mean candidates a query"),
            parser.add_argument("--passes", type=int, nargs="+", default=[1], help="over the train queries"),
            parser.add_argument("--eta", type=float, default=1.0, help="position k is looked at with k^-eta"),
            parser.add_argument("--noise", type=float, default=0.1, help="clicks on what is seen and not relevant"),
            parser.add_argument("--split", default="test", help="the queries that are cut, in place of test"),
            parser.add_argument("--learn", default="train", help="the queries that teach, in place of train"),
            parser.add_argument("--price", default="dev", help="the queries that set the price, in place of dev"),
            parser.add_argument("--folds", type=int, default=0, help="of all queries, in place of splits"),
            parser.add_argument("--change", help="joins:ARM or leaves:ARM, after the first pass"),
            parser.add_argument("--cascade", action="store_true", help="customers are not as learners believe"),
            parser.add_argument("--shuffle", action="store_true", help="the policy sees other queries' features"),
            parser.add_argument("--weights", action="store_true", help="beside it, learn arms' weights query by query"),
            parser.add_argument("--log", action="store_true", help="also write what the first seed logged"),
            parser.add_argument("--no-perfect", dest="perfect", action="store_false", help="not beside perfect clicks"),
            parser.add_argument("--logger", default=_LOGGER, help="YAML of a Lightning logger's class and arguments"),
        ),
    )  # fmt: skip
    check(flags)
    (system,) = open_systems(flags.config, overrides, hold_out=flags.split)
    check_splits(system, [] if flags.folds else [flags.learn, flags.price, flags.split])
    num = num_of(system)
    if max(flags.budgets) > num:
        raise ConfigError(f"--budgets: {max(flags.budgets)} is above policy.num, {num}, the deepest cut")

    # 1) The world: queries, what arms return for them, and what systems reach that do not learn.
    folds = folds_of(system, flags, num)
    check_world(flags.out / "seeds", world_of(system, [part.pools for fold in folds for part in fold[:4]]))
    ids = [query.id for query in folds[0].test.pools.queries]
    if flags.shuffle:
        folds = [fold.shuffled() for fold in folds]
    groups = np.concatenate([fold.test.pools.groups for fold in folds])
    recall = {name: np.concatenate([fold.test.recall[name] for fold in folds]) for name in folds[0].test.recall}
    results: dict[str, Any] = {"dataset": system.dataset.name, "queries": len(groups), "seeds": flags.seeds}
    results |= {"priced_on_itself": not flags.folds and flags.split == flags.price}
    results |= {"base": {}, "gap_closed": {}, "cost_saved": {}, "regret": {}, "systems": {}, "all": []}
    fronts, curves = {}, {}
    for budget in flags.budgets:
        # 2) The best system that does not learn, and hindsight.
        key = f"K={budget}"
        bases = [max(f.dev.recall, key=lambda n, f=f: f.dev.recall[n][:, budget - 1].mean()) for f in folds]
        base = np.concatenate([fold.test.recall[name] for fold, name in zip(folds, bases, strict=True)])
        results["base"][key] = " / ".join(sorted(set(bases)))
        systems = {name: fixed(each, budget)[None] for name, each in recall.items()}
        systems["slots"] = np.concatenate([fold.slots[budget] for fold in folds])[None]
        systems["oracle"] = oracle(recall[ORDER], budget)[None]

        # 3) The policy, with each seed: it learns, then it is frozen and tested.
        for clicks in ("simulated", "perfect") if flags.perfect else ("simulated",):
            outcomes = [
                [outcome(flags, system, f, fold, budget, seed, clicks == "perfect") for f, fold in enumerate(folds)]
                for seed in tqdm(range(flags.seeds), f"{key} {clicks}", unit="seed")
            ]
            for passes in sorted(flags.passes):
                chosen = [chosen_of(each, passes) for each in outcomes]
                row = compared(recall[ORDER], base, chosen, groups, budget)
                results["all"].append({"clicks": clicks, "passes": passes, "K": budget} | row)
                if clicks == "simulated" and passes == min(flags.passes):
                    results["gap_closed"][key], results["cost_saved"][key] = row["gap_closed"], row["cost_saved"]
                    systems["policy"] = np.stack([c.recall[:, 0] for c in chosen])
                    fronts[key] = chosen
            if clicks == "simulated":
                curves[budget] = alike([fold["curve"] for each in outcomes for fold in each])
                results["regret"][key] = regret_of(curves[budget])
                if flags.weights:
                    weights = [np.concatenate([fold["weights"] for fold in each]) for each in outcomes]
                    systems["weights by query"] = np.stack(weights)
        for name, values in systems.items():
            results["systems"].setdefault(name, {})[key] = mean_of(values, groups)._asdict()

    # 4) Tables, plots, and the cuts of test queries.
    if not (flags.folds or flags.change) and flags.learn == "train":
        cuts = {key: np.stack([c.cuts for c in seeds]).astype(np.int16) for key, seeds in fronts.items()}
        with atomic_write(flags.out / "cuts.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, split=flags.split, num=num, ids=np.array(ids), **cuts)  # type: ignore[arg-type]
    settings = system.settings.model_dump(exclude={"serve"})
    with atomic_write(flags.out / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    plots = {"frontier": frontier(recall[ORDER], fronts), "regret": regret(curves)}
    write_experiment(flags.out, results, report(results), **plots)
    track(flags, settings, results, curves)


def check(flags: Any) -> None:
    """ConfigError for flags that cannot be, or not together."""
    for name in ("seeds", "budgets", "passes"):
        if np.min(getattr(flags, name)) < 1:
            raise ConfigError(f"--{name}: {getattr(flags, name)} is below 1")
    if flags.folds and flags.folds < 3:
        raise ConfigError(f"--folds: {flags.folds} is below 3: one is tested, one sets prices, the others teach")
    if flags.folds and flags.log:
        raise ConfigError("--folds, --log: what is logged of folds would teach about test queries; give splits instead")
    if flags.shuffle and flags.change:
        raise ConfigError("--shuffle, --change: one of them at a time")


def policy_of(system: System, budget: float, perfect: bool = False, seed: int = 0) -> Policy:
    """The config's policy before it learned anything. seed: of what it draws."""
    return system.policies.unpriced(section_of(system, budget, perfect), seed)


def folds_of(system: System, flags: Any, num: int) -> list[Fold]:
    """The splits that the flags name, or folds of all judged queries."""
    read = pools_reader(system, policy_of(system, flags.budgets[0]))
    if flags.folds:
        several = by_group(read([s for s in ("train", "dev", "test") if s in system.dataset.splits]), flags.folds)
    else:
        several = [by_split(read, train=flags.learn, dev=flags.price, test=flags.split)]
    plain = not flags.folds and flags.learn == "train"
    orders = [order_of(system, parts.dev) if plain else fitted_order(parts.train) for parts in several]
    return [make_fold(p, order, num, flags.budgets, flags.change) for p, order in zip(several, orders, strict=True)]


def outcome(
    flags: Any, system: System, number: int, fold: Fold, budget: int, seed: int, perfect: bool
) -> dict[str, np.ndarray]:
    """Cuts and recall of test queries after each pass, and the curve of learning; read where they were made before.

    Of --weights also (Q,) recall at the budget in the order that is learned from the rounds of the first passes.
    """
    world = flags.eta, flags.noise, flags.cascade, flags.shuffle, flags.weights
    split = flags.learn, flags.price, flags.split, flags.folds, flags.change
    key = content_key(_REVISION, settings_of(system), sorted(flags.passes), world, split)
    path = flags.out / "seeds" / f"{key}-{budget}-{number}-{seed}{'-perfect' if perfect else ''}.npz"
    logged = flags.out / f"rounds-{budget}.npz" if flags.log and not (seed or number or perfect) else None
    mark = path.with_suffix(".logged")  # whose rounds are logged there
    if logged and not (logged.exists() and mark.exists()):
        path.unlink(missing_ok=True)

    def simulate() -> dict[str, np.ndarray]:
        policy, num = policy_of(system, budget, perfect, seed), num_of(system)
        model = PositionBased.power(num, 0.0 if perfect else flags.eta)
        looks = Cascade(_SATISFIED, _LEAVES) if flags.cascade and not perfect else model
        customers = Customers(looks, 0.0 if perfect else flags.noise)
        rng = np.random.default_rng([seed, budget, perfect, *[number] * (number > 0)])
        several = [fold.before, fold.train] if fold.changes else [fold.train]
        reached = {name: np.concatenate([part.recall[name] for part in several]) for name in fold.train.recall}
        arrays: dict[str, np.ndarray] = {}
        for passes, log in learn(policy, fold, customers, num=num, passes=flags.passes, rng=rng, seed=seed):
            arrays[f"{passes}/cuts"], arrays[f"{passes}/recall"] = frozen(policy, fold, num)
            arrays["curve"] = curve_of(log.row, log.cut, log.recall, reached)
            if flags.weights and "weights" not in arrays:
                arrays["weights"] = reordered(learner_of(policy), policy, log, fold, num, seed)[:, budget - 1]
            if logged:
                write_rounds(logged, log.rounds(learner_of(policy)))
                mark.touch()
        return arrays

    return kept(path, simulate)


def learner_of(policy: Policy) -> Refitted:
    """The policy as one that learns from rounds; ConfigError where it does not."""
    if (refitted := offers(policy, Refitted)) is None:
        raise ConfigError(f"--log, --weights: {type(policy).__name__} does not learn from rounds")
    return refitted


def reordered(refitted: Refitted, policy: Policy, log: Log, fold: Fold, num: int, seed: int) -> np.ndarray:
    """(Q, M) recall of test queries where the weights of the arms are learned from these rounds, query by query."""
    learner = FusionWeightsLearner()
    learner.refit(log.rounds(refitted), seed)
    features = serve(policy, fold.test.pools, fold.order, num).features
    all_of = np.arange(len(features))
    known = refitted.rounds(features, all_of, all_of, np.zeros((len(features), num), bool))
    order = learner.order(RetrievalFeatures(known.query, known.candidates))
    each = np.diff(fold.test.recall[ORDER], axis=1, prepend=0)
    return np.cumsum(np.take_along_axis(each, order, 1), axis=1)


def chosen_of(folds: Sequence[Mapping[str, np.ndarray]], passes: int) -> Chosen:
    """What a seed's policy did with the test queries of all folds."""
    cuts, recall = (np.concatenate([fold[f"{passes}/{part}"] for fold in folds]) for part in ("cuts", "recall"))
    return Chosen(cuts.astype(float), recall)


def track(flags: Any, settings: Mapping, results: Mapping, curves: Mapping[int, np.ndarray]) -> None:
    """Tells the run to the logger of --logger."""
    spec = yaml.safe_load(flags.logger)
    if not spec:
        return
    options = {key: value for key, value in spec.items() if key != "class"}
    options |= {"save_dir": str(flags.out), "name": flags.out.name}
    logger = find_class("--logger", str(spec.get("class", "")))(**options)
    logger.log_hyperparams({"settings": settings, "flags": {k: str(v) for k, v in vars(flags).items()}})
    for budget, curve in curves.items():
        for row in curve.mean(axis=0):
            metrics = {f"K={budget}/{name}": value for name, value in zip(CURVE[1:], row[1:].tolist(), strict=True)}
            logger.log_metrics(metrics | {f"K={budget}/rounds": row[0]})
    figures = [("gap_closed", "gap closed"), ("cost_saved", "cost saved")]
    logger.log_metrics({f"{key}/{named}": cell["mean"] for n, named in figures for key, cell in results[n].items()})
    for name in ("frontier", "regret"):
        if hasattr(logger, "log_image"):
            logger.log_image(name, [str(flags.out / f"{name}.png")])
    logger.finalize("success")


if __name__ == "__main__":
    main(stream.run if "--stream" in sys.argv else run)
