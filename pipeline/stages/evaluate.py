"""Stage: score the model, its ablations and other methods' outputs on sets of images; report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from datamodules.files import atomic_write, write_json
from datamodules.shards.index import INDEX
from modules.metrics import METRICS, find_weights
from pipeline.config import Config, ConfigError, Section
from pipeline.distributed import current_rank, device_of, use_own_gpu
from pipeline.legacy import current_record
from pipeline.models.hub import ModelFiles, find_model, locate_model
from pipeline.sections import SamplerConfig, SamplerOverrides, check_sampler
from pipeline.stage import Stage, describe, read_record
from pipeline.stages import shards, train_controller, train_restorer

if TYPE_CHECKING:
    from modules.inference.restore import RestorationModel
    from pipeline.evaluation.data import Sample
    from pipeline.evaluation.methods import Method
    from pipeline.evaluation.rows import Job, Row
    from pipeline.evaluation.summary import Summary

log = logging.getLogger(__name__)

REPORT, FIGURES, SCORES = "report.html", "metrics.json", "scores.csv"
EXAMPLES = "examples"
"""Folder of a degraded image of each task, to try `make restore` on."""


class EvaluateConfig(Section, name="evaluate"):
    """Measuring; `data` is a folder, or names of datasets with theirs."""

    data: str | dict[str, str] | None
    model: bool
    pretrained: str | None
    controller: str | None
    restorer: str | None
    sampler: SamplerOverrides
    methods: dict[str, str] | None
    ablations: list[str]
    batch_size: int = Field(ge=1)
    gallery_per_task: int = Field(ge=0)


def evaluated_sets(config: Config) -> dict[str, Path]:
    """The folders of images to evaluate, by the names of the datasets; one may have none yet."""
    data = config[EvaluateConfig].data
    if data is None:
        return {"": shards.STAGE.folder(config)}
    if isinstance(data, str):
        return {"": Path(data)}
    return {name: Path(path) for name, path in data.items()}


def evaluated_outputs(config: Config) -> dict[str, Path]:
    """The folders of other methods' outputs, by the names of the methods."""
    methods = config[EvaluateConfig].methods or {}
    return {name: Path(folder) for name, folder in methods.items()}


def evaluates_own_model(config: Config) -> bool:
    """Whether it is this run's model that is evaluated: neither a named one, nor none at all."""
    settings = config[EvaluateConfig]
    return bool(settings.model and not settings.pretrained and not settings.restorer)


def evaluated_model(config: Config) -> ModelFiles:
    """The files of the model to evaluate, and how it samples; fetched where they are not here."""
    settings = config[EvaluateConfig]
    if settings.pretrained:
        found = find_model(settings.pretrained)
        sampler = settings.sampler.applied_to(SamplerConfig(**found.sampler))
        return found._replace(sampler=sampler.model_dump())
    controller, restorer = _own_files(config)
    sampler = settings.sampler.applied_to(config[SamplerConfig])
    return ModelFiles(controller, restorer, sampler.model_dump())


def _own_files(config: Config) -> tuple[Path, Path]:
    settings = config[EvaluateConfig]
    return (
        Path(settings.controller or train_controller.controller_weights(config)),
        Path(settings.restorer or train_restorer.restorer_weights(config)),
    )


def _run(config: Config, folder: Path) -> None:
    """Evaluate, together with the other processes of the run; the first one reports.

    Raises:
        ConfigError: methods or ablations are named that cannot be.
        ValueError: the images to evaluate, a model or another method's outputs cannot be used.
    """
    from pipeline.evaluation import export
    from pipeline.evaluation.ablations import check_ablations
    from pipeline.evaluation.data import read_sets
    from pipeline.evaluation.rows import Job, measure
    from pipeline.evaluation.scoring import load_scorers, score_sets
    from pipeline.evaluation.summary import summarise
    from pipeline.models.store import load_models

    rank, settings = current_rank(), config[EvaluateConfig]
    use_own_gpu(rank)
    models = None
    if settings.model:
        files = evaluated_model(config)
        allow = config.network_classes if evaluates_own_model(config) else []
        device = device_of(config)
        models = load_models(files.controller, files.restorer, files.sampler, device, allow)
    check_ablations(settings.ablations, models and models.denoiser.network)
    known = models.encoder.words if models else None
    samples = read_sets(evaluated_sets(config), known)
    methods = _methods(config, models, samples, folder)
    scorers = load_scorers(device_of(config), with_sets=rank.rank == 0)
    job = Job(samples, methods, scorers.of_images)
    stamp = describe(STAGE, config)["fingerprint"]
    rows = measure(job, folder, stamp, settings.batch_size, rank)
    if rank.rank > 0:
        log.info("rank %d is done", rank.rank)
        return
    faulty = {(row.method, row.sample) for row in rows if row.fault}
    of_sets, reasons = score_sets(scorers.of_sets, samples, methods, faulty)
    missing = scorers.missing | reasons | _without_clean(samples, settings.ablations)
    words = known or sorted({sample.task for sample in samples})
    summary = summarise(rows, words, of_sets, missing)
    _report(config, folder, Evaluated(job, models, rows, summary))
    log.info("%s\nreport: %s", export.to_text(summary), folder / REPORT)


class Evaluated(NamedTuple):
    """All there is to report."""

    job: Job
    models: RestorationModel | None
    rows: list[Row]
    summary: Summary


def _check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: methods, ablations, datasets or models are named that cannot be.
        FileNotFoundError: a folder is missing.
    """
    from pipeline.evaluation.ablations import check_ablations

    settings = config[EvaluateConfig]
    _check_names(config)
    check_sampler(config)
    check_ablations(settings.ablations)
    own = STAGE.folder(config).resolve()
    for folder in (*evaluated_sets(config).values(), *evaluated_outputs(config).values()):
        if folder.resolve().is_relative_to(own):
            raise ConfigError(
                f"{folder} lies in this run's evaluation folder, which is moved away when the "
                "evaluation starts again; give another run_dir, or copy it elsewhere"
            )
    for name in evaluated_sets(config):
        if name != PurePath(name).name:
            raise ConfigError(f"evaluate.data: {name!r} cannot name a dataset; leave out the path")
    _check_folders(config)
    controller, restorer = settings.controller, settings.restorer
    if settings.pretrained and (controller or restorer):
        raise ConfigError("evaluate.pretrained names a whole model; leave out the two files")
    if settings.pretrained and config.is_overridden("sampler"):
        raise ConfigError(
            f"evaluate.pretrained={settings.pretrained} uses the model's own sampler, so sampler.* "
            "has no effect; use evaluate.sampler.num_steps=VALUE"
        )
    if restorer and not restorer.endswith(".safetensors") and not controller:
        raise ConfigError(f"evaluate.restorer={restorer}: name its evaluate.controller too")


def _check_folders(config: Config) -> None:
    sets = evaluated_sets(config).values() if config[EvaluateConfig].data is not None else ()
    named = [("data", folder) for folder in sets]
    named += [(f"methods.{name}", folder) for name, folder in evaluated_outputs(config).items()]
    for name, folder in named:
        if not folder.is_dir():
            raise FileNotFoundError(f"evaluate.{name}: no folder {folder}")


def _check_names(config: Config) -> None:
    from pipeline.evaluation.ablations import ABLATIONS
    from pipeline.evaluation.gallery import CLEAN
    from pipeline.evaluation.methods import INPUT, MODEL

    evaluate, others = config[EvaluateConfig], evaluated_outputs(config)
    ours = (INPUT, MODEL, CLEAN, *ABLATIONS)
    if taken := [name for name in others if name in ours]:
        raise ConfigError(
            f"evaluate.methods: {', '.join(taken)} is reserved; choose a name other than "
            f"{', '.join(ours)}"
        )
    if not evaluate.model and not others:
        raise ConfigError("evaluate.model=false and no evaluate.methods: nothing to evaluate")
    if not evaluate.model and evaluate.ablations:
        raise ConfigError("evaluate.ablations need the model; set evaluate.model=true")


def _methods(
    config: Config, models: RestorationModel | None, samples: list[Sample], folder: Path
) -> dict[str, Method]:
    """All columns of the table, in order."""
    from pipeline.evaluation.data import find_outputs
    from pipeline.evaluation.methods import INPUT, MODEL, Input, Outputs, Restorations

    methods: dict[str, Method] = {INPUT: Input()}
    if models:
        for name in (MODEL, *config[EvaluateConfig].ablations):
            methods[name] = Restorations(name, models, folder, config.seed)
    outputs = find_outputs(evaluated_outputs(config), samples)
    return methods | {name: Outputs(files) for name, files in outputs.items()}


def _without_clean(samples: list[Sample], ablations: Sequence[str]) -> dict[str, str]:
    """What cannot be told of images that have no clean one to compare with."""
    if not (count := sum(not sample.has_clean for sample in samples)):
        return {}
    reason = f"of {count} of {len(samples)} images, for they have no clean one"
    names = list(dict.fromkeys(m.label for m in METRICS.values() if m.needs_reference))
    names += [name for name in ablations if name == "clean_content"]
    return {f"{', '.join(names[:-1])} and {names[-1]}": reason}


def _report(config: Config, folder: Path, evaluated: Evaluated) -> None:
    from datamodules.images import encode_png
    from pipeline.evaluation import export
    from pipeline.evaluation.data import key_of
    from pipeline.evaluation.gallery import gallery
    from pipeline.evaluation.methods import INPUT
    from pipeline.evaluation.report import write_report

    job, models, rows, summary = evaluated
    damaged = {row.sample for row in rows if row.method == INPUT and row.fault}
    for word in summary.tasks:
        whole = (s for s in job.samples if s.task == word and key_of(s) not in damaged)
        if (first := next(whole, None)) is None:
            continue
        with atomic_write(folder / EXAMPLES / f"{word}.png") as picture:
            picture.write(encode_png(first.load().degraded))
    cases = gallery(rows, job.samples, job.methods, config[EvaluateConfig].gallery_per_task)
    write_json(folder / FIGURES, export.to_json(summary))
    with atomic_write(folder / SCORES) as file:
        file.write(export.to_csv(summary).encode())
    export.show(summary, cases)
    write_report(
        folder / REPORT,
        summary,
        cases,
        _training_records(config),
        _settings(config, folder, models),
        device_of(config).type,
    )


def _settings(config: Config, folder: Path, models: RestorationModel | None) -> dict[str, str]:
    """What the figures were made with, for people to read."""
    settings = {"run": str(config.run_dir.resolve()), "seed": str(config.seed)}
    for name, folder_of_set in evaluated_sets(config).items():
        settings[f"data {name}".strip()] = str(folder_of_set)
    for name, outputs in evaluated_outputs(config).items():
        settings[f"outputs of {name}"] = str(outputs)
    for name, digest in read_record(folder).get("inputs", {}).items():
        settings[f"hash of {name}"] = digest
    if models:
        import torch

        files, cuda = evaluated_model(config), models.device.type == "cuda"
        settings |= {
            "device": torch.cuda.get_device_name(models.device) if cuda else "CPU",
            "sampler": ", ".join(f"{k} {v}" for k, v in files.sampler.items()),
            "restorer": f"{files.restorer}, T = {models.denoiser.schedule.T}",
            "controller": str(files.controller),
        }
    return settings


def _training_records(config: Config) -> list[dict[str, Any]]:
    """The records of both trainings, where it is this run's model that is evaluated."""
    if not evaluates_own_model(config):
        return []
    trained = (train_controller.STAGE, train_restorer.STAGE)
    return [current_record(read_record(stage.folder(config))) for stage in trained]


def _prepare(config: Config) -> None:
    """Fetch the model to evaluate."""
    if config[EvaluateConfig].model and config[EvaluateConfig].pretrained:
        evaluated_model(config)


def _needs(config: Config) -> list[Stage]:
    settings, needed = config[EvaluateConfig], list[Stage]()
    if settings.data is None:
        needed.append(shards.STAGE)
    if settings.model and not settings.pretrained:
        needed += [] if settings.controller else [train_controller.STAGE]
        needed += [] if settings.restorer else [train_restorer.STAGE]
    return needed


def _inputs(config: Config) -> list[Path]:
    # The run's own shards must be there; of other sets, the stage says what is wrong with them.
    settings, own = config[EvaluateConfig], shards.STAGE.folder(config)
    indices = [folder / INDEX for folder in evaluated_sets(config).values()]
    found = [path for path in indices if path.parent == own or path.is_file()]
    if not settings.model:
        return found
    if settings.pretrained:
        model = locate_model(settings.pretrained)
        return [*found, *(path for path in (model.controller, model.restorer, model.about) if path)]
    return [*found, *_own_files(config)]


def _evaluated_files(config: Config) -> list[Path]:
    """Images in folders, what other methods have made of them, and the weights of metrics."""
    sets = [f for f in evaluated_sets(config).values() if not (f / INDEX).is_file()]
    folders = [*sets, *evaluated_outputs(config).values()]
    images = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [*images, *find_weights()]


EVALUATED = ("data", "model", "pretrained", "controller", "restorer", "methods", "ablations")
"""What the scores depend on; the other settings are of speed and of the page."""

STAGE = Stage(
    name="evaluation",
    command="evaluate",
    sections=["sampler", "evaluate.sampler", *(f"evaluate.{name}" for name in EVALUATED)],
    outputs=[REPORT, FIGURES, SCORES],
    needs=_needs,
    inputs=_inputs,
    many_inputs=_evaluated_files,
    prepare=_prepare,
    check=_check,
    run=_run,
    parallel=True,
)
