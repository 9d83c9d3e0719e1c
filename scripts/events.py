"""The event store: what is in it, Parquet, removal of what is old, and where customers look.

python scripts/events.py [--events sqlite:///runs/events.db] status
python scripts/events.py … export DIR             new folder of Parquet, one partition a day
python scripts/events.py … expire DAYS            removes impressions that are older, with their actions
python scripts/events.py … examination FILE       P(a customer looks at a position), from clicks (position-based model,
                                                  EM); ends with the override with which memory uses it

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
        else:
            print(examination(store, flags.positions, flags.file))


if __name__ == "__main__":
    main(run)
