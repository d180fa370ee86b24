"""Paints shaded tubes, of which people, their belongings and the things around them consist, on an image.

Coordinates are metres on a plane that faces the camera, x to the right and y up. A surface depends on the direction in
which it faces and on the place along the tube, so that a fabric's pattern turns with the body.

The same seed gives the same pixels everywhere: arrays are added, multiplied and divided in NumPy, which rounds alike on
all processors, and resized by :func:`interpolate`, since Pillow's rounding depends on its version.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Union

import numpy as np

Colour = tuple[float, float, float]
"""Red, green and blue in [0, 1]."""


class Patch(NamedTuple):
    """The visible points of a tube, [h, w] each. Azimuth is the angle around the axis: 0 in front, π/2 on the right."""

    front: np.ndarray  # cosine of the azimuth
    side: np.ndarray  # sine of the azimuth
    along: np.ndarray  # place along the axis, 0 to 1


Surface = Union[Colour, Callable[[Patch], np.ndarray]]
"""One colour, or a function that returns the RGB [h, w, 3] of a patch."""

OVAL = tuple(math.sqrt(1 - (i / 8 - 1) ** 2) for i in range(17))
"""Half widths that make a tube an ellipsoid."""


class Tube(NamedTuple):
    """A body of revolution."""

    start: tuple[float, float]
    end: tuple[float, float]
    widths: Sequence[float]  # half the width, at equal steps from start to end
    surface: Surface
    depth: float = 0.0  # larger is nearer to the camera
    facing: tuple[float, float] = (1.0, 0.0)  # cosine and sine of the azimuth of the middle line
    ends: float = 1.0  # length by which they bulge, relative to the half width there
    folds: float = 0.0  # strength of the wrinkles
    opacity: float = 1.0


class Canvas(NamedTuple):
    """An RGB image on which tubes are painted."""

    rgb: np.ndarray  # [h, w, 3] float32 in [0, 1], painted over in place
    scale: float  # pixels per metre
    origin: tuple[float, float]  # (column, row) of the point (0, 0)
    light: tuple[float, float, float]  # direction (x right, y up, z to the camera) times its strength
    ambient: float  # strength of the light from everywhere
    wrinkles: Sequence[int] = (0, 0)  # (row, column) below 500 of the part of wrinkle_tile() to use

    def paint(self, tubes: Iterable[Tube], x: float = 0.0, y: float = 0.0) -> None:
        """Paints tubes from the farthest to the nearest, their point (0, 0) at (x, y)."""
        left, down = self.origin[0] + x * self.scale, self.origin[1] - y * self.scale
        for tube in sorted(tubes, key=lambda tube: tube.depth):
            (x0, y0), (x1, y1) = ((left + self.scale * a, down - self.scale * b) for a, b in (tube.start, tube.end))
            self._paint(tube, x0, y0, x1, y1)

    def _paint(self, tube: Tube, x0: float, y0: float, x1: float, y1: float) -> None:
        length = max(math.hypot(x1 - x0, y1 - y0), 0.5)
        ax, ay = (x1 - x0) / length, (y1 - y0) / length
        widths = [width * self.scale for width in tube.widths]
        reach = max(widths) + 1
        left, right = max(int(min(x0, x1) - reach), 0), min(int(max(x0, x1) + reach) + 1, self.rgb.shape[1])
        top, bottom = max(int(min(y0, y1) - reach), 0), min(int(max(y0, y1) + reach) + 1, self.rgb.shape[0])
        if left >= right or top >= bottom:
            return
        columns = np.arange(left, right, dtype=np.float32) - np.float32(x0)
        rows = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y0)
        distance = columns * np.float32(ax) + rows * np.float32(ay)
        across = rows * np.float32(ax) - columns * np.float32(ay)
        on_axis = distance.clip(0, np.float32(length))
        along = on_axis / np.float32(length)
        half = np.interp(along, np.linspace(0, 1, len(widths)), widths).astype(np.float32).clip(0.4)
        # A bulge of 0 would divide by zero; a small one ends the tube within a pixel.
        beyond = (distance - on_axis) / np.float32(max(tube.ends, 0.02))
        cover = (half + np.float32(0.5) - np.sqrt(across * across + beyond * beyond)).clip(0, 1)
        sine = (across / half).clip(-0.995, 0.995)
        cosine = np.sqrt(1 - sine * sine)
        lx, ly, lz = self.light
        shade = (sine * np.float32(-ay * lx - ax * ly) + cosine * np.float32(lz)).clip(0) + np.float32(self.ambient)
        shade *= np.float32(0.62) + np.float32(0.38) * cosine
        if tube.folds:
            noise = wrinkle_tile()[self.wrinkles[0] + top :, self.wrinkles[1] + left :]
            shade *= 1 + np.float32(tube.folds) * noise[: bottom - top, : right - left]
        if callable(tube.surface):
            # The axis may run up or down the image; the person's right is always at the image's left.
            cos, sin = map(np.float32, tube.facing)
            sine = sine if ay <= 0 else -sine
            colour = tube.surface(Patch(cosine * cos + sine * sin, cosine * sin - sine * cos, along))
        else:
            colour = np.float32(tube.surface)
        under = self.rgb[top:bottom, left:right]
        under += (cover * np.float32(tube.opacity))[..., None] * (colour * shade[..., None] - under)


def mix(rgb: Sequence[float], colour: Sequence[float], share: np.ndarray) -> np.ndarray:
    """Returns ``rgb`` [3] or [h, w, 3] with ``share`` [h, w] of it, in [0, 1] or bool, replaced by ``colour``."""
    rgb = np.asarray(rgb, np.float32)
    return rgb + np.asarray(share, np.float32)[..., None] * (np.float32(colour) - rgb)


def scaled(colour: Colour, factor: float) -> Colour:
    """Returns a darker or, with a factor above 1, a lighter colour."""
    red, green, blue = (min(value * factor, 1.0) for value in colour)
    return red, green, blue


def interpolate(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Returns ``values`` at fractional ``places`` [n] along an axis, linearly interpolated."""
    first = places.clip(0, values.shape[axis] - 2).astype(int)
    share = (places - first).clip(0, 1).astype(values.dtype).reshape(-1, *[1] * (values.ndim - axis - 1))
    start = values.take(first, axis)
    return start + share * (values.take(first + 1, axis) - start)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Returns [h, w] float32 noise of mean 0 and standard deviation about 1, smooth over ``cell`` (h, w) pixels."""
    counts = [max(int(size / step), 2) for size, step in zip(shape, cell)]
    noise = rng.normal(0, 1.5, counts).astype(np.float32)
    for axis, count in enumerate(counts):
        noise = interpolate(noise, np.linspace(0, count - 1, shape[axis]), axis)
    return noise


@lru_cache(maxsize=1)
def wrinkle_tile() -> np.ndarray:
    """Returns [1100, 1100] float32 noise for the folds of cloth."""
    rng, shape = np.random.default_rng(20200), (1100, 1100)
    return smooth_noise(rng, shape, (26, 12)) + np.float32(0.6) * smooth_noise(rng, shape, (9, 14))
