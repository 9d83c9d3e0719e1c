"""Habits of all fits: optimiser, throughput on a clock by hand, seeds, stops that name the batch, two devices."""

from __future__ import annotations

import csv
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from ltrr.encoders.bi_encoder import DenseModule, dense_network
from ltrr.encoders.training import (
    FiniteGradients,
    SeedSteps,
    Throughput,
    adamw,
    check_range,
    finite,
    set_dropout,
    write_export,
)
from ltrr.types import Example
from tests.helpers import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on batches of tests
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


# -- the optimiser


def test_matrices_decay_and_biases_and_norms_do_not():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Embedding(4, 3), nn.Linear(2, 2))
    module[3].requires_grad_(False)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1.0)
    found = adamw(module, lr=0.1, weight_decay=0.5, warmup=0.0, total_steps=10)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    found["optimizer"].step()  # no gradient: what changes is decayed, by lr * weight_decay
    values = {name: round(float(p.mean()), 6) for name, p in module.named_parameters()}
    assert values == {
        "0.weight": 0.95,
        "0.bias": 1.0,
        "1.weight": 1.0,
        "1.bias": 1.0,
        "2.weight": 0.95,
        "3.weight": 1.0,
        "3.bias": 1.0,
    }


def test_the_learning_rate_rises_in_the_warm_up_and_falls_to_zero():
    found = adamw(nn.Linear(2, 2), lr=0.8, weight_decay=0.0, warmup=0.4, total_steps=10)
    assert found["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(11):
        rates.append(found["optimizer"].param_groups[0]["lr"])
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    expected = [0.8 * min(step / 4, (10 - step) / 6) for step in range(11)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, math.nan])
def test_shares_outside_of_their_range_are_named(wrong):
    with pytest.raises(ValueError, match=rf"model\.warmup: {wrong} must lie in 0 to 1"):
        adamw(nn.Linear(2, 2), 0.1, 0.0, wrong, 10)
    with pytest.raises(ValueError, match=rf"dropout: {wrong} must lie in 0 to 1"):
        set_dropout(nn.Dropout(), wrong)
    check_range("x", 0, 0, 1)
    check_range("x", 1, 0, 1)


# -- a fit of one weight


class Toy(LightningModule):
    """One weight; `act(batch)` runs in each step. Batch i has i + 1 queries of ten tokens."""

    def __init__(self, act: Any = lambda batch: 0.0, validate: Any = lambda batch: None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self._act, self._validate = act, validate

    def configure_callbacks(self) -> list[Any]:
        return [FiniteGradients()]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return finite(self.weight.sum() * 0 + self._act(batch) * self.weight.sum(), batch["ids"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._validate(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def batches(num: int) -> DataLoader:
    rows = [{"ids": [f"q{i}-{n}" for n in range(i + 1)], "tokens": 10 * (i + 1), "number": i} for i in range(num)]
    return DataLoader(rows, batch_size=None, collate_fn=lambda one: one)  # type: ignore[arg-type]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_throughput_is_that_of_the_steps_since_the_last_line(monkeypatch, tmp_path, accumulate):
    """Two seconds a batch; a thousand a validation, which comes between the lines and is in none of them."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("ltrr.encoders.training.time", SimpleNamespace(perf_counter=lambda: clock.now))

    def passes(seconds: float) -> float:
        clock.now += seconds
        return 0.0

    toy = Toy(lambda batch: passes(2), lambda batch: passes(1000))
    logger = CSVLogger(tmp_path)
    options = {
        **QUIET,
        "logger": logger,
        "log_every_n_steps": 4,
        "val_check_interval": 3 * accumulate,
        "max_epochs": 1,
        "accumulate_grad_batches": accumulate,
        "callbacks": [Throughput()],
    }
    Trainer(**options).fit(toy, batches(14 * accumulate), batches(1))
    rows = [row for row in csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()) if row["samples/s"]]
    assert [int(row["step"]) for row in rows] == [3, 7, 11]  # three lines for 14 steps, counted from 0
    every = 4 * accumulate
    for line, row in enumerate(rows):
        samples = sum(i + 1 for i in range(line * every, (line + 1) * every))
        assert float(row["samples/s"]) == pytest.approx(samples / (2 * every))
        assert float(row["tokens/s"]) == pytest.approx(10 * samples / (2 * every))


def test_throughput_counts_all_devices(monkeypatch):
    times = iter([100.0, 105.0, 105.0])
    monkeypatch.setattr("ltrr.encoders.training.time", SimpleNamespace(perf_counter=lambda: next(times)))
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(log=lambda name, value, **options: logged.update({name: value}))
    trainer: Any = SimpleNamespace(global_step=0, log_every_n_steps=1, world_size=4, is_global_zero=False)
    meter = Throughput()
    meter.on_train_start(trainer, module)
    trainer.global_step = 1
    meter.on_train_batch_end(trainer, module, None, {"ids": ["a", "b"], "tokens": 50}, 0)
    assert logged == {"samples/s": 4 * 2 / 5, "tokens/s": 4 * 50 / 5}


def test_each_step_and_device_draws_its_own_and_any_seed_will_do():
    def drawn(seed: int, step: int, rank: int) -> float:
        data = SimpleNamespace(seed=seed)
        trainer: Any = SimpleNamespace(datamodule=data, global_step=step, global_rank=rank, world_size=2)
        SeedSteps().on_train_batch_start(trainer, Toy(), None, 0)
        return torch.rand(()).item()

    places = [(seed, step, rank) for seed in (0, 1, 20240101, 2**32 - 1) for step in range(4) for rank in range(2)]
    assert len({drawn(*place) for place in places}) == len(places)
    assert drawn(7, 3, 1) == drawn(7, 3, 1)


# -- what is not finite


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_and_names_its_batch(accumulate):
    """The loss of batch 3 is finite and its gradient is not: the root of 0 has an infinite slope."""
    toy = Toy()
    toy._act = lambda batch: 1.0 if batch["number"] != 3 else 1.0 + (toy.weight.sum() * 0).sqrt()  # type: ignore[method-assign]
    named = "q3-0, q3-1, q3-2, q3-3"
    with pytest.raises(ValueError, match=r"the gradient is nan on the batch of queries (.*)\.\nLook at") as stop:
        Trainer(**QUIET, max_epochs=1, accumulate_grad_batches=accumulate).fit(toy, batches(6))
    shown = str(stop.value).split("queries ")[1].split(".\n")[0]
    assert shown == (named if accumulate == 1 else f"q2-0, q2-1, q2-2, {named}")  # all that the gradient is made of
    assert float(toy.weight) == pytest.approx(1 - 0.1 * (3 if accumulate == 1 else 1))


def test_a_scaler_leaves_out_such_steps_by_itself():
    toy = Toy()
    toy.weight.grad = torch.tensor([math.inf])
    FiniteGradients().on_before_optimizer_step(SimpleNamespace(scaler=object()), toy, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the gradient is inf"):
        FiniteGradients().on_before_optimizer_step(SimpleNamespace(scaler=None), toy, None)  # type: ignore[arg-type]
    toy.weight.grad = torch.tensor([1e30])  # whose square is no float32
    FiniteGradients().on_before_optimizer_step(SimpleNamespace(scaler=None), toy, None)  # type: ignore[arg-type]


def test_a_loss_is_given_back_or_named_with_fifty_queries():
    loss = torch.tensor(2.0)
    assert finite(loss, ["a"]) is loss
    with pytest.raises(ValueError, match=r"the loss is -inf on the batch of queries q0, .*, q49 …\.\n.*model\.lr"):
        finite(torch.tensor(-math.inf), [f"q{i}" for i in range(60)])


# -- two devices: `python -c "test_training.worker(...)"`, twice

CASES: dict[str, dict[str, Any]] = {
    "one direction": {},
    "both directions": {"bidirectional": True},
    "prefixes": {"bidirectional": True, "dimensions": [8, 32]},
    "GradCache": {"bidirectional": True, "chunk_tokens": 16},
}
WORDS = "river night paper winter crazy golden home street summer love tiger cloud engine bread".split()  # noqa: SIM905


def asked(i: int) -> Example:
    """Queries 0 and 5, and 1 and 6, have the same positive, and query 2 knows that of query 7: on other devices."""
    rows, nan = [i % 5, 5 + i], [math.nan, math.nan]
    positives: frozenset[int] = frozenset([i % 5, *([7 % 5] if i == 2 else [])])
    documents = [" ".join(WORDS[(row + n) % 14] for n in range(1 + row)) for row in rows]
    return Example(f"q{i}", f"{WORDS[i]} of mine", documents, rows, [1.0, 0.0], nan, positives)


class Keep(Callback):
    """The gradients, as they are when devices have put theirs together."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def step(module: DenseModule, examples: list[Example], devices: int = 1) -> dict[str, torch.Tensor]:
    keep = Keep()
    strategy = {"strategy": "ddp", "use_distributed_sampler": False} if devices > 1 else {}
    trainer = Trainer(**QUIET, **strategy, devices=devices, max_steps=1, callbacks=[keep])
    trainer.fit(module, DataLoader(examples, len(examples), collate_fn=module.collate))  # type: ignore[arg-type]
    return keep.gradients


def module(model: str, **options: Any) -> DenseModule:
    return DenseModule(dense_network(model, max_length=32), **options)


def worker(model: str, out: str) -> None:
    """Device RANK of two: gradients of each case, and what is said of a loss and a gradient broken on device 1."""
    rank, said = int(os.environ["RANK"]), {}
    own = [asked(4 * rank + i) for i in range(4)]
    found = {name: step(module(model, **options), own, devices=2) for name, options in CASES.items()}
    for kind in ("loss", "gradient"):
        broken = module(model)
        contrast, before = broken._contrastive, [p.detach().clone() for p in broken.parameters()]

        def breaks(*given: Any, kind: str = kind, contrast: Any = contrast) -> torch.Tensor:
            loss = contrast(*given)
            return loss if rank == 0 else loss * math.nan if kind == "loss" else loss + (loss * 0).sqrt()

        broken._contrastive = breaks  # type: ignore[method-assign]
        try:
            step(broken, own, devices=2)
        except ValueError as error:
            said[kind] = str(error).splitlines()[0]
        assert all(map(torch.equal, before, broken.parameters()))
    torch.save({"gradients": found, "said": said}, Path(out) / f"{rank}.pt")


@pytest.fixture(scope="module")
def two(tiny_backbone, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two devices wrote."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": 1}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [
        sys.executable,
        "-c",
        f"import tests.encoders.test_training as t; t.worker({str(tiny_backbone)!r}, {str(out)!r})",
    ]
    devices = []
    for rank in range(2):
        environment = os.environ | {name: str(value) for name, value in shared.items()}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        devices.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        for device in devices:
            output = device.communicate(timeout=300)[0].decode()  # longer: one waits for the other
            assert device.returncode == 0, output
    finally:
        for device in devices:
            device.kill()
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_devices_have_the_gradient_of_one_with_both_batches(tiny_backbone, two, case):
    whole = step(module(str(tiny_backbone), **CASES[case]), [asked(i) for i in range(8)])
    scale = max(float(g.abs().max()) for g in whole.values())
    assert whole.keys() == two[0]["gradients"][case].keys()
    for name, value in whole.items():
        torch.testing.assert_close(two[0]["gradients"][case][name], value, rtol=1e-4, atol=1e-5 * scale)
        assert torch.equal(two[0]["gradients"][case][name], two[1]["gradients"][case][name])


def test_all_devices_stop_together_and_name_the_batch(two):
    for device in two:
        assert device["said"] == {
            "loss": "the loss is nan on the batch of queries q4, q5, q6, q7.",
            "gradient": "the gradient is nan on the batch of queries q0, q1, q2, q3, q4, q5, q6, q7.",
        }


# -- exports


def test_an_export_says_what_its_base_learned_from(tiny_backbone, tmp_path):
    note = {"data": "d1", "splits": ["train"]}
    first = dense_network(str(tiny_backbone))
    write_export(DenseModule(first), tmp_path / "first", note)
    assert json.loads((tmp_path / "first" / "ltrr.json").read_text()) == {**note, "origins": []}
    second = dense_network(str(tmp_path / "first"))
    write_export(DenseModule(second), tmp_path / "second", {"data": "d2", "splits": []})
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "ltrr.json").write_text(json.dumps({"data": "d3", "splits": ["dev"]}))
    third = {"data": "d4", "splits": ["train"], "expansions": str(tmp_path / "generated")}
    write_export(DenseModule(dense_network(str(tmp_path / "second"))), tmp_path / "third", third)
    origins = json.loads((tmp_path / "third" / "ltrr.json").read_text())["origins"]
    assert [(one["data"], one["splits"]) for one in origins] == [("d2", []), ("d1", ["train"]), ("d3", ["dev"])]
