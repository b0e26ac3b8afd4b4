"""Captioners: from a clean image to the text that stage (a) pulls its content embedding to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Captioner(Protocol):
    """Anything that captions images."""

    @property
    def by(self) -> str:
        """Who or what the captions come from, for the record."""
        ...

    def files(self) -> list[Path]:
        """The local files the captions depend on."""
        ...

    def caption(self, images: Sequence[NDArray[np.uint8]], sources: Sequence[str]) -> list[str]:
        """One caption for each image.

        Args:
            images: RGB `[H, W, 3]`, uint8, of any sizes.
            sources: the name of the photograph each image is of.
        """
        ...


class BlipCaptioner:
    """BLIP (Li et al., ICML 2022) through transformers."""

    def __init__(self, model: str, max_new_tokens: int, device: str | None = None) -> None:
        """Prepare a captioner; the network is loaded when it is first needed.

        Args:
            model: a model name on the Hugging Face hub, or a folder with a saved model.
            max_new_tokens: length limit of a caption.
            device: where to run; a GPU when there is one, by default.
        """
        self.by, self._max_new_tokens, self._device = model, max_new_tokens, device
        self._loaded: tuple[Any, Any] | None = None

    def files(self) -> list[Path]:
        """The files of a local model; none for one from the hub, which its name stands for."""
        folder = Path(self.by)
        return sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []

    def caption(self, images: Sequence[NDArray[np.uint8]], sources: Sequence[str]) -> list[str]:
        """Caption a batch by beamless decoding.

        Raises:
            FileNotFoundError: the model is neither on disk nor to be had from the hub.
        """
        import torch

        processor, model = self._loaded = self._loaded or self._load()
        inputs = processor(images=list(images), return_tensors="pt").to(model.device, model.dtype)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=self._max_new_tokens, num_beams=1)
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor

        on_gpu = self._device is None and torch.cuda.is_available()
        device = self._device or ("cuda" if on_gpu else "cpu")
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        try:
            processor = BlipProcessor.from_pretrained(self.by)
            model = BlipForConditionalGeneration.from_pretrained(self.by, dtype=dtype)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"no BLIP model {self.by!r}: {error}. Where there is no network, fetch its files "
                "elsewhere and set captions.captioner.model to their folder"
            ) from error
        return processor, model.eval().to(device)


class FileCaptioner:
    """Captions that exist already, by the name of the photograph.

    The file has JSON lines `{"source": ..., "caption": ...}`.
    """

    def __init__(self, path: str) -> None:
        """Take the captions of a file."""
        self._path = Path(path)

    @property
    def by(self) -> str:
        """The file's name."""
        return self._path.name

    def files(self) -> list[Path]:
        """The file itself."""
        return [self._path]

    def caption(self, images: Sequence[NDArray[np.uint8]], sources: Sequence[str]) -> list[str]:
        """Look the captions up.

        Raises:
            ValueError: the file is damaged, or has no caption for some photographs.
        """
        captions = _read(self._path)
        if missing := sorted(set(sources) - set(captions)):
            shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise ValueError(f"{self._path} has no caption for {len(missing)} images: {shown}")
        return [captions[source] for source in sources]


def _read(path: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            source, caption = entry["source"], entry["caption"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}:{number}: expected {{"source": ..., "caption": ...}}, found {line[:80]!r}'
            ) from error
        captions[source] = " ".join(str(caption).split())
    return captions
