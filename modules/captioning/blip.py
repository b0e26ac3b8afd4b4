"""BLIP captions clean images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MissingBlip(FileNotFoundError):
    """A BLIP model that is neither on disk nor to be downloaded."""


class BlipCaptioner:
    """BLIP (Li et al., ICML 2022) through transformers."""

    def __init__(self, model: str, max_new_tokens: int, device: str | None = None) -> None:
        """Prepare a captioner; the network is loaded when it is first needed.

        Args:
            model: a model name on the Hugging Face hub, or a folder with a saved model.
            max_new_tokens: length limit of a caption.
            device: where to run; by default torch's current GPU, or the CPU where there is none.
        """
        self._model, self._max_new_tokens, self._device = model, max_new_tokens, device
        self._loaded: tuple[Any, Any] | None = None

    def check(self, sources: Sequence[str]) -> None:
        """Nothing: any image can be captioned."""

    @property
    def by(self) -> str:
        """The model."""
        return self._model

    def files(self) -> list[Path]:
        """The files of a local model; none for one from the hub, which its name stands for."""
        folder = Path(self._model)
        return sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []

    def caption(self, images: Sequence[NDArray[np.uint8]], sources: Sequence[str]) -> list[str]:
        """Caption a batch by beamless decoding, on a GPU in bfloat16.

        Raises:
            MissingBlip: the model is neither on disk nor to be downloaded.
        """
        import torch

        processor, model = self._loaded = self._loaded or self._load()
        writable = [np.require(image, requirements="W") for image in images]  # torch warns else
        inputs = processor(images=writable, return_tensors="pt").to(model.device, model.dtype)
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
            processor = BlipProcessor.from_pretrained(self._model)
            model = BlipForConditionalGeneration.from_pretrained(self._model, dtype=dtype)
        except (OSError, ValueError) as error:
            raise MissingBlip(f"no BLIP model {self._model!r}: {error}") from error
        return processor, model.eval().to(device)
