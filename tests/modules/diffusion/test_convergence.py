"""make bench-convergence: the orders it finds, and a picture of them."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from modules.diffusion.samplers import SAMPLERS
from modules.diffusion.timesteps import TIMESTEP_SPACINGS
from tests.benchmarks import convergence


def test_slope_is_the_order_of_the_last_doublings() -> None:
    calls = (4, 8, 16, 32)
    assert convergence.slope([(n, 7.0 / n**2) for n in calls]) == pytest.approx(2)
    assert convergence.slope([(4, 0.0), *((n, 7.0 / n) for n in calls[1:])]) == pytest.approx(1)


def test_it_finds_the_orders_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    picture = tmp_path / "convergence.svg"
    monkeypatch.setattr(sys, "argv", ["convergence", "--out", str(picture)])
    caplog.set_level("INFO")
    convergence.main()
    rows = [line.split(" | ") for line in caplog.text.splitlines() if line.startswith("| ")][2:]
    assert [(row[0], row[1]) for row in rows] == [
        (f"| {g}", n) for g in TIMESTEP_SPACINGS for n in SAMPLERS
    ]
    for row in rows:
        order = 2 if row[1].startswith(("dpmpp", "heun")) else 1
        assert float(row[-1].rstrip(" |")) == pytest.approx(order, abs=0.1)
    drawn = [element.text for element in ElementTree.parse(picture).iter() if element.text]
    assert all(drawn.count(name) == len(TIMESTEP_SPACINGS) for name in SAMPLERS)
