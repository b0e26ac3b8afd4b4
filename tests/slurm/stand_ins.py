"""What the jobs of the tests are made of: training that takes its time, captions that fail."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch.optim import AdamW

from datamodules.captioners import Captioner
from datamodules.images import Pixels


class SlowAdamW(AdamW):
    """AdamW that tells of each step and then pauses, for as long as the environment says."""

    taken = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        self.taken += 1
        sys.stderr.write(f"optimizer step {self.taken}\n")
        time.sleep(float(os.environ.get("STEP_PAUSE_S", "0")))
        return super().step(closure)


class Failing(Captioner):
    """A captioner that cannot on the first rank, when the others have begun and take for ever."""

    by = "nobody"

    def files(self) -> list[Path]:
        return []

    def caption(self, images: Sequence[Pixels], sources: Sequence[str]) -> list[str]:
        time.sleep(5 if os.environ["SLURM_PROCID"] == "0" else 600)
        raise ValueError("the captioner has lost its voice")
