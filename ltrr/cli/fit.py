"""`train.py fit --config … --data.path …`: LightningCLI with one folder per run.

Knows where a run's files go; knows nothing about models. A run is `<trainer.default_root_dir>/<id>/` with

    config.yaml    the complete config, defaults included
    ckpt/          best.ckpt by val_nDCG@10 (or the module's `monitor`); last.ckpt every `save_every` steps, at the end
    export/        a folder that sentence-transformers or transformers opens

A run that fails before its first step leaves no folder; `validate` writes nothing.
"""

from __future__ import annotations

import os
import pydoc
import re
import shutil
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import get_loader, set_loader
from jsonargparse.typing import PositiveInt
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger

from ltrr.config import RENAMED, current_path
from ltrr.data.pairs import Pairs
from ltrr.encoders.training import Export, SeedSteps, Throughput, emulates_bfloat16
from ltrr.learners.arm_loss import ArmLossLearner
from ltrr.learners.fusion_weights import FusionWeightsLearner
from ltrr.learners.prior import PriorLearner
from ltrr.learners.relevance import RelevanceLearner
from ltrr.learners.rounds_data import LoggedRounds
from ltrr.learners.rounds_module import RoundsModule

_MONITOR = "val_nDCG@10"  # for modules without a `monitor`
_ENVIRONMENT = "LTRR_RUN_ID"  # passes the id to the processes that Lightning starts for other devices
# Modules that learn from logged rounds.
_POLICIES = PriorLearner, RelevanceLearner, FusionWeightsLearner, ArmLossLearner
_WRAPPED = ("Does not validate", "Problem with given class_path")  # how jsonargparse wraps a reason
_NOISE = re.compile(r"Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|" + "|".join(_WRAPPED))
_KEY = re.compile(r'Parser key "([^"]+)":')
_LOADER = "yaml of ltrr"  # YAML whose class paths of version 0.1 are translated


class _RunFolder(Callback):
    """Writes config.yaml when training begins; writes last.ckpt between two steps and at the end."""

    def __init__(self, folder: Path, parser: LightningArgumentParser, config: Any, stop: EarlyStopping) -> None:
        self._folder, self._parser, self._config, self._stop = folder, parser, config, stop
        self.begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun, self._saved = True, trainer.global_step
        self._stop.patience = int(self._config.patience)  # overrides the checkpoint's in a resumed run
        best: Any = trainer.checkpoint_callback
        if Path(best.best_model_path).parent != (self._folder / "ckpt").resolve():
            best.best_model_path = ""  # it belongs to the run that this one starts from
        if trainer.is_global_zero:
            file = str(self._folder / "config.yaml")
            self._parser.save(self._config, file, skip_none=False, overwrite=True, multifile=False)
            if isinstance(trainer.logger, Logger):
                trainer.logger.log_hyperparams(self._config.as_dict())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves here, after any validation of the last step, so that a resumed run does not repeat it."""
        if trainer.global_step % self._config.save_every == 0 and trainer.global_step > self._saved:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        trainer.save_checkpoint(self._folder / "ckpt" / "last.ckpt", weights_only=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets counters to a state between two steps; Lightning's make a resumed run an epoch too short or too long."""
        counters = checkpoint["loops"]["fit_loop"]
        epochs, batches = counters["epoch_progress"], counters["epoch_loop.batch_progress"]
        whole = batches["current"]["completed"] == trainer.num_training_batches
        batches["is_last_batch"] = whole
        for scope in ("current", "total"):
            batches[scope] |= dict.fromkeys(("ready", "started", "processed"), batches[scope]["completed"])
            ready = epochs[scope]["ready"]
            epochs[scope] |= {"processed": ready - (not whole), "completed": ready - 1}


class TrainingCLI(LightningCLI):
    """Runs `fit` or `validate` of any module in ltrr.encoders and ltrr.learners. Raises ValueError for user errors.

    Data are `LoggedRounds` for a policy's learner, else `Pairs`.
    """

    def __init__(self, args: Any = None) -> None:
        inherited = os.environ.get(_ENVIRONMENT)
        self._created: Path | None = None  # the run folder, if this process created it
        self._run: _RunFolder | None = None
        try:
            super().__init__(
                LightningModule,
                LoggedRounds if _is_policy(sys.argv[1:] if args is None else args) else Pairs,
                subclass_mode_model=True,
                save_config_callback=None,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                trainer_defaults={"default_root_dir": "runs", "use_distributed_sampler": False},
                parser_kwargs={"exit_on_error": False, "parser_mode": _LOADER},
                args=args,
            )
        except MisconfigurationException as error:
            cpu = "--trainer.accelerator cpu --trainer.devices 1 --trainer.num_nodes 1 --trainer.strategy auto"
            raise ValueError(f"trainer: {error}\nWhere there is no GPU: {cpu}") from error
        finally:
            if self._created and not (self._run and self._run.begun):
                if wandb := sys.modules.get("wandb"):
                    wandb.finish(1)  # otherwise it would recreate the folder at exit
                shutil.rmtree(self._created, ignore_errors=True)
            if inherited is None:
                os.environ.pop(_ENVIRONMENT, None)

    # -- arguments

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Omits test, because scripts/evaluate.py scores test queries, and weights_only, which is always true here."""
        common = {"model", "datamodule", "weights_only"}
        return {"fit": common | {"train_dataloaders", "val_dataloaders"}, "validate": common | {"dataloaders"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--id", type=str | None, default=None, help="name of the run's folder; default MODEL-N")
        parser.add_argument("--save_every", type=PositiveInt, default=100, help="steps between two writes of last.ckpt")
        parser.add_argument(
            "--patience", type=PositiveInt, default=3, help="validations without improvement before training stops"
        )
        parser.link_arguments("seed_everything", "data.seed", _as_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args([_current(arg) for arg in (sys.argv[1:] if args is None else args)])
        except ArgumentError as error:
            raise ValueError(readable(str(error), self._subcommand_parsers["fit"]._option_string_actions)) from None

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would open the unchecked file to read options that our checkpoints do not hold."""

    # -- the run folder and the starting point

    def before_instantiate_classes(self) -> None:
        """Creates the run folder, before a logger opens files."""
        config, fit = self.config[str(self.subcommand)], self.subcommand == "fit"
        if config.trainer.precision == "bf16-mixed" and emulates_bfloat16(str(config.trainer.accelerator)):
            print("trainer.precision: 32-true, as this processor has no bfloat16")
            config.trainer.precision = "32-true"
        root, ckpt_path = Path(config.trainer.default_root_dir), config.ckpt_path
        file = Path(ckpt_path) if ckpt_path not in (None, "last", "best") else None
        source_run = file.parent.parent if file and file.parent.name == "ckpt" else None  # the run that wrote the file
        if file and not file.is_file():
            raise ValueError(f"--ckpt_path: no file {file}; to start from an export give --model.network.model FOLDER")
        if file and fit and not (source_run or config.id):
            raise ValueError(
                f"--ckpt_path: {file} is in no run's ckpt folder; name the run that starts there: --id NAME"
            )
        if config.id:
            self.folder = root / config.id
        elif file or not (fit or ckpt_path):  # validate accepts any file, or none
            self.folder = source_run or root
        else:
            self.folder = root / run_id(root, config.model.class_path.rpartition(".")[2], again=ckpt_path is not None)
        self._start = file or (self.folder / "ckpt" / f"{ckpt_path}.ckpt" if ckpt_path else None)
        if self._start and not self._start.is_file():
            raise ValueError(
                f"--ckpt_path: no {self._start}; without --ckpt_path, --id {self.folder.name} starts afresh"
            )
        if not fit:
            config.trainer.logger = False
            return
        resumes = self._start and self._start.resolve().parent == (self.folder / "ckpt").resolve()
        if not resumes and (self.folder / "export").exists():
            raise ValueError(f"--id: {self.folder} holds a finished run; give another id, or --ckpt_path last to go on")
        try:
            self.folder.mkdir(parents=True)
            self._created = self.folder
        except FileExistsError:  # from an earlier start, or from another process of this run
            if not (config.id or ckpt_path or _ENVIRONMENT in os.environ):
                raise  # another run has just taken the number
        os.environ[_ENVIRONMENT] = self.folder.name
        loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        for logger in loggers:
            if hasattr(logger, "init_args"):
                logger.init_args.save_dir = str(self.folder)

    def instantiate_classes(self) -> None:
        """Builds module, data and trainer; unwraps errors of their constructors."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            reason: BaseException = error
            while str(reason).startswith(_WRAPPED) and reason.__cause__:
                reason = reason.__cause__
            raise reason from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the callbacks of every run."""
        config, ckpt = self.config[str(self.subcommand)], self.folder / "ckpt"
        monitor = getattr(self.model, "monitor", _MONITOR)
        stop = EarlyStopping(monitor, mode="max", patience=int(config.patience), check_on_train_epoch_end=False)
        self._run = _RunFolder(self.folder, self._parser(self.subcommand), config, stop)
        callbacks = [
            self._run,
            SeedSteps(),
            Throughput(),
            ModelCheckpoint(ckpt, "best", monitor=monitor, mode="max", enable_version_counter=False),
            stop,
        ]
        added = self._get(self.config_init, "trainer")["callbacks"] or []
        return super().instantiate_trainer(default_root_dir=str(self.folder), callbacks=[*added, *callbacks], **kwargs)

    def after_instantiate_classes(self) -> None:
        """Builds networks shaped by the data; checks the checkpoint against the module before anything is written."""
        if isinstance(self.model, RoundsModule):
            self.datamodule.setup()
            self.model.prepare(self.datamodule.rounds, self.datamodule.seed)
        if self._start:
            check_checkpoint(self._start, self.model)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        options = super()._prepare_subcommand_kwargs(subcommand)
        return options | {"ckpt_path": self._start, "weights_only": True}

    def after_fit(self) -> None:
        """Writes the export, also when resuming a run that was killed after its last step."""
        Export(self.folder / "export").on_train_end(self.trainer, self.model)


def _is_policy(args: Sequence[str]) -> bool:
    """Whether the arguments, or config files among them, name a module that learns from logged rounds."""
    parts = [part for arg in args for part in str(arg).split("=", 1)]
    files = [Path(part) for part in parts if part.endswith((".yaml", ".yml")) and Path(part).is_file()]
    names = {f"{module.__module__}.{module.__qualname__}" for module in _POLICIES}
    names |= {old for old, new in RENAMED.items() if new in names}
    texts = [*parts, *(file.read_text(encoding="utf-8") for file in files)]
    return any(name in text for name in names for text in texts)


def _current(value: Any) -> Any:
    """Translates class paths of version 0.1 in parsed YAML, or in an argument `VALUE` or `--key=VALUE`."""
    if isinstance(value, dict):
        return {key: _current(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_current(each) for each in value]
    if not isinstance(value, str):
        return value
    key, equals, path = value.rpartition("=")
    return f"{key}{equals}{current_path(path)}"


set_loader(_LOADER, lambda text: _current(get_loader("yaml")(text)), (yaml.YAMLError,))


def _as_seed(seed: bool | int | None) -> int:
    return int(seed or 0)


def run_id(root: Path, module: str, again: bool) -> str:
    """`dense-3` for the third run of a DenseModule under root; with `again`, the id of the latest run there."""
    if name := os.environ.get(_ENVIRONMENT):
        return name
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--id: torchrun starts every process by itself, so give the run a name: --id NAME")
    stem = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub("(Module|Learner)$", "", module)).lower()
    numbers = {p: int(m[1]) for p in root.glob(f"{stem}-*") if (m := re.fullmatch(rf"{stem}-(\d+)", p.name))}
    if not again:
        return f"{stem}-{max(numbers.values(), default=0) + 1}"
    begun = [number for path, number in numbers.items() if (path / "config.yaml").exists()]
    if not begun:
        raise ValueError(f"--ckpt_path: there is no run {root}/{stem}-N to go on with; give its --id")
    return f"{stem}-{max(begun)}"


def check_checkpoint(path: Path, module: LightningModule) -> None:
    """Raises ValueError unless the file is a checkpoint of a module with the same weight names and shapes."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except Exception as error:  # torch raises many types for invalid files
        raise ValueError(f"--ckpt_path: {path} is no checkpoint of a training run, or was cut off") from error
    expected = module.state_dict()
    wrong = [name for name in {**expected, **stored} if name not in expected or name not in stored]
    wrong += [name for name, weight in expected.items() if name in stored and weight.shape != stored[name].shape]
    if wrong:
        raise ValueError(
            f"--ckpt_path: {path} is of another model: {len(wrong)} weights are not in both, or have another shape "
            f"({', '.join(wrong[:3])}, …). Give the config that it was trained with"
        )


def readable(message: str, options: Iterable[str]) -> str:
    """Shortens a jsonargparse error: drops the list of tried types and suggests the nearest name.

    options: `--names` of the command.
    """
    where = ".".join(_KEY.findall(message))
    lines = [line.strip().removeprefix("- ") for line in _KEY.sub("", message).splitlines()]
    reasons = "; ".join(dict.fromkeys(line for line in lines if line and not _NOISE.match(line)))
    names = [name.removeprefix("--") for name in options]
    if classes := re.findall(r"Problem with given class_path '([\w.]+)'", message):
        names = list(signature(cls).parameters) if (cls := pydoc.locate(classes[-1])) else []  # type: ignore[arg-type]
    wrong = re.search(r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)", reasons)
    if wrong and (near := get_close_matches(wrong[1] or wrong[2], names, 1)):
        reasons += f"; did you mean {near[0]}?"
    elif wrong and classes:
        reasons += f"; {classes[-1]} takes {', '.join(names)}"
    return f"{where}: {reasons}" if where else f"{reasons}\n`train.py fit --help` lists all options"
