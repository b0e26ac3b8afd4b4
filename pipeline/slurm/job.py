"""From the settings of a stage to the script of its job."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.config import Config, ConfigError, Section
from pipeline.preemption import NOTE, STOPPED
from pipeline.sections import ClusterConfig, JobConfig
from pipeline.training.sections import TrainerConfig, TrainingConfig, check_batch

PLAIN = re.compile(r"/[\w./+,=@:~-]*")
"""Paths that SLURM takes as they are."""


def job_folder(config: Config) -> Path:
    """Where a run keeps scripts, logs and records of its jobs."""
    return config.run_dir / "slurm"


def script_of(command: str, config: Config) -> Path:
    """The script of a stage's job."""
    return job_folder(config) / f"{command}.sh"


def record_of(command: str, config: Config) -> Path:
    """Where the job of a stage leaves its exit status."""
    return job_folder(config) / f"{command}.exit"


def log_of(command: str, config: Config, job: str) -> Path:
    """The log of a stage's job; SLURM puts the id of a job in place of `%j`."""
    return job_folder(config) / f"{command}-{job}.log"


def section_of(command: str) -> str:
    """The name of a stage in the section `cluster` of the configuration."""
    return command.removeprefix("train-")


def job_of(command: str, config: Config) -> JobConfig:
    """What a stage asks the cluster for."""
    cluster = config[ClusterConfig]
    job: JobConfig = getattr(cluster, section_of(command), cluster.all)
    return job


def render(command: str, config: Config) -> str:
    """The script of a stage's job.

    Args:
        command: the stage, as on the command line.
        config: the configuration; the job is given its overrides, and the number of devices and
            nodes that the job has.

    Raises:
        ConfigError: the settings contradict each other.
    """
    _check_run_dir(str(config.run_dir))
    job = job_of(command, config)
    _check_job(command, job, config)
    layout = {"trainer.devices": job.tasks_per_node, "trainer.num_nodes": job.nodes}
    _check_overrides(command, config.overrides, layout)
    settings = [*config.overrides, *(f"{key}={value}" for key, value in layout.items())]
    environment = Environment(
        loader=PackageLoader("pipeline.slurm", "."),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # a script, not a page
    )
    return environment.get_template("job.sh.j2").render(
        name=f"{config.run_dir.name}-{command}",
        job=job,
        log=log_of(command, config, "%j"),
        record=record_of(command, config),
        stop_before_s=config[ClusterConfig].stop_before_s,
        stopped=STOPPED,
        note_variable=NOTE,
        note=job_folder(config) / f"{command}.stopped",
        directory=shlex.quote(str(Path.cwd())),
        command=shlex.join([sys.executable, "-u", "-m", "pipeline", command, *settings]),
    )


def _check_run_dir(run_dir: str) -> None:
    if not Path(run_dir).is_absolute():
        raise ConfigError(
            f"run_dir={run_dir} is not absolute, and jobs may start elsewhere; give the whole "
            f"path, such as run_dir={Path(run_dir).absolute()}"
        )
    if not PLAIN.fullmatch(run_dir):
        raise ConfigError(
            f"run_dir={run_dir!r}: SLURM takes only letters, digits and ./+,=@:~_- in the paths of "
            "its logs; choose another"
        )


def _check_job(command: str, job: JobConfig, config: Config) -> None:
    """Refuse what cannot work, or would leave processors or GPUs idle."""
    key = f"cluster.{section_of(command)}"
    tasks, gpus = job.tasks_per_node, job.gpus_per_node
    shown = f"{key}.nodes={job.nodes}, tasks_per_node={tasks}, gpus_per_node={gpus}"
    if command == "shards":
        if (job.nodes, tasks, gpus) != (1, 1, 0):
            raise ConfigError(f"{shown}: shards is one process, on one node without a GPU")
    elif gpus not in (0, tasks):
        raise ConfigError(f"{shown}: {command} has one task for each GPU; make the two equal")
    if command.startswith("train-"):
        training = Section.known[section_of(command)]
        assert issubclass(training, TrainingConfig)
        check_batch(config, training, job.nodes * tasks)
    accelerator = config[TrainerConfig].accelerator
    if accelerator in ("gpu", "cuda") and gpus == 0 and command != "shards":
        raise ConfigError(f"{shown}: trainer.accelerator={accelerator} needs GPUs")
    if job.minutes * 60 <= config[ClusterConfig].stop_before_s:
        raise ConfigError(
            f"{key}.minutes={job.minutes} is not longer than cluster.stop_before_s="
            f"{config[ClusterConfig].stop_before_s} seconds; the job would stop before it has begun"
        )


def _check_overrides(command: str, overrides: Sequence[str], layout: dict[str, int]) -> None:
    """Refuse a number of devices or nodes that is not that of the job."""
    names = {"trainer.devices": "tasks_per_node", "trainer.num_nodes": "nodes"}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in layout and value not in ("auto", str(layout[key])):
            raise ConfigError(
                f"{override} contradicts cluster.{section_of(command)}.{names[key]}={layout[key]}; "
                f"leave {key} out, it follows from the section cluster"
            )
