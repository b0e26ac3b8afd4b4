"""The chain on a real SLURM of two nodes: requeued midway, preempted, broken off, killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY_RUN

pytestmark = pytest.mark.slurm

STEPS = 12
SETTINGS = [
    *(setting for setting in TINY_RUN if not setting.startswith("trainer.")),
    f"controller.max_steps={STEPS}",
    f"restorer.max_steps={STEPS}",
    "controller.val_every_n_steps=100",  # so it goes on from where it was asked to stop
    "restorer.val_every_n_steps=100",
    "controller.optimizer._target_=tests.slurm.stand_ins.SlowAdamW",
    "restorer.optimizer._target_=tests.slurm.stand_ins.SlowAdamW",
    "cluster.all.nodes=2",
    "cluster.all.gpus_per_node=0",
    "cluster.all.cpus_per_task=1",
    "cluster.all.minutes=30",
]
LINES = ["export OMP_NUM_THREADS=1 MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo"]
STAGES = ["shards", "captions", "train-controller", "train-restorer", "evaluate"]


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], capture_output=True, text=True, check=False
    )


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def await_that(what: str, holds: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


class Chain:
    """A run whose stages are jobs."""

    def __init__(self, run: Path, *overrides: str, pause: float = 0.0) -> None:
        self.run, self.jobs = run, dict[str, str]()
        lines = [*LINES, f"export STEP_PAUSE_S={pause}"]
        setup = "cluster.all.setup=[" + ", ".join(f'"{line}"' for line in lines) + "]"
        self.settings = [*SETTINGS, f"run_dir={run}", setup, *overrides]

    def submit(self, upto: str = "evaluate", *options: str) -> subprocess.CompletedProcess[str]:
        done = pipeline("submit", "--upto", upto, *options, *self.settings)
        self.jobs |= dict(re.findall(r"^(\S+): job (\d+)$", done.stdout, re.MULTILINE))
        return done

    def status(self) -> dict[str, str]:
        text = pipeline("status", *self.settings).stdout
        lines = re.sub(r"\n {17}", "", text).splitlines()
        return {line.split()[0]: line[18:] for line in lines}

    def state(self, stage: str) -> str:
        return slurm("squeue", "-h", "-t", "all", "-j", self.jobs[stage], "-o", "%T").strip()

    def log(self, stage: str) -> str:
        path = self.run / "slurm" / f"{stage}-{self.jobs[stage]}.log"
        return path.read_text() if path.is_file() else ""

    def await_step(self, stage: str, step: int) -> None:
        await_that(
            f"step {step} of {stage}: {self.log(stage)}",
            lambda: f"optimizer step {step}\n" in self.log(stage),
        )

    def await_end(self, stage: str, seconds: float = 400) -> str:
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        await_that(f"end of {stage}: {self.log(stage)}", lambda: self.state(stage) in ends, seconds)
        return self.state(stage)

    def tasks(self, stage: str, rank: int) -> list[int]:
        """The process ids of a rank of a running job."""
        wanted = {f"SLURM_JOB_ID={self.jobs[stage]}", f"SLURM_PROCID={rank}"}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                variables = set((path / "environ").read_bytes().decode().split("\0"))
                command = (path / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if wanted <= variables and command[2:4] == ["-m", "pipeline"]:
                found.append(int(path.name))
        return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a cluster, on two processes that Lightning starts."""
    run = tmp_path_factory.mktemp("plain")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for stage in STAGES[:4]:
        devices = f"trainer.devices={2 if stage.startswith('train') else 1}"
        command = [sys.executable, "-m", "pipeline", stage, *SETTINGS, f"run_dir={run}", devices]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    return run


def assert_equal_weights(one: Path, two: Path) -> None:
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a | b)


def test_chain_goes_on_after_signal_and_preemption_to_the_same_result(
    plain: Path, tmp_path: Path
) -> None:
    chain = Chain(tmp_path / "run", pause=1.0)
    done = chain.submit()
    assert done.returncode == 0, done.stderr
    assert list(chain.jobs) == STAGES

    again = chain.submit()
    assert again.returncode == 1
    assert f"evaluate {chain.jobs['evaluate']} (PENDING)" in again.stderr
    assert "queued" in chain.status()["evaluate"]
    assert "Dependency" in chain.status()["evaluate"]

    # Near its limit, a job's batch shell gets SIGUSR1.
    chain.await_step("train-controller", 3)
    assert "running" in chain.status()["train-controller"]
    slurm("scancel", "--batch", "--signal=USR1", chain.jobs["train-controller"])
    await_that("requeue", lambda: chain.state("train-controller") == "PENDING", 60)
    assert "requeued 1 time" in chain.status()["train-controller"]
    assert chain.await_end("train-controller") == "COMPLETED"
    text = chain.log("train-controller")
    stopped = int(re.findall(r"stopped after step (\d+), saved", text)[0])
    assert 3 <= stopped < STEPS
    assert "resuming from" in text

    # A preempted job gets SIGTERM, and is requeued by SLURM.
    chain.await_step("train-restorer", 3)
    slurm("scontrol", "requeue", chain.jobs["train-restorer"])
    assert chain.await_end("train-restorer") == "COMPLETED"
    text = chain.log("train-restorer")
    assert 3 <= int(re.findall(r"stopped after step (\d+), saved", text)[0]) < STEPS
    assert "resuming from" in text
    assert "Restarts=1 " in slurm("scontrol", "-o", "show", "job", chain.jobs["train-restorer"])

    assert chain.await_end("evaluate") == "COMPLETED", chain.log("evaluate")
    assert chain.status() == dict.fromkeys(STAGES, "fresh")
    assert "nothing to submit" in chain.submit().stdout
    for stage in ("controller", "restorer"):
        assert_equal_weights(chain.run / stage, plain / stage)


def test_failing_stage_stops_the_chain_and_is_named(tmp_path: Path) -> None:
    failing = "captions.captioner={_target_: tests.slurm.stand_ins.Failing}"
    # A batch for each rank at least.
    chain = Chain(tmp_path / "run", "captioner=demo", failing, "captions.batch_size=1")
    assert chain.submit("train-restorer").returncode == 0
    assert chain.await_end("train-restorer") == "CANCELLED"
    assert chain.state("captions") == "FAILED"
    status = chain.status()
    assert status["shards"] == "fresh"
    log = chain.run / "slurm" / f"captions-{chain.jobs['captions']}.log"
    assert re.match(rf"failed with status \d+; see {log}", status["captions"])
    assert "error: the captioner has lost its voice" in status["captions"]
    assert status["train-restorer"] == "cancelled because captions failed"
    assert status["evaluate"] == "not submitted"


def test_killed_rank_ends_the_job_within_a_minute(plain: Path, tmp_path: Path) -> None:
    for stage in ("shards", "captions"):
        (tmp_path / stage).symlink_to(plain / stage)
    chain = Chain(tmp_path, pause=1.0)
    done = chain.submit("train-controller")
    assert list(chain.jobs) == ["train-controller"], done.stderr
    chain.await_step("train-controller", 2)
    (first,), (second,) = (chain.tasks("train-controller", rank) for rank in (0, 1))
    os.kill(first, signal.SIGSTOP)  # as one that waits for the other for ever
    os.kill(second, signal.SIGKILL)
    assert chain.await_end("train-controller", 60) == "FAILED"
    assert "failed with status 137" in chain.status()["train-controller"]
    assert "Killed" in chain.status()["train-controller"]


def test_cancelled_job_stays_cancelled(plain: Path, tmp_path: Path) -> None:
    for stage in ("shards", "captions"):
        (tmp_path / stage).symlink_to(plain / stage)
    chain = Chain(tmp_path, pause=1.0)
    chain.submit("train-restorer")
    chain.await_step("train-controller", 2)
    slurm("scancel", chain.jobs["train-controller"])
    assert chain.await_end("train-controller") == "CANCELLED"
    assert chain.await_end("train-restorer") == "CANCELLED"
    # It has saved all the same, and goes on when it is submitted again.
    await_that("record", lambda: (tmp_path / "slurm" / "train-controller.exit").is_file())
    assert "stopped after step" in chain.log("train-controller")
    assert chain.status()["train-controller"].startswith("cancelled")


def test_dry_run_submits_and_writes_nothing(tmp_path: Path) -> None:
    before = slurm("squeue", "-h", "-t", "all")
    done = Chain(tmp_path / "run").submit("evaluate", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash") == len(STAGES)
    assert slurm("squeue", "-h", "-t", "all") == before
    assert not (tmp_path / "run").exists()


def test_refused_job_takes_back_those_before_it(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "run", "cluster.captions.partition=gone")
    done = chain.submit("captions")
    assert done.returncode == 1
    assert "the job of captions was refused" in done.stderr
    assert "invalid partition specified: gone" in done.stderr
    assert chain.await_end("shards") in ("CANCELLED", "COMPLETED")
