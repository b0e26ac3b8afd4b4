"""What stops a training that has gone wrong, before it spoils what was learnt."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from datamodules.batch import Batch

SHOWN = 8
"""Samples of a batch that a message names."""


class NotFinite(ValueError):
    """A loss or gradient that is infinite or not a number."""


class GradientClipping(Callback):
    """Log the norm of the gradients, shorten long ones, stop before a step that is not finite.

    Gradients are those of all ranks together, so all ranks stop at once, and the weights stay as
    they were after the last good step.
    """

    def __init__(self, longest: float | None = None) -> None:
        """Watch a training, and scale gradients of a norm above `longest` down to it."""
        self._longest = longest
        self._keys: list[str] = []

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember the batch, with the others of its step."""
        self._keys = [*self._keys, *batch.key]

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients; what is logged is their norm before they are shortened.

        Raises:
            NotFinite: the message has the step and names the batch.
        """
        trained = [p for p in module.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in trained if p.grad is not None])
        if not torch.isfinite(norm):
            more = len(self._keys) - SHOWN
            shown = ", ".join(self._keys[:SHOWN]) + (f" and {more} more" if more > 0 else "")
            raise NotFinite(
                f"the gradients of step {trainer.global_step} are not finite (norm {norm:g}); "
                f"the last checkpoint is kept. Rank {trainer.global_rank} had the batch {shown}. "
                "Train again with a lower learning rate, or with trainer.precision=32-true"
            )
        if self._longest is not None:
            clip_grads_with_norm_(trained, self._longest, norm)
        self._keys = []
        module.log("grad_norm", norm)
