"""Captioning by several processes, through the real command: shared out, killed, continued."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from datamodules.captions import CAPTIONS, read_captions, write_captions
from datamodules.shards.reader import ShardSet
from datamodules.shards.writer import write_shards
from modules.captioning.blip import BlipCaptioner
from pipeline.__main__ import main
from pipeline.distributed import Rank, current_rank
from tests.conftest import form, paired_folder, photograph
from tests.tiny_blip import save_tiny_blip

TRAIN, BATCH = 47, 2
BATCHES = 24
VARIABLES = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "NODE_RANK",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NTASKS",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
]
SLOW = ["captions.captioner={_target_: tests.captioning.Slow}"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 distinct clean images."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", TRAIN), ("val", 1)):
        for kind in ("LQ", "GT"):
            folder = root / "pairs" / split / "noisy" / kind
            folder.mkdir(parents=True)
            for i in range(count):
                picture = photograph(16, 16, seed=1000 * (split == "val") + i)
                Image.fromarray(picture).save(folder / f"{i}.png")
    pairs = paired_folder(root / "pairs").plan()
    write_shards(pairs, root / "shards", form(), 0.0, num_workers=0)
    return root / "shards"


class Run:
    """A run whose shards are there, to be captioned by one process or several."""

    def __init__(self, folder: Path, shards: Path, captioner: Sequence[str]) -> None:
        self.captions, self.log = folder / "captions" / CAPTIONS, folder / "log.jsonl"
        self.settings = [f"run_dir={folder}", f"captions.batch_size={BATCH}", *captioner]
        folder.mkdir()
        (folder / "shards").symlink_to(shards)

    def start(
        self, pause: float = 0.0, command: str = "tests.captioning", **variables: int
    ) -> subprocess.Popen[str]:
        clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        own = {"CAPTION_LOG": str(self.log), "CAPTION_PAUSE": str(pause)}
        return subprocess.Popen(
            [sys.executable, "-m", *command.split(), *self.settings],
            env=clean | own | {name: str(value) for name, value in variables.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def noted(self) -> list[tuple[str, tuple[str, ...]]]:
        """Rank and sources of each batch that a captioner was given."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(rank, tuple(sources)) for rank, sources in map(json.loads, lines)]

    def await_batches(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.noted()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = Run(tmp_path_factory.mktemp("undisturbed") / "run", shards, SLOW)
    ended(run.start())
    assert len(run.noted()) == BATCHES
    return run.captions.read_bytes()


@pytest.mark.slow
def test_two_processes_of_the_command_write_what_one_does(shards: Path, tmp_path: Path) -> None:
    """With BLIP."""
    (tmp_path / "blip").mkdir()
    model = save_tiny_blip(tmp_path / "blip")
    noting = "captions.captioner._target_=tests.captioning.NotingBlip"
    settings = ["captioner=blip", f"captions.captioner.model={model}", noting]
    run = Run(tmp_path / "run", shards, [*settings, "captions.captioner.max_new_tokens=5"])
    processes = [run.start(command="pipeline captions", RANK=r, WORLD_SIZE=2) for r in range(2)]
    outputs = [ended(process) for process in processes]
    assert "48 clean images captioned by" in outputs[0]
    assert "rank 1 is done" in outputs[1]
    samples = [s for split in ("train", "val") for s in ShardSet(shards, split).all()]
    alone = BlipCaptioner(str(model), max_new_tokens=5)
    write_captions(samples, tmp_path, alone.caption, alone.by, BATCH)
    assert run.captions.read_bytes() == (tmp_path / CAPTIONS).read_bytes()
    assert len(set(read_captions(run.captions).values())) > 3
    assert Counter(rank for rank, _ in run.noted()) == {"0": 12, "1": 12}
    assert len({source for _, batch in run.noted() for source in batch}) == 48
    assert list(run.captions.parent.glob("captions.part-*")) == []


@pytest.mark.slow
def test_ten_kills_lose_and_repeat_nothing(
    shards: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    run, rng = Run(tmp_path / "run", shards, SLOW), random.Random(0)
    for _ in range(10):
        before = len(run.noted())
        process = run.start(pause=0.1)
        run.await_batches(before + 1)
        time.sleep(rng.uniform(0, 0.15))
        kill(process)
        assert not run.captions.exists()
    ended(run.start())
    assert run.captions.read_bytes() == undisturbed
    assert len(run.noted()) <= BATCHES + 10  # a kill costs at most the batch in hand


@pytest.mark.slow
def test_another_number_of_processes_goes_on(
    shards: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    run = Run(tmp_path / "run", shards, SLOW)
    processes = [run.start(pause=0.1, RANK=rank, WORLD_SIZE=2) for rank in range(2)]
    run.await_batches(8)
    for process in processes:
        kill(process)
    assert not run.captions.exists()
    parts = run.captions.parent.glob("captions.part-*")
    assert sum(part.read_text().count("\n") for part in parts) >= 6
    outputs = [ended(p) for p in [run.start(RANK=rank, WORLD_SIZE=3) for rank in range(3)]]
    assert "rank 2 is done" in outputs[2]
    assert run.captions.read_bytes() == undisturbed
    assert len(run.noted()) <= BATCHES + 2


def test_folder_that_cannot_be_written_is_named(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Run(tmp_path / "run", shards, SLOW)
    run.captions.parent.write_text("a file where the folder should be")
    monkeypatch.setattr("sys.argv", ["pipeline", "captions", *run.settings])
    assert main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(run.captions.parent) in error


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 0)),
        ({"WORLD_SIZE": "8"}, (0, 1, 0)),
        # srun: two machines of two tasks each
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "1",
                "SLURM_NTASKS": "4",
                "SLURM_STEP_NUM_TASKS": "4",
            },
            (3, 4, 1),
        ),
        # a step of two tasks in an allocation of four
        (
            {
                "SLURM_PROCID": "1",
                "SLURM_LOCALID": "1",
                "SLURM_NTASKS": "4",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            (1, 2, 1),
        ),
        # a batch script, and a shell that salloc starts on the login node
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}, (0, 1, 0)),
        ({"SLURM_NTASKS": "4"}, (0, 1, 0)),
        # a shell that salloc starts on the first machine, which is a step of its own
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_NTASKS": "4",
                "SLURM_STEP_ID": "4294967290",
                "SLURM_STEP_NUM_TASKS": "1",
            },
            (0, 1, 0),
        ),
        # torchrun in a step of one task per machine
        (
            {
                "RANK": "5",
                "WORLD_SIZE": "8",
                "LOCAL_RANK": "1",
                "SLURM_PROCID": "1",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            (5, 8, 1),
        ),
        # a process that Lightning starts, and the same after training
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, (1, 2, 1)),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, (1, 2, 1)),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, (0, 1, 0)),
    ],
)
def test_rank_of_environment(
    variables: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(variables, monkeypatch)
    assert current_rank() == Rank(*expected)


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"RANK": "1"}, "WORLD_SIZE=None"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK="),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID=None"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "2"}, "SLURM_PROCID=2"),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1", "WORLD_SIZE": "4"}, "NODE_RANK=1"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1"),
    ],
)
def test_nonsense_in_the_environment_is_named(
    variables: dict[str, str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(variables, monkeypatch)
    with pytest.raises(ValueError, match=f"{error}.*torchrun or srun"):
        current_rank()


def set_environment(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
