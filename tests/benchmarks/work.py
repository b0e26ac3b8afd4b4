"""What the training benchmark measures, and single calls of the U-Net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from pipeline.compose import load_config
from pipeline.config import Config
from pipeline.models.store import build_network
from tests.benchmarks.plain import make_plain

SEED = 0
WAYS = ("plain", "ours")
Arguments = tuple[Tensor, Tensor, int, Tensor, Tensor]


@dataclass(frozen=True)
class Work:
    """Something done both ways, on a batch of random images.

    Attributes:
        kind: `controller` or `restorer`, a training step of that stage; `call` or
            `call with gradient` of the U-Net.
        settings: overrides of the configuration, which says what network it is.
        batch: images.
        side: of an image, in pixels.
        device: `cpu` or `cuda`; on the latter our way of training is compiled, in bfloat16.
    """

    kind: str
    settings: tuple[str, ...]
    batch: int
    side: int
    device: str = "cpu"

    @property
    def config(self) -> Config:
        """The configuration."""
        return _load(tuple(self.settings))  # a list, where it came by JSON

    @property
    def fast(self) -> bool:
        """Whether our way is compiled, and in bfloat16."""
        return self.device == "cuda"


@cache
def _load(settings: tuple[str, ...]) -> Config:
    return load_config(settings)


def unet_call(work: Work, way: str) -> Callable[[], None]:
    """One call of the network, ready to be made."""
    torch.manual_seed(SEED)
    network = build_network(work.config.network)
    wake(network)
    network.to(work.device).to(memory_format=torch.channels_last)
    if way == "plain":
        make_plain(network)
    arguments = call_arguments(work, network)
    if work.kind == "call":
        return partial(_call, network, arguments)
    return partial(_call_with_gradient, network, arguments)


def call_arguments(work: Work, network: nn.Module) -> Arguments:
    """Random arguments of the network: x_t, mu, t, degradation and content."""
    generator = torch.Generator().manual_seed(SEED)
    shape, D = (work.batch, 3, work.side, work.side), int(network.context_dim)  # type: ignore[arg-type]
    mu = torch.rand(shape, generator=generator)
    noise, degradation, content = (
        torch.randn(size, generator=generator) for size in (shape, (work.batch, D), (work.batch, D))
    )
    x_t, mu, degradation, content = (
        x.to(work.device) for x in (mu + 0.1 * noise, mu, degradation, content)
    )
    return x_t, mu, 50, degradation, content


def wake(network: nn.Module) -> None:
    """Weights that are zero at the start become random, so that what they hide is compared."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)


@torch.no_grad()
def _call(network: nn.Module, arguments: Arguments) -> None:
    network(*arguments)


def _call_with_gradient(network: nn.Module, arguments: Arguments) -> None:
    network.zero_grad()
    network(*arguments).abs().mean().backward()
