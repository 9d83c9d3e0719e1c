"""Shared by the four trainable text models: optimiser, checks, validation, throughput, seeds and exports.

Knows Lightning and the metrics; knows nothing about any model. Legend: B queries of a batch, N documents per query,
M = B·N documents of the batch.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from ltrr.metrics import evaluate
from ltrr.types import DevSet, Run

MEASURES = ("nDCG@10", "RR@10")
_EXAMPLES = 20  # queries in the table of examples


def finite(value: Tensor, ids: Sequence[str], name: str = "loss") -> Tensor:
    """Returns the value. Raises ValueError if it is NaN or infinite, before it reaches the weights.

    If it is on one device, all devices raise, naming that device's batch, so that none waits for another.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    fine = torch.isfinite(value.detach()).float()
    if world > 1:
        dist.all_reduce(fine, dist.ReduceOp.MIN)
    if fine:
        return value
    gathered: list[Any] = [(value.item(), list(ids))] * world
    if world > 1:
        dist.all_gather_object(gathered, gathered[0])
    broken = [(number, batch) for number, batch in gathered if not math.isfinite(number)]
    named = [query for _, batch in broken for query in batch]
    raise ValueError(
        f"the {name} is {broken[0][0]} on the batch of queries {', '.join(named[:50])}{' …' * (len(named) > 50)}.\n"
        "Look at these queries and their documents; lower model.lr, or set --trainer.precision 32-true."
    )


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Raises ValueError with the field's name if the value is below low, above high, or NaN."""
    if not low <= value <= high:
        raise ValueError(f"{field}: {value} must lie in {low:g} to {high:g}")


def emulates_bfloat16(accelerator: str) -> bool:
    """Whether training would run on a CPU that emulates bfloat16, many times slower than float32."""
    on_cpu, cpu = accelerator == "cpu" or not torch.accelerator.is_available(), torch.cpu.get_capabilities()
    return on_cpu and cpu["architecture"] == "x86_64" and not (cpu["amx_bf16"] or cpu["avx512_bf16"])


def check_teacher(module: LightningModule, distill: str | None) -> None:
    """Raises ValueError if the loss needs a teacher's scores and the data have none."""
    if distill and not module.trainer.datamodule.has_teacher:  # type: ignore[attr-defined]
        raise ValueError(
            f"model.distill: {distill} needs a teacher's scores: --data.teacher FILE, which scripts/mine.py --teacher "
            "MODEL writes as teacher.trec"
        )


def adamw(module: nn.Module, lr: float, weight_decay: float, warmup: float, total_steps: int) -> dict[str, Any]:
    """Builds AdamW (Loshchilov & Hutter 2019) with linear warm-up and decay; biases and norms get no weight decay.

    warmup: share of total_steps, 0 to 1. Raises ValueError outside that range.
    """
    check_range("model.warmup", warmup, 0, 1)
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    schedule = get_linear_schedule_with_warmup(optimizer, round(warmup * total_steps), total_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def set_dropout(network: nn.Module, share: float) -> None:
    """Sets the rate of every dropout. CPUs have no fast attention with dropout: 0 trains twice as fast.

    share: 0 to 1. Raises ValueError outside that range.
    """
    check_range("model.network.dropout", share, 0, 1)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "dropout", None), float):  # T5 and BART store the rate of attention as a number
            module.dropout = share  # type: ignore[assignment]


def exclusions(rows: Tensor, positives: Sequence[frozenset[int]]) -> Tensor:
    """Mask (B, M) of documents that are known positives of a query, so not negatives. rows: (M,) corpus rows."""
    known = np.zeros((len(positives), len(rows)), bool)
    columns = rows.cpu().numpy()
    for b, relevant in enumerate(positives):
        known[b] = np.isin(columns, list(relevant))
    return torch.from_numpy(known)


def validate(module: LightningModule, run: Run, dev: DevSet) -> None:
    """Logs val_nDCG@10 and val_RR@10 of a run on the dev set; W&B also gets a table of examples."""
    scores = evaluate(run, dev.qrels, MEASURES).mean()
    for name, value in scores.items():
        module.log(f"val_{name}", value, prog_bar=name == "nDCG@10", batch_size=1, sync_dist=True)
    for logger in module.loggers:
        if isinstance(logger, WandbLogger) and module.trainer.is_global_zero:
            logger.log_table("examples", ["query", "rank", "document", "score", "grade"], _examples(run, dev))


def _examples(run: Run, dev: DevSet) -> list[list[Any]]:
    text = dict(zip(dev.doc_ids, dev.documents, strict=True))
    rows = []
    for query, query_text in list(zip(dev.ids, dev.queries, strict=True))[:_EXAMPLES]:
        best = sorted(run[query].items(), key=lambda item: -item[1])[:3]
        rows += [
            [query_text, rank, text[doc][:200], score, dev.qrels[query].get(doc, 0)]
            for rank, (doc, score) in enumerate(best, start=1)
        ]
    return rows


class Throughput(Callback):
    """Logs samples and tokens per second, without padding and validation, whenever Lightning logs."""

    _start = 0.0  # Lightning may validate before it trains

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start += time.perf_counter() - self._paused

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch["ids"])
        self._tokens += int(batch["tokens"])
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step > self._logged:  # once per step, also with gradient accumulation
            seconds = (time.perf_counter() - self._start) / trainer.world_size
            pl_module.log("samples/s", self._samples / seconds, prog_bar=True, batch_size=1)
            pl_module.log("tokens/s", self._tokens / seconds, prog_bar=True, batch_size=1)
            if trainer.is_global_zero and not sys.stdout.isatty():  # lines for a log file instead of a progress bar
                print(f"step {trainer.global_step}/{trainer.estimated_stepping_batches}, {_shown(trainer)}", flush=True)
            self._reset(step)

    def _reset(self, step: int) -> None:
        self._start, self._logged, self._samples, self._tokens = time.perf_counter(), step, 0, 0


def _shown(trainer: Trainer) -> str:
    metrics = trainer.progress_bar_metrics
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float))


class SeedSteps(Callback):
    """Seeds dropout by step, so that a resumed run draws the same as an uninterrupted one."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed: int = trainer.datamodule.seed  # type: ignore[attr-defined]
        state = np.random.SeedSequence([seed, trainer.global_step, trainer.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))


class FiniteGradients(Callback):
    """Raises ValueError, naming the batch, before NaN or infinite gradients reach the weights."""

    def __init__(self) -> None:
        self._ids: list[str] = []  # of the batches since the last optimiser step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._ids += batch["ids"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if trainer.scaler is None:  # float16's scaler skips such steps itself
            finite(nn.utils.get_total_norm(gradients, math.inf), self._ids, "gradient")
        self._ids = []


class TextModule(LightningModule):
    """Base of the four trainable text models: optimiser and callbacks."""

    _lr: float
    _weight_decay: float
    _warmup: float

    def configure_callbacks(self) -> list[Any]:
        return [FiniteGradients()]

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, self._lr, self._weight_decay, self._warmup, steps)


class Export(Callback):
    """At the end of training, exports the best checkpoint (or else the last state) in the libraries' own format."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best and Path(best).exists():
            state = torch.load(best, map_location=pl_module.device, weights_only=True)["state_dict"]
            pl_module.load_state_dict(state)
        if trainer.is_global_zero:
            write_export(pl_module, self._folder, trainer.datamodule.trained_on())  # type: ignore[attr-defined]
        trainer.strategy.barrier("export")


def write_export(module: Any, folder: Path, trained_on: Mapping[str, Any]) -> None:
    """Exports the module to a folder, replaced as a whole; ltrr.json in it records what the model was trained on."""
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    module.export(temporary)
    note = {**trained_on, "origins": _origins(module, trained_on.get("expansions"))}
    (temporary / "ltrr.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _origins(module: torch.nn.Module, *folders: str | None) -> list[dict[str, Any]]:
    """Reads the ltrr.json of the models that these weights started from, and of the folders."""
    loaded = [getattr(getattr(part, "config", None), "name_or_path", None) for part in module.modules()]
    paths = [Path(folder) / "ltrr.json" for folder in dict.fromkeys([*loaded, *folders]) if folder]
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    return [each for note in notes for each in (note, *note.pop("origins", []))]
