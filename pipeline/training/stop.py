"""Training that is asked to stop saves and ends, on all ranks at the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.preemption import Stopped, listen, stop_requested


class GracefulStop(Callback):
    """Save and leave at the end of the running step, when any rank was asked to stop.

    It stands after the callbacks whose state belongs in the checkpoint.
    """

    def __init__(self, checkpoint: Path) -> None:
        """Save to a file."""
        self._checkpoint = checkpoint

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Let a signal wait for the end of the step.

        Lightning's own handler of SIGTERM, set just before, calls a collective from within the
        signal, which may fall into another one; ours takes its place until training ends.
        """
        listen(may_finish=True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop here if any rank was asked to, and the batch was the last one of a step.

        Raises:
            Stopped: the checkpoint is written.
        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if not trainer.strategy.reduce_boolean_decision(stop_requested(), all=False):
            return
        trainer.save_checkpoint(self._checkpoint)
        for logger in trainer.loggers:
            logger.save()
        # The first rank that leaves may take the others along.
        trainer.strategy.barrier()
        raise Stopped(f"stopped after step {trainer.global_step}, saved in {self._checkpoint}")

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Leave a validation, which may take longer than there is time.

        All ranks do at the same batch, for they have equally many.

        Raises:
            Stopped: training goes on from the checkpoint before the validation.
        """
        if trainer.strategy.reduce_boolean_decision(stop_requested(), all=False):
            trainer.strategy.barrier()
            raise Stopped(f"stopped in the validation after step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave at once from now on: what follows is done again from the last checkpoint."""
        listen()
