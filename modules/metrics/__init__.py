"""Metrics: how good restored images are. A metric is one file here, which registers itself.

A file calls `register` with an `ImageMetric`, which scores images one by one, or a `SetMetric`,
which scores sets of them. Files are found by looking, `_*` aside, so a new metric is a new file; it
then stands in every report, table and file. Torch is imported by `load` alone, since the weight
files are listed without it.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Image = NDArray[np.uint8]
"""RGB, `[H, W, 3]`."""
Score = Callable[[Image, Image | None], float]
"""Of a restored image and its clean one; None only where a metric needs no reference.

ValueError: the image cannot have the score; the message says why.
"""


class SetScore(Protocol):
    """Of a set of restored images against a set of clean ones."""

    def set_reference(self, images: Iterable[Image]) -> None:
        """Take these clean images, in place of any before."""
        ...

    def __call__(self, images: Iterable[Image]) -> float:
        """Score restored images against the reference set."""
        ...


class Unavailable(RuntimeError):
    """A metric cannot be computed here; the message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Weights:
    """A weight file that a metric needs, in torch's hub folder; nothing is downloaded."""

    metric: str
    """Label of the metric, for messages."""
    url: str

    @property
    def path(self) -> Path:
        """Its place: `$TORCH_HOME/hub/checkpoints`, by default below `~/.cache/torch`."""
        caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        home = Path(os.environ.get("TORCH_HOME", f"{caches}/torch")).expanduser()
        return home / "hub" / "checkpoints" / self.url.rsplit("/", 1)[1]

    def find(self) -> Path:
        """Its path.

        Raises:
            Unavailable: there is no such file.
        """
        if not self.path.is_file():
            raise Unavailable(
                f"{self.metric} needs the weight file {self.path}: fetch {self.url} and put it "
                "there"
            )
        return self.path

    def unreadable(self, expected: str) -> Unavailable:
        """The error for a file that is not what is expected."""
        return Unavailable(
            f"{self.metric} cannot read the weight file {self.path} as {expected}: remove it, "
            f"fetch {self.url} again and put it there"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Metric:
    """What is known of a metric without computing it."""

    name: str
    """In files, unique; it tells the convention."""
    label: str
    """On pages."""
    short: str
    """Key on W&B and in the headline of metrics.json, unique."""
    table: str
    """Title of the report's table it stands in, together with others of the same title."""
    convention: str
    """How it is computed, in words, to stand beside the number."""
    digits: int
    """Decimal places that are shown."""
    higher_is_better: bool
    position: int
    """Place in files and reports: those with lower numbers come first."""
    unit: str = ""
    needs_reference: bool = True
    """Whether there must be a clean image."""
    min_size: tuple[int, int] = (1, 1)
    """Least shorter and longer side of an image, in pixels."""
    weights: Weights | None = None
    in_validation: bool = False
    """Whether it is cheap and telling enough for validation while training, and the terminal."""

    @property
    def title(self) -> str:
        """The label with the convention."""
        return f"{self.label} ({self.convention})"

    def chart_title(self, subject: str = "") -> str:
        """A chart's title: the label, what it is of, the unit, and whether lower is better."""
        unit = f", {self.unit}" if self.unit else ""
        return self.label + subject + unit + ("" if self.higher_is_better else ", lower is better")

    def text(self, value: float) -> str:
        """A value as it is shown, without its unit."""
        return f"{value:.{self.digits}f}"

    def check_size(self, image: Image) -> None:
        """Refuse an image that is too small.

        Raises:
            ValueError: it is.
        """
        height, width = image.shape[:2]
        sides = sorted((height, width))
        if any(side < least for side, least in zip(sides, self.min_size, strict=True)):
            least = "x".join(map(str, self.min_size))
            raise ValueError(
                f"{self.label} needs an image of at least {least} pixels; this one is "
                f"{height}x{width}"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageMetric(Metric):
    """A metric of single images."""

    load: Callable[[torch.device], Score]
    """Prepare it on a device. Raises Unavailable where its weights are missing."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SetMetric(Metric):
    """A metric of sets of images."""

    load: Callable[[torch.device], SetScore]
    """Prepare it on a device. Raises Unavailable where its weights are missing."""
    min_images: int
    too_few: str
    """Why a smaller set has no score."""


METRICS: dict[str, Metric] = {}
"""All metrics, by name, in the order in which they are shown."""


def register(metric: Metric) -> None:
    """Add a metric.

    Raises:
        ValueError: its name or short name is taken.
    """
    for other in METRICS.values():
        if other.name == metric.name or other.short == metric.short:
            raise ValueError(
                f"metric {metric.name!r} ({metric.short!r}): {other.name!r} ({other.short!r}) has "
                "this name already; choose another"
            )
    ordered = sorted([*METRICS.values(), metric], key=lambda m: m.position)
    METRICS.clear()
    METRICS.update({m.name: m for m in ordered})


def tables(metrics: Iterable[Metric]) -> dict[str, list[Metric]]:
    """Metrics by the title of the table they stand in."""
    found: dict[str, list[Metric]] = {}
    for metric in metrics:
        found.setdefault(metric.table, []).append(metric)
    return found


def find_weights() -> list[Path]:
    """The weight files of metrics that are there."""
    paths = (metric.weights.path for metric in METRICS.values() if metric.weights)
    return [path for path in paths if path.is_file()]


def discover(folders: Iterable[str], package: str) -> None:
    """Import the files of a package's folders, but `_*`, so that their metrics are registered."""
    for info in pkgutil.iter_modules(folders):
        if not info.name.startswith("_"):
            import_module(f"{package}.{info.name}")


discover(__path__, __name__)
