"""What is asked of SLURM: to take a job, to drop one, and how one is getting on."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")


class SlurmError(OSError):
    """SLURM is missing, or has refused something."""


def missing_commands() -> list[str]:
    """Which of SLURM's commands are not there."""
    return [name for name in COMMANDS if shutil.which(name) is None]


def submit_script(script: Path, after: str | None) -> str:
    """Submit a job.

    Args:
        script: of the job.
        after: a job that it begins after the success of, and without which it is cancelled.

    Returns:
        Its id.

    Raises:
        SlurmError: SLURM refuses it; the message is SLURM's own.
    """
    dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    return _call("sbatch", "--parsable", *dependency, str(script)).strip().partition(";")[0]


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs."""
    _call("scancel", *jobs)


def live_jobs(scripts: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    """The id and state of those jobs that wait or run, by their script."""
    lines = (line.split("|", 2) for line in _call("squeue", "-h", "-o", "%i|%T|%o").splitlines())
    wanted = {str(script): script for script in scripts}
    return {wanted[path]: (job, state) for job, state, path in lines if path in wanted}


def look_at(job: str) -> dict[str, str]:
    """What SLURM tells about a job, such as `JobState`; empty where it has forgotten it."""
    try:
        line = _call("scontrol", "--oneliner", "show", "job", job)
    except SlurmError:
        return {}
    return dict(re.findall(r"(?:^|\s)([\w/:]+)=(\S*)", line))


def _call(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise SlurmError(f"no {command[0]} on PATH") from error
    except subprocess.CalledProcessError as error:
        raise SlurmError(" ".join(error.stderr.split()) or f"{command[0]} failed") from error
    return done.stdout
