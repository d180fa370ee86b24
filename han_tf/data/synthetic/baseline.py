"""A baseline without a network: colour histograms of horizontal stripes.

Such histograms were the usual feature before learned ones (about 2010). A trained network has to beat it.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image

STRIPES = 8
"""Horizontal stripes of equal height."""

BINS = (12, 4, 4)
"""Bins of hue, saturation and value of the joint histogram."""

_SIZE = 48, 128


def histogram_features(images: Iterable[Image.Image]) -> np.ndarray:
    """Returns one joint HSV histogram per horizontal stripe, as one vector per image.

    Pixels are weighted by a Gaussian of their column, since the background is at the left and right edges. The features
    are square roots of the counts (Hellinger kernel), so that large plain areas do not dominate.

    Args:
      images: pictures of any size and mode.

    Returns:
      [n, d] float32 with d = STRIPES · ∏ BINS, rows L2-normalised.
    """
    rows = [_histogram(image) for image in images]
    return np.stack(rows) if rows else np.zeros((0, STRIPES * int(np.prod(BINS))), np.float32)


def _histogram(image: Image.Image) -> np.ndarray:
    width, height = _SIZE
    hsv = np.asarray(image.convert("RGB").resize(_SIZE, Image.Resampling.BOX).convert("HSV"), np.int64)
    bins = hsv * np.asarray(BINS) // 256
    cell = (bins[..., 0] * BINS[1] + bins[..., 1]) * BINS[2] + bins[..., 2]
    cell += (np.arange(height) * STRIPES // height)[:, None] * int(np.prod(BINS))
    offset = (np.arange(width) - (width - 1) / 2) / (width / 4)
    weight = np.broadcast_to(np.exp(-0.5 * offset**2), cell.shape)
    counts = np.bincount(cell.ravel(), weight.ravel(), minlength=STRIPES * int(np.prod(BINS)))
    return np.sqrt(counts / counts.sum()).astype(np.float32)
