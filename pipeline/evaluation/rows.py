"""What was measured: a line for each method and sample, by any number of processes."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.files import atomic_write
from datamodules.images import BadImage, Pixels
from datamodules.shards.index import BadShard
from datamodules.work_queue import Line, remove_parts, run_batches
from modules.metrics import ImageMetric, Score
from pipeline.distributed import Rank
from pipeline.evaluation.data import Pair, Sample, key_of
from pipeline.evaluation.methods import Loaded, Method, Output
from pipeline.evaluation.scoring import Scores, pixels, score

ROWS = "rows.jsonl"
"""A line for each method and sample, when all are scored."""


@dataclass(frozen=True)
class Row:
    """The scores of one method's image for one sample."""

    method: str
    dataset: str
    task: str
    """The true degradation."""
    name: str
    scores: Mapping[str, float]
    """By the names of METRICS; PSNR of equal images is infinite."""
    missing: Mapping[str, str]
    """Scores that this image cannot have, each with the reason."""
    fault: str | None = None
    """Why there is no image to score."""
    found: str | None = None
    """The degradation that the controller took it for, where it looked."""
    probability: float | None = None
    seconds: float | None = None
    calls: int | None = None
    peak_mb: float | None = None

    @property
    def sample(self) -> str:
        """The sample's key."""
        return f"{self.dataset}/{self.task}/{self.name}"

    def to_json(self) -> dict[str, Any]:
        """As plain values that any JSON reader takes."""
        return asdict(self) | {"scores": {k: plain(v) for k, v in self.scores.items()}}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Row:
        """Read it back."""
        scores = {name: float(value) for name, value in found["scores"].items()}
        return cls(**{**found, "scores": scores})


def plain(value: float) -> float | str:
    """A number as JSON knows it; `inf` as text."""
    return value if math.isfinite(value) else str(value)


class Job(NamedTuple):
    """What is to be scored."""

    samples: Sequence[Sample]
    methods: Mapping[str, Method]
    scorers: Mapping[ImageMetric, Score]


def measure(job: Job, folder: Path, stamp: str, batch_size: int, rank: Rank) -> list[Row]:
    """Score each method on each sample once, together with the other ranks.

    Args:
        job: the same on all ranks.
        folder: shared by all ranks.
        stamp: of what the scores depend on; what was scored under another one does not count.
        batch_size: samples that are restored together, where they have one size.
        rank: of this process.

    Returns:
        All rows on the first rank, by method and in the order of the samples; none on others.
    """
    target = folder / ROWS
    if not target.is_file():
        samples = job.samples
        plan = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
        keys = [[stamp, *map(key_of, batch)] for batch in plan]
        lines = run_batches(
            target,
            plan,
            keys,
            _read,
            partial(_work, job=job),
            rank=rank.rank,
            world=rank.world,
            title="evaluation",
        )
        if rank.rank == 0:
            _write(target, _sorted(lines, job))
    if rank.rank > 0:
        return []
    remove_parts(target)
    return [Row.of_json(json.loads(line)) for line in target.read_text("utf-8").splitlines()]


Read = Sequence[tuple[Sample, Pair | str]]
"""Samples with their images, or with what is wrong with them."""


def _read(batch: Sequence[Sample]) -> Read:
    return [(sample, _load(sample)) for sample in batch]


def _load(sample: Sample) -> Pair | str:
    try:
        return sample.load()
    except (BadImage, BadShard) as error:
        return str(error)


def _work(read: Read, job: Job) -> list[Line]:
    rows = [
        _row(name, sample, output, clean, job.scorers)
        for loaded in _loaded(read)
        for name, method in job.methods.items()
        for sample, output, clean in _outputs(method, loaded)
    ]
    rows += [
        _row(name, sample, Output(None, fault=found), None, job.scorers)
        for sample, found in read
        if isinstance(found, str)
        for name in job.methods
    ]
    return [row.to_json() for row in rows]


def _loaded(read: Read) -> Iterator[Loaded]:
    """The samples that can be restored together: of one size, all with a clean image or none."""
    alike: dict[tuple[tuple[int, ...], bool], list[tuple[Sample, Pair]]] = defaultdict(list)
    for sample, pair in read:
        if isinstance(pair, Pair):
            alike[pair.degraded.shape, pair.clean is None].append((sample, pair))
    for group in alike.values():
        samples, pairs = zip(*group, strict=True)
        clean = [pair.clean for pair in pairs if pair.clean is not None]
        yield Loaded(samples, _stack([p.degraded for p in pairs]), _stack(clean) if clean else None)


def _stack(images: Sequence[Pixels]) -> Tensor:
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])


def _outputs(method: Method, loaded: Loaded) -> Iterator[tuple[Sample, Output, Tensor | None]]:
    """Each sample with its output and its clean image; nothing where the method cannot work."""
    for i, output in enumerate(method(loaded)):
        yield loaded.samples[i], output, None if loaded.clean is None else loaded.clean[i]


def _row(
    method: str,
    sample: Sample,
    output: Output,
    clean: Tensor | None,
    scorers: Mapping[ImageMetric, Score],
) -> Row:
    image = output.image
    scores = Scores({}, {})
    if image is not None:
        scores = score(pixels(image), None if clean is None else pixels(clean), scorers)
    found, cost = output.found, output.cost
    return Row(
        method=method,
        dataset=sample.dataset,
        task=sample.task,
        name=sample.name,
        scores=scores.values,
        missing=scores.missing,
        fault=output.fault or None,
        found=found.word if found else None,
        probability=found.probability if found else None,
        seconds=cost.seconds if cost else None,
        calls=cost.calls if cost else None,
        peak_mb=cost.peak_mb if cost else None,
    )


def _sorted(lines: Sequence[Line], job: Job) -> list[Line]:
    methods = {name: i for i, name in enumerate(job.methods)}
    samples = {key_of(sample): i for i, sample in enumerate(job.samples)}
    places = [(methods[line["method"]], samples[Row.of_json(line).sample]) for line in lines]
    return [lines[i] for i in sorted(range(len(lines)), key=places.__getitem__)]


def _write(path: Path, lines: Sequence[Line]) -> None:
    with atomic_write(path) as file:
        for line in lines:
            file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
