"""Bootstrap intervals: how often they hold the true mean, and what cannot have one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, t

from modules.metrics import bootstrap as module
from modules.metrics.bootstrap import confidence, confidence_of_tasks

REPETITIONS = 1000


def band(level: float, values: int) -> tuple[float, float]:
    """Three standard deviations around the share of intervals that should hold a normal mean.

    A percentile interval is the mean and z s / √n on either side, its s with n in place of n - 1;
    Student's t says how often that suffices.
    """
    reach = norm.ppf((1 + level) / 2) * np.sqrt((values - 1) / values)
    share = 1 - 2 * t.sf(reach, values - 1)
    deviation = np.sqrt(share * (1 - share) / REPETITIONS)
    return share - 3 * deviation, share + 3 * deviation


@pytest.mark.parametrize(("level", "values"), [(0.95, 40), (0.95, 10), (0.5, 40)])
def test_intervals_hold_the_mean_as_often_as_theory_says(level: float, values: int) -> None:
    samples = np.random.default_rng(0).normal(25, 3, (REPETITIONS, values))
    ends = np.array([confidence(x, level, seed=seed) for seed, x in enumerate(samples)])
    low, high = band(level, values)
    assert low <= ((ends[:, 0] <= 25) & (ends[:, 1] >= 25)).mean() <= high


def test_intervals_of_tasks_hold_the_mean_of_their_means() -> None:
    rng = np.random.default_rng(1)
    tasks = ((20, 1, 25), (30, 40, 40), (10, 0.2, 60))  # mean, spread, images
    inside = 0
    for seed in range(REPETITIONS):
        low, high = confidence_of_tasks([rng.normal(*task) for task in tasks], seed=seed)
        inside += low <= 20 <= high
    low, high = band(0.95, 40)  # the second task's, whose spread is nearly all there is
    assert low <= inside / REPETITIONS <= high


def test_intervals_are_those_of_scipy() -> None:
    rng = np.random.default_rng(2)
    groups = [rng.normal(20, 1, 12), rng.exponential(4, 30), rng.normal(5, 0.1, 4)]
    found = confidence_of_tasks(groups, draws=20_000)
    expected = bootstrap(
        groups,
        lambda *x, axis: np.mean([values.mean(axis=axis) for values in x], axis=0),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    # Both ends are drawn; 20 runs of scipy's differ by 0.009 at most.
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.02)
    alone = bootstrap(
        groups[1:2], np.mean, n_resamples=20_000, method="percentile", confidence_level=0.8, rng=4
    )
    found = confidence(groups[1], level=0.8, draws=20_000)
    assert found == pytest.approx(tuple(alone.confidence_interval), abs=0.05)


def test_tasks_weigh_alike_and_are_drawn_each_for_itself() -> None:
    assert confidence_of_tasks([[10.0] * 500, [20.0] * 2]) == (15, 15)
    low, high = confidence_of_tasks([[10.0] * 500, [20.0, 24.0]])
    assert (low, high) == (15, 17)


def test_an_interval_follows_from_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    first = confidence(values, seed=5)
    assert confidence(list(values), seed=5) == first
    assert confidence(values, seed=6) != first
    monkeypatch.setattr(module, "AT_ONCE", 120)  # two samples of 50 at a time
    assert confidence(values, seed=5) == first


def test_infinite_values_reach_the_ends_they_belong_to() -> None:
    values = [30.0 + i for i in range(60)]
    assert confidence([*values, math.inf])[1] == math.inf
    low, _ = confidence([*values, math.inf])  # in 0.37 of the samples it is missing
    assert 55 < low < 62
    assert confidence([math.inf] * 3) == (math.inf, math.inf)


@pytest.mark.parametrize("values", [[], [31.5]])
def test_fewer_than_two_values_show_no_spread(values: list[float]) -> None:
    with pytest.raises(ValueError, match=f"at least two values, got {len(values)}"):
        confidence(values)
    with pytest.raises(ValueError, match="at least two values"):
        confidence_of_tasks([[1.0, 2.0], values])


def test_what_gives_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="2 of 3 values are NaN"):
        confidence([math.nan, 1.0, math.nan])
    with pytest.raises(ValueError, match="at least one task"):
        confidence_of_tasks([])
    for level, draws in ((0.0, 2000), (1.0, 2000), (95, 2000), (0.95, 10)):
        with pytest.raises(ValueError, match=f"level {level} and {draws} draws"):
            confidence([1.0, 2.0], level, draws)
