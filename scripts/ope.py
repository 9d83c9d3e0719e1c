"""What a policy would have earned, estimated from another policy's log, with what the log cannot tell.

python scripts/ope.py --simulate [--seeds 40] [--sizes 1000 10000 100000] --out DIR
    Logs whose truth is known: error and coverage of every estimator by size of the log and overlap of the two policies;
    slates; a deterministic logger, which must be flagged; two nulls.
python scripts/ope.py --open-bandit FOLDER --out DIR
    FOLDER has {random,bts}/CAMPAIGN/CAMPAIGN.csv with item_id, position, click, propensity_score (Open Bandit, Saito et
    al. 2020). Each logger's clicks a round are estimated from the other's log, beside its true mean; the position is
    the context. Uniform random is known exactly. Of Bernoulli Thompson sampling (bts) the log has the probability of
    the item it drew only, and that changed with time: its mean probability by item and position is how often it drew
    the item there (the mean logged propensity is too high: items are drawn when likely), which intervals do not know.
python scripts/ope.py --events sqlite:///runs/events.db --target '{"title": 50, "people": 0}' --cut 20 --out DIR
    The target: always these depths (arms not named are off) and this cut. Only rounds that happened to decide so tell
    about it, or, for pi, those whose depth of an arm or cut is the same. --policy NAME: only rounds of that policy.
python scripts/ope.py --events sqlite:///runs/events.db --model runs/bandit-1/export --budget 10 --out DIR
    The target: arms as they were drawn, cuts as this model would, at the price at which they are 10 in the mean here;
    the best for each, or as --explore YAML draws. A model that was fitted on this log is judged too well by it.

Writes DIR/results.json, table.md, weights.png (weights of the rounds) and estimates.png. An estimate without support
has no interval, and the table says why. Intervals (95 %) hold no bias: of clipping and shrinking, of dm's model.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from _ope_plots import plot, plot_weights
from _ope_worlds import OVERLAPS, contextual, shuffled, slates
from tqdm import tqdm

from ltrr.cli.arguments import main
from ltrr.config import construct, find_class
from ltrr.evaluation import estimate as ope
from ltrr.feedback.events import Allocation, Reward
from ltrr.feedback.rounds import known_of, told
from ltrr.feedback.store import EventStore
from ltrr.files import atomic_write
from ltrr.policies.features import Standard
from ltrr.policies.price import price_for
from ltrr.types import RetrievalFeatures

_COLUMNS = ("item_id", "position", "click", "propensity_score")


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--simulate", action="store_true")
    mode.add_argument("--open-bandit", type=Path, metavar="FOLDER")
    mode.add_argument("--events", metavar="URL")
    parser.add_argument("--out", type=Path, default=Path("runs/ope"), help="folder (default runs/ope)")
    parser.add_argument("--seeds", type=int, default=40, help="of the simulation")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="rounds of its logs")
    parser.add_argument("--target", help="JSON: arm -> depth")
    parser.add_argument("--cut", type=int, help="candidates that the target ranks")
    parser.add_argument("--model", type=Path, help="export of a policy of cuts, in place of --target and --cut")
    parser.add_argument("--budget", type=float, help="its mean candidates")
    parser.add_argument(
        "--explore", default="{class: ltrr.policies.explorers.EpsilonGreedy, epsilon: 0.0}", help="its draws"
    )
    parser.add_argument("--policy", help="only rounds of this policy")
    flags = parser.parse_args()
    if flags.simulate:
        results, lines, weights = simulated(flags)
    else:
        results, lines, weights = open_bandit(flags.open_bandit) if flags.open_bandit else from_events(flags)
    for name, text in {"results.json": json.dumps(results, indent=1), "table.md": lines}.items():
        with atomic_write(flags.out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    for name, figure in {"weights.png": plot_weights(weights), "estimates.png": plot(results)}.items():
        with atomic_write(flags.out / name) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    print(lines)
    print(f"written: {flags.out}/results.json, table.md, weights.png, estimates.png")


def simulated(flags: Any) -> tuple[dict, str, dict[str, np.ndarray]]:
    if flags.seeds < 2 or min(flags.sizes) < 100:
        raise ValueError("--seeds, --sizes: at least 2 seeds and logs of 100 rounds are needed")
    found: dict[tuple[str, int, str], list[tuple[ope.Estimate, float]]] = defaultdict(list)
    weights = {}
    for seed in tqdm(range(flags.seeds), "simulate", unit="seed"):
        for size in flags.sizes:
            for overlap in (*OVERLAPS, "deterministic"):
                log, contexts, truth = contextual(overlap, size, seed)
                log = ope.cross_fitted(log, contexts)
                for name in ope.available(log):
                    found[overlap, size, name].append((ope.estimate(log, name), truth))
                if overlap == "deterministic":
                    continue
                weights[overlap] = log.target[np.arange(size), log.action] / log.propensity
                rng = np.random.default_rng(seed)
                null = shuffled(log, rng)
                blind = np.broadcast_to(log.target.mean(axis=0), log.target.shape)
                mixed = log._replace(target=log.target[rng.permutation(size)])
                for name in ("ips", "snips", "dr"):
                    found["rewards shuffled", size, name].append((ope.gain(null, name), 0.0))
                    gain = ope.gain(mixed, name, over=log._replace(target=blind))
                    found["contexts shuffled", size, name].append((gain, 0.0))
            if size <= 10_000:  # one matrix a round
                log, contexts, truth = slates(size, seed)
                log = ope.cross_fitted(log, contexts)
                for name in ("ips", "snips", "dr", "pi", "snpi"):
                    found["slates", size, name].append((ope.estimate(log, name), truth))
                only = ope.estimate(log._replace(parts=None), "pi")
                found["slates", size, "pi by marginals"].append((only, truth))
    rows = [_row(*key, pairs) for key, pairs in found.items()]
    order = [*OVERLAPS, "slates", "deterministic", "rewards shuffled", "contexts shuffled"]
    rows.sort(key=lambda row: (order.index(row["world"]), row["rounds"]))
    cells = []
    for row in rows:
        scale, unit = (1, "") if "shuffled" in row["world"] else (100, " %")
        numbers = [f"{row[key] * scale:.{2 if unit else 4}f}{unit}" for key in ("error", "bias", "spread")]
        numbers += ["–" if row["coverage"] is None else f"{row['coverage']:.0%}", f"{row['flagged']:.0%}"]
        cells.append([row["world"], f"{row['rounds']:,}", row["estimator"], *numbers, f"{row['effective']:,.0f}"])
    heads = "world, rounds, estimator, error, bias, standard error, coverage, flagged, effective"
    lines = [*_table(heads, cells), "", f"{flags.seeds} worlds. Error: mean |estimate − truth|, of the truth; in"]
    lines += ["nulls it is 0, and numbers are rewards. Coverage: of the 95 % intervals, where there is support."]
    return {"mode": "simulate", "seeds": flags.seeds, "rows": rows}, "\n".join(lines), weights


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


def read_log(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise ValueError(f"{path}: there is no such file; --open-bandit takes a folder with {{random,bts}}/men/men.csv")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: has no column {missing[0]!r}; an Open Bandit log has {', '.join(_COLUMNS)}")
        if not (rows := [(reader.line_num, row) for row in reader]):
            raise ValueError(f"{path}: has no rows; give a log of Open Bandit")
    bounds = {"item_id": (0, 99_999), "position": (1, 99), "click": (0, 1e9), "propensity_score": (1e-12, 1)}
    out = {name: np.zeros(len(rows)) for name in _COLUMNS}
    for place, (line, row) in enumerate(rows):
        for name, (least, most) in bounds.items():
            with suppress(TypeError, ValueError):
                out[name][place] = value = float(row[name])
                if least <= value <= most and (name not in ("item_id", "position") or value % 1 == 0):
                    continue
            raise ValueError(f"{path}, line {line}: {name} is {row[name]!r}, not from {least:g} to {most:g}: mend it")
    return out


def open_bandit(folder: Path) -> tuple[dict, str, dict[str, np.ndarray]]:
    campaigns = sorted(path.name for path in folder.glob("random/*") if path.is_dir())
    if not campaigns:
        raise ValueError(f"--open-bandit {folder}: has no folders random/CAMPAIGN; give the folder of random and bts")
    rows, weights = [], {}
    for campaign in campaigns:
        logs = {name: read_log(folder / name / campaign / f"{campaign}.csv") for name in ("random", "bts")}
        num = int(max(log["item_id"].max() for log in logs.values())) + 1
        places = int(max(log["position"].max() for log in logs.values()))
        at = {name: (log["position"].astype(int) - 1, log["item_id"].astype(int)) for name, log in logs.items()}
        drawn_often = np.zeros((places, num))
        np.add.at(drawn_often, at["bts"], 1.0)
        known = {"random": np.full((places, num), 1 / num), "bts": drawn_often / drawn_often.sum(axis=1, keepdims=True)}
        for target, logger in (("bts", "random"), ("random", "bts")):
            own, log = logs[target], logs[logger]
            truth = ope.estimate(ope.Logged(own["click"], *np.ones((2, len(own["click"])))), "ips")
            (position, item), label = at[logger], f"{campaign}: {target} from {logger}'s log"
            logged = ope.Logged(log["click"], log["propensity_score"], known[target][position], item)
            if logger == "random":
                logged = logged._replace(logger=known["random"][position])
            logged = ope.cross_fitted(logged, np.eye(places)[position], precision=100.0)
            weights[label] = logged.target[np.arange(len(item)), item] / logged.propensity
            for name in ope.available(logged):
                found = ope.estimate(logged, name)
                apart = (found.value - truth.value) / np.hypot(found.error, truth.error)
                row = {"label": label, "estimator": name, "z": float(apart)}
                rows.append(row | {"estimate": _plain(found), "truth": _plain(truth)})
    cells = []
    for row in rows:
        found, truth = row["estimate"], row["truth"]
        numbers = [f"{found['value'] / truth['value'] - 1:+.0%}", f"{row['z']:+.1f}", f"{found['effective']:,.0f}"]
        numbers += [f"{found['largest']:,.1f}", "; ".join(found["notes"])]
        cells.append([row["label"], row["estimator"], _cell(found), _cell(truth), *numbers])
    lines = _table("clicks a round of, estimator, estimate, true mean, error, z, effective, largest, notes", cells)
    lines += [
        "",
        "True mean: clicks in the target's own log. z: in standard errors. dm's interval leaves out its model's.",
    ]
    return {"mode": "open-bandit", "rows": rows}, "\n".join(lines), weights


def from_events(flags: Any) -> tuple[dict, str, dict[str, np.ndarray]]:
    path = flags.events.removeprefix("sqlite:///")
    if path != flags.events and not Path(path).exists():
        raise ValueError(f"--events {flags.events}: there is no such file")
    depths = wanted_depths(flags)
    reward, rounds, without = Reward(), [], 0
    with EventStore(flags.events) as store:
        for batch in tqdm(store.rounds(), "read", unit="batch"):
            for _, seen, did in batch:
                if seen.drawn.depths and flags.policy in (None, seen.policy):
                    rounds.append((seen, reward.of(seen.time, did)))
                without += not seen.drawn.depths
    sets = {seen.arms for seen, _ in rounds}
    if len(sets) != 1:
        what = "there are no rounds with arms" if not sets else f"rounds have {len(sets)} different sets of arms"
        raise ValueError(f"--events {flags.events}: {what}; name one of the policies with --policy")
    arms = sets.pop()
    if flags.model:
        return learned_target(flags, rounds, without)
    if unknown := sorted(depths.keys() - set(arms)):
        raise ValueError(f"--target: there is no arm {unknown[0]!r}; the arms are {', '.join(arms)}")
    wanted = Allocation(tuple(depths.get(arm, 0) for arm in arms), flags.cut)
    same = np.array([[*np.equal(s.drawn.depths, wanted.depths), s.drawn.cut == wanted.cut] for s, _ in rounds], float)
    drawn = any(seen.policy.startswith("depth") and min((1.0, *seen.marginals[:-1])) < 1 for seen, _ in rounds)
    whole = all(seen.marginals for seen, _ in rounds) and not drawn  # then the cut's is given the arms, no marginal
    ran = np.array([seen.executed in (None, seen.drawn) for seen, _ in rounds])
    logged = ope.Logged(
        reward=np.array([worth for _, worth in rounds]),
        propensity=np.array([seen.propensity for seen, _ in rounds]),
        target=same.min(axis=1),
        marginals=np.array([seen.marginals for seen, _ in rounds]) if whole else None,
        target_marginals=same if whole else None,
        executed=ran,
        groups=np.array([f"s{seen.session}" if seen.session else f"i{seen.id}" for seen, _ in rounds]),
    )
    results, lines = _estimated(logged, np.array([seen.policy for seen, _ in rounds]))
    lines += ["", f"Target: {depths}, cut {flags.cut}. pi is exact where rewards add up over"]
    lines += [f"arms and cut, and the logger draws them independently. {without:,} impressions had no decision."]
    return results | {"target": wanted._asdict(), "without": without}, "\n".join(lines), _weights_of(logged)


def _estimated(logged: ope.Logged, policies: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """All estimates of the target's value, and who logged."""
    rows = []
    for name in ope.available(logged):
        both = {"estimate": _plain(ope.estimate(logged, name)), "gain": _plain(ope.gain(logged, name))}
        rows.append({"label": "target", "estimator": name} | both)
    ran = np.ones(len(policies), bool) if logged.executed is None else logged.executed
    loggers = _policies(logged, ran, policies)
    shown = [[r["estimator"], _cell(r["estimate"]), _cell(r["gain"]), "; ".join(r["estimate"]["notes"])] for r in rows]
    lines = [*_table("estimator, value, gain over the logger, notes", shown), ""]
    heads = "logged by, rounds, mean reward, least propensity, without a choice, ran otherwise (left out)"
    return {"mode": "events", "rows": rows, "policies": loggers}, [*lines, *_table(heads, loggers)]


def _weights_of(logged: ope.Logged) -> dict[str, np.ndarray]:
    target = logged.target
    if logged.action is not None:
        target = target[np.arange(len(target)), logged.action]
    return {"target": target / logged.propensity}


def wanted_depths(flags: Any) -> dict[str, int]:
    """--target, checked; {} with --model."""
    if flags.model:
        if flags.target or flags.cut or not flags.budget or flags.budget < 1:
            raise ValueError("--model: needs --budget, the mean candidates, from 1 on, and neither --target nor --cut")
        return {}
    try:
        depths = json.loads(flags.target or "")
    except json.JSONDecodeError:
        depths = None
    if not isinstance(depths, dict) or not all(isinstance(d, int) and d >= 0 for d in depths.values()) or not flags.cut:
        raise ValueError("""--target, --cut: both are needed, as in --target '{"title": 50}' --cut 20""")
    return depths


def learned_target(flags: Any, rounds: list, without: int) -> tuple[dict, str, dict[str, np.ndarray]]:
    """Cuts as a model would draw them, arms as they were drawn: the weight of a round is that of its cut alone."""
    from ltrr.learners.relevance import RelevanceLearner  # torch takes seconds to import

    learner, left = RelevanceLearner.load(flags.model), Counter[str]()
    used, query, candidates = [], [], []
    for seen, worth in rounds:
        one = known_of(seen, learner.columns, learner.num)
        if isinstance(one, str) or not 1 <= seen.drawn.cut <= learner.num or not seen.marginals:
            left[one if isinstance(one, str) else "of other cuts"] += 1
            continue
        used.append((seen, worth))
        query.append(one[0])
        candidates.append(one[1])
    if not used:
        raise ValueError(f"--model {flags.model}: no round is of its arms and features; left out: {told(left)}")
    known = RetrievalFeatures(np.stack(query), np.stack(candidates))
    values = learner.values(known)
    spec = dict(yaml.safe_load(flags.explore) or {})
    explorer = construct("--explore", find_class("--explore", str(spec.pop("class", ""))), spec)
    costs = np.arange(1.0, learner.num + 1)
    price = price_for(values, costs, flags.budget)
    logged = ope.Logged(
        reward=np.array([worth for _, worth in used]),
        propensity=np.array([seen.marginals[-1] for seen, _ in used]),
        target=explorer.probabilities(values - price * costs, learner.deviations(known) if explorer.unsure else None),
        action=np.array([seen.drawn.cut - 1 for seen, _ in used]),
        groups=np.array([f"s{seen.session}" if seen.session else f"i{seen.id}" for seen, _ in used]),
    )
    some = values[:, np.unique(np.geomspace(1, learner.num, 5).astype(int)) - 1]
    logged = ope.cross_fitted(logged, Standard.of(some)(some).astype(float), precision=100.0)
    results, lines = _estimated(logged, np.array([seen.policy for seen, _ in used]))
    mean = float((logged.target @ costs).mean())
    results |= {"budget": flags.budget, "mean_cut": mean, "left_out": dict(left), "without": without}
    now = np.mean([seen.drawn.cut for seen, _ in used])
    lines += [
        "",
        f"Target: {flags.model}, {mean:.2f} candidates in the mean, the log {now:.2f}. Left out: {told(left)};",
    ]
    lines += [f"{without:,} impressions had no decision."]
    return results, "\n".join(lines), _weights_of(logged)


def _policies(logged: ope.Logged, executed: np.ndarray, names: np.ndarray) -> list[list[str]]:
    rows = []
    for policy in np.unique(names):
        reward, propensity, ran = (a[names == policy] for a in (logged.reward, logged.propensity, executed))
        cells = [str(policy) or "(no name)", f"{len(reward):,}", f"{reward.mean():.4f}", f"{propensity.min():.2g}"]
        rows.append([*cells, f"{(propensity == 1).mean():.0%}", f"{(~ran).sum():,}"])
    return rows


def _table(heads: str, rows: list[list[str]]) -> list[str]:
    names = heads.split(", ")
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]


def _cell(found: Mapping[str, Any]) -> str:
    value = "–" if found["value"] is None else f"{found['value']:.4f}"
    return f"{value} (no support)" if found["low"] is None else f"{value} ({found['low']:.4f} to {found['high']:.4f})"


def _plain(found: ope.Estimate) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in found._asdict().items()}


if __name__ == "__main__":
    main(run)
