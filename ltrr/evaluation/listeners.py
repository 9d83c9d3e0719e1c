"""Measures recommendations: leaves out a fifth of each listener's artists and looks for them in an arm's results.

Knows tables of engagement, the personal arm and ALS of the library `implicit` (extra `bench`; Hu et al. 2008); does not
know where a table comes from. Both are tuned on a fifth of the training part, twelve settings each.
Artists that a listener is known to have heard are taken out of all results.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from tqdm import tqdm

from ltrr.arms.engagement import Engagement
from ltrr.arms.personal import Personal
from ltrr.data.corpus import Corpus
from ltrr.feedback.events import Action, Impression
from ltrr.metrics import evaluate
from ltrr.protocols import Encoder
from ltrr.types import Context, Query

MEASURES = ("R@10", "R@100", "nDCG@10")
ARM: list[dict[str, Any]] = [
    {"damping": damping, "ridge": ridge} for damping in (0.1, 0.2, 0.3) for ridge in (0.1, 0.2, 0.4)
]
TEXT = (0.3, 0.4, 0.5)  # weights of text
ALS = [
    {"factors": factors, "alpha": alpha, "regularization": ridge}
    for factors in (32, 64, 96)
    for alpha, ridge in ((20, 10), (40, 100), (80, 200), (160, 400))
]
RARE = f"R@100 of artists with < {(COLD := 3)} listeners"
_DEPTH, _SESSION, _START = 100, 5, datetime(2026, 1, 1, tzinfo=UTC)
Artists = dict[str, list[str]]  # listener -> artists
Scores = dict[str, dict[str, float]]  # measure -> listener -> value


class Listening:
    """Lines (listener, artist, plays)."""

    def __init__(self, lines: Sequence[tuple[str, str, str]]) -> None:
        self.lines, self.artists = lines, defaultdict[str, list[str]](list)
        for listener, artist, _ in lines:
            self.artists[listener].append(artist)

    def split(self, rng: np.random.Generator) -> tuple[Listening, Artists]:
        """The lines that stay, and a fifth of each listener's artists."""
        out = {u: rng.choice(a, round(0.2 * len(a)), replace=False).tolist() for u, a in self.artists.items()}
        removed = {(u, artist) for u, artists in out.items() for artist in artists}
        rest = Listening([line for line in self.lines if line[:2] not in removed])
        return rest, {u: artists for u, artists in out.items() if artists}

    def write(self, path: Path) -> str:
        """Writes the TSV that the personal arm reads."""
        path.write_text("\n".join(map("\t".join, [("user", "entity", "plays"), *self.lines])), encoding="utf-8")
        return str(path)


class Trial:
    """One training table and the artists that were left out of it. folder: a new one, for indexes."""

    def __init__(self, corpus: Corpus, encoder: Encoder, table: Listening, out: Artists, folder: Path) -> None:
        folder.mkdir()
        self._corpus, self._encoder, self._table, self._out, self._folder = corpus, encoder, table, out, folder
        self._path = table.write(folder / "train.tsv")
        self._heard = {u: set(artists) for u, artists in table.artists.items()}

    def arm(self, text: float, *, fields: Sequence[str] = ("tags",), damping: float, ridge: float) -> Personal:
        """The opened arm; one index serves all weights of text above 0."""
        arm = Personal(
            self._encoder, interactions=self._path, text=text, text_fields=fields, damping=damping, ridge=ridge
        )
        root = self._folder / "-".join(map(str, (text > 0, *fields, damping, ridge)))
        if not root.exists():
            arm.build(self._corpus, root)
        return arm.open(self._corpus, root)

    def personal(self, arm: Personal) -> Artists:
        """Results of each listener who is known by name."""
        return self._search(arm, {u: Query(u, "", Context(u)) for u in self._out})

    def popular(self, arm: Personal) -> Artists:
        """Results of a listener without a name."""
        return self._search(arm, {u: Query(u, "") for u in self._out})

    def session(self, arm: Personal) -> Artists:
        """Results of a listener without a name who clicked five artists of the training part in this session."""
        queries = {}
        for u in self._out:
            for n, artist in enumerate(self._table.artists[u][:_SESSION]):
                seen = Impression(f"{u} {n}", _START + timedelta(minutes=n), "", (artist,), session=u)
                arm.observe([seen, Action(f"{u} {n}", seen.id, artist, "click", seen.time)])
            queries[u] = Query(u, "", Context(attributes={"session": u}))
        return self._search(arm, queries)

    def als(self, **options: Any) -> Artists:
        """Results of ALS over the same strengths. options: of `AlternatingLeastSquares`."""
        from implicit.als import AlternatingLeastSquares  # an extra

        table = Engagement.read(Path(self._path), self._corpus)
        shape = (len(table.names), len(self._corpus))
        matrix = sparse.csr_matrix((table.strength.astype(np.float32), (table.who, table.rows)), shape)
        model = AlternatingLeastSquares(**options, iterations=15, random_state=0, num_threads=1)
        model.fit(matrix, show_progress=False)
        number = {name: i for i, name in enumerate(table.names.tolist())}
        asked = [number[u] for u in self._out]
        best, _ = model.recommend(asked, matrix[asked], N=_DEPTH, filter_already_liked_items=True)
        ids = self._corpus.ids
        return {u: [ids[int(i)] for i in row if i >= 0] for u, row in zip(self._out, best, strict=True)}

    def score(self, best: Artists, wanted: Artists | None = None) -> Scores:
        """Scores of results; wanted: None = all artists that were left out."""
        qrels = {u: dict.fromkeys(artists, 1) for u, artists in (wanted or self._out).items()}
        run = {u: {artist: -float(rank) for rank, artist in enumerate(best[u])} for u in qrels if best[u]}
        values = evaluate(run, qrels, MEASURES)
        return {m: dict(zip(values.query_ids, values.of(m).tolist(), strict=True)) for m in MEASURES}

    def recall(self, best: Artists) -> float:
        """Mean R@100."""
        return float(np.mean([*self.score(best)["R@100"].values()]))

    def _search(self, arm: Personal, queries: Mapping[str, Query]) -> Artists:
        docs = arm.search([*queries.values()], _DEPTH + max(map(len, self._heard.values()))).docs
        best = {}
        for listener, row in zip(queries, docs.tolist(), strict=True):
            ids = (self._corpus.ids[doc] for doc in row if doc >= 0)
            best[listener] = [i for i in ids if i not in self._heard[listener]][:_DEPTH]
        return best


def compare(
    corpus: Corpus, encoder: Encoder, whole: Listening, seed: int, folder: Path
) -> tuple[dict[str, Scores], dict[str, Any]]:
    """Scores of the personal arm's variants, of popularity and of ALS for one seed; the tuning's figures.

    folder: for indexes.
    """
    # 1) Tune on a fifth of the training part.
    rng = np.random.default_rng(seed)
    table, out = whole.split(rng)
    dev = Trial(corpus, encoder, *table.split(rng), folder / f"dev{seed}")
    arm = {json.dumps(o): dev.recall(dev.personal(dev.arm(0.0, **o))) for o in tqdm(ARM, "personal", leave=False)}
    options: dict[str, Any] = json.loads(max(arm, key=lambda o: arm[o]))
    texts = {text: dev.recall(dev.personal(dev.arm(text, **options))) for text in TEXT}
    text = max(texts, key=lambda t: texts[t])
    als = {json.dumps(o): dev.recall(dev.als(**o)) for o in tqdm(ALS, "ALS", leave=False)}
    best = max(als, key=lambda o: als[o])
    tuned: dict[str, Any] = {"personal": arm, "text": texts, "als": als, "chosen": [options, text, best]}

    # 2) Measure on the artists that were left out.
    test = Trial(corpus, encoder, table, out, folder / f"test{seed}")
    arms = {
        "co-engagement": test.arm(0.0, **options),
        "text: title and tags": test.arm(1.0, **options),
        "text: title": test.arm(1.0, fields=(), **options),
        "both: title and tags": test.arm(text, **options),
        "both: title": test.arm(text, fields=(), **options),
    }
    results = {"popular": test.popular(arms["co-engagement"]), "ALS (implicit)": test.als(**json.loads(best))}
    results |= {f"personal, {name}": test.personal(arm) for name, arm in arms.items()}
    results["personal, both: title and tags, a session of five"] = test.session(arms["both: title and tags"])
    counts = Counter(artist for _, artist, _ in table.lines)
    cold = {u: few for u, artists in out.items() if (few := [a for a in artists if counts[a] < COLD])}
    return {name: test.score(each) | {RARE: test.score(each, cold)["R@100"]} for name, each in results.items()}, tuned
