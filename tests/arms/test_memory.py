"""Memory returns what worked for a query and for queries like it, to whom it may, and survives restarts whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from ltrr.arms.memory import Memory
from ltrr.data.beir import open_dataset
from ltrr.data.expansions import Expansion, ExpansionWriter
from ltrr.feedback.events import Action, Impression
from ltrr.types import Context, Query

START = datetime(2026, 1, 5, 12, tzinfo=UTC)


class Meanings:
    """An encoder for which "song" and "tune" mean the same."""

    id = "meanings"
    asked = 0

    def encode(self, texts, *, is_query: bool = False) -> np.ndarray:
        self.asked += len(texts)
        out = np.zeros((len(texts), 16), np.float32)
        for i, text in enumerate(texts):
            for word in text.replace("tune", "song").split():
                out[i, sum(map(ord, word)) % 16] += 1
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    titles = ["love song", "night song", "river", "golden river", "summer", "winter tale", "the tide", "echo"]
    lines = [json.dumps({"_id": f"d{i}", "title": title, "text": ""}) for i, title in enumerate(titles)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "love"}))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    return open_dataset(folder).corpus


def expansions(corpus, folder, likelihood: float = -2.0):
    writer = ExpansionWriter(folder, corpus, model="m", settings={}, shard=3)
    for rows in writer.missing():
        writer.write(rows, [[Expansion(f"Words about {corpus[row].title}!", likelihood, 4)] for row in rows])
    writer.finish()
    return str(folder)


def events(n: int, query: str, clicked: str, customer: str | None, *, session: str | None = None) -> list:
    shown = tuple(f"d{i}" for i in range(8))
    time = START + timedelta(minutes=n)
    seen = Impression(f"i{n}", time, query, shown, session=session, context=Context(customer=customer))
    return [seen, Action(f"a{n}", f"i{n}", clicked, "click", time + timedelta(seconds=9))] if clicked else [seen]


def ask(memory: Memory, text: str, customer: str | None = None, k: int = 5) -> dict[str, float]:
    found = memory.search([Query("q", text, Context(customer=customer))], k)
    assert found.docs.shape == (1, k)
    return {f"d{row}": float(s) for row, s in zip(found.docs[0], found.scores[0], strict=True) if row >= 0}


def taught(corpus, encoder=None, **options) -> Memory:
    """The idiom "zorp", which three customers and then one alone use; a tune; a private word."""
    memory = Memory(corpus, encoder, **options)
    n = 0
    for customer in ("ann", "bob", "cid", "ann"):
        for query, clicked in (("Zorp", "d3"), ("sad tune", "d1")):
            memory.observe(events(n, query, clicked, customer))
            n += 1
    memory.observe(events(n, "my secret", "d7", "ann"))
    return memory


def test_an_empty_memory_says_nothing(corpus):
    assert ask(Memory(corpus, Meanings()), "love song") == {}
    assert Memory(corpus).search([], 3).docs.shape == (0, 3)


def test_what_worked_for_three_customers_comes_back_to_all(corpus):
    memory = taught(corpus)
    assert next(iter(ask(memory, "  ZORP "))) == "d3"
    assert ask(memory, "my secret") == {}
    assert list(ask(memory, "my secret", "ann")) == ["d7"]
    assert ask(memory, "my secret", "bob") == {}
    memory.observe(events(100, "new thing", "d5", "ann"))  # the next search knows
    assert list(ask(memory, "New thing", "ann")) == ["d5"]


def test_queries_alike_by_words_and_by_meaning_are_remembered_too(corpus):
    alone, words, both = (
        taught(corpus, neighbours=0),
        taught(corpus),
        taught(corpus, Meanings()),
    )
    for memory, found in ((alone, []), (words, []), (both, ["d1"])):
        assert list(ask(memory, "sad song")) == found
    assert list(ask(words, "sad tune please", "x")) == ["d1"]
    assert ask(words, "sad tune please")["d1"] < ask(words, "sad tune")["d1"]
    assert ask(both, "sad song")["d1"] == pytest.approx(ask(both, "sad tune")["d1"], abs=1e-6)


def test_predictions_come_first_and_give_way_to_what_is_observed(corpus, tmp_path):
    memory = Memory(corpus, expansion=expansions(corpus, tmp_path), predicted=0.8)
    assert ask(memory, "words about river")["d2"] == pytest.approx(0.8 * np.exp(-0.5), rel=1e-5)
    assert list(ask(memory, "words about river"))[:2] == ["d2", "d3"]
    for n, customer in enumerate("abcdefgh"):
        memory.observe(events(n, "words about river", "d5", customer))
    found = ask(memory, "words about river")
    assert next(iter(found)) == "d5"
    assert found["d2"] < 0.8 * np.exp(-0.5)  # looked at and left


@pytest.mark.parametrize("encoder", [None, Meanings()])
def test_a_snapshot_restores_everything(corpus, encoder, tmp_path):
    options: dict[str, Any] = {"expansion": expansions(corpus, tmp_path / "expansions")}
    memory, again = taught(corpus, encoder, **options), Memory(corpus, encoder, **options)
    memory.save(tmp_path / "memory.npz")
    again.load(tmp_path / "memory.npz")
    late = events(200, "zorp", "d6", "bob", session="s")
    for one in (memory, again):
        one.observe(late)
        one.observe(events(0, "Zorp", "d3", "ann"))  # known already
    for text in ("zorp", "sad song", "my secret", "words about echo", "river"):
        for customer in (None, "ann"):
            assert ask(again, text, customer) == pytest.approx(ask(memory, text, customer))
    assert ask(again, "zorp")
    memory.compact()
    assert ask(memory, "zorp") == pytest.approx(ask(again, "zorp"))


def test_compaction_drops_what_has_decayed(corpus):
    memory = taught(corpus, half_life=7.0)
    before = len(memory)
    far = Impression("far", START + timedelta(days=420), "other", ("d0",), context=Context(customer="ann"))
    memory.observe([far])
    memory.compact()
    assert len(memory) == 1 < before


def test_erasing_a_customer_leaves_nothing_of_theirs(corpus, tmp_path):
    memory = taught(corpus, Meanings())
    memory.erase("ann")
    assert ask(memory, "zorp") == {}  # two customers are left
    assert ask(memory, "my secret", "ann") == {}
    memory.save(tmp_path / "memory.npz")
    with np.load(tmp_path / "memory.npz", allow_pickle=False) as file:
        kept = b"".join(file[name].tobytes() for name in file.files)
    assert b"ann" not in kept
    assert b"my secret" not in kept
    assert b"bob" in kept


def test_an_attacker_moves_no_list_of_others(corpus, tmp_path):
    """One customer id, thousands of clicks on one entity for what others search."""
    memory = taught(corpus, Meanings(), expansion=expansions(corpus, tmp_path))
    texts = ["zorp", "sad tune", "sad song", "words about river", "words about golden river"]
    before = [ask(memory, text, "bob") for text in texts]
    for n in range(2000):
        memory.observe(events(1000 + n, texts[n % len(texts)], "d0", "mallory"))
    for text, found in zip(texts, before, strict=True):
        assert list(ask(memory, text, "bob")) == list(found), text
    assert "d0" in ask(memory, "zorp", "mallory")


def test_remembered_queries_are_encoded_once(corpus):
    encoder = Meanings()
    memory = taught(corpus, encoder)
    ask(memory, "anything")
    first = encoder.asked
    ask(memory, "anything")
    assert encoder.asked == first
    ask(memory, "something else")
    assert encoder.asked == first + 1


def test_what_others_have_for_themselves_takes_nobodys_place(corpus):
    """A crowd of searches, or of private clicks, like a query that others agree on."""
    memory = taught(corpus, Meanings())
    found = ask(memory, "very sad tune", "dora")
    assert "d1" in found
    crowd = ["sad tune " + "x" * n for n in range(1, 40)] + ["tune sad"] * 3
    for n, text in enumerate(crowd):
        memory.observe(events(5000 + n, text, "d6" if n % 2 else "", "mallory"))
    for again in (memory, None):
        if again is None:
            memory.compact()
        after = ask(memory, "very sad tune", "dora")
        assert after == pytest.approx(found, rel=0.03)  # days went by
    assert "d6" in ask(memory, "very sad tune", "mallory")


def test_clicks_where_hardly_anybody_looks_survive_compaction(corpus):
    memory = Memory(corpus, examination=[1.0, 0.5, 0.0001])
    for n, customer in enumerate("abc"):
        memory.observe(events(n, "deep", "d2", customer))
    before = ask(memory, "deep")
    assert before["d2"] > 0.5
    memory.compact()
    assert ask(memory, "deep") == pytest.approx(before)


@pytest.mark.parametrize(
    "option",
    [
        {"half_life": 0.5}, {"half_life": -5}, {"cap": 0}, {"budget": 0}, {"distinct": 0}, {"credit": 5},
        {"neighbours": -1}, {"alike": 2}, {"strength": 0}, {"predicted": -1}, {"examination": []},
        {"examination": [1.0, 0.0]}, {"examination": [5.0]},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(corpus, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"arms.memory.{name}"):
        Memory(corpus, **option)


def test_a_config_says_what_actions_are_worth(corpus):
    """Likes alone count here; a click is no refusal either."""
    shown = {"likes": Memory(corpus, reward={"weights": {"like": 1.0, "dismiss": -1.0}}), "clicks": Memory(corpus)}
    for memory in shown.values():
        memory.observe(events(1, "word", "d2", "ann"))
    assert ask(shown["likes"], "word", "ann") == {}
    assert "d2" in ask(shown["clicks"], "word", "ann")
    seen = events(2, "word", "", "ann")[0]
    like = Action("l", seen.id, "d2", "like", seen.time)
    for memory in shown.values():
        memory.observe([seen, like])
    assert ask(shown["likes"], "word", "ann")["d2"] == pytest.approx(
        1 / (2 + 2 / 3), rel=1e-3
    )  # looked at with 1/3, twice
    with pytest.raises(ValueError, match="there is no 'window'"):
        Memory(corpus, reward={"window": 3})
