"""Six surveillance cameras: their views, and their effects on colours, sharpness and compression."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from han_tf.data.synthetic.drawing import Light


class Camera(NamedTuple):
    """The view and the sensor of a camera.

    Attributes:
      scene: key of :data:`han_tf.data.synthetic.scenery.SETTINGS`.
      pitch: angle by which it looks down, radians.
      person_height: typical height of a person of 1.7 m in the image, pixels.
      paths: yaws at which people typically walk past, radians.
      light: direction to the main light (x right, y up, z to the camera).
      hardness: share of the light that comes from the main light, in [0, 1].
      gains: of red, green and blue (white balance and exposure).
      gamma: exponent of the tone curve; above 1 darkens the mid-tones.
      contrast: slope of the tone curve around mid-grey.
      black: level of the darkest value (haze, flare).
      saturation: 1 leaves the colours as they are.
      mixing: share of red that is taken from green, of green from blue, and of blue from red.
      blur: standard deviation of the lens blur, as a share of the box's height.
      noise: standard deviation of the sensor noise, for values in [0, 1].
      quality: JPEG quality of the video stream.
    """

    scene: str
    pitch: float
    person_height: float
    paths: tuple[float, ...]
    light: tuple[float, float, float]
    hardness: float
    gains: tuple[float, float, float]
    gamma: float
    contrast: float
    black: float
    saturation: float
    mixing: float
    blur: float
    noise: float
    quality: int


_PI = np.pi

CAMERAS = (
    Camera(
        "plaza", 0.16, 128, (0.0, _PI, 0.3), (0.5, 0.6, 0.62), 0.75,
        (1.03, 1.01, 0.98), 0.98, 1.03, 0.01, 1.04, 0.0, 0.003, 0.012, 75,
    ),
    Camera(
        "street", 0.10, 104, (_PI / 2, -_PI / 2, 0.9), (-0.4, 0.75, 0.5), 0.4,
        (0.94, 0.98, 1.05), 1.02, 0.95, 0.02, 0.91, 0.02, 0.005, 0.018, 55,
    ),
    Camera(
        "park", 0.22, 92, (0.5, _PI + 0.5, -0.6), (0.7, 0.55, 0.3), 0.8,
        (0.98, 1.03, 0.93), 1.04, 1.05, 0.0, 1.0, 0.02, 0.005, 0.016, 60,
    ),
    Camera(
        "hall", 0.26, 140, (0.0, _PI, _PI - 0.4), (0.05, 0.95, 0.25), 0.5,
        (1.05, 0.97, 0.87), 1.10, 1.0, 0.01, 0.96, 0.01, 0.004, 0.025, 65,
    ),
    Camera(
        "bicycle stand", 0.14, 112, (-_PI / 2, _PI / 2, _PI), (-0.65, 0.5, 0.55), 0.85,
        (1.0, 0.95, 1.02), 1.0, 1.08, -0.01, 1.06, 0.0, 0.004, 0.015, 50,
    ),
    Camera(
        "entrance", 0.12, 80, (_PI, 0.0, -0.8), (0.2, 0.5, -0.4), 0.5,
        (0.97, 0.98, 1.0), 1.07, 0.92, 0.04, 0.86, 0.03, 0.007, 0.022, 45,
    ),
)  # fmt: skip
"""The six cameras; camera ids start at 1."""


def light_of(camera: Camera, rng: np.random.Generator) -> Light:
    """Returns the light of one image: direction, strength and hardness vary at random around the camera's."""
    direction = np.asarray(camera.light) + rng.normal(0, 0.12, 3)
    direction /= np.linalg.norm(direction)
    strength = rng.uniform(0.88, 1.1)
    hard = np.clip(camera.hardness + rng.normal(0, 0.12), 0.15, 1.0)
    x, y, z = direction.tolist()
    return Light((x, y, z), float(strength * (0.98 - 0.52 * hard)), float(strength * (0.15 + 0.62 * hard)))


def expose(
    rgb: np.ndarray, camera: Camera, exposure: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """Returns a scene as the camera's video stream shows it.

    Args:
      rgb: [h, w, 3] float32, the scene in [0, 1]; larger than ``size``.
      camera: the camera.
      exposure: [3] gains of this image (automatic exposure and white balance).
      size: (width, height) of the result in pixels.
      rng: source of blur, noise and compression.
    """
    width, height = size
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    # 15 % of the images are enlarged from fewer pixels, as if the person were far away.
    reduced = rng.uniform(0.45, 0.75) if rng.random() < 0.15 else 1.0
    image = image.resize((max(round(width * reduced), 8), max(round(height * reduced), 16)), Image.Resampling.BOX)
    radius = camera.blur * height * rng.uniform(0.6, 1.5) * reduced
    if radius > 0.3:
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    values = np.asarray(image, np.float32) / 255
    if rng.random() < 0.12:
        values = _smear(values, int(rng.integers(2, 5)))
    values = values * (np.float32(camera.gains) * exposure.astype(np.float32))
    if camera.mixing:
        values = (1 - camera.mixing) * values + np.float32(camera.mixing) * values[..., (1, 2, 0)]
    np.maximum(values, 1e-3, out=values)
    np.power(values, np.float32(camera.gamma), out=values)
    grey = values.mean(axis=2, keepdims=True)
    values = grey + np.float32(camera.saturation) * (values - grey)
    values = np.float32(0.45) + np.float32(camera.contrast) * (values - np.float32(0.45))
    values = np.float32(camera.black) + np.float32(1 - camera.black) * values
    values *= _veil(rng, height, width)
    values += np.float32(camera.noise * rng.uniform(0.6, 1.6)) * rng.standard_normal(values.shape, dtype=np.float32)
    image = Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(np.clip(camera.quality + rng.normal(0, 10), 18, 92)))
    stream.seek(0)
    return Image.open(stream).convert("RGB")


def _smear(values: np.ndarray, pixels: int) -> np.ndarray:
    """Returns the image with horizontal motion blur over ``pixels`` pixels."""
    padded = np.pad(values, ((0, 0), (pixels // 2, pixels - 1 - pixels // 2), (0, 0)), mode="edge")
    return sum(padded[:, i : i + values.shape[1]] for i in range(pixels)) / np.float32(pixels)


def _veil(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns [h, w, 1] gains around 1: patches of shade and the fall-off of the lens."""
    coarse = Image.fromarray((1 + 0.10 * rng.standard_normal((4, 3))).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., None]
