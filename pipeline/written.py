"""Captions that were written by hand and come with the project."""

from __future__ import annotations

from importlib.resources import files

from modules.captioners import FileCaptioner


def written_captions(name: str) -> FileCaptioner:
    """Those of a set of photographs: `demo`, the embedded ones, or `photos`."""
    return FileCaptioner(str(files("pipeline") / "written_captions" / f"{name}.jsonl"))
