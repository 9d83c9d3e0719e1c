"""The HTTP contract, over a real funnel of the small music corpus."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT
from fastapi.testclient import TestClient

from ltrr.serving.app import create_app
from ltrr.system import open_systems


@pytest.fixture(scope="module")
def client(music, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    config = folder / "c.yaml"
    config.write_text(
        f"data: {{path: {music}}}\ncache: {folder / 'cache'}\narms:\n"
        "  lexical: {class: ltrr.arms.lexical.Lexical}\n  structured: {class: ltrr.arms.structured.Structured}\n"
    )
    (system,) = open_systems(config, [])
    corpus = system.corpus
    describe = lambda row: (corpus.ids[row], corpus[row].title)  # noqa: E731
    return TestClient(create_app(system.funnel(), "tiny", len(corpus), describe, max_k=20))


def test_search_answers_the_contract(client):
    context = {"customer": "c1", "locale": "en-GB", "time": "2026-01-01T10:00:00", "device": "phone"}
    answer = client.post("/search", json={"query": "tayler vale", "k": 5, "context": context})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"impression", "results"}
    assert len(body["results"]) == 5
    for result in body["results"]:
        assert set(result) == {"id", "title", "score", "arms"}
        assert set(result["arms"]) <= {"lexical", "structured"}
        assert result["arms"]
    scores = [result["score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    again = client.post("/search", json={"query": "tayler vale", "k": 5}).json()
    assert again["impression"] != body["impression"]  # one id an impression
    assert again["results"] == body["results"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": "   "}, "query"),
        ({"query": "x" * 1001}, "query"),
        ({"query": "x", "context": {"attributes": {"a": "y" * 2000}}}, "attributes"),
        ({"query": "x", "k": 0}, "k"),
        ({"query": "x", "k": 21}, "k"),
        ({"query": "x", "k": "many"}, "k"),
        ({"query": "x", "class": "os.system"}, "class"),
        ({"query": "x", "context": {"path": "/"}}, "path"),
        ({"query": "x", "context": {"time": "yesterday"}}, "time"),
    ],
)
def test_bad_requests_name_the_field(client, body, field):
    answer = client.post("/search", json=body)
    assert answer.status_code == 422
    assert field in answer.text


@pytest.mark.parametrize("text", ["?", "夜の歌", "a\x00b", "' OR 1=1 --", "🎵🎵", "love " * 150])
def test_odd_queries_are_answered(client, text):
    assert client.post("/search", json={"query": text}).status_code == 200


def test_half_a_surrogate_pair_is_refused(client):
    answer = client.post("/search", content=b'{"query": "\\ud800"}', headers={"content-type": "application/json"})
    assert answer.status_code == 422


def test_health_and_openapi(client):
    assert client.get("/healthz").json() == {
        "status": "ok", "dataset": "tiny", "documents": 66, "arms": ["lexical", "structured"],
    }  # fmt: skip
    assert "/search" in client.get("/openapi.json").json()["paths"]


def _serve(*flags: str) -> dict:
    """Starts serve.py as a user does, asks one query, stops it."""
    port = "18765"
    command = [sys.executable, str(ROOT / "serve.py"), *flags, "--serve.port", port]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
                time.sleep(0.2)
        body = json.dumps({"query": "tayler love", "k": 5}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/search", body, {"content-type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    finally:
        process.terminate()
        process.wait()


def test_serve_py_starts_and_answers(music, fast_config):
    assert len(_serve("--config", str(fast_config), "--data", str(music))["results"]) == 5


@pytest.mark.slow
def test_serve_py_starts_on_what_quickstart_built_with_no_edit():
    if not (ROOT / "runs/quickstart/results.json").exists():
        pytest.skip("run `make quickstart` first")
    results = _serve()["results"]
    assert "Love Again" in [result["title"] for result in results]  # Taylor Vale's
