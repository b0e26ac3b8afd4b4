"""One model, one image, one seed: one picture, whichever way it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.batch import Batch
from datamodules.images import Pixels, read_image
from modules.inference import device as machine
from modules.inference.restore import make_sampling
from modules.inference.tiling import count_tiles
from pipeline.app.service import Limits, Service
from pipeline.compose import load_config
from pipeline.config import Config
from pipeline.evaluation.scoring import validation_metrics
from pipeline.models.hub import find_model
from pipeline.models.store import load_pair
from pipeline.restore.api import Options, Restorer
from pipeline.restore.cli import main
from pipeline.stage import run_stage
from pipeline.stages.evaluate import STAGE as EVALUATION
from pipeline.training.restorer_module import RestorerModule
from pipeline.training.sections import RestorerConfig
from tests.conftest import TINY_RUN, section
from tests.evaluating import WORDS, save_model_folder, save_pairs

SEED = 3


def by_command(model: Path, image: Path, folder: Path) -> Pixels:
    arguments = [str(image), "-o", str(folder), "-m", str(model), "--seed", str(SEED)]
    assert main([*arguments, "--device", "cpu"]) == 0
    return read_image(folder / image.name)


def by_python(model: Path, image: Path) -> Pixels:
    restorer = Restorer.from_pretrained(model, device="cpu")
    return np.asarray(restorer(image, seed=SEED).image)


def by_page(model: Path, image: Path, folder: Path) -> Pixels:
    service = Service(Restorer.from_pretrained(model, device="cpu"), folder, Limits())
    found = service.restore(image, "me", Options(seed=SEED), lambda done, total: None)
    return read_image(found.file)


def by_evaluation(config: Config) -> Pixels:
    run_stage(EVALUATION, config)
    [path] = (EVALUATION.folder(config) / "restored" / "model").rglob("*.png")
    return read_image(path)


def by_validation(model: Path, degraded: Pixels) -> Pixels:
    files = find_model(model)
    encoder, denoiser = load_pair(files.controller, files.restorer)
    module = RestorerModule(
        denoiser, encoder, section(RestorerConfig), lambda groups: None, lambda step: 1.0,  # type: ignore[arg-type,return-value]
        make_sampling(**files.sampler), validation_metrics(torch.device("cpu")), WORDS, SEED,
    )  # fmt: skip
    module._trainer = SimpleNamespace(accumulate_grad_batches=1)  # type: ignore[assignment]
    lq = torch.from_numpy(degraded).permute(2, 0, 1)[None]
    size = [(degraded.shape[0], degraded.shape[1])]
    batch = Batch(lq, lq, size, [""], ["hazy"], [""], [""], [0], torch.tensor([True]), [])
    with torch.autocast("cpu", torch.bfloat16):  # as Lightning's, where training is mixed
        restored = module.validation_step(batch, 0)
    return restored[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("size", "tiles"), [((40, 52), 1), ((100, 140), 12)])
def test_every_way_to_restore_gives_the_same_picture(
    size: tuple[int, int],
    tiles: int,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if tiles > 1:
        monkeypatch.setattr(machine, "free_bytes", lambda device: 1)
        monkeypatch.setattr(machine, "LEAST", 64)
        assert count_tiles(*size, 64) == tiles
    pairs = save_pairs(tmp_path / "pairs", ["hazy/a"], size)
    image = pairs / "hazy" / "LQ" / "a.png"
    degraded = np.array(Image.open(image))
    overrides = [setting for setting in TINY_RUN if not setting.startswith("sampler.")]
    config = load_config(
        [
            *overrides,
            f"run_dir={tmp_path / 'run'}",
            f"seed={SEED}",
            f"evaluate.data={pairs}",
            f"evaluate.pretrained={tmp_path / 'model'}",
        ]
    )
    model = save_model_folder(tiny_config(), tmp_path)

    wanted = by_python(model, image)

    assert wanted.shape == degraded.shape and not np.array_equal(wanted, degraded)
    others = {
        "command": by_command(model, image, tmp_path / "out"),
        "page": by_page(model, image, tmp_path / "results"),
        "evaluation": by_evaluation(config),
        "validation": by_validation(model, degraded),
    }
    assert [name for name, found in others.items() if not np.array_equal(found, wanted)] == []
