"""Captioners: from a clean image to the text that its content embedding is trained towards.

Another captioner is a class with one method:

    class ByName(Captioner):
        def caption(self, images, sources):
            return [f"a photograph called {source}" for source in sources]
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.captions import read_captions
from datamodules.degradations import WORDS
from datamodules.images import content_hash

IMAGE_SUFFIX = re.compile(r"\.[A-Za-z]{3,4}$")
"""Letters only: a name such as `0048_0.9_0.2` has no suffix."""


class Captioner(ABC):
    """Anything that captions images."""

    @property
    def by(self) -> str:
        """Who or what the captions come from, for the record."""
        return type(self).__name__

    def files(self) -> list[Path]:
        """The local files the captions depend on; none by default."""
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


class RunCaptions(Captioner):
    """The captions that another run has made of the same images, by the images' content."""

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

    def caption(self, images: Sequence[NDArray[np.uint8]], sources: Sequence[str]) -> list[str]:
        """Look the captions up; an image without one counts as damaged.

        Raises:
            MissingCaptions: there is no such file.
            BadCaptions: a line of it is damaged.
        """
        if self._captions is None:
            self._captions = read_captions(self._path)
        return [self._captions.get(content_hash(image), "") for image in images]


class FileCaptioner(Captioner):
    """Captions that exist already, in files; every image must have one.

    A file holds JSON lines `{"source": path of the clean image, "caption": text}`, or it is a table
    as the published implementation writes it: a header line with the columns `filepath` and
    `title`, separated by tabs or commas, where `filepath` is the path of the degraded image and
    `title` is the caption of the clean one, followed by `: ` and the degradation. A quoted field
    may span several lines.

    Paths need not be complete. An entry fits an image when the path of one, without file suffix and
    with a folder `LQ` read as `GT`, ends with that of the other. The longest match wins. If none
    fits, an entry does whose name is that of the image with `_` and more after it: in RESIDE, many
    hazy images `LQ/0048_0.9_0.2.png` are made from one clear `GT/0048.png`.
    """

    def __init__(self, path: str | Sequence[str], words: Sequence[str] = tuple(WORDS)) -> None:
        """Take the captions of one file or several.

        Args:
            path: of the file or files; `package:PACKAGE/PATH` is a file inside a Python package.
            words: the degradations that may end a title.
        """
        self._paths = [_located(p) for p in ([path] if isinstance(path, str) else path)]
        self._words = frozenset(words)
        self._read: _Table | None = None

    @property
    def by(self) -> str:
        """The names of the files."""
        return ", ".join(path.name for path in self._paths)

    def files(self) -> list[Path]:
        """The files themselves."""
        return self._paths

    def check(self, sources: Sequence[str]) -> None:
        """Check that each image has a caption, and that no two share an entry.

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

    def _table(self) -> _Table:
        if self._read is None:
            entries = [entry for p in self._paths for entry in _read_entries(p, self._words)]
            self._read = _Table(entries)
        return self._read


class _Entry(NamedTuple):
    """A caption in a file."""

    where: str
    """`FILE:LINE`."""
    path: str
    caption: str


class _Table:
    """Entries, to be looked up by the path of a clean image as `FileCaptioner` describes."""

    def __init__(self, entries: Iterable[_Entry]) -> None:
        self._same: dict[str, list[tuple[list[str], _Entry]]] = defaultdict(list)
        self._longer: dict[str, list[tuple[list[str], _Entry]]] = defaultdict(list)
        for entry in entries:
            *folders, name = _parts(entry.path)
            self._same[name].append(([*folders, name], entry))
            words = name.split("_")
            for start in ("_".join(words[:n]) for n in range(1, len(words))):
                self._longer[start].append(([*folders, start], entry))

    def find(self, source: str) -> _Entry | None:
        """The entry of an image; ValueError if several with different captions fit equally."""
        wanted = _parts(source)
        for candidates in (self._same, self._longer):
            lengths = [(_match(parts, wanted), entry) for parts, entry in candidates[wanted[-1]]]
            longest = max((length for length, _ in lengths), default=0)
            if longest > 0:
                return _only([e for length, e in lengths if length == longest], source)
        return None


def _located(path: str) -> Path:
    if not path.startswith("package:"):
        return Path(path)
    package, _, name = path.removeprefix("package:").partition("/")
    return Path(str(files(package) / name))


def _read_entries(path: Path, words: Collection[str]) -> list[_Entry]:
    """The entries of a UTF-8 file; ValueError if a line of it is not as described."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    if text.lstrip().startswith("{"):
        lines = enumerate(text.split("\n"), 1)
        entries = [_json_entry(f"{path}:{n}", line) for n, line in lines if line.strip()]
    else:
        entries = list(_table_entries(path, text, words))
    for entry in entries:
        if not (entry.path.strip("/\\. ") and entry.caption):
            raise ValueError(f"{entry.where}: the path or the caption is empty")
    return entries


def _json_entry(where: str, line: str) -> _Entry:
    try:
        found = json.loads(line)
        source, caption = found["source"], found["caption"]
        if not (isinstance(source, str) and isinstance(caption, str)):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{where}: expected {{"source": ..., "caption": ...}}, found {line[:80]!r}'
        ) from error
    return _Entry(where, source, " ".join(caption.split()))


def _table_entries(path: Path, text: str, words: Collection[str]) -> Iterator[_Entry]:
    header = next((line for line in text.split("\n") if line.strip()), "")
    separator = "\t" if "\t" in header else ","
    rows = _rows(text, separator)
    line, names = next(rows, (0, []))
    columns = [name.strip() for name in names]
    if not {"filepath", "title"} <= set(columns):
        raise ValueError(
            f"{path}{f':{line}' if line else ''}: expected JSON lines "
            '{"source": ..., "caption": ...}, or a header with `filepath` and `title` separated '
            f"by a tab or comma, found {header[:80]!r}"
        )
    for line, fields in rows:
        where = f"{path}:{line}"
        if len(fields) != len(columns):
            raise ValueError(
                f"{where}: {len(fields)} fields, but {len(columns)} in the header; a field that "
                f"contains {separator!r} needs double quotes around it"
            )
        row = dict(zip(columns, fields, strict=True))
        yield _Entry(where, row["filepath"], _caption_of(row["title"], words))


def _rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The first line and the fields of each row that is not blank.

    Unlike in the csv module, quotes that do not enclose a whole field are part of the text: titles
    are written by people, who begin them with a quoted word or forget a quote.
    """
    field = re.compile(rf'"((?:[^"]|"")*)"(?=[{separator}\n]|\Z)|([^{separator}\n]*)')
    start, line = 0, 1
    while start < len(text):
        fields, end = [], start - 1
        while end < start or text[end : end + 1] == separator:
            match = field.match(text, end + 1)
            assert match is not None  # a field may be empty
            quoted, bare = match.groups()
            fields.append(bare if quoted is None else quoted.replace('""', '"'))
            end = match.end()
        if text[start:end].strip():
            yield line, fields
        line += text.count("\n", start, end + 1)
        start = end + 1


def _caption_of(title: str, words: Collection[str]) -> str:
    """A title without the degradation after its last `: `; a caption may have others in it."""
    title = " ".join(title.split())
    caption, colon, word = f" {title}".rpartition(": ")
    return caption.strip() if colon and word in words else title


def _parts(path: str) -> list[str]:
    """Folders and name, as they are compared."""
    parts = [part for part in re.split(r"[/\\]", path.strip()) if part not in {"", "."}]
    folders = ["GT" if part == "LQ" else part for part in parts[:-1]]
    return [*folders, IMAGE_SUFFIX.sub("", parts[-1])]


def _match(one: list[str], other: list[str]) -> int:
    """How many parts agree from the end, 0 unless one path ends with the other."""
    length = min(len(one), len(other))
    return length if one[-length:] == other[-length:] else 0


def _only(entries: list[_Entry], source: str) -> _Entry:
    first = entries[0]
    for other in entries[1:]:
        if other.caption != first.caption:
            raise ValueError(
                f"{first.where} ({first.path}) and {other.where} ({other.path}) both fit {source}, "
                f"with different captions: {first.caption!r}, {other.caption!r}"
            )
    return first
