"""Learners without a network come back from their exports as they were; what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltrr.learners.exports import load_learner
from ltrr.learners.linucb import LinUCB
from ltrr.learners.router import SupervisedRouter
from ltrr.protocols import Uncertain, offers
from tests.learners.test_linucb import EXAMINATION, known_of, rounds_of


def vowpal() -> Any:
    pytest.importorskip("vowpalwabbit", reason="the extra `bench` is not installed")
    from ltrr.learners.vowpal import Vowpal

    return Vowpal(EXAMINATION, levels=4)


LEARNERS = {
    "cuts": lambda: LinUCB(EXAMINATION, per="cut", l2=2.0, semi=False),
    "candidates": lambda: LinUCB(EXAMINATION, l2=3.0, alpha=2.0, levels=3, noise=0.1),
    "router": lambda: SupervisedRouter(EXAMINATION, l2=4.0, levels=3),
    "vowpal": vowpal,
}
NAMES = (("first", "second", "third"), ("own", "other"))


@pytest.fixture(params=LEARNERS)
def learner(request) -> Any:
    """Fitted on rounds whose columns have names and whose arms were drawn to known depths."""
    learner = LEARNERS[request.param]()
    learner.refit(rounds_of()._replace(names=NAMES, depths=np.array([20, 30])))
    return learner


def test_an_export_gives_the_same_values_and_learns_on_alike(learner, tmp_path: Path) -> None:
    learner.export(tmp_path / "new")
    loaded, known = load_learner(str(tmp_path / "new")), known_of(rounds_of())
    assert type(loaded) is type(learner)
    assert (loaded.columns, loaded.depths, loaded.num) == (NAMES, [20, 30], 8)
    for again in (False, True):
        np.testing.assert_allclose(loaded.values(known), learner.values(known), rtol=1e-6, atol=1e-7)
        if offers(learner, Uncertain) is not None:
            np.testing.assert_allclose(loaded.deviations(known), learner.deviations(known))
        if not again:
            for each in (learner, loaded):
                each.update(rounds_of(seed=1))


def test_the_id_is_that_of_what_was_learned(learner, tmp_path: Path) -> None:
    for name in ("a", "b"):
        learner.export(tmp_path / name)
    one, same = (load_learner(str(tmp_path / name)) for name in ("a", "b"))
    assert len(one.id) == 64
    assert one.id == same.id
    learner.refit(rounds_of(seed=2))
    learner.export(tmp_path / "c")
    assert load_learner(str(tmp_path / "c")).id != one.id


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("learner.json", b"{", r"learner\.json: damaged"),
        ("learner.json", b'{"version": 2}', r"damaged .version 2, this ltrr reads 1"),
        ("learner.json", b'{"version": 1, "learner": "Forest"}', "there is no learner 'Forest'; there are LinUCB"),
        ("learner.npz", b"no arrays", r"damaged .*export the learner again"),
        ("learner.npz", None, r"damaged .*export the learner again"),
    ],
)
def test_a_damaged_export_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    learner = LinUCB()
    learner.refit(rounds_of())
    learner.export(tmp_path)
    (tmp_path / name).write_bytes(content) if content else (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=message):
        load_learner(str(tmp_path))


def test_options_of_another_version_are_named(tmp_path: Path) -> None:
    learner = LinUCB()
    learner.refit(rounds_of())
    learner.export(tmp_path)
    note = json.loads((tmp_path / "learner.json").read_text())
    (tmp_path / "learner.json").write_text(json.dumps(note | {"options": {"beta": 1}}))
    with pytest.raises(ValueError, match=r"damaged .*'beta'"):
        load_learner(str(tmp_path))


def test_a_folder_without_a_learner_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no learner"):
        load_learner(str(tmp_path))
