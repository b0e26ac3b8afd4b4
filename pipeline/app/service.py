"""What the page does with a photograph; it knows no Gradio."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.images import BadImage, count_pixels
from modules.inference.device import is_out_of_memory
from pipeline.app.results import Results
from pipeline.app.turns import Turn, Turns
from pipeline.restore.api import Options, Progress, Restoration, Restorer
from pipeline.restore.encoding import check_fits, encode_photograph
from pipeline.restore.photographs import Photograph, read_photograph
from pipeline.restore.pictures import LEVELS, Canvas

PREVIEW = 1600
"""The longer side of what the page shows, in pixels, at most; the download has all of them."""
Shown = NDArray[np.uint8]
"""A preview `[h, w, 3]`."""


class Limits(NamedTuple):
    """What the page takes."""

    megabytes: int = 40
    """Of a file."""
    megapixels: int = 50
    """Of a photograph."""
    minutes: float = 10
    """Of work on one."""
    waiting: int = 8
    """Photographs that wait for their turn."""


class Refused(ValueError):
    """A photograph or a wish that the page does not serve; the message is for its user."""


class Result(NamedTuple):
    """A restored photograph."""

    before: Shown
    after: Shown
    file: Path
    """The restored photograph, in full."""
    degradation: dict[str, float]
    told: str
    """What was done, for the user."""


class Service:
    """Restores photographs for the sessions of a page, one at a time."""

    def __init__(self, restorer: Restorer, folder: Path, limits: Limits) -> None:
        """Serve with a restorer; results lie below `folder` until they are forgotten or old."""
        self.restorer, self.limits = restorer, limits
        self._turns, self._results = Turns(), Results(folder)

    def open(self, path: Path) -> Photograph:
        """Read an uploaded photograph.

        Raises:
            Refused: it is too large, or no photograph.
        """
        megabytes = path.stat().st_size / 1e6
        if megabytes > self.limits.megabytes:
            raise Refused(
                f"{path.name} has {megabytes:.0f} MB; this page takes {self.limits.megabytes} MB. "
                "The restore command takes any size"
            )
        megapixels = count_pixels(path) / 1e6
        if megapixels > self.limits.megapixels:
            raise Refused(
                f"{path.name} has {megapixels:.0f} million pixels; this page takes "
                f"{self.limits.megapixels}. The restore command takes more"
            )
        try:
            photograph = read_photograph(path)
            check_fits(photograph, photograph.format)
            return photograph
        except BadImage as error:
            raise Refused(str(error).replace(str(path), path.name)) from error

    def restore(
        self,
        path: Path,
        session: str,
        options: Options,
        on_progress: Callable[[int, int], None],
    ) -> Result:
        """Restore an uploaded photograph.

        Args:
            path: the upload.
            session: whose it is.
            options: how to.
            on_progress: told of the network calls done, and of all of them.

        Raises:
            Refused: the photograph, an option, or the time it takes is out of range, or too many
                wait.
            Cancelled: the session has cancelled it.
        """
        if self._turns.waiting() >= self.limits.waiting:
            raise Refused("Too many photographs wait for their turn; come back in a while")
        with self._turns.take(session) as turn:
            photograph = self.open(path)
            found = self._work(path, photograph, turn, options, on_progress)
            assert isinstance(found.image, np.ndarray)
            try:
                data, remarks = encode_photograph(photograph, found.image, photograph.format)
            except BadImage as error:
                raise Refused(f"{path.name}: {error}") from error
            tiles = f" in {found.tiles} tiles" if found.tiles > 1 else ""
            calls = "1 network call" if found.calls == 1 else f"{found.calls} network calls"
            said = [f"{calls}{tiles}, {found.seconds:.1f} seconds", *remarks]
            return Result(
                preview(photograph.pixels),
                preview(found.image),
                self._results.write(f"{path.stem}-restored{path.suffix}", turn, data),
                found.degradation,
                "; ".join(said),
            )

    def _work(
        self,
        path: Path,
        photograph: Photograph,
        turn: Turn,
        options: Options,
        on_progress: Callable[[int, int], None],
    ) -> Restoration:
        """Restore, as long as it is wanted and the time allows."""
        deadline = time.monotonic() + 60 * self.limits.minutes

        def on_step(progress: Progress) -> None:
            turn.check()
            if time.monotonic() > deadline:
                raise Refused(
                    f"{path.name} takes more than {self.limits.minutes:g} minutes; choose fewer "
                    "steps or a smaller photograph"
                )
            on_progress(progress.done, progress.total)

        try:
            return self.restorer.restore_pixels(photograph.pixels, on_step=on_step, **options)
        except ValueError as error:
            raise Refused(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise Refused(
                f"{path.name} takes more memory than there is; choose smaller tiles"
            ) from error

    def cancel(self, session: str) -> None:
        """End the session's restorations, one at work after the network call it is in."""
        self._turns.cancel(session)

    def cancel_all(self) -> None:
        """End all restorations likewise."""
        self._turns.cancel_all()

    def forget(self, session: str) -> None:
        """Delete what was made for a session, and what is being made."""
        self.cancel(session)
        self._results.delete(session)

    def sweep(self) -> None:
        """Delete the results that are old."""
        self._results.sweep()


def preview(canvas: Canvas) -> Shown:
    """A photograph as the page shows it."""
    height, width, _ = canvas.shape
    scale = min(1.0, PREVIEW / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    shown: Shown = np.rint(small * (255 / LEVELS[canvas.dtype])).astype(np.uint8)
    return shown
