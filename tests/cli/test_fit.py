"""ltrr/cli.py: which folder a run gets and where it starts, what lies in it, how it goes on, what mistakes say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback
from safetensors.torch import load_file

from ltrr.cli import fit as cli
from ltrr.cli.fit import TrainingCLI, readable
from tests.end_to_end.test_train import basis, fit, flags
from tests.helpers import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on batches of tests
EVERY_STEP = {"trainer.check_val_every_n_epoch": "null", "trainer.val_check_interval": 1, "trainer.max_epochs": 2}


class Watch(cli.SeedSteps):
    """Notes what a fit does; takes the place of a callback that every fit has."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, ...]] = []
        self.rates: list[float] = []
        self.norms: list[float] = []
        self.dtypes: set[torch.dtype] = set()
        self.validated: list[int] = []

    def on_train_start(self, trainer, pl_module):
        network: Any = pl_module.network
        layer = network[0].auto_model.encoder.layer[0].attention.self.query
        layer.register_forward_hook(lambda module, inputs, output: self.dtypes.add(output.dtype))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.batches.append(tuple(batch["ids"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        grads = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(grads).norm()))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


@pytest.fixture
def watch(monkeypatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(cli, "SeedSteps", lambda: watch)
    return watch


@pytest.fixture(scope="module")
def finished(music, tiny_backbone, tmp_path_factory) -> Path:
    """Two finished runs, dense-1 and dense-2, of two steps each."""
    root = tmp_path_factory.mktemp("finished")
    for _ in range(2):
        fit("dense.yaml", music, tiny_backbone, root, **{"trainer__max_steps": 2})
    return root


@pytest.fixture
def root(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs"))


def files(folder: Path) -> dict[str, int]:
    """Each file below and when it was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


# -- folders


def test_two_steps_leave_a_whole_run(finished):
    for run in (finished / "dense-1", finished / "dense-2"):
        assert {p.name for p in run.iterdir()} == {"config.yaml", "ckpt", "export"}
        assert step_of(run / "ckpt" / "last.ckpt") == 2


def test_a_path_to_a_checkpoint_means_the_run_that_wrote_it(root, music, tiny_backbone):
    other = files(root / "dense-2")
    path = root / "dense-1" / "ckpt" / "last.ckpt"
    done = fit("dense.yaml", music, tiny_backbone, root, ckpt_path=path, trainer__max_steps=3)
    assert (done.folder, done.trainer.global_step, step_of(path)) == (root / "dense-1", 3, 3)
    assert files(root / "dense-2") == other
    assert {p.name for p in root.iterdir()} == {"dense-1", "dense-2"}


def test_a_run_may_start_from_another_under_a_name_of_its_own(root, music, tiny_backbone):
    first, path = files(root / "dense-1"), root / "dense-1" / "ckpt" / "last.ckpt"
    fit("dense.yaml", music, tiny_backbone, root, ckpt_path=path, id="new", trainer__max_steps=3)
    assert step_of(root / "new" / "ckpt" / "last.ckpt") == 3
    assert files(root / "dense-1") == first
    with pytest.raises(ValueError, match=r"--id: .*dense-2 holds a finished run"):
        fit("dense.yaml", music, tiny_backbone, root, ckpt_path=path, id="dense-2")


def test_last_is_the_newest_run_that_began(root, music, tiny_backbone):
    (root / "dense-3").mkdir()  # killed before its first step
    done = fit("dense.yaml", music, tiny_backbone, root, ckpt_path="last", trainer__max_steps=3)
    assert done.folder == root / "dense-2"
    new = fit("dense.yaml", music, tiny_backbone, root, trainer__max_steps=1)
    assert new.folder == root / "dense-4"


class Evil:
    def __reduce__(self):
        return (os.putenv, ("LTRR_EVIL", "ran"))  # what a checkpoint must not be able to do


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("dense.yaml", {"ckpt_path": "last", "id": "new"}, "no .*new/ckpt/last.ckpt; without --ckpt_path, --id new"),
        ("dense.yaml", {"ckpt_path": "{root}/dense-1/export"}, "no file .*give --model.network.model FOLDER"),
        ("dense.yaml", {"ckpt_path": "https://x.org/a.ckpt", "id": "new"}, "no file"),
        ("dense.yaml", {"ckpt_path": "{root}/text"}, "no run's ckpt folder; .*--id NAME"),
        ("dense.yaml", {"ckpt_path": "{root}/text", "id": "new"}, "is no checkpoint of a training run"),
        ("dense.yaml", {"ckpt_path": "{root}/cut", "id": "new"}, "is no checkpoint of a training run"),
        ("dense.yaml", {"ckpt_path": "{root}/evil", "id": "new"}, "is no checkpoint of a training run"),
        ("splade.yaml", {"ckpt_path": "{root}/dense-1/ckpt/last.ckpt"}, r"is of another model: \d+ weights .*network"),
        ("dense.yaml", {"data.path": "nowhere"}, "nowhere"),
        ("dense.yaml", {"model.distill": "kl"}, "--data.teacher FILE"),
        ("dense.yaml", {"trainer.accelerator": "gpu"}, "trainer: .*\n.*--trainer.accelerator cpu"),
        ("dense.yaml", {"save_every": 0}, "save_every"),
    ],
)
def test_a_start_that_fails_changes_nothing(config, options, message, root, music, tiny_backbone, request):
    if options.get("trainer.accelerator") == "gpu" and torch.cuda.is_available():
        pytest.skip("here is a GPU")
    (root / "text").write_text("no checkpoint")
    (root / "cut").write_bytes((root / "dense-1" / "ckpt" / "last.ckpt").read_bytes()[:10_000])
    torch.save({"state_dict": Evil()}, root / "evil")
    before = files(root)
    given = {name: str(value).format(root=root) for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        fit(config, music, tiny_backbone, root, *flags(given))
    assert files(root) == before
    assert {p.name for p in root.iterdir()} == {"dense-1", "dense-2", "text", "cut", "evil"}


def test_validate_writes_nothing(root, music, tiny_backbone):
    before = files(root)
    options = basis("dense.yaml", music, tiny_backbone, root) | {"trainer.logger": "true"}
    for start in ({}, {"ckpt_path": "last"}, {"ckpt_path": root / "dense-1" / "ckpt" / "last.ckpt"}):
        done = TrainingCLI(["validate", *flags(options | start)])
        assert 0 < done.trainer.callback_metrics["val_nDCG@10"] <= 1
    assert files(root) == before
    assert {p.name for p in root.iterdir()} == {"dense-1", "dense-2"}


# -- how a run goes on and ends


def test_an_extended_run_sees_what_an_unbroken_one_sees(watch, music, tiny_backbone, tmp_path):
    """Cut within an epoch and at its end, then by epochs: batches and validations follow as if nothing had happened."""
    shared = {"patience": 99, "trainer.check_val_every_n_epoch": 1}
    fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(shared | {"id": "whole", "trainer.max_epochs": 3}))
    whole = (watch.batches[:], watch.validated[:])
    watch.batches.clear()
    watch.validated.clear()
    for n, end in enumerate(({"max_steps": 3}, {"max_steps": 7}, {"max_steps": 9}, {"max_epochs": 3})):
        given = shared | {"id": "parts"} | {f"trainer.{name}": value for name, value in end.items()}
        done = fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(given | ({"ckpt_path": "last"} if n else {})))
        assert (
            step_of(tmp_path / "parts" / "ckpt" / "last.ckpt") == done.trainer.global_step == end.get("max_steps", 21)
        )
    assert (watch.batches, watch.validated) == whole


def test_patience_ends_a_run_and_more_of_it_goes_on(music, tiny_backbone, tmp_path):
    still = EVERY_STEP | {"model.lr": 0, "id": "x"}  # nothing changes, so that nothing gets better
    first = fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(still | {"patience": 2}))
    assert first.trainer.global_step == 3
    assert (tmp_path / "x" / "export").exists()
    more = {"patience": 5, "ckpt_path": "last"}
    assert fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(still | more)).trainer.global_step == 6


def test_a_run_killed_before_its_export_gets_one(music, tiny_backbone, tmp_path, monkeypatch):
    def killed(self, trainer, pl_module):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli.Export, "on_train_end", killed)
        with pytest.raises(KeyboardInterrupt):
            fit("dense.yaml", music, tiny_backbone, tmp_path, id="x", trainer__max_steps=2)
    assert not (tmp_path / "x" / "export").exists()
    fit("dense.yaml", music, tiny_backbone, tmp_path, id="x", trainer__max_steps=2, ckpt_path="last")
    trained = torch.load(tmp_path / "x" / "ckpt" / "last.ckpt", weights_only=True)["state_dict"]
    exported = load_file(tmp_path / "x" / "export" / "model.safetensors")
    for name, value in exported.items():
        torch.testing.assert_close(value, next(v for k, v in trained.items() if k.endswith(name)))


def test_a_run_never_exports_the_best_of_the_run_it_started_from(music, tiny_backbone, tmp_path):
    options = EVERY_STEP | {"trainer.max_steps": 2, "id": "source"}
    fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(options))
    start = tmp_path / "source" / "ckpt" / "best.ckpt"
    more = {"trainer.max_steps": 4, "trainer.limit_val_batches": 0, "ckpt_path": start, "id": "new", "model.lr": 0.01}
    fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(more))
    trained = torch.load(tmp_path / "new" / "ckpt" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in load_file(tmp_path / "new" / "export" / "model.safetensors").items():
        torch.testing.assert_close(value, next(v for k, v in trained.items() if k.endswith(name)))


@pytest.mark.parametrize("emulated", [False, True])
def test_mixed_precision_clipping_and_warm_up_are_what_was_asked_for(
    watch, music, tiny_backbone, tmp_path, monkeypatch, emulated
):
    """But for a precision that the processor does not have."""
    monkeypatch.setattr(cli, "emulates_bfloat16", lambda accelerator: emulated)
    options = {"precision": "bf16-mixed", "gradient_clip_val": 0.01, "max_steps": 6}
    given = {f"trainer.{name}": value for name, value in options.items()} | {"model.warmup": 0.5, "model.lr": 0.003}
    fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(given | {"id": "x"}))
    assert watch.dtypes == {torch.float32 if emulated else torch.bfloat16}
    assert {v.dtype for v in load_file(tmp_path / "x" / "export" / "model.safetensors").values()} == {torch.float32}
    assert watch.norms == pytest.approx([0.01] * 6, rel=1e-3)
    assert watch.rates == pytest.approx([0, 0.001, 0.002, 0.003, 0.002, 0.001])


@pytest.mark.slow
def test_torchrun_trains_in_one_folder(music, tiny_backbone, tmp_path):
    given = basis("dense.yaml", music, tiny_backbone, tmp_path) | {"trainer.max_steps": 2, "id": "x"}
    given |= {"trainer.devices": 2, "trainer.strategy": "ddp"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(ROOT / "train.py"), "fit", *flags(given)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"x"}
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"config.yaml", "ckpt", "export"}
    assert step_of(tmp_path / "x" / "ckpt" / "last.ckpt") == 2


# -- what is logged, and what mistakes say


def test_weights_and_biases_hold_the_config_and_the_metrics(music, tiny_backbone, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": {"offline": True}}
    shared = {"trainer.logger": json.dumps(logger), "trainer.max_steps": 3, "trainer.log_every_n_steps": 1, "id": "x"}
    with pytest.raises(ValueError, match="needs a teacher's scores"):
        fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(shared | {"model.distill": "kl"}))
    wandb.finish()
    assert not (tmp_path / "x").exists()
    done = fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(shared | EVERY_STEP))
    running: Any = done.trainer.logger
    run = running.experiment
    config, summary = dict(run.config), dict(run.summary)
    wandb.finish()
    assert config["model"]["init_args"]["temperature"] == 0.05
    assert config["data"]["path"] == str(music)
    assert summary.keys() >= {"train_loss", "val_nDCG@10", "val_RR@10", "samples/s", "tokens/s"}
    saved = yaml.safe_load((tmp_path / "x" / "config.yaml").read_text())
    assert saved["model"]["init_args"]["temperature"] == config["model"]["init_args"]["temperature"]
    assert len(list((tmp_path / "x" / "wandb").glob("offline-run-*/run-*.wandb"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--model.lrr=1"], "model: Option 'lrr' is not accepted; did you mean lr?"),
        (
            ["fit", "--model.zzz=1"],
            "model: Option 'zzz' is not accepted; ltrr.encoders.bi_encoder.DenseModule takes network,",
        ),
        (["fit", "--model.network.max_lenght=1"], "model.network: Option 'max_lenght' is not accepted; did you mean"),
        (["fit", "--model.lr=much"], "model.lr: Expected a <class 'float'>. Got value: much"),
        (["fit", "--data.pth=x"], "unrecognized arguments: --data.pth=x; did you mean data.path?"),
        (["fit", "--config=nowhere.yaml"], "config: File does not exist"),
        (["test"], "'test' (choose from"),
        ([], "{fit,validate}"),
    ],
)
def test_what_is_misspelt_is_named_on_one_screen(arguments, message):
    config = [f"--config={ROOT / 'configs' / 'dense.yaml'}"]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        TrainingCLI([*arguments[:1], *config, *arguments[1:]] if arguments[:1] == ["fit"] else arguments)
    assert len(str(caught.value)) < 500
    assert "Namespace" not in str(caught.value)


def test_a_defect_of_the_code_keeps_its_traceback(music, tiny_backbone, tmp_path, monkeypatch):
    """jsonargparse makes a ValueError of whatever a constructor raises; train.py must not take that for a mistake."""

    def broken(*args, **options):
        raise KeyError("a defect")

    monkeypatch.setattr("ltrr.encoders.bi_encoder.load_network", broken)
    with pytest.raises(KeyError, match="a defect"):
        fit("dense.yaml", music, tiny_backbone, tmp_path, id="x")
    assert list(tmp_path.iterdir()) == []


def test_reasons_keep_what_is_not_noise():
    assert readable("plain", []) == "plain\n`train.py fit --help` lists all options"
    both = "Parser key \"a\":\n  Errors:\n    - one\n    - Expected a <class 'NoneType'>\n    - two\n  Given value: x"
    assert readable(both, []) == "a: one; two"


def test_callbacks_of_a_config_stay(music, tiny_backbone, tmp_path):
    given = [{"class_path": "pytorch_lightning.callbacks.LearningRateMonitor"}]
    options = {"trainer.callbacks": json.dumps(given), "trainer.max_steps": 1, "trainer.logger": "true", "id": "x"}
    done = fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(options))
    trainer: Any = done.trainer
    assert "LearningRateMonitor" in {type(callback).__name__ for callback in trainer.callbacks}
    assert all(isinstance(callback, Callback) for callback in trainer.callbacks)
