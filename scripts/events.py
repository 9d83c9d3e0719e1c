"""The event store: what is in it, Parquet, removal of what is old, where customers look, what policies learn from it.

python scripts/events.py [--events sqlite:///runs/events.db] status
python scripts/events.py … export DIR             new folder of Parquet, one partition a day
python scripts/events.py … expire DAYS            removes impressions that are older, with their actions
python scripts/events.py … examination FILE       P(a customer looks at a position), from clicks (position-based model,
                                                  EM); ends with the override with which memory uses it
python scripts/events.py … rounds --model EXPORT --out FILE.npz
                                                  what was served as rounds for train.py: those of the columns that
                                                  this policy reads, older than --wait hours
python scripts/events.py … history --config FUNNEL.yaml --data FOLDER --model EXPORT [--out FILE]
                                                  history.npz for the group `history` of policy.features: what each
                                                  arm brought to queries, of this config's arms; written anew from
                                                  all that is in the store; read when a service starts

All go on beside a server. A customer is erased by DELETE /customers/ID there, which reaches what was learned, too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ltrr.cli.arguments import main
from ltrr.feedback import clicks
from ltrr.feedback.events import Action, Impression, Reward
from ltrr.feedback.rounds import rounds_of, told
from ltrr.feedback.store import EventStore
from ltrr.system.features import HISTORY
from ltrr.system.system import open_systems
from ltrr.types import Query

_LEAST = 0.01  # examination: a click where nobody is said to look would weigh without bound


def pages(store: EventStore, num_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, K) numbers of (query, entity), −1 = pad, and whether an action of worth came, of all impressions."""
    number: dict[tuple[str, str], int] = {}
    pairs, clicked, reward = [], [], Reward()
    for batch in tqdm(store.rounds(), "read", unit="batch"):
        for _, seen, did in batch:
            shown = seen.shown[:num_positions]
            pad = [-1] * (num_positions - len(shown))
            pairs.append([number.setdefault((seen.normalised, entity), len(number)) for entity in shown] + pad)
            worth = reward.of_entities(seen.time, did)
            clicked.append([worth.get(entity, 0.0) > 0 for entity in shown] + [False] * len(pad))
    shape = (len(pairs), num_positions)
    return np.array(pairs, np.int64).reshape(shape), np.array(clicked, bool).reshape(shape)


def examination(store: EventStore, num_positions: int, path: Path) -> str:
    """Writes a position-based model; the override of memory."""
    pairs, clicked = pages(store, num_positions)
    if not clicked.any():
        raise ValueError("examination: there are no clicks in this store yet; serve, and send POST /feedback")
    fit = clicks.fit_position_based(pairs, clicked)
    if not fit.converged:
        raise ValueError("examination: the estimate has not settled; more clicks are needed")
    model = clicks.PositionBased(tuple(max(round(e, 4), _LEAST) for e in fit.model.examination))
    clicks.save(model, path)
    print(f"{len(pairs):,} impressions, {clicked.sum():,} clicks; written: {path}")
    return f"--arms.memory.examination '{json.dumps(model.examination)}'"


def rounds(store: EventStore, model: Path, wait: timedelta, path: Path, all_arms: bool) -> str:
    """Writes rounds; how many, and how many impressions were left out and why."""
    from ltrr.learners.relevance import RelevanceLearner
    from ltrr.learners.rounds_data import write_rounds  # torch takes seconds to import

    policy = RelevanceLearner.load(model)
    read = tqdm(store.rounds(until=datetime.now(UTC) - wait), "read", unit="batch")
    made, left = rounds_of(read, policy.columns, policy.num, all_arms)
    write_rounds(path, made)
    shown = (made.places >= 0).sum(axis=1).mean()
    return (
        f"{len(made.row):,} rounds, {made.clicks.sum():,} clicks, {made.cut.mean():.1f} candidates let through and "
        f"{shown:.1f} shown on average; left out: {told(left)}\nwritten: {path}"
    )


def history(store: EventStore, config: Path, overrides: Sequence[str], model: Path, wait: timedelta, path: Path) -> str:
    """Writes what the config's arms brought, from nothing; how many impressions told it, and how many were left out."""
    from ltrr.learners.relevance import RelevanceLearner

    sys.path.insert(0, os.getcwd())  # where a config's own classes are
    systems = open_systems(config, overrides)
    if len(systems) != 1:
        raise ValueError(f"--data holds {len(systems)} data sets; give the one that was served: FOLDER/NAME")
    arms, policy = tuple(systems[0].drawn), RelevanceLearner.load(model)
    made, used, left = systems[0].features.history(arms), 0, Counter[str]()
    if not {column.name for column in made.group.columns} <= {*policy.columns[0]}:
        raise ValueError(
            f"--model {model}: does not read the history of the arms {', '.join(arms)}; "
            "fit it on rounds that were logged with `history` among the features"
        )
    for batch in tqdm(store.rounds(until=datetime.now(UTC) - wait), "read", unit="batch"):
        kept = []
        for _, seen, did in batch:
            if why := unusable(seen, arms):
                left[why] += 1
            else:
                kept.append((seen, did))
        if kept:
            made.update(*brought(kept, policy.examination(max(len(seen.shown) for seen, _ in kept))))
            used += len(kept)
    made.save(path)
    return f"{used:,} impressions; left out: {told(left)}\nwritten: {path}"


def unusable(seen: Impression, arms: tuple[str, ...]) -> str:
    """In words, why it does not say what these arms brought; empty where it does."""
    if seen.arms != arms:
        return "of other arms"
    if len(seen.ranks) != len(seen.shown) or len((seen.executed or seen.drawn).depths) != len(arms):
        return "that do not say which arms returned what"
    return ""


def brought(
    kept: Sequence[tuple[Impression, Sequence[Action]]], examination: np.ndarray
) -> tuple[list[Query], np.ndarray, np.ndarray, np.ndarray]:
    """What `History.update` reads of Q pages; examination: (K,) of each place, K the longest page's length."""
    reward, shape = Reward(), (len(kept), len(examination))
    returned, rewards = np.zeros((*shape, len(kept[0][0].arms)), bool), np.full(shape, np.nan)
    for row, (seen, did) in enumerate(kept):
        worth, num = reward.of_entities(seen.time, did), len(seen.shown)
        ranks = np.array(seen.ranks, np.float32).reshape(-1, returned.shape[2])  # None becomes NaN
        returned[row, :num] = ~np.isnan(ranks)
        rewards[row, :num] = [worth.get(entity, 0.0) > 0 for entity in seen.shown] / examination[:num]
    ran = np.array([(seen.executed or seen.drawn).depths for seen, _ in kept]) > 0
    return [Query(seen.id, seen.query, seen.context) for seen, _ in kept], returned, rewards, ran


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", default="sqlite:///runs/events.db", help="URL of the store")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--events", default=argparse.SUPPRESS, help="URL of the store")  # after the command, too
    commands = parser.add_subparsers(dest="command", required=True)
    add = partial(commands.add_parser, parents=[where])
    add("status")
    add("export").add_argument("folder", type=Path)
    add("expire").add_argument("days", type=float)
    estimate = add("examination")
    estimate.add_argument("file", type=Path)
    estimate.add_argument("--positions", type=int, default=10, help="of a page (default 10)")
    learned, remembered = add("rounds"), add("history")
    learned.add_argument(
        "--model", type=Path, required=True, help="export of the policy that served, or of one like it"
    )
    learned.add_argument("--out", type=Path, required=True, help="FILE.npz")
    learned.add_argument(
        "--all-arms", action="store_true", help="only pages of all arms, as configs/arms_policy.yaml needs"
    )
    remembered.add_argument("--config", type=Path, required=True, help="YAML of the funnel that served")
    remembered.add_argument("--data", help="overrides data.path; other dotted overrides (--arms.dense.model …) follow")
    remembered.add_argument("--model", type=Path, required=True, help="export of the policy that is to read it")
    remembered.add_argument("--out", type=Path, help=f"default EXPORT/{HISTORY}")
    for command in (learned, remembered):
        command.add_argument("--wait", type=float, default=1.0, help="hours that a page waits for clicks (default 1)")
    flags, overrides = parser.parse_known_args()
    if overrides and flags.command != "history":
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    database = flags.events.removeprefix("sqlite:///")
    if database != flags.events and not Path(database).exists():
        raise ValueError(f"--events {flags.events}: there is no such file")
    with EventStore(flags.events) as store:
        if flags.command == "status":
            shown, acted = (sum(map(len, batches)) for batches in (store.shown(), store.acted()))
            print(f"{shown:,} impressions, {acted:,} actions")
        elif flags.command == "export":
            store.export(flags.folder)
            print(f"written: {flags.folder}")
        elif flags.command == "expire":
            if not 0 < flags.days < 100_000:
                raise ValueError(f"expire: {flags.days:g} days is not above 0")
            impressions, actions = store.expire(datetime.now(UTC) - timedelta(days=flags.days))
            print(f"removed: {impressions:,} impressions, {actions:,} actions")
        elif flags.command == "rounds":
            print(rounds(store, flags.model, timedelta(hours=flags.wait), flags.out, flags.all_arms))
        elif flags.command == "history":
            if flags.data:
                overrides += ["--data.path", json.dumps(flags.data)]  # a string, even where it looks like a number
            out = flags.out or flags.model / HISTORY
            print(history(store, flags.config, overrides, flags.model, timedelta(hours=flags.wait), out))
        else:
            print(examination(store, flags.positions, flags.file))


if __name__ == "__main__":
    main(run)
