"""Restoring photographs one by one on one device, or distributed over several."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from datamodules.files import atomic_write
from datamodules.images import BadImage
from modules.inference.device import is_out_of_memory
from pipeline.models.hub import find_model
from pipeline.restore.api import OnStep, Options, Progress, Restoration, Restorer
from pipeline.restore.image_io import (
    FORMATS,
    Photograph,
    check_fits,
    encode_photograph,
    read_photograph,
)
from pipeline.restore.paths import Job, Settings, figure_of, files_of
from pipeline.restore.visualize import StepStrip, comparison, uncertainty_map

logger = logging.getLogger(__name__)

FAULTS = (BadImage, ValueError, OSError, MemoryError, RuntimeError)
"""Errors of one photograph, after which the others can still be restored."""
BAR = "{percentage:3.0f}%|{bar}| {n:.1f} of {total} photographs, {remaining} left{postfix}"
GRACE = 2.0
"""Seconds that a process has to clean up when it is told to exit."""
LEAST_SHOWN = 0.05
"""Least probability of a degradation in a summary, but for the most likely one."""

_loaders: list[Callable[[], Restorer]] = []
"""In a worker process: loads its restorer, once."""


class Outcome(NamedTuple):
    """What became of a photograph."""

    job: Job
    message: str
    """For the user: what was found and written, or what is wrong."""
    is_done: bool


class Run(NamedTuple):
    """Photographs to restore, and with what."""

    jobs: Sequence[Job]
    settings: Settings
    model: str | None
    devices: Sequence[str]
    on_ready: Callable[[], None]


def restore_all(
    jobs: Sequence[Job],
    settings: Settings,
    model: str | None,
    device: str,
    on_ready: Callable[[], None],
    on_done: Callable[[Job], None],
) -> int:
    """Restore photographs with a progress bar, and log what was found in each.

    Args:
        jobs: the photographs.
        settings: how to restore.
        model: as `find_model` takes it.
        device: as `choose_device` takes it, or several with commas; `auto` takes all GPUs.
        on_ready: called once, before anything is written.
        on_done: called with each photograph that was restored.

    Returns:
        How many could not be restored; the log says why.

    Raises:
        BadModel: the model cannot be used.
        ValueError: a device or a setting is wrong.
    """
    run = Run(jobs, settings, model, _devices(device)[: len(jobs)], on_ready)
    failed = 0
    with logging_redirect_tqdm(), tqdm(total=len(jobs), bar_format=BAR) as bar:
        for outcome in (_one_by_one if len(run.devices) == 1 else _distributed)(run, bar):
            bar.n = round(bar.n)
            if outcome.is_done:
                on_done(outcome.job)
                logger.info("%s: %s", outcome.job.source, outcome.message)
            else:
                failed += 1
                logger.error("error: %s", outcome.message)
    return failed


def restore_job(restorer: Restorer, job: Job, settings: Settings, on_step: OnStep) -> Outcome:
    """Restore one photograph; what is wrong with it becomes the outcome."""
    try:
        return Outcome(job, _restore(restorer, job, settings, on_step), True)
    except FAULTS as error:
        if is_out_of_memory(error):
            return Outcome(job, f"{job.source}: out of memory; try --tile 256", False)
        if isinstance(error, RuntimeError):
            raise
        text = str(error) or type(error).__name__
        named = text if str(job.source) in text else f"{job.source}: {text}"
        return Outcome(job, named.partition("\n")[0], False)


def summary(found: Restoration) -> str:
    """The degradations that were found, with their probabilities: `rainy 93 %, snowy 5 %`."""
    (first, most), *others = found.degradation.items()
    shown = [(first, most), *(pair for pair in others if pair[1] >= LEAST_SHOWN)]
    return ", ".join(f"{word} {probability:.0%}" for word, probability in shown)


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Handle a signal by exiting through an exception, so that half-written files are removed.

    The process also ends where that exception is caught on its way, as a process pool does while
    it hands over a result.
    """
    for other in (signal.SIGINT, signal.SIGTERM):  # a second one must not interrupt the removal
        signal.signal(other, lambda number, frame: None)
    timer = threading.Timer(GRACE, os._exit, [1])
    timer.daemon = True
    timer.start()
    sys.exit(1)


def _one_by_one(run: Run, bar: Any) -> Iterator[Outcome]:
    restorer = _load(run.model, run.devices[0], run.settings)
    run.on_ready()
    for number, job in enumerate(run.jobs):
        bar.set_postfix_str(job.source.name)

        def show(progress: Progress, before: int = number) -> None:
            bar.n = before + progress.done / progress.total
            bar.refresh()

        yield restore_job(restorer, job, run.settings, show)
        bar.n = number + 1


def _distributed(run: Run, bar: Any) -> Iterator[Outcome]:
    """One process a device, each of which takes the next photograph when it has finished one."""
    find_model(run.model)  # downloaded and converted once
    run.on_ready()
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for device in run.devices:
        devices.put(device)
    start = (run.model, devices, run.settings)
    pool = ProcessPoolExecutor(len(run.devices), context, _start_worker, start)
    try:
        futures = [pool.submit(_restore_in_worker, job, run.settings) for job in run.jobs]
        for future in as_completed(futures):
            yield future.result()
            bar.update(1)
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, perhaps for lack of memory; run the same command again "
            "to continue"
        ) from error
    except BaseException:  # also where the user of the outcomes is interrupted
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(model: str | None, devices: Any, settings: Settings) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, exit_on_signal)
    _loaders.append(cache(partial(_load, model, devices.get(), settings)))


def _exit_with_parent() -> None:
    """End this process when its parent ends, however that happens."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _restore_in_worker(job: Job, settings: Settings) -> Outcome:
    try:  # the model is loaded here, since errors of the pool's initializer are not passed on
        return restore_job(_loaders[0](), job, settings, lambda progress: None)
    except SystemExit:  # the pool would hand out the next job
        os._exit(1)


def _load(model: str | None, device: str, settings: Settings) -> Restorer:
    """The restorer, once the settings are known to fit it."""
    restorer = Restorer.from_pretrained(model, device=device)
    restorer.check(**_options(settings))
    return restorer


def _devices(device: str) -> list[str]:
    if device == "auto" and torch.cuda.device_count() > 1:
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [name.strip() for name in device.split(",")]


def _options(settings: Settings) -> Options:
    return Options(
        degradation=settings.degradation,
        steps=settings.steps,
        seed=settings.seed,
        tile=settings.tile,  # type: ignore[typeddict-item]
        strength=settings.strength,
        candidates=settings.candidates,
    )


def _restore(restorer: Restorer, job: Job, settings: Settings, on_step: OnStep) -> str:
    """Restore a photograph and write all its files; the message for the user."""
    photograph = read_photograph(job.source)
    format = photograph.format
    if settings.format:
        format = next(name for name, suffix in FORMATS.items() if suffix == f".{settings.format}")
    check_fits(photograph, format)
    steps = settings.steps or restorer.steps
    strip = StepStrip(photograph.pixels, steps) if settings.save_steps else None

    def on_call(progress: Progress) -> None:
        if strip is not None and progress.done * settings.candidates <= progress.total:
            strip.add(progress)
        on_step(progress)

    found = restorer.restore_pixels(photograph.pixels, on_step=on_call, **_options(settings))
    remarks = _write_candidates(job.target, photograph, found, format)
    if settings.compare:
        assert isinstance(found.image, np.ndarray)
        figure = comparison(photograph.pixels, found.image, summary(found))
        _write_figure(figure_of(job.target, "compare"), figure)
    if strip is not None:
        _write_figure(figure_of(job.target, "steps"), strip.picture())
    if found.uncertainty is not None:
        _write_figure(figure_of(job.target, "uncertainty"), uncertainty_map(found.uncertainty))
    tiles = f", {found.tiles} tiles" if found.tiles > 1 else ""
    notes = "".join(f"; {remark}" for remark in remarks)
    return f"{summary(found)} -> {job.target} ({found.seconds:.1f} s{tiles}){notes}"


def _write_candidates(
    target: Path, photograph: Photograph, found: Restoration, format: str
) -> tuple[str, ...]:
    """Write the results; what could not be kept."""
    remarks: tuple[str, ...] = ()
    paths = files_of(target, len(found.candidates), ())
    for path, candidate in zip(paths, found.candidates, strict=True):
        assert isinstance(candidate, np.ndarray)  # as it came in
        data, remarks = encode_photograph(photograph, candidate, format)
        with atomic_write(path) as file:
            file.write(data)
    return remarks


def _write_figure(path: Path, figure: Image.Image) -> None:
    buffer = io.BytesIO()
    figure.save(buffer, "PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
