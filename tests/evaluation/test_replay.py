"""ltrr/evaluation/replay.py: logs become weights, for policies that replay and for policies of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from ltrr.evaluation.estimate import available, estimate, joint_weights
from ltrr.evaluation.replay import Log, replay
from ltrr.feedback.events import Action, Allocation, Impression
from ltrr.policies.arms import ArmPolicy
from ltrr.policies.cut import CutPolicy
from ltrr.policies.explorers import EpsilonGreedy, Softmax
from ltrr.policies.features import TEXT, ContextFeatures, pool_names
from ltrr.policies.fixed import FixedPolicy
from ltrr.policies.table import Table
from ltrr.types import Decision, Pool, Query, RetrievalFeatures, Revised, Rounds

NOW = datetime(2024, 5, 1, tzinfo=UTC)
ARMS, DEPTHS, NUM = ("a", "b"), {"a": 10, "b": 10}, 8
WORDS = ("love", "love river", "love river night")
TEXTS = ContextFeatures([TEXT])
QUERY, EACH = pool_names(ARMS, NUM)


class ByWords:
    """A policy of one's own: ranks few candidates for a query of one word, and more for a longer one."""

    id = "by words"

    def __init__(self, arms: Sequence[str], depths: Mapping[str, int], short: int = 5, long: int = 10) -> None:
        self._depths, self._cuts = np.array([depths[arm] for arm in arms], np.int32), (short, long)

    def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
        num, longer = len(queries), [len(query.text.split()) > 1 for query in queries]
        cut = np.array(self._cuts, np.int32)[np.array(longer, int)]
        marginals = np.ones((num, len(self._depths) + 1))
        return Decision(np.tile(self._depths, (num, 1)), cut, np.ones(num), marginals)


def impressions(
    decision: Decision, texts: Sequence[str], policy: str = "explore/1", features: Sequence[Sequence[float]] = ()
) -> list[Impression]:
    """One for each decision."""
    return [
        Impression(
            f"i{i}",
            NOW,
            text,
            ("d1",),
            arms=ARMS,
            features=tuple(map(float, features[i])) if len(features) else (),
            drawn=Allocation(tuple(decision.depths[i].tolist()), int(decision.cut[i])),
            propensity=float(decision.propensity[i]),
            marginals=tuple(decision.marginals[i].tolist()),
            prices=decision.prices or {},
            policy=policy,
        )
        for i, text in enumerate(texts)
    ]


def explored(num: int = 3_000, seed: int = 0) -> tuple[Log, float]:
    """A log of a policy that draws depths of `b` and cuts, and the true value of ByWords.

    A deeper cut is worth .3 clicks for long queries and costs .2 for short ones; 10 candidates of `b` are worth .1.
    """
    rng = np.random.default_rng(seed)
    table = Table.of({"a": [10], "b": [0, 10]}, [5, 10])
    texts = [WORDS[i % 3] for i in range(num)]
    _, decision = table.draw(rng.dirichlet(np.full(len(table), 5.0), num), rng)
    longer, deep = np.arange(num) % 3 > 0, decision.cut == 10
    rate = 0.4 + 0.1 * (decision.depths[:, 1] == 10) + np.where(longer, 0.3, -0.2) * deep
    truth = (0.4 + 0.1 + 2 * (0.4 + 0.1 + 0.3)) / 3
    return Log(impressions(decision, texts), (rng.random(num) < rate).astype(float)), truth


def test_the_value_of_a_policy_of_ones_own_is_within_its_interval() -> None:
    log, truth = explored()
    replayed = replay(log, ByWords(log.arms, log.depths))
    assert replayed.used.all()
    assert replayed.cut == pytest.approx(25 / 3)
    assert set(available(replayed.logged)) == {"ips", "snips", "clipped-ips", "pi", "snpi"}
    for name in ("ips", "snips", "pi"):
        found = estimate(replayed.logged, name)
        assert found.notes == ()
        assert found.low < truth < found.high
        assert found.error < 0.06
        assert not found.low < log.reward.mean() < found.high  # the logger's own value is another


def test_a_policy_that_decides_as_logged_is_worth_the_mean_reward() -> None:
    log, _ = explored(300)
    always = log.decision._replace(propensity=np.ones(300), marginals=np.ones((300, 3)))
    same = Log(impressions(always, [WORDS[0]] * 300), log.reward)

    class Again:
        id = "again"

        def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
            return always

    assert estimate(replay(same, Again()).logged, "ips").value == pytest.approx(log.reward.mean())


def test_a_policy_that_cannot_say_how_likely_it_is_is_refused() -> None:
    log, _ = explored(50)

    class Draws(ByWords):
        def decide(self, queries: Sequence[Query], features: np.ndarray) -> Decision:
            return super().decide(queries, features)._replace(propensity=np.full(len(queries), 0.5))

    class After(ByWords):
        def revise(self, queries: Sequence[Query], features: np.ndarray, pool: Pool, decision: Decision) -> Revised:
            return Revised(features, decision)

    for cls in (Draws, After):
        with pytest.raises(ValueError, match=rf"{cls.__name__} draws .*`Replayable` in ltrr/protocols\.py"):
            replay(log, cls(log.arms, log.depths))


class Rising:
    """Values of cuts that rise faster where the first candidate has a larger fused score."""

    id, num, depths = "rising", NUM, None
    columns = tuple(f.name for f in (*TEXTS.columns, *QUERY)), tuple(f.name for f in EACH)

    def values(self, known: RetrievalFeatures) -> np.ndarray:
        steep = 1 + 20 * known.candidates[:, 0, 2:3]
        return 1 - np.exp(-steep * np.arange(1, NUM + 1) / 10)

    def refit(self, rounds: Rounds, seed: int = 0) -> None: ...

    def update(self, rounds: Rounds) -> None: ...

    def export(self, folder: object) -> None: ...


class Lost:
    """Losses of {a}, {b} and both: a long query needs both arms."""

    id, shallow, depths = "lost", (), None
    columns = tuple(f.name for f in TEXTS.columns), ARMS

    def losses(self, features: np.ndarray) -> np.ndarray:
        return features[:, :1] * np.array([[0.1, 0.05, 0.0]])


def pool(num: int, seed: int = 0) -> Pool:
    """20 candidates of each query, in fused order, some from both arms."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.random((num, 20, 3)), axis=1)[:, ::-1].astype(np.float32)
    ranks = np.tile(np.arange(20, dtype=np.float32)[:, None], (num, 1, 3))
    missing = rng.random((num, 20)) < 0.3
    scores[missing, 0] = ranks[missing, 0] = np.nan
    return Pool((*ARMS, "fused"), np.tile(np.arange(20, dtype=np.int32), (num, 1)), ranks, scores)


def arm_policy(**options: object) -> ArmPolicy:
    return ArmPolicy(ARMS, Lost(), DEPTHS, features=TEXTS, seed=0, **({"budget": 1.5} | options))  # pyright: ignore


def cut_policy(**options: object) -> CutPolicy:
    return CutPolicy(ARMS, Rising(), DEPTHS, features=TEXTS, seed=0, **({"budget": 3.0} | options))  # pyright: ignore


def served(policy: CutPolicy, num: int = 600) -> Log:
    """What a policy logs; a click is as likely as its cut is deep."""
    queries = [Query(f"i{i}", WORDS[i % 3]) for i in range(num)]
    features = TEXTS(queries)
    revised = policy.revise(queries, features, pool(num), policy.decide(queries, features))
    shown = impressions(revised.decision, [q.text for q in queries], policy.id, revised.features.tolist())
    return Log(shown, (np.random.default_rng(1).random(num) < 0.1 * revised.decision.cut).astype(float))


BOTH = {"before": arm_policy(explore=Softmax(0.05, 0.2)), "explore": Softmax(0.05, 0.1)}


@pytest.mark.parametrize("options", [{"explore": Softmax(0.05, 0.1)}, BOTH], ids=["cut", "cut and arms"])
def test_a_learned_policy_replays_its_own_log_with_weights_of_1(options: dict) -> None:
    policy = cut_policy(**options)
    policy.set_prices({"candidates": 0.02, "arms": 0.03})
    log = served(policy)
    replayed = replay(log, policy)
    assert replayed.used.all()
    np.testing.assert_allclose(joint_weights(replayed.logged), 1.0, rtol=1e-5)
    assert estimate(replayed.logged, "ips").value == pytest.approx(log.reward.mean(), rel=1e-5)
    assert replayed.cut == pytest.approx(log.decision.cut.mean(), abs=0.3)
    assert ("dr" in available(replayed.logged)) == ("before" not in options)


def test_arms_replay_their_own_log() -> None:
    policy = arm_policy(explore=Softmax(0.05, 0.2), cut=7)
    policy.set_prices({"arms": 0.03})
    queries = [Query(f"i{i}", WORDS[i % 3]) for i in range(90)]
    decision = policy.decide(queries, TEXTS(queries))
    log = Log(impressions(decision, [q.text for q in queries], policy.id, TEXTS(queries).tolist()), np.ones(90))
    replayed = replay(log, policy)
    np.testing.assert_allclose(joint_weights(replayed.logged), 1.0, rtol=1e-6)
    assert replayed.cut == 7


def test_the_doubly_robust_estimate_of_a_learned_policy_is_right() -> None:
    """A page is worth .1 clicks a candidate that was let through, so the target is worth .1 of its mean cut."""
    log = served(cut_policy(explore=Softmax(0.1, 0.9)), 4_000)
    target = cut_policy(budget=4.0)
    target.price_from(log.features)
    replayed = replay(log, target)
    assert replayed.cut == pytest.approx(4.0, abs=0.5)
    for name in ("ips", "snips", "dr"):
        found = estimate(replayed.logged, name)
        assert abs(found.value - 0.1 * replayed.cut) < 3.5 * found.error


def test_prices_from_the_log_hold_budgets_on_it() -> None:
    log = served(cut_policy(explore=EpsilonGreedy(0.5)), 2_000)
    arms = arm_policy()
    target = cut_policy(before=arms)
    target.price_from(log.features)
    assert set(target.prices) == {"arms", "candidates"}
    assert arms.decide(log.queries, TEXTS(log.queries)).depths.astype(bool).sum(axis=1).mean() <= 1.5
    assert 2 < replay(log, target).cut <= 3
    for policy in (cut_policy(), arm_policy()):
        with pytest.raises(ValueError, match="no round of the log has the features"):
            policy.price_from([(1.0,), ()])


def test_rounds_that_cannot_be_the_targets_are_left_out() -> None:
    log = served(cut_policy(explore=EpsilonGreedy(0.5)), 60)
    strange = impressions(log.decision, [WORDS[0]] * 60)  # without features
    mixed = Log([*strange[:20], *log.impressions[20:]], log.reward)
    replayed = replay(mixed, cut_policy())
    assert replayed.used.tolist() == [False] * 20 + [True] * 40
    assert len(replayed.logged.reward) == 40
    with pytest.raises(ValueError, match="no round of the log is of its arms, depths and features"):
        replay(Log(strange, log.reward), cut_policy())
    own = cut_policy(before=ByWords(ARMS, DEPTHS))
    with pytest.raises(ValueError, match=r"policy\.before: ByWords does not offer `Replayable`"):
        replay(log, own)


def test_parts_are_compared_only_where_the_cut_has_a_marginal() -> None:
    """A cut that is drawn for the arms that were drawn has none; ids say so of old logs, prices of new ones."""
    target, (log, _) = FixedPolicy(ARMS, DEPTHS, 5), explored(200)
    drawn, texts = log.decision, [seen.query for seen in log.impressions]
    whole = drawn._replace(marginals=np.column_stack([np.ones((200, 2)), drawn.propensity]))
    priced = drawn._replace(prices={"candidates 1a2b": 0.01})
    for decision, policy, compared in (
        (drawn, "explore/1", True),
        (drawn, "depth 1a2b, arms 3c4d", False),
        (drawn, "cut 1a2b, arms 3c4d", False),
        (priced, "mine", False),
        (whole, "cut 1a2b", True),  # all arms always ran
    ):
        replayed = replay(Log(impressions(decision, texts, policy), log.reward), target)
        assert ("pi" in available(replayed.logged)) == compared


def test_a_log_is_read_from_batches() -> None:
    log, _ = explored(6)
    plain = Impression("plain", NOW, "love", ("d1",))
    clicked = [Action("a0", "i0", "d1", "click", NOW)]
    batches = [[(i, seen, clicked if i == 0 else []) for i, seen in enumerate(log.impressions)], [(6, plain, [])]]
    read, without = Log.read(batches)
    assert (len(read.impressions), read.reward.tolist(), without) == (6, [1.0] + [0.0] * 5, 1)
    assert (read.arms, read.depths) == (ARMS, DEPTHS)
    with pytest.raises(ValueError, match=re.escape("there are no rounds with arms; name the policy")):
        Log.read(batches, "another")
    other = Impression("other", NOW, "love", ("d1",), arms=("c",), drawn=Allocation((1,), 1))
    with pytest.raises(ValueError, match="rounds have 2 different sets of arms"):
        Log.read([*batches, [(7, other, [])]])
