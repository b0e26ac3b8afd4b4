"""Files of captions that people have, and which caption in them is of which image.

A file has JSON lines `{"source": path of the clean image, "caption": text}`, or it is a table as
the published implementation makes it: a header line with the columns `filepath` and `title`,
separated by tabs or commas, where `filepath` is the path of the degraded image and `title` is the
caption of the clean one with `: ` and the degradation after it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIX = re.compile(r"\.[A-Za-z]{3,4}$")
"""Letters only: a name such as `0048_0.9_0.2` has no suffix."""


class Entry(NamedTuple):
    """A caption in a file."""

    where: str
    """`FILE:LINE`."""
    path: str
    caption: str


class CaptionTable:
    """Entries, to be looked up by the path of a clean image.

    Paths need not be complete. An entry fits an image when the path of one, without file suffix and
    with a folder `LQ` read as `GT`, ends with that of the other. The longest match wins. Where none
    fits, an entry does whose name is that of the image with `_` and more after it: in RESIDE, many
    hazy images `LQ/0048_0.9_0.2.png` are made from one clear `GT/0048.png`.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Index entries."""
        self._same: dict[str, list[tuple[list[str], Entry]]] = defaultdict(list)
        self._longer: dict[str, list[tuple[list[str], Entry]]] = defaultdict(list)
        for entry in entries:
            *folders, name = _parts(entry.path)
            self._same[name].append(([*folders, name], entry))
            words = name.split("_")
            for start in ("_".join(words[:n]) for n in range(1, len(words))):
                self._longer[start].append(([*folders, start], entry))

    def find(self, source: str) -> Entry | None:
        """The entry of an image, None where there is none.

        Raises:
            ValueError: several fit equally well and have different captions.
        """
        wanted = _parts(source)
        for candidates in (self._same, self._longer):
            lengths = [(_match(parts, wanted), entry) for parts, entry in candidates[wanted[-1]]]
            longest = max((length for length, _ in lengths), default=0)
            if longest > 0:
                return _only([e for length, e in lengths if length == longest], source)
        return None


def read_entries(path: Path, words: Collection[str]) -> list[Entry]:
    """The entries of a file.

    Args:
        path: the file, UTF-8 text.
        words: the degradations that may end a title.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file, or a line of it, is not as described above.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    lines = ((f"{path}:{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    where, first = next(lines, (str(path), ""))
    if first.lstrip().startswith("{"):
        entries = [_json_entry(*line) for line in [(where, first), *lines]]
    else:
        entries = list(_table_entries(where, first, lines, words))
    for entry in entries:
        if not (entry.path.strip("/\\. ") and entry.caption):
            raise ValueError(f"{entry.where}: the path or the caption is empty")
    return entries


def _json_entry(where: str, line: str) -> Entry:
    try:
        found = json.loads(line)
        source, caption = found["source"], found["caption"]
        if not (isinstance(source, str) and isinstance(caption, str)):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{where}: expected {{"source": ..., "caption": ...}}, found {line[:80]!r}'
        ) from error
    return Entry(where, source, " ".join(caption.split()))


def _table_entries(
    where: str, header: str, lines: Iterable[tuple[str, str]], words: Collection[str]
) -> Iterator[Entry]:
    separator = "\t" if "\t" in header else ","
    columns = [name.strip() for name in _fields(header, separator)]
    if not {"filepath", "title"} <= set(columns):
        raise ValueError(
            f'{where}: expected JSON lines {{"source": ..., "caption": ...}}, or a header with '
            f"`filepath` and `title` separated by a tab or comma, found {header[:80]!r}"
        )
    for place, line in lines:
        fields = _fields(line, separator)
        if len(fields) != len(columns):
            raise ValueError(
                f"{place}: {len(fields)} fields, but {len(columns)} in the header; a field that "
                f"contains {separator!r} needs double quotes around it"
            )
        row = dict(zip(columns, fields, strict=True))
        yield Entry(place, row["filepath"], _caption_of(row["title"], words))


def _fields(line: str, separator: str) -> list[str]:
    """The fields of a line; quotes count only where they enclose a field, doubled inside."""
    field = rf'(?:^|{separator})(?:"((?:[^"]|"")*)"(?={separator}|$)|([^{separator}]*))'
    return [
        bare if quoted is None else quoted.replace('""', '"')
        for quoted, bare in (match.groups() for match in re.finditer(field, line))
    ]


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


def _only(entries: list[Entry], source: str) -> Entry:
    first = entries[0]
    for other in entries[1:]:
        if other.caption != first.caption:
            raise ValueError(
                f"{first.where} ({first.path}) and {other.where} ({other.path}) both fit {source}, "
                f"with different captions: {first.caption!r}, {other.caption!r}"
            )
    return first
