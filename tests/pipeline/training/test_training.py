"""What the LightningModules are made of: schedule, groups, randomness, restoring in batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modules.clip.daclip import build_daclip
from modules.clip.encoder import DaClipEncoder
from modules.clip.preprocess import clip_preprocess
from modules.diffusion.losses import LOSSES
from modules.diffusion.prediction import PREDICTION_TYPES
from modules.diffusion.schedule import make_noise_schedule
from modules.diffusion.sde import diffuse
from modules.diffusion.timesteps import sample_timesteps
from pipeline.training.draws import draw_generators, draw_noise
from pipeline.training.optim import decay_groups, warmup_cosine

TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def controller() -> DaClipEncoder:
    torch.manual_seed(0)
    return DaClipEncoder(build_daclip(TINY_CLIP), ["hazy", "rainy", "snowy"])


def test_schedule_rises_then_falls_to_its_floor() -> None:
    rates = [warmup_cosine(step, warmup=10, total=110, floor=0.1) for step in range(130)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.55)
    assert rates[110:] == pytest.approx([0.1] * 20)
    assert warmup_cosine(0, warmup=0, total=5, floor=0) == 1


def test_weight_decay_spares_vectors_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    decayed, spared = decay_groups(model.parameters())
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 3)]
    assert [tuple(p.shape) for p in spared["params"]] == [(2,), (2,), (2,)]
    assert spared["weight_decay"] == 0
    assert "weight_decay" not in decayed


def test_randomness_of_a_draw_depends_on_seed_and_draw_alone() -> None:
    def numbers(seed: int, *draws: int) -> list[tuple[float, ...]]:
        generators = draw_generators(torch.device("cpu"), seed, draws)
        return [tuple(torch.rand(4, generator=g).tolist()) for g in generators]

    alone, together = numbers(0, 7), numbers(0, 5, 7, 6)
    assert together[1] == alone[0]
    assert len({*together, *numbers(1, 5, 6, 7)}) == 6


def test_probabilities_follow_the_nearest_word(controller: DaClipEncoder) -> None:
    embeddings = controller.embed(torch.rand(2, 3, 40, 40))
    like_rainy = embeddings._replace(degradation=controller._texts[[1, 1]] * 5)
    probabilities = controller.probabilities(like_rainy)
    assert probabilities.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert probabilities.argmax(dim=1).tolist() == [1, 1]


@pytest.mark.parametrize("target", ["epsilon", "sample", "v_prediction"])
def test_losses_prefer_the_right_prediction(target: str) -> None:
    schedule = make_noise_schedule(dtype=torch.float64)
    x_0, mu, noise = torch.rand(3, 2, 3, 8, 8, dtype=torch.float64).unbind()
    t = torch.tensor([2, 90])
    x_t = diffuse(schedule, x_0, mu, t, noise)
    alpha, beta = (
        v.reshape(-1, 1, 1, 1) for v in (schedule.alpha[t], (1 - schedule.alpha[t] ** 2).sqrt())
    )
    u_0 = (x_0 - mu) / schedule.lambda_
    right = {"epsilon": noise, "sample": x_0 - mu, "v_prediction": alpha * noise - beta * u_0}[
        target
    ]
    losses = {
        name: [
            loss(
                schedule,
                PREDICTION_TYPES.find(target)(schedule, output, x_t, mu, t),
                x_t,
                x_0,
                mu,
                t,
            )
            for output in (right, right + 1)
        ]
        for name, loss in LOSSES.items()
    }
    assert (losses["l1"][0] < 1e-6).all()
    assert all((exact < 0.5 * off).all() for exact, off in losses.values())


def test_times_and_noise_are_the_draw_s_own() -> None:
    cpu, T = torch.device("cpu"), 5
    images = torch.zeros(200, 3, 4, 4)
    generators = draw_generators(cpu, 0, range(200))
    t, noise = sample_timesteps(generators, T), draw_noise(generators, images)
    assert set(t.tolist()) == {1, 2, 3, 4, 5}
    assert noise.mean().abs() < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert len({tuple(image.flatten().tolist()) for image in noise}) == 200
    own = draw_generators(cpu, 0, [7])
    assert torch.equal(sample_timesteps(own, T), t[7:8])
    assert torch.equal(draw_noise(own, images[:1]), noise[7:8])


def test_an_image_looked_at_in_windows_has_the_mean_of_their_embeddings() -> None:
    torch.manual_seed(0)
    controller = DaClipEncoder(build_daclip(TINY_CLIP), ["hazy", "rainy"], crops_per_side=2)
    images = torch.rand(2, 3, 40, 56)
    corners = [images[..., top : top + 32, left : left + 32] for top in (0, 8) for left in (0, 24)]
    alone = [DaClipEncoder(controller.daclip, ["hazy"]).embed(corner) for corner in corners]
    for part, each in zip(controller.embed(images), zip(*alone, strict=True), strict=True):
        assert torch.allclose(part, torch.stack(each).mean(dim=0), atol=1e-6)
    clean = controller.embed_clean(images)
    views = [clip_preprocess(corner, 32) for corner in corners]
    each = torch.stack([controller.daclip.encode_clean(view) for view in views])
    assert torch.allclose(clean, each.mean(dim=0), atol=1e-6)


def test_late_times_are_drawn_as_often_as_asked() -> None:
    """P(t <= k) = (k / T)^(1 + late_times), within four standard errors of 2000 draws."""
    cpu, T, late = torch.device("cpu"), 10, 2.0
    generators = draw_generators(cpu, 0, range(2000))

    t = sample_timesteps(generators, T, late)

    assert t.dtype == torch.int64 and int(t.min()) >= 1 and int(t.max()) == T
    for k in (3, 5, 8):
        p = (k / T) ** (1 + late)
        assert abs(float((t <= k).double().mean()) - p) < 4 * (p * (1 - p) / 2000) ** 0.5
