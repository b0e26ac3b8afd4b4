"""The training benchmark: plain and ours are the same mathematics, and its table is honest."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modules.clip.daclip import build_daclip
from modules.networks.blocks import LinearAttention, SpatialTransformer
from modules.networks.unet import ConditionalUNet
from tests.benchmarks import sides
from tests.benchmarks.laps import Laps
from tests.benchmarks.plain import PlainTransformer, make_plain
from tests.benchmarks.sides import call_rows, difference_rows, step_rows
from tests.benchmarks.steps import Step, make_step
from tests.benchmarks.table import Row, Target, markdown
from tests.benchmarks.work import Work, call_arguments, unet_call, wake
from tests.pipeline.training.test_training import TINY_CLIP

TOLERANCE = 1e-5
"""Of the largest entry, as for the networks against the published ones."""
SMALL = ("experiment=demo", "network.multipliers=[1, 1, 1, 1]")
"""Each kind of attention at each kind of place."""


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def relative(ours: Tensor, plain: Tensor) -> float:
    return float(((ours - plain).abs().max() / plain.abs().max()).detach())


def both(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Ours and plain, what attention does made large enough to be seen in the output."""
    wake(network)
    for name, parameter in network.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight", "project_out.weight")):
            parameter.data.mul_(5)
    return network, make_plain(deepcopy(network))


def kinds(network: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in network.modules()}


@pytest.mark.parametrize("half_resolution", [False, True])
def test_plain_unet_is_ours(half_resolution: bool) -> None:
    network = ConditionalUNet(32, (1, 1, 1, 2), 16, half_resolution=half_resolution)
    ours, plain = both(network.to(memory_format=torch.channels_last))
    assert not kinds(plain) & {LinearAttention, SpatialTransformer}
    arguments = call_arguments(Work("call", (), 2, 48), network)
    outputs = [net(*arguments) for net in (ours, plain)]
    assert relative(*outputs) < TOLERANCE
    for output in outputs:
        output.square().mean().backward()
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in found.values())  # type: ignore[union-attr]
    dead = set()
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        if name in found:
            gradient = found[name].reshape(parameter.shape)  # type: ignore[union-attr]
            assert relative(gradient, parameter.grad) < 10 * TOLERANCE, name
        else:
            dead.add(name.split(".")[-2])
            assert parameter.grad.abs().max() < TOLERANCE * largest
    assert dead == {"to_q", "to_k", "content_norm"}


def test_every_part_of_the_plain_unet_counts() -> None:
    """Weights that begin as zero would hide the attention behind them."""
    network = ConditionalUNet(32, (1, 1, 1, 2), 16)
    arguments = call_arguments(Work("call", (), 1, 32), network)
    ours, plain = both(network)
    for block in [module for module in plain.modules() if isinstance(module, PlainTransformer)]:
        for part in (block.self_attention.to_q, block.content_attention.to_v):
            kept = part.weight.detach().clone()
            part.weight.data.mul_(3)
            assert relative(ours(*arguments), plain(*arguments)) > TOLERANCE
            part.weight.data.copy_(kept)


def test_plain_clip_is_ours() -> None:
    ours: Any
    plain: Any
    ours, plain = both(build_daclip(TINY_CLIP))
    assert not kinds(plain) & {nn.MultiheadAttention}
    assert not plain.clip.training and plain.controller.training
    view = torch.randn(3, 3, 32, 32)
    for a, b in zip(ours(view), plain(view), strict=True):
        assert relative(a, b) < TOLERANCE
    tokens = ours.tokenize(["two boats", "a house on a hill"])
    assert relative(ours.encode_text(tokens), plain.encode_text(tokens)) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("controller", SMALL),
        ("controller", (*SMALL, "controller.degradation_targets=identity")),
        ("restorer", SMALL),
        ("restorer", (*SMALL, "restorer.prediction_type=epsilon", "restorer.loss=matching")),
    ],
)
def test_steps_of_both_ways_have_the_same_losses(kind: str, settings: tuple[str, ...]) -> None:
    work = Work(kind, settings, 3, 32)
    ours, plain = make_step(work, "ours"), make_step(work, "plain")
    assert [row.verdict for row in difference_rows("a", ours, plain)] == ["met", "met"]
    losses = []
    for _ in range(3):
        losses.append([float(step.loss().detach()) for step in (ours, plain)])
        for step in (ours, plain):
            laps = Laps()
            step(laps)
            assert list(laps.seconds) == ["forward", "backward", "optimizer"]
    for mine, its in losses:
        assert mine == pytest.approx(its, rel=TOLERANCE)
    assert len({mine for mine, _ in losses}) == len(losses)


def test_differences_are_told() -> None:
    work = Work("restorer", SMALL, 2, 32)
    ours, plain = make_step(work, "ours"), make_step(work, "plain")
    with torch.no_grad():
        ours.network.get_parameter("head.weight").mul_(1.01)
    assert [row.verdict for row in difference_rows("a", ours, plain)] == ["missed", "missed"]


@pytest.mark.parametrize("kind", ["call", "call with gradient"])
def test_calls_are_made_both_ways(kind: str) -> None:
    calls: list[str] = []
    for way in ("ours", "plain"):
        call = unet_call(Work(kind, SMALL, 1, 32), way)
        network = call.args[0]  # type: ignore[attr-defined]
        network.register_forward_hook(lambda *_, way=way: calls.append(way))
        call()
        trained = [p for p in network.parameters() if p.grad is not None]
        assert bool(trained) == (kind == "call with gradient")
    assert calls == ["ours", "plain"]


def test_what_cannot_be_measured_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "CUDA", False)
    rows = [
        *step_rows("a", Work("restorer", SMALL, 1, 32, "cuda"), 1, Target(3, at_least=True)),
        *call_rows("b", Work("call", SMALL, 1, 0, "cuda"), (32, 64, 128)),
    ]
    assert {row.name for row in rows} >= {"ours / plain: pace", "ours / plain: call at 64²"}
    assert all(row.verdict == "no CUDA device" and row.value is None for row in rows)
    assert markdown(rows).count("no CUDA device") == len(rows)


def test_out_of_memory_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(work: Work, way: str) -> Step:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sides, "make_step", full)
    monkeypatch.setattr(sides, "CUDA", True)
    monkeypatch.setattr(sides, "_peak", lambda work, way: [2.0] if way == "ours" else [])
    rows = {
        row.name: row
        for row in step_rows("a", Work("restorer", SMALL, 1, 32), 1, Target(3, at_least=True))
    }
    assert rows["ours / plain: pace"].verdict == "out of memory"
    assert rows["ours: peak memory"].value == 2
    assert rows["ours / plain: peak memory"].verdict == "out of memory"


def test_rows_compare_ways_and_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(work: Work, way: str) -> list[float]:
        return [7.0 + work.side ** (2 if way == "ours" else 3)]

    monkeypatch.setattr(sides, "_peak", peak)
    rows = {row.name: row for row in call_rows("a", Work("call", SMALL, 1, 0), (10, 20, 40))}
    assert rows["ours / plain: call at 20²"].value == 407 / 8007
    growth = "call: what 20² to 40² adds / 10² to 20²"
    assert rows[f"ours: {growth}"].value == 4 and rows[f"ours: {growth}"].verdict == "met"
    assert rows[f"plain: {growth}"].value == 8
    pace = Row("a", "pace", "x", [], Target(3, at_least=True), "no CUDA device")
    assert pace.cells() == ("a", "pace", "", "x", "", ">= 3", "no CUDA device")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the command writes, as JSON and as a page."""
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, "-m", "tests.benchmarks.train", "--quick", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    page = (out / "bench-train.md").read_text()
    return json.loads((out / "bench-train.json").read_text()), page


@pytest.mark.slow
def test_command_measures_everything(found: tuple[dict[str, Any], str]) -> None:
    result, page = found
    rows = result["rows"]
    parts = ["stage (a)", "stage (b)", "stage (b), CUDA", "U-Net"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == parts
    for row in rows:
        assert row["rounds"] or row["verdict"] == "no CUDA device"
        assert row["value"] is None or (math.isfinite(row["value"]) and row["value"] >= 0)
    judged = [row for row in rows if row["target"] and row["rounds"]]
    assert len(judged) >= 11 and {row["verdict"] for row in judged} <= {"met", "missed"}
    close = [row for row in judged if row["name"].startswith("largest difference")]
    assert len(close) == 4 and all(row["verdict"] == "met" for row in close)
    assert sum(line.startswith("| ") for line in page.splitlines()) == 2 + len(rows)
    assert page.startswith("# Train benchmark") and result["machine"]["threads"]
