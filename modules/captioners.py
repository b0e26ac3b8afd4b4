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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modules.caption_files import CaptionTable, read_entries


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


class BlipCaptioner(Captioner):
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
            FileNotFoundError: the model is neither on disk nor to be had from the hub.
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
            raise FileNotFoundError(
                f"no BLIP model {self._model!r}: {error}. Where there is no network, fetch its "
                "files elsewhere and set captions.captioner.model to their folder"
            ) from error
        return processor, model.eval().to(device)


class FileCaptioner(Captioner):
    """Captions that exist already, in files as `modules.caption_files` describes them.

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
