"""`Restorer`: trained models that restore images from Python."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.clip.daclip import Embeddings
from modules.clip.encoder import DaClipEncoder
from modules.inference.device import auto_side, choose_device, choose_dtype
from modules.inference.restore import Denoiser, make_sampling
from modules.inference.tiling import SMALLEST, Window, count_tiles
from pipeline.models.store import load_pair
from pipeline.restore.canvas import OnCall, Work, deviation, restore_canvas
from pipeline.restore.image_io import Canvas
from pipeline.restore.pictures import Given, Picture, check_canvas, open_picture
from pipeline.restore.prompt import parse_choice, steer

MOST_SEED = 2**63
Tile = int | Literal["auto"] | None


class Progress(NamedTuple):
    """How far a restoration is, after a network call."""

    done: int
    """Network calls so far."""
    total: int
    """All of them: tiles x steps x candidates."""
    state: Callable[[], Tensor]
    """Makes what the network now takes the tile to be: `[3, h, w]` in [0, 1], on the CPU."""
    tile: Window
    """Where the tile lies in the image; the whole image where there is one tile."""


OnStep = Callable[[Progress], None]


class Options(TypedDict, total=False):
    """How to restore; see `Restorer.restore_pixels`."""

    degradation: str
    steps: int | None
    seed: int
    tile: Tile
    strength: float
    candidates: int


class Request(Options, total=False):
    """How to restore, and whom to tell of it."""

    on_step: OnStep | None


@dataclass(frozen=True)
class Restoration:
    """A restored image, and how it was made."""

    image: Picture
    """Of the kind that came in; a Pillow image of a path."""
    degradation: dict[str, float]
    """Probability of each word, by what was seen in the image, the highest first."""
    prompt: dict[str, float]
    """What the restorer was told, with shares; `{"auto": 1.0}`: what was seen."""
    candidates: list[Picture]
    """All results, one for each of the seeds; the first is `image`."""
    uncertainty: NDArray[np.float32] | None
    """`[H, W]`: standard deviation over the candidates, of values in [0, 1], as the mean of the
    channels; None of one candidate."""
    tiles: int
    calls: int
    """Network calls, of all tiles and candidates."""
    seconds: float


class Restorer:
    """Trained models that restore images."""

    def __init__(
        self,
        controller: DaClipEncoder,
        denoiser: Denoiser,
        sampling: Mapping[str, Any],
        *,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        """Restore with loaded models, which move to the device.

        Args:
            controller: sees degradations.
            denoiser: the restorer that was trained with it.
            sampling: `name`, `eta`, `num_steps` and `timestep_spacing`; see `make_sampling`.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
            precision: `auto`, `float32` or `bfloat16`.

        Raises:
            ValueError: a device, precision or sampling that there is not.
        """
        self.device = choose_device(device)
        self._dtype = choose_dtype(precision, self.device, denoiser)
        self._sampling = make_sampling(**sampling)
        self._controller = controller.to(self.device)
        self._denoiser = denoiser.to(self.device)

    @classmethod
    def from_pretrained(
        cls, model: str | Path | None = None, *, device: str = "auto", precision: str = "auto"
    ) -> Restorer:
        """Load a model.

        Args:
            model: a released name, a folder, a Hugging Face repository `owner/name`, or None for
                the model that comes with the project.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU where there is one.
            precision: `auto`, `float32` or `bfloat16`; `auto` is the fastest that is safe.

        Raises:
            BadModel: there is no such model, or its files cannot be used.
            ValueError: there is no such device or precision.
        """
        from pipeline.models.hub import find_model

        files = find_model(model)
        pair = load_pair(files.controller, files.restorer)
        return cls(*pair, files.sampler, device=device, precision=precision)

    @property
    def words(self) -> tuple[str, ...]:
        """The degradations that are told apart."""
        return self._controller.words

    @property
    def T(self) -> int:
        """Most steps that an image can take."""
        return self._denoiser.schedule.T

    @property
    def steps(self) -> int:
        """Network calls of an image where nothing else is said."""
        return self._sampling.num_steps

    @overload
    def __call__(self, images: list[Any], **options: Unpack[Request]) -> list[Restoration]: ...
    @overload
    def __call__(self, images: Given, **options: Unpack[Request]) -> Restoration: ...
    def __call__(
        self, images: Given | list[Any], **options: Unpack[Request]
    ) -> Restoration | list[Restoration]:
        """Restore one image or several, one after the other.

        An image and a seed give one result, whatever other images there are.

        Args:
            images: a path, a Pillow image, an array `[H, W, 3]` or `[H, W]` (uint8, uint16, or
                floats in [0, 1]), a tensor `[3, H, W]` of floats in [0, 1], or a list of them;
                a tensor `[B, 3, H, W]` is such a list.
            options: as `restore_pixels` takes them.

        Returns:
            A restoration of one image, a list of a list or of a batch.

        Raises:
            BadImage: a file cannot be used.
            ValueError: an image or an option that cannot be.
        """
        if isinstance(images, list) or (isinstance(images, Tensor) and images.ndim == 4):
            return [self._restore(image, **options) for image in images]
        return self._restore(images, **options)

    def _restore(self, image: Given, **options: Unpack[Request]) -> Restoration:
        opened = open_picture(image)
        found = self.restore_pixels(opened.canvas, **options)
        pictures = [opened.give_back(canvas) for canvas in found.candidates]
        return replace(found, image=pictures[0], candidates=pictures)

    @torch.inference_mode()
    def restore_pixels(
        self,
        pixels: Canvas,
        *,
        degradation: str = "auto",
        steps: int | None = None,
        seed: int = 0,
        tile: Tile = "auto",
        strength: float = 1.0,
        candidates: int = 1,
        on_step: OnStep | None = None,
    ) -> Restoration:
        """Restore an RGB image; what comes back is of its type.

        Args:
            pixels: `[H, W, 3]`, uint8 in 0..255, uint16 in 0..65535, or float32 in [0, 1].
            degradation: `auto` for what is seen, a word, free text, or several with weights, such
                as `noisy:0.5,low-light`.
            steps: network calls, in 1..T; None for the model's own number.
            seed: of the noise, 0 or more.
            tile: side of the tiles in pixels; None for the whole image at once; `auto` for tiles
                where memory asks for them.
            strength: from 0, the image as it is, to 1, the restoration.
            candidates: results to make; the k-th of them, from 0, is that of `seed + k`.
            on_step: told of each network call; what it raises ends the restoration.

        Raises:
            ValueError: an option is out of range, or the array is no such image.
        """
        started = time.perf_counter()
        check_canvas(pixels)
        choice = self.check(
            degradation=degradation,
            steps=steps,
            seed=seed,
            tile=tile,
            strength=strength,
            candidates=candidates,
        )
        height, width, _ = pixels.shape
        side = self._side(height, width, tile)
        sampling = self._sampling._replace(num_steps=steps or self.steps)
        tiles = count_tiles(height, width, side)
        calls = tiles * sampling.num_steps * candidates
        seen = self._controller.embed(_planes(pixels)[None])
        told = steer(self._controller, seen, choice)
        tell = _teller(on_step, calls)
        work = Work(self._denoiser, self._dtype, told, sampling, side, strength, tell)
        made = [restore_canvas(work, pixels, seed + k) for k in range(candidates)]
        return Restoration(
            image=made[0],
            degradation=self._probabilities(seen),
            prompt=choice,
            candidates=list(made),
            uncertainty=deviation(made) if candidates > 1 else None,
            tiles=tiles,
            calls=calls,
            seconds=time.perf_counter() - started,
        )

    def check(
        self,
        *,
        degradation: str = "auto",
        steps: int | None = None,
        seed: int = 0,
        tile: Tile = "auto",
        strength: float = 1.0,
        candidates: int = 1,
    ) -> dict[str, float]:
        """Check options of `restore_pixels`; what the degradation tells the restorer, by shares.

        Raises:
            ValueError: one is out of range.
        """
        if steps is not None and not 1 <= steps <= self.T:
            raise ValueError(f"steps must be in 1..{self.T} with this model, got {steps}")
        for name, number in (("steps", steps or 1), ("seed", seed), ("candidates", candidates)):
            if not isinstance(number, Integral):
                raise ValueError(f"{name} must be a whole number, got {number!r}")
        if not 0 <= seed < MOST_SEED:
            raise ValueError(f"the seed must be in 0..{MOST_SEED - 1}, got {seed}")
        if tile not in ("auto", None) and (not isinstance(tile, int) or tile < SMALLEST):
            raise ValueError(f"tile must be auto, None or {SMALLEST} pixels or more, got {tile!r}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be in 0..1, got {strength}")
        if candidates < 1:
            raise ValueError(f"candidates must be 1 or more, got {candidates}")
        return parse_choice(degradation, self.words)

    def _side(self, height: int, width: int, tile: Tile) -> int:
        """Of the tiles; of a whole image, that of the one tile."""
        if tile == "auto":
            tile = auto_side(height, width, self._denoiser.network, self.device, self._dtype)
        return max(height, width, SMALLEST) if tile is None else tile

    def _probabilities(self, seen: Embeddings) -> dict[str, float]:
        found = self._controller.probabilities(seen)[0].tolist()
        pairs = zip(self.words, found, strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))


def _planes(pixels: Canvas) -> Tensor:
    """`[3, H, W]`, a view where torch can have one."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)


def _teller(on_step: OnStep | None, total: int) -> OnCall:
    """Counts network calls, and tells of them."""
    calls = itertools.count(1)

    def tell(tile: Window, x_0: Tensor) -> None:
        if on_step is not None:
            on_step(Progress(next(calls), total, partial(_shown, x_0), tile))

    return tell


def _shown(x_0: Tensor) -> Tensor:
    return x_0[0].float().clamp(0, 1).cpu()
