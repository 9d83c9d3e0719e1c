"""Strata and paired differences equal slow counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ltrr.evaluation.stream_report import Asked, Served, by_round, paired, report, strata_of

SEEDS, ROUNDS = 4, 500
RNG = np.random.default_rng(0)
QUERIES = RNG.integers(30, size=(SEEDS, ROUNDS))
BEFORE = np.array([[int((row[:n] == q).sum()) for n, q in enumerate(row)] for row in QUERIES])
ASKED = Asked(QUERIES, BEFORE, QUERIES % 3 == 0)


def served(mean: float) -> Served:
    recall = np.clip(RNG.normal(mean, 0.2, (SEEDS, ROUNDS)), 0, 1)
    return Served(recall, (recall > 0.3).astype(float), RNG.integers(1, 9, (SEEDS, ROUNDS)).astype(float))


SYSTEMS = {"rule": served(0.5), "boost": served(0.52), "belief": served(0.6)}


def test_strata_are_means_over_their_rounds_and_by_query_over_queries() -> None:
    strata = strata_of(ASKED, SYSTEMS)
    assert [*strata] == ["all", "0", "1-9", "10-49", "50+", "by-query", "test"]
    assert sum(strata[name]["share"] for name in ("0", "1-9", "10-49", "50+")) == pytest.approx(1)
    assert strata["50+"] == {"share": 0.0, "systems": {}}
    for name, system in SYSTEMS.items():
        some = [system.recall[s][(BEFORE[s] >= 1) & (BEFORE[s] <= 9)].mean() for s in range(SEEDS)]
        assert strata["1-9"]["systems"][name]["recall"] == pytest.approx(np.mean(some))
        each = [np.mean([system.cost[s][QUERIES[s] == q].mean() for q in np.unique(QUERIES[s])]) for s in range(SEEDS)]
        assert strata["by-query"]["systems"][name]["cost"] == pytest.approx(np.mean(each))
        assert strata["test"]["systems"][name]["success"] == pytest.approx(
            np.mean([system.success[s][QUERIES[s] % 3 == 0].mean() for s in range(SEEDS)])
        )


def test_differences_are_paired_by_seed_and_corrected() -> None:
    rows = paired(ASKED, SYSTEMS, "belief")
    assert [*rows] == ["belief-rule", "belief-boost"]
    by_seed = SYSTEMS["belief"].recall.mean(axis=1) - SYSTEMS["rule"].recall.mean(axis=1)
    assert rows["belief-rule"]["mean"] == pytest.approx(by_seed.mean())
    assert rows["belief-rule"]["low"] < by_seed.mean() < rows["belief-rule"]["high"]
    assert rows["belief-rule"]["p"] == pytest.approx(stats.ttest_1samp(by_seed, 0)[1])
    assert all(row["p_holm"] >= row["p"] for row in rows.values())
    one = {name: Served(*(part[:1] for part in system)) for name, system in SYSTEMS.items()}
    single = paired(Asked(*(part[:1] for part in ASKED)), one, "belief")
    assert single["belief-boost"]["low"] is None
    settings = {"dataset": "d", "zipf": 1.0, "rounds": ROUNDS, "mean_cut": 5, "seeds": 1, "rule": "scaled"}
    settings["rule_chosen_on"] = "train"
    lines = report({"settings": settings, "strata": strata_of(ASKED, SYSTEMS), "paired": single})
    assert any("belief-boost" in line for line in lines)
    assert by_round(ASKED, SYSTEMS, ["rule", "belief"]).axes
