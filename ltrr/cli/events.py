"""The event store: counts, Parquet, removal of old events, estimates of examination, and the data of policies.

python scripts/events.py [--events sqlite:///runs/events.db] status
python scripts/events.py … export DIR             new folder of Parquet, one partition a day
python scripts/events.py … expire DAYS            removes impressions that are older, with their actions
python scripts/events.py … examination FILE       P(a customer looks at a position), from clicks (position-based model,
                                                  EM); ends with the override with which memory uses it
python scripts/events.py … rounds --model EXPORT --out FILE.npz
                                                  served pages as rounds for train.py: those with the columns that
                                                  this policy reads, older than --wait hours
python scripts/events.py … history --config FUNNEL.yaml --data FOLDER --model EXPORT [--out FILE]
                                                  history.npz for the group `history` of policy.features: the
                                                  success of each of this config's arms by query; written anew
                                                  from the whole store; read when a service starts

All commands work beside a server. DELETE /customers/ID there erases a customer, from learners, too.
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

from tqdm import tqdm

from ltrr.feedback import clicks
from ltrr.feedback.pages import arm_credits, click_log, estimated_examination, unusable
from ltrr.feedback.rounds import rounds_of, told
from ltrr.feedback.store import EventStore
from ltrr.system.features import HISTORY
from ltrr.system.system import open_systems


def write_examination(store: EventStore, num_positions: int, path: Path) -> str:
    """Writes a position-based model; returns the override with which memory uses it."""
    pairs, clicked = click_log(tqdm(store.rounds(), "read", unit="batch"), num_positions)
    model = estimated_examination(pairs, clicked)
    clicks.save(model, path)
    print(f"{len(pairs):,} impressions, {clicked.sum():,} clicks; written: {path}")
    return f"--arms.memory.examination '{json.dumps(model.examination)}'"


def write_policy_rounds(store: EventStore, model: Path, wait: timedelta, path: Path, all_arms: bool) -> str:
    """Writes rounds; returns a report: their number, and the number of impressions left out, by reason."""
    from ltrr.learners.exports import load_learner
    from ltrr.learners.rounds_data import write_rounds  # torch takes seconds to import

    policy = load_learner(str(model))
    read = tqdm(store.rounds(until=datetime.now(UTC) - wait), "read", unit="batch")
    rounds, left = rounds_of(read, policy.columns, policy.num, all_arms)
    write_rounds(path, rounds)
    shown = (rounds.places >= 0).sum(axis=1).mean()
    return (
        f"{len(rounds.row):,} rounds, {rounds.clicks.sum():,} clicks, {rounds.cut.mean():.1f} candidates let through "
        f"and {shown:.1f} shown on average; left out: {told(left)}\nwritten: {path}"
    )


def write_history(
    store: EventStore, config: Path, overrides: Sequence[str], model: Path, wait: timedelta, path: Path
) -> str:
    """Writes the history of the config's arms anew; returns a report: the impressions in it and those left out."""
    from ltrr.learners.relevance import RelevanceLearner

    sys.path.insert(0, os.getcwd())  # where a config's own classes are
    systems = open_systems(config, overrides)
    if len(systems) != 1:
        raise ValueError(f"--data holds {len(systems)} data sets; give the one that was served: FOLDER/NAME")
    arms, policy = tuple(systems[0].drawn), RelevanceLearner.load(model)
    log, used, left = systems[0].features.history(arms), 0, Counter[str]()
    if not {column.name for column in log.group.columns} <= {*policy.columns[0]}:
        raise ValueError(
            f"--model {model}: does not read the history of the arms {', '.join(arms)}; "
            "fit it on rounds that were logged with `history` among the features"
        )
    for batch in tqdm(store.rounds(until=datetime.now(UTC) - wait), "read", unit="batch"):
        kept = []
        for _, impression, actions in batch:
            if why := unusable(impression, arms):
                left[why] += 1
            else:
                kept.append((impression, actions))
        if kept:
            longest = max(len(impression.shown) for impression, _ in kept)
            log.update(*arm_credits(kept, policy.examination(longest)))
            used += len(kept)
    log.save(path)
    return f"{used:,} impressions; left out: {told(left)}\nwritten: {path}"


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
            print(write_policy_rounds(store, flags.model, timedelta(hours=flags.wait), flags.out, flags.all_arms))
        elif flags.command == "history":
            if flags.data:
                overrides += ["--data.path", json.dumps(flags.data)]  # a string, even where it looks like a number
            out = flags.out or flags.model / HISTORY
            print(write_history(store, flags.config, overrides, flags.model, timedelta(hours=flags.wait), out))
        else:
            print(write_examination(store, flags.positions, flags.file))
