"""Checkpoints: the last and the best are kept, damaged ones are passed over; bad steps stop."""

from __future__ import annotations

import math
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.training.checkpoints import (
    AtomicCheckpointIO,
    DamagedCheckpoint,
    checkpoint_callbacks,
    load_best,
    newest_checkpoint,
)
from tests.conftest import call


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run whose restorer is to be trained to its end again, from its checkpoints."""
    for stage in ("shards", "captions", "controller"):
        (tmp_path / stage).symlink_to(finished / stage)
    shutil.copytree(finished / "restorer", tmp_path / "restorer")
    (tmp_path / "restorer" / "model.safetensors").unlink()
    return tmp_path


def test_last_and_best_are_kept(finished: Path) -> None:
    for stage, metric in (("controller", "degradation_accuracy"), ("restorer", "val_psnr")):
        folder = finished / stage / "checkpoints"
        assert {p.name for p in folder.iterdir()} == {
            "step=2.ckpt",
            "step=4.ckpt",
            "last.ckpt",
            "best.ckpt",
        }
        best = torch.load(folder / "best.ckpt", weights_only=True)
        assert math.isfinite(best["callbacks"]["BestCheckpoint"][metric])


class Scored(LightningModule):
    """A number that counts the steps, whose validations have given scores."""

    def __init__(
        self, scores: dict[int, float], dies_after: int | None = None, dies_in: int | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self._scores, self._dies_after, self._dies_in = scores, dies_after, dies_in

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_step == self._dies_after or batch_idx == self._dies_in:
            raise RuntimeError("killed")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -self.weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self._scores[self.global_step])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def train(folder: Path, module: Scored, accumulate: int = 1) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=len(module._scores),
        accumulate_grad_batches=accumulate,
        val_check_interval=accumulate,
        num_sanity_val_steps=0,
        callbacks=checkpoint_callbacks(folder, 1, "score"),
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(torch.zeros(9, 1))  # type: ignore[arg-type]
    last = newest_checkpoint(folder)
    trainer.fit(module, data, DataLoader(torch.zeros(1, 1)), ckpt_path=last, weights_only=True)  # type: ignore[arg-type]


def test_best_stays_the_best_after_a_kill_and_in_another_folder(tmp_path: Path) -> None:
    scores = {1: 1.0, 2: 5.0, 3: 3.0, 4: math.nan}
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "first", Scored(scores, dies_after=2))
    moved = (tmp_path / "first").rename(tmp_path / "second")
    module = Scored(scores)
    train(moved, module)
    assert module.weight == 4
    load_best(moved, module)
    assert module.weight == 2


def test_checkpoints_made_under_the_former_names_go_on(tmp_path: Path) -> None:
    scores = {1: 1.0, 2: 5.0, 3: 3.0, 4: 4.0}
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, Scored(scores, dies_after=2))
    for path in tmp_path.iterdir():
        saved = torch.load(path, weights_only=True)
        saved["callbacks"] = {
            key.replace("BestCheckpoint", "KeepBest").replace("StepCheckpoint", "AfterSteps"): state
            for key, state in saved["callbacks"].items()
        }
        torch.save(saved | {"MixedData": {"draws": 2}}, path)
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert loaded["RestorationDataModule"] == {"draws": 2} and "MixedData" not in loaded
    assert {key.partition("{")[0] for key in loaded["callbacks"]} == {
        "BestCheckpoint",
        "StepCheckpoint",
    }
    module = Scored(scores)
    train(tmp_path, module)
    assert module.weight == 4
    load_best(tmp_path, module)
    assert module.weight == 2


def test_checkpoint_is_not_saved_again_amid_the_batches_of_the_next_step(tmp_path: Path) -> None:
    scores = {1: 1.0, 2: 2.0, 3: 3.0}
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, Scored(scores, dies_after=2), accumulate=2)
    saved = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in saved} >= {"step=2.ckpt", "last.ckpt"}
    module = Scored(scores, dies_in=5)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, module, accumulate=2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == saved


def test_last_weights_stay_where_nothing_has_a_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Scored({1: math.nan, 2: math.nan})
    train(tmp_path, module)
    load_best(tmp_path, module)
    assert module.weight == 2
    assert "no validation has left its weights" in caplog.text


def test_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    files = AtomicCheckpointIO()
    files.save_checkpoint({"step": 1}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"cannot write .*last\.ckpt.*make room or choose a folder"
        ):
            files.save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [_cut, _flip])
def test_damaged_last_checkpoint_is_passed_over(
    finished: Path, run: Path, spoil: Callable[[Path], None]
) -> None:
    folder = run / "restorer" / "checkpoints"
    for name in ("last", "step=4"):
        spoil(folder / f"{name}.ckpt")
    result = call(run, "train-restorer")
    assert result.returncode == 0, result.stderr
    assert "last.ckpt is damaged" in result.stdout
    assert "step=4.ckpt is damaged" in result.stdout
    assert "resuming from" in result.stdout
    resumed, straight = (load_file(r / "restorer/model.safetensors") for r in (run, finished))
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


@pytest.mark.parametrize("spoil", [_cut, _flip, _empty])
def test_newest_whole_checkpoint_is_found(
    tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name in ("step=2", "best", "last"):
        torch.save({"weights": torch.rand(2000)}, tmp_path / f"{name}.ckpt")
    assert newest_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    spoil(tmp_path / "last.ckpt")
    assert newest_checkpoint(tmp_path) == tmp_path / "step=2.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    spoil(tmp_path / "step=2.ckpt")
    with pytest.raises(DamagedCheckpoint, match=r"all 2 checkpoints in .* are damaged"):
        newest_checkpoint(tmp_path)


@pytest.mark.slow
def test_run_that_goes_on_at_its_last_step_gives_the_averaged_weights(
    finished: Path, run: Path
) -> None:
    result = call(run, "train-restorer")
    assert result.returncode == 0, result.stderr
    resumed, straight = (load_file(r / "restorer/model.safetensors") for r in (run, finished))
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


@pytest.mark.slow
def test_best_weights_are_the_result_where_asked(run: Path) -> None:
    folder, result = run / "restorer/checkpoints", run / "restorer/model.safetensors"

    def train() -> str:
        result.unlink(missing_ok=True)
        done = call(run, "train-restorer", "restorer.final_weights=best")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def is_of(name: str) -> bool:
        averaged = torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]
        found = load_file(result)
        return all(torch.equal(found[key], averaged[f"network.{key}"]) for key in found)

    train()
    assert is_of("best")
    shutil.copy(folder / "step=2.ckpt", folder / "best.ckpt")
    assert "the weights of step 2 validated best" in train()
    assert is_of("step=2") and not is_of("last")
    _cut(folder / "best.ckpt")
    assert "best.ckpt is damaged" in train()
    assert is_of("last")


@pytest.mark.slow
def test_step_that_is_not_finite_stops_before_it_spoils_the_weights(run: Path) -> None:
    before = (run / "restorer/checkpoints/last.ckpt").read_bytes()
    settings = ("restorer.max_steps=9", "restorer.optimizer.lr=1e30", "restorer.warmup_steps=0")
    result = call(run, "train-restorer", *settings)
    assert result.returncode == 1
    assert "the gradients of step 1 are not finite" in result.stderr
    assert ".tar/" in result.stderr  # the batch by name
    assert not (run / "restorer" / "model.safetensors").exists()
    kept = next(run.glob("restorer.before-*"))  # of the former settings
    assert (kept / "checkpoints/last.ckpt").read_bytes() == before
