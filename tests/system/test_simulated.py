"""A simulation's parts of a system: budgets and beliefs go into the section where its classes have them."""

from __future__ import annotations

import pytest

from ltrr.config import ConfigError
from ltrr.data.beir import open_dataset
from ltrr.policies.fixed import FixedPolicy
from ltrr.system.simulated import num_of, pools_reader, section_of
from ltrr.system.system import System
from tests.simulation.worlds import simulation_config


@pytest.fixture
def system(music, tmp_path):
    def open_with(**policy) -> System:
        import yaml

        settings = yaml.safe_load(simulation_config(tmp_path).read_text())
        settings["policy"] |= policy
        return System(settings, open_dataset(music))

    return open_with


def test_a_budget_and_perfect_customers_are_put_where_they_are_known(system) -> None:
    section = section_of(system(), 7, perfect=True)
    assert section["budget"] == 7
    assert section["learner"]["examination"] == [1.0]
    assert "examination" not in section_of(system(), 7)["learner"]
    learner = {"class": "ltrr.learners.linucb.LinUCB", "noise": 0.1}
    assert section_of(system(learner=learner), 7, perfect=True)["learner"]["noise"] == 0.0
    plain = System({"arms": system().specs, "policy": {"cut": 20}}, system().dataset)
    assert "budget" not in section_of(plain, 7)
    assert (num_of(system()), num_of(plain)) == (12, 60)


def test_an_unpriced_policy_searches_nothing(system, tmp_path) -> None:
    made = system()
    assert made.policies.unpriced(section_of(made, 3), 0).prices == {"candidates": 0.0}
    assert not [*(tmp_path / "cache").rglob("price-*.json")]


def test_a_split_that_is_not_there_is_named_before_anything_is_built(system, tmp_path) -> None:
    made = system()
    read = pools_reader(made, FixedPolicy(made.drawn, made.depths))
    with pytest.raises(ConfigError, match="tset"):
        read(["tset"])
    assert not [*(tmp_path / "cache").rglob("index")]
    assert read(["test"]).pool.arms == ("title", "all")
