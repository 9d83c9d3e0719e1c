"""Does the personal arm find what a listener likes? A fifth of each listener's artists is left out and looked for.

python scripts/personal.py --data ../shared/data/lastfm-hetrec2k [--out runs/personal] [--seeds 3]

Beside it: what is popular, and ALS of the library `implicit` (extra `bench`; Hu et al. 2008). Both are tuned on a fifth
of the training part, twelve settings each, anew for each seed; what is left out tunes nothing. What a listener is known
to have heard is taken out of all results. The text of an artist is the title, or the title and five tags: those
most often given by people who do not have that artist among their own, so that no tag tells who listens.
Writes DIR/{results.json,table.md,recall.png}, and DIR/texts.npz: encoded texts, for the next run. Three minutes of one
idle core, and some ten the first time, for texts.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from implicit.als import AlternatingLeastSquares
from matplotlib.figure import Figure
from scipy import sparse
from tqdm import tqdm

from ltrr.arms.engagement import Engagement
from ltrr.arms.personal import Personal
from ltrr.cli.arguments import main
from ltrr.data.beir import Corpus, open_dataset
from ltrr.encoders.backbone import load_encoder
from ltrr.evaluation.report import paired_randomisation
from ltrr.feedback.events import Action, Impression
from ltrr.files import atomic_write
from ltrr.metrics import evaluate
from ltrr.types import Context, Query

MEASURES = ("R@10", "R@100", "nDCG@10")
ARM = [{"damping": damping, "ridge": ridge} for damping in (0.1, 0.2, 0.3) for ridge in (0.1, 0.2, 0.4)]
TEXT = (0.3, 0.4, 0.5)
ALS = [
    {"factors": factors, "alpha": alpha, "regularization": ridge}
    for factors in (32, 64, 96)
    for alpha, ridge in ((20, 10), (40, 100), (80, 200), (160, 400))
]
COLD, _DEPTH, _SESSION = 3, 100, 5
_START = datetime(2026, 1, 1, tzinfo=UTC)
Heard = dict[str, list[str]]  # listener -> artists


class Texts:
    """An encoder that remembers what it encoded, in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._model = path, load_encoder()
        self.id, self._known = self._model.id, {}
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                if str(file["id"]) == self.id:
                    self._known = dict(zip(file["texts"].tolist(), file["vectors"], strict=True))

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known |= dict(zip(new, self._model.encode(new), strict=True))
            with atomic_write(self._path) as temporary, temporary.open("wb") as file:
                np.savez(file, id=self.id, texts=[*self._known], vectors=[*self._known.values()])
        return np.stack([self._known[text] for text in texts])


class Table:
    """Listeners' artists with plays: `lines` of a TSV."""

    def __init__(self, lines: list[tuple[str, str, str]]) -> None:
        self.lines, self.heard = lines, defaultdict(list)
        for listener, artist, _ in lines:
            self.heard[listener].append(artist)

    def split(self, rng: np.random.Generator) -> tuple[Table, Heard]:
        """What is kept, and a fifth of each listener's artists."""
        out = {u: rng.choice(a, round(0.2 * len(a)), replace=False).tolist() for u, a in self.heard.items()}
        gone = {(u, artist) for u, artists in out.items() for artist in artists}
        return Table([line for line in self.lines if line[:2] not in gone]), {u: a for u, a in out.items() if a}

    def write(self, path: Path) -> str:
        path.write_text("\n".join(map("\t".join, [("user", "entity", "plays"), *self.lines])), encoding="utf-8")
        return str(path)


def tagged(folder: Path) -> Corpus:
    """The corpus with nothing but titles and tags; a tag by somebody who has the artist in the table is not used."""
    names = dict(csv.reader((folder / "tags.tsv").open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    heard = {line[:2] for line in rows_of(folder / "interactions.tsv")}
    tags: dict[str, Counter] = defaultdict(Counter)
    for user, artist, tag, *_ in rows_of(folder / "user_taggedartists.tsv"):
        if (user, artist) not in heard:
            tags[artist][names[tag]] += 1
    best = {a: sorted(given, key=lambda tag, given=given: (-given[tag], tag))[:5] for a, given in tags.items()}
    return Corpus.from_documents(
        replace(document, metadata={"tags": best.get(document.id, [])}) for document in open_dataset(folder).corpus
    )


def rows_of(path: Path) -> Iterator[tuple[str, ...]]:
    """The rows of a TSV after its header."""
    return (tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()[1:])


class Trial:
    """One training table, what was left out of it, and all that is asked."""

    def __init__(self, corpus: Corpus, encoder: Texts, table: Table, out: Heard, folder: Path) -> None:
        folder.mkdir()
        self.corpus, self.encoder, self.table, self.out, self._folder = corpus, encoder, table, out, folder
        self._path = table.write(folder / "train.tsv")
        self._known = {u: set(artists) for u, artists in table.heard.items()}

    def arm(self, text: float, *, fields: Sequence[str] = ("tags",), damping: float, ridge: float) -> Personal:
        """Built once for all weights of text above 0."""
        arm = Personal(
            self.encoder, interactions=self._path, text=text, text_fields=fields, damping=damping, ridge=ridge
        )
        root = self._folder / "-".join(map(str, (text > 0, *fields, damping, ridge)))
        if not root.exists():
            arm.build(self.corpus, root)
        return arm.open(self.corpus, root)

    def search(self, arm: Personal, queries: Mapping[str, Query]) -> Heard:
        """Listener -> the best artists that they are not known to have heard."""
        found = arm.search([*queries.values()], _DEPTH + max(map(len, self._known.values()))).docs
        best = {}
        for listener, row in zip(queries, found.tolist(), strict=True):
            ids = (self.corpus.ids[doc] for doc in row if doc >= 0)
            best[listener] = [i for i in ids if i not in self._known[listener]][:_DEPTH]
        return best

    def personal(self, arm: Personal) -> Heard:
        return self.search(arm, {u: Query(u, "", Context(u)) for u in self.out})

    def popular(self, arm: Personal) -> Heard:
        return self.search(arm, {u: Query(u, "") for u in self.out})

    def session(self, arm: Personal) -> Heard:
        """Nobody known, who clicked five artists of that listener's training part in this session."""
        queries = {}
        for u in self.out:
            for n, artist in enumerate(self.table.heard[u][:_SESSION]):
                seen = Impression(f"{u} {n}", _START + timedelta(minutes=n), "", (artist,), session=u)
                arm.observe([seen, Action(f"{u} {n}", seen.id, artist, "click", seen.time)])
            queries[u] = Query(u, "", Context(attributes={"session": u}))
        return self.search(arm, queries)

    def als(self, **options: Any) -> Heard:
        """The same strengths go in."""
        table = Engagement.read(Path(self._path), self.corpus)
        shape = (len(table.names), len(self.corpus))
        matrix = sparse.csr_matrix((table.strength.astype(np.float32), (table.who, table.rows)), shape)
        model = AlternatingLeastSquares(**options, iterations=15, random_state=0, num_threads=1)
        model.fit(matrix, show_progress=False)
        number = {name: i for i, name in enumerate(table.names.tolist())}
        asked = [number[u] for u in self.out]
        found, _ = model.recommend(asked, matrix[asked], N=_DEPTH, filter_already_liked_items=True)
        return {u: [self.corpus.ids[i] for i in row if i >= 0] for u, row in zip(self.out, found.tolist(), strict=True)}

    def score(self, best: Heard, wanted: Heard | None = None) -> dict[str, dict[str, float]]:
        """Measure -> listener -> value."""
        qrels = {u: dict.fromkeys(artists, 1) for u, artists in (wanted or self.out).items()}
        run = {u: {artist: -float(rank) for rank, artist in enumerate(best[u])} for u in qrels if best[u]}
        values = evaluate(run, qrels, MEASURES)
        return {m: dict(zip(values.query_ids, values.of(m).tolist(), strict=True)) for m in MEASURES}

    def recall(self, best: Heard) -> float:
        return float(np.mean([*self.score(best)["R@100"].values()]))


def one(corpus: Corpus, encoder: Texts, whole: Table, seed: int, folder: Path) -> tuple[dict, dict]:
    """System -> measure -> listener -> value, and what was tuned to what."""
    rng = np.random.default_rng(seed)
    table, out = whole.split(rng)
    # 1) Tune on a fifth of the training part.
    dev = Trial(corpus, encoder, *table.split(rng), folder / f"dev{seed}")
    learned = {json.dumps(o): dev.recall(dev.personal(dev.arm(0.0, **o))) for o in tqdm(ARM, "personal", leave=False)}
    options: dict[str, Any] = json.loads(max(learned, key=lambda o: learned[o]))
    texts = {text: dev.recall(dev.personal(dev.arm(text, **options))) for text in TEXT}
    text = max(texts, key=lambda t: texts[t])
    als = {json.dumps(o): dev.recall(dev.als(**o)) for o in tqdm(ALS, "ALS", leave=False)}
    tuned = {"personal": learned, "text": texts, "als": als, "chosen": [options, text, max(als, key=lambda o: als[o])]}

    # 2) Measure on what was left out.
    test = Trial(corpus, encoder, table, out, folder / f"test{seed}")
    arms = {
        "co-engagement": test.arm(0.0, **options),
        "text: title and tags": test.arm(1.0, **options),
        "text: title": test.arm(1.0, fields=(), **options),
        "both: title and tags": test.arm(text, **options),
        "both: title": test.arm(text, fields=(), **options),
    }
    found = {f"personal, {name}": test.personal(arm) for name, arm in arms.items()}
    found = {
        "popular": test.popular(arms["co-engagement"]),
        "ALS (implicit)": test.als(**json.loads(tuned["chosen"][2])),
        **found,
    }
    found["personal, both: title and tags, a session of five"] = test.session(arms["both: title and tags"])
    counts = Counter(artist for _, artist, _ in table.lines)
    cold = {u: few for u, artists in out.items() if (few := [a for a in artists if counts[a] < COLD])}
    scores = {name: test.score(best) for name, best in found.items()}
    for name, best in found.items():
        scores[name][f"R@100 of artists with < {COLD} listeners"] = test.score(best, cold)["R@100"]
    return scores, tuned


def interval(seeds: list[dict[str, float]]) -> tuple[float, float, float]:
    """Mean over listeners of their mean over seeds, with a 95 % bootstrap interval over listeners."""
    of = defaultdict(list)
    for listener, value in itertools.chain.from_iterable(values.items() for values in seeds):
        of[listener].append(value)
    values = np.array([np.mean(v) for v in of.values()])
    draws = np.random.default_rng(0).choice(values, (1000, len(values))).mean(axis=1)
    return float(values.mean()), *np.quantile(draws, [0.025, 0.975]).tolist()


def plot(cells: dict[str, dict[str, tuple[float, float, float]]]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    names = [*cells][::-1]
    mean, low, high = np.array([cells[name]["R@100"] for name in names]).T
    panel.barh(names, mean, xerr=[mean - low, high - mean], color=["C0" if "personal" in n else "0.6" for n in names])
    panel.axvline(2 * cells["popular"]["R@100"][0], color="0.3", linestyle=":", label="twice popular")
    panel.set_xlabel("R@100, mean over listeners")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    return figure


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Last.fm (HetRec 2011)")
    parser.add_argument("--out", type=Path, default=Path("runs/personal"))
    parser.add_argument("--seeds", type=int, default=3)
    flags = parser.parse_args()
    corpus, encoder = tagged(flags.data), Texts(flags.out / "texts.npz")
    whole = Table([*rows_of(flags.data / "interactions.tsv")])  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        seeds = [one(corpus, encoder, whole, seed, Path(folder)) for seed in tqdm(range(flags.seeds), "seeds")]
    systems = {name: [scores[name] for scores, _ in seeds] for name in seeds[0][0]}
    measures = [*next(iter(systems.values()))[0]]
    cells = {name: {m: interval([s[m] for s in of]) for m in measures} for name, of in systems.items()}

    def per_listener(name: str) -> np.ndarray:
        return np.mean([[*s["R@100"].values()] for s in systems[name]], axis=0)

    for values in cells.values():
        values["times popular"] = (values["R@100"][0] / cells["popular"]["R@100"][0],) * 3
    p = {name: paired_randomisation(per_listener(name), per_listener("ALS (implicit)")) for name in systems}
    lines = [
        f"| system | {' | '.join(measures)} | R@100, times popular's | p (R@100, against ALS) |",
        f"| --- |{' ---: |' * (len(measures) + 2)}",
    ]
    for name, values in cells.items():
        shown = [f"{mean:.4f} ({low:.3f} to {high:.3f})" for mean, low, high in (values[m] for m in measures)]
        lines.append(f"| {name} | {' | '.join(shown)} | {values['times popular'][0]:.2f} | {p[name]:.4f} |")
    flags.out.mkdir(parents=True, exist_ok=True)
    report = {"seeds": flags.seeds, "listeners": len(per_listener("popular")), "systems": cells, "p": p}
    report["tuned"] = [tuned for _, tuned in seeds]
    (flags.out / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (flags.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(cells).savefig(flags.out / "recall.png", dpi=120)
    print("\n".join(lines))
    print(f"written: {flags.out}/results.json, table.md, recall.png")


if __name__ == "__main__":
    main(run)
