"""Sections of the configuration that several stages read, or none of them."""

from __future__ import annotations

from pydantic import Field

from pipeline.config import Config, ConfigError, Section, Text


class DataConfig(Section, name="data"):
    """Reading shards while training."""

    task_weights: dict[str, int]
    val_batch_size: int = Field(ge=1)
    max_skipped_fraction: float = Field(ge=0)


class SamplerConfig(Section, name="sampler"):
    """How restorations are drawn, as `make_sampling` takes it."""

    name: str
    eta: float
    num_steps: int = Field(ge=1)
    timestep_spacing: str


class SamplerOverrides(Section):
    """What is to be other than in a model's own sampler."""

    name: str | None
    eta: float | None
    num_steps: int | None = Field(ge=1)
    timestep_spacing: str | None

    def applied_to(self, sampler: SamplerConfig) -> SamplerConfig:
        """The sampler with these settings in place of its own."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return sampler.model_copy(update=given)


class LoggerConfig(Section, name="logger"):
    """What is logged to Weights & Biases."""

    project: str | None


class DashboardConfig(Section, name="dashboard"):
    """The page of curves."""

    compare: list[str]


class JobConfig(Section):
    """What a stage asks a cluster for."""

    account: Text | None
    partition: Text | None
    nodes: int = Field(ge=1)
    tasks_per_node: int = Field(ge=1)
    gpus_per_node: int = Field(ge=0)
    cpus_per_task: int = Field(ge=1)
    memory: Text | None
    minutes: int = Field(ge=1)
    options: list[Text]
    setup: list[Text]


class ClusterConfig(Section, name="cluster"):
    """Jobs on a cluster: for all stages, and for each."""

    stop_before_s: int
    all: JobConfig
    shards: JobConfig
    captions: JobConfig
    controller: JobConfig
    restorer: JobConfig
    evaluate: JobConfig


def check_sampler(config: Config) -> None:
    """Check that there is such a sampler.

    Raises:
        ConfigError: there is none, or it does not take such settings.
    """
    from modules.inference.restore import make_sampling

    try:
        make_sampling(**config[SamplerConfig].model_dump())
    except ValueError as error:
        raise ConfigError(f"sampler: {error}") from error
