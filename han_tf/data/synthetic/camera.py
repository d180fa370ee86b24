"""Six surveillance cameras: their views, and their effects on colours, sharpness and compression."""

import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from han_tf.data.synthetic.drawing import smooth_noise


class Camera(NamedTuple):
    """The view and the sensor of a camera."""

    scene: str  # key of scenery.SETTINGS
    pitch: float  # angle by which it looks down, radians
    person_height: float  # of a person of 1.7 m, pixels
    paths: tuple[float, ...]  # yaws at which people typically walk past, radians
    light: tuple[float, float, float]  # direction to the main light (x right, y up, z to the camera) times its strength
    ambient: float  # strength of the light from everywhere
    gains: tuple[float, float, float]  # of red, green and blue (white balance and exposure)
    gamma: float  # exponent of the tone curve; above 1 darkens the mid-tones
    contrast: float  # slope of the tone curve around mid-grey
    black: float  # level of the darkest value (haze, flare)
    saturation: float  # 1 leaves the colours as they are
    blur: float  # pixels over which the lens spreads a point
    noise: float  # standard deviation for values in [0, 1]
    quality: int  # of the JPEG compression of the video stream


_PI = math.pi

CAMERAS = (
    Camera("plaza", 0.16, 128, (0.0, _PI, 0.3), (0.31, 0.37, 0.38), 0.59,
           (1.03, 1.01, 0.98), 0.98, 1.03, 0.01, 1.04, 1.6, 0.012, 75),
    Camera("street", 0.10, 104, (_PI / 2, -_PI / 2, 0.9), (-0.16, 0.30, 0.20), 0.77,
           (0.94, 0.98, 1.05), 1.02, 0.95, 0.02, 0.90, 2.1, 0.018, 55),
    Camera("park", 0.22, 92, (0.5, _PI + 0.5, -0.6), (0.48, 0.38, 0.21), 0.56,
           (0.98, 1.03, 0.93), 1.04, 1.05, 0.0, 1.0, 2.0, 0.016, 60),
    Camera("hall", 0.26, 140, (0.0, _PI, _PI - 0.4), (0.02, 0.44, 0.12), 0.72,
           (1.05, 0.97, 0.87), 1.10, 1.0, 0.01, 0.96, 1.9, 0.025, 65),
    Camera("bicycle stand", 0.14, 112, (-_PI / 2, _PI / 2, _PI), (-0.45, 0.34, 0.38), 0.54,
           (1.0, 0.95, 1.02), 1.0, 1.08, -0.01, 1.06, 1.9, 0.015, 50),
    Camera("entrance", 0.12, 80, (_PI, 0.0, -0.8), (0.14, 0.34, -0.27), 0.72,
           (0.97, 0.98, 1.0), 1.07, 0.92, 0.04, 0.86, 2.2, 0.022, 45),
)  # fmt: skip
"""The six cameras; camera ids start at 1."""


def expose(
    rgb: np.ndarray, camera: Camera, exposure: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """Returns a scene as the camera's video stream shows it, with a random blur, shade, noise and compression.

    ``rgb`` is [h, w, 3] float32 in [0, 1] and larger than ``size``, (width, height) in pixels. ``exposure`` is [3], the
    gains of this image (automatic exposure and white balance).
    """
    width, height = size
    # 10 % of the images are blurred as if the person were far away.
    blur = rng.uniform(2.5, 4.0) if rng.random() < 0.1 else camera.blur * rng.uniform(0.8, 1.3)
    for axis, pixels in enumerate((height, width)):
        # Each pixel is the mean over `blur` pixels, a difference of two sums from the border.
        sums = np.concatenate([np.zeros_like(rgb.take([0], axis)), rgb.cumsum(axis)], axis)
        ends = (np.arange(pixels) + 0.5 + 0.5 * blur * np.array([[-1], [1]])) * (rgb.shape[axis] / pixels)
        first, last = np.rint(ends).astype(int).clip(0, rgb.shape[axis])
        counts = np.float32(last - first).reshape(-1, *[1] * (2 - axis))
        rgb = (sums.take(last, axis) - sums.take(first, axis)) / counts
    curves = (np.linspace(0, 1, 256)[:, None] * camera.gains * exposure) ** camera.gamma
    curves = camera.black + (1 - camera.black) * (0.45 + camera.contrast * (curves - 0.45))
    values = curves.astype(np.float32)[_bytes(rgb), (0, 1, 2)]
    grey = (values[..., :1] + values[..., 1:2] + values[..., 2:]) / 3
    values = grey + np.float32(camera.saturation) * (values - grey)
    values *= 1 + np.float32(0.08) * smooth_noise(rng, (height, width), (height / 4, width / 3))[..., None]
    values = values + camera.noise * rng.uniform(0.6, 1.6) * rng.standard_normal(values.shape)
    stream, quality = io.BytesIO(), min(max(camera.quality + rng.normal(0, 10), 18), 92)
    Image.fromarray(_bytes(values)).save(stream, "JPEG", quality=int(quality))
    return Image.open(stream).convert("RGB")


def _bytes(values: np.ndarray) -> np.ndarray:
    return (values.clip(0, 1) * 255).astype(np.uint8)
