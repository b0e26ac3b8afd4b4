"""What was measured on one image of one method: a JSON line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """The scores of one method's image for one sample."""

    method: str
    dataset: str
    task: str
    """The true degradation."""
    name: str
    scores: Mapping[str, float]
    """By the names of MEASURES; PSNR of equal images is infinite."""
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
