"""Makes the artefacts of 0.1 beside this file, with the code of 0.1 (commit 9836492).

    cd CHECKOUT_OF_0.1 && PYTHONPATH=$PWD python tests/compat/v0_1/make.py

where the path is this checkout's. Everything is drawn from fixed seeds; only ids and times of folders and of the event
store differ from run to run. expected.json holds the values that 0.1 computed from the artefacts.
Legend: Q queries, U rounds' queries, M candidates looked at.
"""

# ruff: noqa: I001 (0.1 had other modules)
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import WordHashes, as_json
from ltrr.arms.dense import Dense
from ltrr.arms.memory import Memory
from ltrr.cli import TrainingCLI
from ltrr.core import Query, Rounds
from ltrr.data.beir import Document, write_dataset
from ltrr.data.rounds import write_rounds
from ltrr.feedback.events import Action, impressions_of, normalised
from ltrr.feedback.heads import OnlineHeads
from ltrr.feedback.loop import Loop
from ltrr.feedback.store import EventStore
from ltrr.models.arms import ArmsModule
from ltrr.models.bandit import BanditModule
from ltrr.models.fusion import FusionModule
from ltrr.policy.features import Known, pool_features, pool_names
from ltrr.policy.history import History
from ltrr.system import System, open_systems

HERE = Path(__file__).resolve().parent
WORDS = ("love", "river", "night", "paper", "winter", "crazy", "golden", "home")
ARTISTS = ("Nora Quinn", "The Paper Boats", "Ilse Brandt", "Old Harbour")
GENRES = ("pop", "jazz", "metal")
NUM = 8  # M
START = datetime(2026, 1, 5, 12, tzinfo=UTC)


def write_music(folder: Path) -> None:
    """32 songs by 4 artists; a query names a song or an artist and a genre."""
    documents, queries = [], []
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    for i in range(32):
        title = f"{WORDS[i % 8]} {WORDS[(i // 8 + 3 * i + 1) % 8]}".title()
        metadata = {"artist": [ARTISTS[i % 4]], "genre": GENRES[i % 3], "year": 1980 + i, "plays": (i * 37) % 100}
        documents.append(Document(f"s{i}", title, f"Song {i} by {ARTISTS[i % 4]}.", metadata))
    for i in range(30):
        text = f"{ARTISTS[i % 4]} {GENRES[i % 3]}" if i % 3 else documents[i].title.lower()
        time = (START + timedelta(hours=i)).isoformat()
        who = {"customer": f"c{i % 4}", "locale": ("en", "de")[i % 2], "device": "phone", "time": time}
        queries.append({"_id": f"q{i}", "text": text, "metadata": who})
        alike = [j for j in range(32) if j % 4 == i % 4 and j % 3 == i % 3] if i % 3 else [i]
        qrels[("train", "train", "train", "dev", "test")[i % 5]][f"q{i}"] = {f"s{j}": 1 for j in alike}
    write_dataset(folder, documents, queries, qrels)


def write_logged_rounds(system: System, queries: list[Query], path: Path) -> Rounds:
    """Three passes over all queries; a relevant candidate is clicked with the probability that its place is seen."""
    known = pool_features(system.funnel().draw(queries).pool, NUM)
    known = Known(np.concatenate([system.context(queries), known.query], axis=1), known.candidates)
    query, each = pool_names(system.drawn, NUM)
    names = tuple(f.name for f in (*system.context.columns, *query)), tuple(f.name for f in each)
    rng, row = np.random.default_rng(0), np.tile(np.arange(len(queries)), 3)
    cut = rng.integers(3, NUM + 1, len(row))
    clicks = rng.random((len(row), NUM)) < 1 / np.arange(1, NUM + 1)
    clicks &= (np.arange(NUM) < cut[:, None]) & known.candidates[row, :, 0].astype(bool)
    rounds = Rounds(row, *known, cut, clicks, names, depths=np.array([system.depths[arm] for arm in system.drawn]))
    write_rounds(path, rounds)
    return rounds


def main() -> None:
    os.chdir(HERE)  # so that an export names its rounds by a relative path
    for path in ("data", "exports", "learned"):
        shutil.rmtree(HERE / path, ignore_errors=True)
    for path in ("events.db", "rounds.npz", "history.npz"):
        (HERE / path).unlink(missing_ok=True)
    write_music(HERE / "data")
    with TemporaryDirectory() as temporary:
        expected = make(Path(temporary))
    lines = [f"{json.dumps(name)}: {json.dumps(as_json(value))}" for name, value in expected.items()]
    (HERE / "expected.json").write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def make(work: Path) -> dict[str, Any]:
    """Writes all but the data; returns the values that 0.1 computes from it."""
    expected: dict[str, Any] = {}
    given = ["--data.path", str(HERE / "data"), "--cache", str(work / "cache")]
    system = open_systems(HERE / "funnel.yaml", [*given, "--policy.model", "null", "--policy.arms_model", "null"])[0]
    queries, encoder = list(system.dataset.queries), WordHashes()
    test = system.dataset.split("test").queries

    # 1) Rounds, and exports of what learns from them.
    rounds = write_logged_rounds(system, queries, HERE / "rounds.npz")
    known = Known(rounds.query, rounds.candidates)
    fit = ["fit", f"--config={HERE / 'policy.yaml'}", "--data.path=rounds.npz"]
    TrainingCLI([*fit, f"--trainer.default_root_dir={work / 'runs'}"])
    exports = {name: HERE / "exports" / name for name in ("bandit", "arms", "fusion")}
    exports["bandit"].parent.mkdir()
    shutil.copytree(work / "runs" / "bandit-1" / "export", exports["bandit"])
    bandit = BanditModule.load(exports["bandit"])
    arms, fusion = ArmsModule(cut=3, shallow=[5], hidden=4), FusionModule(hidden=4)
    arms.refit(rounds, 0, bandit)
    fusion.refit(rounds, 0)
    for name, module in (("arms", arms), ("fusion", fusion)):
        exports[name].mkdir()
        module.export(exports[name])
    width = len(arms.columns[0])
    expected["rounds"] = {"num": len(rounds.row), "clicks": rounds.clicks.sum(axis=0), "names": rounds.names}
    expected["bandit"] = {"values": bandit.values(known)[:6], "deviations": bandit.deviations(known)[:6]}
    expected["arms"] = {"losses": ArmsModule.load(exports["arms"]).losses(rounds.query[:6, :width])}
    expected["fusion"] = {"order": FusionModule.load(exports["fusion"]).order(known)[:6]}

    # 2) Indexes.
    expected["search"] = {}
    dense = Dense(encoder, kind="hnsw", m=4)
    dense.build(system.corpus, work / "cache" / "dense")
    opened = {name: system.arm(name) for name in system.drawn}
    for name, arm in (opened | {"dense": dense.open(system.corpus, work / "cache" / "dense")}).items():
        expected["search"][name] = arm.search(test, 5)._asdict()

    # 3) The funnel with its learned policy, and pages that it served.
    models = ["--policy.model", str(exports["bandit"]), "--policy.arms_model", str(exports["arms"])]
    system = open_systems(HERE / "funnel.yaml", [*given, *models])[0]
    funnel, name = system.funnel(seed=0), "depth 0.1"
    drawn = funnel.draw(test)
    expected["funnel"] = {"docs": drawn.fused.docs, "scores": drawn.fused.scores}
    expected["funnel"] |= {key: getattr(drawn.decision, key) for key in ("depths", "cut", "propensity", "marginals")}
    page = funnel.search(queries[:12], 5)
    page = page._replace(impressions=[f"i{i}" for i in range(12)])
    times = [START + timedelta(minutes=i) for i in range(12)]
    sessions = [f"session {i // 3}" if i % 5 else None for i in range(12)]
    shown = impressions_of(page, system.corpus.ids, times=times, sessions=sessions, policy=name, models={"words": "w"})
    acted = [
        Action(f"a{i}-{j}", one.id, entity, kind, one.time + timedelta(seconds=20 * j + 5), seconds)
        for i, one in enumerate(shown)
        for j, entity in enumerate(one.shown[: i % 4])
        for kind, seconds in [(("click", None), ("play", 40.0), ("like", None), ("dismiss", None))[(i + j) % 4]]
    ]
    url = f"sqlite:///{HERE / 'events.db'}"
    with EventStore(url) as store:
        rows = {entity: row for row, entity in enumerate(system.corpus.ids)}
        memory, heads = Memory(system.corpus, distinct=1), OnlineHeads(bandit, store, name)
        with Loop(store, {"memory": memory, "policy": heads}, rows, HERE / "learned") as loop:
            loop.record([*shown[:8], *acted])
            loop.record(shown[8:])
            expected["erased"] = loop.erase("c3")
        expected["store"] = store.id
        expected["impressions"] = [one for batch in store.impressions() for _, one in batch]
        expected["actions"] = [one for batch in store.actions() for _, one in batch]
    expected["memory"] = memory.search(queries, 5)._asdict() | {"observed": memory.observed()}
    expected["heads"] = bandit.values(known)[:6]  # they have learned
    with sqlite3.connect(HERE / "events.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")

    # 4) What arms brought.
    kinds = {"title": "lexical", "words": "lexical", "structured": "structured"}
    history = History(kinds, normalised, lambda queries: encoder.encode([f"{q.text} ." for q in queries]), most=100)
    clicked = np.random.default_rng(1).random((12, 5)) < 0.4
    history.update(page.queries, ~np.isnan(page.ranks), np.where(page.shown.docs < 0, np.nan, clicked))
    history.save(HERE / "history.npz")
    expected["history"] = history.features(test)

    # 5) What 0.1 cached, in one file; an engine reserves 134 MB an arm, nearly all of it zeros.
    with zipfile.ZipFile(HERE / "cache.zip", "w", zipfile.ZIP_BZIP2, compresslevel=9) as archive:
        for path in sorted((work / "cache").rglob("*")):
            name = path.relative_to(work).as_posix()
            if path.is_file() and not {".lock", ".private", ".work"} & {*path.parts} and "/title-" not in name:
                archive.write(path, name)
    expected["indexes"] = {arm: system.identity(arm) for arm in system.drawn}
    return expected


if __name__ == "__main__":
    main()
