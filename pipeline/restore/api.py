"""`Restorer`: trained models that restore images from Python."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modules.clip.daclip import Embeddings
from modules.clip.encoder import DaClipEncoder
from modules.inference.device import choose_device
from modules.inference.restore import (
    Denoiser,
    OnCall,
    Tile,
    make_sampling,
    place_model,
    restore,
    tile_side,
    to_floats,
)
from modules.inference.tiling import SMALLEST, Window, count_tiles
from modules.networks import describe
from pipeline.models.store import load_pair
from pipeline.restore.image_io import Canvas
from pipeline.restore.pictures import Given, Picture, check_canvas, open_picture
from pipeline.restore.prompt import AUTO, parse_choice, prompt_embeddings

MOST_SEED = 2**63


class Progress(NamedTuple):
    """How far a restoration is, after a network call."""

    done: int
    """Network calls so far."""
    total: int
    """All of them: tiles x network calls of a tile x candidates."""
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
    """Probability of each word, by the image's own embedding, the highest first."""
    prompt: dict[str, float]
    """What the restorer was prompted with, with shares; `{"auto": 1.0}`: the image's embedding."""
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
            controller: embeds images and texts.
            denoiser: the restorer that was trained with it.
            sampling: `name`, `eta`, `num_steps` and `timestep_spacing`; see `make_sampling`.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
            precision: `auto`, `float32` or `bfloat16`.

        Raises:
            ValueError: a device, precision or sampling that there is not.
        """
        self.device = choose_device(device)
        self.model = place_model(
            controller, denoiser, make_sampling(**sampling), self.device, precision
        )

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
        return self.model.encoder.words

    @property
    def T(self) -> int:
        """Most steps that an image can take."""
        return self.model.denoiser.schedule.T

    @property
    def steps(self) -> int:
        """Sampling steps of an image where nothing else is said."""
        return self.model.sampling.num_steps

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
            degradation: `auto` for what the encoder finds, a word, free text, or several with
                weights, such as `noisy:0.5,low-light`.
            steps: of the sampler, in 1..T; None for the model's own number.
            seed: of the noise, 0 or more.
            tile: side of the tiles in pixels; None for the whole image at once; `auto` for tiles
                where memory asks for them.
            strength: from 0, the image as it is, to 1, the restoration.
            candidates: results to make; the k-th of them, from 0, is that of `seed + k`.
            on_step: called after each network call; what it raises ends the restoration.

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
        model, planes = self.model, _planes(pixels)
        sampling = model.sampling._replace(num_steps=steps or self.steps)
        height, width, _ = pixels.shape
        side = tile_side(model, height, width, tile)
        tiles = count_tiles(height, width, side)
        calls = tiles * sampling.network_calls * candidates
        embeddings = model.embed(planes)
        prompted = prompt_embeddings(model.encoder, embeddings, choice)
        on_call = _report(on_step, calls)
        made = [
            restore(
                model,
                planes,
                [seed + k],
                embeddings=prompted,
                num_steps=sampling.num_steps,
                tile=side,
                strength=strength,
                on_call=on_call,
            )
            for k in range(candidates)
        ]
        canvases = [image[0].permute(1, 2, 0).numpy() for image in made]
        return Restoration(
            image=canvases[0],
            degradation=self._probabilities(embeddings),
            prompt=choice,
            candidates=list(canvases),
            uncertainty=deviation(canvases) if candidates > 1 else None,
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
        """Check options of `restore_pixels`; the parts of the prompt with their shares.

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
        choice = parse_choice(degradation, self.words)
        if choice.keys() != {AUTO} and not describe(self.model.denoiser.network).uses_prompt:
            raise ValueError(
                f"degradation {degradation!r} would change nothing: this model's restorer takes no "
                "degradation prompt; leave it at auto"
            )
        return choice

    def _probabilities(self, embeddings: Embeddings) -> dict[str, float]:
        found = self.model.encoder.probabilities(embeddings)[0].tolist()
        pairs = zip(self.words, found, strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))


def deviation(candidates: Sequence[Canvas]) -> NDArray[np.float32]:
    """Standard deviation over images of values in [0, 1], as the mean of the channels: `[H, W]`."""
    rows = zip(*candidates, strict=True)
    spread = [
        to_floats(torch.from_numpy(np.stack(row))).std(dim=0, correction=0).mean(dim=-1)
        for row in rows
    ]
    found: NDArray[np.float32] = torch.stack(spread).numpy()
    return found


def _planes(pixels: Canvas) -> Tensor:
    """`[1, 3, H, W]`, a view where torch can have one."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]


def _report(on_step: OnStep | None, total: int) -> OnCall | None:
    """Count network calls and report each."""
    calls = itertools.count(1)

    def report(tile: Window, x_0: Tensor) -> None:
        assert on_step is not None
        on_step(Progress(next(calls), total, partial(_shown, x_0), tile))

    return report if on_step is not None else None


def _shown(x_0: Tensor) -> Tensor:
    return x_0[0].float().clamp(0, 1).cpu()
