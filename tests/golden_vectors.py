"""Reference vectors: tensors that the published implementation made, kept in `tests/golden/`."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def golden_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a set, for example `irsde/cosine`."""
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_json(name: str) -> Any:
    """The figures of a set, for example `metrics/metrics`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} is not {tuple(expected.shape)}"
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max())
