"""Two real ranks with uneven shards: one order of draws, no sample twice, and no hanging."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.augment import RandomPatch
from datamodules.dataset import TrainDataset
from datamodules.mixture import Mixture
from datamodules.shards.reader import ShardSet
from pipeline.models.store import load_controller, load_restorer
from tests.conftest import call
from tests.golden_vectors import relative_error
from tests.samples import many, write
from tests.two_ranks import data, fit

VAL = {"rainy": 20, "snowy": 17, "hazy": 10}
pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning and PyTorch, about taste


def make_shards(folder: Path) -> Path:
    """Two tasks with one training shard each, of 3 and 11 samples; 47 samples of three to check."""
    train = [*many("train", "rainy", 3), *many("train", "snowy", 11)]
    val = [sample for word, count in VAL.items() for sample in many("val", word, count)]
    write(folder, [*train, *val])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_shards(folder / "shards")
    return folder


def start(scenario: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.two_ranks", scenario, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def expected(shards: Path, numbers: range) -> list[str]:
    """The samples of these draws, by one process without a loader."""
    found = ShardSet(shards, "train")
    mixture = Mixture({word: samples.counts for word, samples in found.tasks.items()}, 0)
    dataset = TrainDataset(found, None, mixture, RandomPatch(16), with_clean=True)
    samples = (dataset[n].sample for n in numbers)
    return [f"{sample.key} {sample.lq.sum()}" for sample in samples]


def in_order(ranks: list[list[list[str]]]) -> list[str]:
    """The draws of all ranks by their numbers: rank after rank, again and again."""
    flat = [[key for batch in batches for key in batch] for batches in ranks]
    return [key for turn in zip(*flat, strict=True) for key in turn]


@pytest.mark.slow
def test_two_ranks_see_what_one_sees(folder: Path) -> None:
    shards = folder / "shards"
    alone = fit(folder, data(shards), 7, devices=1, save=folder / "one.ckpt")
    process = start("train", folder)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    seen: list[dict[str, Any]] = [
        json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)
    ]
    assert in_order([rank["trained"] for rank in seen]) == expected(shards, range(40))
    assert in_order([alone.trained]) == expected(shards, range(28))
    # From step 6 of one rank, 24 draws, to step 8 on two; and the other way round.
    assert in_order([rank["resumed"] for rank in seen]) == expected(shards, range(24, 32))
    onwards = fit(folder, data(shards), 9, devices=1, start=folder / "two.ckpt")
    assert in_order([onwards.trained]) == expected(shards, range(24, 36))

    for number in range(2):  # validations
        keys = Counter(key for rank in seen for key in rank["validated"][number])
        assert sum(keys.values()) == len(keys) == 47
        words = Counter(key.partition("-val")[0] for key in keys)
        assert words == VAL


def damage(folder: Path, rank: int, samples: int) -> None:
    """Give each rank its own shards; on one the first samples of the small task are damaged."""
    make_shards(folder / "shards-0")
    shutil.copytree(folder / "shards-0", folder / "shards-1")
    shards = folder / f"shards-{rank}"
    for address in ShardSet(shards, "train").tasks["rainy"][:samples]:
        offset = int(address.store.table(address.shard)[address.row]["lq"]["offset"])
        with (shards / address.store.shards[address.shard].name).open("r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * 200)


def stopped(folder: Path) -> tuple[str, list[str]]:
    """What a run of two ranks, which must fail, prints, and the fault that each rank ends with."""
    process = start("stop", folder)
    try:
        output = process.communicate(timeout=90)[0]  # which both ranks hold open
    finally:
        process.kill()
    assert process.returncode != 0, output
    notes = (folder / f"stopped-{rank}.txt" for rank in range(2))
    return output, [note.read_text() if note.is_file() else "" for note in notes]


@pytest.mark.slow
def test_too_much_damage_on_one_rank_stops_both_with_the_same_message(tmp_path: Path) -> None:
    damage(tmp_path, rank=1, samples=1)
    output, faults = stopped(tmp_path)
    assert faults[0] == faults[1]
    assert faults[0].startswith("TooManyBadSamples: ")
    assert "of 160 training draws hit samples that cannot be used" in faults[0]
    assert "more than the fraction of 0.01 allowed" in faults[0]
    assert "rainy-train-000000.tar/rainy-train-000.lq.npy" in output


@pytest.mark.slow
def test_task_unreadable_on_one_rank_stops_both(tmp_path: Path) -> None:
    damage(tmp_path, rank=0, samples=3)
    output, faults = stopped(tmp_path)
    assert "TooManyBadSamples: 20 random samples of 'rainy' in a row cannot be used" in faults[0]
    assert faults[0].partition("\n")[0] in output


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_of_draws_is_that_of_no_workers(folder: Path, workers: int) -> None:
    loader = data(folder / "shards", num_workers=workers).train_dataloader()
    assert workers == 0 or not loader.persistent_workers
    batches = [
        [f"{key} {lq.sum()}" for key, lq in zip(batch.key, batch.lq, strict=True)]
        for batch in islice(iter(loader), 15)
    ]
    assert in_order([batches]) == expected(folder / "shards", range(60))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["controller", "restorer"])
def test_two_ranks_train_as_one_does_on_the_joint_batches(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    for other in {"shards", "captions", "controller"} - {stage}:
        (tmp_path / other).symlink_to(finished / other)
    result = call(tmp_path, f"train-{stage}", "trainer.devices=2")
    assert result.returncode == 0, result.stderr
    one, two = (outputs(run, stage) for run in (finished, tmp_path))
    assert relative_error(two, one) < 1e-5


def outputs(run: Path, stage: str) -> Tensor:
    """What a trained network makes of two random images.

    Not its weights: those without an effect, such as the biases of an attention's keys, follow
    the rounding of their gradients, which should be zero.
    """
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    weights = run / "controller" / "model.safetensors"
    controller = load_controller(weights)
    embeddings = controller.embed(images)
    if stage == "controller":
        return torch.cat(embeddings)
    denoiser = load_restorer(run / stage / "model.safetensors", weights)
    with torch.no_grad():
        return denoiser(images, images, 50, embeddings).x_0
