"""Methods: whatever has a restored image for a sample."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from datamodules.files import atomic_write
from datamodules.images import BadImage, Pixels, encode_png, read_image
from modules.clip.daclip import Embeddings
from modules.inference.device import is_out_of_memory
from modules.inference.restore import Conditions, NotFiniteError, RestorationModel, restore
from pipeline.evaluation.ablations import ABLATIONS, CLEAN_CONTENT, Given
from pipeline.evaluation.data import Sample, key_of
from pipeline.evaluation.memory import peak_mb, reset_peak

INPUT, MODEL = "input", "model"
"""The degraded image itself, and the model as it is; ablations of it go by their own names."""
RESTORED = "restored"
"""Folder of what the model and its ablations restore: METHOD/DATASET/TASK/NAME.png."""


class Loaded(NamedTuple):
    """Samples of one size with their images, `[B, 3, H, W]`, uint8, RGB."""

    samples: Sequence[Sample]
    degraded: Tensor
    clean: Tensor | None
    """None where there are no clean images; all samples have one, or none has."""


class Found(NamedTuple):
    """The degradation that the controller takes an image to have."""

    word: str
    probability: float


class Cost(NamedTuple):
    """What restoring one image took."""

    seconds: float
    """Wall time, embedding included; an equal share of its batch's."""
    calls: int
    """Of the network."""
    peak_mb: float | None
    """See `memory`; of its whole batch."""


class Output(NamedTuple):
    """What a method makes of one sample."""

    image: Tensor | None
    """`[3, H, W]`, uint8, RGB, on the CPU; None where there is none."""
    found: Found | None = None
    cost: Cost | None = None
    fault: str = ""
    """Why there is no image."""


class Method(Protocol):
    """A column of the table."""

    def __call__(self, batch: Loaded) -> list[Output]:
        """An output for each sample, or none at all where the method cannot work on the batch."""
        ...

    def path(self, sample: Sample) -> Path | None:
        """The file with its output for a sample; None where that is the degraded image."""
        ...


def image_of(method: Method, sample: Sample) -> Pixels:
    """What a method has made of a sample, as it is kept."""
    path = method.path(sample)
    return sample.load().degraded if path is None else read_image(path)


class Input:
    """Leaves the image as it is."""

    def __call__(self, batch: Loaded) -> list[Output]:
        """The degraded images."""
        return [Output(image) for image in batch.degraded]

    def path(self, sample: Sample) -> None:
        """It has no file of its own."""


class Outputs:
    """What another method has made, read from its folder."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files` by the sample's key."""
        self._files = files

    def __call__(self, batch: Loaded) -> list[Output]:
        """Read them."""
        return [self._read(sample) for sample in batch.samples]

    def path(self, sample: Sample) -> Path:
        """Its file."""
        return self._files[key_of(sample)]

    def _read(self, sample: Sample) -> Output:
        try:
            return Output(torch.from_numpy(read_image(self.path(sample))).permute(2, 0, 1))
        except BadImage as error:
            return Output(None, fault=str(error))


class Restorations:
    """What our model restores, as it is or under an ablation."""

    def __init__(self, name: str, models: RestorationModel, folder: Path, seed: int) -> None:
        """Restore.

        Args:
            name: MODEL, or one in ABLATIONS.
            models: trained.
            folder: of the stage, for the restored images.
            seed: of the noise, for every image, as the restore command takes it.
        """
        self._models, self._folder, self._seed = models, folder / RESTORED / name, seed
        self._ablation = ABLATIONS.get(name)
        self._needs_clean = name == CLEAN_CONTENT
        self._warm = False

    def __call__(self, batch: Loaded) -> list[Output]:
        """Restore and keep them; one by one where some of them, or all together, fail."""
        if self._needs_clean and batch.clean is None:
            return []
        found: Found | None
        try:
            return self._restore_all(batch)
        except NotFiniteError as error:
            found, fault = _found(self._models, self._models.embed(batch.degraded))[0], str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            found, fault = None, "takes more memory than there is"
        if len(batch.samples) > 1:
            return [output for one in _single(batch) for output in self(one)]
        return [Output(None, found, fault=f"{key_of(batch.samples[0])}: {fault}")]

    def _restore_all(self, batch: Loaded) -> list[Output]:
        """Restore; the first time once before, to warm up."""
        device = self._models.device
        if not self._warm:
            self._restore(batch)
            self._warm = True
        reset_peak(device)
        started = time.perf_counter()
        restored, found = self._restore(batch)
        seconds = (time.perf_counter() - started) / len(batch.samples)
        cost = Cost(seconds, self._models.sampling.network_calls, peak_mb(device))
        whole = zip(restored, found, batch.samples, strict=True)
        return [self._keep(image, sample, Output(image, f, cost)) for image, f, sample in whole]

    def path(self, sample: Sample) -> Path:
        """Where the restoration of a sample is kept."""
        return self._folder / f"{key_of(sample)}.png"

    def _keep(self, image: Tensor, sample: Sample, output: Output) -> Output:
        with atomic_write(self.path(sample)) as file:
            file.write(encode_png(image.permute(1, 2, 0).numpy()))
        return output

    @torch.inference_mode()
    def _restore(self, batch: Loaded) -> tuple[Tensor, list[Found]]:
        model = self._models
        embeddings = model.embed(batch.degraded)
        found = _found(model, embeddings)
        told: Embeddings | Conditions = embeddings
        if self._ablation is not None:
            words = [sample.task for sample in batch.samples]
            told = self._ablation(model.encoder, Given(words, batch.clean, embeddings))
        seeds = [self._seed] * len(batch.samples)
        return restore(model, batch.degraded, seeds, embeddings=told), found


def _single(batch: Loaded) -> list[Loaded]:
    clean = [None] * len(batch.samples) if batch.clean is None else batch.clean.split(1)
    parts = zip(batch.samples, batch.degraded.split(1), clean, strict=True)
    return [Loaded([sample], degraded, of_it) for sample, degraded, of_it in parts]


def _found(model: RestorationModel, embeddings: Embeddings) -> list[Found]:
    values, words = model.encoder.probabilities(embeddings).max(dim=1)
    pairs = zip(words.tolist(), values.tolist(), strict=True)
    return [Found(model.encoder.words[word], value) for word, value in pairs]
