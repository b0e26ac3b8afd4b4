"""What makes a stage a stage: it is skipped when fresh, rerun when changed, resumed when cut off.

Each stage owns one folder of the run. `stage.json` in it records the settings, the code version,
the seed and the hashes of the inputs the folder was made from, and whether it is whole;
`config.yaml` has the whole configuration. What other settings have made is set aside, and taken
back when they return.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from datamodules.files import atomic_write, file_hash, read_json, write_json
from pipeline.config import Config, check_targets
from pipeline.distributed import current_rank
from pipeline.frozen_imports import frozen_imports
from pipeline.legacy import current_record
from pipeline.tracking import tracked

log = logging.getLogger(__name__)

RECORD = "stage.json"
DEPENDS = ("stage", "seed", "config", "inputs")
"""What of a record the stage's result depends on."""
PATIENCE_S = 600
"""How long further processes wait for the first one to begin a stage."""


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    """Also its folder in the run."""
    command: str
    """What it is called on the command line."""
    sections: Sequence[str]
    """The dotted keys of the settings its result depends on, besides the seed."""
    outputs: Sequence[str]
    """The files in its folder without which it is not whole."""
    inputs: Callable[[Config], list[Path]]
    """The files its result depends on, by content."""
    check: Callable[[Config], None]
    """Refuse settings that cannot work, before what they replace is set aside."""
    run: Callable[[Config, Path], None]
    """Do the work in a folder, going on from what an interrupted run has left there."""
    needs: Callable[[Config], Sequence[Stage]] = lambda config: ()
    """The stages whose results it reads."""
    many_inputs: Callable[[Config], list[Path]] = lambda config: []
    """Further files, too many to read each time: by name, size and time of change."""
    prepare: Callable[[Config], None] = lambda config: None
    """Fetch inputs that are elsewhere; a query, such as whether the stage is fresh, never does."""
    parallel: bool = False
    """Whether several processes do the work together; else the first one does it alone."""

    def folder(self, config: Config) -> Path:
        """Where the stage keeps what it makes."""
        return config.run_dir / self.name


def run_stage(stage: Stage, config: Config) -> None:
    """Bring a stage up to date.

    Raises:
        FileNotFoundError: an input is missing, usually because an earlier stage has not run.
        TimeoutError: this is a further process, and the first one does not begin.
        ConfigError: a `_target_` has unknown arguments.
    """
    folder = stage.folder(config)
    stage.prepare(config)
    wanted = describe(stage, config)
    found = read_record(folder)
    if _fresh(stage, folder, found, wanted):
        log.info("%s: fresh, nothing to do (%s)", stage.name, folder)
        return
    with frozen_imports():
        check_targets(config)
        stage.check(config)
    if current_rank().rank > 0:
        if _fresh(stage, folder, _await_record(folder, wanted), wanted):
            return
        if stage.parallel:
            stage.run(config, folder)
        else:
            _await_end(folder)
        return
    if not _agree(found, wanted):
        _move_aside(folder, found, wanted)
        found = _take_back(folder, wanted)
        if _fresh(stage, folder, found, wanted):
            return
    begun = time.monotonic()
    starts = {
        "started": found.get("started", _now()),
        "starts": found.get("starts", 0) + 1,
    }
    _record(folder, wanted, "running", starts)
    with atomic_write(folder / "config.yaml") as file:
        file.write(yaml.safe_dump(config.values, sort_keys=False, allow_unicode=True).encode())
    log.info("%s: %s in %s", stage.name, "going on" if _agree(found, wanted) else "starts", folder)
    outputs = [folder / name for name in stage.outputs]
    with tracked(config, folder, stage.inputs(config), outputs, wanted["code"]):
        stage.run(config, folder)
    _record(folder, wanted, "finished", starts | {"finished": _now()})
    log.info("%s: done in %.0f s", stage.name, time.monotonic() - begun)


def is_fresh(stage: Stage, config: Config) -> bool:
    """Whether a stage is up to date, so that running it does nothing.

    Raises:
        FileNotFoundError: an input is missing.
    """
    folder = stage.folder(config)
    return _fresh(stage, folder, read_record(folder), describe(stage, config))


def describe(stage: Stage, config: Config) -> dict[str, Any]:
    """What the result of a stage depends on, and the code version for the record."""
    inputs = {_label(path, config): _hash_input(path) for path in stage.inputs(config)}
    if many := stage.many_inputs(config):
        inputs[f"{len(many)} source files"] = _hash_listing(many)
    depends = {
        "stage": stage.name,
        "seed": config.seed,
        "config": {section: config.value(section) for section in stage.sections},
        "inputs": inputs,
    }
    return depends | {"fingerprint": _fingerprint(depends), "code": code_version()}


def read_record(folder: Path) -> dict[str, Any]:
    """A folder's `stage.json`, empty where there is none."""
    path = folder / RECORD
    record: dict[str, Any] = read_json(path) if path.is_file() else {}
    return record


def code_version() -> str:
    """The installed version, with the commit and whether files differ from it."""
    release = version("daclip-lightning")
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        here = Path(__file__).parent
        commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return release
    return f"{release}+{commit.stdout.strip()}"


def _agree(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two records are of the same settings and inputs, the first maybe under old names."""
    record = current_record(found)
    return all(record.get(name) == wanted[name] for name in DEPENDS)


def _fingerprint(depends: dict[str, Any]) -> str:
    canonical = json.dumps({name: depends.get(name) for name in DEPENDS}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _fresh(stage: Stage, folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return _agree(found, wanted) and found["status"] == "finished" and _whole(stage, folder)


def _whole(stage: Stage, folder: Path) -> bool:
    return all((folder / name).is_file() for name in stage.outputs)


def _label(path: Path, config: Config) -> str:
    """Within the run a relative path, so that a run may be moved."""
    run = config.run_dir
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else str(path)


def _hash_input(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; check its name, or run the stage that makes it")
    return file_hash(path)


def _hash_listing(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise FileNotFoundError(f"{path}: {error.strerror}; mend or remove it") from error
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _record(folder: Path, wanted: dict[str, Any], status: str, times: dict[str, Any]) -> None:
    write_json(folder / RECORD, {"status": status} | times | wanted)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _move_aside(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Keep what another configuration or other inputs have made, out of the way."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    kept = folder.with_name(f"{folder.name}.before-{stamp}")
    folder.rename(kept)
    log.info("%s has changed; the former %s is kept in %s", _changes(found, wanted), folder, kept)


def _take_back(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Put back what the same configuration and inputs had made before it was set aside.

    Returns:
        Its record, empty where there is none.
    """
    for kept in sorted(folder.parent.glob(f"{folder.name}.before-*"), reverse=True):
        try:
            record = read_record(kept)
        except ValueError as error:
            log.warning("passed over: %s", error)
            continue
        if _agree(record, wanted):
            kept.rename(folder)
            log.info("%s is what these settings had made before; taken back from %s", folder, kept)
            return record
    return {}


def _changes(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The names of the settings and inputs in which two records differ."""
    before, after = (
        {"seed": record.get("seed")} | _flat(record.get("config", {})) | record.get("inputs", {})
        for record in (current_record(found), wanted)
    )
    names = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    return ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {key: node}
    parts = (_flat(child, f"{key}.{name}" if key else name) for name, child in node.items())
    return {name: value for part in parts for name, value in part.items()}


def _await_end(folder: Path) -> None:
    """Wait until the first process has done the work; whoever started both ends both."""
    while read_record(folder).get("status") != "finished":
        time.sleep(1)


def _await_record(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The record, when the first process has prepared the folder."""
    deadline = time.monotonic() + PATIENCE_S
    while not _agree(record := read_record(folder), wanted):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the first process has not begun {folder} within {PATIENCE_S} s; see its log, and "
                "start all processes with the same settings"
            )
        time.sleep(0.2)
    return record
