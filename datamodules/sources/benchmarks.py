"""The public datasets of the ten tasks, read as they unpack."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datamodules.errors import MissingDatasets, SourceError
from datamodules.images import SUFFIXES
from datamodules.sources.base import (
    CleanFile,
    DegradedFile,
    FilePair,
    by_stem,
    check_list,
    sample_key,
)
from datamodules.sources.layouts import FOLDERS, LAYOUTS, Form, Layout

Sample = FilePair | CleanFile | DegradedFile
AUTO = "auto"
"""In place of a folder: look for the dataset under its usual names."""
Folder = Mapping[str, Path]
"""The images of a folder, by name without suffix."""


@dataclass(frozen=True)
class Benchmarks:
    """The public datasets as they unpack, below one root; see `datamodules.sources.layouts`.

    Degraded and clean images are paired by name. Where a dataset has clean images only, training
    degrades them at each draw, and validation images are degraded once.

    Attributes:
        root: the folder they lie in.
        datasets: name of a dataset -> its folder below `root`; None or AUTO looks for its usual
            names.
        seed: of the degraded images made for validation.
    """

    root: str
    datasets: Mapping[str, str | None]
    seed: int

    def plan(self) -> list[Sample]:
        """All samples; a degraded image without a clean one is one that cannot be made.

        Raises:
            ValueError: no dataset is named or an unknown one, a degraded image's name does not
                tell its clean image, or two names in a folder differ in their suffix alone.
            FileNotFoundError: a dataset's folder is missing, or a split of it has no image.
        """
        if not self.datasets:
            raise SourceError("datasets names no dataset")
        check_list(list(self.datasets), list(FOLDERS), "datasets")
        homes = self._homes()
        folder = cache(_images_of)
        return [
            sample
            for layout in LAYOUTS
            if layout.dataset in homes
            for sample in self._samples(layout, homes[layout.dataset], folder)
        ]

    def files(self) -> list[Path]:
        """The image files there are of all samples."""
        samples = self.plan()
        degraded = {sample.lq for sample in samples if isinstance(sample, FilePair)}
        clean = {sample.gt for sample in samples}
        return sorted(path for path in degraded | clean if path.is_file())

    def _homes(self) -> dict[str, Path]:
        """The folder of each dataset; raise MissingDatasets that names all missing ones."""
        homes: dict[str, Path] = {}
        missing = ""
        for dataset, given in self.datasets.items():
            names = FOLDERS[dataset] if given is None or given == AUTO else (given,)
            found = (_join(Path(self.root), name) for name in names)
            home = next((folder for folder in found if folder.is_dir()), None)
            if home is None:
                missing += f"\n  {dataset}: no {' or '.join(names)}"
            else:
                homes[dataset] = home
        if missing:
            raise MissingDatasets(f"datasets are missing below {self.root}:{missing}")
        return homes

    def _samples(
        self, layout: Layout, home: Path, folder: Callable[[Path], Folder]
    ) -> Iterator[Sample]:
        form, images = _find(layout, home)
        for number, path in enumerate(images):
            key = sample_key(f"{layout.dataset}-{path.stem}", number)
            if form.clean:
                gt = _clean_of(path, form, folder)
                yield FilePair(layout.split, layout.words[0], key, self._source(gt), path, gt)
            elif layout.split == "train":
                yield CleanFile(layout.split, layout.words, key, self._source(path), path)
            else:
                for word in layout.words:
                    source = self._source(path)
                    yield DegradedFile(layout.split, word, key, source, path, self.seed)

    def _source(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.root)).as_posix()


def _find(layout: Layout, home: Path) -> tuple[Form, list[Path]]:
    """The form a split is in and its images, sorted."""
    where = f"{layout.dataset} ({layout.split})"
    for form in layout.forms:
        if images := _glob(home, form.images):
            _check_names(images, form, where)
            if own := [path for path in images if re.fullmatch(layout.part, path.stem)]:
                return form, own
    raise FileNotFoundError(
        f"{where}: no image of this split in {home}; looked for "
        f"{', '.join(form.images for form in layout.forms)}"
    )


def _glob(home: Path, pattern: str) -> list[Path]:
    while pattern.startswith("../"):
        home, pattern = home.parent, pattern.removeprefix("../")
    return sorted(
        (path for path in home.glob(pattern) if _is_image(path.relative_to(home))),
        key=lambda path: path.as_posix(),
    )


def _check_names(images: list[Path], form: Form, where: str) -> None:
    wrong = [str(path) for path in images if not re.fullmatch(form.name, path.stem)]
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} of {len(images)} images are not named as in this dataset, "
            f"where names match {form.name!r} before the suffix: {', '.join(wrong[:3])}; rename or "
            "remove them"
        )
    by_stem(images)


def _clean_of(lq: Path, form: Form, folder: Callable[[Path], Folder]) -> Path:
    """The clean image of a degraded one, or where it is expected first."""
    match = re.fullmatch(form.name, lq.stem)
    assert match is not None
    expected = [_join(lq.parent, match.expand(template)) for template in form.clean]
    found = (folder(path.parent).get(path.name) for path in expected)
    missing = expected[0].with_name(expected[0].name + lq.suffix)
    return next((path for path in found if path is not None), missing)


def _images_of(folder: Path) -> Folder:
    found = folder.iterdir() if folder.is_dir() else []
    return by_stem(sorted(path for path in found if _is_image(Path(path.name))))


def _is_image(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _join(folder: Path, relative: str) -> Path:
    """The path without `..`, taken by name: links do not change where it leads."""
    return Path(os.path.normpath(folder / relative))
