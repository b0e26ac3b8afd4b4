"""The files of weights that metrics need, and where they are looked for; torch is not imported.

Nothing is fetched. The place is torch's hub folder, `$TORCH_HOME/hub` or `~/.cache/torch/hub`.
"""

from __future__ import annotations

import os
from pathlib import Path

ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""Of LPIPS; torchvision's."""
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
"""Of FID; torch-fidelity's."""
NIQE_URL = "https://github.com/XPixelGroup/BasicSR/raw/v1.4.2/basicsr/metrics/niqe_pris_params.npz"
"""Also in the source package `basicsr` 1.4.2, as `basicsr/metrics/niqe_pris_params.npz`."""


def hub_path(url: str) -> Path:
    """Where torch's hub folder has, or would have, the file of a URL."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{caches}/torch")).expanduser()
    return home / "hub" / "checkpoints" / url.rsplit("/", 1)[1]


def found_weights() -> list[Path]:
    """The files of weights that are there."""
    paths = (hub_path(url) for url in (ALEXNET_URL, INCEPTION_URL, NIQE_URL))
    return [path for path in paths if path.is_file()]
