"""What `--degradation` says: `auto`, a word, free text, or several of them with weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import torch
from torch.nn.functional import normalize

from modules.clip.daclip import Embeddings
from modules.clip.encoder import DaClipEncoder

AUTO = "auto"
"""The degradation that the encoder finds in the image."""
CLOSE = 0.75
"""Likeness from which a single unknown word is taken for a misspelt one."""
MOST_PARTS = 16
MOST_CHARACTERS = 500
"""Of a choice: the texts are embedded as one batch, and a long word is slow to tokenise."""


def parse_choice(text: str, words: Sequence[str]) -> dict[str, float]:
    """The parts of a choice with their shares, which sum to 1, in the order they are named.

    Parts stand between commas, each with its weight behind a colon, 1 where there is none:
    `noisy:0.5, low-light`. Words of the model may be written `Low light` or `low_light`, too.

    Args:
        text: the choice.
        words: that the model knows; anything else is free text.

    Raises:
        ValueError: a part is empty, named twice or nearly a known word, or a weight is no number
            of 0 or more, or all of them are 0, or the choice is too long.
    """
    parts = text.split(",")
    if len(text) > MOST_CHARACTERS or len(parts) > MOST_PARTS:
        raise ValueError(
            f"the degradation has {len(text)} characters in {len(parts)} parts; it may have "
            f"{MOST_CHARACTERS} in {MOST_PARTS} at most"
        )
    weights: dict[str, float] = {}
    for part in parts:
        name, weight = _part(part, text, words)
        if name in weights:
            raise ValueError(f"degradation {text!r} names {name!r} twice; name each once")
        weights[name] = weight
    total = sum(weights.values())
    if not 0 < total < math.inf:
        raise ValueError(f"the weights of degradation {text!r} sum to {total:g}; give others")
    return {name: weight / total for name, weight in weights.items()}


def prompt_embeddings(
    encoder: DaClipEncoder, embeddings: Embeddings, choice: Mapping[str, float]
) -> Embeddings:
    """Embeddings of an image with the chosen degradation in place of its own.

    The directions of the texts, and that of the image for `auto`, are summed by their shares; the
    sum is scaled to the length of the image's embedding, as the restorer was trained with those.

    Args:
        encoder: embeds texts.
        embeddings: of one image.
        choice: shares by name, from `parse_choice`.
    """
    if choice.keys() == {AUTO}:
        return embeddings
    texts = iter(encoder.embed_texts([name for name in choice if name != AUTO]))
    own = normalize(embeddings.degradation[0], dim=0)
    directions = torch.stack([own if name == AUTO else next(texts) for name in choice])
    shares = directions.new_tensor(list(choice.values()))
    mixed = normalize(shares @ directions, dim=0) * embeddings.degradation[0].norm()
    return embeddings._replace(degradation=mixed[None])


def _part(part: str, text: str, words: Sequence[str]) -> tuple[str, float]:
    named, colon, number = part.strip().rpartition(":")
    name = (named if colon else number).strip()
    if not name:
        raise ValueError(
            f"degradation {text!r} has an empty part; write it as auto, a word or free text, or "
            "several with weights, as in noisy:0.5,low-light"
        )
    return _known(name, words), _weight(number, part) if colon else 1.0


def _weight(number: str, part: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"{number.strip()!r} in {part.strip()!r} is no weight; behind a colon stands a number "
            "of 0 or more, as in noisy:0.5"
        )
    return weight


def _known(name: str, words: Sequence[str]) -> str:
    """The known word that is meant, or the free text as it stands."""
    spelt = "-".join(name.lower().replace("_", " ").split())
    if spelt == AUTO or spelt in words:
        return spelt
    close = get_close_matches(spelt, [*words, AUTO], n=1, cutoff=CLOSE)
    if close and " " not in name:
        raise ValueError(
            f"degradation {name!r} is not known; if {close[0]!r} is meant, write that. The words "
            f"are {', '.join(words)}; other text may be free, in more than one word"
        )
    return name
