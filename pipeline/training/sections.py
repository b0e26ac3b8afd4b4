"""Sections of the configuration that the trainings read."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import AsText, Config, ConfigError, Node, Section


class TrainerConfig(Section, name="trainer"):
    """Where and how training runs."""

    accelerator: str
    devices: int | str | list[int]
    num_nodes: int = Field(ge=1)
    precision: Annotated[Literal["auto", "32-true", "32", "bf16-mixed", "bf16"], AsText]
    compile: bool
    log_every_n_steps: int = Field(ge=1)


class TrainingConfig(Section):
    """What both trainings are told."""

    init_from: str | None
    max_steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    accumulate_grad_batches: int = Field(ge=1)
    color_jitter: float = Field(ge=0)
    gradient_clip_val: float | None = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    min_lr_ratio: float = Field(ge=0, le=1)
    val_every_n_steps: int = Field(ge=1)
    val_images_per_task: int = Field(ge=1)
    final_weights: Literal["last", "best"]
    optimizer: Node


class ControllerConfig(TrainingConfig, name="controller"):
    """Stage (a)."""

    degradation_targets: Literal["identity", "multi_positive"]
    crop_scale: list[float] = Field(min_length=2, max_length=2)
    crops_per_side: int = Field(ge=1)


class RestorerConfig(TrainingConfig, name="restorer"):
    """Stage (b)."""

    patch_size: int = Field(ge=1)
    context_size: int | None
    gradient_checkpointing: bool
    prediction_type: str
    loss: str
    timestep_power: float = Field(ge=0)
    text_prompt_prob: float = Field(ge=0, le=1)
    swapped_prompt_prob: float = Field(ge=0, le=1)
    ema_decay: float = Field(ge=0, le=1)
    ema_update_every: int = Field(ge=1)
    val_num_steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse settings that contradict each other."""
        if self.context_size is not None and self.context_size < self.patch_size:
            raise ValueError(
                f"restorer.context_size={self.context_size} is smaller than "
                f"restorer.patch_size={self.patch_size}, which is cropped from it"
            )
        if (total := self.text_prompt_prob + self.swapped_prompt_prob) > 1:
            raise ValueError(
                "restorer.text_prompt_prob and restorer.swapped_prompt_prob are probabilities that "
                f"sum to at most 1, got {total:g}"
            )
        return self


def check_batch(config: Config, section: type[TrainingConfig], processes: int) -> None:
    """Check that a training stage's batch can be shared out evenly.

    Raises:
        ConfigError: it cannot.
    """
    size = config[section].batch_size
    if size % processes:
        raise ConfigError(
            f"{section.section}.batch_size={size} images cannot be shared out evenly to "
            f"{processes} processes; take a multiple"
        )
