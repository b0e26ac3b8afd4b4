"""What an error says to the user: the fault, and the remedy that only the pipeline knows."""

from __future__ import annotations

from datamodules.captions import BadCaptions, MissingCaptions
from datamodules.errors import (
    BadIndex,
    FormatError,
    MissingDatasets,
    MissingDegraded,
    MissingPackage,
    MissingShards,
    MissingSource,
    MissingSplit,
    SourceError,
    TaskWeightsError,
    TooManyBadPairs,
    TooManyBadSamples,
    UnknownWord,
)
from datamodules.shards.cache import CacheError, RemoteChanged
from datamodules.shards.index import BadShard
from datamodules.work_queue import WorkNotSaved
from modules.captioning.blip import MissingBlip


class BadModel(ValueError):
    """A model or a file of one that cannot be used; the message names it and says why."""


NO_ROOM = (
    "the model takes more memory than there is; end what else is using it, or give another --device"
)
"""Of the commands that restore photographs."""


class NotFetched(FileNotFoundError):
    """A model that is elsewhere, and is fetched when it is needed."""


KEYS: dict[type[Exception], str] = {
    SourceError: "shards.source.",
    MissingSource: "shards.source.",
    FormatError: "shards.format.",
    TaskWeightsError: "data.",
}
"""By the class of an error that begins with a parameter's name: the section the parameter is in."""

REMEDIES: dict[type[Exception], str] = {
    UnknownWord: "Rename it, or list your own words in shards.source.words",
    MissingSplit: "Where there is to be no such split, leave it out of shards.source.splits",
    MissingDegraded: "Where they are to be made from GT, add the word to shards.source.synthetic",
    MissingDatasets: "Give a dataset's folder as shards.source.datasets.NAME=FOLDER, or leave it "
    "out with ~shards.source.datasets.NAME",
    MissingPackage: "Run `make setup`",
    TooManyBadPairs: "Mend them, or raise shards.max_skipped_fraction",
    MissingShards: "Run `make shards` first",
    BadIndex: "Run `make shards`",
    BadShard: "`make verify` names all damaged shards",
    TooManyBadSamples: "Mend the data, or raise data.max_skipped_fraction. Captions are made by "
    "`make captions`; images smaller than the crop need a lower restorer.patch_size or "
    "restorer.context_size, or shards with a larger shards.format.tile_size",
    BadCaptions: "Delete the file and run `make captions`",
    CacheError: (
        "Make room and check that it can be written, or set `shards.source.cache_dir` to a folder "
        "on another disk"
    ),
    MissingBlip: "Where there is no network, fetch its files elsewhere and set "
    "captions.captioner.model to their folder",
    MissingCaptions: "Create it first: run `make captions`",
    RemoteChanged: (
        "If the set was made anew, delete the run's folder `shards` to take its new index"
    ),
    WorkNotSaved: "Make room or set `run_dir` to another disk, then run the same command again",
}
"""By the class of an error of `modules` or `datamodules`: which setting or command mends it."""


def message(error: BaseException) -> str:
    """An error's text, of one from a data process without its traceback, and its remedy."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rstrip().rpartition(f"{type(error).__name__}: ")[2]
    section = next((key for kind, key in KEYS.items() if isinstance(error, kind)), "")
    remedies = [remedy for kind, remedy in REMEDIES.items() if isinstance(error, kind)]
    separator = "\n" if "\n" in text else ". "
    return separator.join([section + text.rstrip("."), *remedies]) if remedies else section + text
