"""The chain: every stage, what it depends on and what it makes. The work is in a module each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from datamodules.captions import CAPTIONS
from datamodules.shards import INDEX
from pipeline.config import Config, build
from pipeline.stage import Stage

WEIGHTS = "model.safetensors"
REPORT = "report.html"
FIGURES = "metrics.json"


def _work_of(module: str) -> Callable[[Config, Path], None]:
    """The `run` of a module, imported when called: a fresh stage costs no heavy import."""

    def run(config: Config, folder: Path) -> None:
        import_module(module).run(config, folder)

    return run


def shard_index(config: Config) -> Path:
    """What the shards stage makes: the list of shards with their hashes."""
    return SHARDS.folder(config) / INDEX


def caption_file(config: Config) -> Path:
    """What the captions stage makes."""
    return CAPTIONING.folder(config) / CAPTIONS


def controller_weights(config: Config) -> Path:
    """What stage (a) makes."""
    return CONTROLLER.folder(config) / WEIGHTS


def restorer_weights(config: Config) -> Path:
    """What stage (b) makes."""
    return RESTORER.folder(config) / WEIGHTS


def _source_files(config: Config) -> list[Path]:
    files: list[Path] = build(config.shards.source).files()
    return files


def _caption_inputs(config: Config) -> list[Path]:
    files: list[Path] = build(config.captions.captioner).files()
    return [shard_index(config), *files]


def _controller_inputs(config: Config) -> list[Path]:
    weights = config.clip.weights
    local = [Path(weights)] if weights and Path(weights).is_file() else []
    return [shard_index(config), caption_file(config), *local]


SHARDS = Stage(
    name="shards",
    sections=["shards.source", "shards.format"],
    inputs=lambda config: [],
    outputs=[INDEX],
    run=_work_of("pipeline.shards"),
    many_inputs=_source_files,
)
CAPTIONING = Stage(
    name="captions",
    parallel=True,
    sections=["captions"],
    inputs=_caption_inputs,
    outputs=[CAPTIONS],
    run=_work_of("pipeline.captions"),
)
CONTROLLER = Stage(
    name="controller",
    parallel=True,
    sections=["clip", "controller", "data.shares"],
    inputs=_controller_inputs,
    outputs=[WEIGHTS],
    run=_work_of("pipeline.train_controller"),
)
RESTORER = Stage(
    name="restorer",
    parallel=True,
    sections=["sde", "restorer", "data.shares"],
    inputs=lambda config: [shard_index(config), controller_weights(config)],
    outputs=[WEIGHTS],
    run=_work_of("pipeline.train_restorer"),
)
EVALUATION = Stage(
    name="evaluation",
    sections=["sampling", "evaluate"],
    inputs=lambda config: [
        shard_index(config),
        controller_weights(config),
        restorer_weights(config),
    ],
    outputs=[REPORT, FIGURES],
    run=_work_of("pipeline.evaluate"),
)

STAGES = {
    "shards": SHARDS,
    "captions": CAPTIONING,
    "train-controller": CONTROLLER,
    "train-restorer": RESTORER,
    "evaluate": EVALUATION,
}
"""Command name -> stage, in the order of the chain."""
