"""Estimates from one policy's log how much reward another policy would have earned, and says where the log cannot tell.

python scripts/ope.py --events sqlite:///runs/events.db --out DIR
    --policy '{class: ltrr.policies.fixed.FixedPolicy, depths: {title: 50}, cut: 20}'
    --policy '{class: ltrr.policies.cut.CutPolicy, model: runs/relevance-1/export, budget: 10}'
    --config configs/funnel.yaml [--policy.cut 20 …]
    The target is a section `policy`, as in a funnel's config, or the section of a config. Arms are those of the log;
    depths that the section does not name are the deepest in the log. Prices are set so that budgets hold on the log's
    rounds. A learned policy says how likely it would have decided as logged; any other policy is asked again and must
    decide without chance: rounds tell about it that happened to decide the same or, for pi, that share the depth of an
    arm or the cut. --logger NAME reads the rounds of one policy only. A model that was fitted on this log is judged
    too well by it.
python scripts/ope.py --events URL --sets --config FUNNEL.yaml --data FOLDER --out DIR [--arms.new.class …]
    May this arm be switched on, or more be ranked? The funnel of the config, with the arm, is asked the log's queries,
    without exploring. What it ranks is estimated from pages that showed other candidates, as the clicks that it would
    get if customers looked at all of it; how they look is estimated from the pages. Candidates that no page can show
    are bounded, and refused where they are many: let the policy explore them first (policy.explore.arm: NAME).
python scripts/ope.py --simulate [--seeds 40] [--sizes 1000 10000 100000] --out DIR
    Logs whose truth is known: error and coverage of every estimator by size of the log and overlap of the two policies;
    slates; a deterministic logger, which must be flagged; two nulls.
python scripts/ope.py --open-bandit FOLDER --out DIR
    FOLDER has {random,bts}/CAMPAIGN/CAMPAIGN.csv with item_id, position, click, propensity_score (Open Bandit, Saito et
    al. 2020). Each logger's clicks a round are estimated from the other's log, beside its true mean; the position is
    the context. Uniform random is known exactly. Of Bernoulli Thompson sampling (bts) the log has the probability of
    the item it drew only, and that changed with time: its mean probability by item and position is how often it drew
    the item there (the mean logged propensity is too high: items are drawn when likely), which intervals do not know.

Writes DIR/results.json, table.md, weights.png (weights of the rounds) and estimates.png. An estimate without support
has no interval, and the table says why. Intervals (95 %) hold no bias: of clipping and shrinking, of dm's model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from ltrr.cli.arguments import main
from ltrr.config import read_settings
from ltrr.data.open_bandit import read_open_bandit
from ltrr.evaluation import estimate as ope
from ltrr.evaluation.estimate_plots import plot_estimates, plot_weights
from ltrr.evaluation.replay import Log, replay
from ltrr.evaluation.sets import Page, SetValue, Target, pages_of, set_value
from ltrr.evaluation.tables import write_experiment
from ltrr.feedback.events import Reward, normalised
from ltrr.feedback.store import EventStore
from ltrr.files import atomic_write
from ltrr.protocols import Exploring, offers
from ltrr.simulation.bandit_logs import OVERLAPS, contextual, slates
from ltrr.system.policies import policy_of_log
from ltrr.system.system import open_systems
from ltrr.types import Query

_ASKED = 250  # queries that a funnel is asked at once
_OTHER = "of other depths or features"
_EXAMPLE = "{class: ltrr.policies.fixed.FixedPolicy, depths: {title: 50}, cut: 20}"
_REMOVED = {"--target", "--cut", "--model", "--budget", "--explore"}  # flags of version 0.1
Results = tuple[dict[str, Any], str, dict[str, np.ndarray]]  # results.json, table.md, label -> weights


def run() -> None:
    sys.path.insert(0, os.getcwd())  # so that `class: my_package.MyPolicy` is imported from the user's folder
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--simulate", action="store_true")
    mode.add_argument("--open-bandit", type=Path, metavar="FOLDER")
    mode.add_argument("--events", metavar="URL")
    parser.add_argument("--out", type=Path, default=Path("runs/ope"), help="folder (default runs/ope)")
    parser.add_argument("--seeds", type=int, default=40, help="of the simulation")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="rounds of its logs")
    parser.add_argument("--policy", metavar="YAML", help="section of the target")
    parser.add_argument("--config", type=Path, help="config whose section `policy` is the target")
    parser.add_argument("--sets", action="store_true", help="estimate the candidates that the funnel of --config ranks")
    parser.add_argument("--data", metavar="FOLDER", help="data set of --sets")
    parser.add_argument("--logger", metavar="NAME", help="only rounds that this policy logged")
    flags, rest = parser.parse_known_args()
    if removed := sorted(_REMOVED & {flag.partition("=")[0] for flag in rest}):
        raise ValueError(f"{removed[0]}: was removed; give the target as a section, --policy '{_EXAMPLE}'")
    if rest and not flags.config:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if flags.simulate:
        results, lines, weights = simulated(flags.seeds, flags.sizes)
    elif flags.open_bandit:
        results, lines, weights = open_bandit(flags.open_bandit)
    elif flags.sets:
        results, lines = sets_from_events(flags, rest)
        write_experiment(flags.out, results, lines)
        return
    else:
        results, lines, weights = from_events(flags.events, target_section(flags, rest), flags.logger)
    for name, text in {"results.json": json.dumps(results, indent=1), "table.md": lines}.items():
        with atomic_write(flags.out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    for name, figure in {"weights.png": plot_weights(weights), "estimates.png": plot_estimates(results)}.items():
        with atomic_write(flags.out / name) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    print(lines)
    print(f"written: {flags.out}/results.json, table.md, weights.png, estimates.png")


def target_section(flags: argparse.Namespace, overrides: Sequence[str]) -> Mapping[str, Any]:
    """The section of --policy or, with overrides, of --config."""
    if bool(flags.policy) == bool(flags.config):
        raise ValueError(f"--events: needs a target, --policy '{_EXAMPLE}' or --config FUNNEL.yaml, and not both")
    if flags.config:
        return read_settings(flags.config, overrides).policy
    try:
        section = yaml.safe_load(flags.policy)
    except yaml.YAMLError:
        section = None
    if not isinstance(section, Mapping):
        raise ValueError(f"--policy: {flags.policy!r} is no section; write '{_EXAMPLE}' (--logger chooses the rounds)")
    return section


def simulated(seeds: int, sizes: Sequence[int]) -> Results:
    if seeds < 2 or min(sizes) < 100:
        raise ValueError("--seeds, --sizes: at least 2 seeds and logs of 100 rounds are needed")
    pairs: dict[tuple[str, int, str], list[tuple[ope.Estimate, float]]] = defaultdict(list)  # estimates and truths
    weights = {}
    for seed in tqdm(range(seeds), "simulate", unit="seed"):
        for size in sizes:
            for overlap in (*OVERLAPS, "deterministic"):
                world = contextual(overlap, size, seed)
                log = ope.cross_fitted(ope.Logged(**world.log._asdict()), world.contexts)
                for name in ope.available(log):
                    pairs[overlap, size, name].append((ope.estimate(log, name), world.truth))
                if overlap == "deterministic":
                    continue
                weights[overlap] = ope.joint_weights(log)
                rng = np.random.default_rng(seed)
                null = ope.shuffled(log, rng)
                blind = log._replace(target=np.broadcast_to(log.target.mean(axis=0), log.target.shape))
                mixed = log._replace(target=log.target[rng.permutation(size)])
                for name in ("ips", "snips", "dr"):
                    pairs["rewards shuffled", size, name].append((ope.gain(null, name), 0.0))
                    pairs["contexts shuffled", size, name].append((ope.gain(mixed, name, over=blind), 0.0))
            if size <= 10_000:  # one matrix a round
                world = slates(size, seed)
                log = ope.cross_fitted(ope.Logged(**world.log._asdict()), world.contexts)
                for name in ("ips", "snips", "dr", "pi", "snpi"):
                    pairs["slates", size, name].append((ope.estimate(log, name), world.truth))
                by_marginals = ope.estimate(log._replace(parts=None), "pi")
                pairs["slates", size, "pi by marginals"].append((by_marginals, world.truth))
    rows = [_row(*key, values) for key, values in pairs.items()]
    order = [*OVERLAPS, "slates", "deterministic", "rewards shuffled", "contexts shuffled"]
    rows.sort(key=lambda row: (order.index(row["world"]), row["rounds"]))
    cells = []
    for row in rows:
        scale, unit = (1, "") if "shuffled" in row["world"] else (100, " %")
        numbers = [f"{row[key] * scale:.{2 if unit else 4}f}{unit}" for key in ("error", "bias", "spread")]
        numbers += ["–" if row["coverage"] is None else f"{row['coverage']:.0%}", f"{row['flagged']:.0%}"]
        cells.append([row["world"], f"{row['rounds']:,}", row["estimator"], *numbers, f"{row['effective']:,.0f}"])
    heads = "world, rounds, estimator, error, bias, standard error, coverage, flagged, effective"
    lines = [*_table(heads, cells), "", f"{seeds} worlds. Error: mean |estimate − truth|, of the truth; in"]
    lines += ["nulls it is 0, and numbers are rewards. Coverage: of the 95 % intervals, where there is support."]
    return {"mode": "simulate", "seeds": seeds, "rows": rows}, "\n".join(lines), weights


def _row(world: str, size: int, name: str, pairs: list[tuple[ope.Estimate, float]]) -> dict[str, Any]:
    values, truths = np.array([e.value for e, _ in pairs]), np.array([truth for _, truth in pairs])
    scale = np.where(truths, truths, 1.0)
    inside = [e.low <= truth <= e.high for e, truth in pairs if np.isfinite(e.low)]
    row: dict[str, Any] = {"world": world, "rounds": size, "estimator": name}
    row["error"] = float(np.abs((values - truths) / scale).mean())
    row["bias"] = float(((values - truths) / scale).mean())
    row["spread"] = float(np.mean([e.error for e, _ in pairs] / scale))
    row["coverage"] = float(np.mean(inside)) if inside else None
    row["flagged"] = 1 - len(inside) / len(pairs)
    return row | {"effective": float(np.mean([e.effective for e, _ in pairs]))}


def open_bandit(folder: Path) -> Results:
    campaigns = sorted(path.name for path in folder.glob("random/*") if path.is_dir())
    if not campaigns:
        raise ValueError(f"--open-bandit {folder}: has no folders random/CAMPAIGN; give the folder of random and bts")
    rows, weights = [], {}
    for campaign in campaigns:
        logs = {name: read_open_bandit(folder / name / campaign / f"{campaign}.csv") for name in ("random", "bts")}
        num = max(log.item.max() for log in logs.values()) + 1
        places = max(log.position.max() for log in logs.values()) + 1
        counts = np.zeros((places, num))
        np.add.at(counts, (logs["bts"].position, logs["bts"].item), 1.0)
        known = {"random": np.full((places, num), 1 / num), "bts": counts / counts.sum(axis=1, keepdims=True)}
        for target, logger in (("bts", "random"), ("random", "bts")):
            log, label = logs[logger], f"{campaign}: {target} from {logger}'s log"
            clicks = logs[target].click
            truth = ope.estimate(ope.Logged(clicks, *np.ones((2, len(clicks)))), "ips")
            logged = ope.Logged(log.click, log.propensity, known[target][log.position], log.item)
            if logger == "random":
                logged = logged._replace(logger=known["random"][log.position])
            logged = ope.cross_fitted(logged, np.eye(places)[log.position], precision=100.0)
            weights[label] = ope.joint_weights(logged)
            for name in ope.available(logged):
                estimate = ope.estimate(logged, name)
                apart = (estimate.value - truth.value) / np.hypot(estimate.error, truth.error)
                row = {"label": label, "estimator": name, "z": float(apart)}
                rows.append(row | {"estimate": _plain(estimate), "truth": _plain(truth)})
    cells = []
    for row in rows:
        estimate, truth = row["estimate"], row["truth"]
        numbers = [
            f"{estimate['value'] / truth['value'] - 1:+.0%}",
            f"{row['z']:+.1f}",
            f"{estimate['effective']:,.0f}",
        ]
        numbers += [f"{estimate['largest']:,.1f}", "; ".join(estimate["notes"])]
        cells.append([row["label"], row["estimator"], _cell(estimate), _cell(truth), *numbers])
    lines = _table("clicks a round of, estimator, estimate, true mean, error, z, effective, largest, notes", cells)
    lines += [
        "",
        "True mean: clicks in the target's own log. z: in standard errors. dm's interval leaves out its model's.",
    ]
    return {"mode": "open-bandit", "rows": rows}, "\n".join(lines), weights


def from_events(url: str, section: Mapping[str, Any], logger: str | None) -> Results:
    with _store(url) as store:
        log, without = Log.read(tqdm(store.rounds(), "read", unit="batch"), logger)
    logged, used, cut = replay(log, policy_of_log(section, log))
    rows = []
    for name in ope.available(logged):
        both = {"estimate": _plain(ope.estimate(logged, name)), "gain": _plain(ope.gain(logged, name))}
        rows.append({"label": "target", "estimator": name} | both)
    loggers = _loggers(logged, log.policies[used])
    cells = [[r["estimator"], _cell(r["estimate"]), _cell(r["gain"]), "; ".join(r["estimate"]["notes"])] for r in rows]
    heads = "logged by, rounds, mean reward, least propensity, without a choice, ran otherwise (left out)"
    lines = [*_table("estimator, value, gain over the logger, notes", cells), "", *_table(heads, loggers), ""]
    left, now = int((~used).sum()), log.decision.cut[used].mean()
    lines += [f"Target: {json.dumps(section, default=str)}, {cut:.2f} candidates in the mean, the log {now:.2f}."]
    lines += [f"Left out: {left:,} {_OTHER}; {without:,} impressions had no decision."]
    if logged.marginals is not None:
        lines += ["pi is exact where rewards add up over arms and cut, and the logger draws them independently."]
    results = {"mode": "events", "rows": rows, "policies": loggers, "target": section, "mean_cut": cut}
    results |= {"budget": section.get("budget"), "left_out": {_OTHER: left} if left else {}, "without": without}
    return results, "\n".join(lines), {"target": ope.joint_weights(logged)}


def sets_from_events(flags: argparse.Namespace, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What the funnel of --config would rank for the log's queries, estimated from the log's pages."""
    if not flags.config:
        raise ValueError("--sets: needs the funnel that is to be judged, --config FUNNEL.yaml")
    (system,) = open_systems(flags.config, [*overrides, *(["--data.path", json.dumps(flags.data)] * bool(flags.data))])
    row_of, reward = {entity: row for row, entity in enumerate(system.corpus.ids)}, Reward()
    numbers: dict[tuple[str, str], int] = {}
    pages, queries = [], []
    with _store(flags.events) as store:
        for _, seen, actions in (one for batch in tqdm(store.rounds(), "read", unit="batch") for one in batch):
            if flags.logger not in (None, seen.policy):
                continue
            number = numbers.setdefault((normalised(seen.query), str(replace(seen.context, time=None))), len(numbers))
            if number == len(queries):
                queries.append(Query(seen.id, seen.query, seen.context))
            rows = [row_of.get(entity, -1) for entity in seen.shown]
            worth = reward.of_entities(seen.time, actions)
            clicked = frozenset(row for row, entity in zip(rows, seen.shown, strict=True) if worth.get(entity, 0) > 0)
            explored = -1 if seen.explored is None else row_of.get(seen.explored, -1)
            session = f"s{seen.session}" if seen.session else f"i{seen.id}"
            pages.append(Page(number, session, rows, clicked, explored, seen.explored_propensity))
    if not pages:
        raise ValueError(f"--events {flags.events}: has no impressions of {flags.logger or 'any policy'}")
    funnel = system.funnel()
    if (exploring := offers(funnel.policy, Exploring)) is not None:
        funnel.policy = exploring.greedy()
    drawn = [funnel.draw(queries[s : s + _ASKED]).pool.docs for s in tqdm(range(0, len(queries), _ASKED), "ask")]
    width = max(docs.shape[1] for docs in drawn)
    rows = np.concatenate([np.pad(docs, [(0, 0), (0, width - docs.shape[1])], constant_values=-1) for docs in drawn])
    found = set_value(pages_of(pages), Target(rows, (rows >= 0).sum(axis=1)))
    refused = "; ".join(found.notes) or "–"
    cells = [[f"{len(pages):,}", _ends(found, ""), _ends(found, "gain"), f"{found.missing:.1%}", refused]]
    lines = _table("rounds, clicks a page if all is looked at, gain over the log, missing of what is new, notes", cells)
    plain = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in found._asdict().items()}
    return {"mode": "sets", "queries": len(queries), "ranked": float((rows >= 0).sum(axis=1).mean()), **plain}, lines


def _ends(found: SetValue, of: str) -> str:
    mean, low, high = (found.gain, found.gain_low, found.gain_high) if of else (found.value, found.low, found.high)
    return f"{mean:.4f} (no support)" if found.notes else f"{mean:.4f} ({low:.4f} to {high:.4f})"


def _store(url: str) -> EventStore:
    path = url.removeprefix("sqlite:///")
    if path != url and not Path(path).exists():
        raise ValueError(f"--events {url}: there is no such file")
    return EventStore(url)


def _loggers(logged: ope.Logged, policies: np.ndarray) -> list[list[str]]:
    """Rows of a table: who logged how many rounds, and with how much choice."""
    assert logged.executed is not None  # of every log that is replayed
    rows = []
    for policy in np.unique(policies):
        columns = logged.reward, logged.propensity, logged.executed
        reward, propensity, ran = (column[policies == policy] for column in columns)
        cells = [str(policy) or "(no name)", f"{len(reward):,}", f"{reward.mean():.4f}", f"{propensity.min():.2g}"]
        rows.append([*cells, f"{(propensity == 1).mean():.0%}", f"{(~ran).sum():,}"])
    return rows


def _table(heads: str, rows: list[list[str]]) -> list[str]:
    names = heads.split(", ")
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]


def _cell(estimate: Mapping[str, Any]) -> str:
    value = "–" if estimate["value"] is None else f"{estimate['value']:.4f}"
    if estimate["low"] is None:
        return f"{value} (no support)"
    return f"{value} ({estimate['low']:.4f} to {estimate['high']:.4f})"


def _plain(estimate: ope.Estimate) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in estimate._asdict().items()}


if __name__ == "__main__":
    main(run)
