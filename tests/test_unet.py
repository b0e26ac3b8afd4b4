"""The restorer's U-Net against the published implementation, and the laws of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from golden_vectors import golden_json, golden_tensors, relative_error
from torch import Tensor, nn

from modules.blocks import ChannelNorm, SpatialTransformer
from modules.reference.unet import DEAD, convert_unet, infer_unet_config
from modules.unet import ConditionalUNet

CONFIGS: dict[str, dict[str, Any]] = {
    "unet_daclip_sde": {"multipliers": (1, 2, 1, 2), "context_dim": 32, "half_resolution": False},
    "unet_wild_ir": {"multipliers": (1, 1, 1, 2), "context_dim": 48, "half_resolution": True},
}
FULL = {"unet_daclip_sde": 48_975_747, "unet_wild_ir": 49_470_467}
WITHOUT_DEAD = {"unet_daclip_sde": 47_728_003, "unet_wild_ir": 47_895_299}
ACTIVATIONS = {
    "downs.2.2": "encoder.2.attention",
    "downs.3.2": "encoder.3.attention",
    "mid_block1": "middle_block1",
    "mid_attn": "middle_attention",
    "ups.0.2": "decoder.0.attention",
    "time_mlp": "time",
}
TOLERANCE = 1e-5  # the outputs' own float32 noise is 2e-6 to 3e-6 of the largest (`fp64_diff.json`)

Golden = tuple[str, ConditionalUNet, dict[str, Tensor]]


@pytest.fixture(scope="module", params=list(CONFIGS))
def golden(request: pytest.FixtureRequest) -> Golden:
    weights = golden_tensors(f"{request.param}/state_dict")
    network = ConditionalUNet(**infer_unet_config(weights))
    network.load_state_dict(convert_unet(weights))
    return request.param, network, golden_tensors(f"{request.param}/io")


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def inputs(io: dict[str, Tensor], items: slice = slice(None)) -> dict[str, Tensor]:
    names = {"x_t": "xt", "mu": "cond", "degradation": "text_context", "content": "image_context"}
    return {ours: io[f"in.{theirs}"][items] for ours, theirs in names.items()}


def small_network(**changes: Any) -> ConditionalUNet:
    config = {"width": 32, "multipliers": (1, 2), "context_dim": 16, **changes}
    return ConditionalUNet(**config).eval()


def small_inputs(B: int = 2, H: int = 16, W: int = 24) -> dict[str, Tensor]:
    x_t, mu = torch.rand(2, B, 3, H, W)
    degradation, content = torch.randn(2, B, 16)
    return {"x_t": x_t, "mu": mu, "degradation": degradation, "content": content}


def randomised(network: nn.Module) -> nn.Module:
    """No projection left at zero, so that every part reaches the output."""
    for module in network.modules():
        if isinstance(module, SpatialTransformer):
            nn.init.normal_(module.project_out.weight, std=0.1)
    return network


# Agreement with the published implementation


def test_outputs_agree(golden: Golden) -> None:
    _, network, io = golden
    t = io["in.time"]
    cases = {
        "out.full": {**inputs(io), "t": t},
        "out.time_float": {**inputs(io), "t": t.float()},
        "out.no_text": {**inputs(io), "t": t, "degradation": None},
        "out.scalar_int_37": {**inputs(io), "t": 37},
        "out.scalar_time_37.0": {**inputs(io), "t": 37.0},
        "out.x64_multiple_of_16": {
            **inputs(io, slice(1)),
            "x_t": io["in.x64"],
            "mu": io["in.x64"].flip(-1),
            "t": t[:1],
        },
    }
    assert cases.keys() == {name for name in io if name.startswith("out.")}
    with torch.no_grad():
        for name, arguments in cases.items():
            assert relative_error(network(**arguments), io[name]) < TOLERANCE, name


def test_activations_agree(golden: Golden) -> None:
    _, network, io = golden
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, arguments, output: found.update({name: output})

    hooks = [
        network.get_submodule(ours).register_forward_hook(keep(theirs))
        for theirs, ours in ACTIVATIONS.items()
    ]
    with torch.no_grad():
        network(**inputs(io, slice(1)), t=io["in.time"][:1])
    for hook in hooks:
        hook.remove()
    for name in ACTIVATIONS:
        assert relative_error(found[name], io[f"act.{name}"]) < TOLERANCE, name
