"""Speed of training against sentence-transformers: same model, data, batches, length, optimiser and precision."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

from registry import Options, Row, benchmark

_BATCH, _STEPS, _WARM, _LENGTH = 32, 24, 4, 256


@benchmark(data=True)
def bi_encoder(options: Options) -> Iterator[Row]:
    """Samples/s of our trainer against SentenceTransformerTrainer, bf16, without and with dropout.

    Both fit pairs of title and text by the same loss for an epoch, one after the other, twice; the better run counts.
    The last row compares what each ships: ours without dropout, theirs with the backbone's.
    """
    data, device = str(options.system.settings.data.path), options.device
    rows: dict[float, tuple[Row, Row]] = {}
    for dropout, name in ((0.0, "no dropout"), (0.1, "dropout .1")):
        speeds = [max(run(data, device, dropout) for _ in range(options.repeats or 2)) for run in (_peer, _ours)]
        peer = Row(f"sentence-transformers, {name}", speeds[0], "samples/s")
        rows[dropout] = peer, Row(f"ours, {name}", speeds[1], "samples/s").against(peer)
        yield from rows[dropout]
    yield rows[0.0][1].against(rows[0.1][0])._replace(case="ours, as shipped")


def _pairs(data: str) -> Any:
    from ltrr.data.pairs import Pairs

    pairs = Pairs(data, title_pairs=1e9, num_negatives=0, batch_size=_BATCH)
    pairs.setup()
    pairs._sources = [s for s in pairs._sources if s.body][: _BATCH * _STEPS]  # an epoch of titles alone
    return pairs


def _ours(data: str, device: str, dropout: float) -> float:
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


def _peer(data: str, device: str, dropout: float) -> float:
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
