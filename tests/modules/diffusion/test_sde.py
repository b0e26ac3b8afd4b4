"""The SDE against the reference's vectors and against closed forms in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modules.diffusion import sde
from modules.diffusion.schedule import NOISE_SCHEDULES, NoiseSchedule, make_noise_schedule
from tests.golden_vectors import golden_tensors, relative_error

TIMES = (1, 2, 37, 99, 100)
EXACT = make_noise_schedule(dtype=torch.float64)
INPUTS = golden_tensors("irsde/inputs")
X_0, MU, X_T, NOISE, SCORE = (INPUTS[name] for name in ("x0", "mu", "xt", "noise", "score"))

schedules = pytest.mark.parametrize("name", sorted(NOISE_SCHEDULES))


def images(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 4, 3, 5, 6)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64))


# Reference vectors


@schedules
def test_tables_match_the_reference(name: str) -> None:
    golden, schedule = golden_tensors(f"irsde/{name}"), make_noise_schedule(name)
    assert schedule.dt == golden["dt"].item()
    assert relative_error(torch.tensor(schedule.lambda_), golden["max_sigma"]) < 1e-7
    names = {"theta": "thetas", "Theta": "thetas_cumsum", "sigma": "sigmas"}
    names["sigma_bar"] = "sigma_bars"
    for ours, theirs in names.items():
        assert relative_error(getattr(schedule, ours), golden[theirs]) < 1e-6, ours


def reference_methods(schedule: NoiseSchedule, t: int, z: Tensor) -> dict[str, Tensor]:
    """What each method of the reference returns at time t, by its name there."""
    s, none = t - 1, torch.zeros_like(z)
    # Drifts are differences of nearly equal images, so they are taken of float64 ones.
    x, mu, score = X_T.double(), MU.double(), SCORE.double()
    x_0_hat = sde.sample_from_epsilon(schedule, X_T, NOISE, MU, t)
    real_noise = sde.epsilon_from_sample(schedule, X_T, X_0, MU, t)
    return {
        "mu_bar": sde.marginal_mean(schedule, X_0, MU, t),
        "drift": sde.forward_step(schedule, x, mu, t, none) - x,
        "sde_reverse_drift": x - sde.reverse_sde_mean(schedule, x, mu, score, t, s),
        "ode_reverse_drift": x - sde.reverse_ode_step(schedule, x, mu, score, t, s),
        "forward_step": sde.forward_step(schedule, X_T, MU, t, z),
        "init_state_from_noise": x_0_hat,
        "real_noise": real_noise,
        "real_score": sde.score(schedule, real_noise, t),
        "score_from_noise": sde.score(schedule, NOISE, t),
        "reverse_sde_step": sde.reverse_sde_step(schedule, X_T, MU, SCORE, t, s, z),
        "reverse_sde_step_mean": sde.reverse_sde_mean(schedule, X_T, MU, SCORE, t, s),
        "reverse_ode_step": sde.reverse_ode_step(schedule, X_T, MU, SCORE, t, s),
        "reverse_optimum_step": sde.posterior_mean(schedule, X_T, X_0, MU, t, s),
        "posterior_mean": sde.posterior_mean(schedule, X_T, x_0_hat, MU, t, s),
        "posterior_step": sde.posterior_step(schedule, X_T, x_0_hat, MU, t, s, z),
    }


@schedules
@pytest.mark.parametrize("t", TIMES)
def test_methods_match_the_reference(name: str, t: int) -> None:
    golden = {
        key.removeprefix(f"t{t}.").removesuffix(f"_seed{100 + t}"): value
        for key, value in golden_tensors(f"irsde/{name}").items()
        if key.startswith(f"t{t}.") and not key.endswith("optimum_std")
    }
    found = reference_methods(make_noise_schedule(name), t, golden.pop("randn"))
    assert found.keys() == golden.keys()
    errors = {name: relative_error(found[name], golden[name]) for name in golden}
    assert max(errors.values()) < 1e-6, errors


@schedules
def test_posterior_std_matches_the_reference(name: str) -> None:
    golden, schedule = golden_tensors(f"irsde/{name}"), make_noise_schedule(name)
    expected = torch.stack([golden[f"t{t}.reverse_optimum_std"] for t in TIMES])
    t = torch.tensor(TIMES)
    # Of all five times together: the reference's own figure at t = 2 is good to 1e-4 only.
    assert relative_error(sde.posterior_std(schedule, t, t - 1).flatten(), expected) < 1e-6


@schedules
def test_random_states_match_the_reference(name: str) -> None:
    golden, schedule = golden_tensors(f"irsde/{name}"), make_noise_schedule(name)
    generator = torch.Generator().manual_seed(11)
    t = torch.randint(1, schedule.T + 1, (2, 1, 1, 1), generator=generator)
    noise = torch.randn(X_0.shape, generator=generator)
    assert torch.equal(t, golden["random_states_seed11.timesteps"])
    x_t = sde.diffuse(schedule, X_0, MU, t.flatten(), noise)
    assert relative_error(x_t, golden["random_states_seed11.states"]) < 1e-6
    noise = torch.randn(MU.shape, generator=torch.Generator().manual_seed(12))
    assert relative_error(sde.prior(schedule, MU, noise), golden["noise_state_seed12"]) < 1e-6


@schedules
@pytest.mark.parametrize("times", [(1, 100), (37, 2)])
def test_training_step_matches_the_reference(name: str, times: tuple[int, int]) -> None:
    prefix = "train.t{}_{}.".format(*times)
    golden = {
        key.removeprefix(prefix): value
        for key, value in golden_tensors(f"irsde/{name}").items()
        if key.startswith(prefix)
    }
    schedule, t, x_t = make_noise_schedule(name), torch.tensor(times), golden["state"]
    predicted = golden["pred_noise"].clone().requires_grad_()
    score = sde.score(schedule, predicted.detach(), t)
    expected, optimum = golden["xt_1_expectation"], golden["xt_1_optimum"]
    assert relative_error(sde.diffuse(schedule, X_0, MU, t, NOISE), x_t) < 1e-6
    assert relative_error(sde.reverse_sde_mean(schedule, x_t, MU, score, t, t - 1), expected) < 1e-6
    assert relative_error(sde.posterior_mean(schedule, x_t, X_0, MU, t, t - 1), optimum) < 1e-6

    loss = sde.matching_loss(schedule, x_t, X_0, MU, predicted, t).mean()
    loss.backward()
    assert relative_error(loss.detach(), golden["l1.loss"]) < 1e-6
    # Where prediction and optimum agree to the last digit, L1 has a kink and no gradient.
    smooth = (expected - optimum).abs() > 1e-7
    assert smooth.sum() >= smooth.numel() - 1
    assert predicted.grad is not None
    assert relative_error(predicted.grad[smooth], golden["l1.grad_pred"][smooth]) < 1e-6


# Closed forms


@schedules
def test_the_process_is_variance_preserving(name: str) -> None:
    schedule = make_noise_schedule(name, dtype=torch.float64)
    beta = schedule.sigma_bar / schedule.lambda_
    assert torch.allclose(schedule.alpha**2 + beta**2, torch.ones(101).double(), rtol=0, atol=1e-14)
    assert schedule.alpha[0] == 1
    assert schedule.sigma_bar[0] == 0
    assert schedule.alpha[-1].item() == pytest.approx(0.005, rel=1e-12)
    assert (schedule.alpha.diff() < 0).all()


@schedules
def test_alpha_is_the_product_of_single_decays(name: str) -> None:
    schedule = make_noise_schedule(name, dtype=torch.float64)
    assert torch.allclose(schedule.alpha[1:], schedule.decay[1:].cumprod(0), rtol=1e-12)
    t, s = torch.triu_indices(101, 101, 1).flip(0)
    elapsed = sde.elapsed(schedule, t, s).flatten()
    assert torch.allclose((-elapsed).exp(), schedule.alpha[t] / schedule.alpha[s], rtol=1e-11)


def test_the_ends_are_the_clean_image_and_the_prior() -> None:
    x_0, mu, noise = images(3)
    assert torch.equal(sde.diffuse(EXACT, x_0, mu, 0, noise), mu + (x_0 - mu))
    last = sde.diffuse(EXACT, x_0, mu, EXACT.T, noise)
    left_over = 0.005 * (x_0 - mu).abs() + EXACT.lambda_ * (1 - math.sqrt(1 - 0.005**2)) * 10
    assert ((last - sde.prior(EXACT, mu, noise)).abs() <= left_over).all()


def test_noise_and_data_convert_into_each_other_at_every_time() -> None:
    x_0, mu, noise = images(3)
    for t in range(1, EXACT.T + 1):
        x_t = sde.diffuse(EXACT, x_0, mu, t, noise)
        found = sde.epsilon_from_sample(EXACT, x_t, x_0, mu, t)
        assert torch.allclose(found, noise, rtol=0, atol=1e-10), t
        found = sde.sample_from_epsilon(EXACT, x_t, noise, mu, t)
        assert torch.allclose(found, x_0, rtol=0, atol=1e-10), t


@pytest.mark.parametrize("t", TIMES)
def test_score_is_the_gradient_of_the_log_density(t: int) -> None:
    x_0, mu, noise = images(3)
    x_t = sde.diffuse(EXACT, x_0, mu, t, noise).requires_grad_()
    mean = mu + (x_0 - mu) * EXACT.alpha[t]
    log_density = -((x_t - mean) ** 2) / (2 * EXACT.sigma_bar[t] ** 2)
    (gradient,) = torch.autograd.grad(log_density.sum(), x_t)
    assert relative_error(sde.score(EXACT, noise, t), gradient) < 1e-10


@pytest.mark.parametrize(("t", "s"), [(2, 1), (37, 36), (100, 99), (37, 5), (100, 40), (100, 1)])
def test_posterior_is_bayes_rule(t: int, s: int) -> None:
    """q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0), integrated on a fine grid."""
    x_t, x_0, mu = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.9, 0.2, 0.6))
    A = (EXACT.alpha[t] / EXACT.alpha[s]).item()
    grid = torch.linspace(-2, 3, 200_001, dtype=torch.float64)
    mean_t = mu + A * (grid - mu)
    mean_s = mu + EXACT.alpha[s] * (x_0 - mu)
    log_joint = -((x_t - mean_t) ** 2) / (EXACT.lambda_**2 * (1 - A**2))
    log_joint = log_joint - (grid - mean_s) ** 2 / EXACT.sigma_bar[s] ** 2
    weight = torch.softmax(log_joint.flatten() / 2, 0)
    mean = (weight * grid).sum()
    std = (weight * (grid - mean) ** 2).sum().sqrt()
    assert sde.posterior_mean(EXACT, x_t, x_0, mu, t, s).item() == pytest.approx(
        mean.item(), abs=1e-9
    )
    assert sde.posterior_std(EXACT, t, s).item() == pytest.approx(std.item(), rel=1e-7)


def affine_law(step: Callable[[Tensor, float], Tensor], mean: Tensor, var: Tensor) -> list[Tensor]:
    """Mean and variance of step(x, z), affine in x and in the standard normal z."""
    origin = step(mean, 0.0)
    slope, gain = step(mean + 1, 0.0) - origin, step(mean, 1.0) - origin
    return [origin, slope**2 * var + gain**2]


@schedules
@pytest.mark.parametrize(("t", "r", "s"), [(3, 2, 1), (100, 60, 20), (100, 99, 1), (80, 30, 0)])
def test_posterior_steps_compose(name: str, t: int, r: int, s: int) -> None:
    schedule = make_noise_schedule(name, dtype=torch.float64)
    x_0, mu, x_t = images(3)

    def jump(start: int, end: int, law: list[Tensor]) -> list[Tensor]:
        def step(x: Tensor, z: float) -> Tensor:
            return sde.posterior_step(schedule, x, x_0, mu, start, end, torch.full_like(x, z))

        return affine_law(step, *law)

    now = [x_t, torch.zeros_like(x_t)]
    for once, twice in zip(jump(t, s, now), jump(r, s, jump(t, r, now)), strict=True):
        assert torch.allclose(once, twice, rtol=1e-9, atol=1e-12)


@schedules
@pytest.mark.parametrize("t", [1, 2, 40, 100])
def test_posterior_at_time_0_is_the_clean_image(name: str, t: int) -> None:
    schedule = make_noise_schedule(name, dtype=torch.float64)
    x_0, mu, x_t, noise = images(4)
    x = sde.posterior_step(schedule, x_t, x_0, mu, t, 0, noise)
    assert torch.allclose(x, x_0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_forward_steps_converge_to_the_marginal(name: str) -> None:
    """Euler steps reach the law of x_t given x_0, here at T / 2, at first order in their number."""
    x_0, mu = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.9, 0.2))

    def errors(T: int) -> tuple[float, float]:
        schedule, law = (
            make_noise_schedule(name, num_timesteps=T, dtype=torch.float64),
            [x_0, torch.zeros_like(x_0)],
        )
        for t in range(1, T // 2 + 1):
            law = affine_law(
                lambda x, z, t=t: sde.forward_step(schedule, x, mu, t, torch.full_like(x, z)), *law
            )
        mean = sde.marginal_mean(schedule, x_0, mu, T // 2)
        return (law[0] - mean).item(), (law[1].sqrt() - schedule.sigma_bar[T // 2]).item()

    for coarse, fine in zip(errors(200), errors(400), strict=True):
        assert 0.45 < fine / coarse < 0.55
        assert abs(fine) < 2e-3


# Contracts


def calls(
    schedule: NoiseSchedule, t: int | Tensor, s: int | Tensor
) -> dict[str, Callable[..., Tensor]]:
    """Every function of images at a time, as a function of four image batches."""
    return {
        "diffuse": lambda x, x_0, mu, z: sde.diffuse(schedule, x_0, mu, t, z),
        "epsilon_from_sample": lambda x, x_0, mu, z: sde.epsilon_from_sample(
            schedule, x, x_0, mu, t
        ),
        "sample_from_epsilon": lambda x, x_0, mu, z: sde.sample_from_epsilon(schedule, x, z, mu, t),
        "score": lambda x, x_0, mu, z: sde.score(schedule, z, t),
        "forward": lambda x, x_0, mu, z: sde.forward_step(schedule, x, mu, t, z),
        "sde": lambda x, x_0, mu, z: sde.reverse_sde_step(schedule, x, mu, x_0, t, s, z),
        "ode": lambda x, x_0, mu, z: sde.reverse_ode_step(schedule, x, mu, z, t, s),
        "posterior": lambda x, x_0, mu, z: sde.posterior_step(schedule, x, x_0, mu, t, s, z),
        "loss": lambda x, x_0, mu, z: sde.matching_loss(schedule, x, x_0, mu, z, t),
    }


NAMES = list(calls(EXACT, 1, 0))


@pytest.mark.parametrize("name", NAMES)
def test_one_time_for_all_or_a_time_for_each(name: str) -> None:
    batch = images(4)
    t, s = torch.tensor([1, 40, 99, 100]), torch.tensor([0, 39, 20, 3])
    together = calls(EXACT, t, s)[name](*batch)
    alone = [
        calls(EXACT, int(t[i]), int(s[i]))[name](*(x[i : i + 1] for x in batch)) for i in range(4)
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone(name: str) -> None:
    batch, before = images(4), images(4)
    t = torch.tensor([1, 40, 99, 100])
    calls(EXACT, t, t - 1)[name](*batch)
    assert all(torch.equal(x, y) for x, y in zip(batch, before, strict=True))
    assert torch.equal(t, torch.tensor([1, 40, 99, 100]))


@pytest.mark.parametrize("t", [40, torch.tensor([1, 40, 99, 100])])
@pytest.mark.parametrize(
    "name", ["sample_from_epsilon", "score", "sde", "ode", "posterior", "loss"]
)
def test_half_precision_predictions_are_used_in_float32(name: str, t: int | Tensor) -> None:
    x, x_0, mu, z = (image.float() for image in images(4))
    function = calls(make_noise_schedule(), t, t - 1)[name]
    half = function(x, x_0, mu, z.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, function(x, x_0, mu, z.bfloat16().float()))


@pytest.mark.parametrize("name", NAMES)
def test_no_function_waits_for_the_device(name: str) -> None:
    """The meta device has no data, so a value read back to the CPU would raise here."""
    schedule, t = make_noise_schedule().to("meta"), torch.tensor([1, 40, 99, 100], device="meta")
    batch = [image.float().to("meta") for image in images(4)]
    assert calls(schedule, t, t - 1)[name](*batch).device.type == "meta"
    assert calls(schedule, 40, 20)[name](*batch).device.type == "meta"


def test_the_training_path_compiles_in_one_graph() -> None:
    schedule, t = make_noise_schedule(), torch.tensor([1, 40, 99, 100])
    x_0, mu, noise, predicted = (image.float() for image in images(4))

    def loss(t: Tensor, x_0: Tensor, mu: Tensor, noise: Tensor, predicted: Tensor) -> Tensor:
        x_t = sde.diffuse(schedule, x_0, mu, t, noise)
        return sde.matching_loss(schedule, x_t, x_0, mu, predicted, t)

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    arguments = t, x_0, mu, noise, predicted
    assert torch.equal(compiled(*arguments), loss(*arguments))


def test_steps_too_small_for_the_numbers_are_refused() -> None:
    """What is divided by the first step's noise, or by 1 - alpha^2, would not be a number."""
    for T in (6000, 20000):
        with pytest.raises(ValueError, match=rf"{T=} .* take a smaller T"):
            make_noise_schedule(num_timesteps=T)
        assert make_noise_schedule(num_timesteps=T, dtype=torch.float64).sigma_bar[1] > 0
    schedule, (x_t, x_0, mu, noise) = (
        make_noise_schedule(num_timesteps=5000),
        (image.float() for image in images(4)),
    )
    assert sde.matching_loss(schedule, x_t, x_0, mu, noise, torch.ones(4).long()).isfinite().all()


def test_tables_stay_where_they_are_already() -> None:
    schedule = make_noise_schedule()
    assert schedule.to("cpu").alpha.data_ptr() == schedule.alpha.data_ptr()


def test_unknown_schedule_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'cosin'.*cosine, linear, constant"):
        make_noise_schedule("cosin")


@pytest.mark.parametrize(
    "bad", [{"num_timesteps": 0}, {"lambda_": 0.0}, {"eps": 0.0}, {"eps": 1.0}]
)
def test_tables_out_of_range_are_refused(bad: dict[str, float]) -> None:
    (name, value), *_ = bad.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        make_noise_schedule(**bad)  # type: ignore[arg-type]
