"""Switches that take from the restorer, or give it, what DA-CLIP tells of an image.

- `no_prompt`: no degradation prompt is added.
- `no_content`: no content embedding is attended to.
- `true_word`: instead of the image's degradation embedding, the text embedding of the true word, as
  long as the embedding it replaces.
- `clean_content`: instead of the content embedding of the degraded image, what CLIP's own,
  uncontrolled image tower says of the clean one, un-normalised as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from modules.clip.daclip import Embeddings
from modules.inference.restore import Denoiser
from modules.networks.unet import ConditionalUNet
from pipeline.config import ConfigError
from pipeline.models.store import Models


class Seen(NamedTuple):
    """A batch as an ablation sees it."""

    words: Sequence[str]
    """The true degradations."""
    clean: Tensor | None
    """Clean images `[B, 3, H, W]` in [0, 1]; None where there are none."""
    embeddings: Embeddings
    """What DA-CLIP says of the degraded images."""


Condition = tuple[Denoiser, Embeddings]
"""The restorer and what it is told."""
Ablation = Callable[[Models, Seen], Condition]


class PartlyTold(nn.Module):
    """A restorer network that is not told one of the embeddings."""

    def __init__(self, network: nn.Module, degradation: bool, content: bool) -> None:
        super().__init__()
        self.network, self._degradation, self._content = network, degradation, content

    def forward(
        self, x_t: Tensor, mu: Tensor, t: int | Tensor, degradation: Tensor, content: Tensor
    ) -> Tensor:
        """The network's output; see `ConditionalUNet.forward`."""
        told = degradation if self._degradation else None, content if self._content else None
        output: Tensor = self.network(x_t, mu, t, *told)
        return output


def no_prompt(models: Models, seen: Seen) -> Condition:
    """Without the degradation prompt."""
    return _partly_told(models.denoiser, degradation=False, content=True), seen.embeddings


def no_content(models: Models, seen: Seen) -> Condition:
    """Without the content embedding."""
    return _partly_told(models.denoiser, degradation=True, content=False), seen.embeddings


def true_word(models: Models, seen: Seen) -> Condition:
    """With the true word in place of the predicted degradation."""
    return models.denoiser, models.controller.tell(seen.words, seen.embeddings)


def clean_content(models: Models, seen: Seen) -> Condition:
    """With the clean image's embedding in place of the predicted content.

    Raises:
        ValueError: there is no clean image.
    """
    if seen.clean is None:
        raise ValueError("clean_content needs clean images")
    content = models.controller.embed_clean(seen.clean)
    return models.denoiser, seen.embeddings._replace(content=content)


CLEAN_CONTENT = "clean_content"
"""The one that needs clean images."""
ABLATIONS: dict[str, Ablation] = {
    "no_prompt": no_prompt,
    "no_content": no_content,
    "true_word": true_word,
    CLEAN_CONTENT: clean_content,
}
TITLES = {
    "no_prompt": "no degradation prompt",
    "no_content": "no content embedding",
    "true_word": "true word's embedding as prompt",
    "clean_content": "clean image's content embedding",
}
"""What they are called in a report."""
OF_PROMPT = ("no_prompt", "true_word")
"""Those that change nothing in a network without the prompt."""


def check_ablations(names: Sequence[str], network: nn.Module | None = None) -> None:
    """Refuse ablations that do not exist, or that a network has nothing to show of.

    Raises:
        ConfigError: there is one of them.
    """
    if unknown := [name for name in names if name not in ABLATIONS]:
        raise ConfigError(
            f"evaluate.ablations: unknown {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(ABLATIONS)}"
        )
    idle = [name for name in names if name in OF_PROMPT]
    if idle and isinstance(network, ConditionalUNet) and network.prompt is None:
        raise ConfigError(
            f"evaluate.ablations: {', '.join(idle)} would change nothing, for this restorer has no "
            "degradation prompt; leave it out"
        )


def _partly_told(denoiser: Denoiser, degradation: bool, content: bool) -> Denoiser:
    return denoiser._replace(network=PartlyTold(denoiser.network, degradation, content))
