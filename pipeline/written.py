"""Captions that were written by hand and come with the project."""

from __future__ import annotations

from importlib.resources import files

from datamodules.captioners import FileCaptioner


def demo_captions() -> FileCaptioner:
    """Those of the embedded photographs."""
    return _written("demo")


def photos_captions() -> FileCaptioner:
    """Those of the photographs that the model that comes with the project was trained on."""
    return _written("photos")


def _written(name: str) -> FileCaptioner:
    return FileCaptioner(str(files("pipeline") / "written_captions" / f"{name}.jsonl"))
