"""Restorer networks: each is a class in a file of this folder, registered in `NETWORKS`.

The files are found by looking, so a new network is a new file.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modules.registry import Registry

NETWORKS: Registry[type[nn.Module]] = Registry("network")
BYTES_PER_CHANNEL = {torch.float32: 64, torch.bfloat16: 40}
"""Measured peak memory of a U-Net's call, for each pixel and channel of its first level."""
USUAL_CHANNELS = 64


class RestorerNetwork(Protocol):
    """What the pipeline needs of a restorer network, beside that it is an `nn.Module`."""

    gradient_checkpointing: bool
    """In training, compute activations twice to save memory."""

    @property
    def multiple(self) -> int:
        """Sides of images are padded to multiples of it; smaller images are not taken."""

    @property
    def context_dim(self) -> int:
        """D, the size of the embeddings."""

    @property
    def uses_prompt(self) -> bool:
        """Whether the degradation embedding has an effect."""

    @property
    def uses_content(self) -> bool:
        """Whether the content embedding has an effect."""

    def bytes_per_pixel(self, dtype: torch.dtype) -> float:
        """Peak memory of a call under autocast to `dtype`, for each pixel of the image, about."""

    def __call__(
        self,
        x_t: Tensor,
        mu: Tensor,
        t: int | Tensor,
        degradation: Tensor | None,
        content: Tensor | None,
    ) -> Tensor:
        """F `[B, 3, H, W]` of states and degraded images `[B, 3, H, W]`, embeddings `[B, D]`."""


def usual_bytes_per_pixel(dtype: torch.dtype) -> float:
    """Of a U-Net of the published width."""
    return USUAL_CHANNELS * BYTES_PER_CHANNEL[dtype]


class Traits(NamedTuple):
    """What a network says of itself; the defaults stand for what a user's own class leaves out."""

    multiple: int = 1
    context_dim: int | None = None
    """None: not known, so not checked."""
    uses_prompt: bool = True
    uses_content: bool = True
    bytes_per_pixel: Callable[[torch.dtype], float] = usual_bytes_per_pixel


def describe(network: nn.Module) -> Traits:
    """The traits of a network, which need not be one of ours; see `RestorerNetwork`."""
    known = [name for name in Traits._fields if hasattr(network, name)]
    return Traits(**{name: getattr(network, name) for name in known})


def set_gradient_checkpointing(network: nn.Module, enabled: bool) -> None:
    """Switch gradient checkpointing on or off.

    Raises:
        ValueError: it is to be on, and the network has no such switch.
    """
    if hasattr(network, "gradient_checkpointing"):
        network.gradient_checkpointing = enabled  # type: ignore[assignment]
    elif enabled:
        raise ValueError(
            f"the network {type(network).__name__} has no attribute gradient_checkpointing; "
            "leave gradient checkpointing off"
        )


def build_network(node: Mapping[str, Any], allow: Sequence[str] = ()) -> nn.Module:
    """Make a restorer network, in the memory format its convolutions are fastest in.

    Args:
        node: `name`, one in `NETWORKS`, and the arguments of its class, plain values. In place of
            `name`, `_target_` may be the path of one of these classes, or of a class of an allowed
            package.
        allow: packages, or paths of single classes, whose code may be imported and run. From what
            a user wrote, never from a model file.

    Raises:
        ValueError: there is no such network, or it does not take these arguments.
    """
    arguments = dict(node)
    name = str(arguments.pop("name", ""))
    target = str(arguments.pop("_target_", ""))
    kind = _find_class(target, allow) if target else NETWORKS.find(name)
    try:
        network = kind(**arguments)
    except TypeError as error:
        raise ValueError(f"network {name or target}: {error}") from error
    return network.to(memory_format=torch.channels_last)


def _find_class(target: str, allow: Sequence[str]) -> type[nn.Module]:
    ours = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in NETWORKS.values()}
    if target in ours:
        return ours[target]
    module, _, name = target.rpartition(".")
    if not module or {target, module.partition(".")[0]}.isdisjoint(allow):
        raise ValueError(
            f"network {target!r} is none of {', '.join(NETWORKS)}, nor of a package that is "
            f"allowed ({', '.join(allow) or 'none is'})"
        )
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"network {target!r} cannot be imported: {error}") from error
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(f"network {target!r} is no class of torch.nn.Module")
    return kind


for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
