"""Memory learns from simulated clicks: quality on test queries after each amount of feedback.

python scripts/simulate_memory.py --config configs/memory.yaml --data FOLDER --out DIR [--rounds 5000 50000]
    [--seeds 10] [--eta 1] [--noise 0.1] [--direct 0.5] [--by intent] [--split test]
    [--drift ROUNDS] [--observed DIR] [--data.qrels qrels-random]

Customers ask train queries; what they click teaches the memory arm; test queries are asked in between and teach
nothing. "without" has no memory arm, 0 rounds nothing but predictions, where there are any; "train_labels" are the
positives of the ten nearest train queries, weighted by similarity. --observed: writes the queries that the last seed's
customers found documents with (scripts/observed.py). --eta: customers look at position k with k^-eta; memory believes
1 / k whatever they do. --direct: the share of those who clicked nothing who ask again, by the title of what they want.
--by: also by a field of the queries' metadata, which is read for analysis only. Writes DIR/results.json, DIR/table.md
and DIR/curve.png.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from ltrr.cli.arguments import arguments, main
from ltrr.config import ConfigError
from ltrr.data.beir import Split, open_dataset
from ltrr.data.expansions import write_observed
from ltrr.evaluation.nearest import NearestQueries
from ltrr.evaluation.report import paired_randomisation
from ltrr.feedback.clicks import PositionBased
from ltrr.feedback.events import normalised
from ltrr.files import atomic_write
from ltrr.funnel import Funnel
from ltrr.metrics import drop_self, evaluate, to_run
from ltrr.policies.fixed import FixedPolicy
from ltrr.protocols import Arm, Encoder
from ltrr.simulation.feedback import Remembered, Simulation
from ltrr.system.system import System, open_systems
from ltrr.types import Page

WITHOUT, LABELS = "without", "train_labels"
MEASURES = ("nDCG@10", "R@10")
_DEPTH, _BATCH, _PAGE = 100, 250, 10
_USED = "used"  # whether a query was asked twice by its own customer, or by three, before


class Once:
    """An Encoder that encodes a text once, for all seeds."""

    def __init__(self, encoder: Encoder) -> None:
        self.id = encoder.id
        self._encoder = encoder
        self._known: dict[tuple[str, bool], np.ndarray] = {}

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        """(B, D)."""
        new = [text for text in dict.fromkeys(texts) if (text, is_query) not in self._known]
        vectors = self._encoder.encode(new, is_query=is_query)
        self._known |= {(text, is_query): vector for text, vector in zip(new, vectors, strict=True)}
        return np.stack([self._known[text, is_query] for text in texts])


class World:
    """A system whose arms are asked each query once, but for memory, and what customers ask."""

    def __init__(self, system: System, name: str, split: str = "test") -> None:
        if name not in system.specs:
            raise ConfigError(f"arms: there is no arm {name!r} to teach; see configs/memory.yaml")
        self.system, self.name, self.order = system, name, system.order()
        self._once: Once | None = None
        self._static = {n: Remembered(system.arm(n), _DEPTH) for n in system.usable() if n != name}
        self.train, self.train_qrels = system.dataset.split("train")
        self.test, qrels = system.dataset.split(split)
        self.test_qrels = {query.id: qrels[query.id] for query in self.test}  # in their order
        self.tried = [query for query in self.test if max(qrels[query.id].values(), default=0) > 0]

    def funnel(self, depth: int = _DEPTH) -> tuple[Funnel, Any]:
        """A funnel and its memory, which knows nothing but predictions yet; depth 0 = it is not asked."""
        memory = self.system.make(self.name)[0]
        if getattr(memory, "encoder", None) is not None:
            memory.encoder = self._once = self._once or Once(memory.encoder)
        arms = {**self._static, self.name: memory}
        policy = FixedPolicy(list(arms), dict.fromkeys(arms, _DEPTH) | {self.name: depth}, _DEPTH)
        return Funnel(arms, policy, self.order), memory

    def labels(self) -> Arm:
        """What is no search at all: the positives of the ten nearest train queries."""
        from ltrr.encoders.backbone import load_encoder  # torch takes seconds to import

        return NearestQueries(load_encoder(), self.system.corpus, [Split(self.train, self.train_qrels)])

    def direct(self) -> dict[str, str]:
        """Train query -> title of what it wants most."""
        corpus = self.system.corpus
        best = {q: max(grades, key=lambda doc: (grades[doc], doc)) for q, grades in self.train_qrels.items() if grades}
        return {q: corpus[corpus.row(doc)].title for q, doc in best.items()}

    def quality(self, funnel: Funnel | Arm) -> dict[str, np.ndarray]:
        """Measure -> (Q,) of the test queries."""
        run = {}
        for start in range(0, len(self.test), _BATCH):
            some = self.test[start : start + _BATCH]
            found = funnel.search(some, _PAGE + 1)  # one may be the query itself
            shown = found.shown if isinstance(found, Page) else found
            run |= drop_self(to_run([q.id for q in some], shown, self.system.corpus.ids))
        per_query = evaluate(run, self.test_qrels, MEASURES)
        return {measure: per_query.of(measure) for measure in MEASURES}


def simulate(world: World, flags: Any, seed: int) -> tuple[dict[str, dict[str, np.ndarray]], Any]:
    """Rounds -> measure -> (Q,); the memory at the end."""
    funnel, memory = world.funnel()
    asked: dict[str, Counter[str | None]] = defaultdict(Counter)  # query -> customer -> times
    found = {"0": world.quality(funnel) | {_USED: np.zeros(len(world.tried), bool)}}
    simulation = Simulation(
        funnel.search,
        world.train,
        world.train_qrels,
        world.system.corpus.ids,
        model=PositionBased.power(_PAGE, flags.eta),
        noise=flags.noise,
        reformulated=world.direct() if flags.direct else None,
        drift=flags.drift,
        persistence=flags.direct,
        seed=seed,
    )
    done = 0
    for rounds in sorted(flags.rounds):
        for batch in simulation.rounds(rounds - done, _BATCH):
            memory.observe(batch.events)
            for query in batch.page.queries:
                asked[normalised(query.text)][query.context.customer] += 1
        done = rounds
        by = [(asked[normalised(query.text)], query.context.customer) for query in world.tried]
        used = np.array([len(times) >= 3 or times[customer] >= 2 for times, customer in by])
        found[f"{rounds:,}"] = world.quality(funnel) | {_USED: used}
    return found, memory


def plot(path: Path, curves: dict[str, dict[str, tuple[float, float, float]]], measure: str) -> None:
    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, points in curves.items():
        x = range(len(points))
        mean, low, high = np.array(list(points.values())).T
        panel.plot(x, mean, "o-", label=name)
        panel.fill_between(x, low, high, alpha=0.2)
    panel.set_xticks(range(len(points)), list(points))
    panel.set_xlabel("simulated rounds")
    panel.set_ylabel(f"{measure} on the queries that are tried")
    panel.grid(color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, ncols=2)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def interval(values: np.ndarray, used: np.ndarray | None = None) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over queries and seeds together; values (S, Q), of those used (S, Q) alone."""
    rng = np.random.default_rng(0)
    weights = np.ones(values.shape) if used is None else used.astype(float)
    draws = []
    for _ in range(1000):
        drawn = np.ix_(rng.integers(len(values), size=len(values)), rng.integers(values.shape[1], size=values.shape[1]))
        draws.append((values[drawn] * weights[drawn]).sum() / max(weights[drawn].sum(), 1e-9))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float((values * weights).sum() / weights.sum()), float(low), float(high)


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/memory.yaml",
        "runs/memory",
        lambda parser: (
            parser.add_argument("--rounds", type=int, nargs="+", default=[5_000, 50_000]),
            parser.add_argument("--seeds", type=int, default=10),
            parser.add_argument("--eta", type=float, default=1.0, help="position k is looked at with k^-eta"),
            parser.add_argument("--noise", type=float, default=0.1, help="clicks on what is not relevant"),
            parser.add_argument("--direct", type=float, default=0.5, help="who ask again by the title, 0 = nobody"),
            parser.add_argument(
                "--drift", type=int, help="rounds after which a tenth of the queries trade what they want"
            ),
            parser.add_argument("--arm", default="memory", help="the arm that learns"),
            parser.add_argument("--observed", type=Path, help="folder for the queries that found documents"),
            parser.add_argument("--split", default="test", help="the queries that are tried, in place of test"),
            parser.add_argument("--by", help="also by this field of the queries' metadata, for example intent"),
        ),
    )
    if flags.seeds < 1:
        raise ConfigError(f"--seeds {flags.seeds}: at least 1")
    if flags.observed and flags.observed.exists():
        raise ConfigError(f"--observed {flags.observed}: is there already; remove it or name a new folder")
    (system,) = open_systems(flags.config, overrides, hold_out=flags.split)
    by = open_dataset(str(system.settings.data.path), query_fields=[flags.by]).queries if flags.by else []
    world = World(system, flags.arm, flags.split)
    fixed = {WITHOUT: world.quality(world.funnel(0)[0]), LABELS: world.quality(world.labels())}
    seeds, memory = [], None
    for seed in tqdm(range(flags.seeds), "simulate", unit="seed"):
        found, memory = simulate(world, flags, seed)
        seeds.append(fixed | found)
    if flags.observed and memory is not None:
        write_observed(flags.observed, system.corpus, memory.observed())
        with atomic_write(flags.observed / "ltrr.json") as temporary:  # customers asked train queries
            temporary.write_text(json.dumps({"data": system.corpus.fingerprint, "splits": ["train"]}) + "\n")
    ids = [query.id for query in world.tried]
    groups = {"all": np.ones(len(ids), bool)}
    if flags.by:
        value = {q.id: q.context.attributes.get(flags.by, "") for q in by}
        groups |= {name: np.array([value[i] == name for i in ids]) for name in sorted(set(value.values()))}
    asked = {normalised(query.text) for query in world.train}
    text = {query.id: normalised(query.text) for query in world.test}
    seen = np.array([text[i] in asked for i in ids])
    for name, mask in list(groups.items()):  # where train has some of their very words, and not others'
        if (mask & seen).any() and (mask & ~seen).any():
            groups |= {f"{name}, asked in train": mask & seen, f"{name}, not asked in train": mask & ~seen}
    groups = {name: mask for name, mask in groups.items() if mask.any()}
    results: dict[str, Any] = {
        "dataset": system.dataset.name,
        "split": flags.split,
        "seeds": flags.seeds,
        "queries": len(ids),
        "groups": {},
    }
    lines = [
        "| queries | n | rounds | nDCG@10 | R@10 | p (nDCG@10) | p (R@10) | used | R@10 of those |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, mask in groups.items():
        rows = {}
        for rounds in seeds[0]:
            values = {m: np.stack([found[rounds][m][mask] for found in seeds]) for m in MEASURES}
            cells = {m: interval(values[m]) for m in MEASURES}
            paired = {m: (values[m].mean(axis=0).round(9), fixed[WITHOUT][m][mask].round(9)) for m in MEASURES}
            p = {m: paired_randomisation(*pair) for m, pair in paired.items()}
            told = {m: dict(zip(("mean", "low", "high"), cell, strict=True)) for m, cell in cells.items()}
            rows[rounds] = {m: told[m] | {"p": p[m]} for m in MEASURES}
            used = np.stack([found.get(rounds, {}).get(_USED, np.zeros(len(ids), bool))[mask] for found in seeds])
            again = [""] * 2
            if used.any():
                cell = interval(values["R@10"], used)
                rows[rounds][_USED] = {
                    "share": used.mean(),
                    "R@10": dict(zip(("mean", "low", "high"), cell, strict=True)),
                }
                again = [f"{used.mean():.2f}", "{:.4f} ({:.3f} to {:.3f})".format(*cell)]
            shown = [f"{mean:.4f} ({low:.3f} to {high:.3f})" for mean, low, high in cells.values()]
            shown += ["" if rounds == WITHOUT else f"{p[m]:.4f}" for m in MEASURES]
            lines.append(f"| {name} | {mask.sum()} | {rounds} | {' | '.join([*shown, *again])} |")
        results["groups"][name] = {"queries": int(mask.sum()), "rounds": rows}
    lines += ["", f"p: paired randomisation against `{WITHOUT}`, of a query's mean over seeds, not adjusted."]
    lines += ["used: share of queries asked before, in these words, twice by their own customer or by three customers."]
    flags.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(flags.out / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")
    with atomic_write(flags.out / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    curves = {
        name: {
            r: (row["R@10"]["mean"], row["R@10"]["low"], row["R@10"]["high"])
            for r, row in group["rounds"].items()
            if r not in fixed
        }
        for name, group in results["groups"].items()
    }
    plot(flags.out / "curve.png", curves, "R@10")
    print("\n".join(lines))
    print(f"written: {flags.out}/results.json, table.md, curve.png")


if __name__ == "__main__":
    main(run)
