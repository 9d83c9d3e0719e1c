"""The belief is the calibration where nothing was seen, and moves with clicks and silence under the rules of trust."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from ltrr.data.beir import Corpus, open_dataset
from ltrr.data.corpus import Document
from ltrr.data.expansions import Expansion, ExpansionWriter
from ltrr.feedback.evidence.tally import Tally
from ltrr.policies.belief import Belief, levels_of
from ltrr.policies.boost import ClickBoost
from ltrr.policies.evidence import CorpusEvidence
from ltrr.policies.rules import Calibrated
from ltrr.protocols import Learning, Reporting, offers
from ltrr.types import ActionRow, Context, ImpressionRow, Pool, Query

SCORES = np.array([[0.9, 0.7, 0.6, 0.3, 0.2]])
POOL = Pool(("all", "fused"), np.arange(5, dtype=np.int32)[None], *[np.repeat(SCORES[:, :, None], 2, axis=2)] * 2)
WEIGHTS = [3.0, 0.0, -0.5, -2.0]
GIVEN = {"arms": ["all"], "depths": {"all": 5}, "budget": 2.0, "num": 5, "calibration": WEIGHTS}
LOVE = Query("q", "Love!")


def teach(belief: Belief | ClickBoost, rows: list[int], clicked: list[int], customer: str = "", n: int = 0) -> None:
    time = 1_780_000_000_000_000 + n
    impression = ImpressionRow(f"i{customer}{n}", f"s{customer}{n}", customer, time, "love", rows)
    actions = [ActionRow(f"a{customer}{n}{row}", impression.id, row, "click", time, None) for row in clicked]
    belief.online(None, "").take([impression], actions)


def odds(belief: Belief, query: Query = LOVE) -> np.ndarray:
    return belief.odds([query], POOL)[0][0]


def test_without_evidence_it_is_the_calibration() -> None:
    belief = Belief(**GIVEN, coupling=-2.0, evidence=Tally())
    prior = Calibrated(**GIVEN)
    for ours, theirs in zip(belief.worth([LOVE], POOL), prior.worth([LOVE], POOL), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_click_raises_and_silence_lowers_and_only_for_this_query() -> None:
    belief = Belief(**GIVEN, evidence=Tally())
    before = odds(belief)
    teach(belief, [0, 3], [3])
    after = odds(belief)
    assert after[3] - before[3] == pytest.approx(np.log(9))
    assert after[0] < before[0]
    np.testing.assert_array_equal(after[[1, 2, 4]], before[[1, 2, 4]])
    np.testing.assert_array_equal(odds(belief, Query("x", "another")), before)
    revised = belief.greedy().revise([LOVE], np.zeros((1, 0)), POOL, belief.decide([LOVE], np.zeros((1, 0))))
    assert revised.order is not None
    assert revised.order.docs[0, 0] == 3
    assert (np.diff(revised.order.scores) <= 0).all()


def test_where_one_thing_is_wanted_what_is_found_speaks_against_the_others() -> None:
    single, free = (Belief(**GIVEN, coupling=c, evidence=Tally()) for c in (-4.0, 0.0))
    for n in range(4):
        for belief in (single, free):
            teach(belief, [3], [3], n=n)
    assert odds(single)[3] > odds(free)[3] - 0.1
    others = [0, 1, 2, 4]
    assert expit(odds(single)[others]).sum() < 0.7 * expit(odds(free)[others]).sum()


def test_what_customers_teach_others_see_when_enough_agree_and_an_erasure_takes_it_back(
    music: Path, tmp_path: Path
) -> None:
    corpus = open_dataset(music).corpus
    belief = Belief(**GIVEN, corpus=corpus)
    before = odds(belief)
    learning = offers(belief.online(None, ""), Learning)
    assert learning is not None
    for n, customer in enumerate(("ann", "bob", "cyd")):
        np.testing.assert_array_equal(odds(belief), before)
        teach(belief, [0, 4], [4], customer, n)
        assert odds(belief, Query("q", "love", Context(customer)))[4] > before[4]
    seen = odds(belief)
    assert seen[4] > before[4] + 5
    assert seen[0] < before[0]
    learning.save(tmp_path / "belief.npz")
    other = Belief(**GIVEN, corpus=corpus)
    other.online(None, "").load(tmp_path / "belief.npz")
    np.testing.assert_allclose(odds(other), seen)
    learning.erase("bob")
    np.testing.assert_allclose(odds(belief), before)
    assert sorted(learning.customers()) == ["ann", "cyd"]


def test_a_boost_raises_what_was_clicked_for_this_query() -> None:
    options = {name: value for name, value in GIVEN.items() if name != "calibration"}
    boost = ClickBoost(**options, explore=None)
    plain = boost.worth([LOVE], POOL)
    assert plain.order is not None
    assert plain.order[0].tolist() == [0, 1, 2, 3, 4]
    for n in range(5):
        teach(boost, [0, 1, 4], [4], n=n)
    boosted = boost.worth([LOVE], POOL).order
    assert boosted is not None
    assert boosted[0, 0] == 4


def test_an_explanation_adds_up_and_stands_in_the_order_of_the_page() -> None:
    belief = Belief(**GIVEN, coupling=-1.0, evidence=Tally())
    teach(belief, [0, 3], [3])
    belief.set_prices({"candidates": 0.2})
    columns = belief.explain(LOVE, POOL)
    revised = belief.greedy().revise([LOVE], np.zeros((1, 0)), POOL, belief.decide([LOVE], np.zeros((1, 0))))
    assert revised.order is not None
    assert columns["row"].tolist() == revised.order.docs[0].tolist()
    assert columns["ranked"].sum() == revised.decision.cut[0]
    parts = columns["prior"] + columns["own shows"] + columns["queries alike"] + columns["found elsewhere"]
    np.testing.assert_allclose(parts, columns["odds"])
    np.testing.assert_allclose(expit(columns["odds"]), columns["wanted"])
    assert columns["own shows"][columns["row"] == 3] > 2


def test_generated_queries_raise_what_they_were_made_of_as_far_as_they_foretell_clicks(tmp_path: Path) -> None:
    corpus = Corpus.from_documents([Document(f"d{i}", f"title {i}", "", {}) for i in range(5)])
    writer = ExpansionWriter(tmp_path, corpus, model="m", settings={}, shard=5)
    writer.write(range(5), [[Expansion("love", np.log(0.8), 1)] if row == 3 else [] for row in range(5)])
    writer.finish()
    evidence = CorpusEvidence(corpus, expansion=str(tmp_path), distinct=1, budget=1e6)
    belief, plain = Belief(**GIVEN, evidence=evidence), Belief(**GIVEN, evidence=CorpusEvidence(corpus))
    rise = odds(belief) - odds(plain)
    assert rise[3] == pytest.approx(-np.log(1 - 0.5 * 0.8), abs=1e-3)
    assert not rise[[0, 1, 2, 4]].any()
    columns = belief.explain(LOVE, POOL)
    assert columns["generated queries"][columns["row"] == 3] == pytest.approx(rise[3])
    np.testing.assert_allclose(belief.explain(Query("q", "hate"), POOL)["generated queries"], 0, atol=0.01)
    # Foretelling wrongly, it loses its weight: pages of a query that nobody asked before move it.
    texts = [f"love {n}" for n in range(400)]
    evidence.predict(texts, [3] * 400, [0.9] * 400)
    time = 1_780_000_000_000_000
    for n, text in enumerate(texts):
        belief.odds([Query("q", text, Context(f"c{n}"))], POOL)
        page = ImpressionRow(f"i{n}", f"s{n}", f"c{n}", time + n * 1_000_000_000, text, [3, 0])
        click = ActionRow(f"a{n}", page.id, 0, "click", page.time, None)
        belief.online(None, "").take([page], [click])
    assert belief.weights[-1] < 0.5
    assert belief.status()["generated queries count"] == pytest.approx(belief.weights[-1], abs=1e-3)
    with pytest.raises(ValueError, match=r"predicted: 2\.0 is not within"):
        CorpusEvidence(corpus, predicted=2.0)


def test_evidence_that_foretells_nothing_loses_its_weight_and_the_status_says_so() -> None:
    belief = Belief(**GIVEN, evidence=Tally())
    rng = np.random.default_rng(0)
    for n in range(3_000):  # clicks move at random among what this query's customers see
        belief.odds([LOVE], POOL)
        rows = rng.permutation(5)[:2].tolist()
        time = n * 3_600_000_000
        impression = ImpressionRow(f"i{n}", f"s{n}", "", time, "love", rows)
        wanted = int(rng.integers(5))
        actions = [ActionRow(f"a{n}", f"i{n}", wanted, "click", time, None)] if wanted in rows else []
        if n % 50 == 0:  # and what was taught is wrong again
            belief._evidence = Tally()
            belief._evidence.take(
                [ImpressionRow("x", "x", "", 0, "love", [n % 5])], [ActionRow("y", "x", n % 5, "click", 0, None)]
            )
        belief.note([impression], actions)
    assert belief.weights[0] < 0.3
    assert belief.status()["own evidence counts"] == pytest.approx(belief.weights[0], abs=1e-3)


def test_levels_are_the_gains_of_what_is_relevant() -> None:
    assert levels_of(np.ones(7)) == [[1.0, 1.0]]
    assert levels_of(np.array([1.0, 0.5, 0.5, 0.5])) == [[0.5, 0.75], [1.0, 0.25]]
    many = levels_of(np.linspace(0.1, 1.0, 50))
    assert len(many) == 4
    assert [share for _, share in many] == [0.25] * 4


def test_it_says_when_it_fell_back_and_why() -> None:
    belief = Belief(**GIVEN, evidence=Tally())
    assert belief.status()["fallen back to the prior"] is None
    belief.weights[0] = 0.03
    assert "its weight fell to 0.03" in belief.status()["fallen back to the prior"]
    assert "heed is 0" in Belief(**GIVEN, evidence=Tally(), heed=0.0).status()["fallen back to the prior"]
    assert offers(belief, Reporting) is belief


def test_one_customer_cannot_teach_how_all_look_or_how_much_evidence_counts() -> None:
    corpus = Corpus.from_documents([Document(f"d{i}", f"title {i}", "", {}) for i in range(12)])
    evidence = CorpusEvidence(corpus, None, budget=100.0)
    belief = Belief(**GIVEN, evidence=evidence)
    rng, rows = np.random.default_rng(0), list(range(12))
    time = 1_780_000_000_000_000

    def serve(customer: str, name: str, clicked: list[int]) -> None:
        belief.odds([Query("q", f"word {rng.integers(20)}", Context(customer))], POOL)
        impression = ImpressionRow(name, name, customer, time, f"word {rng.integers(20)}", rows)
        actions = [ActionRow(f"a{name}{row}", name, row, "click", time, None) for row in clicked]
        belief.online(None, "").take([impression], actions)

    for n in range(600):  # honest ones look at the first places
        serve(f"c{n % 60}", f"h{n}", [0] if rng.random() < 0.5 else [])
    belief._due = 0
    belief.learned()
    before = belief.looks.examined.copy()
    for n in range(1_600):  # clicks at the eighth place, everywhere
        serve("attacker", f"x{n}", [7])
        if n == 20:
            weights = belief.weights.copy()
    belief._due = 0
    belief.learned()
    np.testing.assert_allclose(belief.looks.examined, before, atol=0.03)
    np.testing.assert_array_equal(belief.weights, weights)
    assert not evidence.trusts("attacker")
    assert evidence.trusts("a new one")


def test_comparisons_can_hold_the_cut_and_what_is_believed_about_looking() -> None:
    belief = Belief(**GIVEN, same_cut=True, evidence=Tally())
    teach(belief, [0, 3], [3])
    worth = belief.worth([LOVE], POOL)
    np.testing.assert_allclose(worth.worth[0], 1 / np.arange(1, 6))
    assert worth.order is not None
    assert worth.order[0, 0] == 3
    face = Belief(**GIVEN, eta=0.0, evidence=Tally())
    assert (face.looks.examined == 1).all()
    face._due = 0
    teach(face, [0, 3], [3])
    assert (face.looks.examined == 1).all()
