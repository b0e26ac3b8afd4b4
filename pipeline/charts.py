"""Line charts as SVG, without a library: for pages that must open anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from pipeline.curves import Line, Panel, Points

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 24
COLOURS = [
    *("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2"),
    *("#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#9498a0"),
]
THIN, THICKEST = 1.6, 9.0
"""Width of a curve; where curves may coincide, those below are wider, up to this."""
MOST_POINTS = 160
"""Longer curves are drawn as means over equal stretches of their points."""
LOG_FROM = 30.0
"""Ratio of the largest to the smallest value from which an axis that may be logarithmic is."""


def chart(panel: Panel) -> Markup:
    """A figure with its title, its curves, and a legend that has their last values."""
    lines = [Line(line.label, _finite(line.points)) for line in panel.lines]
    drawn = [line for line in lines if line.points]
    body = _svg(drawn, panel.log, panel.runs) if drawn else Markup("<p>no finite value</p>")
    legend = Markup("").join(
        Markup('<span><i style="background:{}"></i>{} <b>{}</b></span> ').format(
            _colour(number), line.label, short(line.points[-1][1])
        )
        for number, line in enumerate(drawn)
    )
    return Markup("<figure><h3>{}</h3>{}<figcaption>{}</figcaption></figure>").format(
        panel.title, body, legend
    )


def short(value: float, digits: int = 3) -> str:
    """A number in few characters: 12000 as 12k, 0.012345 as 0.0123."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def labels(values: Sequence[float]) -> list[str]:
    """Different numbers in as few characters as tell them apart."""
    for digits in range(3, 12):
        texts = [short(value, digits) for value in values]
        if len(set(texts)) == len(texts):
            break
    return texts


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers in low..high, about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in low..high; the powers alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]


def _finite(points: Points) -> Points:
    """The points with a value, thinned by averaging."""
    kept = [point for point in points if math.isfinite(point[1])]
    if len(kept) <= MOST_POINTS:
        return kept
    parts = np.array_split(np.array(kept, dtype=float), MOST_POINTS)
    return [(int(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def _svg(lines: Sequence[Line], may_log: bool, stacked: bool) -> Markup:
    values = [value for line in lines for _, value in line.points]
    steps = [step for line in lines for step, _ in line.points]
    low, high = min(values), max(values)
    log = may_log and low > 0 and high / low >= LOG_FROM
    margin = 0.0 if log else 0.05 * (high - low) or 0.05 * abs(high)
    low, high = (low - margin, high + margin) if high > low or high else (0.0, 1.0)
    left, right = float(min(steps)), float(max(max(steps), min(steps) + 1))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - left) / (right - left)

    def y(value: float) -> float:
        share = (
            math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        )
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    levels = log_ticks(low, high) if log else ticks(low, high)
    marks = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{label}</text>'
        for t, label in zip(levels, labels(levels), strict=True)
    ]
    marks += [
        f'<text x="{x(t):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>'
        for t, label in zip(ticks(left, right), labels(ticks(left, right)), strict=True)
    ]
    curves = [
        _curve(
            [(x(step), y(value)) for step, value in line.points],
            _colour(number),
            THIN + (THICKEST - THIN) * (1 - (number + 1) / len(lines) if stacked else 0),
            line.label,
        )
        for number, line in enumerate(lines)
    ]
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(marks)}{"".join(curves)}</svg>'
    )


def _curve(points: Sequence[tuple[float, float]], colour: str, width: float, label: str) -> str:
    title = f"<title>{escape(label)}</title>"
    if len(points) == 1:
        ((x, y),) = points
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">{title}</circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" stroke="{colour}" stroke-width="{width}">{title}</polyline>'


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
