"""`python -m pipeline.bench.convergence [--out FILE]`: error against network calls, per sampler.

On the Gaussian image, where nothing but the sampler errs, with a table fine enough that whole
times do not matter. Exact and without drawing, so every run finds the same; it takes seconds.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from datamodules.files import atomic_write
from modules.samplers import SAMPLERS, Step
from modules.sde import Tables, make_tables
from modules.time_grids import GRIDS, Grid
from pipeline.bench.gaussian import Gaussian
from pipeline.charts import COLOURS, log_ticks, short
from pipeline.curves import Points

log = logging.getLogger(__name__)

T = 4096
CALLS = (4, 8, 16, 32, 64, 128, 256)
LEGS = 2
"""Doublings of the number of calls, the last ones, over which the slope is taken."""

Curves = Mapping[str, Mapping[str, Points]]
"""Grid -> sampler -> (calls, error)."""

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 180, 46, 44


def main() -> None:
    """Measure, log the table, and draw the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.bench.convergence", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("docs/convergence.svg"), metavar="FILE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    curves = measure()
    log.info("%s\n%s", __doc__.partition("\n\n")[2].strip(), table(curves))
    with atomic_write(arguments.out) as file:
        file.write(figure(curves).encode())
    log.info("drawn as %s", arguments.out)


def measure() -> Curves:
    """The errors of every sampler on every grid."""
    tables = make_tables(T=T, dtype=torch.float64)
    return {
        grid: {name: _points(step, tables, times) for name, step in SAMPLERS.items()}
        for grid, times in GRIDS.items()
    }


def _points(step: Step, tables: Tables, times: Grid) -> Points:
    """Wasserstein-2 distances of the sampled image's law from the true one, in image units."""
    image = Gaussian()
    start, clean = image.law(tables, T), image.law(tables, 0)
    return [
        (calls, image.sampled(step, tables, times(tables, calls), start)[-1].distance(clean))
        for calls in CALLS
    ]


def slope(points: Points) -> float:
    """The measured order: minus the slope of log error over log calls, of the last doublings."""
    return math.log2(points[-1 - LEGS][1] / points[-1][1]) / LEGS


def table(curves: Curves) -> str:
    """The errors and orders as a Markdown table."""
    head = ["grid", "sampler", *(f"{calls} calls" for calls in CALLS), "order"]
    rows = [
        [grid, name, *(f"{error:.1e}" for _, error in points), f"{slope(points):.2f}"]
        for grid, samplers in curves.items()
        for name, points in samplers.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def figure(curves: Curves) -> str:
    """An SVG picture, a panel for each grid."""
    errors = [e for samplers in curves.values() for points in samplers.values() for _, e in points]
    low, high = min(errors) / 1.3, max(errors) * 1.3
    panels = "".join(
        f'<g transform="translate({number * WIDTH} 0)">{_panel(grid, samplers, low, high)}</g>'
        for number, (grid, samplers) in enumerate(curves.items())
    )
    width = len(curves) * WIDTH
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{HEIGHT}" '
        f'fill="#fff"/>{panels}</svg>\n'
    )


def _panel(grid: str, samplers: Mapping[str, Points], low: float, high: float) -> str:
    def x(calls: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(calls / CALLS[0], CALLS[-1] / CALLS[0])

    def y(error: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * math.log(high / error) / math.log(high / low)

    parts = [
        f'<text x="{LEFT}" y="18" font-weight="bold">grid: {grid}</text>',
        f'<text x="{LEFT}" y="36" fill="#555">W2 distance to the law of the clean image</text>',
        f'<text x="{x(math.sqrt(CALLS[0] * CALLS[-1])):.0f}" y="{HEIGHT - 6}" '
        'text-anchor="middle" fill="#555">network calls</text>',
    ]
    for tick in log_ticks(low, high):
        parts.append(_line([(LEFT, y(tick)), (WIDTH - RIGHT, y(tick))], "#ddd", 1))
        parts.append(_text(LEFT - 6, y(tick) + 4, "end", short(tick)))
    parts += [_text(x(calls), HEIGHT - BOTTOM + 18, "middle", str(calls)) for calls in CALLS]
    parts += [
        _line([(x(calls), y(error)) for calls, error in points], colour, 2)
        for colour, points in zip(COLOURS, samplers.values(), strict=False)
    ]
    return "".join(parts) + _legend(samplers)


def _legend(samplers: Mapping[str, Points]) -> str:
    """To the right of the curves."""
    left, right = WIDTH - RIGHT + 18, WIDTH - 16
    parts = [_text(right, TOP, "end", "order")]
    for number, (name, points) in enumerate(samplers.items()):
        y = TOP + 20 * (number + 1)
        parts.append(_line([(left, y - 4), (left + 20, y - 4)], COLOURS[number], 3))
        parts.append(_text(left + 26, y, "start", name))
        parts.append(_text(right, y, "end", f"{slope(points):.2f}"))
    return "".join(parts)


def _line(points: Sequence[tuple[float, float]], colour: str, width: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


if __name__ == "__main__":
    main()
