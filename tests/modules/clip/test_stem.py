"""The convolutional stem of a CLIP that starts from random weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from modules.clip.daclip import DaClip, build_daclip
from modules.clip.stem import ConvStem


def architecture(**more: Any) -> dict[str, Any]:
    vision = {"image_size": 48, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **more}


def build(**more: Any) -> DaClip:
    torch.manual_seed(0)
    return build_daclip(architecture(**more))


def test_a_stem_gives_as_many_patches_as_a_plain_embedding() -> None:
    images = torch.rand(2, 3, 48, 48)

    plain, stem = build().clip.visual.conv1, build(stem=[8, 12]).clip.visual.conv1

    assert isinstance(plain, nn.Conv2d) and isinstance(stem, ConvStem)
    assert stem(images).shape == plain(images).shape == (2, 32, 3, 3)


def test_a_stem_is_as_wide_as_the_tower_that_open_clip_makes_where_nothing_is_said() -> None:
    small = architecture(stem=[8, 12])
    del small["vision_cfg"]["width"], small["vision_cfg"]["head_width"]

    stem = build_daclip(small).clip.visual.conv1

    assert stem(torch.rand(1, 3, 48, 48)).shape == (1, 768, 3, 3)


def test_a_stem_sees_the_strength_of_fine_noise_where_a_linear_embedding_cannot() -> None:
    """The mean over many patches of noise is none for a linear map, and grows for a stem."""
    noise = torch.randn(64, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    plain, stem = build().clip.visual.conv1, build(stem=[8, 12]).clip.visual.conv1

    def response(embed: nn.Module, sigma: float) -> float:
        with torch.no_grad():
            patches = embed(sigma * noise)
        return float(patches.mean(dim=(0, 2, 3)).norm() / patches.std())

    chance = math.sqrt(32 / (64 * 9))  # of the mean of 64 * 9 independent patches, 32 wide
    assert response(plain, 1.0) < 1.5 * chance
    assert response(stem, 1.0) > 5 * chance


def test_most_kernels_begin_blind_to_brightness() -> None:
    first = build(stem=[12, 12]).clip.visual.conv1[0]
    flat = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 9, 9)

    with torch.no_grad():
        seen = first(flat)[0, :, 1:-1, 1:-1].sub(first.bias.view(-1, 1, 1)).abs().amax(dim=(1, 2))

    assert (seen[:8] < 1e-4).all() and (seen[8:] > 1e-2).all()


def test_the_controller_has_a_stem_of_its_own_and_both_train() -> None:
    daclip = build(stem=[8, 12, 16])
    daclip.unfreeze_clip()

    embeddings = daclip(torch.rand(2, 3, 48, 48))
    (embeddings.content.sum() + embeddings.degradation.sum()).backward()

    own, clip = daclip.controller.tower.conv1, daclip.clip.visual.conv1
    pairs = list(zip(own.parameters(), clip.parameters(), strict=True))
    assert all(a is not b and torch.equal(a, b) for a, b in pairs)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for pair in pairs for p in pair)


def test_a_patch_that_cannot_be_halved_so_often_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a patch of 12 pixels.*multiple of 8"):
        ConvStem([8, 8, 8], width=32, patch=12)


def test_a_stem_is_a_key_of_the_architecture_and_a_typo_is_none() -> None:
    with pytest.raises(ValueError, match="can take quick_gelu and stem"):
        build(stems=[8])
