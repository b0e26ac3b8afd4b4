"""Which of the processes of a multi-process run this one is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config import Config
from pipeline.training.sections import TrainerConfig

if TYPE_CHECKING:
    import torch

ADVICE = "start all processes with torchrun or srun, or unset these variables to run a single one"


class Rank(NamedTuple):
    """One process among those that were started together."""

    rank: int
    """Its number, from 0."""
    world: int
    """How many there are."""
    local: int
    """Its number among those on this machine, from 0."""


def current_rank() -> Rank:
    """This process's rank, by the variables that whatever started it has set.

    - torchrun sets RANK, WORLD_SIZE and LOCAL_RANK.
    - Lightning, where it starts further processes on this machine itself, sets LOCAL_RANK and
      WORLD_SIZE, and leaves only the first behind when it is done.
    - srun sets SLURM_PROCID, SLURM_LOCALID and SLURM_STEP_NUM_TASKS for the tasks of its step. The
      last is the mark of a step: in a batch script, and in the shell of an allocation, the other
      two and SLURM_NTASKS are set as well, though one process runs there.

    Raises:
        ValueError: the variables are no numbers, or contradict each other.
    """
    if "RANK" in os.environ:
        return _rank("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "LOCAL_RANK" in os.environ:
        _check_single_machine()
        local = _number("LOCAL_RANK")
        return _rank("LOCAL_RANK", "WORLD_SIZE", "LOCAL_RANK", world_default=str(local + 1))
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return _rank("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    _check_single_machine()
    return Rank(0, 1, 0)


def _rank(rank: str, world: str, local: str, world_default: str | None = None) -> Rank:
    found = Rank(_number(rank), _number(world, world_default), _number(local, "0"))
    if not found.local <= found.rank < found.world:
        names = dict.fromkeys((rank, world, local))
        shown = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
        raise ValueError(f"{shown} in the environment: not {local} <= {rank} < {world}; {ADVICE}")
    return found


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdecimal():
        raise ValueError(f"{name}={text} in the environment: not a number from 0; {ADVICE}")
    return int(text)


def _check_single_machine() -> None:
    if _number("NODE_RANK", "0") > 0:
        raise ValueError(
            f"NODE_RANK={os.environ['NODE_RANK']} in the environment, but no RANK; {ADVICE}"
        )


def use_own_gpu(rank: Rank) -> None:
    """Make a GPU of its own torch's current one for each process of a machine.

    A process may see all GPUs of the machine, or only its own.
    """
    if rank.local == 0:
        return
    import torch

    if count := torch.cuda.device_count():
        torch.cuda.set_device(rank.local % count)


def device_of(config: Config) -> torch.device:
    """The device that a run restores and measures on."""
    import torch

    cuda = config[TrainerConfig].accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")
