"""The histogram feature against a slow, obvious implementation."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageOps

from han_tf.data.synthetic.baseline import BINS, STRIPES, histogram_features


def _random_image(seed, size=(48, 128)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _slow(image):
    """Counts pixel by pixel with the standard library's HSV; for images of 128x48."""
    totals = np.zeros((STRIPES, *BINS))
    pixels = np.asarray(image)
    for row in range(128):
        for column in range(48):
            hsv = colorsys.rgb_to_hsv(*(pixels[row, column] / 255))
            # Pillow keeps each of the three as a byte.
            cell = [min(int(int(v * 255) * bins // 256), bins - 1) for v, bins in zip(hsv, BINS)]
            totals[(row // 16, *cell)] += np.exp(-0.5 * ((column - 23.5) / 12) ** 2)
    feature = np.sqrt(totals.ravel())
    return feature / np.linalg.norm(feature)


def test_agrees_with_counting_pixel_by_pixel():
    image = _random_image(0)
    feature = histogram_features([image])[0]
    # Rounding to bytes may move a pixel to the next bin.
    assert feature @ _slow(image) == pytest.approx(1, abs=2e-3)
    assert _slow(_random_image(1)) @ feature < 0.99


def test_shape_dtype_and_length_of_the_vectors():
    features = histogram_features(_random_image(k, size) for k, size in enumerate([(60, 120), (31, 90), (110, 250)]))
    assert features.shape == (3, STRIPES * np.prod(BINS))
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    assert histogram_features([]).shape == (0, STRIPES * np.prod(BINS))


def test_a_mirrored_image_has_the_same_feature():
    image = _random_image(3)
    np.testing.assert_allclose(*histogram_features([image, ImageOps.mirror(image)]), atol=1e-6)


def test_stripes_do_not_mix():
    rgb = np.zeros((128, 48, 3), np.uint8)
    rgb[:64], rgb[64:] = (200, 30, 30), (30, 30, 200)
    upright, turned = histogram_features([Image.fromarray(rgb), Image.fromarray(rgb[::-1].copy())])
    assert upright @ turned == pytest.approx(0, abs=1e-6)
