"""Photographs restored one by one on one device, or shared out to several."""

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
from functools import partial
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
from pipeline.restore.cli import Settings
from pipeline.restore.encoding import check_fits, encode_photograph
from pipeline.restore.paths import Job, files_of, sheet_of
from pipeline.restore.photographs import FORMATS, Photograph, read_photograph
from pipeline.restore.pictures import Canvas, Picture
from pipeline.restore.visualize import StepStrip, compare_sheet, uncertainty_map

logger = logging.getLogger(__name__)

FAULTS = (BadImage, ValueError, OSError, MemoryError, RuntimeError)
"""What may be wrong with one photograph while the others can be restored."""
BAR = "{percentage:3.0f}%|{bar}| {n:.1f} of {total} photographs, {remaining} left{postfix}"
GRACE = 2.0
"""Seconds that a process that is asked to end has for it."""
SHOWN = 0.05
"""Least probability of a degradation that is told."""

_loading: list[Callable[[], Restorer]] = []
"""Loads the restorer of this process, where photographs are shared out to several."""
_restorers: list[Restorer] = []
"""It, once it is loaded."""


class Outcome(NamedTuple):
    """What came of a photograph."""

    job: Job
    told: str
    """For the user: what was found and made, or what is wrong."""
    done: bool


def restore_all(
    jobs: Sequence[Job],
    settings: Settings,
    model: str | None,
    device: str,
    on_ready: Callable[[], None],
    on_done: Callable[[Job], None],
) -> int:
    """Restore photographs, with a bar of how far it is, and say what was found in each.

    Args:
        jobs: the photographs.
        settings: how to restore.
        model: as `find_model` takes it.
        device: as `choose_device` takes it, or several with commas; `auto` takes all GPUs.
        on_ready: told once, before anything is written.
        on_done: told of each photograph that was restored.

    Returns:
        How many could not be restored; the log says why.

    Raises:
        BadModel: the model cannot be used.
        ValueError: a device or a setting is wrong.
    """
    devices = _devices(device)[: len(jobs)]
    failed = 0
    with logging_redirect_tqdm(), tqdm(total=len(jobs), bar_format=BAR) as bar:
        share = _in_turn if len(devices) == 1 else _shared_out
        for outcome in share(jobs, settings, model, devices, on_ready, bar):
            bar.n = round(bar.n)
            if outcome.done:
                on_done(outcome.job)
                logger.info("%s: %s", outcome.job.source, outcome.told)
            else:
                failed += 1
                logger.error("error: %s", outcome.told)
    return failed


def restore_job(restorer: Restorer, job: Job, settings: Settings, on_step: OnStep) -> Outcome:
    """Restore one photograph; whatever is wrong with it is the outcome."""
    try:
        return Outcome(job, _restore(restorer, job, settings, on_step), True)
    except FAULTS as error:
        if is_out_of_memory(error):
            needed = "takes more memory than there is; give --tile 256"
            return Outcome(job, f"{job.source}: {needed}", False)
        if isinstance(error, RuntimeError):
            raise
        text = str(error) or type(error).__name__
        named = text if str(job.source) in text else f"{job.source}: {text}"
        return Outcome(job, named.partition("\n")[0], False)


def _in_turn(
    jobs: Sequence[Job],
    settings: Settings,
    model: str | None,
    devices: Sequence[str],
    on_ready: Callable[[], None],
    bar: Any,
) -> Iterator[Outcome]:
    restorer = _load(model, devices[0], settings)
    on_ready()
    for number, job in enumerate(jobs):
        bar.set_postfix_str(job.source.name)

        def show(progress: Progress, before: int = number) -> None:
            bar.n = before + progress.done / progress.total
            bar.refresh()

        yield restore_job(restorer, job, settings, show)
        bar.n = number + 1


def _shared_out(
    jobs: Sequence[Job],
    settings: Settings,
    model: str | None,
    devices: Sequence[str],
    on_ready: Callable[[], None],
    bar: Any,
) -> Iterator[Outcome]:
    """A process for each device, which takes the next photograph when it is done with one."""
    find_model(model)  # fetched and converted once
    on_ready()
    context = multiprocessing.get_context("spawn")
    waiting = context.Queue()
    for device in devices:
        waiting.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _start, (model, waiting, settings))
    try:
        for future in as_completed([pool.submit(_work, job, settings) for job in jobs]):
            yield future.result()
            bar.update(1)
    except BrokenProcessPool as error:
        raise OSError(
            "a process that restores was ended from outside, perhaps for want of memory; the same "
            "command goes on"
        ) from error
    except BaseException:  # also where the user of the outcomes is interrupted
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(model: str | None, waiting: Any, settings: Settings) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    _loading.append(partial(_load, model, waiting.get(), settings))


def _leave(number: int, frame: FrameType | None) -> None:
    """End by an error, on whose way what is half-written is removed; and where it is caught on
    that way, as the pool does of errors while it hands over a result, end all the same.
    """
    for other in (signal.SIGINT, signal.SIGTERM):  # once: it must not strike amid the removal
        signal.signal(other, lambda number, frame: None)
    timer = threading.Timer(GRACE, os._exit, [1])
    timer.daemon = True
    timer.start()
    sys.exit(1)


def _end_with_parent() -> None:
    """However it ends; nothing else would tell this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job, settings: Settings) -> Outcome:
    try:
        if not _restorers:  # not at the start, where what is wrong could not be told
            _restorers.append(_loading[0]())
        return restore_job(_restorers[0], job, settings, lambda progress: None)
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
    """Restore a photograph and write all that is wanted of it; what to tell the user."""
    photograph = read_photograph(job.source)
    format = _format(photograph, settings)
    check_fits(photograph, format)
    steps = settings.steps or restorer.steps
    strip = StepStrip(photograph.pixels, steps) if settings.save_steps else None

    def on_call(progress: Progress) -> None:
        if strip is not None and progress.done * settings.candidates <= progress.total:
            strip.add(progress)
        on_step(progress)

    found = restorer.restore_pixels(photograph.pixels, on_step=on_call, **_options(settings))
    remarks = _write(job.target, photograph, found, format)
    if settings.compare:
        sheet = compare_sheet(photograph.pixels, _array(found.image), told(found))
        _save(sheet_of(job.target, "compare"), sheet)
    if strip is not None:
        _save(sheet_of(job.target, "steps"), strip.picture())
    if found.uncertainty is not None:
        _save(sheet_of(job.target, "uncertainty"), uncertainty_map(found.uncertainty))
    tiles = f", {found.tiles} tiles" if found.tiles > 1 else ""
    notes = "".join(f"; {remark}" for remark in remarks)
    return f"{told(found)} -> {job.target} ({found.seconds:.1f} s{tiles}){notes}"


def told(found: Restoration) -> str:
    """Which degradations were found, and how surely: `rainy 93 %, snowy 5 %`."""
    likely = [(w, p) for i, (w, p) in enumerate(found.degradation.items()) if not i or p >= SHOWN]
    return ", ".join(f"{word} {share:.0%}" for word, share in likely)


def _format(photograph: Photograph, settings: Settings) -> str:
    by_suffix = {suffix.lstrip("."): name for name, suffix in FORMATS.items()}
    return by_suffix[settings.format] if settings.format else photograph.format


def _write(
    target: Path, photograph: Photograph, found: Restoration, format: str
) -> tuple[str, ...]:
    """Write the results; what could not be kept."""
    remarks: tuple[str, ...] = ()
    paths = files_of(target, len(found.candidates), ())
    for path, candidate in zip(paths, found.candidates, strict=True):
        data, remarks = encode_photograph(photograph, _array(candidate), format)
        with atomic_write(path) as file:
            file.write(data)
    return remarks


def _array(picture: Picture) -> Canvas:
    assert isinstance(picture, np.ndarray)  # as it came in
    return picture


def _save(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
