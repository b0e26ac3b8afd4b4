"""Curves over the number of network calls, as an SVG picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.charts import COLOURS, labels, log_ticks, short, ticks
from pipeline.curves import Points

WIDTH, HEIGHT = 620, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 240, 46, 44


class CallsPanel(NamedTuple):
    """A panel: what is on the vertical axis, for each curve over the calls."""

    title: str
    axis: str
    curves: Mapping[str, Points]
    """Label -> (calls, value)."""
    last: Mapping[str, str]
    """Label -> what the legend says at its end."""
    head: str
    """Over what the legend says at its ends."""
    log: bool
    """Whether the vertical axis is logarithmic; the horizontal one is."""


def figure(panels: Sequence[CallsPanel]) -> str:
    """The panels side by side; those of one axis have one scale."""
    width = len(panels) * WIDTH
    drawn = "".join(
        f'<g transform="translate({number * WIDTH} 0)">{_panel(panel, _range(panel, panels))}</g>'
        for number, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{HEIGHT}" '
        f'fill="#fff"/>{drawn}</svg>\n'
    )


def _range(panel: CallsPanel, panels: Sequence[CallsPanel]) -> tuple[float, float]:
    alike = [p for p in panels if p.axis == panel.axis]
    values = [value for p in alike for points in p.curves.values() for _, value in points]
    low, high = min(values), max(values)
    if panel.log:
        return low / 1.3, high * 1.3
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _panel(panel: CallsPanel, limits: tuple[float, float]) -> str:
    low, high = limits
    calls = sorted({step for points in panel.curves.values() for step, _ in points})

    def x(count: float) -> float:
        share = math.log(count / calls[0]) / (math.log(calls[-1] / calls[0]) or 1)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(value: float) -> float:
        share = (
            math.log(high / value) / math.log(high / low)
            if panel.log
            else (high - value) / (high - low)
        )
        return TOP + (HEIGHT - TOP - BOTTOM) * share

    parts = [
        f'<text x="{LEFT}" y="18" font-weight="bold">{panel.title}</text>',
        f'<text x="{LEFT}" y="36" fill="#555">{panel.axis}</text>',
        f'<text x="{x(math.sqrt(calls[0] * calls[-1])):.0f}" y="{HEIGHT - 6}" '
        'text-anchor="middle" fill="#555">network calls</text>',
    ]
    levels = log_ticks(low, high) if panel.log else ticks(low, high)
    for level, label in zip(levels, labels(levels), strict=True):
        parts.append(_line([(LEFT, y(level)), (WIDTH - RIGHT, y(level))], "#ddd", 1))
        parts.append(_text(LEFT - 6, y(level) + 4, "end", label))
    parts += [_text(x(count), HEIGHT - BOTTOM + 18, "middle", short(count)) for count in calls]
    parts += [
        _line([(x(count), y(value)) for count, value in points], colour, 2)
        for colour, points in zip(COLOURS, panel.curves.values(), strict=False)
    ]
    return "".join(parts) + _legend(panel)


def _legend(panel: CallsPanel) -> str:
    """To the right of the curves."""
    left, right = WIDTH - RIGHT + 18, WIDTH - 16
    parts = [_text(right, TOP, "end", panel.head)]
    for number, label in enumerate(panel.curves):
        y = TOP + 20 * (number + 1)
        parts.append(_line([(left, y - 4), (left + 20, y - 4)], COLOURS[number], 3))
        parts.append(_text(left + 26, y, "start", label))
        parts.append(_text(right, y, "end", panel.last[label]))
    return "".join(parts)


def _line(points: Sequence[tuple[float, float]], colour: str, width: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
