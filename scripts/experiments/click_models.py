"""Do the estimators of click models recover the parameters of a simulated log, and what if the model is wrong?

python scripts/experiments/click_models.py [--out runs/click_models] [--seeds 5] [--impressions 200000]

An invented world: 500 queries asked by Zipf's law, 30 entities each with grades 0 to 3, pages of ten in the order of a
noisy ranker (grade + an error that stays + one of the moment), attraction with noise .1. Writes DIR/results.json,
DIR/table.md and DIR/click_models.png. Half a minute of one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ltrr.cli.arguments import main
from ltrr.evaluation.plots import tidy
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.feedback import clicks as models

TRUTHS: dict[str, models.ClickModel] = {
    **{f"position-based, η {eta:g}": models.PositionBased.power(10, eta) for eta in (0, 0.5, 1, 2)},
    "position-based, free-form": models.PositionBased((1.0, 0.85, 0.8, 0.55, 0.6, 0.35, 0.25, 0.3, 0.15, 0.1)),
    "cascade, stops .6 / .1": models.Cascade(0.6, 0.1),
    "cascade, stops .9 / .05": models.Cascade(0.9, 0.05),
}
MISMATCH = "cascade, stops .6 / .1"  # also read as position-based
OFTEN = 500  # impressions from which a pair is compared: little of its error is chance


def pages(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, 10) pairs on pages as a noisy ranker would order them, and the (P,) attraction of all pairs."""
    grades = np.repeat([[3, 2, 2, 1, 1, 1, 1] + [0] * 23], 500, axis=0)
    ranker = 0.8 * grades + rng.normal(size=grades.shape)
    query = rng.choice(500, num, p=(share := 1 / np.arange(1, 501)) / share.sum())
    order = np.argsort(rng.normal(-ranker[query], 0.7), axis=1)[:, :10]
    return query[:, None] * 30 + order, models.attraction_of(grades.ravel(), highest=3, noise=0.1)


def parameters(model: models.ClickModel) -> list[float]:
    """Examination by position; or satisfaction and abandonment."""
    return [*model.examination] if isinstance(model, models.PositionBased) else [model.satisfaction, model.abandonment]


def mismatch(pairs: np.ndarray, seen: models.Clicks, right: models.Fit, attraction: np.ndarray) -> dict:
    """Clicks of a cascade read as position-based: examination, and clicks / trials beside those of the cascade."""
    wrong = models.fit_position_based(pairs, seen.clicks)
    trials = {
        "impressions": np.ones(pairs.shape),
        "examination, position-based": models.examination_of(wrong.model, seen.clicks),
        "examination, cascade, one attraction for all": models.examination_of(right.model, seen.clicks),
        "examination, cascade": models.examination_of(right.model, seen.clicks, right.attraction[pairs]),
    }
    often = np.bincount(pairs.ravel(), minlength=len(attraction)) >= OFTEN
    bias = {}
    for name, weights in trials.items():
        clicked, tried = (np.bincount(pairs.ravel(), w.ravel(), len(attraction))[often] for w in (seen.clicks, weights))
        error = clicked / tried - attraction[often]
        bias[name] = {"mean absolute": float(np.abs(error).mean())}
        for level in np.unique(attraction):
            bias[name][f"attraction {level:.2f}"] = float(error[attraction[often] == level].mean())
    return {"examined": seen.examined.mean(axis=0).tolist(), "estimate": parameters(wrong.model), "error": bias}


def measure(seed: int, num: int) -> dict:
    """One seed: estimates by truth, and the mismatch."""
    estimates: dict = {}
    for name, truth in TRUTHS.items():
        rng = np.random.default_rng(seed)
        pairs, attraction = pages(rng, num)
        seen = models.simulate(truth, attraction[pairs], rng)
        based = isinstance(truth, models.PositionBased)
        fit = (models.fit_position_based if based else models.fit_cascade)(pairs, seen.clicks)
        estimates[name] = {"truth": parameters(truth), "estimate": parameters(fit.model), "steps": len(fit.objective)}
        if name == MISMATCH:
            estimates["mismatch"] = mismatch(pairs, seen, fit, attraction)
    return estimates


def plot(seeds: list[dict]) -> Figure:
    """Examination by position, true (line) and estimated (one point a seed); last, the mismatch."""
    lines = {name: (name, parameters(t)) for name, t in TRUTHS.items() if isinstance(t, models.PositionBased)}
    lines["mismatch"] = (f"{MISMATCH},\nread as position-based", seeds[0]["mismatch"]["examined"])
    figure = Figure(figsize=(3 * len(lines), 3.6), layout="constrained")
    for panel, (name, (title, truth)) in zip(figure.subplots(1, len(lines), sharey=True), lines.items(), strict=True):
        estimates = np.transpose([one[name]["estimate"] for one in seeds])
        panel.plot(range(1, 11), truth, "k", range(1, 11), estimates, "o", markersize=4, alpha=0.6)
        tidy(panel)
        panel.set(title=title, xlabel="position", ylim=(0, 1.05), xticks=range(1, 11))
    figure.supylabel("examined: line true, points estimated")
    return figure


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/click_models"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--impressions", type=int, default=200_000, help="pages of ten")
    flags = parser.parse_args()
    seeds = [measure(seed, flags.impressions) for seed in range(flags.seeds)]
    off = {name: [np.subtract(s[name]["estimate"], s[name]["truth"]) for s in seeds] for name in TRUTHS}
    off["mismatch"] = [np.subtract(s["mismatch"]["estimate"], s["mismatch"]["examined"]) for s in seeds]
    worst = {name: np.abs(errors).max(axis=1).tolist() for name, errors in off.items()}
    rows = [[name, f"{np.mean(errors):.4f}", f"{max(errors):.4f}"] for name, errors in worst.items()]
    lines = [*markdown(["simulated", "worst error, mean over seeds", "of all seeds"], rows), ""]
    bias = [s["mismatch"]["error"] for s in seeds]
    rows = [[n, *(f"{np.mean([each[n][key] for each in bias]):+.3f}" for key in of)] for n, of in bias[0].items()]
    lines += markdown(["mismatch: clicks / trials − attraction", *bias[0]["impressions"]], rows)
    results = {"impressions": flags.impressions, "worst_error": worst, "seeds": seeds}
    write_experiment(flags.out, results, lines, click_models=plot(seeds))


if __name__ == "__main__":
    main(run)
