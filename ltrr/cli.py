"""`train.py fit --config … --data.path …`: LightningCLI with a folder of its own for each run.

Knows where a run's files go; knows nothing about models. A run is `<trainer.default_root_dir>/<id>/` with

    config.yaml    what was run, defaults filled in
    ckpt/          best.ckpt by val_nDCG@10, last.ckpt every `save_every` steps
    export/        a folder that sentence-transformers or transformers opens
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import Logger

from ltrr.data.pairs import Pairs
from ltrr.models.training import Export, SeedSteps, Throughput

_MONITOR = "val_nDCG@10"
_ENVIRONMENT = "LTRR_RUN_ID"  # tells the id to the processes that Lightning starts for further devices


class _SaveConfig(SaveConfigCallback):
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True, multifile=False)
        if isinstance(trainer.logger, Logger):
            trainer.logger.log_hyperparams(self.config.as_dict())


class TrainingCLI(LightningCLI):
    """Runs `fit` (or `validate`) of any module under ltrr.models on `Pairs`."""

    def __init__(self, args: Any = None) -> None:
        inherited = os.environ.get(_ENVIRONMENT)
        try:
            self._run(args)
        finally:
            if inherited is None:
                os.environ.pop(_ENVIRONMENT, None)

    def _run(self, args: Any) -> None:
        super().__init__(
            LightningModule,
            Pairs,
            subclass_mode_model=True,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={"default_root_dir": "runs", "use_distributed_sampler": False},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--id", type=str | None, default=None, help="name of the run's folder; default MODEL-N")
        parser.add_argument("--save_every", type=int, default=100, help="steps between two writes of last.ckpt")
        parser.add_argument(
            "--patience", type=int, default=3, help="validations without a better val_nDCG@10; then stop"
        )
        parser.link_arguments("seed_everything", "data.seed", _as_seed)

    def before_instantiate_classes(self) -> None:
        """Gives the run its folder, before a logger opens files."""
        config = self.config[str(self.subcommand)]
        root, again = Path(config.trainer.default_root_dir), bool(config.get("ckpt_path"))
        name = config.id or run_id(root, config.model.class_path.rpartition(".")[2], again)
        self.folder = root / name
        if not again and (self.folder / "export").exists():
            raise ValueError(f"--id: {self.folder} holds a finished run; give another id, or --ckpt_path last to go on")
        os.environ[_ENVIRONMENT] = name
        self.folder.mkdir(parents=True, exist_ok=True)
        loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        for logger in loggers:
            if hasattr(logger, "init_args"):
                logger.init_args.save_dir = str(self.folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the habits of every run."""
        config, ckpt = self.config[str(self.subcommand)], self.folder / "ckpt"
        last = {"every_n_train_steps": config.save_every, "save_on_train_epoch_end": False}
        callbacks = [
            SeedSteps(),
            Throughput(),
            ModelCheckpoint(ckpt, "best", monitor=_MONITOR, mode="max", enable_version_counter=False),
            ModelCheckpoint(ckpt, "last", enable_version_counter=False, **last),
            EarlyStopping(_MONITOR, mode="max", patience=config.patience, check_on_train_epoch_end=False),
            Export(self.folder / "export"),
        ]
        given = self._get(self.config_init, "trainer")["callbacks"] or []
        return super().instantiate_trainer(default_root_dir=str(self.folder), callbacks=[*given, *callbacks], **kwargs)


def _as_seed(seed: bool | int | None) -> int:
    return int(seed or 0)


def run_id(root: Path, module: str, again: bool) -> str:
    """`dense-3` for the third run of a DenseModule under root; the latest there is where one is taken up `again`."""
    if name := os.environ.get(_ENVIRONMENT):
        return name
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--id: torchrun starts every process by itself, so give the run a name: --id NAME")
    stem = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", module.removesuffix("Module")).lower()
    taken = [int(m[1]) for p in root.glob(f"{stem}-*") if (m := re.fullmatch(rf"{stem}-(\d+)", p.name))]
    if again and not taken:
        raise ValueError(f"--ckpt_path: there is no run {root}/{stem}-N to go on with; give its --id")
    return f"{stem}-{max(taken, default=0) + (not again)}"
