"""Jobs for a cluster: their scripts, what is refused, and how a run stands; without SLURM."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.chain import STAGES
from pipeline.compose import load_config
from pipeline.config import Config, ConfigError
from pipeline.preemption import NOTE, STOPPED
from pipeline.slurm import queue, status, submit
from pipeline.slurm.job import job_folder, log_of, record_of, render
from pipeline.slurm.queue import SlurmError
from pipeline.slurm.status import faults_in
from pipeline.stage import is_fresh, run_stage
from tests.conftest import TINY_RUN

MakeConfig = Callable[..., Config]
NO_GPUS = ["cluster.all.gpus_per_node=0"]


@pytest.fixture
def tiny_config(tmp_path: Path) -> MakeConfig:
    """A small run whose number of devices follows from the section cluster."""
    tiny = [override for override in TINY_RUN if not override.startswith("trainer.")]

    def load(*overrides: str) -> Config:
        return load_config([*tiny, f"run_dir={tmp_path / 'run'}", *overrides])

    return load


def script(tiny_config: MakeConfig, command: str, *overrides: str) -> str:
    return render(command, tiny_config(*NO_GPUS, *overrides))


def options(text: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)


def test_script_asks_for_what_the_stage_needs(tiny_config: MakeConfig, tmp_path: Path) -> None:
    text = script(
        tiny_config,
        "train-restorer",
        "cluster.all.account=lab",
        "cluster.all.partition=cpu",
        "cluster.restorer.partition=gpu",
        "restorer.batch_size=16",
        "cluster.restorer.nodes=2",
        "cluster.restorer.tasks_per_node=4",
        "cluster.restorer.gpus_per_node=4",
        "cluster.restorer.memory=64G",
        "cluster.all.options=['--qos=long', '--constraint=a100&ib']",
        "cluster.all.setup=['module load cuda', 'export A=\"b c\"']",
    )
    assert options(text) == [
        "--job-name=run-train-restorer",
        "--account=lab",
        "--partition=gpu",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gres=gpu:4",
        "--cpus-per-task=9",
        "--mem=64G",
        "--time=1440",
        f"--output={tmp_path}/run/slurm/train-restorer-%j.log",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@300",
        "--qos=long",
        "--constraint=a100&ib",
    ]
    assert 'set -e\nmodule load cuda\nexport A="b c"\nset +e\n' in text


def test_other_stages_are_as_all_and_shards_on_one_cpu_node(tiny_config: MakeConfig) -> None:
    all_of = ["cluster.all.nodes=3", "cluster.all.tasks_per_node=2", "cluster.all.gpus_per_node=2"]
    for command, wanted in (("captions", (3, 2, True)), ("shards", (1, 1, False))):
        found = options(render(command, tiny_config(*all_of)))
        assert f"--nodes={wanted[0]}" in found
        assert f"--ntasks-per-node={wanted[1]}" in found
        assert ("--gres=gpu:2" in found) == wanted[2]


def test_command_has_the_overrides_and_the_layout_of_the_job(tiny_config: MakeConfig) -> None:
    given = [
        "shards.source.crop=48",
        "captioner=file",
        "captions.captioner.path='a b'",
        "cluster.controller.nodes=2",
    ]
    config = tiny_config(*NO_GPUS, *given)
    text = render("train-controller", config)
    line = text[text.index(sys.executable) :].splitlines()[0].removesuffix(" &")
    layout = ["trainer.devices=1", "trainer.num_nodes=2"]
    assert shlex.split(line)[4:] == ["train-controller", *config.overrides, *layout]


def test_script_is_sound_shell(tiny_config: MakeConfig) -> None:
    for command in STAGES:
        text = script(tiny_config, command, "cluster.all.setup=[true]", "cluster.all.memory=1G")
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert "\n\n\n" not in text


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("shards", ["run_dir=some/where"], "not absolute.*such as run_dir=/.*some/where"),
        ("shards", ["run_dir=/tmp/%j"], "only letters, digits"),
        ("shards", ["run_dir='/tmp/a b'"], "only letters, digits"),
        ("shards", ["cluster.shards.tasks_per_node=2"], "shards is one process"),
        ("shards", ["cluster.shards.gpus_per_node=1"], "without a GPU"),
        ("evaluate", ["cluster.evaluate.gpus_per_node=2"], "one task for each GPU"),
        ("captions", ["cluster.all.gpus_per_node=4"], "one task for each GPU"),
        ("captions", ["cluster.captions.nodes=0"], r"cluster\.captions\.nodes=0: it should be"),
        ("train-controller", ["trainer.accelerator=gpu"], "accelerator=gpu needs GPUs"),
        ("train-controller", ["cluster.all.minutes=5"], r"controller\.minutes=5 is not longer"),
        (
            "train-restorer",
            ["cluster.all.nodes=3"],
            "batch_size=2 images cannot be shared out evenly to 3",
        ),
        ("train-restorer", ["trainer.devices=2"], r"trainer\.devices=2 contradicts.*per_node=1"),
        ("train-restorer", ["trainer.num_nodes=2"], r"num_nodes=2 contradicts.*nodes=1"),
    ],
)
def test_what_cannot_work_is_refused(
    tiny_config: MakeConfig, command: str, overrides: Sequence[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        script(tiny_config, command, *overrides)


def test_devices_that_agree_or_are_left_open_are_taken(tiny_config: MakeConfig) -> None:
    agreeing = script(tiny_config, "train-restorer", "trainer.devices=1", "trainer.num_nodes=1")
    open_ones = script(tiny_config, "train-restorer", "trainer.devices=auto")
    assert all("trainer.devices=1" in text for text in (agreeing, open_ones))


class FakeSlurm:
    """Takes jobs, and tells of them what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.answers: dict[str, str] = {"squeue": ""}
        self.refused = ""
        monkeypatch.setattr(queue, "_call", self._call)
        monkeypatch.setattr(submit, "missing_commands", list)

    def _call(self, *command: str) -> str:
        self.calls.append(command)
        if command[0] == "sbatch":
            if self.refused and self.refused in command[-1]:
                raise SlurmError("sbatch: error: invalid partition specified: gone")
            return f"{100 + self.submitted() - 1};cluster\n"
        if command[0] == "scontrol":
            if command[-1] not in self.answers:
                raise SlurmError("Invalid job id specified")
            return self.answers[command[-1]]
        return self.answers.get(command[0], "")

    def submitted(self) -> int:
        return sum(call[0] == "sbatch" for call in self.calls)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(monkeypatch)


def test_stages_follow_one_another(
    tiny_config: MakeConfig, slurm: FakeSlurm, tmp_path: Path
) -> None:
    config = tiny_config(*NO_GPUS)
    submit.submit(config, "train-controller", dry_run=False)
    folder = tmp_path / "run" / "slurm"
    after = ("sbatch", "--parsable", "--dependency=afterok:{}", "--kill-on-invalid-dep=yes")
    assert [call for call in slurm.calls if call[0] == "sbatch"] == [
        ("sbatch", "--parsable", f"{folder}/shards.sh"),
        (*(part.format(100) for part in after), f"{folder}/captions.sh"),
        (*(part.format(101) for part in after), f"{folder}/train-controller.sh"),
    ]
    wanted = {"shards": "100", "captions": "101", "train-controller": "102"}
    assert submit.read_jobs(config) == wanted
    assert (folder / "captions.sh").read_text() == render("captions", config)


def test_fresh_stages_are_not_submitted(tiny_config: MakeConfig, slurm: FakeSlurm) -> None:
    config = tiny_config(*NO_GPUS)
    assert not is_fresh(STAGES["shards"], config)
    run_stage(STAGES["shards"], config)
    assert is_fresh(STAGES["shards"], config)
    submit.submit(config, "shards", dry_run=False)
    assert slurm.submitted() == 0
    submit.submit(config, "captions", dry_run=False)
    assert list(submit.read_jobs(config)) == ["captions"]
    assert "--dependency" not in " ".join(slurm.calls[-1])


@pytest.mark.parametrize(
    ("overrides", "submitted"),
    [
        (["evaluate.pretrained=shipped"], ["shards", "evaluate"]),
        (["evaluate.pretrained=shipped", "evaluate.data={folder}"], ["evaluate"]),
        (["evaluate.model=false", "evaluate.data={folder}"], ["evaluate"]),
        (
            ["evaluate.restorer=x.safetensors"],
            ["shards", "captions", "train-controller", "evaluate"],
        ),
    ],
)
def test_only_what_an_evaluation_reads_is_submitted(
    tiny_config: MakeConfig,
    slurm: FakeSlurm,
    tmp_path: Path,
    overrides: list[str],
    submitted: list[str],
) -> None:
    given = [*NO_GPUS, *(override.format(folder=tmp_path) for override in overrides)]
    config = tiny_config(*given)
    submit.submit(config, "evaluate", dry_run=False)
    assert list(submit.read_jobs(config)) == submitted


def test_jobs_that_are_not_done_stand_in_the_way(tiny_config: MakeConfig, slurm: FakeSlurm) -> None:
    config = tiny_config(*NO_GPUS)
    other = "9|RUNNING|/some/where/else/slurm/evaluate.sh"
    slurm.answers["squeue"] = f"{other}\n7|PENDING|{job_folder(config)}/evaluate.sh\n"
    with pytest.raises(SlurmError, match=r"evaluate 7 \(PENDING\).*`scancel 7`"):
        submit.submit(config, "shards", dry_run=False)
    assert slurm.submitted() == 0
    slurm.answers["squeue"] = other
    submit.submit(config, "shards", dry_run=False)
    assert slurm.submitted() == 1


def test_refused_job_takes_back_those_before_it(tiny_config: MakeConfig, slurm: FakeSlurm) -> None:
    slurm.refused = "captions.sh"
    with pytest.raises(SlurmError, match=r"of captions was refused.*invalid partition"):
        submit.submit(tiny_config(*NO_GPUS), "captions", dry_run=False)
    assert slurm.calls[-1] == ("scancel", "100")


def test_dry_run_shows_the_scripts_and_touches_nothing(
    tiny_config: MakeConfig, slurm: FakeSlurm, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO")
    config = tiny_config(*NO_GPUS)
    submit.submit(config, "captions", dry_run=True)
    assert render("captions", config) in caplog.text
    assert "captions.sh, after the success of shards" in caplog.text
    assert slurm.calls == []
    assert not (tmp_path / "run").exists()


def test_missing_slurm_is_named(
    tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="no sbatch, srun, squeue, scontrol, scancel on PATH"):
        submit.submit(tiny_config(*NO_GPUS), "shards", dry_run=False)
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_written_is_named(
    tiny_config: MakeConfig, slurm: FakeSlurm, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    given = [*NO_GPUS, f"run_dir={tmp_path / 'file' / 'run'}"]
    with pytest.raises(ConfigError, match=r"file/run cannot be written \(Not a directory\)"):
        submit.submit(tiny_config(*given), "shards", dry_run=False)


def standing(config: Config, command: str) -> str:
    lines = "\n".join(status.status(config)).replace(f"\n{'':17} ", " | ").splitlines()
    return next(line[18:] for line in lines if line.startswith(f"{command} "))


def test_status_tells_how_each_job_stands(tiny_config: MakeConfig, slurm: FakeSlurm) -> None:
    config = tiny_config(*NO_GPUS)
    submit.submit(config, "train-restorer", dry_run=False)
    slurm.answers |= {
        "100": "JobId=100 JobState=RUNNING Reason=None Restarts=2 StartTime=12:00 NodeList=n[1-2]",
        "101": "JobId=101 JobState=PENDING Reason=Dependency Restarts=0 NodeList=",
        "102": "JobId=102 JobState=PENDING Reason=BeginTime Restarts=1 NodeList=",
    }
    assert (
        standing(config, "shards") == "running as job 100 on n[1-2] since 12:00, requeued 2 times"
    )
    assert standing(config, "captions") == "queued as job 101: Dependency"
    assert standing(config, "train-controller") == "queued as job 102: BeginTime, requeued 1 time"
    assert standing(config, "evaluate") == "not submitted"


def test_status_of_an_evaluation_of_another_model_goes_by_what_it_reads(
    tiny_config: MakeConfig, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = {"shards": True, "captions": False, "controller": False, "restorer": False}
    monkeypatch.setattr(status, "is_fresh", lambda stage, config: fresh.get(stage.name, True))
    config = tiny_config(*NO_GPUS, "evaluate.pretrained=shipped")
    assert standing(config, "evaluate") == standing(config, "shards") == "fresh"
    assert standing(config, "train-restorer") == "not submitted"
    assert standing(tiny_config(*NO_GPUS), "evaluate") == "not submitted"


def test_status_goes_by_the_record_where_slurm_has_forgotten(
    tiny_config: MakeConfig, slurm: FakeSlurm
) -> None:
    config = tiny_config(*NO_GPUS)
    submit.submit(config, "train-controller", dry_run=False)
    assert standing(config, "shards").startswith("ended by the cluster (out of time or memory")
    record = {"job": "100", "restarts": 1, "status": 3}
    record_of("shards", config).write_text(json.dumps(record))
    log = log_of("shards", config, "100")
    log.write_text("error: no room\nsrun: error: t1: task 0: Exited with exit code 1\n")
    failed = f"failed with status 3, requeued 1 time; see {log} | error: no room | srun: error: t1"
    assert standing(config, "shards").startswith(failed)
    assert standing(config, "captions") == "cancelled because shards failed"
    record_of("shards", config).write_text(json.dumps(record | {"status": STOPPED}))
    assert standing(config, "shards").startswith("stopped in order but was not requeued")
    record_of("shards", config).write_text(json.dumps(record | {"job": "99"}))
    assert standing(config, "shards").startswith("ended by the cluster")
    run_stage(STAGES["shards"], config)
    assert standing(config, "shards") == "fresh"


def test_job_that_ran_out_of_time_has_failed(tiny_config: MakeConfig, slurm: FakeSlurm) -> None:
    config = tiny_config(*NO_GPUS)
    submit.submit(config, "captions", dry_run=False)
    slurm.answers["100"] = "JobId=100 JobState=TIMEOUT Restarts=0"
    slurm.answers["101"] = "JobId=101 JobState=CANCELLED Reason=DependencyNeverSatisfied"
    assert standing(config, "shards").startswith("ended by the cluster (TIMEOUT); see ")
    assert standing(config, "captions") == "cancelled because shards failed"
    slurm.answers["100"] = "JobId=100 JobState=CANCELLED Restarts=0"
    assert standing(config, "shards") == "cancelled"


def test_faults_are_the_last_of_the_program_and_the_first_of_slurm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert faults_in(log) == []
    log.write_text("all is well\n")
    assert faults_in(log) == []
    killed, ended = "srun: error: t2: task 1: Killed", "srun: error: t1: task 0: Terminated"
    log.write_text(f"error: one\n{killed}\ntorch.OutOfMemoryError: full\n{ended}\n")
    assert faults_in(log) == ["torch.OutOfMemoryError: full", killed]


def test_submit_and_status_are_commands(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", "submit", "run_dir=here"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        assert main() == 1
        assert "run_dir=here is not absolute" in capfd.readouterr().err
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("noted", [False, True])
def test_stage_without_training_leaves_at_once(
    number: signal.Signals, noted: bool, tmp_path: Path
) -> None:
    environment = os.environ | ({NOTE: str(tmp_path / "note")} if noted else {})
    code = (
        "import os, time; from pipeline.preemption import listen; listen()\n"
        "if os.fork() == 0: os.kill(os.getpid(), 10); os._exit(3)\n"  # a worker does not listen
        "print(os.wait()[1] >> 8, flush=True)\n"
        "while True: time.sleep(0.1)"  # Python handles a signal that just misses a sleep after it
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "3\n"
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (0 if noted else STOPPED)
    assert (tmp_path / "note").exists() == noted
    assert errors == f"asked to stop by {number.name}\n"
