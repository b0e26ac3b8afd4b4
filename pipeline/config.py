"""The configuration: composed by Hydra, checked against a schema before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Node = dict[str, Any]
"""A `_target_` with its arguments, or plain settings of a free form."""
KEEP = ("last", "best")
"""Which weights of a training are its result."""
PRECISIONS = ("auto", "32-true", "32", "bf16-mixed", "bf16")
"""In which training works; gradients that are scaled, for 16 bits, overflow from time to time."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the key."""


@dataclass
class FormatConfig:
    """How samples are stored, as `datamodules.shards.writer.Format` takes it."""

    encoding: str = MISSING
    tile_size: int | None = MISSING
    shard_mb: float = MISSING


@dataclass
class ShardsConfig:
    """Making shards."""

    source: Node = MISSING
    format: FormatConfig = MISSING
    max_skipped_fraction: float = MISSING


@dataclass
class CaptionsConfig:
    """Captioning the clean images."""

    captioner: Node = MISSING
    batch_size: int = MISSING


@dataclass
class ClipConfig:
    """The CLIP under the controller."""

    architecture: Any = MISSING
    weights: str | None = MISSING
    train: bool = MISSING


@dataclass
class DataConfig:
    """Reading shards while training."""

    task_weights: dict[str, int] = MISSING
    max_skipped_fraction: float = MISSING


@dataclass
class ControllerConfig:
    """Stage (a)."""

    init_from: str | None = MISSING
    max_steps: int = MISSING
    batch_size: int = MISSING
    degradation_targets: str = MISSING
    accumulate_grad_batches: int = MISSING
    crop_scale: list[float] = MISSING
    crops_per_side: int = MISSING
    color_jitter: float = MISSING
    gradient_clip_val: float | None = MISSING
    warmup_steps: int = MISSING
    min_lr_ratio: float = MISSING
    val_every_n_steps: int = MISSING
    val_images_per_task: int = MISSING
    final_weights: str = MISSING
    optimizer: Node = MISSING


@dataclass
class ProcessConfig:
    """The diffusion, as `modules.diffusion.schedule.make_noise_schedule` takes it."""

    noise_schedule: str = MISSING
    num_timesteps: int = MISSING
    lambda_: float = MISSING
    eps: float = MISSING


@dataclass
class RestorerConfig:
    """Stage (b)."""

    init_from: str | None = MISSING
    max_steps: int = MISSING
    batch_size: int = MISSING
    accumulate_grad_batches: int = MISSING
    patch_size: int = MISSING
    context_size: int | None = MISSING
    color_jitter: float = MISSING
    gradient_checkpointing: bool = MISSING
    prediction_type: str = MISSING
    loss: str = MISSING
    timestep_power: float = MISSING
    text_prompt_prob: float = MISSING
    swapped_prompt_prob: float = MISSING
    gradient_clip_val: float | None = MISSING
    warmup_steps: int = MISSING
    min_lr_ratio: float = MISSING
    ema_decay: float = MISSING
    ema_update_every: int = MISSING
    val_every_n_steps: int = MISSING
    val_images_per_task: int = MISSING
    val_num_steps: int = MISSING
    final_weights: str = MISSING
    optimizer: Node = MISSING


@dataclass
class SamplerConfig:
    """How restorations are drawn, as `modules.inference.restore.make_sampling` takes it."""

    name: str = MISSING
    eta: float = MISSING
    num_steps: int = MISSING
    timestep_spacing: str = MISSING


@dataclass
class EvaluateConfig:
    """Measuring; `data` is a folder, or names of datasets with theirs."""

    data: Any = MISSING
    model: bool = MISSING
    pretrained: str | None = MISSING
    controller: str | None = MISSING
    restorer: str | None = MISSING
    methods: dict[str, str] | None = MISSING
    ablations: list[str] = MISSING
    batch_size: int = MISSING
    gallery_per_task: int = MISSING


@dataclass
class TrainerConfig:
    """Where and how training runs."""

    accelerator: str = MISSING
    devices: Any = MISSING
    num_nodes: int = MISSING
    precision: str = MISSING
    compile: bool = MISSING
    log_every_n_steps: int = MISSING


@dataclass
class LoggerConfig:
    """What is told to Weights & Biases."""

    project: str | None = MISSING


@dataclass
class DashboardConfig:
    """The page of curves."""

    compare: list[str] = MISSING


@dataclass
class JobConfig:
    """What a stage asks a cluster for."""

    account: str | None = MISSING
    partition: str | None = MISSING
    nodes: int = MISSING
    tasks_per_node: int = MISSING
    gpus_per_node: int = MISSING
    cpus_per_task: int = MISSING
    memory: str | None = MISSING
    minutes: int = MISSING
    options: list[str] = MISSING
    setup: list[str] = MISSING


@dataclass
class ClusterConfig:
    """Jobs on a cluster: for all stages, and for each."""

    stop_before_s: int = MISSING
    all: JobConfig = MISSING
    shards: JobConfig = MISSING
    captions: JobConfig = MISSING
    controller: JobConfig = MISSING
    restorer: JobConfig = MISSING
    evaluate: JobConfig = MISSING


@dataclass
class Config:
    """All settings; the values and their meanings stand in conf/config.yaml."""

    run_dir: str = MISSING
    seed: int = MISSING
    shards: ShardsConfig = MISSING
    captions: CaptionsConfig = MISSING
    clip: ClipConfig = MISSING
    data: DataConfig = MISSING
    controller: ControllerConfig = MISSING
    process: ProcessConfig = MISSING
    restorer: RestorerConfig = MISSING
    network: Node = MISSING
    sampler: SamplerConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    trainer: TrainerConfig = MISSING
    cluster: ClusterConfig = MISSING
    logger: LoggerConfig = MISSING
    dashboard: DashboardConfig = MISSING
    num_workers: int = MISSING


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose the configuration and check every key of it but the arguments of `_target_`s.

    Args:
        overrides: Hydra overrides, such as `experiment=universal` or `restorer.max_steps=1000`.

    Raises:
        ConfigError: a key is unknown, has no value, or a value of the wrong kind.
    """
    try:
        with initialize_config_dir(str(files("conf")), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
        merged = OmegaConf.merge(OmegaConf.structured(Config), composed)
        resolved = cast(DictConfig, merged)
        OmegaConf.resolve(resolved)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_reason(error)) from error
    if missing := sorted(OmegaConf.missing_keys(resolved)):
        raise ConfigError(f"no value for {', '.join(missing)}; give one as {missing[0]}=VALUE")
    config = OmegaConf.to_object(resolved)
    assert isinstance(config, Config)
    _check_ranges(config)
    return config


def _check_ranges(config: Config) -> None:
    counts = {
        "seed": (config.seed, 0),
        "num_workers": (config.num_workers, 0),
        "captions.batch_size": (config.captions.batch_size, 1),
        "controller.batch_size": (config.controller.batch_size, 1),
        "controller.crops_per_side": (config.controller.crops_per_side, 1),
        "restorer.batch_size": (config.restorer.batch_size, 1),
        "restorer.ema_update_every": (config.restorer.ema_update_every, 1),
        "restorer.val_num_steps": (config.restorer.val_num_steps, 1),
        "sampler.num_steps": (config.sampler.num_steps, 1),
        "evaluate.batch_size": (config.evaluate.batch_size, 1),
        "trainer.log_every_n_steps": (config.trainer.log_every_n_steps, 1),
    }
    if config.trainer.precision not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision={config.trainer.precision}; choose one of: {', '.join(PRECISIONS)}"
        )
    stages: dict[str, ControllerConfig | RestorerConfig]
    stages = {"controller": config.controller, "restorer": config.restorer}
    for name, stage in stages.items():
        for key in (
            "max_steps",
            "accumulate_grad_batches",
            "val_every_n_steps",
            "val_images_per_task",
        ):
            counts[f"{name}.{key}"] = getattr(stage, key), 1
        if stage.gradient_clip_val is not None and not stage.gradient_clip_val > 0:
            raise ConfigError(
                f"{name}.gradient_clip_val={stage.gradient_clip_val}; give more than 0, or null"
            )
        if stage.final_weights not in KEEP:
            raise ConfigError(
                f"{name}.final_weights={stage.final_weights}; choose one of: {', '.join(KEEP)}"
            )
    least_zero = {
        "controller.color_jitter": config.controller.color_jitter,
        "restorer.color_jitter": config.restorer.color_jitter,
        "restorer.timestep_power": config.restorer.timestep_power,
        "restorer.text_prompt_prob": config.restorer.text_prompt_prob,
        "restorer.swapped_prompt_prob": config.restorer.swapped_prompt_prob,
    }
    if not 0 <= config.restorer.ema_decay <= 1:
        raise ConfigError(f"restorer.ema_decay={config.restorer.ema_decay}; give 0 to 1")
    told = config.restorer.text_prompt_prob + config.restorer.swapped_prompt_prob
    if told > 1:
        raise ConfigError(
            "restorer.text_prompt_prob and restorer.swapped_prompt_prob are shares of one whole, "
            f"got {told:g}"
        )
    for key, (value, least) in (counts | {k: (v, 0) for k, v in least_zero.items()}).items():
        if not value >= least:
            raise ConfigError(f"{key}={value}; give {least} or more")


def check_batch(config: Config, stage: str, processes: int) -> None:
    """Check that a training stage's batch can be shared out evenly.

    Raises:
        ConfigError: it cannot.
    """
    size: int = getattr(config, stage).batch_size
    if size % processes:
        raise ConfigError(
            f"{stage}.batch_size={size} images cannot be shared out evenly to {processes} "
            "processes; take a multiple"
        )


def check_targets(config: Config) -> None:
    """Check every `_target_` and the sampler; apart, because it imports what they name.

    Raises:
        ConfigError: a target does not exist or does not take an argument, or there is no such
            sampler or time grid.
    """
    from modules.inference.restore import make_sampling

    for key, node in _targets(asdict(config), ""):
        _check_target(key, node)
    try:
        make_sampling(**vars(config.sampler))
    except ValueError as error:
        raise ConfigError(f"sampler: {error}") from error


def build(node: Mapping[str, Any], **more: Any) -> Any:
    """Make what a `_target_` node describes, with further arguments.

    Raises:
        ConfigError: it cannot be made of these arguments.
    """
    try:
        return instantiate(dict(node), _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{node.get('_target_')}: {' '.join(str(cause).split())}") from error


def _reason(error: Exception) -> str:
    """The library's message, with its cause where that says more."""
    cause = error.__cause__
    lines = [str(error).strip()] + ([str(cause).strip()] if cause is not None else [])
    return "; ".join(" ".join(line.split()) for line in lines)


def _targets(node: Any, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """All `_target_` nodes at or below a node, with their keys."""
    if not isinstance(node, Mapping):
        return []
    below = [
        found
        for name, child in node.items()
        for found in _targets(child, f"{key}.{name}" if key else str(name))
    ]
    return [(key, node), *below] if "_target_" in node else below


def _check_target(key: str, node: Mapping[str, Any]) -> None:
    """Raise ConfigError where a target does not exist or does not take an argument."""
    try:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
    except Exception as error:
        raise ConfigError(f"{key}._target_: {node['_target_']!r} cannot be found") from error
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    given = {name for name in node if not name.startswith("_")}
    if unknown := sorted(given - set(parameters)):
        raise ConfigError(
            f"unknown key {key}.{unknown[0]}; {node['_target_']} takes {', '.join(parameters)}"
        )
