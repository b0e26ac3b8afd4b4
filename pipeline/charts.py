"""Line charts as SVG, to stand inside a page whose text colour they take."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from pipeline.curves import Line, Panel, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = [
    *("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2"),
    *("#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#9498a0"),
]
TEXT = "#808081"
"""Stands for the page's text colour while a chart is drawn."""
THIN, THICKEST = 1.6, 9.0
"""Width of a curve; where curves may coincide, those below are wider, up to this."""
MAX_POINTS = 160
"""Longer curves are drawn as means over equal stretches of their points."""
LOG_FROM = 30.0
"""Ratio of the largest to the smallest value from which an axis that may be logarithmic is."""


def chart(panel: Panel) -> Markup:
    """A figure with its title, its curves, and a legend with their last values."""
    lines = [Line(line.label, _finite(line.points)) for line in panel.lines]
    drawn = [line for line in lines if line.points]
    body = _svg(drawn, panel.log, panel.runs) if drawn else Markup("<p>no finite value</p>")
    legend = Markup("").join(
        Markup('<span><i style="background:{}"></i>{} <b>{}</b></span> ').format(
            COLOURS[number % len(COLOURS)], line.label, short(line.points[-1][1])
        )
        for number, line in enumerate(drawn)
    )
    return Markup("<figure><h3>{}</h3>{}<figcaption>{}</figcaption></figure>").format(
        panel.title, body, legend
    )


def short(value: float) -> str:
    """A number in few characters: 12000 as 12k, 0.012345 as 0.0123."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def to_svg(figure: Figure) -> str:
    """A figure as an SVG element with its text as text; the same figure gives the same SVG."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "chart", "font.family": "sans-serif"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    return svg[svg.index("<svg") :]


def _finite(points: Points) -> Points:
    """The points with a value, thinned by averaging."""
    kept = [point for point in points if math.isfinite(point[1])]
    if len(kept) <= MAX_POINTS:
        return kept
    parts = np.array_split(np.array(kept, dtype=float), MAX_POINTS)
    return [(int(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def _svg(lines: Sequence[Line], may_log: bool, stacked: bool) -> Markup:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.3), layout="constrained", facecolor="none")
    axes = figure.subplots()
    for number, line in enumerate(lines):
        steps, values = zip(*line.points, strict=True)
        wider = (THICKEST - THIN) * (1 - (number + 1) / len(lines)) if stacked else 0.0
        axes.plot(
            steps,
            values,
            color=COLOURS[number % len(COLOURS)],
            linewidth=THIN + wider,
            marker="o" if len(steps) == 1 else None,
            gid=f"curve_{number}",
        )
    _style(axes, may_log and _is_wide([value for line in lines for _, value in line.points]))
    # Axes are numbered alike in every figure of a page, where an id may stand once.
    svg = re.sub(r' id="curve_\d+"', ' class="curve"', to_svg(figure).replace(TEXT, "currentColor"))
    return Markup(re.sub(r' id="\w+_\d+"', "", svg))


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM


def _style(axes: Axes, log: bool) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if log:
        axes.set_yscale("log")
    axes.set_facecolor("none")
    axes.grid(axis="y", color=TEXT, alpha=0.3)
    axes.tick_params(which="both", length=0, labelsize=8, colors=TEXT)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
