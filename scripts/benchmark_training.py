"""Speed of training against sentence-transformers, same model, data and batches; part of scripts/benchmark.py.

training      samples/s of DenseModule under our trainer against SentenceTransformerTrainer with
              MultipleNegativesRankingLoss: one epoch of the same pairs of title and text, the same backbone, length,
              batch size, optimiser, clipping and precision; with the same dropout (none), and with the backbone's
splade head   forward and backward of the fused head against SpladePooling over plain logits
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

_BATCH, _STEPS, _WARM, _LENGTH = 32, 24, 4, 256


def training(data: str, device: str | None) -> dict[str, float]:
    """Samples/s of ours and of the peer, one after the other, twice; the better of each."""
    out: dict[str, float] = {}
    for name, dropout in (("no dropout", 0.0), ("dropout .1", 0.1)):
        ours = max(_ours(data, device, dropout) for _ in range(2))
        peer = max(_peer(data, device, dropout) for _ in range(2))
        out |= {f"{name}: samples_per_s": ours, f"{name}: peer": peer, f"{name}: ratio": ours / peer}
    out["as shipped: ratio"] = out["no dropout: samples_per_s"] / out["dropout .1: peer"]
    return out


def _pairs(data: str) -> Any:
    from ltrr.data.pairs import Pairs

    pairs = Pairs(data, title_pairs=1e9, num_negatives=0, batch_size=_BATCH)
    pairs.setup()
    pairs._sources = [s for s in pairs._sources if s.body][: _BATCH * _STEPS]  # an epoch of titles alone
    return pairs


def _ours(data: str, device: str | None, dropout: float) -> float:
    import pytorch_lightning as pl

    from ltrr.encoders.bi_encoder import DenseModule, dense_network
    from ltrr.encoders.training import SeedSteps

    class Clock(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.end = time.perf_counter()
            if batch_idx == _WARM - 1:
                self.start = self.end

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator="gpu" if device == "cuda" else "cpu",
            precision="bf16-mixed",
            gradient_clip_val=1.0,
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[clock, SeedSteps()],
        )
        network = dense_network(max_length=_LENGTH, dropout=dropout)
        trainer.fit(DenseModule(network, lr=2e-5), datamodule=_pairs(data))
    return _BATCH * (_STEPS - _WARM) / (clock.end - clock.start)


def _peer(data: str, device: str | None, dropout: float) -> float:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    from ltrr.encoders.bi_encoder import dense_network

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            self.end = time.perf_counter()
            if state.global_step == _WARM:
                self.start = self.end

    pairs = _pairs(data)
    examples = [pairs.example(i, 0) for i in range(_BATCH * _STEPS)]
    columns = {"anchor": [e.query for e in examples], "positive": [e.documents[0] for e in examples]}
    network, clock = dense_network(max_length=_LENGTH, dropout=dropout), Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=_BATCH,
            learning_rate=2e-5,
            weight_decay=0.01,
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=device != "cuda",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        loss = MultipleNegativesRankingLoss(network)
        SentenceTransformerTrainer(
            network, arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[clock]
        ).train()
    return _BATCH * (_STEPS - _WARM) / (clock.end - clock.start)


_HEAD = """
import json, sys, time
import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling
from ltrr.models.sparse_head import splade_max

head, device, precision = sys.argv[1:]
torch.manual_seed(0)
B, L, H, V = 32, 256, 384, 30522
hidden = torch.randn(B, L, H, device=device, requires_grad=True)
decoder = torch.nn.Linear(H, V, device=device)
with torch.no_grad():  # standard normal logits; the bias lets 1 % of the maxima over 256 positions through
    decoder.weight.normal_(std=H**-0.5)
    decoder.bias.fill_(-3.95)
mask = torch.ones(B, L, dtype=torch.long, device=device)
upstream = torch.rand(B, V, device=device)
pooling = SpladePooling("max").train()

def step():
    hidden.grad = decoder.weight.grad = decoder.bias.grad = None
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        if head == "fused":
            out = splade_max(hidden, decoder.weight, decoder.bias, mask)
        else:
            out = pooling({"token_embeddings": decoder(hidden), "attention_mask": mask})["sentence_embedding"]
    (out * upstream).sum().backward()
    return out

def peak():
    if device == "cpu":
        with open("/proc/self/status") as status:  # ru_maxrss would begin at the parent's
            return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
    return torch.cuda.max_memory_allocated() / 2**20

def wait():
    if device != "cpu":
        torch.cuda.synchronize()

with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):  # libraries' own buffers count for neither
    torch.nn.functional.linear(hidden[0, :8].detach(), decoder.weight[:64].detach())
if device == "cpu":
    with open("/proc/self/clear_refs", "w") as peak_of_imports:
        peak_of_imports.write("5")  # the peak begins anew
before, times = peak(), []
for _ in range(4):
    wait()
    start = time.perf_counter()
    out = step()
    wait()
    times.append(time.perf_counter() - start)
print(json.dumps({"seconds": min(times), "mib": peak() - before, "active": (out > 0).float().mean().item()}))
"""


def splade_head(device: str | None = None) -> dict[str, float]:
    """Forward and backward of the fused head against SpladePooling over plain logits: 32 x 256 tokens, 30,522 terms,
    1 % active, each in a process of its own; memory is the peak above what inputs and libraries took."""
    found: dict[str, float] = {}
    for precision in ("float32", "bf16"):
        measured = {
            head: json.loads(
                subprocess.run(
                    [sys.executable, "-c", _HEAD, head, device or "cpu", precision],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.splitlines()[-1]  # others may print before
            )
            for head in ("fused", "plain")
        }
        ours, peer = measured["fused"], measured["plain"]
        found |= {
            f"{precision}_active": ours["active"],
            f"{precision}_seconds": ours["seconds"],
            f"{precision}_mib": ours["mib"],
            f"{precision}_peer_seconds": peer["seconds"],
            f"{precision}_peer_mib": peer["mib"],
            f"{precision}_times_faster": peer["seconds"] / ours["seconds"],
            f"{precision}_times_less_memory": peer["mib"] / ours["mib"],
        }
    return found
