"""train.py as users run it: every training config, run folders, resumed and distributed runs, errors."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from ltrr.cli.fit import TrainingCLI, run_id
from ltrr.data.beir import open_dataset
from ltrr.metrics import write_run
from tests.helpers import ROOT

CONFIGS = sorted(  # but for a policy's, which learns from logged rounds (test_rounds.py)
    path for path in (ROOT / "configs").rglob("*.yaml") if "network:" in path.read_text()
)
ONE_CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on batches of tests


def flags(options: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def basis(config: str | Path, data: Path, model: Path, root: Path) -> dict[str, object]:
    """Options of a fit on one CPU and a tiny backbone."""
    return {
        "config": ROOT / "configs" / config,
        "data.path": data,
        "data.batch_size": 4,
        "model.network.model": model,
        "trainer.default_root_dir": root,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        **{f"trainer.{name}": value for name, value in ONE_CPU.items()},
    }


def fit(config: str | Path, data: Path, model: Path, root: Path, *more: str, **options: object) -> TrainingCLI:
    """A fit in this process."""
    given = {name.replace("__", "."): value for name, value in options.items()}
    return TrainingCLI(["fit", *flags(basis(config, data, model, root) | given), *more])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def needed(config: Path, music: Path, folder: Path) -> dict[str, object]:
    """What a config cannot have without a larger model or files: sizes that fit, a teacher's scores."""
    arguments = yaml.safe_load(config.read_text())["model"]["init_args"]
    out: dict[str, object] = {"data.num_workers": 0}
    if "dimensions" in arguments:
        out["model.dimensions"] = "[8, 32]"
    if "distill" in arguments:
        scores = {
            q: dict.fromkeys(docs, 1.0) | {"a0": 0.5} for q, docs in open_dataset(music).split("train").qrels.items()
        }
        write_run(scores, folder / "teacher.trec", "test")
        out |= {"data.teacher": folder / "teacher.trec", "data.negatives": json.dumps([str(folder / "teacher.trec")])}
    return out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.relative_to(ROOT / "configs").as_posix())
def test_every_config_trains_two_steps_and_exports(config, music, tiny_backbone, tmp_path):
    options = {"trainer.max_steps": 2, "id": "x"} | needed(config, music, tmp_path)
    fit(config, music, tiny_backbone, tmp_path, *flags(options))
    run = tmp_path / "x"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "ckpt", "export"}
    noted = json.loads((run / "export" / "ltrr.json").read_text())
    assert (noted["splits"], noted["num_queries"]) == (["train"], 30)
    saved = yaml.safe_load((run / "config.yaml").read_text())  # what can be run again as it is
    assert saved["trainer"]["default_root_dir"] == str(tmp_path)
    assert saved["model"]["init_args"]["network"]["init_args"]["model"] == str(tiny_backbone)


def test_the_best_checkpoint_is_exported(music, tiny_backbone, tmp_path):
    class Log(Callback):
        scores: list[float] = []  # noqa: RUF012

        def on_validation_end(self, trainer, pl_module):
            self.scores.append(float(trainer.callback_metrics["val_nDCG@10"]))
            network: Any = pl_module.network
            state = {k: v.clone() for k, v in network.state_dict().items()}
            if self.scores[-1] == max(self.scores) and self.scores.count(self.scores[-1]) == 1:
                self.best = state

    log = Log()
    original = TrainingCLI.instantiate_trainer

    def with_log(self, **kwargs):
        trainer = original(self, **kwargs)
        trainer.callbacks.insert(0, log)  # pyright: ignore[reportAttributeAccessIssue]
        return trainer

    TrainingCLI.instantiate_trainer = with_log  # type: ignore[method-assign]
    try:
        options = {"model.lr": 0.05, "trainer.num_sanity_val_steps": 0, "trainer.max_epochs": 4, "id": "x"}
        fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(options))
    finally:
        TrainingCLI.instantiate_trainer = original  # type: ignore[method-assign]
    assert len(set(log.scores)) > 1  # the learning rate is far too high: it goes up and down
    exported = SentenceTransformer(str(tmp_path / "x" / "export"), device="cpu").state_dict()
    for name, value in log.best.items():
        torch.testing.assert_close(exported[name], value)


def test_a_killed_run_goes_on_to_the_same_numbers(music, tiny_backbone, tmp_path):
    """Dropout, the order of batches, drawn documents, optimiser and schedule all go on as if nothing had happened."""
    options = {"model.network.dropout": 0.3, "trainer.max_epochs": 3, "save_every": 4, "patience": 99}
    fit("dense.yaml", music, tiny_backbone, tmp_path, *flags({**options, "id": "whole"}))
    program = (
        "import sys, os, signal\n"
        "from pytorch_lightning import Callback\n"
        "from ltrr.cli import fit as cli\n"
        "class Kill(cli.SeedSteps):\n"
        "    def on_train_batch_end(self, trainer, *rest):\n"
        "        if trainer.global_step == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.SeedSteps = Kill\n"
        "cli.TrainingCLI()\n"
    )
    given = basis("dense.yaml", music, tiny_backbone, tmp_path) | {**options, "id": "killed"}
    command = [sys.executable, "-c", program, "fit", *flags(given)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "killed" / "export").exists()
    again = fit("dense.yaml", music, tiny_backbone, tmp_path, *flags({**options, "id": "killed", "ckpt_path": "last"}))
    assert again.trainer.global_step == 21  # three epochs of 30 // 4 batches
    for name, value in weights(tmp_path / "whole").items():
        # Not to the bit: sums of floats depend on where a process's memory lies. Another order of batches gives 1e-4.
        torch.testing.assert_close(weights(tmp_path / "killed")[name], value, rtol=1e-4, atol=1e-7)


def test_two_processes_train_as_one_with_their_batches_together(music, tiny_backbone, tmp_path):
    """Each device's documents are negatives on the other, with gradients: two of 4 queries equal one of 8."""
    shared = {"trainer.max_steps": 3, "model.bidirectional": "false"}
    fit("dense.yaml", music, tiny_backbone, tmp_path, *flags({**shared, "data.batch_size": 8, "id": "one"}))
    given = basis("dense.yaml", music, tiny_backbone, tmp_path) | {
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        **shared,
        "id": "two",
    }
    command = [sys.executable, str(ROOT / "train.py"), "fit", *flags(given)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-4, atol=1e-5)


def test_runs_are_numbered_and_a_finished_one_is_kept(music, tiny_backbone, tmp_path):
    for _ in range(2):
        fit("dense.yaml", music, tiny_backbone, tmp_path, trainer__max_steps=1)
    assert {p.name for p in tmp_path.iterdir()} == {"dense-1", "dense-2"}
    with pytest.raises(ValueError, match=r"dense-2 holds a finished run; give another id, or --ckpt_path last"):
        fit("dense.yaml", music, tiny_backbone, tmp_path, trainer__max_steps=1, id="dense-2")
    assert run_id(tmp_path, "DenseModule", again=True) == "dense-2"
    assert run_id(tmp_path, "CrossEncoderModule", again=False) == "cross_encoder-1"
    with pytest.raises(ValueError, match=r"no run .*cross_encoder-N to go on with"):
        run_id(tmp_path, "CrossEncoderModule", again=True)


def test_torchrun_needs_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--id: torchrun"):
        run_id(tmp_path, "DenseModule", again=False)


def test_a_loss_that_is_not_finite_stops_with_the_batch(music, tiny_backbone, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is nan on the batch of queries t\d+, t\d+, t\d+, t\d+\.") as caught:
        fit("dense.yaml", music, tiny_backbone, tmp_path, *flags({"model.lr": "1e20", "trainer.max_steps": 9}))
    assert "lower model.lr" in str(caught.value)


def test_weights_and_biases_keep_everything_in_the_run_folder(music, tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": {"offline": True}}
    options = {"trainer.logger": json.dumps(logger), "trainer.max_epochs": 1, "id": "x"}
    fit("dense.yaml", music, tiny_backbone, tmp_path, *flags(options))
    files = list((tmp_path / "x" / "wandb").rglob("*.table.json"))
    table = json.loads(files[0].read_text())
    assert table["columns"] == ["query", "rank", "document", "score", "grade"]
    assert len(table["data"]) == 3 * 15  # three documents of each dev query
    assert not (Path.cwd() / "wandb").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.path=nowhere"], "nowhere"),
        (["--data.path={music}", "--data.split=test"], "test queries must never train"),
        (["--data.path={music}", "--model.learning_rate=1"], "learning_rate"),
        (["--data.path={music}", "--model.network.model=no-such-folder/x"], "no-such-folder/x"),
        (["--data.path={music}", "--model.distill=kl"], "--data.teacher FILE"),
        ([], "data.path is not set"),
    ],
)
def test_mistakes_end_with_a_message(music, tmp_path, arguments, message, monkeypatch, capsys):
    given = [a.format(music=music) for a in arguments]
    root = f"--trainer.default_root_dir={tmp_path}"
    command = ["train.py", "fit", f"--config={ROOT}/configs/dense.yaml", root, "--trainer.logger=false", *given]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
