"""ltrr/evaluation/estimate.py: estimates agree with a known truth and with obp, and what a log cannot tell is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import t as student

from ltrr.evaluation import estimate as ope
from ltrr.evaluation.estimate import Logged, cross_fitted, estimate, gain, shuffled, support
from ltrr.policies.table import Table

ACTIONS, FEATURES = 6, 3
WEIGHTED = ("ips", "snips", "clipped-ips", "dr", "clipped-dr", "shrunk-dr")


def world(num: int, seed: int, sharp: float = 1.0) -> tuple[Logged, np.ndarray, float]:
    """A log, its contexts, and the true value of the target on just these contexts."""
    rng = np.random.default_rng(seed)
    taste = np.random.default_rng(99).normal(size=(2, FEATURES, ACTIONS))
    contexts = rng.normal(size=(num, FEATURES))
    rates = expit(contexts @ taste[0])
    target = softmax(sharp * contexts @ (taste[0] + taste[1] / 2), axis=1)
    logger = 0.7 * softmax(contexts @ taste[1], axis=1) + 0.3 / ACTIONS
    return drawn(rng, logger, target, rates), contexts, float((target * rates).sum(axis=1).mean())


def known(column: np.ndarray | None) -> np.ndarray:
    """A column that this log has."""
    assert column is not None
    return column


def changed(log: Logged, change: Callable[[np.ndarray], np.ndarray]) -> Logged:
    """The log with every column that it has changed likewise."""
    return Logged(**{name: change(column) for name, column in log._asdict().items() if column is not None})


def drawn(rng: np.random.Generator, logger: np.ndarray, target: np.ndarray, rates: np.ndarray) -> Logged:
    action = np.array([rng.choice(logger.shape[1], p=p) for p in logger])
    each = np.arange(len(action))
    reward = (rng.random(len(action)) < rates[each, action]).astype(float)
    return Logged(reward, logger[each, action], target, action, logger=logger)


def test_obp_says_the_same() -> None:
    reference = json.loads((Path(__file__).parent / "ope_reference.json").read_text())
    columns = {name: np.array(reference[name]) for name in ("reward", "propensity", "target", "action", "model")}
    log = Logged(**columns)
    assert len(reference["values"]) == 9
    for key, value in reference["values"].items():
        name, _, shrink = key.partition(" ")
        assert estimate(log, name, shrink=float(shrink) if shrink else None).value == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", [*WEIGHTED, "dm", "pi", "snpi"])
def test_the_logger_itself_is_worth_its_mean_reward(name: str) -> None:
    """All weights are 1; dm alone depends on its model."""
    log, contexts, _ = world(400, 0)
    log = cross_fitted(log._replace(target=log.logger, parts=np.arange(ACTIONS)[:, None]), contexts)
    found = estimate(log, name)
    if name == "dm":
        assert abs(found.value - log.reward.mean()) < 0.05
    elif "dr" in name:
        assert abs(found.value - log.reward.mean()) < 2 * found.error
        shrunk = (
            known(log.model)[np.arange(400), log.action].mean() - (log.target * known(log.model)).sum(axis=1).mean()
        )
        assert abs(found.value - log.reward.mean() + shrunk) < 0.01  # what the model says of what was drawn, no more
    else:
        assert found.value == pytest.approx(log.reward.mean(), abs=1e-9)
    if name not in ("dm", "shrunk-dr"):
        assert found.effective == pytest.approx(400)
        assert found.largest == pytest.approx(1)


@pytest.mark.parametrize("name", ["ips", "dr", "snips"])
def test_estimates_are_right_on_the_mean_and_intervals_cover(name: str) -> None:
    """60 logs: the mean error is within 3.5 of its standard errors, and the spread is what each estimate says it is."""
    errors, told, inside = [], [], 0
    for seed in range(60):
        log, contexts, truth = world(400, seed)
        found = estimate(cross_fitted(log, contexts), name)
        errors.append(found.value - truth)
        told.append(found.error)
        inside += found.low <= truth <= found.high
        assert found.notes == ()
    assert abs(np.mean(errors)) < 3.5 * np.std(errors) / np.sqrt(60) + 0.002  # snips: biased by less than that
    assert 0.75 < np.std(errors) / np.mean(told) < 1.25
    assert inside >= 52


def test_clipping_and_shrinking_trade_bias_for_variance() -> None:
    log, contexts, truth = world(3_000, 1, sharp=3.0)
    log = cross_fitted(log, contexts)
    whole, clipped, none = (estimate(log, "clipped-ips", limit=limit) for limit in (np.inf, 2.0, 0.0))
    assert whole.value == estimate(log, "ips").value
    assert clipped.value < truth
    assert clipped.error < whole.error
    assert (clipped.largest, clipped.effective > whole.effective, none.value) == (2.0, True, 0.0)
    assert estimate(log, "clipped-dr", limit=0).value == pytest.approx(estimate(log, "dm").value)
    assert estimate(log, "shrunk-dr", shrink=1e12).value == pytest.approx(estimate(log, "dr").value, abs=1e-6)
    shrunk = estimate(log, "shrunk-dr", shrink=4.0)
    assert shrunk.largest <= 1.0 + 1e-9  # √λ / 2, reached at w = √λ


def test_doubly_robust_needs_the_model_or_the_propensities() -> None:
    log, _, _ = world(4_000, 2)
    noiseless = np.random.default_rng(0).uniform(size=(1, ACTIONS)).repeat(4_000, axis=0)
    told = log._replace(reward=noiseless[np.arange(4_000), log.action], model=noiseless)
    truth = (log.target * noiseless).sum(axis=1).mean()
    perfect = estimate(told, "dr")
    assert perfect.value == pytest.approx(truth, abs=1e-12)  # no error is left for weights to blow up
    assert perfect.error < 0.2 * estimate(told, "ips").error
    wrong = told._replace(model=np.full_like(noiseless, 0.9))
    assert abs(estimate(wrong, "dr").value - truth) < 3.5 * estimate(wrong, "dr").error
    assert abs(estimate(wrong, "dm").value - truth) > 0.1
    lied = told._replace(propensity=np.clip(log.propensity * 2, 0, 0.9), logger=None)
    assert estimate(lied, "dr").value == pytest.approx(truth, abs=1e-12)
    assert "mean weight" in estimate(lied, "dr").notes[0]


def slates(num: int, seed: int, coupled: bool) -> tuple[Logged, float, np.ndarray]:
    """Two parts of 3 levels whose rewards add up; coupled: the logger wants their sum near 2."""
    rng = np.random.default_rng(seed)
    table = Table.of({"a": [0, 1, 2], "b": [0, 1, 2]}, [1])
    parts = table.depths
    worth = np.array([0.05, 0.3, 0.15])[parts[:, 0]] + np.array([0.1, 0.02, 0.4])[parts[:, 1]]
    by_part = [np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])]
    logger = by_part[0][parts[:, 0]] * by_part[1][parts[:, 1]]
    if coupled:
        logger = np.exp(-3.0 * abs(parts.sum(axis=1) - 2))
    logger /= logger.sum()
    target = rng.dirichlet(np.ones(len(parts)))
    log = drawn(rng, *(np.tile(row, (num, 1)) for row in (logger, target, worth)))
    levels = np.stack([parts[:, p][:, None] == parts[:, p][log.action] for p in (0, 1)])  # (P, N, R)
    marginals, wanted = (np.einsum("n,pnr->rp", policy, levels) for policy in (logger, target))
    return log._replace(parts=parts, marginals=marginals, target_marginals=wanted), float(target @ worth), worth


def test_the_pseudo_inverse_is_exact_where_rewards_add_up() -> None:
    """Its expectation over what the logger draws equals the truth: from marginals only where parts are independent."""
    log, truth, worth = slates(2, 3, coupled=True)  # all pairs are possible
    every = np.arange(len(worth))
    parts = known(log.parts)
    levels = [parts[:, p][:, None] == parts[:, p][None] for p in (0, 1)]

    def expected(one: Logged) -> list[float]:
        logger, target = known(one.logger)[0], one.target[0]
        all_of_them = Logged(
            reward=worth,
            propensity=logger,
            target=np.tile(target, (len(every), 1)),
            action=every,
            logger=np.tile(logger, (len(every), 1)),
            parts=one.parts,
            marginals=np.stack([logger @ same for same in levels], axis=1),
            target_marginals=np.stack([target @ same for same in levels], axis=1),
        )
        results = []
        for parts in (one.parts, None):
            weights = ope._weights(all_of_them._replace(parts=parts), "pi")
            results.append(float(logger @ (weights * worth)))
        return results

    exact, by_marginals = expected(log)
    assert exact == pytest.approx(truth, abs=1e-9)
    assert abs(by_marginals - truth) > 0.01


def test_the_pseudo_inverse_has_less_variance_than_joint_weights() -> None:
    log, truth, _ = slates(5_000, 5, coupled=True)
    found, joint = estimate(log, "pi"), estimate(log, "ips")
    assert abs(found.value - truth) < 3.5 * found.error
    mean = ope.support(log, "pi").weight
    assert estimate(log, "snpi").value == pytest.approx(found.value / mean)
    assert mean != pytest.approx(1, abs=1e-4)
    assert found.effective > joint.effective


def test_with_one_part_the_pseudo_inverse_is_ips() -> None:
    log, _, _ = world(500, 6)
    plain = estimate(log, "ips")
    by_table = estimate(log._replace(parts=np.arange(ACTIONS)[:, None]), "pi")
    each = log.target[np.arange(500), log.action]
    by_marginals = estimate(log._replace(marginals=log.propensity[:, None], target_marginals=each[:, None]), "pi")
    assert by_table[:8] == pytest.approx(plain[:8])
    assert by_marginals[:8] == pytest.approx(plain[:8])


def test_independent_parts_need_marginals_only() -> None:
    rng = np.random.default_rng(7)
    parts = np.stack(np.meshgrid(np.arange(3), np.arange(4), indexing="ij"), axis=-1).reshape(-1, 2)
    first, second = rng.dirichlet(np.ones(3), 200), rng.dirichlet(np.ones(4), 200)
    logger = first[:, parts[:, 0]] * second[:, parts[:, 1]]
    log = drawn(rng, logger, rng.dirichlet(np.ones(12), 200), np.full((200, 12), 0.5))
    taken = parts[log.action]
    marginals = np.stack([first[np.arange(200), taken[:, 0]], second[np.arange(200), taken[:, 1]]], axis=1)
    wanted = np.stack([(log.target * (parts[:, p] == taken[:, p, None])).sum(axis=1) for p in (0, 1)], axis=1)
    by_table = estimate(log._replace(parts=parts), "pi")
    by_marginals = estimate(log._replace(marginals=marginals, target_marginals=wanted), "pi")
    assert by_table.value == pytest.approx(by_marginals.value, abs=1e-9)
    assert by_table.effective == pytest.approx(by_marginals.effective)


def test_effective_rounds_largest_and_zero_weights() -> None:
    log = Logged(np.ones(4), np.array([0.5, 0.25, 0.5, 1.0]), np.array([0.5, 1.0, 0.0, 1.0]))
    found = estimate(log, "ips")  # weights 1, 4, 0, 1
    assert found.value == 1.5
    assert (found.effective, found.largest, found.zero) == (36 / 18, 4.0, 0.25)
    assert found.error == pytest.approx(np.std([1, 4, 0, 1], ddof=1) / 2)
    assert "only 2.0 effective rounds of 4" in found.notes
    assert found.high - found.value == pytest.approx(student.ppf(0.975, 1) * found.error)  # 2 rounds' worth, not 4
    assert estimate(log, "clipped-ips").largest == 2.0  # √R
    wide = Logged(np.ones(2), np.array([0.5, 0.125]), np.eye(2), np.arange(2), model=np.zeros((2, 2)))
    assert estimate(wide, "shrunk-dr").value == pytest.approx(
        (2 * 2 / 6 + 8 * 2 / 66) / 2
    )  # λ = R = 2, weights 2 and 8


def test_what_ran_otherwise_is_left_out_and_counted() -> None:
    log, contexts, _ = world(300, 8)
    ran = np.arange(300) % 10 != 0
    spoiled = log._replace(executed=ran, reward=np.where(ran, log.reward, 1e6))
    rest = changed(log, lambda column: column[ran])
    assert estimate(spoiled, "snips") == estimate(rest, "snips")._replace(left_out=30)
    assert estimate(spoiled, "ips").rounds == 270
    told = cross_fitted(spoiled, contexts)
    assert abs(known(told.model)).max() < 5  # nor does the model learn from them
    assert shuffled(spoiled, np.random.default_rng(0)).reward[~ran].tolist() == [1e6] * 30


def test_sessions_make_the_interval_wider() -> None:
    """Each round four times: the same information, so the same standard error, where sessions are told."""
    log, _, _ = world(300, 9)
    again = changed(log, lambda column: np.repeat(column, 4, axis=0))
    session = np.repeat([f"s{i}" for i in range(300)], 4)
    once, blind, aware = (estimate(one, "snips") for one in (log, again, again._replace(groups=session)))
    assert aware.error == pytest.approx(once.error)
    assert blind.error == pytest.approx(once.error / 2, rel=0.01)
    told = cross_fitted(again._replace(groups=session), np.repeat(np.eye(300)[:, :5], 4, axis=0))
    assert np.array_equal(known(told.model)[::4], known(told.model)[3::4])  # a session is in one fold


def test_a_deterministic_logger_is_flagged() -> None:
    log, contexts, _ = world(500, 10)
    best = log.target.argmax(axis=1)
    greedy = log._replace(action=best, propensity=np.ones(500), logger=None)
    for one in (greedy, greedy._replace(logger=np.eye(ACTIONS)[best])):
        found = support(one)
        assert found.deterministic
        expected = 1 - log.target.max(axis=1).mean()
        assert found.missing == pytest.approx(expected)  # a propensity of 1 says that nothing else could be
        for name in ope.available(cross_fitted(one, contexts)):
            told = estimate(cross_fitted(one, contexts), name)
            assert told.notes[0].startswith("the logger is deterministic")
            assert (told.low, told.high) == (-np.inf, np.inf)
            assert (gain(cross_fitted(one, contexts), name).low) == -np.inf
    itself = greedy._replace(target=np.eye(ACTIONS)[best])
    assert support(itself).notes == ()
    assert estimate(itself, "ips").value == itself.reward.mean()


def test_missing_support_is_flagged() -> None:
    log, _, _ = world(2_000, 11)
    never = known(log.logger).copy()
    never[:, 2] = 0
    never /= never.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    lacking = drawn(rng, never, log.target, np.full(never.shape, 0.5))
    assert support(lacking).missing == pytest.approx(log.target[:, 2].mean())
    assert "never goes" in estimate(lacking, "ips").notes[0]
    unknown = lacking._replace(logger=None)  # then only the mean weight tells
    assert support(unknown).missing == 0
    assert "mean weight" in support(unknown).notes[0]
    assert estimate(unknown, "dr" if unknown.model is not None else "snips").high == np.inf
    assert support(log).notes == ()
    assert abs(support(log).weight - 1) < support(log).width
    without = log._replace(target=np.zeros(2_000), logger=None)  # a target that never did what was logged
    assert estimate(without, "ips").notes
    assert np.isnan(estimate(without, "snips").value)


def test_a_level_that_the_logger_never_draws_is_missing_for_slates() -> None:
    log, _, _ = slates(400, 12, coupled=False)
    parts = known(log.parts)
    never = known(log.logger) * (parts[:, 1] != 2)
    never /= never.sum(axis=1, keepdims=True)
    lacking = drawn(np.random.default_rng(0), never, log.target, np.full(never.shape, 0.5))._replace(parts=parts)
    assert support(lacking, "pi").missing == pytest.approx(log.target[0] @ (parts[:, 1] == 2))
    assert support(log, "pi").notes == ()
    fixed = lacking._replace(logger=None, parts=None, marginals=np.ones((400, 2)))
    assert support(fixed._replace(target_marginals=np.full((400, 2), 0.4)), "pi").missing == pytest.approx(0.6)


def test_gains_over_the_logger_and_over_another_target() -> None:
    log, contexts, _ = world(4_000, 13)
    log = cross_fitted(log, contexts)
    over_logger = gain(log, "dr")
    assert over_logger.value == pytest.approx(estimate(log, "dr").value - log.reward.mean())
    assert over_logger.low > 0
    nearly = log._replace(target=0.99 * log.target + 0.01 / ACTIONS)
    paired = gain(log, "dr", over=nearly)
    assert paired.value == pytest.approx(estimate(log, "dr").value - estimate(nearly, "dr").value)
    assert paired.error < 0.05 * estimate(log, "dr").error  # of the same rounds, so most noise is gone
    with pytest.raises(ValueError, match=r"over\.reward"):
        gain(log, "ips", over=world(4_000, 14)[0])


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_nothing_is_gained_where_rewards_are_shuffled(name: str) -> None:
    """The same target gains clearly on the log itself; shuffled, 0 lies in at least 34 of 40 intervals."""
    log, contexts, _ = world(1_500, 15)
    log = cross_fitted(log, contexts)
    assert gain(log, name).low > 0
    nulls = [gain(shuffled(log, np.random.default_rng(seed)), name) for seed in range(40)]
    assert sum(null.low <= 0 <= null.high for null in nulls) >= 34
    values = np.array([null.value for null in nulls])
    assert abs(values.mean()) < 0.2 * gain(log, name).value


def test_models_are_out_of_fold() -> None:
    """Rewards are noise: a model that had seen its round would predict it."""
    rng = np.random.default_rng(16)
    log, _, _ = world(200, 16)
    log = log._replace(reward=rng.normal(size=200))
    told = cross_fitted(log, rng.normal(size=(200, 20)), precision=0.01)
    assert np.corrcoef(known(told.model)[np.arange(200), log.action], log.reward)[0, 1] < 0.2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("propensity", np.zeros(5), r"logged\.propensity: row 0 is 0, not within \(0, 1\]"),
        ("propensity", np.full(5, 1.5), r"logged\.propensity: row 0 is 1\.5"),
        ("propensity", np.array([0.5, np.nan, 0.5, 0.5, 0.5]), r"logged\.propensity: row 1 is not finite"),
        ("propensity", np.ones(4), r"logged\.propensity: shape \(4,\) is not \(5,\)"),
        ("reward", np.array([0, 0, 0, np.inf, 0.0]), r"logged\.reward: row 3 is not finite"),
        ("reward", np.ones((5, 1)), r"logged\.reward: shape \(5, 1\)"),
        ("target", np.full((5, 2), 0.7), r"logged\.target: row 0 sums to 1\.4, not 1"),
        ("target", np.array([[0.5, 0.5]] * 4 + [[1.5, -0.5]]), r"logged\.target: row 4 is 1\.5"),
        ("action", np.array([0, 1, 2, 0, 0]), r"logged\.action: is missing or not within 0 and the 2 columns"),
        ("action", None, r"logged\.action: is missing"),
        ("logger", np.full((5, 2), 0.5), r"logged\.propensity: row 0 of what ran has 0\.25 where logger has 0\.5"),
        ("logger", np.full((5, 3), 1 / 3), r"logged\.logger: shape \(5, 3\) is not \(5, 2\)"),
        ("model", np.full((5, 2), np.nan), r"logged\.model: row 0 is not finite"),
        ("marginals", np.zeros((5, 2)), r"logged\.marginals: row 0 is 0"),
        ("executed", np.array([True] + [False] * 4), r"logged\.executed: 1 rounds ran as drawn"),
        ("groups", np.zeros(3), r"logged\.groups: shape \(3,\)"),
    ],
)
def test_what_is_wrong_is_named(field: str, value: np.ndarray | None, message: str) -> None:
    log = Logged(np.ones(5), np.full(5, 0.25), np.full((5, 2), 0.5), np.zeros(5, int))
    assert estimate(log, "ips").rounds == 5
    with pytest.raises(ValueError, match=message):
        estimate(log._replace(**{field: value}), "ips")


def test_what_an_estimator_lacks_is_named() -> None:
    log = Logged(np.ones(5), np.full(5, 0.25), np.full((5, 2), 0.5), np.zeros(5, int))
    assert ope.available(log) == ("ips", "snips", "clipped-ips")
    for name, message in {
        "dr": r"logged\.model: dr needs",
        "pi": r"logged\.marginals: pi needs",
        "x": "is none of",
    }.items():
        with pytest.raises(ValueError, match=message):
            estimate(log, name)
    with pytest.raises(ValueError, match=r"logged\.target: a model needs"):
        cross_fitted(log._replace(target=np.full(5, 0.5)), np.ones((5, 1)))
    with pytest.raises(ValueError, match=r"features: shape \(4, 1\)"):
        cross_fitted(log, np.ones((4, 1)))
