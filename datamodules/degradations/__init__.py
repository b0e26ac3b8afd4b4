"""Synthetic degradations: pure functions of a clean image and a seed.

Each lives in a file of its own in this folder, with a constant `WORD` and a function
`degrade(clean, rng)`. The files are found by looking, so a new degradation is a new file.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from importlib import import_module

import numpy as np

from datamodules.images import Pixels

Degradation = Callable[[Pixels, np.random.Generator], Pixels]


def discover(folders: Iterable[str], package: str) -> dict[str, Degradation]:
    """The degradations in a package's folders, by word, sorted; files named `_*` are helpers.

    Raises:
        ValueError: a file lacks its word or function, or two files have the same word.
    """
    found: dict[str, Degradation] = {}
    for info in pkgutil.iter_modules(folders):
        if info.name.startswith("_"):
            continue
        module = import_module(f"{package}.{info.name}")
        if not hasattr(module, "WORD") or not hasattr(module, "degrade"):
            raise ValueError(f"{module.__file__}: needs WORD and degrade(clean, rng)")
        if module.WORD in found:
            raise ValueError(
                f"{module.__file__}: the word {module.WORD!r} is taken; choose another"
            )
        found[module.WORD] = module.degrade
    return dict(sorted(found.items()))


DEGRADATIONS = discover(__path__, __name__)
WORDS: tuple[str, ...] = tuple(DEGRADATIONS)
"""The degradation words, sorted."""


def degrade(word: str, clean: Pixels, seed: int) -> Pixels:
    """Degrade a clean image; the same arguments give the same bytes.

    Args:
        word: one of `WORDS`.
        clean: an RGB image `[H, W, 3]`, uint8, of at least 32 x 32; it is not changed.
        seed: of everything random in the degradation.

    Returns:
        A new image of the same shape and type.

    Raises:
        ValueError: the word is unknown.
    """
    if word not in DEGRADATIONS:
        raise ValueError(f"unknown degradation {word!r}; known words: {', '.join(WORDS)}")
    return DEGRADATIONS[word](clean, np.random.default_rng(seed))
