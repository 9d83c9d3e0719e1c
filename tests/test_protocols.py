"""A part has an ability by having all of its methods, and `offers` says so."""

from __future__ import annotations

from typing import Any

import pytest

from ltrr import protocols
from ltrr.arms.dense import Dense
from ltrr.arms.lexical import Lexical
from ltrr.arms.memory import Memory
from ltrr.arms.personal import Personal
from ltrr.arms.popular import Popular
from ltrr.arms.structured import Structured
from ltrr.data.beir import Corpus, Document
from ltrr.learners.linucb import LinUCB
from ltrr.learners.relevance import RelevanceLearner
from ltrr.learners.router import SupervisedRouter
from ltrr.policies.cut import CutPolicy
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import AfterRetrieval, Exploring, Featured, Indexed, Learning, Online, Priced, offers
from ltrr.rankers.cross_encoder import CrossEncoderRanker


class Empty:
    """Learns; knows nothing yet, so its length is 0."""

    def __len__(self) -> int:
        return 0

    def take(self, seen, did): ...
    def customers(self): ...
    def erase(self, customer): ...
    def compact(self): ...
    def save(self, path): ...
    def load(self, path): ...


class Half:
    """Has one of two methods."""

    def build(self, corpus, root): ...


class Price:
    """Has its prices as an attribute, not as a property."""

    def __init__(self) -> None:
        self.prices = {"mine": 0.0}

    def find_prices(self, queries, features, retrieve): ...
    def set_prices(self, prices, label=""): ...
    def follow(self, logged): ...


def test_all_methods_are_needed_and_nothing_else() -> None:
    empty, price = Empty(), Price()
    assert offers(empty, Learning) is empty
    assert offers(price, Priced) is price
    assert offers(Half(), Indexed) is None
    assert offers(empty, Indexed) is None
    assert offers(None, Online) is None


ABILITIES = {name for name, each in vars(protocols).items() if getattr(each, "_is_runtime_protocol", False)}


def abilities(part: object) -> set[str]:
    return {name for name in ABILITIES if offers(part, getattr(protocols, name)) is not None}


def test_policies_have_the_abilities_of_their_methods() -> None:
    assert abilities(FixedPolicy(["a"], {"a": 5})) == set()
    cut = CutPolicy(["a"], RelevanceLearner(), {"a": 5}, budget=3)
    assert {each.__name__ for each in (AfterRetrieval, Exploring, Featured, Priced)} < abilities(cut)


@pytest.mark.parametrize(
    ("learner", "wanted"),
    [(RelevanceLearner(), {"Uncertain"}), (LinUCB(), {"Uncertain"}), (SupervisedRouter(), set())],
)
def test_learners_of_cuts_may_know_how_sure_they_are(learner: object, wanted: set[str]) -> None:
    assert abilities(learner) & {"Uncertain"} == wanted


@pytest.mark.parametrize(
    ("cls", "wanted"),
    [
        (Lexical, {"Indexed", "TunableArm"}),
        (Structured, {"Indexed", "TunableArm"}),
        (Dense, {"Indexed", "Embedding"}),
        (Popular, {"Indexed"}),
        (Personal, {"Indexed", "Learning", "Profiled", "Embedding"}),
        (CrossEncoderRanker, {"TunableRanker", "Mixing"}),
    ],
)
def test_arms_and_rankers_have_the_abilities_of_their_methods(cls: Any, wanted: set[str]) -> None:
    among = {"Indexed", "TunableArm", "TunableRanker", "Embedding", "Learning", "Profiled", "Mixing"}
    part = cls.__new__(cls)  # methods alone: no model is loaded
    assert abilities(part) & among == wanted


def test_an_empty_memory_is_offered_though_it_counts_as_false() -> None:
    memory = Memory(Corpus.from_documents([Document("d", "title", "text", {})]), encoder=None)
    assert not memory
    assert offers(memory, Learning) is memory
