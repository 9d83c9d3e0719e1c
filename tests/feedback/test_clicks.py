"""Click models: simulated rates against closed forms, estimates against truth and against plain loops."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict

import numpy as np
import pytest

from ltrr.feedback.clicks import (
    Cascade,
    ClickModel,
    PositionBased,
    attraction_of,
    examination_of,
    fit_cascade,
    fit_position_based,
    load,
    save,
    simulate,
)

FREE = PositionBased((1.0, 0.85, 0.6, 0.65, 0.3, 0.2))
CASCADE = Cascade(0.6, 0.15)
MODELS = pytest.mark.parametrize("model", [FREE, CASCADE], ids=["position", "cascade"])
PRIOR = (0.1, 0.4)


def log_of(model: ClickModel, num: int, *, seed: int = 0, width: int = 6, queries: int = 40, pads: bool = False):
    """Pairs and clicks of pages of `width` out of 10 entities, ordered by a noisy ranker; and all pairs' attraction."""
    rng = np.random.default_rng(seed)
    grades = np.repeat([[3, 2, 2, 1, 1, 1, 0, 0, 0, 0]], queries, axis=0)
    query = rng.integers(queries, size=num)
    ranker = 0.6 * grades + rng.normal(size=grades.shape)
    order = np.argsort(rng.normal(-ranker[query], 0.7), axis=1)[:, :width]
    pairs = query[:, None] * grades.shape[1] + order
    if pads:
        pairs[np.arange(width) >= rng.integers(width // 2, width + 1, size=(num, 1))] = -1
    truth = attraction_of(grades.ravel(), highest=3, noise=0.1)
    attraction = np.where(pairs >= 0, truth[pairs], np.nan)
    return pairs, simulate(model, attraction, rng).clicks, truth


def outcomes(model: Cascade, attraction: list[float]):
    """(probability, clicks, examined) of every course of a cascade over a page, by walking its tree."""

    def walk(k: int, probability: float, clicks: tuple, examined: tuple):
        if k == len(attraction):
            yield probability, clicks, examined
            return
        for click, p in ((True, attraction[k]), (False, 1 - attraction[k])):
            stop = model.satisfaction if click else model.abandonment
            seen, rest = (*examined, True), len(attraction) - k - 1
            yield probability * p * stop, (*clicks, click, *[False] * rest), (*seen, *[False] * rest)
            yield from walk(k + 1, probability * p * (1 - stop), (*clicks, click), seen)

    yield from walk(0, 1.0, (), ())


def test_attraction_is_noise_for_what_is_not_relevant_and_one_for_the_best():
    grades = np.array([[3, 2, 1, 0, -1], [0, 3, np.nan, np.nan, np.nan]])
    expected = [[1, 0.1 + 0.9 * 3 / 7, 0.1 + 0.9 / 7, 0.1, np.nan], [0.1, 1, np.nan, np.nan, np.nan]]
    np.testing.assert_allclose(attraction_of(grades, highest=3, noise=0.1), expected)
    np.testing.assert_allclose(attraction_of(np.array([[1, 0]]), highest=1, noise=0.2), [[1, 0.2]])  # binary
    with pytest.raises(ValueError, match="highest: 2 is below grade 3"):
        attraction_of(grades, highest=2)


def test_position_based_clicks_come_at_their_rate():
    attraction = np.tile([0.9, 0.2, 0.5, 1.0, 0.7, 0.1], (100_000, 1))
    clicks, examined = simulate(FREE, attraction, np.random.default_rng(0))
    np.testing.assert_allclose(examined.mean(axis=0), FREE.examination, atol=0.006)  # four standard errors
    np.testing.assert_allclose(clicks.mean(axis=0), attraction[0] * FREE.examination, atol=0.006)
    assert not (clicks & ~examined).any()


def test_cascade_clicks_come_at_their_rate():
    attraction = [0.9, 0.2, 0.5, 1.0, 0.7]
    clicks, examined = simulate(CASCADE, np.tile(attraction, (100_000, 1)), np.random.default_rng(0))
    expected: dict = defaultdict(float)  # of whole courses, not of positions alone
    for probability, *course in outcomes(CASCADE, attraction):
        expected[tuple(np.concatenate(course))] += probability
    assert sum(expected.values()) == pytest.approx(1)
    courses, counts = np.unique(np.hstack([clicks, examined]), axis=0, return_counts=True)
    found = {tuple(course): count / len(clicks) for course, count in zip(courses, counts, strict=True)}
    assert set(found) <= {course for course, probability in expected.items() if probability > 0}
    for course, probability in expected.items():
        assert found.get(course, 0.0) == pytest.approx(probability, abs=0.006)


@MODELS
def test_pads_are_never_clicked_and_grade_0_without_noise_neither(model):
    grades = np.tile([1.0, 0.0, 1.0, 0.0, -1.0, np.nan], (5_000, 1))
    clicks, examined = simulate(model, attraction_of(grades, highest=1), np.random.default_rng(1))
    assert not clicks[:, [1, 3, 4, 5]].any()
    assert not examined[:, 4:].any()
    assert examined[:, 1].any()
    assert clicks[:, [0, 2]].any(axis=0).all()
    np.testing.assert_array_equal(clicks[:, 0], examined[:, 0])  # the best is clicked whenever it is seen


@MODELS
def test_the_seed_decides(model):
    attraction = np.full((500, 6), 0.5)
    first, same, other = (simulate(model, attraction, np.random.default_rng(seed)).clicks for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_eta_makes_the_curve_of_joachims():
    assert PositionBased.power(3, 0).examination == (1, 1, 1)
    assert PositionBased.power(4, 2).examination == pytest.approx((1, 1 / 4, 1 / 9, 1 / 16))
    with pytest.raises(ValueError, match="examination: 3 positions, but a page of 4"):
        simulate(PositionBased.power(3, 1), np.zeros((1, 4)), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PositionBased((1.0, 1.5)), "examination: "),
        (lambda: PositionBased(()), "examination: "),
        (lambda: Cascade(1.2, 0.1), "satisfaction: 1.2"),
        (lambda: Cascade(0.5, float("nan")), "abandonment: nan"),
    ],
)
def test_what_is_no_probability_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_posterior_of_a_cascade_is_that_of_its_tree():
    """Bayes over every course of a page, for every pattern of clicks."""
    attraction = [0.9, 0.2, 0.5, 0.8]
    weight: dict = defaultdict(float)
    seen: dict = defaultdict(lambda: np.zeros(4))
    for probability, clicks, examined in outcomes(CASCADE, attraction):
        weight[clicks] += probability
        seen[clicks] += probability * np.array(examined)
    patterns = list(itertools.product([True, False], repeat=4))
    expected = np.array([seen[p] / weight[p] for p in patterns])
    np.testing.assert_allclose(examination_of(CASCADE, np.array(patterns), np.tile(attraction, (16, 1))), expected)
    padded = np.pad(np.array(patterns), ((0, 0), (0, 2)))
    short = np.pad(np.tile(attraction, (16, 1)), ((0, 0), (0, 2)), constant_values=np.nan)
    np.testing.assert_allclose(examination_of(CASCADE, padded, short)[:, :4], expected)  # a short page ends
    assert not examination_of(CASCADE, padded, short)[:, 4:].any()
    # without attractions, the model's mean is everybody's
    mean = examination_of(CASCADE, np.array(patterns), np.full((16, 4), CASCADE.attraction))
    np.testing.assert_array_equal(examination_of(CASCADE, np.array(patterns)), mean)


def test_position_based_examination_does_not_look_at_clicks():
    clicks = np.random.default_rng(0).random((5, 4)) < 0.5
    np.testing.assert_array_equal(examination_of(FREE, clicks), np.tile(FREE.examination[:4], (5, 1)))
    shown = np.array([[0.5, 0.5, np.nan, np.nan]] * 5)
    np.testing.assert_array_equal(examination_of(FREE, clicks, shown), np.tile([1.0, 0.85, 0, 0], (5, 1)))


@MODELS
def test_successes_over_trials_are_the_attraction(model):
    """What clicks / impressions is far from, because good entities stand higher and bad ones are not seen."""
    pairs, clicks, truth = log_of(model, 40_000, pads=True)
    trials = examination_of(model, clicks, np.where(pairs >= 0, truth[pairs], np.nan))
    real = pairs >= 0
    shown, successes, tried = (np.bincount(pairs[real], w[real], len(truth)) for w in (real, clicks, trials))
    often = shown > 300
    assert often.sum() > 100
    assert np.abs(successes[often] / tried[often] - truth[often]).mean() < 0.025
    assert np.abs(successes[often] / shown[often] - truth[often]).mean() > 0.08


def plain_em(pairs, clicks, steps, examination, attraction):
    """Position-based EM, one impression at a time."""
    e, a = list(examination), list(attraction)
    for _ in range(steps):
        looked, shown_at = [0.0] * len(e), [0] * len(e)
        liked, shown_of = [PRIOR[0]] * len(a), [sum(PRIOR)] * len(a)
        for page, page_clicks in zip(pairs, clicks, strict=True):
            for k, (p, click) in enumerate(zip(page, page_clicks, strict=True)):
                if p < 0:
                    continue
                nothing = 1 - e[k] * a[p]
                looked[k] += 1 if click else e[k] * (1 - a[p]) / nothing
                liked[p] += 1 if click else a[p] * (1 - e[k]) / nothing
                shown_at[k] += 1
                shown_of[p] += 1
        e = [1.0] + [x / n for x, n in zip(looked[1:], shown_at[1:], strict=True)]
        a = [x / n for x, n in zip(liked, shown_of, strict=True)]
    return e, a


def test_position_based_em_equals_a_plain_loop():
    pairs, clicks, _ = log_of(FREE, 300, queries=3, pads=True)
    fit = fit_position_based(pairs, clicks, max_iter=8)
    shown, clicked = (np.bincount(pairs[pairs >= 0], w, fit.attraction.size) for w in (None, clicks[pairs >= 0]))
    start = (clicked + PRIOR[0]) / (shown + sum(PRIOR))
    examination, attraction = plain_em(pairs.tolist(), clicks.tolist(), 8, np.linspace(1, 0.1, 6), start)
    assert not fit.converged
    assert len(fit.objective) == 8
    np.testing.assert_allclose(fit.model.examination, examination, rtol=1e-9)
    np.testing.assert_allclose(fit.attraction, attraction, rtol=1e-9)


def test_cascade_em_equals_one_over_the_tree():
    """The expectations from every course of a page that fits its clicks, one page at a time."""
    pairs, clicks, _ = log_of(CASCADE, 60, queries=2, width=4, pads=True)
    fit = fit_cascade(pairs, clicks, max_iter=4)
    shown, clicked = (np.bincount(pairs[pairs >= 0], w, fit.attraction.size) for w in (None, clicks[pairs >= 0]))
    model, attraction = Cascade(0.5, 0.1), (clicked + PRIOR[0]) / (shown + sum(PRIOR))
    objective = []
    for _ in range(4):
        trials, moves = np.zeros(len(shown)), np.zeros((2, 2))  # clicked or not; went on, could have
        total = (PRIOR[0] * np.log(attraction) + PRIOR[1] * np.log(1 - attraction)).sum()
        for page, page_clicks in zip(pairs, clicks, strict=True):
            page = page[page >= 0]
            n, done = len(page), tuple(page_clicks[: len(page)])
            fitting = [(p, e) for p, c, e in outcomes(model, attraction[page].tolist()) if c == done]
            weight = sum(p for p, _ in fitting)
            total += np.log(weight)
            examined = np.sum([p * np.array(e) for p, e in fitting], axis=0) / weight
            np.add.at(trials, page, examined)
            for k in range(n - 1):
                moves[int(not done[k])] += examined[k + 1], examined[k]
        objective.append(total)
        model = Cascade(*(1 - moves[:, 0] / moves[:, 1]))
        attraction = (clicked + PRIOR[0]) / (trials + sum(PRIOR))
    np.testing.assert_allclose(fit.objective, objective, rtol=1e-9)
    np.testing.assert_allclose([fit.model.satisfaction, fit.model.abandonment], [model.satisfaction, model.abandonment])
    np.testing.assert_allclose(fit.attraction, attraction, rtol=1e-9)


@pytest.mark.parametrize("estimate", [fit_position_based, fit_cascade])
@MODELS
def test_no_step_lowers_the_posterior(model, estimate):
    """Whatever made the clicks."""
    pairs, clicks, _ = log_of(model, 3_000, pads=True)
    fit = estimate(pairs, clicks)
    assert fit.converged
    assert len(fit.objective) > 5
    assert (np.diff(fit.objective) > 0).sum() >= len(fit.objective) - 2
    assert np.diff(fit.objective).min() > -1e-6


@pytest.mark.parametrize("truth", [*(PositionBased.power(6, eta) for eta in (0, 0.5, 1, 2)), FREE])
def test_examination_is_recovered(truth):
    pairs, clicks, attraction = log_of(truth, 20_000)
    fit = fit_position_based(pairs, clicks)
    assert fit.converged
    np.testing.assert_allclose(fit.model.examination, truth.examination, atol=0.04)
    often = np.bincount(pairs[:, 0], minlength=len(attraction)) > 100  # at the top
    assert np.abs(fit.attraction - attraction)[often].mean() < 0.03


def test_a_cascade_is_recovered():
    pairs, clicks, attraction = log_of(CASCADE, 20_000, pads=True)
    fit = fit_cascade(pairs, clicks)
    assert fit.converged
    assert (fit.model.satisfaction, fit.model.abandonment) == pytest.approx((0.6, 0.15), abs=0.02)
    often = np.bincount(pairs[:, 0], minlength=len(attraction)) > 100
    assert np.abs(fit.attraction - attraction)[often].mean() < 0.03


def test_examination_is_relative_to_position_0():
    truth = PositionBased((0.8, 0.4, 0.6))
    pairs, clicks, attraction = log_of(truth, 30_000, width=3)
    fit = fit_position_based(pairs, clicks)
    assert fit.model.examination[0] == 1
    np.testing.assert_allclose(fit.model.examination, (1, 0.5, 0.75), atol=0.04)
    often = np.bincount(pairs[:, 0], minlength=len(attraction)) > 100
    assert np.abs(fit.attraction - 0.8 * attraction)[often].mean() < 0.03


def test_rare_pairs_stay_off_0_and_1():
    pairs, clicks, _ = log_of(FREE, 5_000, queries=5)
    pairs[0, 0], pairs[1, 0] = 50, 51  # each shown once
    clicks[0, 0], clicks[1, 0] = True, False
    for estimate in (fit_position_based, fit_cascade):
        clicked, not_clicked = estimate(pairs, clicks, prior=(0.5, 1.5)).attraction[50:]
        assert clicked == pytest.approx(1.5 / 3)
        assert not_clicked == pytest.approx(0.5 / 3)


def test_positions_that_nothing_links_are_named():
    always = np.tile([0, 1, 2], (100, 1))  # the order never varies
    clicks = np.random.default_rng(0).random((100, 3)) < 0.5
    with pytest.raises(ValueError, match=r"positions \[1, 2\]: no chain .* order varies"):
        fit_position_based(always, clicks)
    with pytest.raises(ValueError, match="at two positions"):
        fit_cascade(always, clicks)
    two_islands = np.array([[0, 1, 2, 3], [1, 0, 3, 2]] * 50)
    with pytest.raises(ValueError, match=r"positions \[2, 3\]"):
        fit_position_based(two_islands, np.ones((100, 4), bool))
    bridge = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [0, 2, 1, 3]] * 50)
    clicks = np.random.default_rng(0).random((150, 4)) < 0.5
    assert len(fit_position_based(bridge, clicks).model.examination) == 4
    clicks[:] &= (bridge != 1) & (bridge != 2)  # a bridge that nobody clicked says nothing
    with pytest.raises(ValueError, match=r"positions \[2, 3\]"):
        fit_position_based(bridge, clicks)
    never_shown = np.array([[0, 1, -1], [1, 0, -1]] * 50)
    with pytest.raises(ValueError, match=r"positions \[2\]"):
        fit_position_based(never_shown, np.ones((100, 3), bool))


def test_a_cascade_read_as_position_based_looks_examined_too_deep():
    """The mismatch: a shared curve explains the pages on which nobody stopped early."""
    pairs, clicks, truth = log_of(CASCADE, 20_000)
    examined = simulate(CASCADE, truth[pairs], np.random.default_rng(1)).examined.mean(axis=0)
    wrong, right = fit_position_based(pairs, clicks), fit_cascade(pairs, clicks)
    assert (np.array(wrong.model.examination) - examined)[1:4].min() > 0.03
    assert right.objective[-1] > wrong.objective[-1] + 100  # the log tells them apart


@MODELS
def test_a_saved_model_comes_back(model, tmp_path):
    save(model, tmp_path / "model.json")
    assert load(tmp_path / "model.json") == model


def test_only_known_models_are_loaded(tmp_path):
    path = tmp_path / "model.json"
    for values in ({"model": "os.system", "command": "true"}, {"examination": [1.0]}):
        path.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"model\.json: model .* is none of position_based, cascade"):
            load(path)
