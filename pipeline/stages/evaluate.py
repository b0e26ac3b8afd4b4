"""Stage: score the model, its ablations and other methods' outputs on sets of images; report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import torch

from datamodules.files import atomic_write, write_json
from datamodules.images import encode_png
from modules.inference.restore import RestorationModel
from pipeline.chain import (
    EVALUATION,
    FIGURES,
    REPORT,
    SCORES,
    evaluated_outputs,
    evaluated_sets,
    evaluated_weights,
)
from pipeline.config import Config, ConfigError
from pipeline.distributed import current_rank
from pipeline.evaluation import board, export
from pipeline.evaluation.ablations import ABLATIONS, CLEAN_CONTENT, check_ablations
from pipeline.evaluation.gallery import CLEAN, gallery
from pipeline.evaluation.inception import fid_of
from pipeline.evaluation.methods import INPUT, MODEL, Input, Method, Outputs, Restorations
from pipeline.evaluation.outputs import find_outputs
from pipeline.evaluation.perceptual import load_perceptual
from pipeline.evaluation.report import write_report
from pipeline.evaluation.rows import Row
from pipeline.evaluation.samples import Sample, key_of
from pipeline.evaluation.sets import read_sets
from pipeline.evaluation.summary import Summary, summarise
from pipeline.evaluation.work import Job, measure
from pipeline.models.store import device_of, load_models
from pipeline.stage import describe, read_record
from pipeline.stages.captions import use_gpu

log = logging.getLogger(__name__)

EXAMPLES = "examples"
"""Folder of a degraded image of each task, to try `make restore` on."""
OURS = (INPUT, MODEL, CLEAN, *ABLATIONS)
"""Names that no other method can have."""


def run(config: Config, folder: Path) -> None:
    """Evaluate, together with the other processes of the run; the first one reports.

    Raises:
        ConfigError: methods or ablations are named that cannot be.
        ValueError: the images to evaluate, a model or another method's outputs cannot be used.
    """
    rank = current_rank()
    use_gpu(rank.local)
    models = load_models(config, *evaluated_weights(config)) if config.evaluate.model else None
    check_ablations(config.evaluate.ablations, models and models.denoiser.network)
    known = models.encoder.words if models else None
    samples = read_sets(evaluated_sets(config), known)
    methods = _methods(config, models, samples, folder)
    perceptual = load_perceptual(device_of(config), with_fid=rank.rank == 0)
    job = Job(samples, methods, perceptual)
    stamp = describe(EVALUATION, config)["fingerprint"]
    rows = measure(job, folder, stamp, config.evaluate.batch_size, rank)
    if rank.rank > 0:
        log.info("rank %d is done", rank.rank)
        return
    faulty = {(row.method, row.sample) for row in rows if row.fault}
    fid, reasons = fid_of(perceptual.fid, samples, methods, faulty) if perceptual.fid else ({}, {})
    missing = perceptual.missing | reasons | _without_clean(samples, config.evaluate.ablations)
    words = known or sorted({sample.task for sample in samples})
    summary = summarise(rows, words, fid, missing)
    _report(config, folder, Evaluated(job, models, rows, summary))
    log.info("%s\nreport: %s", export.to_text(summary), folder / REPORT)


class Evaluated(NamedTuple):
    """All there is to report."""

    job: Job
    models: RestorationModel | None
    rows: list[Row]
    summary: Summary


def check(config: Config) -> None:
    """Refuse settings that cannot work.

    Raises:
        ConfigError: methods, ablations, datasets or models are named that cannot be.
        FileNotFoundError: a folder is missing.
    """
    _check_names(config)
    check_ablations(config.evaluate.ablations)
    own = EVALUATION.folder(config).resolve()
    for folder in (*evaluated_sets(config).values(), *evaluated_outputs(config).values()):
        if folder.resolve().is_relative_to(own):
            raise ConfigError(
                f"{folder} lies in this run's evaluation, which a new one sets aside; give another "
                "run_dir, or copy it elsewhere"
            )
    for name in evaluated_sets(config):
        if name != PurePath(name).name:
            raise ConfigError(f"evaluate.data: {name!r} cannot name a dataset; leave out the path")
    _check_folders(config)
    controller, restorer = config.evaluate.controller, config.evaluate.restorer
    if config.evaluate.pretrained and (controller or restorer):
        raise ConfigError("evaluate.pretrained names a whole model; leave out the two files")
    if restorer and not restorer.endswith(".safetensors") and not controller:
        raise ConfigError(f"evaluate.restorer={restorer}: name its evaluate.controller too")


def _check_folders(config: Config) -> None:
    sets = evaluated_sets(config).values() if config.evaluate.data is not None else ()
    named = [("data", folder) for folder in sets]
    named += [(f"methods.{name}", folder) for name, folder in evaluated_outputs(config).items()]
    for name, folder in named:
        if not folder.is_dir():
            raise FileNotFoundError(f"evaluate.{name}: no folder {folder}")


def _check_names(config: Config) -> None:
    evaluate, others = config.evaluate, evaluated_outputs(config)
    if taken := [name for name in others if name in OURS]:
        raise ConfigError(
            f"evaluate.methods: {', '.join(taken)} is a name of ours; choose others than "
            f"{', '.join(OURS)}"
        )
    if not evaluate.model and not others:
        raise ConfigError("evaluate.model=false and no evaluate.methods: nothing to evaluate")
    if not evaluate.model and evaluate.ablations:
        raise ConfigError("evaluate.ablations are of the model; leave evaluate.model=true")


def _methods(
    config: Config, models: RestorationModel | None, samples: list[Sample], folder: Path
) -> dict[str, Method]:
    """All columns of the table, in order."""
    methods: dict[str, Method] = {INPUT: Input()}
    if models:
        for name in (MODEL, *config.evaluate.ablations):
            methods[name] = Restorations(name, models, folder, config.seed)
    outputs = find_outputs(evaluated_outputs(config), samples)
    return methods | {name: Outputs(files) for name, files in outputs.items()}


def _without_clean(samples: list[Sample], ablations: Sequence[str]) -> dict[str, str]:
    """What cannot be told of images that have no clean one to compare with."""
    if not (count := sum(not sample.has_clean for sample in samples)):
        return {}
    reason = f"of {count} of {len(samples)} images, for they have no clean one"
    names = [
        "PSNR",
        "SSIM",
        "LPIPS",
        "FID",
        *(["clean_content"] if CLEAN_CONTENT in ablations else []),
    ]
    return {f"{', '.join(names[:-1])} and {names[-1]}": reason}


def _report(config: Config, folder: Path, evaluated: Evaluated) -> None:
    job, models, rows, summary = evaluated
    damaged = {row.sample for row in rows if row.method == INPUT and row.fault}
    for word in summary.tasks:
        whole = (s for s in job.samples if s.task == word and key_of(s) not in damaged)
        if (first := next(whole, None)) is None:
            continue
        with atomic_write(folder / EXAMPLES / f"{word}.png") as picture:
            picture.write(encode_png(first.load().degraded))
    cases = gallery(rows, job.samples, job.methods, config.evaluate.gallery_per_task)
    write_json(folder / FIGURES, export.to_json(summary))
    with atomic_write(folder / SCORES) as file:
        file.write(export.to_csv(summary).encode())
    board.show(summary, cases)
    write_report(
        folder / REPORT,
        summary,
        cases,
        config,
        _settings(config, folder, models),
        device_of(config).type,
    )


def _settings(config: Config, folder: Path, models: RestorationModel | None) -> dict[str, str]:
    """What the figures were made with, for people to read."""
    settings = {"run": str(Path(config.run_dir).resolve()), "seed": str(config.seed)}
    for name, folder_of_set in evaluated_sets(config).items():
        settings[f"data {name}".strip()] = str(folder_of_set)
    for name, outputs in evaluated_outputs(config).items():
        settings[f"outputs of {name}"] = str(outputs)
    for name, digest in read_record(folder).get("inputs", {}).items():
        settings[f"hash of {name}"] = digest
    if models:
        cuda = models.device.type == "cuda"
        settings |= {
            "device": torch.cuda.get_device_name(models.device) if cuda else "CPU",
            "sampler": ", ".join(f"{k} {v}" for k, v in vars(config.sampler).items()),
            "restorer": f"{evaluated_weights(config)[1]}, T = {models.denoiser.schedule.T}",
            "controller": str(evaluated_weights(config)[0]),
        }
    return settings
