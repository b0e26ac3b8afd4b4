"""How the stages of a run stand, by their folders, SLURM, and what their jobs have left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.files import read_json
from pipeline.chain import STAGES, chain
from pipeline.config import Config
from pipeline.preemption import STOPPED
from pipeline.slurm.job import log_of, record_of
from pipeline.slurm.queue import look_at
from pipeline.slurm.submit import read_jobs
from pipeline.stage import is_fresh

QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING")
FAULT = re.compile(r"\b(error|\w*Error|\w*Exception)\b")
CLUSTERS_OWN = ("srun:", "slurmstepd:")
"""How lines begin that SLURM adds to a log."""


class Standing(NamedTuple):
    """How a stage stands."""

    text: str
    failed: bool = False


def status(config: Config) -> list[str]:
    """A line for each stage; the faults of one that failed are on further ones."""
    jobs = read_jobs(config)
    needed = chain(config, "evaluate")
    lines, before, broken = [], True, ""
    for command, stage in STAGES.items():
        try:
            fresh = (before or command not in needed) and is_fresh(stage, config)
        except FileNotFoundError:
            fresh = False
        if command in needed:
            before = fresh
        standing = Standing("fresh")
        if not fresh:
            standing = _standing(command, config, jobs.get(command), broken)
        if standing.failed and not broken:
            broken = command
        lines.append(f"{command:17} {standing.text}")
    return lines


def _standing(command: str, config: Config, job: str | None, broken: str) -> Standing:
    """How a stage stands that is not fresh; `broken` is the stage before it that failed."""
    if job is None:
        return Standing("not submitted")
    shown, left = look_at(job), _left(command, config, job)
    restarts = int(shown.get("Restarts", left.get("restarts", 0)))
    again = f", requeued {restarts} time{'s' * (restarts > 1)}" if restarts else ""
    state = shown.get("JobState", "")
    if state in QUEUED:
        return Standing(f"queued as job {job}: {shown.get('Reason', state)}{again}")
    if state in RUNNING:
        where = f"on {shown.get('NodeList')} since {shown.get('StartTime')}"
        return Standing(f"running as job {job} {where}{again}")
    if state == "CANCELLED" or not (state or left):
        if broken:
            return Standing(f"cancelled because {broken} failed")
        if state:
            return Standing(f"cancelled{again}", failed=True)
    code = left.get("status")
    if code == 0:
        return Standing("changed since its job ended; submit again")
    return Standing(_fault(log_of(command, config, job), state, code, again), failed=True)


def _left(command: str, config: Config, job: str) -> dict[str, Any]:
    """What the job's script has noted in the end, empty where it had no time to."""
    path = record_of(command, config)
    left: dict[str, Any] = read_json(path) if path.is_file() else {}
    return left if left.get("job") == job else {}


def _fault(log: Path, state: str, code: int | None, again: str) -> str:
    if code == STOPPED:
        why = "stopped in order but was not requeued; submit again to go on"
    elif code is None:
        why = f"ended by the cluster ({state or 'out of time or memory, or cancelled'})"
    else:
        why = f"failed with status {code}"
    return "\n".join([f"{why}{again}; see {log}", *(f"{'':17} {line}" for line in faults_in(log))])


def faults_in(log: Path) -> list[str]:
    """What a log tells of errors: the program's last word, and the first one of the cluster.

    Which of the two is the cause cannot be told: the program may have failed, or was killed.
    """
    if not log.is_file():
        return []
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    faults = [line for line in lines if FAULT.search(line)]
    clusters = [line for line in faults if line.startswith(CLUSTERS_OWN)]
    own = [line for line in faults if line not in clusters]
    return own[-1:] + clusters[:1]
