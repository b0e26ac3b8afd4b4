"""NIQE (Mittal, Soundararajan and Bovik, IEEE Signal Processing Letters 20(3), 2013).

How far the statistics of an image's blocks lie from those of undistorted photographs; no clean
image is needed. As its authors' MATLAB code does it: on rounded grey levels, in blocks of 96 pixels
that do not overlap, at full and half size.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, gaussian_filter  # type: ignore[import-untyped]
from scipy.special import gamma  # type: ignore[import-untyped]

from modules.metrics import Image, ImageMetric, Score, Weights, register

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float64]

WEIGHTS = Weights(
    "NIQE", "https://github.com/XPixelGroup/BasicSR/raw/v1.4.2/basicsr/metrics/niqe_pris_params.npz"
)
"""The authors' parameters as BasicSR has converted them, also in its source package 1.4.2."""
BLOCK = 96
"""Side of a block, in pixels."""
FEATURES = 36
"""Of a block: 18 at each of two sizes."""

GREY = np.array([0.298936, 0.587043, 0.114021])
HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
"""The cubic kernel (a = -1/2) stretched to twice its width, at the 8 pixels around a new one."""
ROUNDING = 1e-9
"""Differences of grey levels below this are rounding errors, whose sign depends on the machine."""
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
SHAPES = np.arange(0.2, 10.001, 0.001)
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
"""E|x|² / E[x²] of the generalised Gaussian of each shape; it rises with the shape."""


def niqe(image: Image, mean: Array, covariance: Array) -> float:
    """Distance of an image from undistorted photographs, 0 or more; lower is better.

    D = √((ν₁ − ν₂)ᵀ ((Σ₁ + Σ₂)/2)⁺ (ν₁ − ν₂)), eq. 10, where ν₂ and Σ₂ are the mean and covariance
    of the features of the image's blocks. Flat blocks do not count; in the authors' code the shapes
    fitted to their rounding errors do.

    Args:
        image: RGB `[H, W, 3]`, of two blocks or more.
        mean: ν₁ `[36]`, of undistorted photographs.
        covariance: Σ₁ `[36, 36]`, of undistorted photographs.

    Raises:
        ValueError: too few blocks have any texture in them.
    """
    features = block_features(np.rint(np.tensordot(GREY, image.transpose(2, 0, 1), axes=1)))
    textured = features[np.isfinite(features).all(axis=1)]
    if len(textured) < 2:
        raise ValueError(
            f"NIQE needs two blocks of {BLOCK}x{BLOCK} pixels that are not flat; of the "
            f"{len(features)} in this image {len(textured)} are not"
        )
    difference = textured.mean(axis=0) - mean
    pooled = (covariance + np.cov(textured, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))


def block_features(grey: Array) -> Array:
    """Features `[blocks, 36]` of a plane `[H, W]` in 0..255; not finite for a flat block.

    What is left over to the right and below of whole blocks is cut off.
    """
    height, width = (side // BLOCK * BLOCK for side in grey.shape)
    full = grey[:height, :width]
    sizes = ((full, BLOCK), (_halve(full), BLOCK // 2))
    return np.concatenate([_of_blocks(_blocks(_normalise(x), side)) for x, side in sizes], axis=1)


def _halve(plane: Array) -> Array:
    """Half the size by antialiased bicubic interpolation, mirrored at the edges."""
    rows = correlate1d(plane, HALVING, axis=0, mode="reflect")[1::2]
    halved: Array = correlate1d(rows, HALVING, axis=1, mode="reflect")[:, 1::2]
    return halved


def _normalise(plane: Array) -> Array:
    """(I − μ) / (σ + 1), eq. 1 to 3, over Gaussian windows of 7 × 7 pixels."""
    mu, square = (
        gaussian_filter(x, sigma=7 / 6, radius=3, mode="nearest") for x in (plane, plane**2)
    )
    difference = np.where(np.abs(plane - mu) < ROUNDING, 0.0, plane - mu)
    normalised: Array = difference / (np.sqrt(np.abs(square - mu**2)) + 1)
    return normalised


def _blocks(plane: Array, side: int) -> Array:
    """`[blocks, side, side]` of a plane whose sides are multiples of it."""
    rows, columns = (length // side for length in plane.shape)
    tiles = plane.reshape(rows, side, columns, side).swapaxes(1, 2)
    return tiles.reshape(-1, side, side)


def _of_blocks(blocks: Array) -> Array:
    """18 features of each block: of its values, and of products of neighbours in 4 directions."""
    shape, left, right = _fit(blocks)
    features = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = _fit(blocks * np.roll(blocks, shift, axis=(1, 2)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)  # eq. 8
        features += [shape, mean, left, right]
    return np.stack(features, axis=1)


def _fit(blocks: Array) -> tuple[Array, Array, Array]:
    """Shape and left and right scale of each block's asymmetric generalised Gaussian (eq. 4).

    By moments (Lasmar, Stitou and Berthoumieu, ICIP 2009), the shape to 0.001.
    """
    x = blocks.reshape(len(blocks), -1)
    with np.errstate(invalid="ignore", divide="ignore"):  # of a flat block
        left, right = (
            np.sqrt((x**2).sum(axis=1, where=side) / side.sum(axis=1)) for side in (x < 0, x > 0)
        )
        skew = left / right
        ratio = np.abs(x).mean(axis=1) ** 2 / (x**2).mean(axis=1)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = SHAPES[np.searchsorted((RATIOS[1:] + RATIOS[:-1]) / 2, ratio)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def load(device: torch.device | None = None) -> Score:
    """NIQE with the parameters that its authors published; they are neither fitted nor replaced.

    Raises:
        Unavailable: their file is missing, or is not what it should be.
    """
    path = WEIGHTS.find()
    try:
        with np.load(path, allow_pickle=False) as file:
            mean = np.array(file["mu_pris_param"], dtype=np.float64).reshape(FEATURES)
            covariance = np.array(file["cov_pris_param"], dtype=np.float64)
            covariance = covariance.reshape(FEATURES, FEATURES)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise WEIGHTS.unreadable("arrays of its parameters") from error
    return lambda restored, clean: niqe(restored, mean, covariance)


register(
    ImageMetric(
        name="niqe",
        label="NIQE",
        short="niqe",
        table="Without a reference image",
        convention=f"needs no clean image; 8-bit grey, blocks of {BLOCK} px",
        digits=2,
        higher_is_better=False,
        position=12,
        needs_reference=False,
        min_size=(BLOCK, 2 * BLOCK),
        weights=WEIGHTS,
        load=load,
    )
)
