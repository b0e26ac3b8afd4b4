"""Stage: restore every validation image once, measure, and report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datamodules.datasets import Batch, WholeDataset, collate
from datamodules.files import atomic_write, write_json
from datamodules.images import encode_png
from datamodules.mixture import ShareSampler
from datamodules.pairs import stable_seed
from datamodules.reader import ShardSet
from modules.metrics import score_pair
from modules.restorer import Controller, Denoiser, Sampling, restore
from modules.samplers import sampler
from pipeline.config import Config
from pipeline.models import load_controller, load_restorer
from pipeline.perceptual import Perceptual, fid_of, load_perceptual, lpips_of
from pipeline.report import restored_path, write_report
from pipeline.stages import FIGURES, REPORT, SHARDS, controller_weights, restorer_weights
from pipeline.summary import Row, summarise, text_table
from pipeline.tracking import TRACKER

log = logging.getLogger(__name__)

ROWS = "rows.jsonl"
RESTORED = "restored"
EXAMPLES = "examples"
"""Folder of a degraded image of each task, to try `make restore` on."""


class Models(NamedTuple):
    """What restores."""

    controller: Controller
    denoiser: Denoiser
    sampling: Sampling
    device: torch.device


def load_models(config: Config) -> Models:
    """The run's trained models, on the device to use."""
    controller_path, restorer_path = controller_weights(config), restorer_weights(config)
    cuda = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    denoiser = load_restorer(restorer_path, controller_path).to(device)
    sampling = Sampling(sampler(config.sampling.method), config.sampling.calls)
    return Models(load_controller(controller_path).to(device), denoiser, sampling, device)


def run(config: Config, folder: Path) -> None:
    """Evaluate on the validation split."""
    models, perceptual = load_models(config), load_perceptual()
    shards = ShardSet(SHARDS.folder(config), "val")
    rows = _read_rows(folder / ROWS)
    done = {row.key for row in rows}
    todo = [address for address in shards.all() if address.name not in done]
    loader = DataLoader(
        WholeDataset(todo),
        batch_size=config.evaluate.batch_size,
        sampler=ShareSampler(len(todo), rank=0, world=1),
        num_workers=config.workers,
        collate_fn=collate,
    )
    with (folder / ROWS).open("a", encoding="utf-8") as file:
        for batch in tqdm(loader, desc="evaluate", unit="batch"):
            for row in _evaluate(batch, models, perceptual, config, folder):
                rows.append(row)
                file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
    for word, addresses in shards.tasks.items():
        with atomic_write(folder / EXAMPLES / f"{word}.png") as picture:
            picture.write(encode_png(addresses[0].image("lq")))
    found = partial(restored_path, folder / RESTORED)
    fid = fid_of(perceptual.fid, shards, found) if perceptual.fid else {}
    summary = summarise(rows, models.controller.words, perceptual.missing, fid)
    write_json(folder / FIGURES, summary.to_json())
    TRACKER(lambda run: run.summary.update(summary.figures()))
    write_report(folder / REPORT, summary, rows, shards, folder / RESTORED, config)
    log.info("%s\nreport: %s", text_table(summary), folder / REPORT)


def _evaluate(
    batch: Batch, models: Models, perceptual: Perceptual, config: Config, folder: Path
) -> Iterator[Row]:
    degraded = batch.lq.to(models.device).float() / 255
    started = time.perf_counter()
    with torch.inference_mode():
        embeddings = models.controller.embed(degraded)
        probabilities = models.controller.probabilities(embeddings)
        seeds = [stable_seed(config.seed, key) for key in batch.key]
        restored = restore(models.denoiser, embeddings, degraded, models.sampling, seeds)
    pixels = to_uint8(restored)
    seconds = (time.perf_counter() - started) / len(batch.key)
    probability, found = probabilities.max(dim=1)
    border = config.evaluate.border
    for i, key in enumerate(batch.key):
        with atomic_write(restored_path(folder / RESTORED, key)) as file:
            file.write(encode_png(pixels[i].permute(1, 2, 0).numpy()))
        yield Row(
            key=key,
            word=batch.degradation[i],
            source=batch.source[i],
            found=models.controller.words[int(found[i])],
            probability=float(probability[i]),
            degraded=_scores(batch.lq[i], batch.gt[i], border, perceptual),
            restored=_scores(pixels[i], batch.gt[i], border, perceptual),
            seconds=seconds,
        )


def _scores(image: Tensor, clean: Tensor, border: int, perceptual: Perceptual) -> dict[str, float]:
    scores = score_pair(image, clean, border)._asdict()
    if perceptual.lpips:
        scores["lpips"] = lpips_of(perceptual.lpips, image, clean)
    return scores


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] rounded to uint8, on the CPU."""
    return (images * 255).round().to(torch.uint8).cpu()


def _read_rows(path: Path) -> list[Row]:
    """What an interrupted run has measured; a last line that it cut short is removed."""
    if not path.is_file():
        return []
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({row.key: row for row in rows}.values())
