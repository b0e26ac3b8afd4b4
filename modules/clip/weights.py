"""CLIP by open_clip, from an architecture's name or configuration and from weights near or far."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from open_clip import (  # type: ignore[import-untyped]
    CLIP,
    OPENAI_DATASET_MEAN,
    OPENAI_DATASET_STD,
    download_pretrained,
    get_model_config,
    get_pretrained_cfg,
    list_models,
    list_pretrained_tags_by_model,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modules.clip.stem import ConvStem

Architecture = str | Mapping[str, Any]

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")


def build_clip(architecture: Architecture, weights: str | Path | None = None) -> CLIP:
    """Build a CLIP with open_clip's own text tower; arguments and errors as `build_daclip`'s."""
    config = _configuration(architecture)
    path = None if weights is None else _locate(architecture, weights)
    stem = config.pop("stem", None)
    clip = CLIP(**config)
    if stem is not None:
        patches = clip.visual.conv1
        clip.visual.conv1 = ConvStem(stem, patches.out_channels, patches.kernel_size[0])
    if path is not None:
        _load(clip, path)
    return clip


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; no code in it is run.

    Takes `.safetensors`, or a pickle of tensors with or without a training checkpoint's
    `state_dict` around them. A `module.` before every name is taken off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; give the path of an existing file")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be opened: it is damaged, or holds more than tensors and plain values, "
            f"which could run code ({type(error).__name__}); download it again, as .safetensors "
            "where there is such a file"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no named tensors; give the checkpoint of a network")
    return without_prefix(tensors)


def without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the `module.` that distributed training puts before every name."""
    return {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}


def _configuration(architecture: Architecture) -> dict[str, Any]:
    """The architecture's configuration, as the arguments of open_clip's CLIP."""
    if not isinstance(architecture, str):
        config = {k: dict(v) if isinstance(v, Mapping) else v for k, v in architecture.items()}
    elif architecture in list_models():
        config = get_model_config(architecture)
    else:
        near = get_close_matches(architecture, list_models(), n=5, cutoff=0.5)
        hint = f"did you mean one of {near}?" if near else "see open_clip.list_models()"
        raise ValueError(f"unknown CLIP architecture {architecture!r}; {hint}")
    config.pop("custom_text", None)  # only puts the text tower's parameters under another name
    needed = {"embed_dim", "vision_cfg", "text_cfg"}
    if not needed <= config.keys() <= needed | {"quick_gelu", "stem"}:
        raise ValueError(
            f"CLIP architecture {architecture!r} has the entries {sorted(config)}; DA-CLIP needs "
            f"{sorted(needed)} and can take quick_gelu and stem, but no others"
        )
    _check_own(architecture, config)
    return config


def _check_own(architecture: Architecture, config: Mapping[str, Any]) -> None:
    """Refuse towers and tokenizers of other libraries, which may be fetched from anywhere."""
    foreign = [
        *(key for key in config["text_cfg"] if key.startswith("hf_")),
        *(key for key, value in config["vision_cfg"].items() if key.startswith("timm_") and value),
    ]
    if foreign:
        raise ValueError(
            f"CLIP architecture {architecture!r} has a tower or tokenizer from elsewhere "
            f"({sorted(foreign)}); DA-CLIP needs open_clip's own, as in ViT-B-32 or ViT-L-14"
        )


def _locate(architecture: Architecture, weights: str | Path) -> Path:
    """The checkpoint given by its path, or by a tag and then downloaded."""
    path = Path(weights)
    if isinstance(weights, Path) or path.suffix in WEIGHT_FILES or path.is_file():
        return path
    if not isinstance(architecture, str):
        raise ValueError(
            f"CLIP weights {weights!r} are no path to one of {WEIGHT_FILES}, and a tag needs an "
            "architecture given by name; give a path"
        )
    tags = list_pretrained_tags_by_model(architecture)
    fitting = [tag for tag in tags if _fits(architecture, tag)]
    if weights not in fitting:
        raise ValueError(
            f"no CLIP weights {weights!r} for {architecture} that have its activation and take "
            f"CLIP's usual view of images; choose one of {fitting}, or give the path of a file"
        )
    source = get_pretrained_cfg(architecture, weights)
    try:
        return Path(download_pretrained(source))
    except (OSError, RuntimeError) as error:
        place = source["hf_hub"].rstrip("/") or source["url"]
        raise FileNotFoundError(
            f"cannot download the CLIP weights {weights!r} of {architecture} ({error}); with a "
            "connection, fetch open_clip_model.safetensors (or open_clip_pytorch_model.bin) of "
            f"{place}, and give the file's path as the weights"
        ) from error


def _fits(architecture: str, tag: str) -> bool:
    """Whether pretrained weights fit the architecture's activation and `clip_preprocess`."""
    source = get_pretrained_cfg(architecture, tag)
    same_view = (source["mean"], source["std"], source["resize_mode"]) == (
        OPENAI_DATASET_MEAN,
        OPENAI_DATASET_STD,
        "shortest",
    )
    quick_gelu = get_model_config(architecture).get("quick_gelu", False)
    return same_view and source.get("quick_gelu", False) == quick_gelu


def _load(clip: CLIP, path: Path) -> None:
    """Fill CLIP from a checkpoint that has its very names and shapes."""
    needed, found = clip.state_dict(), read_state_dict(path)
    for key in [*needed, *found]:
        shapes = [tuple(s[key].shape) if key in s else "missing" for s in (needed, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} is a checkpoint of another architecture: {key} is {shapes[1]} there and "
                f"{shapes[0]} in this one"
            )
    clip.load_state_dict(found)
