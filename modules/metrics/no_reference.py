"""A score for images without a clean one to compare with: NIQE, with its published parameters.

They are neither fitted nor replaced here. Their file, as BasicSR has converted the authors' own,
is looked for in torch's hub folder like the weights of `perceptual`.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from modules.metrics.fidelity import check_image
from modules.metrics.niqe import FEATURES, Array, niqe
from modules.metrics.perceptual import unreadable, weight_file
from modules.metrics.weight_files import NIQE_URL


@dataclass(frozen=True, eq=False)
class NoReference:
    """NIQE against given parameters.

    Attributes:
        mean: of the features of undistorted photographs, float64 `[36]`.
        covariance: of the same, float64 `[36, 36]`.
        name: of the score.
    """

    mean: Array
    covariance: Array
    name: str = "niqe"

    def __call__(self, image: Tensor) -> float:
        """Score of a uint8 RGB image `[3, H, W]`, 0 or more; lower is better.

        Raises:
            ValueError: it is no such image, smaller than 96 x 192 pixels (or 192 x 96), or flat.
        """
        check_image(image, "image")
        return niqe(image.cpu().numpy(), self.mean, self.covariance)


def no_reference() -> NoReference:
    """NIQE with the parameters that its authors published.

    Raises:
        Unavailable: their file is missing, or is not what it should be.
    """
    path = weight_file("NIQE", NIQE_URL)
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (
                np.array(file[name], dtype=np.float64).reshape(shape)
                for name, shape in (
                    ("mu_pris_param", FEATURES),
                    ("cov_pris_param", (FEATURES, FEATURES)),
                )
            )
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise unreadable("NIQE", path, NIQE_URL, "arrays of its parameters") from error
    return NoReference(mean, covariance)
