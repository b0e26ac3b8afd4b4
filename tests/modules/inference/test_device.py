"""Tiles where memory asks for them, and not else; memory as Linux, containers and others say."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from modules.diffusion.prediction import from_epsilon, from_sample
from modules.inference import device as machine
from modules.networks.unet import ConditionalUNet
from pipeline.compose import load_config
from pipeline.training.trainer import precision_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("megabytes", "side"), [(4000, None), (1000, None), (660, 448), (500, 384), (30, 256)]
)
def test_side_is_what_memory_asks_for(
    megabytes: int, side: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of 32 channels takes 2048 bytes a pixel: 500 MB hold 0.7 * 244,140 of them."""
    monkeypatch.setattr(machine, "free_bytes", lambda device: megabytes * 10**6)
    network = ConditionalUNet(32, (1, 1), 32)
    assert machine.auto_side(500, 600, network.bytes_per_pixel(torch.float32), CPU) == side


def test_large_image_gets_tiles_of_the_usual_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda device: 10**10)
    network = ConditionalUNet(32, (1, 1), 32)
    assert (
        machine.auto_side(4096, 4096, network.bytes_per_pixel(torch.float32), CPU) == machine.SIDE
    )
    assert machine.auto_side(1800, 1800, network.bytes_per_pixel(torch.float32), CPU) is None


def test_shuffled_network_takes_less() -> None:
    plain, shuffled = (ConditionalUNet(32, (1, 1), 32, shuffle=n) for n in (1, 2))
    first, second = (n.bytes_per_pixel(torch.float32) for n in (plain, shuffled))
    assert first == 4 * second == 2048


def test_memory_is_read_as_linux_and_containers_say(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert machine._available(meminfo) is None and machine._limit(tmp_path) is None
    meminfo.write_text("MemTotal:  900 kB\nMemAvailable:     500 kB\n")
    assert machine._available(meminfo) == 500 * 1024
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine._limit(tmp_path) == 700


def test_unknown_memory_is_taken_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_available", lambda path: None)
    monkeypatch.setattr(machine, "_limit", lambda path: None)
    assert machine.free_bytes(CPU) == machine.UNKNOWN


@pytest.fixture(params=["neither", "_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def multiplies_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """On a CPU with either unit, or none, whether there is one."""
    for unit in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, unit, lambda has=unit == request.param: has)
    return bool(request.param != "neither")


def test_automatic_precision_is_fast_where_that_is_safe(multiplies_bfloat16: bool) -> None:
    fast = torch.bfloat16 if multiplies_bfloat16 else torch.float32
    assert machine.choose_dtype("auto", CPU, from_sample) == fast
    assert machine.choose_dtype("auto", CPU, from_epsilon) == torch.float32
    assert machine.choose_dtype("bfloat16", CPU, from_epsilon) == torch.bfloat16


def test_training_s_automatic_precision_is_what_the_hardware_multiplies(
    multiplies_bfloat16: bool,
) -> None:
    settings = ["run_dir=run", "trainer.accelerator=cpu"]
    auto = load_config([*settings, "trainer.precision=auto"])
    assert precision_of(auto) == ("bf16-mixed" if multiplies_bfloat16 else "32-true")
    assert precision_of(load_config([*settings, "trainer.precision=bf16-mixed"])) == "bf16-mixed"


@pytest.mark.parametrize("multiplies", [False, True])
def test_gpu_that_only_emulates_bfloat16_is_not_fast_in_it(
    multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or multiplies

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert machine.is_fast_in_bfloat16(torch.device("cuda:1")) == multiplies


def test_limits_of_a_service_and_of_what_it_lies_in_are_read(tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("1:name=systemd:/x\n0::/system.slice/page.service\n")
    groups = machine._groups(own, root)
    assert groups == [root / "system.slice/page.service", root / "system.slice", root]
    assert machine._groups(tmp_path / "gone", root) == [root]
    groups[0].mkdir(parents=True)
    (groups[0] / "memory.max").write_text("8000\n")
    (groups[0] / "memory.current").write_text("5000\n")
    (groups[0] / "memory.stat").write_text("anon 3000\ninactive_file 1500\n")
    assert [machine._limit(group) for group in groups] == [4500, None, None]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("Invalid buffer size: 16.00 GiB"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("Invalid buffer size: 16.00 GiB"), False),
    ],
)
def test_memory_that_ran_out_is_known_on_each_device(error: Exception, expected: bool) -> None:
    assert machine.is_out_of_memory(error) is expected
