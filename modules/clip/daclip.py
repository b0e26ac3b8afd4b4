"""DA-CLIP: a frozen CLIP and a trainable copy of its vision tower that controls it.

Both towers see the degraded image (Luo et al., ICLR 2024, arXiv 2310.01018, section 3). The
copy, the controller, embeds the degradation; a zero-initialised linear after each of its blocks
makes the signals that turn the frozen tower's embedding into that of the clean image.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from open_clip import CLIP, tokenize  # type: ignore[import-untyped]
from open_clip.transformer import VisionTransformer  # type: ignore[import-untyped]
from torch import Tensor, nn

from modules.clip.preprocess import clip_crops
from modules.clip.weights import build_clip


class Embeddings(NamedTuple):
    """What DA-CLIP says of degraded images; neither is normalised."""

    content: Tensor
    """Embedding of the clean image, as far as it can be told: `[B, D]`."""
    degradation: Tensor
    """Embedding of the degradation: `[B, D]`."""


class ImageController(nn.Module):
    """A copy of a vision tower with a zero-initialised linear after each block."""

    def __init__(self, tower: VisionTransformer) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower)
        width = tower.transformer.width
        self.zero_linears = nn.ModuleList(
            nn.Linear(width, width) for _ in self.tower.transformer.resblocks
        )
        for parameter in self.zero_linears.parameters():
            nn.init.zeros_(parameter)

    def forward(self, view: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The degradation embedding `[B, D]` and each block's signal `[B, tokens, width]`.

        The signals do not enter the controller's own stream.
        """
        x = self.tower._embeds(view)
        signals = []
        for block, zero_linear in zip(
            self.tower.transformer.resblocks, self.zero_linears, strict=True
        ):
            x = block(x)
            signals.append(zero_linear(x))
        return _project(self.tower, x), signals


class DaClip(nn.Module):
    """CLIP with an image controller; `logit_scale` is shared by both contrastive losses.

    CLIP is frozen, and stays in evaluation mode, until `unfreeze_clip` is called.

    Raises:
        ValueError: CLIP's vision tower is not one the method fits.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        _check_tower(clip.visual)
        self.clip = clip
        self.controller = ImageController(clip.visual)
        self.logit_scale = nn.Parameter(clip.logit_scale.detach().clone())
        self.clip_is_frozen = True
        self.clip.requires_grad_(False).eval()

    @property
    def image_size(self) -> int:
        """Side of the square view, in pixels."""
        return int(self.clip.visual.image_size[0])

    @property
    def embed_dim(self) -> int:
        """D, the width of all embeddings."""
        return int(self.clip.visual.output_dim)

    def forward(self, view: Tensor) -> Embeddings:
        """Embed degraded images: `[B, 3, S, S]` with CLIP's normalisation."""
        degradation, signals = self.controller(view)
        return Embeddings(_controlled(self.clip.visual, view, signals), degradation)

    def embed(self, images: Tensor, crops_per_side: int = 1) -> Embeddings:
        """Embed degraded images `[B, 3, H, W]`: the mean over the views of `clip_crops`.

        The images may be on any device; the embeddings are on the model's.
        """
        views = clip_crops(images, self.image_size, crops_per_side).to(self.logit_scale.device)
        embedded = self(views.flatten(0, 1))
        return Embeddings(*(part.unflatten(0, views.shape[:2]).mean(dim=1) for part in embedded))

    def encode_clean(self, view: Tensor) -> Tensor:
        """CLIP's own embedding `[B, D]`, un-normalised, of clean images `[B, 3, S, S]`."""
        features: Tensor = self.clip.encode_image(view)
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """CLIP's embedding `[B, D]`, un-normalised, of texts given as int64 `[B, length]`."""
        features: Tensor = self.clip.encode_text(tokens)
        return features

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts to int64 tokens `[B, length]`, cut to the model's length, on its device."""
        tokens: Tensor = tokenize(list(texts), context_length=self.clip.context_length)
        return tokens.to(self.logit_scale.device)

    def unfreeze_clip(self) -> None:
        """Let CLIP's two towers train too, for a start without pretrained weights."""
        self.clip_is_frozen = False
        self.clip.requires_grad_(True).train(self.training)
        # No loss reads CLIP's own scale, and a parameter without gradient stops DDP.
        self.clip.logit_scale.requires_grad_(False)

    def train(self, mode: bool = True) -> DaClip:
        """Set the mode of the controller, and of CLIP unless it is frozen."""
        super().train(mode)
        if self.clip_is_frozen:
            self.clip.eval()
        return self


def build_daclip(
    architecture: str | Mapping[str, Any], weights: str | Path | None = None
) -> DaClip:
    """Build DA-CLIP at its start: the controller a copy of CLIP, the control zero.

    Args:
        architecture: an open_clip model name, such as `ViT-B-32`, or its configuration
            `{embed_dim, vision_cfg, text_cfg}`; with `stem`, a list of channels, patches are
            embedded by that many convolutions, see `ConvStem`.
        weights: CLIP's weights: None for random ones, an open_clip tag, such as
            `laion2b_s34b_b79k`, which open_clip downloads, or the path of a checkpoint.

    Raises:
        FileNotFoundError: there is no such checkpoint, or the tag cannot be downloaded.
        ValueError: the architecture or the tag is unknown or does not fit the method, or the
            checkpoint is damaged or of another architecture.
    """
    return DaClip(build_clip(architecture, weights))


def _controlled(tower: VisionTransformer, view: Tensor, signals: Sequence[Tensor]) -> Tensor:
    """The tower's embedding, a signal added to each block's output, token by token."""
    x = tower._embeds(view)
    # Reversed, as the reference has it: block k of n takes the signal of block n + 1 - k.
    for block, signal in zip(tower.transformer.resblocks, reversed(signals), strict=True):
        x = block(x) + signal
    return _project(tower, x)


def _project(tower: VisionTransformer, x: Tensor) -> Tensor:
    pooled, _ = tower._pool(x)
    embedding: Tensor = pooled @ tower.proj
    return embedding


def _check_tower(tower: nn.Module) -> None:
    if not isinstance(tower, VisionTransformer):
        raise ValueError(
            f"the vision tower is a {type(tower).__name__}, but the control needs open_clip's own "
            "VisionTransformer; choose an architecture such as ViT-B-32 or ViT-L-14"
        )
    height, width = tower.image_size
    if height != width or tower.output_tokens or not isinstance(tower.patch_dropout, nn.Identity):
        raise ValueError(
            f"the vision tower takes {height}x{width} images with output_tokens="
            f"{tower.output_tokens} and patch dropout {tower.patch_dropout}; the control needs "
            "square images, one embedding and all patches"
        )
