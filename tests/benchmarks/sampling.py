"""`python -m tests.benchmarks.sampling [--out FOLDER] [key=value ...]`: few calls beside a hundred.

Takes the trained models and the validation images of a run, such as those of `make demo-train` with
`run_dir=outputs/demo-train`. About ten minutes on two cores for these.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.files import atomic_write
from modules.clip.daclip import Embeddings
from modules.diffusion.samplers import make_sampler
from modules.diffusion.timesteps import uniform_timesteps
from modules.inference.restore import RestorationModel as Models
from modules.inference.restore import Sampling, restore
from pipeline.compose import load_config
from pipeline.distributed import device_of
from pipeline.evaluation.data import read_sets
from pipeline.models.store import load_models
from pipeline.stages.evaluate import evaluated_model
from pipeline.stages.shards import STAGE as SHARDS
from tests.benchmarks.machine import load, machine
from tests.benchmarks.plain import make_plain
from tests.benchmarks.plot import CallsPanel, figure
from tests.benchmarks.quality import (
    FEW,
    MANY,
    Curves,
    Quality,
    degraded_quality,
    measure_quality,
    quality_by_calls,
    some_of_each,
)
from tests.benchmarks.table import Row, Target, markdown, write_results

log = logging.getLogger(__name__)

REFERENCE = Sampling(make_sampler("posterior"), 100, uniform_timesteps)
"""The reference's way: a hundred steps of the posterior."""
SIDE = 256
"""Of the images whose restoring is timed, in pixels."""
ROUNDS = 3
FEWER_CALLS, LESS_TIME = Target(10, at_least=True), Target(12, at_least=True)
EULER = ("sde", "ode")
CUDA_SIDES = (256, 512, 1024, 2048)
Restoring = Callable[[], Tensor]


def main() -> None:
    """Measure everything; log a table, draw the picture, write both."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.sampling", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-sampling"))
    parser.add_argument("--images", type=int, default=2, help="of each task, for the quality")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see conf/config.yaml")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    config = load_config(arguments.overrides)
    facts = machine({}) | {"threads": torch.get_num_threads(), "run": str(config.run_dir)}
    files = evaluated_model(config)
    models = load_models(files.controller, files.restorer, files.sampler, device_of(config))
    everything = read_sets({"validation": SHARDS.folder(config)}, models.encoder.words)
    samples = some_of_each(everything, arguments.images)
    facts["images"] = f"{len(samples)} of the run's validation"
    before = degraded_quality(samples)
    curves = quality_by_calls(models, samples, FEW, MANY, config.seed)
    found = "\n".join(table(curves, before))
    with atomic_write(arguments.out / "quality.md") as file:
        file.write(f"{found}\n".encode())
    with atomic_write(arguments.out / "quality.svg") as file:
        file.write(picture(curves, before).encode())
    rows = [
        *quality_rows(
            *(
                measure_quality(models, samples, sampling, config.seed)
                for sampling in (models.sampling, REFERENCE)
            )
        ),
        *time_rows(models, SIDE, ROUNDS),
        *cuda_rows(models, CUDA_SIDES),
    ]
    facts["load when it ended"] = load()
    write_results(arguments.out, "sampling", rows, facts, NOTES)
    log.info("\n%s\n\n%s", found, markdown(rows))
    log.info("written to %s", arguments.out)


def quality_rows(ours: Quality, reference: Quality) -> list[Row]:
    """How far the default's quality is below that of a hundred posterior steps."""
    part = "quality, default - reference"
    return [
        Row(part, "PSNR", "dB", [ours.psnr - reference.psnr], Target(-0.1, at_least=True)),
        Row(part, "SSIM", "", [ours.ssim - reference.ssim], Target(-0.005, at_least=True)),
    ]


def time_rows(models: Models, side: int, rounds: int) -> list[Row]:
    """Wall time of an image, the default beside the reference's way with plain attention."""
    part = f"time, {models.device.type}, {side}²"
    plain = models.denoiser._replace(network=make_plain(copy.deepcopy(models.denoiser.network)))
    ours = models.sampling
    seconds = _alternate(
        {
            "reference": _restoring(
                models._replace(denoiser=plain, sampling=REFERENCE, dtype=torch.float32), side
            ),
            "default": _restoring(models._replace(dtype=torch.float32), side),
        },
        rounds,
    )
    pairs = zip(seconds["reference"], seconds["default"], strict=True)
    return [
        Row(
            part,
            "network calls, reference / default",
            "x",
            [REFERENCE.num_steps / ours.num_steps],
            FEWER_CALLS,
        ),
        *(Row(part, name, "s/image", times) for name, times in seconds.items()),
        Row(part, "reference / default", "x", [a / b for a, b in pairs], LESS_TIME),
    ]


def cuda_rows(models: Models, sides: Sequence[int]) -> list[Row]:
    """Seconds an image of the run's network on a GPU: float32, bfloat16, compiled."""
    compiled = copy.deepcopy(models.denoiser.network)
    compiled.compile()
    kinds = {
        "float32": models._replace(dtype=torch.float32),
        "bfloat16": models._replace(dtype=torch.bfloat16),
        "bfloat16, compiled": models._replace(
            denoiser=models.denoiser._replace(network=compiled), dtype=torch.bfloat16
        ),
    }
    rows = []
    for side in sides:
        seconds: dict[str, list[float]] = {}
        reason = "" if models.device.type == "cuda" else "the models are not on a CUDA device"
        if not reason:
            try:
                seconds = _alternate(
                    {name: _restoring(model, side) for name, model in kinds.items()},
                    ROUNDS,
                )
            except torch.OutOfMemoryError:
                reason = "out of memory"
        rows += [
            Row(f"time, CUDA, {side}²", name, "s/image", seconds.get(name, []), reason=reason)
            for name in kinds
        ]
    return rows


def _restoring(model: Models, side: int) -> Restoring:
    """Restoring a random image, whole, whose embeddings are random too."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, side, side, generator=generator)
    D = int(model.denoiser.network.context_dim)  # type: ignore[arg-type]
    content, degradation = torch.randn(2, 1, D, generator=generator).to(model.device)
    embeddings = Embeddings(content=content, degradation=degradation)
    return lambda: restore(model, image, [0], embeddings=embeddings, tile=None)


def _alternate(ways: Mapping[str, Restoring], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in turn, after a round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for counted in [False] + [True] * rounds:
        for name, restoring in ways.items():
            started = time.perf_counter()
            restoring().sum().item()  # waits for the device
            if counted:
                seconds[name].append(time.perf_counter() - started)
            log.info("%s: %.2f s", name, time.perf_counter() - started)
    return seconds


def table(curves: Curves, before: Quality) -> list[str]:
    """PSNR / SSIM of every sampler at every number of calls, as Markdown."""
    head = ["sampler, timestep spacing", *(f"{calls} calls" for calls in (*FEW, *MANY))]
    lines = [head, ["---"] * len(head)]
    for (name, spacing), points in curves.items():
        found = [points.get(calls) for calls in (*FEW, *MANY)]
        cells = [f"{q.psnr:.2f} / {q.ssim:.3f}" if q else "" for q in found]
        lines.append([f"{name}, {spacing}", *cells])
    degraded = f"degraded images: {before.psnr:.2f} dB / {before.ssim:.3f}"
    return [f"| {' | '.join(line)} |" for line in lines] + ["", degraded]


def picture(curves: Curves, before: Quality) -> str:
    """PSNR and SSIM over the calls, without the Euler steps, which need many of them."""
    curves = {method: points for method, points in curves.items() if method[0] not in EULER}
    return figure([_panel("PSNR, dB", 0, curves, before), _panel("SSIM", 1, curves, before)])


def _panel(axis: str, score: int, curves: Curves, before: Quality) -> CallsPanel:
    lines = {
        f"{name}, {spacing}": [(calls, quality[score]) for calls, quality in points.items()]
        for (name, spacing), points in curves.items()
    } | {"degraded": [(calls, before[score]) for calls in (*FEW, *MANY)]}
    form: Callable[[float], str] = "{:.2f}".format if score == 0 else "{:.3f}".format
    last = {label: form(max(value for _, value in points)) for label, points in lines.items()}
    ticks = (*FEW, *MANY)
    return CallsPanel("Quality against network calls", axis, lines, last, "best", ticks, log=False)


NOTES = (
    "reference: 100 steps of the posterior on the same weights; in the times, with attention by "
    "its formula and no memory layout. default: what the run's `sampling` says.",
    "quality: means over images, RGB, a border of 4 pixels cut, of 8-bit results.",
    "time: restoring alone, embeddings given, one image at a time; each way in turn.",
)


if __name__ == "__main__":
    main()
