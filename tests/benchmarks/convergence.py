"""`python -m tests.benchmarks.convergence [--out FILE]`: error against network calls, per sampler.

On the Gaussian image, where nothing but the sampler errs, with a table fine enough that whole
times do not matter. Exact and without drawing, so every run finds the same; it takes seconds.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from datamodules.files import atomic_write
from modules.diffusion.samplers import SAMPLERS, Sampler, make_sampler
from modules.diffusion.schedule import NoiseSchedule, make_noise_schedule
from modules.diffusion.timesteps import TIMESTEP_SPACINGS, TimestepSpacing
from pipeline.curves import Points
from tests.benchmarks.gaussian import Gaussian
from tests.benchmarks.plot import CallsPanel, figure

log = logging.getLogger(__name__)

T = 4096
STEPS = (4, 8, 16, 32, 64, 128, 256)
LEGS = 2
"""Doublings of the number of steps, the last ones, over which the slope is taken."""

Curves = Mapping[str, Mapping[str, Points]]
"""Timestep spacing -> sampler -> (calls, error)."""


def main() -> None:
    """Measure, log the table, and draw the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.convergence", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("docs/convergence.svg"), metavar="FILE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    curves = measure()
    log.info("%s\n%s", __doc__.partition("\n\n")[2].strip(), table(curves))
    with atomic_write(arguments.out) as file:
        file.write(picture(curves).encode())
    log.info("drawn as %s", arguments.out)


def measure() -> Curves:
    """The errors of every sampler under every timestep spacing."""
    schedule = make_noise_schedule(num_timesteps=T, dtype=torch.float64)
    return {
        spacing: {name: _points(make_sampler(name), schedule, times) for name in SAMPLERS}
        for spacing, times in TIMESTEP_SPACINGS.items()
    }


def _points(sampler: Sampler, schedule: NoiseSchedule, times: TimestepSpacing) -> Points:
    """Wasserstein-2 distances of the sampled image's law from the true one, in image units."""
    image = Gaussian()
    start, clean = image.law(schedule, T), image.law(schedule, 0)
    return [
        (
            sampler.network_calls(steps),
            image.sampled(sampler, schedule, times(schedule, steps), start)[-1].distance(clean),
        )
        for steps in STEPS
    ]


def slope(points: Points) -> float:
    """The measured order: minus the slope of log error over log calls, of the last doublings."""
    return math.log2(points[-1 - LEGS][1] / points[-1][1]) / LEGS


def table(curves: Curves) -> str:
    """The errors and orders as a Markdown table."""
    head = ["timestep spacing", "sampler", *(f"{steps} steps" for steps in STEPS), "order"]
    rows = [
        [spacing, name, *(f"{error:.1e}" for _, error in points), f"{slope(points):.2f}"]
        for spacing, samplers in curves.items()
        for name, points in samplers.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def picture(curves: Curves) -> str:
    """An SVG picture, a panel for each timestep spacing."""
    return figure(
        [
            CallsPanel(
                title=f"timestep spacing: {spacing}",
                axis="W2 distance to the law of the clean image",
                curves=samplers,
                last={name: f"{slope(points):.2f}" for name, points in samplers.items()},
                head="order",
                ticks=STEPS,
                log=True,
            )
            for spacing, samplers in curves.items()
        ]
    )


if __name__ == "__main__":
    main()
