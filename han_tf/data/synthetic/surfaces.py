"""The surfaces of people: patterned fabrics, the upper garment, the head and bags."""

import numpy as np

from han_tf.data.synthetic.drawing import Colour, Patch, Surface, mix, scaled
from han_tf.data.synthetic.identity import Identity


def _wave(position: np.ndarray) -> np.ndarray:
    """Returns a square wave of period 1 with softened edges."""
    return ((np.abs(position % 1 - 0.5) - 0.25) * 12 + 0.5).clip(0, 1)


def _inside(distance: np.ndarray) -> np.ndarray:
    """Returns 1 inside (positive metres), 0 outside, with a centimetre of softness."""
    return (distance * 100 + 0.5).clip(0, 1)


# Share of the second colour at x metres around the body and y metres below the shoulder; place varies, in [0, 1].
_PATTERNS = {
    "plain": lambda x, y, place: 0 * y,
    "hoops": lambda x, y, place: _wave(y / 0.085),
    "pinstripes": lambda x, y, place: _wave(x / 0.075),
    "checks": lambda x, y, place: (_wave(x / 0.1) + _wave(y / 0.1)) / 2,
    "diamonds": lambda x, y, place: _inside(0.038 - np.abs(x % 0.1 - 0.05) - np.abs(y % 0.1 - 0.05)),
    "band": lambda x, y, place: _inside(0.09 - np.abs(y - 0.2 - 0.15 * place)),
    "blocks": lambda x, y, place: _inside(y - 0.2 - 0.15 * place),
    "logo": lambda x, y, place: _inside(0.09 - np.maximum(np.abs(x), np.abs(y - 0.2) * (0.7 + 1.3 * place))),
}

# Half the width at the top and its decrease per metre of what shows at the neck.
_NECKS = {"t-shirt": (0.07, 1.2), "dress": (0.08, 0.6), "shirt": (0.06, 0.7), "coat": (0.07, 0.4), "jacket": (0.1, 0.1)}


def fabric(who: Identity, half: float, length: float, below: float = 0.0) -> Surface:
    """Returns the fabric of the top on a tube that begins ``below`` the shoulder; half width and length in metres."""
    kind, colour, scale, place = who.top_pattern

    def surface(patch: Patch) -> np.ndarray:
        x = half * np.arctan2(patch.side, patch.front, dtype=np.float64)
        y = below + length * (1 - patch.along)
        return mix(who.top_colour, colour, _PATTERNS[kind](x / scale, y / scale, place))

    return surface


def garment(who: Identity, half: float, length: float) -> Surface:
    """Returns the top on the trunk, with its neckline and bag straps."""
    cloth, (open_width, taper) = fabric(who, half, length), _NECKS[who.top]
    shown = who.skin if who.top in ("t-shirt", "dress") else who.inner_colour

    def surface(patch: Patch) -> np.ndarray:
        x, down = half * np.abs(patch.side), length * (1 - patch.along)
        rgb = mix(cloth(patch), shown, (patch.front > 0) & (x < open_width - taper * down))
        if who.bag.kind == "backpack":
            straps = (np.abs(x - 0.62 * half) < 0.027) & (patch.front > 0.1) & (down < 0.33)
            rgb = mix(rgb, who.bag.colour, straps)
        elif who.bag.kind == "satchel":
            rgb = mix(rgb, who.bag.colour, np.abs(patch.side * np.sign(patch.front) + 3.4 * (0.3 - down)) < 0.18)
        return rgb

    return surface


def head(who: Identity) -> Surface:
    """Returns the face, and the hair or the hat on the skull."""

    def surface(patch: Patch) -> np.ndarray:
        front, side, up = patch.front, np.abs(patch.side), patch.along
        rgb = mix(who.skin, scaled(who.skin, 0.6), (front > 0.55) & (np.abs(up - 0.53) < 0.05) & (side > 0.12))
        rgb = mix(rgb, scaled(who.skin, 0.65), (front > 0.85) & (np.abs(up - 0.22) < 0.03))
        if who.hair.kind != "bald":
            rgb = mix(rgb, who.hair.colour, up > np.where(front > 0.5, 0.76, np.where(front > -0.1, 0.4, 0.2)))
        if who.hat.kind != "none":
            rgb = mix(rgb, who.hat.colour, up > np.where(front > 0.2, 0.7, 0.5))
        return rgb

    return surface


def bag(colour: Colour) -> Surface:
    """Returns the surface of a bag with a lid."""
    return lambda patch: mix(colour, scaled(colour, 0.6), np.abs(patch.along - 0.7) < 0.03)
