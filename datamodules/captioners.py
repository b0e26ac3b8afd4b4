"""Captioners: from a clean image to the text that stage (a) pulls its content embedding to.

Another captioner is a class with one method, to be named in captions.captioner._target_:

    class ByName(Captioner):
        def caption(self, images, sources):
            return [f"a photograph called {source}" for source in sources]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.caption_tables import CaptionTable, read_entries


class Captioner(ABC):
    """Anything that captions images."""

    @property
    def by(self) -> str:
        """Who or what the captions come from, for the record."""
        return type(self).__name__

    def files(self) -> list[Path]:
        """The local files the captions depend on; none, unless said otherwise."""
        return []

    def check(self, sources: Sequence[str]) -> None:
        """Look at the names of all images before the work starts.

        Raises:
            ValueError: some of them cannot be captioned.
        """
        return None

    @abstractmethod
    def caption(self, images: Sequence[NDArray[np.uint8]], sources: Sequence[str]) -> list[str]:
        """One caption for each image.

        Args:
            images: RGB `[H, W, 3]`, uint8, of any sizes.
            sources: the name of each clean image: a path relative to the root of its data, such as
                `train/hazy/GT/0048.png`, or the name of a photograph.
        """


class FileCaptioner(Captioner):
    """Captions that exist already, in files as `datamodules.caption_tables` describes them.

    There must be one for every image; without, its samples would silently be lost to training.
    """

    def __init__(self, path: str | Sequence[str], words: Sequence[str] = ()) -> None:
        """Take the captions of one file or several; `words` are what may end a title."""
        self._paths = [Path(p) for p in ([path] if isinstance(path, str) else path)]
        self._words = frozenset(words)
        self._read: CaptionTable | None = None

    @property
    def by(self) -> str:
        """The names of the files."""
        return ", ".join(path.name for path in self._paths)

    def files(self) -> list[Path]:
        """The files themselves."""
        return self._paths

    def check(self, sources: Sequence[str]) -> None:
        """See that each image has a caption, and that no two share an entry.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, images have no caption, or an entry fits two images.
        """
        distinct = list(dict.fromkeys(sources))
        self.caption([], distinct)
        owners: dict[str, str] = {}
        for source in distinct:
            if (entry := self._table().find(source)) is None:
                continue
            if (owner := owners.setdefault(entry.where, source)) != source:
                raise ValueError(
                    f"{entry.where} ({entry.path}) fits {owner} and {source}; give more of its path"
                )

    def caption(self, images: Sequence[NDArray[np.uint8]], sources: Sequence[str]) -> list[str]:
        """Look the captions up.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or has no caption for some images.
        """
        found = [(source, self._table().find(source)) for source in sources]
        if missing := sorted({source for source, entry in found if entry is None}):
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise ValueError(f"{self.by} has no caption for {len(missing)} images: {shown}")
        return [entry.caption for _, entry in found if entry is not None]

    def _table(self) -> CaptionTable:
        if self._read is None:
            entries = [entry for p in self._paths for entry in read_entries(p, self._words)]
            self._read = CaptionTable(entries)
        return self._read
