"""Weights of the published restorers (DA-CLIP `universal-ir`, wild-IR) in our layout.

Released files are bare state dicts: the configuration is read off their names and shapes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from modules.networks.unet import ConditionalUNet

RENAMES: tuple[tuple[str, str], ...] = (
    # Places in the network.
    (r"^time\.expand\.", "time_mlp.1."),
    (r"^time\.project\.", "time_mlp.3."),
    (r"^prompt\.expand\.", "text_mlp.0."),
    (r"^prompt\.gate\.", "text_mlp.2."),
    (r"^prompt\.vector$", "prompt"),
    (r"^prompt\.project\.", "prompt_mlp."),
    (r"^stem\.", "init_conv."),
    (r"^shrink\.", "downsample."),
    (r"^encoder\.(\d+)\.", r"downs.\1."),
    (r"^middle_block(\d)\.", r"mid_block\1."),
    (r"^middle_attention\.", "mid_attn."),
    (r"^decoder\.(\d+)\.", r"ups.\1."),
    (r"^grow\.", "upsample."),
    (r"^last_block\.", "final_res_block."),
    (r"^head\.", "final_conv."),
    # Parts of a level.
    (r"^(downs|ups)\.(\d+)\.block1\.", r"\1.\2.0."),
    (r"^(downs|ups)\.(\d+)\.block2\.", r"\1.\2.1."),
    (r"^(downs|ups)\.(\d+)\.attention\.", r"\1.\2.2."),
    (r"^(downs|ups)\.(\d+)\.resample\.", r"\1.\2.3."),
    # Parts of a residual block.
    (r"\.film\.", ".mlp.1."),
    (r"\.conv([12])\.", r".block\1.proj."),
    (r"\.skip\.", ".res_conv."),
    # Parts of linear attention.
    (r"\.norm\.gain$", ".fn.norm.g"),
    (r"\.to_qkv\.", ".fn.fn.to_qkv."),
    (r"(\.\d|mid_attn)\.to_out\.", r"\1.fn.fn.to_out.0."),
    (r"\.out_norm\.gain$", ".fn.fn.to_out.1.g"),
    # Parts of a spatial transformer.
    (r"\.group_norm\.", ".fn.fn.norm."),
    (r"\.project_in\.", ".fn.fn.proj_in."),
    (r"\.project_out\.", ".fn.fn.proj_out."),
    (r"\.self_norm\.", ".fn.fn.transformer_blocks.0.norm1."),
    (r"\.feed_norm\.", ".fn.fn.transformer_blocks.0.norm3."),
    (r"\.self_attention\.", ".fn.fn.transformer_blocks.0.attn1."),
    (r"\.content_attention\.", ".fn.fn.transformer_blocks.0.attn2."),
    (r"\.(attn\d)\.to_out\.", r".\1.to_out.0."),
    (r"\.feed_forward\.expand\.", ".fn.fn.transformer_blocks.0.ff.net.0.proj."),
    (r"\.feed_forward\.project\.", ".fn.fn.transformer_blocks.0.ff.net.2."),
)
"""Our names -> the reference's, applied one after another: what a file lacks can then be named."""

DEAD = ("attn2.to_q.weight", "attn2.to_k.weight", "norm2.weight", "norm2.bias")
"""Weights of a transformer block that only make queries and keys for the content attention.

Its softmax over one key is 1, so they reach neither the output nor any gradient.
"""

STEM = "init_conv.weight"
CONTENT_VALUE = ".attn2.to_v.weight"
MIDDLE_VALUE = "mid_attn.fn.fn.transformer_blocks.0" + CONTENT_VALUE


def infer_unet_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the arguments of `ConditionalUNet` off a state dict in the reference's layout.

    Raises:
        ValueError: names that every U-Net of DA-CLIP or wild-IR has are missing.
    """
    _raise_if_any(missing={STEM, MIDDLE_VALUE, _level_end(0)} - state_dict.keys())
    ends = itertools.takewhile(state_dict.__contains__, map(_level_end, itertools.count()))
    width, channels = state_dict[STEM].shape[:2]
    return {
        "width": width,
        "multipliers": tuple(state_dict[end].shape[0] // width for end in ends),
        "context_dim": state_dict[MIDDLE_VALUE].shape[1],
        "degradation_prompt": "prompt" in state_dict,
        "half_resolution": "downsample.weight" in state_dict,
        "channels": channels // 2,
    }


def convert_unet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of the reference's U-Net to one of `ConditionalUNet`.

    The dead weights are left out; all else is kept, as views of the tensors given.

    Raises:
        ValueError: a name is missing, unexpected or of another shape than the rest implies.
    """
    with torch.device("meta"):
        network = ConditionalUNet(**infer_unet_config(state_dict))
    ours = {_reference_name(name): name for name in network.state_dict()}
    blocks = [name.removesuffix(CONTENT_VALUE) for name in ours if name.endswith(CONTENT_VALUE)]
    dead = {f"{block}.{name}" for block in blocks for name in DEAD}
    expected = ours.keys() | dead
    _raise_if_any(expected - state_dict.keys(), state_dict.keys() - expected)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    return {ours[name]: _shaped(name, state_dict[name], shapes[ours[name]]) for name in ours}


def _reference_name(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _level_end(level: int) -> str:
    return f"downs.{level}.3.weight"


def _shaped(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Drop dimensions of size 1: the reference has 1x1 convolutions and gains `[1, C, 1, 1]`."""
    if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(
            f"{name!r} has shape {list(tensor.shape)} where the rest of the state dict implies "
            f"{list(shape)}; it is not a U-Net of DA-CLIP or wild-IR"
        )
    return tensor.reshape(shape)


def _raise_if_any(missing: Iterable[str], unexpected: Iterable[str] = ()) -> None:
    faults = [
        f"{kind}: {', '.join(sorted(names)[:5])}{' ...' if len(names) > 5 else ''} ({len(names)})"
        for kind, names in (("missing", set(missing)), ("unexpected", set(unexpected)))
        if names
    ]
    if faults:
        raise ValueError(
            "the state dict is not a U-Net of DA-CLIP or wild-IR in the published layout; "
            + "; ".join(faults)
        )
