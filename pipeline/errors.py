"""What an error says to the user: the fault, and the remedy that only the pipeline knows."""

from __future__ import annotations

from datamodules.captions import BadCaptions, MissingCaptions
from datamodules.shards.cache import CacheError, RemoteChanged
from datamodules.work_queue import WorkNotSaved


class BadModel(ValueError):
    """A model or a file of one that cannot be used; the message names it and says why."""


class NotFetched(FileNotFoundError):
    """A model that is elsewhere, and is fetched when it is needed."""


REMEDIES: dict[type[Exception], str] = {
    BadCaptions: "Delete the file and run `make captions`",
    CacheError: (
        "Make room and check that it can be written, or set `shards.source.cache_dir` to a folder "
        "on another disk"
    ),
    MissingCaptions: "Create it first: run `make captions`",
    RemoteChanged: (
        "If the set was made anew, delete the run's folder `shards` to take its new index"
    ),
    WorkNotSaved: "Make room or set `run_dir` to another disk, then run the same command again",
}
"""By the class of an error of `modules` or `datamodules`: which setting or command mends it."""


def message(error: Exception) -> str:
    """An error's text, of one from a data process without its traceback, and its remedy."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rstrip().rpartition(f"{type(error).__name__}: ")[2]
    remedies = [remedy for kind, remedy in REMEDIES.items() if isinstance(error, kind)]
    return ". ".join([text.rstrip("."), *remedies]) if remedies else text
