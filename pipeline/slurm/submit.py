"""Submitting the chain: the stages that are not fresh, each after the one before."""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamodules.files import atomic_write, read_json, write_json
from pipeline.chain import STAGES, chain
from pipeline.config import Config, ConfigError, check_targets
from pipeline.slurm.job import job_folder, render, script_of
from pipeline.slurm.queue import SlurmError, cancel, live_jobs, missing_commands, submit_script
from pipeline.stage import is_fresh

log = logging.getLogger(__name__)

JOBS = "jobs.json"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems without locks answer, as Lustre may be mounted."""


def submit(config: Config, upto: str, dry_run: bool) -> None:
    """Submit the stages up to one that are not fresh.

    Args:
        config: the configuration.
        upto: the last stage.
        dry_run: show the scripts, and change nothing.

    Raises:
        ConfigError: the settings cannot work.
        SlurmError: there is no SLURM, it refuses a job, or jobs of the run are not done yet.
        FileNotFoundError: an input of the first stage to run is missing.
    """
    commands = _not_fresh(config, upto)
    scripts = {command: render(command, config) for command in commands}
    if not scripts:
        log.info("all stages up to %s are fresh, nothing to submit", upto)
    elif dry_run:
        _show(scripts, config)
    else:
        check_targets(config)
        if missing := missing_commands():
            raise SlurmError(
                f"no {', '.join(missing)} on PATH; run CLUSTER=slurm on a machine with "
                "SLURM's commands, such as the login node"
            )
        with _alone(config):
            _refuse_second(config)
            _submit_all(scripts, config)


def read_jobs(config: Config) -> dict[str, str]:
    """The id of each stage's last job."""
    path = job_folder(config) / JOBS
    records: dict[str, Any] = read_json(path) if path.is_file() else {}
    return {command: record["job"] for command, record in records.items()}


def _not_fresh(config: Config, upto: str) -> list[str]:
    """The first stage that is not fresh, and those after it, which have its result as input."""
    names = chain(config, upto)
    first = next((i for i, name in enumerate(names) if not is_fresh(STAGES[name], config)), None)
    return [] if first is None else names[first:]


def _show(scripts: dict[str, str], config: Config) -> None:
    before = None
    for command, text in scripts.items():
        after = f", after the success of {before}" if before else ""
        log.info("# %s%s\n%s", script_of(command, config), after, text)
        before = command
    log.info("# DRY_RUN: nothing was written or submitted")


@contextmanager
def _alone(config: Config) -> Iterator[None]:
    """Make the folder of the jobs, and keep other submissions of the run out of it."""
    folder = job_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"run_dir={config.run_dir} cannot be written ({error.strerror}); choose another"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SlurmError(
                f"another process is submitting jobs for {config.run_dir}; wait for it"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s: its file system has no locks; do not submit twice at once", folder)
        yield


def _refuse_second(config: Config) -> None:
    """No two jobs may work in one folder."""
    live = live_jobs([script_of(command, config) for command in STAGES])
    if live:
        shown = ", ".join(f"{path.stem} {job} ({state})" for path, (job, state) in live.items())
        ids = " ".join(job for job, _ in live.values())
        raise SlurmError(
            f"jobs of {config.run_dir} are not done yet: {shown}; wait for them, or end them with "
            f"`scancel {ids}`"
        )


def _submit_all(scripts: dict[str, str], config: Config) -> None:
    """Submit all or nothing, and note each job as soon as it has an id."""
    path = job_folder(config) / JOBS
    records: dict[str, Any] = read_json(path) if path.is_file() else {}
    submitted: list[str] = []
    for command, text in scripts.items():
        script = _write(script_of(command, config), text)
        try:
            job = submit_script(script, submitted[-1] if submitted else None)
        except SlurmError as error:
            if submitted:
                cancel(submitted)
            raise SlurmError(
                f"the job of {command} was refused, so nothing is submitted: {error}"
            ) from error
        submitted.append(job)
        records[command] = {"job": job, "submitted": datetime.now(UTC).isoformat("T", "seconds")}
        write_json(path, records)
        log.info("%s: job %s", command, job)


def _write(script: Path, text: str) -> Path:
    with atomic_write(script) as file:
        file.write(text.encode())
    return script
