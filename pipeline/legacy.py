"""Former names: settings are refused with their new names, files with them still load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TRAINING = {
    "weights": "init_from",
    "steps": "max_steps",
    "accumulate": "accumulate_grad_batches",
    "clip_norm": "gradient_clip_val",
    "warmup": "warmup_steps",
    "min_lr_share": "min_lr_ratio",
    "val_every": "val_every_n_steps",
    "val_per_task": "val_images_per_task",
    "keep": "final_weights",
    "jitter": "color_jitter",
}
RENAMED: Mapping[str, str] = {
    "workers": "num_workers",
    "shards.format.tile": "shards.format.tile_size",
    "shards.max_skipped_share": "shards.max_skipped_fraction",
    "shards.source.window": "shards.source.shuffle_window",
    "data.shares": "data.task_weights",
    "data.max_skipped_share": "data.max_skipped_fraction",
    **{f"controller.{old}": f"controller.{new}" for old, new in _TRAINING.items()},
    "controller.view_scale": "controller.crop_scale",
    "controller.windows": "controller.crops_per_side",
    **{f"restorer.{old}": f"restorer.{new}" for old, new in _TRAINING.items()},
    "restorer.patch": "restorer.patch_size",
    "restorer.view": "restorer.context_size",
    "restorer.recompute": "restorer.gradient_checkpointing",
    "restorer.target": "restorer.prediction_type",
    "restorer.late_times": "restorer.timestep_power",
    "restorer.true_words": "restorer.text_prompt_prob",
    "restorer.swapped": "restorer.swapped_prompt_prob",
    "restorer.ema_every": "restorer.ema_update_every",
    "restorer.val_calls": "restorer.val_num_steps",
    "restorer.network": "network",
    "sde": "process",
    "sde.schedule": "process.noise_schedule",
    "sde.T": "process.num_timesteps",
    "sampling": "sampler",
    "sampling.method": "sampler.name",
    "sampling.calls": "sampler.num_steps",
    "sampling.grid": "sampler.timestep_spacing",
    "trainer.log_every": "trainer.log_every_n_steps",
}
"""Key of the configuration as it was -> as it is."""
VALUES: Mapping[str, Mapping[str, str]] = {
    "restorer.prediction_type": {
        "noise": "epsilon",
        "data": "sample",
        "velocity": "v_prediction",
    },
    "restorer.loss": {"data": "l1"},
    "source": {"ready": "existing"},
}
"""Key as it is -> value as it was -> as it is."""
NETWORKS: Mapping[str, str] = {"modules.unet.ConditionalUNet": "unet"}
"""Class of a network, as files of before name it -> its name in the registry."""
TARGETS: Mapping[str, str] = {
    "datamodules.folders.PairFolder": "datamodules.sources.folder.PairFolder",
    "datamodules.synthetic.SyntheticPairs": "datamodules.sources.synthetic.SyntheticPairs",
    "datamodules.photos.EmbeddedPhotos": "datamodules.sources.synthetic.EmbeddedPhotos",
    "datamodules.photos.PhotoFolder": "datamodules.sources.synthetic.PhotoFolder",
    "datamodules.sources.photos.EmbeddedPhotos": "datamodules.sources.synthetic.EmbeddedPhotos",
    "datamodules.sources.photos.PhotoFolder": "datamodules.sources.synthetic.PhotoFolder",
    "datamodules.benchmarks.Benchmarks": "datamodules.sources.benchmarks.Benchmarks",
    "datamodules.ready.ReadyShards": "datamodules.sources.existing.ExistingShards",
    "modules.captioners.BlipCaptioner": "modules.captioning.blip.BlipCaptioner",
    "pipeline.written.captions_from_file": "datamodules.captioners.FileCaptioner",
    "pipeline.stages.captions.captions_from_file": "datamodules.captioners.FileCaptioner",
    "pipeline.captions.captions_from_file": "datamodules.captioners.FileCaptioner",
    "pipeline.written.CaptionsOfRun": "datamodules.captioners.RunCaptions",
    "pipeline.stages.captions.CaptionsOfRun": "datamodules.captioners.RunCaptions",
    "pipeline.captions.CaptionsOfRun": "datamodules.captioners.RunCaptions",
}
"""Classes that settings of before name -> where they are."""
_WRITTEN = "package:pipeline/written_captions"
NODES: Mapping[str, Mapping[str, str]] = {
    f"pipeline.written.{name}_captions": {
        "_target_": "datamodules.captioners.FileCaptioner",
        "path": f"{_WRITTEN}/{name}.jsonl",
    }
    for name in ("demo", "photos")
}
"""Functions that settings of before name -> the node that does the same."""


def new_name(key: str, value: str) -> str:
    """What a setting of before is called today; empty for one that is not of before."""
    if new := VALUES.get(key, {}).get(value):
        return f"{key}={new}"
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if new := RENAMED.get(".".join(parts[:length])):
            return ".".join([new, *parts[length:]])
    return ""


def renamed(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section in a file, under today's names."""
    names = {
        old.removeprefix(f"{section}."): new.rpartition(".")[2]
        for old, new in RENAMED.items()
        if old.startswith(f"{section}.")
    }
    return {names.get(name, name): value for name, value in settings.items()}


def current_model(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a model file says of itself, under today's names."""
    found = dict(about)
    if "windows" in found:
        found["crops_per_side"] = found.pop("windows")
    if "sde" in found:
        found["process"] = renamed("sde", found.pop("sde"))
    if "target" in found:
        target = found.pop("target")
        found["prediction_type"] = VALUES["restorer.prediction_type"].get(target, target)
    if isinstance(network := found.get("network"), dict):
        found["network"] = named_network(network)
    return found


def named_network(network: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network, by its name in the registry where its class was named before."""
    arguments = dict(network)
    if name := NETWORKS.get(str(arguments.get("_target_"))):
        del arguments["_target_"]
        return {"name": name, **arguments}
    return arguments


def current_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a stage, with its settings under today's names and in today's sections."""
    settings = record.get("config", {})
    found = {
        RENAMED.get(section, section): _current(section, node) for section, node in settings.items()
    }
    if isinstance(restorer := found.get("restorer"), dict) and "network" in restorer:
        found["network"] = named_network(restorer.pop("network"))
    return {**record, "config": found}


def _current(section: str, node: Any) -> Any:
    """Settings at and below a key, under today's names and with today's values."""
    new = RENAMED.get(section, section)
    if isinstance(node, Mapping):
        if (target := str(node.get("_target_"))) in NODES:
            return dict(NODES[target])
        return {
            RENAMED.get(f"{section}.{name}", name).rpartition(".")[2]: _current(
                f"{section}.{name}", child
            )
            for name, child in node.items()
        }
    if not isinstance(node, str):
        return node
    return (
        TARGETS.get(node, node)
        if section.endswith("_target_")
        else VALUES.get(new, {}).get(node, node)
    )


_STATES: Mapping[str, str] = {
    "KeepBest": "BestCheckpoint",
    "AfterSteps": "StepCheckpoint",
    "Average": "EmaCallback",
}
"""Callback whose state a checkpoint has, as it was -> as it is."""


def current_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A training checkpoint, its states under the names of today's classes."""
    found = dict(checkpoint)
    if "MixedData" in found:
        found["RestorationDataModule"] = found.pop("MixedData")
    if "callbacks" in found:
        found["callbacks"] = {_state(key): state for key, state in found["callbacks"].items()}
    return found


def _state(key: str) -> str:
    """A callback's key: the name of its class, and what tells it from others of that class."""
    name, brace, rest = key.partition("{")
    return _STATES.get(name, name) + brace + rest
