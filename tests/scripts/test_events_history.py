"""From served pages to what a policy knows of its arms: events -> history.npz -> columns, and what reads them anew.

The loop is run once, as a user runs it: a policy that reads `history` serves while nothing is known, is refitted on the
rounds of that, gets its history, and serves with it.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from ltrr.feedback.events import Action, Allocation, Impression, impressions_of
from ltrr.feedback.store import EventStore
from ltrr.learners.relevance import RelevanceLearner
from ltrr.learners.rounds_data import read_rounds
from ltrr.policies.features import ContextFeatures, pool_features, pool_names
from ltrr.system.features import history_file
from ltrr.system.system import System, open_systems
from ltrr.types import Candidates, Context, Query, RetrievalFeatures, Rounds
from tests.helpers import ROOT, WORDS

START = datetime(2026, 1, 5, 12, tzinfo=UTC)
NUM, K, STRENGTH = 6, 4, 2.0
EXAMINED = (1.0, 0.5, 0.25, 0.2)  # the model's own, not 1 / rank
ARMS = ("title", "all", "dense")
CUT = "ltrr.policies.cut.CutPolicy"
STRANGER = Query("s", "xylophone")


class Words:
    """Somebody's own dense arm, which finds nothing: a vector says which of WORDS a text has, and how others begin."""

    source_kind = "dense"

    def __init__(self, shift: int = 0):
        self._shift = shift

    def search(self, queries, k):
        return Candidates.empty(len(queries), k)

    def embed(self, queries):
        out = np.zeros((len(queries), len(WORDS) + 128), np.float32)
        for row, query in zip(out, queries, strict=True):
            words = query.text.lower().split()
            row[[WORDS.index(word) if word in WORDS else len(WORDS) + ord(word[0]) for word in words]] = 1.0
        return np.roll(out / np.linalg.norm(out, axis=1, keepdims=True), self._shift, axis=1)


class Loop(NamedTuple):
    config: Path
    url: str
    first: Path  # exports: fitted while no history was known, and after
    model: Path
    shown: list[Impression]
    did: list[Action]


def run(*flags: object) -> None:
    """scripts/events.py in this process."""
    before, sys.argv = sys.argv, ["events.py", *map(str, flags)]
    try:
        runpy.run_path(str(ROOT / "scripts/events.py"), run_name="__main__")
    finally:
        sys.argv = before


def opened(config: Path, **policy: object) -> System:
    (system,) = open_systems(config, [x for name, value in policy.items() for x in (f"--policy.{name}", str(value))])
    return system


def features_of(system: System) -> ContextFeatures:
    """What its policy looks at."""
    return system.features.open(system.settings.policy["features"], history_file(system.settings.policy))


def known(system: System, query: Query) -> dict[str, float]:
    """Column -> value."""
    features = features_of(system)
    names = [column.name for column in features.columns]
    return dict(zip(names, features([query])[0].tolist(), strict=True))


def serve(system: System, queries: list[Query], name: str, start: datetime) -> tuple[list[Impression], list[Action]]:
    """A page of each, a minute apart; every other customer clicks on the first and the last."""
    page = system.funnel().search(queries, K)
    page = page._replace(impressions=[f"{name}{i}" for i in range(len(queries))])
    times = [start + timedelta(minutes=i) for i in range(len(queries))]
    shown = impressions_of(page, system.corpus.ids, times=times)
    clicked = [(i, entity) for i in shown[::2] for entity in {*i.shown[:1], *i.shown[-1:]}]
    return shown, [Action(f"{i.id}-{e}", i.id, e, "click", i.time + timedelta(minutes=5)) for i, e in clicked]


def queries_of(system: System) -> list[Query]:
    queries = system.dataset.split("train").queries + system.dataset.split("test").queries
    return [replace(query, context=Context(customer=f"c{i % 5}")) for i, query in enumerate(queries)]


@pytest.fixture(scope="module")
def loop(music, tmp_path_factory) -> Loop:
    folder = tmp_path_factory.mktemp("history")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    lexical = "ltrr.arms.lexical.Lexical"
    arms = {"title": {"class": lexical, "tune": False, "fields": {"title": {"sources": ["title"]}}}}
    arms |= {"all": {"class": lexical, "tune": False}, "dense": {"class": f"{__name__}.Words"}}
    policy = {
        "class": CUT,
        "model": None,
        "features": ["text", "time", "history"],
        "budget": 3.0,
        "depths": {"title": 10, "all": 10},
    }
    policy["explore"] = {"class": "ltrr.policies.explorers.Softmax", "temperature": 0.02, "floor": 0.9}
    settings = {"cache": str(folder / "cache"), "data": {"path": str(music)}, "arms": arms, "policy": policy}
    settings["fusion"] = {"method": "rrf"}
    config, first, model = folder / "c.yaml", folder / "first", folder / "model"
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    url = f"sqlite:///{folder}/e.db"

    system = opened(config)  # a policy that has seen random clicks, and no history
    queries = queries_of(system)
    seen = pool_features(system.funnel().draw(queries).pool, NUM)
    query, each = pool_names(ARMS, NUM)
    features = features_of(system)
    names = tuple(f.name for f in (*features.columns, *query)), tuple(f.name for f in each)
    values = np.concatenate([features(queries), seen.query], axis=1)
    clicks = np.random.default_rng(0).random((len(queries), NUM)) < 0.3
    module = RelevanceLearner(EXAMINED, hidden=4, epochs=1)
    module.refit(Rounds(np.arange(len(queries)), values, seen.candidates, np.full(len(queries), NUM), clicks, names))
    first.mkdir()
    module.export(first)

    shown, did = serve(opened(config, model=first), queries, "i", START)
    with EventStore(url) as store:
        store.append([*shown, *did])
    refit(first, url, folder / "r.npz", model)
    run("history", "--config", config, "--data", music, "--events", url, "--model", model)
    monkeypatch.undo()
    return Loop(config, url, first, model, shown, did)


def refit(before: Path, url: str, rounds: Path, after: Path) -> Rounds:
    run("--events", url, "rounds", "--model", before, "--out", rounds)
    module, read = RelevanceLearner.load(before), read_rounds(rounds)
    module.refit(read)
    after.mkdir()
    module.export(after)
    return read


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def mine(loop, tmp_path) -> Loop:
    """A store and an export of a test's own."""
    shutil.copy(loop.url.removeprefix("sqlite:///"), tmp_path / "e.db")
    shutil.copytree(loop.model, tmp_path / "model")
    return loop._replace(url=f"sqlite:///{tmp_path}/e.db", model=tmp_path / "model")


def write(loop: Loop, *flags: object) -> None:
    run("history", "--config", loop.config, "--events", loop.url, "--model", loop.model, *flags)


def test_a_query_that_was_asked_has_a_past_and_one_like_no_other_has_none(loop):
    """Own columns equal sums by hand: credit is a click / the model's examination of its place."""
    before, after = opened(loop.config, model=loop.first), opened(loop.config, model=loop.model)
    credit, results, total = {}, {}, dict.fromkeys(ARMS, 0.0)
    for seen in loop.shown:
        clicked = {a.entity for a in loop.did if a.impression == seen.id}
        for a, arm in enumerate(ARMS):
            mine = [ranks[a] is not None for ranks in seen.ranks]
            shared = [sum(rank is not None for rank in ranks) for ranks in seen.ranks]
            brought = [(e in clicked) / EXAMINED[k] / shared[k] for k, e in enumerate(seen.shown) if mine[k]]
            credit[seen.id, arm], results[seen.id, arm] = sum(brought), sum(mine)
            total[arm] += sum(brought)
    assert sum(total.values()) > 5
    texts = [seen.normalised for seen in loop.shown]
    once = [seen for seen in loop.shown if texts.count(seen.normalised) == 1]
    assert len(once) > 20
    for seen in once:
        told = known(after, Query("again", seen.query.upper()))  # as normalised, the same
        assert told["own_pages"] == pytest.approx(np.log(2))
        for arm in ("title", "all"):
            mean = total[arm] / len(loop.shown)
            expected = (credit[seen.id, arm] + STRENGTH * mean) / (1 + STRENGTH)
            assert told[f"own_{arm}_success"] == pytest.approx(expected, rel=1e-5)
            assert told[f"own_{arm}_results"] == results[seen.id, arm]
        assert np.isnan(told["own_dense_success"])  # its depth is 0: it never ran
    alike = known(after, Query("n", f"{WORDS[0]} {WORDS[1]} xylophone"))
    assert alike["own_pages"] == 0
    assert np.isnan(alike["own_all_success"])
    assert alike["near_all_success"] >= 0
    nothing = {name: value for name, value in known(after, STRANGER).items() if name[:4] in ("own_", "near")}
    assert nothing.pop("own_pages") == nothing.pop("near_pages") == 0
    assert len(nothing) == 12
    assert np.isnan([*nothing.values()]).all()
    assert known(before, Query("again", once[0].query))["own_pages"] == 0  # no file beside that model


def test_what_is_served_then_is_learned_from(loop, mine, tmp_path):
    """Pages served with a history log its columns, and a policy fitted on them decides by it; one fitted before is
    deaf to them, because what it never knew is 0 to it."""
    system = opened(loop.config, model=loop.model)
    again, did = serve(system, queries_of(system), "j", START + timedelta(hours=3))
    with EventStore(mine.url) as store:
        store.append([*again, *did])
    rounds = refit(loop.model, mine.url, tmp_path / "r.npz", tmp_path / "next")
    column = rounds.names[0].index("own_all_success")
    assert not np.isnan(rounds.query[rounds.row[len(loop.shown) :], column]).any()
    assert np.isnan(rounds.query[rounds.row[: len(loop.shown)], column]).all()
    query = rounds.query[rounds.row[len(loop.shown) :]]
    other = query.copy()
    other[:, column] += 1.0
    each = rounds.candidates[rounds.row[len(loop.shown) :]]
    for model, hears in ((loop.model, False), (tmp_path / "next", True)):
        module = RelevanceLearner.load(model)
        assert (
            np.abs(module.values(RetrievalFeatures(query, each)) - module.values(RetrievalFeatures(other, each))).max()
            > 1e-6
        ) == hears


def test_a_changed_history_sets_the_price_anew(loop, mine):
    def prices() -> set[str]:
        system = opened(loop.config, model=mine.model)
        assert system.funnel()
        return {path.name for path in (system.folder / "tuned").glob("price-*.json")}

    once = prices()
    assert prices() == once
    with EventStore(mine.url) as store:
        store.erase("c1")
    write(mine)
    assert len(prices() - once) == 1


def test_who_is_erased_is_gone_when_it_is_written_anew(loop, mine, capsys):
    theirs = {i.normalised for i in loop.shown if i.context.customer == "c1"}
    others = {i.normalised for i in loop.shown if i.context.customer != "c1"}
    assert theirs - others
    with EventStore(mine.url) as store:
        store.erase("c1")
    write(mine)
    assert (
        f"{sum(i.context.customer != 'c1' for i in loop.shown)} impressions; left out: none" in capsys.readouterr().out
    )
    system = opened(loop.config, model=mine.model)
    pages = {text: known(system, Query("q", text))["own_pages"] for text in theirs | others}
    assert {text for text, num in pages.items() if num == 0} == theirs - others


def test_what_says_nothing_of_these_arms_is_left_out_and_counted(loop, mine, capsys, tmp_path):
    one = loop.shown[0]
    odd = [
        replace(one, id="fewer", arms=ARMS[:2], ranks=(), marginals=(), drawn=Allocation((5, 5), 9)),
        replace(one, id="other", arms=("a", *ARMS[1:])),
        replace(one, id="bare", ranks=()),
        replace(one, id="young", time=datetime.now(UTC)),  # clicks may still come
        replace(one, id="empty", query="nobody", shown=(), scores=(), ranks=()),  # arms ran, and brought nothing
        replace(one, id="stopped", query="half", executed=Allocation((10, 0, 0), one.drawn.cut)),
    ]
    with EventStore(mine.url) as store:
        store.append(odd)
    write(mine, "--out", tmp_path / "elsewhere" / "h.npz")
    out = capsys.readouterr().out
    assert f"{len(loop.shown) + 2} impressions" in out
    assert "left out: 2 of other arms, 1 that do not say which arms returned what" in out
    assert str(tmp_path / "elsewhere" / "h.npz") in out
    shutil.copy(tmp_path / "elsewhere" / "h.npz", mine.model / "history.npz")
    system = opened(loop.config, model=mine.model)
    nobody, half = (known(system, Query("q", text)) for text in ("nobody", "half"))
    assert nobody["own_all_results"] == 0
    assert half["own_title_success"] >= 0
    assert half["own_all_success"] >= 0  # it never ran there, but one of its kind did
    assert np.isnan(half["own_dense_success"])


def error(capsys, *flags: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*flags)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_is_said_and_nothing_is_written(loop, mine, capsys, tmp_path):
    flags = ("history", "--config", loop.config, "--events", mine.url, "--out", tmp_path / "h.npz", "--model")
    settings = yaml.safe_load(loop.config.read_text())
    del settings["arms"]["dense"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    wordless = ("history", "--config", tmp_path / "c.yaml", *flags[3:])
    assert "'history' needs a dense arm" in error(capsys, *wordless, mine.model)
    renamed = f"{{mine: {{class: {__name__}.Words}}}}"
    assert "does not read the history of the arms mine" in error(capsys, *flags, mine.model, "--arms", renamed)
    assert "no policy that this ltrr can read" in error(capsys, *flags, tmp_path)
    assert "unrecognized arguments: --arms.x 1" in error(capsys, "--events", mine.url, "status", "--arms.x", "1")
    assert not (tmp_path / "h.npz").exists()


def test_a_damaged_file_or_one_of_other_arms_or_embeddings_is_named(loop, mine):
    path = mine.model / "history.npz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", b"no history", whole[:-100], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"history.npz: damaged .* write it again: scripts/events.py history"):
            opened(loop.config, model=mine.model).policy()
    path.write_bytes(whole)
    (other,) = open_systems(loop.config, ["--policy.model", str(mine.model), "--arms.dense.shift", "1"])
    with pytest.raises(ValueError, match=r"history.npz: its queries were embedded by another dense arm"):
        other.policy()
    with pytest.raises(ValueError, match="a history of the arms title, all, dense, not all, dense"):
        opened(loop.config).features.history(ARMS[1:], path)
