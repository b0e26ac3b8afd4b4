"""The report of an evaluation: one HTML page with its pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from datamodules.files import atomic_write
from datamodules.images import encode_png
from datamodules.reader import ShardSet
from pipeline.config import Config
from pipeline.stage import code_version, read_record
from pipeline.stages import CONTROLLER, RESTORER
from pipeline.summary import Row, Summary


class Pictures(NamedTuple):
    """A row of the gallery: three pictures as data URLs, with what was measured."""

    row: Row
    degraded: str
    restored: str
    clean: str


class Training(NamedTuple):
    """How long a stage trained."""

    name: str
    steps: int
    minutes: float


def write_report(
    path: Path,
    summary: Summary,
    rows: Sequence[Row],
    shards: ShardSet,
    restored: Path,
    config: Config,
) -> None:
    """Write the page, self-contained.

    Args:
        path: of the page.
        summary: the figures.
        rows: one for each evaluated image.
        shards: the evaluated images.
        restored: folder of their restorations.
        config: of the run.
    """
    environment = Environment(
        loader=PackageLoader("pipeline", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        gallery=_gallery(rows, shards, restored, config.evaluate.gallery_per_task),
        trainings=_trainings(config),
        config=config,
        code=code_version(),
        largest=max(max(line) for line in summary.confusion),
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def _gallery(
    rows: Sequence[Row], shards: ShardSet, restored: Path, per_task: int
) -> list[Pictures]:
    """For each task its best, its worst and further images between, by gain in PSNR."""
    addresses = {address.name: address for address in shards.all()}
    pictures = []
    for word in shards.words:
        gains = sorted((r for r in rows if r.word == word), key=_gain, reverse=True)
        for row in _spread(gains, per_task):
            address = addresses[row.key]
            pictures.append(
                Pictures(
                    row,
                    _data_url(encode_png(address.image("lq"))),
                    _data_url(restored_path(restored, row.key).read_bytes()),
                    _data_url(encode_png(address.image("gt"))),
                )
            )
    return pictures


def restored_path(folder: Path, key: str) -> Path:
    """Where the restoration of sample `SHARD/KEY` is kept."""
    return folder / f"{key.replace('.tar/', '/')}.png"


def _gain(row: Row) -> float:
    return row.restored["psnr"] - row.degraded["psnr"]


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of the rows at even distances, the first and the last among them."""
    if count >= len(rows):
        return list(rows)
    if count == 1:
        return [rows[len(rows) // 2]]
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _trainings(config: Config) -> list[Training]:
    """What the records of both training stages say; nothing of a stage without one."""
    trainings = []
    for stage, settings in ((CONTROLLER, config.controller), (RESTORER, config.restorer)):
        record = read_record(stage.folder(config))
        if "finished" in record:
            begin, end = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
            minutes = (end - begin).total_seconds() / 60
            trainings.append(Training(stage.name, settings.steps, minutes))
    return trainings
