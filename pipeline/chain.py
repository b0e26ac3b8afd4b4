"""The chain: every stage, what it depends on and what it makes. The work is in a module each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from datamodules.captions import CAPTIONS
from datamodules.shards.index import INDEX
from modules.metrics.weight_files import found_weights
from pipeline.config import Config, ConfigError, build
from pipeline.frozen_imports import frozen_imports
from pipeline.models.hub import find_model
from pipeline.stage import Stage

WEIGHTS = "model.safetensors"
REPORT = "report.html"
FIGURES = "metrics.json"
SCORES = "scores.csv"


def _imported(module: str) -> Any:
    with frozen_imports():
        return import_module(module)


def _work_of(module: str) -> Callable[[Config, Path], None]:
    """The `run` of a module, imported when called: a fresh stage costs no heavy import."""

    def run(config: Config, folder: Path) -> None:
        _imported(module).run(config, folder)

    return run


def _check_of(module: str) -> Callable[[Config], None]:
    """The `check` of a module, imported when called."""

    def check(config: Config) -> None:
        _imported(module).check(config)

    return check


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
    clip, start = config.clip.weights, config.controller.init_from
    named = start or (clip if clip and Path(clip).is_file() else None)
    return [shard_index(config), caption_file(config), *([Path(named)] if named else [])]


def _restorer_inputs(config: Config) -> list[Path]:
    start = config.restorer.init_from
    return [shard_index(config), controller_weights(config), *([Path(start)] if start else [])]


def evaluated_sets(config: Config) -> dict[str, Path]:
    """The folders of images to evaluate, by the names of the datasets; one may have none yet.

    Raises:
        ConfigError: `evaluate.data` is something else.
    """
    data = config.evaluate.data
    if data is None:
        return {"": SHARDS.folder(config)}
    if isinstance(data, str):
        return {"": Path(data)}
    if not isinstance(data, dict) or not all(isinstance(path, str) for path in data.values()):
        raise ConfigError(f"evaluate.data={data}: give a folder, or {{NAME: FOLDER, ...}}")
    return {str(name): Path(path) for name, path in data.items()}


def evaluated_outputs(config: Config) -> dict[str, Path]:
    """The folders of other methods' outputs, by the names of the methods."""
    return {name: Path(folder) for name, folder in (config.evaluate.methods or {}).items()}


def evaluates_own_model(config: Config) -> bool:
    """Whether it is this run's model that is evaluated: neither a named one, nor none at all."""
    evaluate = config.evaluate
    return bool(evaluate.model and not evaluate.pretrained and not evaluate.restorer)


def evaluated_weights(config: Config) -> tuple[Path, Path]:
    """The controller and the restorer to evaluate."""
    controller, restorer = config.evaluate.controller, config.evaluate.restorer
    if config.evaluate.pretrained:
        found = find_model(config.evaluate.pretrained)
        return found.controller, found.restorer
    return (
        Path(controller) if controller else controller_weights(config),
        Path(restorer) if restorer else restorer_weights(config),
    )


def _evaluation_inputs(config: Config) -> list[Path]:
    # The run's own shards must be there; of other sets, the stage says what is wrong with them.
    own = SHARDS.folder(config)
    indices = [folder / INDEX for folder in evaluated_sets(config).values()]
    found = [path for path in indices if path.parent == own or path.is_file()]
    return [*found, *(evaluated_weights(config) if config.evaluate.model else ())]


def _evaluated_files(config: Config) -> list[Path]:
    """Images in folders, what other methods have made of them, and the weights of metrics."""
    sets = [f for f in evaluated_sets(config).values() if not (f / INDEX).is_file()]
    folders = [*sets, *evaluated_outputs(config).values()]
    images = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [*images, *found_weights()]


EVALUATED = ("data", "model", "pretrained", "controller", "restorer", "methods", "ablations")
"""What the scores depend on; the other settings are of speed and of the page."""

SHARDS = Stage(
    name="shards",
    sections=["shards.source", "shards.format"],
    inputs=lambda config: [],
    outputs=[INDEX],
    run=_work_of("pipeline.stages.shards"),
    many_inputs=_source_files,
)
CAPTIONING = Stage(
    name="captions",
    parallel=True,
    sections=["captions"],
    inputs=_caption_inputs,
    outputs=[CAPTIONS],
    run=_work_of("pipeline.stages.captions"),
)
CONTROLLER = Stage(
    name="controller",
    parallel=True,
    sections=["clip", "controller", "data.task_weights"],
    inputs=_controller_inputs,
    outputs=[WEIGHTS],
    run=_work_of("pipeline.stages.train_controller"),
    check=_check_of("pipeline.stages.train_controller"),
)
RESTORER = Stage(
    name="restorer",
    parallel=True,
    sections=["process", "network", "restorer", "data.task_weights"],
    inputs=_restorer_inputs,
    outputs=[WEIGHTS],
    run=_work_of("pipeline.stages.train_restorer"),
    check=_check_of("pipeline.stages.train_restorer"),
)
EVALUATION = Stage(
    name="evaluation",
    parallel=True,
    sections=["sampler", *(f"evaluate.{name}" for name in EVALUATED)],
    inputs=_evaluation_inputs,
    outputs=[REPORT, FIGURES, SCORES],
    run=_work_of("pipeline.stages.evaluate"),
    check=_check_of("pipeline.stages.evaluate"),
    many_inputs=_evaluated_files,
)

STAGES = {
    "shards": SHARDS,
    "captions": CAPTIONING,
    "train-controller": CONTROLLER,
    "train-restorer": RESTORER,
    "evaluate": EVALUATION,
}
"""Command name -> stage, in the order of the chain."""


def chain(config: Config, upto: str) -> list[str]:
    """The stages up to one; of an evaluation of another model, or of none, those that it reads."""
    evaluate, names = config.evaluate, list(STAGES)
    names = names[: names.index(upto) + 1]
    if upto != "evaluate" or evaluates_own_model(config):
        return names
    if evaluate.model and not evaluate.pretrained and not evaluate.controller:
        return [name for name in names if name != "train-restorer"]
    return ["shards", upto] if evaluate.data is None else [upto]
