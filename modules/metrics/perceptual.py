"""Perceptual metrics, whose networks' weights may be absent: LPIPS (AlexNet) and FID (Inception).

Weight files, see `weight_files`, are read without executing code. Without its file there is no
metric but an `Unavailable` that says why, and what to do.
"""

from __future__ import annotations

import pickle
import tempfile
import warnings
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from modules.metrics.weight_files import ALEXNET_URL, INCEPTION_URL, hub_path


class Unavailable(RuntimeError):
    """A metric cannot be computed here; the message names the file, the reason and the remedy."""


class LpipsAlex(nn.Module):
    """LPIPS v0.1 on AlexNet (Zhang et al., CVPR 2018), always in evaluation mode.

    Args:
        backbone: torchvision's AlexNet state dict; the weights on top of it come with `lpips`.
    """

    def __init__(self, backbone: dict[str, Tensor]) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips speaks torchvision's old dialect
            self.network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        slices = self.network.net
        slices.load_state_dict(
            {name: backbone[f"features.{name.split('.', 1)[1]}"] for name in slices.state_dict()}
        )
        self.requires_grad_(False).eval()

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Distances `[B]`, 0 or more, between float RGB images `[B, 3, H, W]` in [0, 1].

        Images are not clamped; H and W must be at least 31.
        """
        distances: Tensor = self.network(restored, clean, normalize=True)
        return distances.flatten()

    def train(self, mode: bool = True) -> LpipsAlex:
        """Do nothing: training mode would switch the dropout of lpips on."""
        return super().train(False)


def lpips_alex() -> LpipsAlex:
    """LPIPS with pretrained weights, on the CPU.

    Raises:
        Unavailable: AlexNet's weight file is missing or unreadable.
    """
    return LpipsAlex(_load("LPIPS", ALEXNET_URL))


def fid() -> FrechetInceptionDistance:
    """Fréchet inception distance (Heusel et al., NeurIPS 2017), on the CPU.

    Feed it uint8 RGB batches `[B, 3, H, W]`: `update(clean, real=True)` and
    `update(restored, real=False)`, then `compute()`. Images are resized as TensorFlow did for
    the published figures, without antialiasing. Sums are kept in float64 and may be added up over
    ranks; the order of the images does not count.

    With N images a set, covariances of its 2048 features have full rank only from N = 2049 on, and
    FID is too high by a term that falls as 1/N (Chong and Forsyth, CVPR 2020); the authors advise
    10,000. Figures of fewer compare methods on the same images and nothing else, and those of a few
    dozen hardly that. With fewer than two `compute()` raises RuntimeError.

    Raises:
        Unavailable: Inception's weight file is missing or unreadable.
    """
    weights = _load("FID", INCEPTION_URL)
    with tempfile.TemporaryDirectory() as folder:
        # The extractor would unpickle the fetched file unguarded; a copy of plain tensors is safe.
        plain = Path(folder) / "inception.pth"
        torch.save(weights, plain)
        return FrechetInceptionDistance(feature_extractor_weights_path=str(plain), antialias=False)


def weight_file(metric: str, url: str) -> Path:
    """Where torch's hub folder has the file of a URL.

    Raises:
        Unavailable: it has none.
    """
    path = hub_path(url)
    if not path.is_file():
        raise Unavailable(f"{metric} needs the weight file {path}: fetch {url} and put it there")
    return path


def unreadable(metric: str, path: Path, url: str, expected: str) -> Unavailable:
    """The error of a weight file that is not what it should be."""
    return Unavailable(
        f"{metric} cannot read the weight file {path} as {expected}: remove it, "
        f"fetch {url} anew and put it there"
    )


def _load(metric: str, url: str) -> dict[str, Tensor]:
    """Read the hub's copy of a weight file."""
    path = weight_file(metric, url)
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise unreadable(metric, path, url, "plain tensors") from error
    return weights
