"""Curves over the number of network calls, as an SVG picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.charts import COLOURS, to_svg
from pipeline.curves import Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    ticks: Sequence[int]
    """Calls that the horizontal axis names."""
    log: bool
    """Whether the vertical axis is logarithmic; the horizontal one is."""


def figure(panels: Sequence[CallsPanel]) -> str:
    """The panels side by side; those of one axis have one scale."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9 * len(panels), 4.2), facecolor="white")
    shared = len({panel.axis for panel in panels}) == 1
    every = drawing.subplots(1, len(panels), squeeze=False, sharey=shared)[0]
    for axes, panel in zip(every, panels, strict=True):
        _draw(axes, panel)
    drawing.subplots_adjust(left=0.05, right=0.8, bottom=0.15, wspace=0.9)
    return to_svg(drawing)


def _draw(axes: Axes, panel: CallsPanel) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    for colour, points in zip(COLOURS, panel.curves.values(), strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2)
    axes.set_xscale("log")
    if panel.log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(panel.ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(axis="y", color="#ddd")
    axes.tick_params(labelleft=True)
    axes.set(title=panel.title, xlabel="network calls", ylabel=panel.axis)
    names = axes.legend(
        axes.lines, panel.curves, loc="upper left", bbox_to_anchor=(1, 1), title=" ", frameon=False
    )
    axes.add_artist(names)
    blank = [Line2D([], [], linestyle="none")] * len(panel.curves)
    ends = [panel.last[label] for label in panel.curves]
    axes.legend(
        blank, ends, loc="upper left", bbox_to_anchor=(1.5, 1), title=panel.head, frameon=False
    )
