"""Captions that were written by hand and come with the project."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from datamodules.captioners import Captioner, FileCaptioner
from datamodules.captions import read_captions
from datamodules.degradations import WORDS
from datamodules.images import Pixels, content_hash


def demo_captions() -> FileCaptioner:
    """Those of the embedded photographs."""
    return _written("demo")


def photos_captions() -> FileCaptioner:
    """Those of the photographs that the model that comes with the project was trained on."""
    return _written("photos")


def _written(name: str) -> FileCaptioner:
    return FileCaptioner(str(files("pipeline") / "written_captions" / f"{name}.jsonl"))


class CaptionsOfRun(Captioner):
    """The captions that another run has made of the same images, told by their content."""

    def __init__(self, path: str) -> None:
        """Take them from its `captions.jsonl`."""
        self._path = Path(path)
        self._captions: dict[str, str] | None = None

    @property
    def by(self) -> str:
        """The file."""
        return str(self._path)

    def files(self) -> list[Path]:
        """The file."""
        return [self._path]

    def caption(self, images: Sequence[Pixels], sources: Sequence[str]) -> list[str]:
        """Look the captions up; an image without one counts as damaged."""
        if self._captions is None:
            self._captions = read_captions(self._path)
        return [self._captions.get(content_hash(image), "") for image in images]


def captions_from_file(path: str | Sequence[str]) -> FileCaptioner:
    """Captions that exist already; the words of all degradations may end a title."""
    return FileCaptioner(path, WORDS)
