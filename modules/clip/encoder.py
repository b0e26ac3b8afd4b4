"""A trained DA-CLIP in use: embeddings of images and texts, and which degradation it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from modules.clip.daclip import DaClip, Embeddings
from modules.clip.preprocess import clip_crops


class DaClipEncoder:
    """A trained DA-CLIP with the degradations it tells apart."""

    def __init__(self, daclip: DaClip, words: Sequence[str], crops_per_side: int = 1) -> None:
        """Compute the words' text embeddings once.

        Args:
            daclip: the network.
            words: the degradations.
            crops_per_side: square crops along each side of an image, whose embeddings are averaged;
                1 embeds the whole image.
        """
        self.daclip, self.words = daclip.eval().requires_grad_(False), tuple(words)
        self.crops_per_side = crops_per_side
        self._texts = self.embed_texts(self.words)

    def to(self, device: torch.device) -> DaClipEncoder:
        """Move to a device."""
        self.daclip.to(device)
        self._texts = self._texts.to(device)
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> DaClipEncoder:
        """Itself: frozen, it need not be doubled when a training module is, for its average."""
        return self

    @torch.no_grad()
    def embed(self, degraded: Tensor) -> Embeddings:
        """Content and degradation of images `[B, 3, H, W]`, as `clip_preprocess` takes them.

        The images may be on any device; the embeddings are on the controller's.
        """
        return self.daclip.embed(degraded, self.crops_per_side)

    @torch.no_grad()
    def embed_clean(self, clean: Tensor) -> Tensor:
        """CLIP's own embedding of clean images `[B, 3, H, W]`, seen as in `embed`: `[B, D]`."""
        views = clip_crops(clean, self.daclip.image_size, self.crops_per_side).to(
            self._texts.device
        )
        each = self.daclip.encode_clean(views.flatten(0, 1))
        mean: Tensor = each.unflatten(0, views.shape[:2]).mean(dim=1)
        return mean

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Directions that texts name, of unit length: `[N, D]`."""
        return normalize(self.daclip.encode_text(self.daclip.tokenize(texts)), dim=-1)

    def prompt(self, words: Sequence[str], embeddings: Embeddings) -> Embeddings:
        """Embeddings with the text embedding of each image's word as that of its degradation.

        They are scaled to the length of what they replace: embeddings are used un-normalised, and
        those of texts have other lengths than those the restorer was trained with.

        Raises:
            ValueError: the controller does not know a word.
        """
        if unknown := sorted(set(words) - set(self.words)):
            raise ValueError(
                f"the controller does not know {', '.join(unknown)}, but {', '.join(self.words)}"
            )
        directions = self._texts[[self.words.index(word) for word in words]]
        length = torch.linalg.vector_norm(embeddings.degradation, dim=-1, keepdim=True)
        return embeddings._replace(degradation=directions * length)

    def probabilities(self, embeddings: Embeddings) -> Tensor:
        """How likely each word is, `[B, words]`: softmax of the scaled cosines."""
        cosines = normalize(embeddings.degradation, dim=-1) @ self._texts.T
        return (self.daclip.logit_scale.exp() * cosines).softmax(dim=-1)
