"""New entities arrive while customers search: the gain and the cost of a place on the page for an explorer.

python scripts/experiments/arrivals.py --config configs/fresh.yaml --data FOLDER --out DIR [--rounds 5000] [--seeds 10]
    [--slots 0.1 0.3] [--position 5] [--new 0.2] [--head 1] [--eta 1] [--noise 0.1]

A share `--new` of the entities, drawn anew for each seed, arrives over the first four fifths of the rounds; no arm
returns them before. Customers ask train queries, and memory learns from their clicks: without the explorer, and with
each share of pages (`--slots`) on which the explorer has the place `--position`. At the end memory is measured without
the explorer, on test queries and on train queries. Intervals are Student's over seeds, differences are paired.
Writes DIR/results.json, DIR/table.md and DIR/fresh.png.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from tqdm import tqdm

from ltrr.arms.fresh import Fresh
from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.evaluation.intervals import Interval, over_seeds
from ltrr.evaluation.plots import tidy
from ltrr.evaluation.tables import markdown, write_experiment
from ltrr.simulation.arrivals import AFTER, DURING, UNTAUGHT, WITHOUT, Arrivals
from ltrr.simulation.worlds import World
from ltrr.system.system import open_systems

MEASURES = DURING | AFTER
Cells = Mapping[str, Interval]  # measure -> over seeds
FLAGS = {  # argument of Arrivals -> default and meaning
    "rounds": (5_000, "rounds of customers"),
    "position": (5, "place of the explorer, 1 to 10"),
    "new": (0.2, "share of the entities that arrive later"),
    "head": (1.0, "the r-th query is asked with r^-head"),
    "eta": (1.0, "position k is looked at with k^-eta"),
    "noise": (0.1, "clicks on irrelevant documents"),
}


def verdict(slot: str, differences: Cells) -> str:
    """The explorer's gain and cost in words; clicks decide whether it pays."""

    def word(measure: str, more: str, less: str, neither: str) -> str:
        cell = differences[measure]
        return more if cell.low > 0 else less if cell.high < 0 else neither

    pays = word("clicks", "pays", "does not pay: it costs clicks", "does not pay: no change in clicks is seen")
    seen = word("new_thrice", "more", "fewer", "no more")
    learned = [word(f"new_R@10_{name}", "better", "worse", "no better") for name in ("test", "asked")]
    clicks, thrice = (differences[measure].mean for measure in ("clicks", "new_thrice"))
    return (
        f"- On {slot} of the pages the explorer {pays} ({clicks:+.4f} a round). It shows {seen} new entities at least "
        f"3 times ({thrice:+.4f}); at the end test queries find them {learned[0]}, train queries {learned[1]}."
    )


def plot(systems: Mapping[str, Cells]) -> Figure:
    """Four measures over the share of pages that explore."""
    chosen, names = ("new_thrice", "new_R@10_asked", "clicks", "distinct"), [n for n in systems if n != UNTAUGHT]
    figure = Figure(figsize=(14, 3.5), layout="constrained")
    for panel, measure in zip(figure.subplots(1, len(chosen)), chosen, strict=True):
        cells = [systems[name][measure] for name in names]
        spread = [cell.mean - cell.low for cell in cells]
        panel.errorbar(range(len(cells)), [cell.mean for cell in cells], spread, fmt="o-", capsize=4)
        panel.set_xticks(range(len(cells)), names)
        panel.set_xlabel("share of pages that explore")
        panel.set_title(MEASURES[measure], fontsize=9)
        tidy(panel)
    return figure


def run() -> None:
    def add(parser) -> None:
        for name, (default, meaning) in FLAGS.items():
            parser.add_argument(f"--{name}", type=type(default), default=default, help=meaning)
        parser.add_argument("--seeds", type=int, default=10)
        parser.add_argument("--slots", type=float, nargs="+", default=[0.1, 0.3], help="shares of pages")
        parser.add_argument("--arm", default="memory", help="the arm that learns")
        parser.add_argument("--explorer", default="fresh", help="the arm that explores")

    flags, overrides = arguments(__doc__, "configs/fresh.yaml", "runs/fresh", add)
    if flags.seeds < 2:
        raise ConfigError(f"--seeds {flags.seeds}: intervals need at least 2")
    (system,) = open_systems(flags.config, overrides)
    if flags.explorer not in system.specs:
        raise ConfigError(f"arms: there is no arm {flags.explorer!r} to explore; see configs/fresh.yaml")
    explorer = system.arm(flags.explorer)
    assert isinstance(explorer, Fresh)
    world = World(system, flags.arm, without=[flags.explorer])
    arrivals = Arrivals(world, explorer, slots=flags.slots, **{name: getattr(flags, name) for name in FLAGS})
    seeds = [arrivals.simulate(seed) for seed in tqdm(range(flags.seeds), "simulate", unit="seed")]
    systems = {name: {m: over_seeds([s[name][m] for s in seeds]) for m in of} for name, of in seeds[0].items()}
    differences = {
        name: {m: over_seeds([s[name][m] - s[WITHOUT][m] for s in seeds]) for m in MEASURES}
        for name in list(systems)[2:]
    }
    columns = [*systems.values(), *differences.values()]
    rows = [[text, *(c[m].shown(4) if m in c else "" for c in columns)] for m, text in MEASURES.items()]
    lines = markdown(["measure", *systems, *(f"{name} − without" for name in differences)], rows)
    lines += ["", *(verdict(slot, cells) for slot, cells in differences.items())]
    results: dict[str, object] = {"dataset": system.dataset.name}
    results |= {name: getattr(flags, name) for name in ("seeds", "rounds", "new", "position")}
    for key, of in (("systems", systems), ("differences", differences)):
        results[key] = {name: {m: cell._asdict() for m, cell in cells.items()} for name, cells in of.items()}
    write_experiment(flags.out, results, lines, fresh=plot(systems))


if __name__ == "__main__":
    main(run)
