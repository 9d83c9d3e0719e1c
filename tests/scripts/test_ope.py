"""scripts/ope.py: what it writes in each of its modes, and mistakes that are named."""

from __future__ import annotations

import json
import re
import runpy
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ltrr.feedback.events import Action, Allocation, Impression, impressions_of
from ltrr.feedback.store import EventStore
from ltrr.policies.table import Table
from ltrr.simulation import bandit_logs
from ltrr.system.system import open_systems
from tests import served
from tests.helpers import ROOT, script, shared

NOW = datetime(2024, 5, 1, tzinfo=UTC)
WRITTEN = ("results.json", "table.md", "weights.png", "estimates.png")


@pytest.fixture
def run(monkeypatch):
    """The script in this process: its libraries take longer to start than it takes to run."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds the current folder
    run_script = runpy.run_path(str(ROOT / "scripts/ope.py"), run_name="ope")["run"]

    def run(*flags: object) -> None:
        monkeypatch.setattr(sys, "argv", ["scripts/ope.py", *map(str, flags)])
        run_script()

    return run


def results(out: Path) -> dict:
    assert all((out / name).stat().st_size for name in WRITTEN)
    return json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)  # no Infinity, no NaN


def test_simulated_logs_have_a_truth(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bandit_logs, "_TRUTH", 20_000)
    run("--simulate", "--seeds", 3, "--sizes", 1500, "--out", tmp_path)
    rows = {(row["world"], row["estimator"]): row for row in results(tmp_path)["rows"]}
    for overlap, least in (("high", 0.25), ("middle", 0.5)):
        assert rows[overlap, "dr"]["error"] < least
        assert rows[overlap, "dr"]["flagged"] == 0
    assert rows["high", "ips"]["effective"] > rows["middle", "ips"]["effective"] > rows["low", "ips"]["effective"]
    flagged = [row for (name, _), row in rows.items() if name == "deterministic"]
    assert len(flagged) == 7
    assert all(row["flagged"] == 1 and row["coverage"] is None for row in flagged)
    for null in ("rewards shuffled", "contexts shuffled"):
        assert abs(rows[null, "dr"]["bias"]) < 4 * rows[null, "dr"]["spread"]
    assert rows["slates", "pi"]["effective"] > rows["slates", "ips"]["effective"]


def bandit(folder: Path, num: int = 4_000) -> Path:
    """Two loggers of 5 items at 2 positions: uniform, and one that likes the item that is clicked most."""
    rng = np.random.default_rng(0)
    rates = np.array([[0.1, 0.1, 0.1, 0.1, 0.5], [0.3, 0.1, 0.1, 0.1, 0.1]])
    for name, policy in {"random": np.full((2, 5), 0.2), "bts": 0.05 + 1.5 * rates / rates.sum(1)[:, None] / 2}.items():
        probabilities = policy / policy.sum(axis=1, keepdims=True)
        path = folder / name / "tiny" / "tiny.csv"
        path.parent.mkdir(parents=True)
        lines = [",item_id,position,click,propensity_score,other"]
        for i in range(num):
            at = i % 2
            item = rng.choice(5, p=probabilities[at])
            click = int(rng.random() < rates[at, item])
            lines.append(f"{i},{item},{at + 1},{click},{probabilities[at, item]},x")
        path.write_text("\n".join(lines))
    return folder


def test_each_logger_is_told_from_the_other(run, tmp_path: Path) -> None:
    run("--open-bandit", bandit(tmp_path / "logs"), "--out", tmp_path / "out")
    rows = results(tmp_path / "out")["rows"]
    assert {row["label"] for row in rows} == {
        f"tiny: {a} from {b}'s log" for a, b in (("bts", "random"), ("random", "bts"))
    }
    assert len(rows) == 14
    for row in rows:
        assert row["estimate"]["notes"] == []
        assert abs(row["z"]) < 3.5 or row["estimator"] == "dm"
    truth = {row["label"].split()[1]: row["truth"]["value"] for row in rows}
    assert truth["bts"] > truth["random"] + 0.03  # so that taking one for the other would be seen
    assert "| tiny: bts from random's log | dr |" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.data
def test_open_bandit_from_each_other(run, tmp_path: Path) -> None:
    run("--open-bandit", shared("open-bandit"), "--out", tmp_path)
    rows = {(row["label"], row["estimator"]): row for row in results(tmp_path)["rows"]}
    assert len(rows) == 4 * 7
    for campaign, clicks in (("men", 0.0069), ("women", 0.0046)):
        row = rows[f"{campaign}: bts from random's log", "dr"]
        assert row["truth"]["value"] == pytest.approx(clicks)  # of 10,000 rounds
        assert row["estimate"]["low"] < clicks < row["estimate"]["high"]
    lone = rows["women: random from bts's log", "ips"]["estimate"]  # one round has propensity 1e-6
    assert lone["largest"] > 20_000
    assert "effective rounds" in lone["notes"][0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("propensity_score", "pscore", "random/tiny/tiny.csv: has no column 'propensity_score'"),
        ("\n0,", "\n0,a", "random/tiny/tiny.csv, line 2: item_id is 'a"),
        (",0.2,x", ",0.0,x", "line 2: propensity_score is '0.0', not from 1e-12 to 1"),
        (",0.2,x", ",nan,x", "line 2: propensity_score is 'nan'"),
    ],
)
def test_a_broken_log_is_named(run, tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = bandit(tmp_path / "logs", 20)
    path = folder / "random" / "tiny" / "tiny.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(message)):
        run("--open-bandit", folder, "--out", tmp_path / "out")


def store(tmp_path: Path, uniform: bool = True, num: int = 1_200) -> str:
    """Rounds of two arms; depth 10 of `title` is worth .4 clicks more, `people` nothing, a cut of 10 is worth .2."""
    url = f"sqlite:///{tmp_path}/events.db"
    rng = np.random.default_rng(1)
    table = Table.of({"title": [5, 10], "people": [0, 10]}, [5, 10])
    even = np.full((num, len(table)), 1 / len(table))
    _, decision = table.draw(even if uniform else np.eye(len(table))[np.full(num, len(table) - 1)], rng)
    events: list[Impression | Action] = []
    for i in range(num):
        depths, cut = decision.depths[i], int(decision.cut[i])
        drawn = Allocation(tuple(depths.tolist()), cut)
        lost = i % 40 == 7
        events.append(
            Impression(
                f"i{i}",
                NOW,
                "love",
                ("d1", "d2"),
                arms=("title", "people"),
                drawn=drawn,
                executed=Allocation((0, 0), 0) if lost else None,
                propensity=float(decision.propensity[i]),
                marginals=tuple(decision.marginals[i].tolist()),
                policy="explore/1",
            )
        )
        if rng.random() < 0.1 + 0.4 * (depths[0] == 10) + 0.2 * (cut == 10):
            events.append(Action(f"a{i}", f"i{i}", "d1", "click", NOW))
    events.append(Impression("plain", NOW, "love", ("d1",)))
    with EventStore(url) as opened:
        opened.append(events)
    return url


FIXED = "{{class: ltrr.policies.fixed.FixedPolicy, depths: {depths}, cut: {cut}}}"


def test_a_fixed_target_from_the_event_store(run, tmp_path: Path) -> None:
    url, section = store(tmp_path), FIXED.format(depths="{title: 10, people: 10}", cut=10)
    run("--events", url, "--policy", section, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    rows = {row["estimator"]: row["estimate"] for row in found["rows"]}
    assert set(rows) == {"ips", "snips", "clipped-ips", "pi", "snpi"}
    for name in ("ips", "snips"):
        assert abs(rows[name]["value"] - 0.7) < 3.5 * rows[name]["error"]
        assert rows[name]["left_out"] == 30
    assert rows["pi"]["effective"] > 1.3 * rows["ips"]["effective"]
    assert (found["without"], found["left_out"], found["mean_cut"]) == (1, {}, 10)
    assert (found["target"]["depths"], found["target"]["cut"]) == ({"title": 10, "people": 10}, 10)
    assert "| explore/1 | 1,200 |" in (tmp_path / "out" / "table.md").read_text()
    (tmp_path / "funnel.yaml").write_text(f"policy: {FIXED.format(depths='{title: 10, people: 10}', cut=5)}")
    run("--events", url, "--config", tmp_path / "funnel.yaml", "--policy.cut", 10, "--out", tmp_path / "config")
    assert results(tmp_path / "config") == found


def test_a_target_of_ones_own_from_the_event_store(run, tmp_path: Path) -> None:
    """ByWords gives queries of one word a cut of 5; depths that it does not name are the deepest of the log."""
    section = "{class: tests.evaluation.test_replay.ByWords}"
    run("--events", store(tmp_path), "--policy", section, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert found["mean_cut"] == 5
    rows = {row["estimator"]: row["estimate"] for row in found["rows"]}
    for name in ("ips", "snips", "pi"):
        assert rows[name]["low"] < 0.1 + 0.4 < rows[name]["high"]


def test_a_learned_target_from_the_event_store(run, tmp_path: Path) -> None:
    """Where a page is worth .1 clicks a candidate that was let through, so is the target's mean cut."""
    made, rng = served.model(), np.random.default_rng(0)
    (tmp_path / "export").mkdir()
    made.export(tmp_path / "export")
    with EventStore(f"sqlite:///{tmp_path}/events.db") as opened:
        for seed in range(20):
            shown, _ = served.events(made, seed=seed)
            opened.append(shown)
            clicked = [i for i in shown if rng.random() < 0.1 * i.drawn.cut]
            opened.append([Action(f"a-{i.id}", i.id, i.shown[0], "click", i.time) for i in clicked])
    out, url = tmp_path / "out", f"sqlite:///{tmp_path}/events.db"
    section = f"class: ltrr.policies.cut.CutPolicy, model: {tmp_path / 'export'}"
    softmax = "{class: ltrr.policies.explorers.Softmax, temperature: 0.02}"
    run("--events", url, "--policy", f"{{{section}, budget: 3, explore: {softmax}}}", "--out", out)
    found = results(out)
    assert found["left_out"] == {}
    assert 1 < found["mean_cut"] < 5
    rows = {row["estimator"]: row["estimate"] for row in found["rows"]}
    assert {"dm", "ips", "snips", "dr"} <= set(rows)
    for name in ("ips", "snips", "dr"):
        assert abs(rows[name]["value"] - 0.1 * found["mean_cut"]) < 3.5 * rows[name]["error"]
        assert rows[name]["error"] < 0.05
    assert "candidates in the mean" in (out / "table.md").read_text()
    with pytest.raises(ValueError, match="budget"):
        run("--events", url, "--policy", f"{{{section}}}", "--out", out)
    with pytest.raises(ValueError, match="it was learned from the arms a, b, this funnel has title, people"):
        run("--events", store(tmp_path / "export", num=50), "--policy", f"{{{section}, budget: 3}}", "--out", out)


@pytest.fixture(scope="module")
def explored(music: Path, tmp_path_factory) -> tuple[Path, str]:
    """A funnel of one arm that explores what a second one brings, and the store of its pages."""
    folder = tmp_path_factory.mktemp("explored")
    config, rng = folder / "c.yaml", np.random.default_rng(0)
    config.write_text(
        f"data: {{path: {music}}}\ncache: {folder / 'cache'}\narms:\n"
        "  lexical: {class: ltrr.arms.lexical.Lexical, tune: false}\n"
        "  structured: {class: ltrr.arms.structured.Structured, tune: false}\n"
        "fusion: {arms: [lexical, structured], weights: {lexical: 1.0, structured: 0.0}}\n"
        "policy: {class: ltrr.policies.rules.Calibrated, budget: 3, "
        "explore: {class: ltrr.policies.worth.ReservedPlace, share: 0.5, among: 20, arm: structured}}\n"
    )
    (system,) = open_systems(config, [])
    funnel, ids, url = system.funnel(seed=1), system.corpus.ids, f"sqlite:///{folder}/events.db"
    asked = [q for split in system.dataset.splits for q in system.dataset.split(split).queries]
    wanted = {q: grades for s in system.dataset.splits for q, grades in system.dataset.split(s).qrels.items()}
    with EventStore(url) as store:
        for n in range(30):
            pages = impressions_of(
                page := funnel.search(asked, 40), ids, times=[NOW] * len(asked), sessions=[f"{n}-{q.id}" for q in asked]
            )
            events: list = [*pages]
            for query, seen in zip(page.queries, pages, strict=True):
                for place, entity in enumerate(seen.shown):
                    likes = 0.95 if wanted[query.id].get(entity, 0) > 0 else 0.1
                    if rng.random() < likes / (1 + place):
                        events.append(Action(f"{seen.id}-{place}", seen.id, entity, "click", seen.time))
            store.append(events)
    return config, url


def test_an_arm_that_was_explored_may_be_switched_on(run, tmp_path: Path, explored) -> None:
    config, url = explored
    on = ["--fusion.weights", "{lexical: 1.0, structured: 0.5}", "--policy.explore", "null"]
    run("--events", url, "--sets", "--config", config, *on, "--out", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found["mode"] == "sets"
    assert not found["notes"]
    assert found["gain_low"] < found["gain"] < found["gain_high"]
    assert found["explored"] > 10
    assert abs(found["missing"]) < 0.5
    assert "clicks a page if all is looked at" in (tmp_path / "table.md").read_text()
    # An arm whose candidates were never explored is refused, with the fix.
    deep = ["--arms.other.class", "ltrr.arms.popular.Popular", "--fusion.arms", "[other]", "--fusion.weights", "null"]
    run("--events", url, "--sets", "--config", config, *deep, "--policy.explore", "null", "--out", tmp_path / "no")
    refused = json.loads((tmp_path / "no" / "results.json").read_text())
    assert refused["gain_low"] is None
    assert "policy.explore.arm" in refused["notes"][0]
    with pytest.raises(ValueError, match="--sets: needs the funnel"):
        run("--events", url, "--sets", "--out", tmp_path / "x")
    with pytest.raises(ValueError, match="no impressions of nobody"):
        run("--events", url, "--sets", "--config", config, "--logger", "nobody", "--out", tmp_path / "x")


def test_a_store_without_a_choice_is_flagged(run, tmp_path: Path) -> None:
    flags = ("--policy", FIXED.format(depths="{title: 5}", cut=5), "--out", tmp_path / "out")
    run("--events", store(tmp_path, uniform=False, num=200), *flags)
    for row in results(tmp_path / "out")["rows"]:
        assert row["estimate"]["low"] is None
        assert row["estimate"]["notes"][0].startswith("the logger is deterministic")


def test_a_wrong_target_is_named(run, tmp_path: Path) -> None:
    url = store(tmp_path, num=50)
    for flags, message in (
        ((), "--events: needs a target, --policy '{class: ltrr.policies.fixed.FixedPolicy, depths: {title: 50}"),
        (("--policy", "title=5"), "--policy: 'title=5' is no section; write '{class: "),
        (("--policy", FIXED.format(depths="{title: a}", cut=5)), "policy.depths.title: "),
        (
            ("--policy", FIXED.format(depths="{titel: 5}", cut=5)),
            "there is no arm 'titel'; the arms are: title, people",
        ),
        (("--policy", FIXED.format(depths="{}", cut=5), "--logger", "x"), "there are no rounds with arms"),
        (
            ("--target", '{"title": 5}', "--cut", 5),
            "--cut: was removed; give the target as a section, --policy '{class",
        ),
        (("--model", tmp_path, "--budget=3"), "--budget: was removed; give the target as a section, --policy"),
        (("--policy", "{class: ltrr.policies.fixd.FixedPolicy}"), "policy.class: cannot import"),
        (("--policy", "{class: ltrr.policies.fixed.FixedPolicy, cutt: 3}"), "did you mean 'cut'?"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run("--events", url, *flags, "--out", tmp_path / "out")
    fixed = ("--policy", FIXED.format(depths="{}", cut=5), "--out", tmp_path / "out")
    done = script("scripts/ope.py", "--events", f"sqlite:///{tmp_path}/no.db", *fixed, check=False)
    assert (done.returncode, "there is no such file" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
