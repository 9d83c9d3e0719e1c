"""The event store: what is in it, Parquet, removal of what is old, and where customers look.

python scripts/events.py [--events sqlite:///runs/events.db] status
python scripts/events.py … export DIR             new folder of Parquet, one partition a day
python scripts/events.py … expire DAYS            removes impressions that are older, with their actions
python scripts/events.py … examination FILE       P(a customer looks at a position), from clicks (position-based model,
                                                  EM); ends with the override with which memory uses it
python scripts/events.py … rounds --model EXPORT --out FILE.npz
                                                  what was served as rounds for train.py: those of the columns that
                                                  this policy reads, older than --wait hours

All go on beside a server. A customer is erased by DELETE /customers/ID there, which reaches what was learned, too.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from _common import main
from tqdm import tqdm

from ltrr.feedback import clicks
from ltrr.feedback.events import Reward
from ltrr.feedback.rounds import rounds_of, told
from ltrr.feedback.store import EventStore

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


def rounds(store: EventStore, model: Path, wait: timedelta, path: Path) -> str:
    """Writes rounds; how many, and how many impressions were left out and why."""
    from ltrr.data.rounds import write_rounds  # torch takes seconds to import
    from ltrr.models.bandit import BanditModule

    policy = BanditModule.load(model)
    made, left = rounds_of(
        tqdm(store.rounds(until=datetime.now(UTC) - wait), "read", unit="batch"), policy.columns, policy.num
    )
    write_rounds(path, made)
    shown = (made.places >= 0).sum(axis=1).mean()
    return (
        f"{len(made.row):,} rounds, {made.clicks.sum():,} clicks, {made.cut.mean():.1f} candidates let through and "
        f"{shown:.1f} shown on average; left out: {told(left)}\nwritten: {path}"
    )


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", default="sqlite:///runs/events.db", help="URL of the store")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status")
    commands.add_parser("export").add_argument("folder", type=Path)
    commands.add_parser("expire").add_argument("days", type=float)
    estimate = commands.add_parser("examination")
    estimate.add_argument("file", type=Path)
    estimate.add_argument("--positions", type=int, default=10, help="of a page (default 10)")
    learned = commands.add_parser("rounds")
    learned.add_argument(
        "--model", type=Path, required=True, help="export of the policy that served, or of one like it"
    )
    learned.add_argument("--out", type=Path, required=True, help="FILE.npz")
    learned.add_argument("--wait", type=float, default=1.0, help="hours that a page waits for clicks (default 1)")
    flags = parser.parse_args()
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
            print(rounds(store, flags.model, timedelta(hours=flags.wait), flags.out))
        else:
            print(examination(store, flags.positions, flags.file))


if __name__ == "__main__":
    main(run)
