"""Does the personal arm find the artists that a listener likes? A fifth of each listener's artists is left out.

python scripts/experiments/personal.py --data ../shared/data/lastfm-hetrec2k [--out runs/personal] [--seeds 3]

Beside it: the most popular artists, and ALS of the library `implicit` (extra `bench`). All are tuned anew for each seed
(ltrr/evaluation/listeners.py); artists that are left out tune nothing. The text of an artist is the title, or the title
and five tags by people who did not listen to that artist.
Writes DIR/{results.json,table.md,recall.png}, and DIR/texts.npz: encoded texts, for the next run. Three minutes of one
idle core, and some ten the first time, for texts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from ltrr.cli.arguments import main
from ltrr.data.lastfm import interactions, tagged_corpus
from ltrr.encoders.backbone import load_encoder
from ltrr.encoders.cached import CachedEncoder
from ltrr.evaluation.intervals import Interval
from ltrr.evaluation.listeners import MEASURES as _MEASURES
from ltrr.evaluation.listeners import RARE, Listening, compare
from ltrr.evaluation.plots import tidy
from ltrr.evaluation.report import bootstrap_interval, paired_randomisation
from ltrr.evaluation.tables import markdown, write_experiment

MEASURES, PEER = (*_MEASURES, RARE), "ALS (implicit)"


def over_listeners(seeds: Sequence[Mapping[str, float]]) -> Interval:
    """Mean over listeners of their mean over seeds, with a bootstrap interval over listeners."""
    of = defaultdict(list)
    for values in seeds:
        for listener, value in values.items():
            of[listener].append(value)
    means = np.array([np.mean(values) for values in of.values()])
    return Interval(float(means.mean()), *bootstrap_interval(means, num_samples=1_000))


def plot(cells: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """R@100 of every system."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel, names = figure.subplots(), [*cells][::-1]
    mean, low, high = np.array([cells[name]["R@100"] for name in names]).T
    panel.barh(names, mean, xerr=[mean - low, high - mean], color=["C0" if "personal" in n else "0.6" for n in names])
    panel.axvline(2 * cells["popular"]["R@100"].mean, color="0.3", linestyle=":", label="twice popular")
    panel.set_xlabel("R@100, mean over listeners")
    tidy(panel, "x")
    panel.legend(frameon=False)
    return figure


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Last.fm (HetRec 2011)")
    parser.add_argument("--out", type=Path, default=Path("runs/personal"))
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    corpus, encoder = tagged_corpus(flags.data), CachedEncoder(load_encoder(), flags.out / "texts.npz")
    whole = Listening(interactions(flags.data))
    with tempfile.TemporaryDirectory() as folder:
        seeds = [compare(corpus, encoder, whole, seed, Path(folder)) for seed in tqdm(range(flags.seeds), "seeds")]
    scores = {name: [of[name] for of, _ in seeds] for name in seeds[0][0]}
    cells = {name: {m: over_listeners([each[m] for each in of]) for m in MEASURES} for name, of in scores.items()}
    recall = {name: np.mean([[*each["R@100"].values()] for each in of], axis=0) for name, of in scores.items()}
    p = {name: paired_randomisation(values, recall[PEER]) for name, values in recall.items()}
    times = {name: of["R@100"].mean / cells["popular"]["R@100"].mean for name, of in cells.items()}
    rows = [[n, *(c.shown() for c in of.values()), f"{times[n]:.2f}", f"{p[n]:.4f}"] for n, of in cells.items()]
    header = ["system", *MEASURES, "R@100, times popular's", "p (R@100, against ALS)"]
    report = {"seeds": flags.seeds, "listeners": len(recall["popular"])}
    report["systems"] = {name: of | {"times popular": [times[name]] * 3} for name, of in cells.items()}
    report |= {"p": p, "tuned": [tuned for _, tuned in seeds]}
    write_experiment(flags.out, report, markdown(header, rows), recall=plot(cells))


if __name__ == "__main__":
    main(run)
