"""Habits that the four trainable models share: optimiser, checks, validation, throughput, run folders, exports.

Knows Lightning and the metrics; knows nothing about any model. Legend: B queries of a batch, N documents of a query,
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
    """The value; ValueError where it is NaN or infinite, before it reaches the weights.

    Where one device meets such a value all devices raise, so that none waits for it, and name that device's batch.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    fine = torch.isfinite(value.detach()).float()
    if world > 1:
        dist.all_reduce(fine, dist.ReduceOp.MIN)
    if fine:
        return value
    found: list[Any] = [(value.item(), list(ids))] * world
    if world > 1:
        dist.all_gather_object(found, found[0])
    broken = [(number, own) for number, own in found if not math.isfinite(number)]
    named = [one for _, own in broken for one in own]
    raise ValueError(
        f"the {name} is {broken[0][0]} on the batch of queries {', '.join(named[:50])}{' …' * (len(named) > 50)}.\n"
        "Look at these queries and their documents; lower model.lr, or set --trainer.precision 32-true."
    )


def check_range(field: str, value: float, low: float, high: float) -> None:
    """ValueError naming the field for a value below low, above high, or NaN."""
    if not low <= value <= high:
        raise ValueError(f"{field}: {value} must lie in {low:g} to {high:g}")


def emulates_bfloat16(accelerator: str) -> bool:
    """Whether a fit would run on a processor that only emulates bfloat16, many times slower than float32."""
    on_cpu, has = accelerator == "cpu" or not torch.accelerator.is_available(), torch.cpu.get_capabilities()
    return on_cpu and has["architecture"] == "x86_64" and not (has["amx_bf16"] or has["avx512_bf16"])


def check_teacher(module: LightningModule, distill: str | None) -> None:
    """ValueError where a loss needs a teacher's scores and the data have none."""
    if distill and not module.trainer.datamodule.has_teacher:  # type: ignore[attr-defined]
        raise ValueError(
            f"model.distill: {distill} needs a teacher's scores: --data.teacher FILE, which scripts/mine.py --teacher "
            "MODEL writes as teacher.trec"
        )


def adamw(module: nn.Module, lr: float, weight_decay: float, warmup: float, total_steps: int) -> dict[str, Any]:
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up and decay; no weight decay on biases and norms.

    warmup: share of total_steps, 0 to 1; ValueError for another.
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
    """Sets every dropout. On CPUs attention with dropout has no fast path: zero trains twice as fast.

    share: 0 to 1; ValueError for another.
    """
    check_range("model.network.dropout", share, 0, 1)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "dropout", None), float):  # T5 and BART keep that of attention as a number
            module.dropout = share  # type: ignore[assignment]


def exclusions(rows: Tensor, positives: Sequence[frozenset[int]]) -> Tensor:
    """(B, M) true where a document of the batch (M rows) is a known positive of the query, so no negative of it."""
    known = np.zeros((len(positives), len(rows)), bool)
    columns = rows.cpu().numpy()
    for b, own in enumerate(positives):
        known[b] = np.isin(columns, list(own))
    return torch.from_numpy(known)


def validate(module: LightningModule, run: Run, dev: DevSet) -> None:
    """Logs val_nDCG@10 and val_RR@10 of a run on the dev set; with W&B also a table of examples."""
    scores = evaluate(run, dev.qrels, MEASURES).mean()
    for name, value in scores.items():
        module.log(f"val_{name}", value, prog_bar=name == "nDCG@10", batch_size=1, sync_dist=True)
    for logger in module.loggers:
        if isinstance(logger, WandbLogger) and module.trainer.is_global_zero:
            logger.log_table("examples", ["query", "rank", "document", "score", "grade"], _examples(run, dev))


def _examples(run: Run, dev: DevSet) -> list[list[Any]]:
    text = dict(zip(dev.doc_ids, dev.documents, strict=True))
    rows = []
    for query, asked in list(zip(dev.ids, dev.queries, strict=True))[:_EXAMPLES]:
        best = sorted(run[query].items(), key=lambda item: -item[1])[:3]
        rows += [
            [asked, rank, text[doc][:200], score, dev.qrels[query].get(doc, 0)]
            for rank, (doc, score) in enumerate(best, start=1)
        ]
    return rows


class Throughput(Callback):
    """Logs samples and tokens a second, padding and validation excluded, at the steps at which Lightning logs."""

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
        if every and step % every == 0 and step > self._logged:  # once, however many batches make a step
            seconds = (time.perf_counter() - self._start) / trainer.world_size
            pl_module.log("samples/s", self._samples / seconds, prog_bar=True, batch_size=1)
            pl_module.log("tokens/s", self._tokens / seconds, prog_bar=True, batch_size=1)
            if trainer.is_global_zero and not sys.stdout.isatty():  # a log file gets lines, not a bar
                print(f"step {trainer.global_step}/{trainer.estimated_stepping_batches}, {_shown(trainer)}", flush=True)
            self._reset(step)

    def _reset(self, step: int) -> None:
        self._start, self._logged, self._samples, self._tokens = time.perf_counter(), step, 0, 0


def _shown(trainer: Trainer) -> str:
    metrics = trainer.progress_bar_metrics
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float))


class SeedSteps(Callback):
    """Seeds dropout by the step, so that a resumed run draws what the unbroken one would have drawn."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed: int = trainer.datamodule.seed  # type: ignore[attr-defined]
        drawn = np.random.SeedSequence([seed, trainer.global_step, trainer.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0]))


class FiniteGradients(Callback):
    """Stops, naming the batch, before gradients that are not finite reach the weights."""

    def __init__(self) -> None:
        self._ids: list[str] = []  # of the batches since the last step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._ids += batch["ids"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if trainer.scaler is None:  # float16's scaler leaves out such steps by itself
            finite(nn.utils.get_total_norm(gradients, math.inf), self._ids, "gradient")
        self._ids = []


class TextModule(LightningModule):
    """What the four trainable text models do alike."""

    _lr: float
    _weight_decay: float
    _warmup: float

    def configure_callbacks(self) -> list[Any]:
        return [FiniteGradients()]

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self, self._lr, self._weight_decay, self._warmup, steps)


class Export(Callback):
    """At the end of a fit: the best checkpoint, or the last state, as a folder that the libraries open."""

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
    """Calls `module.export` on a new folder that takes the name at once, and notes what the model was trained on."""
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    module.export(temporary)
    note = {**trained_on, "origins": _origins(module, trained_on.get("expansions"))}
    (temporary / "ltrr.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _origins(module: torch.nn.Module, *folders: str | None) -> list[dict[str, Any]]:
    """What the models that these weights started from, and folders, note of their training."""
    loaded = [getattr(getattr(part, "config", None), "name_or_path", None) for part in module.modules()]
    paths = [Path(folder) / "ltrr.json" for folder in dict.fromkeys([*loaded, *folders]) if folder]
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    return [each for note in notes for each in (note, *note.pop("origins", []))]
