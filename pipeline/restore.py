"""Restore photographs with the models of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from tqdm import tqdm

from datamodules.files import atomic_write
from datamodules.images import BadImage, encode_png, list_images, read_image
from datamodules.pairs import stable_seed
from modules.metrics import quantise
from modules.restorer import restore
from pipeline.config import Config, ConfigError
from pipeline.models import Models, load_models

log = logging.getLogger(__name__)


def run(config: Config) -> None:
    """Restore the input, one photograph or a folder of them, into the output folder as PNG.

    Raises:
        ConfigError: no input or output is given, or an output would overwrite its input.
        FileNotFoundError: the input does not exist or holds no image.
        BadImage: some photographs cannot be used; the others are restored first.
    """
    if not config.restore.input or not config.restore.output:
        raise ConfigError("say what to restore and where to: make restore INPUT=... OUTPUT=...")
    source, output = Path(config.restore.input), Path(config.restore.output)
    photos = list_images(source) if source.is_dir() else [source]
    targets = {photo: output / f"{photo.stem}.png" for photo in photos}
    if len(set(targets.values())) < len(photos):
        raise ConfigError(f"{source} has photographs whose names differ in the suffix only")
    models = load_models(config)
    failed = []
    for photo, target in tqdm(targets.items(), desc="restore", unit="photo"):
        if target.resolve() == photo.resolve():
            raise ConfigError(f"{target} would overwrite its input; choose another output folder")
        try:
            found = _restore(photo, target, models, config.seed)
        except BadImage as error:
            failed.append(str(error))
        else:
            log.info("%s: %s -> %s", photo, found, target)
    if failed:
        raise BadImage(f"{len(failed)} of {len(photos)} not restored: " + "; ".join(failed))


def _restore(photo: Path, target: Path, models: Models, seed: int) -> str:
    """Restore one photograph, and say which degradation was recognised and how surely."""
    pixels = torch.from_numpy(read_image(photo)).permute(2, 0, 1)[None]
    degraded = pixels.to(models.device).float() / 255
    with torch.inference_mode():
        embeddings = models.controller.embed(degraded)
        probability, found = models.controller.probabilities(embeddings)[0].max(dim=0)
        seeds = [stable_seed(seed, photo.name)]
        restored = restore(models.denoiser, embeddings, degraded, models.sampling, seeds)
    with atomic_write(target) as file:
        file.write(encode_png(quantise(restored)[0].cpu().permute(1, 2, 0).numpy()))
    return f"{models.controller.words[int(found)]} ({float(probability):.0%})"
