"""The surroundings of the people: one scene per camera, and things of tubes that stand in it or hide parts of a person.

A scene is painted once per process and cut and scaled for each image.
"""

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Optional

import numpy as np

from han_tf.data.synthetic.drawing import Canvas, Colour, Tube, scaled, smooth_noise

SCENE_SCALE = 64
"""Pixels per metre of a scene."""

SCENE_SIZE = (16.0, 4.6)
"""Width and height of a scene in metres; people stand in its lower part."""


class Setting(NamedTuple):
    """The parts of a scene."""

    wall: Colour
    ground: Colour
    roughness: tuple[float, float]  # contrast of wall and ground, as of leaves and grass
    horizon: float  # height of the wall in metres
    panels: tuple[float, float]  # width and height of windows, doors or posters in metres
    slabs: int  # rows of slabs on the ground
    things: tuple[str, ...]  # keys of THINGS


_STONE = (0.67, 0.65, 0.61)
SETTINGS = {
    "plaza": Setting((0.66, 0.65, 0.63), _STONE, (0.03, 0.05), 1.5, (1.9, 1.1), 7, ("bin", "bicycle", "pole")),
    "street": Setting((0.62, 0.57, 0.50), (0.42, 0.43, 0.45), (0.05, 0.08), 1.3, (0.8, 0.8), 2, ("car", "car", "pole")),
    "park": Setting((0.28, 0.37, 0.19), (0.40, 0.47, 0.27), (0.25, 0.12), 1.6, (0.0, 0.0), 0, ("tree", "bush", "bush")),
    "hall": Setting((0.77, 0.73, 0.66), (0.73, 0.69, 0.62), (0.02, 0.04), 1.9, (0.7, 0.9), 9, ("bin", "pole", "bin")),
    "bicycle stand": Setting(
        (0.58, 0.38, 0.31), (0.55, 0.52, 0.49), (0.06, 0.08), 1.4, (0.9, 0.7), 15, ("bicycle", "bicycle", "bush")
    ),
    "entrance": Setting((0.68, 0.73, 0.76), _STONE, (0.06, 0.05), 2.0, (1.0, 1.7), 7, ("railing", "bin", "pole")),
}

_BLACK, _GLASS, _LEAVES, _BARK = (0.1, 0.1, 0.1), (0.16, 0.18, 0.21), (0.30, 0.42, 0.20), (0.36, 0.29, 0.23)
_WHEEL = [(0.33 * math.cos(i * math.pi / 7), 0.33 + 0.33 * math.sin(i * math.pi / 7)) for i in range(15)]

# Lines of (colour, or None for that of the paint; width; points), from the farthest to the nearest.
THINGS: dict[str, list[tuple[Optional[Colour], float, list[tuple[float, float]]]]] = {
    "pole": [(None, 0.14, [(0.0, 0.0), (0.0, 3.2)])],
    "tree": [(_BARK, 0.34, [(0.0, 0.15), (0.0, 4.0)])],
    "bin": [(None, 0.56, [(0.0, 0.3), (0.0, 0.7)]), (_BLACK, 0.14, [(-0.25, 0.85), (0.25, 0.85)])],
    "bush": [(_LEAVES, 0.5, [(-0.5, 0.25), (-0.3, 0.6), (0.0, 0.4), (0.2, 0.75), (0.5, 0.3)])],
    "railing": [(None, 0.05, [(x / 5, 0.0), (x / 5, 1.0), (x / 5 + 0.2, 1.0)]) for x in range(-5, 5)],
    "bicycle": [
        *((_BLACK, 0.06, [(hub + x, y) for x, y in _WHEEL]) for hub in (-0.52, 0.52)),
        (None, 0.06, [(-0.52, 0.33), (-0.05, 0.33), (-0.2, 0.82), (-0.52, 0.33)]),
        (None, 0.06, [(-0.2, 0.82), (0.38, 0.84), (-0.05, 0.33)]),
        (None, 0.06, [(0.52, 0.33), (0.35, 1.0), (0.45, 1.02)]),
        (_BLACK, 0.1, [(-0.3, 0.88), (-0.12, 0.88)]),
    ],
    "car": [
        (None, 0.8, [(-0.8, 1.0), (0.6, 1.0)]),
        (_GLASS, 0.55, [(-0.8, 1.0), (-0.35, 1.0)]),
        (_GLASS, 0.55, [(0.15, 1.0), (0.6, 1.0)]),
        (None, 0.7, [(-1.7, 0.6), (1.7, 0.6)]),
        *((_BLACK, 0.64, [(x, 0.32), (x + 0.04, 0.32)]) for x in (-1.2, 1.2)),
        *((None, 0.34, [(x, 0.32), (x + 0.04, 0.32)]) for x in (-1.2, 1.2)),
    ],
}


def thing(kind: str, rng: np.random.Generator) -> list[Tube]:
    """Returns the tubes of a thing that stands at (0, 0)."""
    colour = paint(rng)
    return [
        Tube(start, end, (width / 2, width / 2), own or colour, depth, folds=0.25 if own in (_LEAVES, _BARK) else 0.0)
        for depth, (own, width, points) in enumerate(THINGS[kind])
        for start, end in pairwise(points)
    ]


def half_width(kind: str) -> float:
    """Returns half the width of a thing in metres."""
    return max(x + width / 2 for _, width, points in THINGS[kind] for x, _ in points)


def paint(rng: np.random.Generator) -> Colour:
    """Returns the colour of a painted object: grey or bright."""
    if rng.random() < 0.5:
        return scaled((1.0, 1.0, 1.0), rng.uniform(0.15, 0.85))
    red, green, blue = rng.uniform(0.12, 0.85, 3).tolist()
    return red, green, blue


def shadow(half: float) -> Tube:
    """Returns the shadow on the ground of what is ``half`` metres to each side."""
    return Tube((-half, 0.0), (half, 0.0), [0.07 + 0.03 * half] * 2, _BLACK, opacity=0.4)


@lru_cache(maxsize=8)
def scene(name: str, seed: int) -> np.ndarray:
    """Returns the scene of a setting, RGB [h, w, 3] float32 in [0, 1]; panels and things depend on the seed."""
    rng, setting = np.random.default_rng((seed, 7, sorted(SETTINGS).index(name))), SETTINGS[name]
    width, height, horizon = (int(metres * SCENE_SCALE) for metres in (*SCENE_SIZE, setting.horizon))
    rgb = np.empty((height, width, 3), np.float32)
    wall, ground = rgb[:horizon], rgb[horizon:]
    wall[:], ground[:] = setting.wall, setting.ground
    for part, rough in zip((wall, ground), setting.roughness):
        for cell in (3, 17):
            part *= 1 + np.float32(rough) * smooth_noise(rng, part.shape[:2], (cell, cell))[..., None]
    wide, high = (int(metres * SCENE_SCALE) for metres in setting.panels)
    for x in range(0, width - wide if wide else 0, wide + 30):
        x, top = x + int(rng.integers(30)), horizon - high - int(rng.integers(2, 10))
        panel = wall[max(top, 0) : horizon - 4, x : x + wide]
        panel[:] = paint(rng)
        panel[[0, -1]] = panel[:, [0, -1]] = 0.8
        for left, upper in rng.integers(3, (wide - 6, high // 2), (3, 2)).tolist():  # printed on it or seen through it
            panel[upper:-3, left : min(left + wide // 4, wide - 3)] = paint(rng)
    # Rows of slabs get narrower towards the horizon; the columns run to a far vanishing point.
    y, x = np.ogrid[: height - horizon, :width]
    row = np.floor(setting.slabs * np.sqrt((y + 1) / (height - horizon)))
    column = np.floor((x - width / 2) / (0.72 + 0.28 * y / (height - horizon)) * setting.slabs / 400 + 0.5 * (row % 2))
    ground[(np.diff(row, axis=0, append=0) != 0) | (np.diff(column, axis=1, append=0) != 0)] *= np.float32(0.7)
    for number, x in enumerate(rng.uniform(0, width, 10).tolist()):
        # A thing farther up the image is farther away and smaller.
        kind, nearer = setting.things[number % len(setting.things)], rng.uniform(0.05, 0.9)
        origin = x, horizon + nearer * SCENE_SCALE
        canvas = Canvas(rgb, (0.62 + 0.2 * nearer) * SCENE_SCALE, origin, (0.1, 0.25, 0.15), 0.75)
        canvas.paint([shadow(half_width(kind)), *thing(kind, rng)])
    rgb *= 1 + np.float32(0.1) * smooth_noise(rng, (height, width), (110, 150))[..., None]
    return rgb.clip(0, 1)
