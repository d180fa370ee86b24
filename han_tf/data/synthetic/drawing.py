"""Paints shaded tubes and ellipsoids, of which bodies, clothes and bags consist, on an image.

Coordinates are metres on a plane that faces the camera, x to the right and y up. A surface is a function of
azimuth (the angle around the body, 0 in front, in radians) and place along the axis, so that a fabric's pattern turns
with the body.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Union

import numpy as np
from PIL import Image

Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes azimuth and place along the axis in [0, 1], both [h, w]; returns RGB [h, w, 3] or [3]."""


class Tube(NamedTuple):
    """A generalised cylinder with rounded or flat ends.

    Attributes:
      start, end: (x, y) of the axis in metres; place along the axis is 0 at the start.
      half_widths: half the width in metres, at equal steps from start to end.
      surface: its colours.
      depth: larger is nearer to the camera; painted later.
      azimuth: azimuth of the middle line that faces the camera, in radians.
      round_start, round_end: length by which the ends bulge, relative to the half width there.
      folds: strength of the wrinkles.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    half_widths: tuple[float, ...]
    surface: Surface
    depth: float
    azimuth: float = 0.0
    round_start: float = 1.0
    round_end: float = 1.0
    folds: float = 0.0


class Ellipsoid(NamedTuple):
    """An ellipsoid, upright or tilted by ``tilt`` radians; place is 0 at its bottom and 1 at its top."""

    centre: tuple[float, float]
    half_width: float
    half_height: float
    surface: Surface
    depth: float
    azimuth: float = 0.0
    tilt: float = 0.0
    folds: float = 0.0


Shape = Union[Tube, Ellipsoid]


class Light(NamedTuple):
    """Unit vector to the light (x right, y up, z to the camera) and strengths of ambient and diffuse light."""

    direction: tuple[float, float, float]
    ambient: float
    diffuse: float


def plain(colour: tuple[float, float, float]) -> Surface:
    """Returns a surface of one colour."""
    value = np.asarray(colour, np.float32)
    return lambda azimuth, place: value


class Canvas:
    """An RGB image on which shapes are painted.

    Args:
      rgb: [h, w, 3] float32 in [0, 1], the background; painted over in place.
      scale: pixels per metre.
      origin: (column, row) in pixels of the point (0, 0).
      light: the light on all shapes.
      wrinkles: (row, column) of the part of :func:`wrinkle_tile` to use; different for each figure.
    """

    def __init__(
        self,
        rgb: np.ndarray,
        scale: float,
        origin: tuple[float, float],
        light: Light,
        wrinkles: tuple[int, int] = (0, 0),
    ):
        self.rgb = rgb
        self.scale = scale
        self.origin = origin
        self.light = light
        self.wrinkles = wrinkles

    def paint(self, shapes: list[Shape]) -> None:
        """Paints the shapes from the farthest to the nearest."""
        for shape in sorted(shapes, key=lambda s: s.depth):
            if isinstance(shape, Tube):
                self._tube(shape)
            else:
                self._ellipsoid(shape)

    def darken(self, centre: tuple[float, float], half_size: tuple[float, float], strength: float) -> None:
        """Darkens an ellipse with a soft edge, such as a shadow at the feet."""
        x, y = self._pixels(centre)
        a, b = half_size[0] * self.scale, half_size[1] * self.scale
        window = self._window(x - 1.5 * a, x + 1.5 * a, y - 1.5 * b, y + 1.5 * b)
        if window is None:
            return
        rows, columns, ys, xs = window
        distance = ((xs - x) / a) ** 2 + ((ys - y) / b) ** 2
        self.rgb[rows, columns] *= (1 - strength * np.exp(-1.5 * distance))[..., None]

    def _pixels(self, point: tuple[float, float]) -> tuple[float, float]:
        return self.origin[0] + point[0] * self.scale, self.origin[1] - point[1] * self.scale

    def _window(self, left: float, right: float, top: float, bottom: float):
        height, width = self.rgb.shape[:2]
        left, right = max(int(left) - 1, 0), min(int(right) + 2, width)
        top, bottom = max(int(top) - 1, 0), min(int(bottom) + 2, height)
        if left >= right or top >= bottom:
            return None
        ys = np.arange(top, bottom, dtype=np.float32)[:, None]
        xs = np.arange(left, right, dtype=np.float32)[None, :]
        return slice(top, bottom), slice(left, right), ys, xs

    def _tube(self, tube: Tube) -> None:
        x0, y0 = self._pixels(tube.start)
        x1, y1 = self._pixels(tube.end)
        length = max(np.hypot(x1 - x0, y1 - y0), 0.5)
        ax, ay = (x1 - x0) / length, (y1 - y0) / length
        widths = np.asarray(tube.half_widths, np.float32) * self.scale
        reach = float(widths.max())
        window = self._window(min(x0, x1) - reach, max(x0, x1) + reach, min(y0, y1) - reach, max(y0, y1) + reach)
        if window is None:
            return
        rows, columns, ys, xs = window
        dx, dy = xs - np.float32(x0), ys - np.float32(y0)
        along = dx * np.float32(ax) + dy * np.float32(ay)
        across = dy * np.float32(ax) - dx * np.float32(ay)
        on_axis = np.clip(along, 0, length)
        place = on_axis * np.float32(1 / length)
        if len(widths) == 2:
            half = widths[0] + (widths[1] - widths[0]) * place
        else:
            half = np.interp(place, np.linspace(0, 1, len(widths)), widths).astype(np.float32)
        half = np.maximum(half, 0.4)
        beyond = along - on_axis
        # A bulge of 0 would divide by zero; a small one ends the tube within a pixel.
        beyond *= np.where(beyond < 0, 1 / max(tube.round_start, 0.02), 1 / max(tube.round_end, 0.02)).astype(
            np.float32
        )
        cover = np.clip(half + np.float32(0.5) - np.hypot(across, beyond), 0, 1)
        u = np.clip(across / half, -0.995, 0.995)
        nz = np.sqrt(1 - u * u)
        # The axis may run up or down the image; azimuth always grows towards the image's left.
        side = u if ay <= 0 else -u
        lx, ly, lz = self.light.direction
        facing = u * np.float32(-ay * lx - ax * ly) + nz * np.float32(lz)
        azimuth = tube.azimuth - np.arcsin(side)
        self._blend(rows, columns, cover, tube.surface(azimuth, place), facing, nz, tube.folds)

    def _ellipsoid(self, ball: Ellipsoid) -> None:
        x, y = self._pixels(ball.centre)
        a, b = max(ball.half_width * self.scale, 0.4), max(ball.half_height * self.scale, 0.4)
        reach = max(a, b) if ball.tilt else 0
        window = self._window(x - max(a, reach), x + max(a, reach), y - max(b, reach), y + max(b, reach))
        if window is None:
            return
        rows, columns, ys, xs = window
        dx, dy = xs - np.float32(x), np.float32(y) - ys
        if ball.tilt:
            c, s = np.float32(np.cos(ball.tilt)), np.float32(np.sin(ball.tilt))
            dx, dy = c * dx + s * dy, c * dy - s * dx
        u, v = dx * np.float32(1 / a) + 0 * dy, dy * np.float32(1 / b) + 0 * dx
        radius = np.sqrt(u * u + v * v)
        cover = np.clip((1 - radius) * np.float32(min(a, b)) + np.float32(0.5), 0, 1)
        nz = np.sqrt(np.maximum(1 - radius * radius, 0.01))
        lx, ly, lz = self.light.direction
        facing = u * np.float32(lx) + v * np.float32(ly) + nz * np.float32(lz)
        ring = np.sqrt(np.maximum(1 - v * v, 0.02))
        azimuth = ball.azimuth - np.arcsin(np.clip(u / ring, -1, 1))
        place = np.clip((v + 1) * np.float32(0.5), 0, 1)
        self._blend(rows, columns, cover, ball.surface(azimuth, place), facing, nz, ball.folds)

    def _blend(self, rows, columns, cover, colour, facing, nz, folds) -> None:
        shade = self.light.ambient + self.light.diffuse * np.maximum(facing, 0)
        shade *= np.float32(0.62) + np.float32(0.38) * nz
        if folds:
            noise = wrinkle_tile()
            top, left = self.wrinkles[0] + rows.start, self.wrinkles[1] + columns.start
            shade *= 1 + np.float32(folds) * noise[top : top + shade.shape[0], left : left + shade.shape[1]]
        under = self.rgb[rows, columns]
        under += cover[..., None] * (colour * shade[..., None].astype(np.float32) - under)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Returns [h, w] float32 noise of standard deviation about 1, smooth over ``cell`` (h, w) pixels."""
    small = max(int(shape[0] / cell[0]), 2), max(int(shape[1] / cell[1]), 2)
    coarse = Image.fromarray(rng.standard_normal(small).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


@lru_cache(maxsize=1)
def wrinkle_tile() -> np.ndarray:
    """Returns [1024, 1024] float32 noise for the folds of cloth."""
    rng = np.random.default_rng(20200)
    shape = (1024, 1024)
    noise = smooth_noise(rng, shape, (26, 12)) + 0.6 * smooth_noise(rng, shape, (9, 14))
    return (noise + 0.35 * smooth_noise(rng, shape, (4, 4))).astype(np.float32)
