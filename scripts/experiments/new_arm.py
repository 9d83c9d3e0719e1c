"""May this arm be switched on? Estimates from logged pages of what an arm would add, beside the truth.

python scripts/experiments/new_arm.py --data FOLDER [--data.qrels NAME] --out DIR [--rounds 20000] [--seeds 10]

A calibrated rule without the arm serves a stream of queries (Zipf 1, a mean of 5 candidates) and explores one place.
From its pages `ltrr.evaluation.sets` estimates what the same rule with the arm would show, at the same mean:

    shadow: the arm is drawn with weight 0, and its candidates are explored, too
    unseen: the arm is not drawn; nothing that it alone returns is ever shown, and the estimate has to be refused
    deeper: no arm is added; the target ranks 8 candidates in the mean

Nothing but pages and clicks is given to the estimate. Writes DIR/results.json, table.md and estimates.png.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.evaluation.plots import tidy
from ltrr.evaluation.sets import Page, SetValue, Target, pages_of, set_value
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.fusion import ConvexFusion
from ltrr.policies.rules import Calibrated
from ltrr.policies.worth import ReservedPlace
from ltrr.simulation.pools import JudgedPools
from ltrr.simulation.stream import Customers, Stream, play, zipf
from ltrr.system.streams import stream_world
from ltrr.system.system import open_systems
from ltrr.types import Decision

_MEAN, _DEEPER = 5.0, 8.0  # candidates a query
_SHARE, _AMONG = 0.3, 10  # of what is explored


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/stream.yaml",
        "runs/new-arm",
        lambda parser: (
            parser.add_argument("--rounds", type=int, default=20_000),
            parser.add_argument("--seeds", type=int, default=10),
        ),
    )
    (system,) = open_systems(flags.config, overrides)
    world, arms = stream_world(system), [*system.drawn]
    raw = world.pools.without([])  # not in fused order any more
    train = np.flatnonzero(world.split == "train")
    equal = ConvexFusion(dict.fromkeys(arms, 1 / len(arms)))
    whole = raw.fused(equal)
    cases: list[tuple[str, str | None]] = [(kind, arm) for arm in arms for kind in ("shadow", "unseen")]
    rows = []
    for kind, arm in [*cases, ("deeper", None)]:
        others = [name for name in arms if name != arm]
        order = ConvexFusion(dict.fromkeys(others, 1 / len(others)))
        pools = (raw.without([arm]) if kind == "unseen" and arm else raw).fused(order)
        for seed in tqdm(range(flags.seeds), f"{kind} {arm or ''}", unit="seed"):
            stream = zipf(len(pools.queries), flags.rounds, 1.0, seed)
            explore = ReservedPlace(_SHARE, _AMONG, arm=arm if kind == "shadow" else None)
            logger = _rule(pools, train, arms, _MEAN, explore, seed)
            target = _rule(whole, train, arms, _DEEPER if kind == "deeper" else _MEAN)
            found, truth = _estimated(pools, whole, logger, target, stream)
            rows.append({"case": kind, "arm": arm, "seed": seed, **truth, **found._asdict()})
    table = [_summary(rows, kind, arm) for kind, arm in [*cases, ("deeper", None)]]
    head = [
        "case",
        "arm",
        "clicks a page if all is looked at: truth",
        "estimate",
        "gain: truth",
        "estimate",
        "mean error, of the value",
    ]
    head += ["intervals of the value that hold the truth", "of the gain", "missing, of new candidates", "refused"]
    lines = markdown(head, [_cells(row) for row in table], text=(0, 1))
    results = {"rounds": flags.rounds, "seeds": flags.seeds, "cases": table, "rows": rows}
    write_experiment(flags.out, results, lines, estimates=_figure(rows))


def _rule(
    pools: JudgedPools,
    train: np.ndarray,
    arms: list[str],
    budget: float,
    explore: ReservedPlace | None = None,
    seed: int = 0,
) -> Calibrated:
    teaches, depths = pools.some(train), dict.fromkeys(arms, 100)
    given: dict[str, Any] = {"budget": budget, "explore": explore, "seed": seed}
    fitted = Calibrated(arms, depths, **given).calibrate(teaches.pool, teaches.gains)
    return Calibrated(arms, depths, **given, **fitted)


def _estimated(
    pools: JudgedPools, whole: JudgedPools, logger: Calibrated, target: Calibrated, stream: Stream
) -> tuple[SetValue, dict[str, float]]:
    """The estimate, and the true value and gain in the same rounds."""
    pages: list[Page] = []

    def watch(asked: int, rows: np.ndarray, clicks: np.ndarray, decision: Decision) -> None:
        assert decision.explored is not None
        assert decision.explored_propensity is not None
        explored, propensity = int(decision.explored[0]), float(decision.explored_propensity[0])
        clicked = frozenset(rows[clicks].tolist())
        pages.append(Page(asked, str(len(pages)), rows.tolist(), clicked, explored, propensity))

    customers = Customers()
    play(logger, pools, stream, customers, watch=watch)
    # The target's price holds its mean on the very rounds; no judgement is looked at.
    some, times = np.unique(stream.asked, return_counts=True)
    worth = target.worth(whole.queries, whole.pool)
    assert worth.order is not None
    price = np.sort(np.repeat(worth.worth[some], times, axis=0).ravel())[::-1][int(target.budget * len(stream.asked))]
    size = np.maximum((worth.worth >= price).sum(axis=1), 1)
    rows = np.take_along_axis(whole.pool.docs, worth.order, 1)
    gains = np.take_along_axis(whole.gains, worth.order, 1)
    rate = customers.noise + (customers.attraction - customers.noise) * gains  # of clicks, if looked at
    inside = np.arange(gains.shape[1]) < np.minimum(size, (rows >= 0).sum(axis=1))[:, None]
    value = np.where(inside, rate, 0.0).sum(axis=1)[stream.asked].mean()
    base = np.zeros(len(pages))
    by_row = [
        dict(zip(docs, (customers.noise + (customers.attraction - customers.noise) * each).tolist(), strict=True))
        for docs, each in zip(pools.pool.docs.tolist(), pools.gains, strict=True)
    ]
    for r, page in enumerate(pages):
        base[r] = sum(by_row[page.asked][row] for row in page.rows if row != page.explored)
    found = set_value(pages_of(pages), Target(rows, size))
    return found, {"true_value": float(value), "true_gain": float(value - base.mean())}


def _summary(rows: list[dict[str, Any]], kind: str, arm: str | None) -> dict[str, Any]:
    some = [row for row in rows if (row["case"], row["arm"]) == (kind, arm)]

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in some]))

    def inside(of: str, low: str, high: str) -> float | None:
        told = [row[low] <= row[of] <= row[high] for row in some if not row["notes"]]
        return float(np.mean(told)) if told else None

    return {
        "case": kind,
        "arm": arm,
        **{name: mean(name) for name in ("true_value", "value", "true_gain", "gain", "missing")},
        "error": float(np.mean([abs(row["value"] - row["true_value"]) for row in some]) / mean("true_value")),
        "coverage": inside("true_value", "low", "high"),
        "gain_coverage": inside("true_gain", "gain_low", "gain_high"),
        "refused": float(np.mean([bool(row["notes"]) for row in some])),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [f"{row[name]:.3f}" for name in ("true_value", "value")]
    numbers += [f"{row[name]:+.3f}" for name in ("true_gain", "gain")]
    shares = ["–" if row[name] is None else f"{row[name]:.0%}" for name in ("coverage", "gain_coverage")]
    missing = [f"{row['missing']:.1%}", f"{row['refused']:.0%}"]
    return [row["case"], row["arm"] or "–", *numbers, f"{row['error']:.1%}", *shares, *missing]


def _figure(rows: list[dict[str, Any]]) -> Figure:
    """Estimated gains beside true ones."""
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    panel = figure.subplots()
    for kind, colour in (("shadow", "C0"), ("deeper", "C2"), ("unseen", "C3")):
        some = [row for row in rows if row["case"] == kind]
        truth, gain = [row["true_gain"] for row in some], [row["gain"] for row in some]
        width = [0 if row["notes"] else (row["gain_high"] - row["gain_low"]) / 2 for row in some]
        label = f"{kind}, refused" if some and all(row["notes"] for row in some) else kind
        panel.errorbar(truth, gain, width, fmt="o", ms=3, lw=0.6, color=colour, label=label)
    ends = [min(row["true_gain"] for row in rows), max(row["true_gain"] for row in rows)]
    panel.plot(ends, ends, color="grey", lw=0.8)
    panel.set(xlabel="true gain, clicks a page if all is looked at", ylabel="estimate from pages and clicks")
    tidy(panel)
    panel.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(run)
