"""Making shards, killed again and again: what comes out is what an undisturbed run makes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datamodules.files import read_json
from pipeline.stage import RECORD

PAIRS, PAUSE_S = 40, 0.06
UNUSED = ("captions.captioner", "controller.optimizer", "restorer.optimizer")
OVERRIDES = [
    "experiment=universal",
    "~shards.source",
    f"+shards.source={{_target_: tests.samples.SlowPairs, pairs: {PAIRS}, pause: {PAUSE_S}}}",
    "shards.format.shard_mb=0.03",  # two pairs a shard
    "num_workers=2",
    *(f"{key}._target_=tests.samples.unused" for key in UNUSED),
]


def start(run: Path, output: int) -> subprocess.Popen[str]:
    """The real command, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "shards", *OVERRIDES, f"run_dir={run}"],
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(run: Path) -> None:
    process = start(run, subprocess.PIPE)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output


def living(group: int) -> list[int]:
    """The processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@contextmanager
def no_remains(groups: list[int]) -> Iterator[None]:
    """Whatever a failing test leaves running is ended."""
    try:
        yield
    finally:
        for group in groups:
            for process in living(group):
                os.kill(process, signal.SIGKILL)


def contents(run: Path) -> dict[str, Any]:
    """All files of a run, but of the stage's record neither the times nor the state of the code."""
    found: dict[str, Any] = {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file()
    }
    record = read_json(run / "shards" / RECORD)
    for name in ("started", "starts", "finished", "code"):
        del record[name]
    return found | {f"shards/{RECORD}": record}


def finished_shards(run: Path) -> set[Path]:
    return set((run / "shards").glob("*.json")) - {run / "shards" / RECORD}


def kill_on_the_way(run: Path, rng: random.Random, groups: list[int]) -> bool:
    """Kill the parent, and it alone, while it starts or at work; False if it was done before."""
    starting = rng.random() < 0.5
    before = finished_shards(run)
    process = start(run, subprocess.DEVNULL)
    groups.append(process.pid)
    while not starting and process.poll() is None and finished_shards(run) <= before:
        time.sleep(0.01)
    time.sleep(rng.uniform(0.2, 1.0) if starting else rng.uniform(0, 0.15))
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_shards_made_through_ten_kills_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    finish(run)
    run.rename(straight)
    rng = random.Random(0)
    groups: list[int] = []
    with no_remains(groups):
        killed = 0
        for _ in range(10):
            killed += kill_on_the_way(run, rng, groups)
            for path in (run / "shards").glob("*.tar"):
                assert path.read_bytes() == (straight / "shards" / path.name).read_bytes()
        assert killed >= 5  # else it has killed too little to show anything
        finish(run)
        deadline = time.monotonic() + 30
        while any(map(living, groups)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [living(group) for group in groups] == [[]] * 10
    assert contents(run) == contents(straight)
    assert not [path for path in run.rglob("*") if path.name.endswith(".part")]
    assert len(list(run.glob("shards/rainy-train-*.tar"))) == PAIRS // 2
