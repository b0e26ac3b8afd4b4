"""The restorer's U-Net against the published implementation, and the laws of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from modules.networks.blocks import ChannelNorm, LinearAttention, SpatialTransformer
from modules.networks.unet import ConditionalUNet
from modules.reference.unet import DEAD, convert_unet, infer_unet_config
from tests.golden_vectors import golden_json, golden_tensors, relative_error

CONFIGS: dict[str, dict[str, Any]] = {
    "unet_daclip_sde": {"multipliers": (1, 2, 1, 2), "context_dim": 32, "half_resolution": False},
    "unet_wild_ir": {"multipliers": (1, 1, 1, 2), "context_dim": 48, "half_resolution": True},
}
FULL = {"unet_daclip_sde": 48_975_747, "unet_wild_ir": 49_470_467}
WITHOUT_DEAD = {"unet_daclip_sde": 47_728_003, "unet_wild_ir": 47_895_043}
ACTIVATIONS = {
    "downs.2.2": "encoder.2.attention",
    "downs.3.2": "encoder.3.attention",
    "mid_block1": "middle_block1",
    "mid_attn": "middle_attention",
    "ups.0.2": "decoder.0.attention",
    "time_mlp": "time",
}
TOLERANCE = 1e-5
"""Float32's own noise is 2e-6 to 3e-6 of the largest output (`fp64_diff.json`: 1.2e-5 at 6.03 and
9.4e-6 at 3.43), and up to 5e-6 of the largest entry of a gradient."""

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
            "mu": io["in.x64"] / 2,
            "t": 50,
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


def test_gradients_agree(golden: Golden) -> None:
    name, network, io = golden
    loss = network(**inputs(io), t=io["in.time"]).square().mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    found = dict(zip(dict(network.named_parameters()), gradients, strict=True))
    weights = golden_tensors(f"{name}/state_dict")
    assert relative_error(loss.detach(), io["loss.mean_sq"]) < TOLERANCE

    # The reference's gradients convert as its weights do, the missing ones standing at zero.
    stored = {key.removeprefix("grad."): io[key] for key in io if key.startswith("grad.")}
    expected = convert_unet(
        {key: torch.zeros_like(value) for key, value in weights.items()} | stored
    )
    for key, value in expected.items():
        if value.any():
            assert relative_error(found[key], value) < TOLERANCE, key
    live = sum(bool(value.any()) for value in expected.values())
    assert live == len([key for key in stored if not key.endswith(DEAD)]) >= 9

    norms = golden_json(f"{name}/grad_norms")
    marked = {key: torch.full_like(value, norms[key]) for key, value in weights.items()}
    for key, value in convert_unet(marked).items():
        norm = value.flatten()[0]
        assert relative_error(found[key].norm(), norm) < TOLERANCE, key


def test_dead_weights_have_no_gradient(golden: Golden) -> None:
    name, _, io = golden
    norms = golden_json(f"{name}/grad_norms")
    zero = {key for key, norm in norms.items() if norm == 0}
    assert zero == {key for key in norms if key.endswith(DEAD)}
    assert len(zero) == 3 * len(DEAD)
    assert not io["grad.mid_attn.fn.fn.transformer_blocks.0.attn2.to_k.weight"].any()


def test_float64_agrees_with_the_noise_floor(golden: Golden) -> None:
    name, network, io = golden
    exact = ConditionalUNet(**infer_unet_config(golden_tensors(f"{name}/state_dict"))).double()
    exact.load_state_dict(network.state_dict())
    double = {key: value.double() for key, value in inputs(io).items()}
    with torch.no_grad():
        difference = (exact(**double, t=io["in.time"]) - io["out.full"]).abs().max()
    assert difference == pytest.approx(
        golden_json(f"{name}/fp64_diff")["fp32_vs_fp64_eps1e-5"], rel=0.05
    )


# Conversion


def full_state_dict(name: str) -> dict[str, Tensor]:
    """The full network by names and shapes alone."""
    shapes = golden_json(f"{name}/full_config_keys")["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_full_networks_convert(name: str) -> None:
    state_dict = full_state_dict(name)
    config = infer_unet_config(state_dict)
    assert config == {
        "width": 64,
        "multipliers": (1, 2, 4, 8),
        "context_dim": 512 if name == "unet_daclip_sde" else 768,
        "degradation_prompt": name == "unet_daclip_sde",
        "half_resolution": name == "unet_wild_ir",
        "channels": 3,
    }
    with torch.device("meta"):
        network = ConditionalUNet(**config)
    converted = convert_unet(state_dict)
    network.load_state_dict(converted, assign=True)
    dead = sum(value.numel() for key, value in state_dict.items() if key.endswith(DEAD))
    counted = sum(value.numel() for value in network.parameters())
    assert counted == sum(value.numel() for value in converted.values()) == WITHOUT_DEAD[name]
    assert (
        counted == golden_json(f"{name}/full_config_keys")["n_params"] - dead == FULL[name] - dead
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_starts_at_zero(name: str) -> None:
    zero = set(golden_json(f"{name}/full_config_keys")["zero_at_init"])
    weights = golden_tensors(f"{name}/state_dict")
    flags = {key: torch.full_like(value, float(key in zero)) for key, value in weights.items()}
    state = ConditionalUNet(**infer_unet_config(weights)).state_dict()
    for key, flag in convert_unet(flags).items():
        assert bool(state[key].any()) != bool(flag.any()), key


def test_conversion_keeps_every_other_tensor(golden: Golden) -> None:
    weights = golden_tensors(f"{golden[0]}/state_dict")
    converted = convert_unet(weights)
    kept = [value.data_ptr() for key, value in weights.items() if not key.endswith(DEAD)]
    assert sorted(value.data_ptr() for value in converted.values()) == sorted(kept)


def test_other_architectures_are_refused() -> None:
    weights = golden_tensors("unet_daclip_sde/state_dict")
    with pytest.raises(
        ValueError, match=r"missing: downs\.0\.3\.weight, init_conv\.weight, mid_attn"
    ):
        infer_unet_config({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unexpected: extra\.weight \(1\)"):
        convert_unet({**weights, "extra.weight": torch.zeros(1)})
    dead = "mid_attn.fn.fn.transformer_blocks.0.norm2.bias"
    for name in ("ups.1.2.fn.norm.g", dead):
        with pytest.raises(ValueError, match=rf"missing: {name} \(1\)"):
            convert_unet({key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match=r"'prompt_mlp\.weight' has shape \[128, 64\] where"):
        convert_unet({**weights, "prompt_mlp.weight": torch.zeros(128, 64)})


# Laws of the network


@pytest.mark.parametrize(("H", "W"), [(16, 16), (17, 31), (9, 13), (3, 3), (40, 5)])
@pytest.mark.parametrize("half_resolution", [False, True])
def test_any_size(H: int, W: int, half_resolution: bool) -> None:
    network = small_network(half_resolution=half_resolution)
    with torch.no_grad():
        out = network(**small_inputs(1, H, W), t=3)
    assert out.shape == (1, 3, H, W)
    assert out.isfinite().all()


def test_shuffled_pixels_are_channels_and_come_back_to_their_places() -> None:
    outer = small_network(shuffle=2, attention="full")
    inner = small_network(channels=12, attention="full")
    inner.load_state_dict(outer.state_dict())
    assert not any(isinstance(module, LinearAttention) for module in outer.modules())
    given = small_inputs(1, 16, 24)
    small = {k: pixel_unshuffle(v, 2) if v.ndim == 4 else v for k, v in given.items()}
    with torch.no_grad():
        assert torch.equal(outer(**given, t=3), pixel_shuffle(inner(**small, t=3), 2))
        assert outer(**small_inputs(1, 5, 17), t=3).shape == (1, 3, 5, 17)


def test_padding_reflects() -> None:
    network, given = small_network(), small_inputs(1, 16, 16)
    cut = {**given, "x_t": given["x_t"][..., :14, :15], "mu": given["mu"][..., :14, :15]}
    for name in ("x_t", "mu"):
        given[name][..., 14:, :] = given[name][..., [12, 11], :]
        given[name][..., 15:] = given[name][..., [13]]
    with torch.no_grad():
        assert torch.equal(network(**cut, t=3), network(**given, t=3)[..., :14, :15])


def test_times_may_be_int_float_or_tensor() -> None:
    network, given = small_network(), small_inputs()
    times: list[int | float | Tensor] = [
        37,
        37.0,
        torch.tensor(37),
        torch.tensor([37]),
        torch.tensor([37, 37]),
        torch.tensor([37.0, 37.0], dtype=torch.float64),
    ]
    with torch.no_grad():
        outs = [network(**given, t=t) for t in times]
        other = network(**given, t=torch.tensor([37, 38]))
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert torch.equal(other[0], outs[0][0])
    assert relative_error(other[1], outs[0][1]) > 1e-3


def test_images_of_a_batch_do_not_mix() -> None:
    network, given = randomised(small_network(multipliers=(1, 1, 1, 1))), small_inputs(3, 32, 32)
    t = torch.tensor([1, 50, 100])
    with torch.no_grad():
        together = network(**given, t=t)
        for i in range(3):
            alone = network(**{name: value[i : i + 1] for name, value in given.items()}, t=t[i])
            assert relative_error(alone, together[i : i + 1]) < 2e-6


def test_without_attention_a_tile_s_middle_is_that_of_the_whole() -> None:
    given = small_inputs(1, 16, 512)
    tile = {name: x[..., :256] if x.ndim == 4 else x for name, x in given.items()}
    for attention, same in (("none", True), ("full", False)):
        network = randomised(small_network(attention=attention))
        with torch.no_grad():
            out, of_tile = network(**given, t=3), network(**tile, t=3)
        assert (relative_error(of_tile[..., :96], out[..., :96]) < 1e-5) == same


@pytest.mark.parametrize("attention", ["all", "none"])
@pytest.mark.parametrize("name", ["degradation", "content"])
def test_contexts_reach_the_output(name: str, attention: str) -> None:
    network, given = randomised(small_network(attention=attention)), small_inputs()
    with torch.no_grad():
        out = network(**given, t=3)
        for changed in (None, -given[name]):
            assert relative_error(network(**{**given, name: changed}, t=3), out) > 1e-5


def test_network_without_prompt_does_not_use_the_degradation() -> None:
    network, given = small_network(degradation_prompt=False), small_inputs()
    with torch.no_grad():
        assert torch.equal(network(**given, t=3), network(**{**given, "degradation": None}, t=3))


@torch.no_grad()
def test_content_attention_is_attention_to_one_token() -> None:
    """With any queries and keys at all, fused attention to one key gives its value."""
    content, tokens = torch.randn(2, 16), torch.randn(2, 6, 64)
    attention = SpatialTransformer(64, 16).content_attention
    q, k, v = (
        x.unflatten(-1, (2, 32)).transpose(1, 2)
        for x in (tokens, torch.randn(2, 1, 64), attention.to_v(content)[:, None])
    )
    full = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert relative_error(attention(content).expand(-1, 6, -1), attention.to_out(full)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_channel_norm_has_a_gain_alone_and_one_eps_in_every_dtype(dtype: torch.dtype) -> None:
    x = 0.02 * torch.randn(2, 8, 3, 5) + torch.linspace(-0.1, 0.1, 5)
    norm = ChannelNorm(8)
    nn.init.uniform_(norm.gain)
    assert [name for name, _ in norm.named_parameters()] == ["gain"]
    x = x.to(dtype)
    mean, var = x.double().mean(1, keepdim=True), x.double().var(1, correction=0, keepdim=True)
    expected = (
        (x.double() - mean) / (var + 1e-5).sqrt() * norm.gain.detach().double()[:, None, None]
    )
    found = norm.to(dtype)(x).detach()
    assert found.dtype == dtype
    assert relative_error(found, expected) < max(1e-6, torch.finfo(dtype).eps)


def test_bfloat16_autocast_is_near(golden: Golden) -> None:
    _, network, io = golden
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = network(**inputs(io), t=io["in.time"])
    assert out.isfinite().all()
    assert relative_error(out.float(), io["out.full"]) < 0.05


def test_channels_last_changes_nothing() -> None:
    network, given = randomised(small_network()), small_inputs()
    with torch.no_grad():
        out = network(**given, t=3)
        network.to(memory_format=torch.channels_last)
        for name in ("x_t", "mu"):
            given[name] = given[name].contiguous(memory_format=torch.channels_last)
        assert relative_error(network(**given, t=3), out) < 2e-6


def test_compiles_into_one_graph() -> None:
    network, given = small_network(half_resolution=True), small_inputs()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        for t in (3, torch.tensor([3, 50])):
            assert torch.equal(compiled(**given, t=t), network(**given, t=t))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 40}, "transformer of 80 channels does not divide into heads of 32"),
        ({"width": 33}, "width must be even and at least 4, got 33"),
        ({"multipliers": ()}, "multipliers must be one or more positive numbers"),
        ({"multipliers": (1, 0)}, "multipliers must be one or more positive numbers"),
        ({"context_dim": 0}, "context_dim=0"),
        ({"channels": 0}, "channels=0"),
        ({"attention": "half"}, "attention is one of all, full, none, got 'half'"),
    ],
)
def test_wrong_configurations_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_network(**config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": torch.zeros(2, 17)}, r"content must be \[2, 16\], got \[2, 17\]; set"),
        ({"degradation": torch.zeros(1, 16)}, r"degradation must be \[2, 16\], got \[1, 16\]"),
        ({"mu": torch.zeros(2, 3, 16, 25)}, r"both be \[B, 3, H, W\]; got .*24\] and .*25\]"),
        ({"x_t": torch.zeros(2, 1, 8, 8), "mu": torch.zeros(2, 1, 8, 8)}, "both be .B, 3, H, W."),
        ({"x_t": torch.zeros(2, 3, 2, 9), "mu": torch.zeros(2, 3, 2, 9)}, "at least 3 pixels"),
        ({"t": torch.tensor([1, 2, 3])}, r"t must be a number or \[2\], got \[3\]"),
    ],
)
def test_wrong_inputs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_network()(**{**small_inputs(), "t": 3, **changes})


def test_recomputed_activations_change_nothing() -> None:
    torch.manual_seed(0)
    network = ConditionalUNet(width=32, multipliers=(1, 2, 2, 2), context_dim=16)
    x_t, mu = torch.rand(2, 2, 3, 32, 32).unbind()
    contexts = torch.rand(2, 16), torch.rand(2, 16)
    results = []
    for network.gradient_checkpointing in (False, True):
        network.zero_grad()
        output = network(x_t, mu, 7, *contexts)
        output.square().mean().backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        results.append((output, gradients))
    (plain, gradients), (again, recomputed) = results
    assert torch.equal(plain, again)
    assert len(gradients) == len(recomputed)
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True))
