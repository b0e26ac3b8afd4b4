"""The model that comes with the project loads, recognises and restores."""

import numpy as np
import pytest

from datamodules.degradations import degrade
from datamodules.images import read_image
from datamodules.sources.synthetic import EmbeddedPhotos
from pipeline.models.hub import SHIPPED
from pipeline.restore.api import Restorer


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained(device="cpu", precision="float32")


@pytest.mark.parametrize("word", ["low-light", "noisy", "rainy", "uncompleted"])
def test_embedded_photograph_is_restored(restorer: Restorer, word: str) -> None:
    (photo,) = EmbeddedPhotos([], ["coffee"]).photos()
    clean = np.ascontiguousarray(read_image(photo.path)[:256, :320])
    degraded = degrade(word, clean, 0)
    found = restorer(degraded)
    assert next(iter(found.degradation)) == word
    errors = [np.square(image / 255 - clean / 255).mean() for image in (degraded, found.image)]
    assert 10 * np.log10(errors[0] / errors[1]) > 3  # dB


def test_its_files_are_whole_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    weights = {"controller.safetensors", "restorer.safetensors"}
    assert sizes.keys() == {"README.md", "model.json", *weights}
    assert sum(sizes[name] for name in weights) < 60e6
