"""What guards a training step."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from pipeline.training.callbacks import GradientClipping, NotFinite


class Line(LightningModule):
    """One weight, of which the loss is `slope` times the weight."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.slope = slope

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        return self.slope * self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1, fused=True)


class Batches(torch.utils.data.Dataset[object]):
    """One batch with a key."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        class Batch:
            key = ("a", "b")

        return Batch()


def trained(slope: float, longest: float | None, precision: str = "32-true") -> tuple[Line, float]:
    """The module after one step, and the norm that was logged."""
    module = Line(slope)
    loader = torch.utils.data.DataLoader(Batches(), batch_size=None)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        logger=False,
        precision=precision,  # type: ignore[arg-type]
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GradientClipping(longest)],
    )
    trainer.fit(module, loader)
    return module, float(trainer.callback_metrics["grad_norm"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_long_gradients_are_shortened_and_short_ones_are_not(precision: str) -> None:
    norm = 3 * 2**0.5
    free, _ = trained(3.0, None, precision)
    short, logged = trained(3.0, 0.5, precision)
    untouched, _ = trained(3.0, 10.0, precision)

    assert logged == pytest.approx(norm)
    assert free.weight.tolist() == untouched.weight.tolist() == [-3, -3]
    assert float(short.weight.detach().norm()) == pytest.approx(0.5, rel=1e-5)


def test_a_gradient_that_is_not_finite_stops_before_the_step_and_names_the_batch() -> None:
    with pytest.raises(NotFinite, match=r"step 0 are not finite.*batch a, b"):
        trained(float("inf"), 0.5)
