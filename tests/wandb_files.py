"""What a W&B run has written to its `.wandb` file, read back record by record.

The file is a LevelDB log: after 7 bytes of W&B's own, blocks of 32 KiB with pieces of records,
each after a header of checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle,
4: last). A record is a protocol buffer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7


@dataclass
class Written:
    """One session of a run."""

    run_id: str = ""
    group: str = ""
    project: str = ""
    job_type: str = ""
    resume: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Artifacts logged, by type: `name`, `digest`, and `files` with their references."""
    used: dict[str, dict[str, Any]] = field(default_factory=dict)
    exit_code: int | None = None
    folder: Path = Path()


def sessions(stage: Path) -> list[Written]:
    """The offline sessions of a stage, in order."""
    return [read_session(path) for path in sorted((stage / "wandb").glob("offline-run-*/*.wandb"))]


def read_session(path: Path) -> Written:
    """One session, from its `.wandb` file."""
    written = Written(folder=path.parent / "files")
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            _take_run(written, record.run)
        elif kind == "config":
            written.config |= _values(record.config.update)
        elif kind == "summary":
            written.summary |= _values(record.summary.update)
        elif kind == "history":
            written.history.append(_values(record.history.item))
        elif kind == "artifact":
            _take_artifact(written, record.artifact)
        elif kind == "exit":
            written.exit_code = record.exit.exit_code
    return written


def _take_run(written: Written, run: Any) -> None:
    written.run_id, written.group, written.project = run.run_id, run.run_group, run.project
    written.job_type, written.resume = run.job_type, run.resume
    written.config |= _values(run.config.update)


def _take_artifact(written: Written, artifact: Any) -> None:
    files = {entry.path: entry.ref for entry in artifact.manifest.contents}
    found = {"name": artifact.name, "digest": artifact.digest, "files": files}
    (written.used if artifact.use_after_commit else written.made)[artifact.type] = found


def _values(items: Any) -> dict[str, Any]:
    """Items of nested keys; of several parts they are joined with dots."""
    return {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}


def _records(data: bytes) -> Iterator[Any]:
    position, pieces = HEADER, b""
    while position + HEADER <= len(data):
        if (left := BLOCK - position % BLOCK) < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += HEADER + length
        pieces += data[position - length : position]
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record
