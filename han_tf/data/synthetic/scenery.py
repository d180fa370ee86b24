"""The surroundings of the people: one painted scene per camera, and things that hide parts of a person.

Scenes and things are painted once per process and cut, scaled and pasted for each image.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from han_tf.data.synthetic.drawing import smooth_noise

SCENE_SCALE = 64
"""Pixels per metre of a scene."""

SCENE_SIZE = (16.0, 4.6)
"""Width and height of a scene in metres; people stand in its lower part."""

THING_SCALE = 80
"""Pixels per metre of a thing."""

THING_VARIANTS = 4
"""Number of differently coloured copies of each thing."""


class Setting(NamedTuple):
    """The parts of a scene; ``horizon`` is the wall's height from the top of the scene in metres."""

    wall: str
    ground: str
    horizon: float
    things: tuple[str, ...]


SETTINGS = {
    "plaza": Setting("shops", "slabs", 1.5, ("bench", "bin", "tree", "sign", "bicycle")),
    "street": Setting("brick", "asphalt", 1.3, ("car", "car", "car", "pole")),
    "park": Setting("hedge", "grass", 1.6, ("tree", "bush", "bench", "bush", "tree")),
    "hall": Setting("posters", "tiles", 1.9, ("bin", "sign", "bench", "pole")),
    "bicycle stand": Setting("brick", "cobbles", 1.4, ("bicycle", "bicycle", "bicycle", "railing", "bush")),
    "entrance": Setting("glass", "slabs", 2.0, ("railing", "pole", "sign", "bin")),
}

THINGS = {
    "pole": (0.14, 3.2),
    "bin": (0.6, 1.0),
    "bicycle": (1.75, 1.08),
    "car": (4.1, 1.48),
    "bush": (1.5, 1.0),
    "railing": (2.2, 1.05),
    "bench": (1.6, 0.85),
    "sign": (0.75, 1.2),
    "tree": (0.5, 4.0),
}
"""Width and height of each thing in metres."""


@lru_cache(maxsize=8)
def scene(name: str, seed: int) -> Image.Image:
    """Returns the RGB scene of a setting; shop fronts, cars and trees depend on the seed."""
    rng = np.random.default_rng((seed, 7, sorted(SETTINGS).index(name)))
    setting = SETTINGS[name]
    width, height = (int(s * SCENE_SCALE) for s in SCENE_SIZE)
    horizon = int(setting.horizon * SCENE_SCALE)
    image = Image.new("RGB", (width, height))
    image.paste(_WALLS[setting.wall](rng, width, horizon), (0, 0))
    image.paste(_ground(rng, setting.ground, width, height - horizon), (0, horizon))
    shade = ImageDraw.Draw(image, "RGBA")
    shade.rectangle((0, horizon - 3, width, horizon + 5), fill=(20, 20, 20, 110))
    places = rng.uniform(0, SCENE_SIZE[0], 10)
    for i, x in enumerate(places):
        kind = setting.things[i % len(setting.things)]
        _, high = THINGS[kind]
        # A thing farther up the image is farther away and smaller.
        base = setting.horizon + rng.uniform(0.05, 0.9)
        factor = 0.62 + 0.2 * (base - setting.horizon)
        piece = thing(kind, int(rng.integers(THING_VARIANTS)))
        size = tuple(max(int(s * factor * SCENE_SCALE / THING_SCALE), 1) for s in piece.size)
        piece = piece.resize(size, Image.Resampling.BILINEAR)
        corner = int(x * SCENE_SCALE - size[0] / 2), int(base * SCENE_SCALE - high * factor * SCENE_SCALE)
        x0, y0 = corner
        shade.ellipse((x0, y0 + size[1] - 6, x0 + size[0], y0 + size[1] + 6), fill=(10, 10, 10, 90))
        image.paste(piece, corner, piece)
    values = np.asarray(image, np.float32)
    patches = 1 + 0.10 * smooth_noise(rng, (height, width), (110, 150))
    grain = 1 + 0.045 * smooth_noise(rng, (height, width), (2, 3)) + 0.05 * smooth_noise(rng, (height, width), (12, 22))
    return Image.fromarray(np.clip(values * (patches * grain)[..., None], 0, 255).astype(np.uint8))


@lru_cache(maxsize=64)
def thing(kind: str, variant: int) -> Image.Image:
    """Returns an RGBA picture of a thing at :data:`THING_SCALE`."""
    rng = np.random.default_rng((11, sorted(THINGS).index(kind), variant))
    wide, high = (s * THING_SCALE * 2 for s in THINGS[kind])
    image = Image.new("RGBA", (int(wide), int(high)))
    _THINGS[kind](ImageDraw.Draw(image), rng, *image.size)
    image = image.resize((max(int(wide / 2), 2), int(high / 2)), Image.Resampling.BOX)
    # Light from above.
    rgba = np.asarray(image, np.float32).copy()
    rows = np.linspace(1.12, 0.78, rgba.shape[0], dtype=np.float32)[:, None, None]
    rgba[..., :3] *= rows * (1 + 0.05 * smooth_noise(rng, rgba.shape[:2], (5, 5)))[..., None]
    return Image.fromarray(np.clip(rgba, 0, 255).astype(np.uint8), "RGBA")


def _grey(rng: np.random.Generator, low: int, high: int, tint: int = 12) -> tuple[int, int, int]:
    base = rng.integers(low, high)
    red, green, blue = np.clip(base + rng.integers(-tint, tint + 1, 3), 0, 255).tolist()
    return red, green, blue


def _paint(rng: np.random.Generator) -> tuple[int, int, int]:
    """Returns the colour of a painted object: grey or bright."""
    if rng.random() < 0.5:
        return _grey(rng, 30, 230)
    red, green, blue = rng.integers(30, 220, 3).tolist()
    return red, green, blue


def _darker(colour: tuple[int, ...], factor: float) -> tuple[int, ...]:
    return tuple(int(min(c * factor, 255)) for c in colour)


# -- walls: (rng, width, height) -> picture --------------------------------------------------------


def _shops(rng, width, height):
    image = Image.new("RGB", (width, height), _grey(rng, 150, 190))
    draw = ImageDraw.Draw(image)
    x = -int(rng.integers(60))
    while x < width:
        span = int(rng.integers(110, 210))
        draw.rectangle((x + 6, 0, x + span - 6, 16), fill=_paint(rng))
        draw.rectangle((x + 8, 20, x + span - 8, height - 10), fill=_grey(rng, 45, 95))
        for _ in range(6):
            x0, y0 = x + int(rng.integers(10, span - 30)), int(rng.integers(30, max(height - 20, 31)))
            draw.rectangle((x0, y0, x0 + int(rng.integers(6, 24)), height - 10), fill=_paint(rng))
        for bar in range(x + 8, x + span - 8, 46):
            draw.line((bar, 20, bar, height - 10), fill=(190, 190, 190), width=2)
        x += span
    return image.filter(ImageFilter.GaussianBlur(1.2))


def _brick(rng, width, height):
    base = (150, 98, 80) if rng.random() < 0.6 else (165, 150, 128)
    image = Image.new("RGB", (width, height), _darker(base, 1.25))
    draw = ImageDraw.Draw(image)
    for row in range(0, height, 7):
        for x in range(-(row // 7 % 2) * 8, width, 16):
            draw.rectangle((x + 1, row + 1, x + 14, row + 5), fill=_darker(base, float(rng.uniform(0.8, 1.1))))
    for x in range(int(rng.integers(40, 140)), width, int(rng.integers(190, 260))):
        draw.rectangle((x - 3, 6, x + 47, height - 32), fill=(205, 205, 200))
        draw.rectangle((x, 9, x + 44, height - 35), fill=_grey(rng, 50, 100))
        draw.line((x + 22, 9, x + 22, height - 35), fill=(205, 205, 200), width=2)
    return image


def _hedge(rng, width, height):
    shape = (height, width)
    leaves = 0.5 * smooth_noise(rng, shape, (4, 4)) + 0.5 * smooth_noise(rng, shape, (16, 20))
    leaves += 0.4 * smooth_noise(rng, shape, (45, 60))
    value = np.clip(0.5 + 0.28 * leaves, 0.1, 1.1)[..., None]
    return Image.fromarray(np.clip(value * np.float32([86, 112, 58]), 0, 255).astype(np.uint8))


def _posters(rng, width, height):
    image = Image.new("RGB", (width, height), (196, 188, 170))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, height - 26, width, height), fill=(150, 138, 120))
    x = int(rng.integers(10, 60))
    while x < width - 40:
        if rng.random() < 0.3:
            draw.rectangle((x, 16, x + 60, height), fill=_darker((140, 110, 82), float(rng.uniform(0.7, 1.1))))
            draw.ellipse((x + 50, height // 2 + 8, x + 55, height // 2 + 14), fill=(210, 200, 160))
            x += 90
        else:
            high = int(rng.integers(40, 70))
            draw.rectangle((x, 20, x + 44, 20 + high), fill=_paint(rng), outline=(90, 90, 90))
            draw.rectangle((x + 6, 26, x + 36, 26 + high // 3), fill=_paint(rng))
            x += int(rng.integers(70, 150))
    return image


def _glass(rng, width, height):
    rows = np.linspace(215, 150, height)[:, None, None] * np.float32([0.92, 0.99, 1.04])
    image = Image.fromarray(np.clip(np.broadcast_to(rows, (height, width, 3)), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(40):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        draw.rectangle((x, y, x + int(rng.integers(20, 90)), height), fill=(*_grey(rng, 60, 170), 70))
    for x in range(0, width, 58):
        draw.rectangle((x, 0, x + 4, height), fill=(80, 84, 88, 255))
    draw.rectangle((0, height // 2, width, height // 2 + 4), fill=(80, 84, 88, 255))
    return image


# -- grounds ---------------------------------------------------------------------------------------

_GROUND_COLOURS = {
    "slabs": (172, 166, 156),
    "asphalt": (108, 110, 114),
    "grass": (104, 122, 70),
    "tiles": (188, 178, 160),
    "cobbles": (142, 134, 126),
}


def _ground(rng, kind, width, height):
    base = np.float32(_GROUND_COLOURS[kind])
    shape = (height, width)
    value = 1 + 0.05 * smooth_noise(rng, shape, (30, 60))
    if kind == "grass":
        value += 0.10 * smooth_noise(rng, shape, (2.5, 2)) + 0.08 * smooth_noise(rng, shape, (14, 18))
    elif kind == "asphalt":
        value += 0.05 * smooth_noise(rng, shape, (2, 2))
    near = np.linspace(0.94, 1.06, height)[:, None, None]
    image = Image.fromarray(np.clip(value[..., None] * near * base, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")
    # Rows of slabs get narrower towards the horizon; joints run to a far vanishing point.
    if kind in ("slabs", "tiles", "cobbles"):
        count = {"slabs": 7, "tiles": 9, "cobbles": 15}[kind]
        dark = (60, 56, 50, 110)
        for i in range(1, count):
            y = int(height * (i / count) ** 1.6)
            draw.line((0, y, width, y), fill=dark, width=1)
        middle = width * rng.uniform(0.2, 0.8)
        step = {"slabs": 56, "tiles": 40, "cobbles": 20}[kind]
        for x in range(-width // 2, width * 3 // 2, step):
            draw.line((middle + (x - middle) * 0.72, 0, x, height), fill=dark, width=1)
    elif kind == "asphalt":
        y = int(height * 0.3)
        draw.rectangle((0, y, width, y + 7), fill=(178, 176, 170, 255))
        draw.rectangle((0, y + 7, width, y + 11), fill=(60, 60, 62, 255))
        for x in range(int(rng.integers(90)), width, 190):
            draw.polygon(
                ((x, height - 60), (x + 90, height - 60), (x + 96, height - 50), (x + 2, height - 50)),
                fill=(214, 214, 208, 220),
            )
    else:
        y = int(height * 0.42)
        draw.polygon(((0, y), (width, y - 20), (width, y + 70), (0, y + 100)), fill=(168, 156, 132, 235))
    return image


# -- things: (draw, rng, width, height) ------------------------------------------------------------


def _pole(draw, rng, w, h):
    colour = _grey(rng, 60, 190)
    draw.rectangle((0, 0, w, h), fill=_darker(colour, 0.7))
    draw.rectangle((w * 0.15, 0, w * 0.7, h), fill=colour)
    draw.rectangle((w * 0.25, 0, w * 0.45, h), fill=_darker(colour, 1.25))


def _bin(draw, rng, w, h):
    colour = ((52, 84, 60), (88, 90, 94), (46, 70, 112), (96, 72, 50))[int(rng.integers(4))]
    draw.rounded_rectangle((w * 0.04, h * 0.14, w * 0.96, h), 8, fill=_darker(colour, 0.8))
    draw.rectangle((w * 0.2, h * 0.2, w * 0.5, h * 0.97), fill=colour)
    draw.rounded_rectangle((0, 0, w, h * 0.18), 10, fill=_darker(colour, 0.6))
    draw.rectangle((w * 0.3, h * 0.45, w * 0.7, h * 0.6), fill=(220, 220, 215))


def _bicycle(draw, rng, w, h):
    colour = _paint(rng)
    radius = h * 0.31
    for x in (radius * 1.05, w - radius * 1.05):
        y = h - radius - 2
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=(25, 25, 28), width=9)
        for angle in np.linspace(0, np.pi, 6, endpoint=False):
            dx, dy = radius * np.cos(angle), radius * np.sin(angle)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=(140, 140, 140, 130), width=2)
    back, front = (radius * 1.05, h - radius), (w - radius * 1.05, h - radius)
    crank, seat, head = (w * 0.47, h * 0.7), (w * 0.38, h * 0.24), (w * 0.72, h * 0.22)
    for a, b in ((back, crank), (back, seat), (crank, seat), (crank, head), (seat, head), (head, front)):
        draw.line((*a, *b), fill=colour, width=11)
    draw.line((w * 0.29, h * 0.17, w * 0.45, h * 0.17), fill=(30, 30, 30), width=16)
    draw.line((*head, w * 0.69, h * 0.06), fill=(60, 60, 60), width=9)
    draw.line((w * 0.62, h * 0.06, w * 0.76, h * 0.05), fill=(30, 30, 30), width=11)
    if rng.random() < 0.6:
        draw.rectangle((w * 0.74, h * 0.16, w * 0.93, h * 0.38), outline=(50, 50, 50), fill=(90, 90, 92, 180))


def _car(draw, rng, w, h):
    colour = _paint(rng)
    roof = ((w * 0.18, h * 0.42), (w * 0.30, h * 0.04), (w * 0.68, h * 0.02), (w * 0.84, h * 0.42))
    draw.polygon(roof, fill=_darker(colour, 0.85))
    draw.polygon(
        ((w * 0.23, h * 0.42), (w * 0.325, h * 0.1), (w * 0.49, h * 0.09), (w * 0.49, h * 0.42)), fill=(38, 44, 52)
    )
    draw.polygon(
        ((w * 0.52, h * 0.42), (w * 0.52, h * 0.09), (w * 0.66, h * 0.08), (w * 0.78, h * 0.42)), fill=(46, 54, 62)
    )
    draw.rounded_rectangle((0, h * 0.4, w, h * 0.84), 22, fill=colour)
    draw.rectangle((w * 0.02, h * 0.62, w * 0.98, h * 0.66), fill=_darker(colour, 0.7))
    draw.line((w * 0.505, h * 0.42, w * 0.505, h * 0.8), fill=_darker(colour, 0.55), width=3)
    draw.rectangle((w * 0.96, h * 0.48, w, h * 0.58), fill=(235, 225, 190))
    draw.rectangle((0, h * 0.48, w * 0.03, h * 0.58), fill=(170, 30, 28))
    for x in (w * 0.2, w * 0.8):
        r = h * 0.21
        draw.ellipse((x - r, h - 2 * r, x + r, h), fill=(24, 24, 26))
        draw.ellipse((x - r * 0.55, h - 1.55 * r, x + r * 0.55, h - 0.45 * r), fill=(150, 150, 152))


def _bush(draw, rng, w, h):
    for _ in range(260):
        x, y = rng.uniform(0.05, 0.95) * w, h - abs(rng.normal(0, 0.38)) * h
        y = max(y, h * (0.1 + 1.3 * (x / w - 0.5) ** 2))
        size = rng.uniform(6, 18)
        shade = rng.uniform(0.5, 1.15)
        draw.ellipse((x - size, y - size, x + size, y + size), fill=_darker((78, 108, 52), float(shade)))


def _railing(draw, rng, w, h):
    colour = _grey(rng, 70, 200)
    for x in np.linspace(4, w - 8, 12):
        draw.rectangle((x, h * 0.04, x + 7, h), fill=colour)
    for y in (0.02, 0.82):
        draw.rectangle((0, h * y, w, h * y + 12), fill=_darker(colour, 1.15))


def _bench(draw, rng, w, h):
    colour = _darker((148, 104, 66), float(rng.uniform(0.6, 1.2)))
    for y in (0.02, 0.2, 0.5):
        draw.rectangle((0, h * y, w, h * (y + 0.12)), fill=colour)
    for x in (0.1, 0.86):
        draw.rectangle((w * x, 0, w * x + 10, h), fill=(48, 48, 50))


def _sign(draw, rng, w, h):
    draw.rounded_rectangle((0, 0, w, h * 0.9), 8, fill=_paint(rng), outline=(60, 60, 60), width=5)
    for y in (0.15, 0.3, 0.42, 0.54, 0.66):
        draw.rectangle((w * 0.15, h * y, w * rng.uniform(0.45, 0.85), h * (y + 0.06)), fill=_paint(rng))
    for x in (0.12, 0.8):
        draw.rectangle((w * x, h * 0.88, w * x + 8, h), fill=(60, 60, 60))


def _tree(draw, rng, w, h):
    colour = _darker((98, 78, 60), float(rng.uniform(0.7, 1.2)))
    draw.polygon(((w * 0.28, 0), (w * 0.7, 0), (w * 0.82, h * 0.9), (w, h), (0, h), (w * 0.2, h * 0.9)), fill=colour)
    for _ in range(50):
        x, y = rng.uniform(0.25, 0.7) * w, rng.uniform(0, 0.95) * h
        draw.line((x, y, x + rng.normal(0, 3), y + rng.uniform(20, 60)), fill=_darker(colour, 0.65), width=4)


_WALLS = {"shops": _shops, "brick": _brick, "hedge": _hedge, "posters": _posters, "glass": _glass}
_THINGS = {
    "pole": _pole,
    "bin": _bin,
    "bicycle": _bicycle,
    "car": _car,
    "bush": _bush,
    "railing": _railing,
    "bench": _bench,
    "sign": _sign,
    "tree": _tree,
}
