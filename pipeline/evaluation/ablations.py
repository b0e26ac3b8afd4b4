"""Ablations: restoring with one of DA-CLIP's embeddings left out or replaced.

- `no_prompt`: no degradation prompt is added.
- `no_content`: no content embedding is attended to.
- `true_word`: instead of the image's degradation embedding, the text embedding of the true word,
  scaled to the length of the embedding it replaces.
- `clean_content`: instead of the content embedding of the degraded image, that of the clean one by
  CLIP's own, uncontrolled image tower, un-normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from modules.clip.daclip import Embeddings
from modules.clip.encoder import DaClipEncoder
from modules.inference.restore import Conditions
from modules.networks import describe
from pipeline.config import ConfigError


class Given(NamedTuple):
    """What an ablation may use of a batch."""

    words: Sequence[str]
    """The true degradations."""
    clean: Tensor | None
    """Clean images `[B, 3, H, W]`, uint8 or floats in [0, 1]; None where there are none."""
    embeddings: Embeddings
    """Of the degraded images."""


Ablation = Callable[[DaClipEncoder, Given], Embeddings | Conditions]


def no_prompt(encoder: DaClipEncoder, given: Given) -> Conditions:
    """Without the degradation prompt."""
    return Conditions(given.embeddings.content, None)


def no_content(encoder: DaClipEncoder, given: Given) -> Conditions:
    """Without the content embedding."""
    return Conditions(None, given.embeddings.degradation)


def true_word(encoder: DaClipEncoder, given: Given) -> Embeddings:
    """With the true word in place of the predicted degradation."""
    return encoder.prompt(given.words, given.embeddings)


def clean_content(encoder: DaClipEncoder, given: Given) -> Embeddings:
    """With the clean image's embedding in place of the predicted content.

    Raises:
        ValueError: there is no clean image.
    """
    if given.clean is None:
        raise ValueError("clean_content needs clean images")
    return given.embeddings._replace(content=encoder.embed_clean(given.clean))


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
OF_PROMPT, OF_CONTENT = ("no_prompt", "true_word"), ("no_content", "clean_content")
"""Those that change nothing in a network without the prompt, or without the content."""


def check_ablations(names: Sequence[str], network: nn.Module | None = None) -> None:
    """Refuse ablations that do not exist, or that would change nothing in a network.

    Raises:
        ConfigError: there is one of them.
    """
    if unknown := [name for name in names if name not in ABLATIONS]:
        raise ConfigError(
            f"evaluate.ablations: unknown {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(ABLATIONS)}"
        )
    if network is None:
        return
    traits = describe(network)
    for used, those, what in (
        (traits.uses_prompt, OF_PROMPT, "degradation prompt"),
        (traits.uses_content, OF_CONTENT, "content embedding"),
    ):
        if not used and (idle := [name for name in names if name in those]):
            raise ConfigError(
                f"evaluate.ablations: {', '.join(idle)} would change nothing, for this restorer "
                f"has no {what}; leave it out"
            )
