"""Training that is asked to stop saves at the end of the step, and goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline import preemption as interrupt
from pipeline.preemption import Stopped, listen
from pipeline.training.callbacks import GracefulStop

STEPS = 8


class Line(LightningModule):
    """A linear function, fitted batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.layer(batch) - batch.sum(1, keepdim=True)).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Ask(Callback):
    """Send this process a signal in the middle of a batch of training or validation."""

    def __init__(self, number: signal.Signals, batch: int = -1, val_batch: int = -1) -> None:
        self.number, self.batch, self.val_batch = number, batch, val_batch

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        if index == self.batch:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == self.val_batch:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    monkeypatch.setattr(interrupt, "_state", interrupt._State())
    listen()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def train(
    folder: Path, *callbacks: Callback, accumulate: int = 1, resume: Path | None = None
) -> Tensor:
    module = Line()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        val_check_interval=6,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, GracefulStop(folder / "last.ckpt")],
    )
    data = torch.arange(4.0).expand(64, 4)  # equal batches, as these loaders do not resume
    loaders = DataLoader(data, batch_size=4), DataLoader(data, batch_size=16)
    trainer.fit(module, *loaders, ckpt_path=resume, weights_only=True)
    return module.layer.weight.detach()


@pytest.mark.parametrize("number", interrupt.SIGNALS)
@pytest.mark.parametrize(("accumulate", "batch", "step"), [(1, 2, 3), (2, 2, 2), (2, 3, 2)])
def test_training_stops_after_the_step_and_goes_on_to_the_same_weights(
    tmp_path: Path, number: signal.Signals, accumulate: int, batch: int, step: int
) -> None:
    straight = train(tmp_path, accumulate=accumulate)
    with pytest.raises(Stopped, match=f"after step {step}, saved in .*last.ckpt"):
        train(tmp_path, Ask(number, batch), accumulate=accumulate)
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == step
    interrupt._state.asked = False
    assert torch.equal(train(tmp_path, accumulate=accumulate, resume=last), straight)


def test_validation_is_left_without_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="in the validation after step 6"):
        train(tmp_path, Ask(signal.SIGUSR1, val_batch=1))
    assert not (tmp_path / "last.ckpt").exists()


def test_after_training_a_signal_ends_the_process_again(tmp_path: Path) -> None:
    train(tmp_path)
    assert not interrupt._state.may_finish
    assert signal.getsignal(signal.SIGTERM) is interrupt._handle


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, 75),
        ({"LOCAL_RANK": "0"}, 75),
        ({"LOCAL_RANK": "1"}, 0),
        ({"LOCAL_RANK": "1", "RANK": "1"}, 75),
    ],
)
def test_processes_that_lightning_has_started_leave_as_done(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], status: int
) -> None:
    """It would kill the first one, should another leave with 75; torchrun's are not its own."""
    for name in ("LOCAL_RANK", "RANK", interrupt.NOTE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert interrupt.stopped_status() == status


def test_other_ranks_are_ended_where_the_first_one_fails() -> None:
    """At its exit; they may wait for it in a collective, on their GPUs."""
    code = """
import atexit, subprocess, sys
from types import SimpleNamespace
from pipeline.training.trainer import _end_ranks
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
launcher = SimpleNamespace(procs=[rank])
atexit.register(_end_ranks, SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
print(rank.pid, flush=True)
sys.exit("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "failed" in done.stderr
    stat = Path(f"/proc/{done.stdout.strip()}/stat")
    assert not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
