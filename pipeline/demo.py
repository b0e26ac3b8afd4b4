"""What the embedded demo brings with it."""

from __future__ import annotations

from importlib.resources import files

from modules.captioners import FileCaptioner


def demo_captioner() -> FileCaptioner:
    """The captions written by hand for the embedded photographs."""
    return FileCaptioner(str(files("pipeline") / "demo_captions.jsonl"))
