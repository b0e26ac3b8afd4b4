"""What is measured, and by which convention: one entry for each number of a report."""

from __future__ import annotations

from typing import NamedTuple

MEAN = "mean"
"""In place of a task: the average over tasks, each of equal weight."""
BORDER = 4
"""Pixels that the reference's test script cuts from each side."""


class Measure(NamedTuple):
    """A number that a report shows."""

    name: str
    """In files; it says the convention."""
    label: str
    unit: str
    convention: str
    """In words, to stand beside the number."""
    digits: int
    better: int
    """1 where higher is better, -1 where lower is."""
    short: str
    """Its key on W&B and in the headline of metrics.json; without more in it, of RGB, border 4."""

    @property
    def title(self) -> str:
        """With its convention."""
        return f"{self.label} ({self.convention})"


def _fidelity(plane: str, border: int) -> list[Measure]:
    on = {"rgb": "RGB", "y": "Y of BT.601"}[plane]
    cut = f"{border} px cut from each side (reference)" if border else "nothing cut (plain)"
    suffix = f"{plane}_border{border}" if border else f"{plane}_plain"
    short = f"_{suffix}" if not border else "_y" if plane == "y" else ""
    convention = f"on {on}, 8 bit, {cut}"
    window = "11x11 Gaussian window, sigma 1.5"
    return [
        Measure(f"psnr_{suffix}", "PSNR", "dB", convention, 2, 1, f"psnr{short}"),
        Measure(f"ssim_{suffix}", "SSIM", "", f"{convention}, {window}", 3, 1, f"ssim{short}"),
    ]


RGB, Y = _fidelity("rgb", BORDER), _fidelity("y", BORDER)
RGB_PLAIN, Y_PLAIN = _fidelity("rgb", 0), _fidelity("y", 0)
LPIPS = Measure("lpips_alex", "LPIPS", "", "AlexNet, v0.1, 8 bit, nothing cut", 3, -1, "lpips")
FID = Measure(
    "fid", "FID", "", "Inception v3 of TensorFlow, 8 bit, against the clean images", 2, -1, "fid"
)
NO_REFERENCE = Measure(
    "niqe", "NIQE", "", "needs no clean image; 8-bit grey, blocks of 96 px", 2, -1, "niqe"
)
MEASURES = {m.name: m for m in (*RGB, *Y, *RGB_PLAIN, *Y_PLAIN, LPIPS, FID, NO_REFERENCE)}
"""All of them, by name."""
