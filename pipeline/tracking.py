"""A stage's run on Weights & Biases: what it is called, what it used and made, what it measures.

A run of the pipeline is a group there, each of its stages one run of that group, which goes on
under its id when the stage does. Nothing here ends a stage or keeps it waiting for long: without a
key or a connection the run stays on disk for `wandb sync`, and what else fails is said once.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from datamodules.files import atomic_write
from pipeline.config import Config
from pipeline.sections import LoggerConfig

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

CSV_LOG = "metrics"
"""Folder below the stage's; its start number N writes `version_N/metrics.csv` there."""
ID = "wandb_id.txt"
"""In the folder of a run or a stage: what it is called on W&B, for good."""
BEGIN_S, END_S = 10.0, 20.0
"""How long a stage waits at most for W&B to answer, and for the last figures to be sent."""
FLUSH_S = 1.0
"""How often what is kept on disk is written there: no more is lost when a stage is killed."""
BY_REFERENCE = ("index.json", "model.safetensors")
"""Files of which W&B gets the address and the checksum, not the content."""


class Tracker:
    """The W&B run of this process, if there is one: call it with what to do to the run."""

    def __init__(self) -> None:
        """Have no run."""
        self._run: wandb.Run | None = None

    @property
    def active(self) -> bool:
        """Whether there is a run."""
        return self._run is not None

    def start(self, begin: Callable[[], wandb.Run]) -> None:
        """Have a run from now on, if beginning one works."""
        self._run = self._try(begin)

    def __call__(self, action: Callable[[wandb.Run], object]) -> None:
        """Do something to the run, if there is one; the first failure is the last try."""
        if (run := self._run) is not None:
            self._try(lambda: action(run))

    def finish(self, status: int) -> None:
        """End the run; 0 is success."""
        self(lambda run: run.finish(exit_code=status))
        self._run = None

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever it is, it is not worth a training
            log.warning("W&B failed, the stage goes on without it: %s", one_line(error))
            self._run = None


TRACKER = Tracker()
"""W&B has one run a process; further processes of a stage have none."""


@contextmanager
def tracked(
    config: Config, folder: Path, inputs: Sequence[Path], outputs: Sequence[Path], code: str
) -> Iterator[None]:
    """Show a stage on W&B while it works, where `logger.project` names a project.

    Args:
        config: of the run.
        folder: of the stage.
        inputs: the files it depends on; those that other stages of the run made are linked to.
        outputs: the files it makes.
        code: version.
    """
    if config[LoggerConfig].project is None:
        yield
        return
    run_dir = config.run_dir.resolve()
    used = [path.resolve() for path in inputs if path.resolve().parent.parent == run_dir]
    TRACKER.start(lambda: _begin(config, folder, used, code))
    status = 1
    try:
        yield
        TRACKER(lambda run: run.log_artifact(_artifact(folder, outputs)))
        status = 0
    finally:
        TRACKER.finish(status)


def kept_id(folder: Path) -> str:
    """A folder's short random id, the same ever after."""
    path = folder / ID
    if not path.is_file():
        with atomic_write(path) as file:
            file.write(secrets.token_hex(4).encode())
    return path.read_text(encoding="ascii")


def group_of(run_dir: Path) -> str:
    """What a run of the pipeline is called: its folder's name and id."""
    return re.sub(r"[^\w.-]", "_", run_dir.resolve().name) + "-" + kept_id(run_dir)


def _begin(config: Config, folder: Path, used: Sequence[Path], code: str) -> wandb.Run:
    import wandb

    group, settings = group_of(config.run_dir), wandb.setup().settings
    artifacts = [_artifact(path.parent, [path]) for path in used]
    links = {artifact.type: f"{artifact.name}:{artifact.digest}" for artifact in artifacts}

    def init(mode: Any) -> wandb.Run:
        return wandb.init(
            project=config[LoggerConfig].project,
            group=group,
            job_type=folder.name,
            name=f"{group}-{folder.name}",
            id=kept_id(folder),
            resume="allow",
            dir=folder,
            mode=mode,
            config=dict(config.values) | {"code": code, "used_artifacts": links},
            allow_val_change=True,
            settings=wandb.Settings(
                init_timeout=BEGIN_S,
                finish_timeout=END_S,
                x_transaction_log_flush_interval=FLUSH_S,
                silent=True,
            ),
        )

    run = _init(init, settings)
    run.define_metric("*", step_metric="step")
    for artifact in artifacts:
        # use_artifact does no more than this, but refuses to offline, and waits for the server.
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    return run


def _init(init: Callable[[str], wandb.Run], settings: wandb.Settings) -> wandb.Run:
    """Begin as the environment says, but offline where there is no key or no connection."""
    import wandb

    mode = settings.mode
    if mode == "online" and not has_key(settings.base_url):
        mode = "offline"
    try:
        run = init(mode)
    except Exception as error:
        if mode != "online":
            raise
        log.warning("W&B: no connection to %s (%s)", settings.base_url, one_line(error))
        wandb.teardown()  # what waits for the server would keep the run's id
        run = init("offline")
    if run.settings.mode == "offline":
        log.info("W&B: offline; send it later with `wandb sync %s`", Path(run.dir).parent)
    return run


def has_key(base_url: str) -> bool:
    """Whether there is a key for a server, in the environment or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        found = netrc(os.environ.get("NETRC")).authenticators(urlsplit(base_url).hostname or "")
    except (OSError, NetrcParseError):
        return False
    return found is not None


def _artifact(folder: Path, files: Sequence[Path]) -> wandb.Artifact:
    """What a stage made; the same files give the same artifact wherever it is put together."""
    import wandb

    artifact = wandb.Artifact(f"{group_of(folder.parent)}-{folder.name}", type=folder.name)
    for path in files:
        if path.name in BY_REFERENCE:
            artifact.add_reference(f"file://{path.resolve()}", name=path.name)
        else:
            artifact.add_file(str(path))
    return artifact


def one_line(error: Exception) -> str:
    """What an error says, without breaks."""
    return " ".join(str(error).split())
