"""The identity of a pedestrian: the attributes that are the same in all of its images.

Colours are continuous, so the number of identities is unbounded. A look-alike is an identity that differs from its
partner in one attribute only.
"""

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Optional

import numpy as np

from han_tf.data.synthetic.drawing import Colour

FIRST_TRAIN_PID, FIRST_TEST_PID = 1, 5001
"""First training and first test pid; fixed, so that test pids do not depend on the number of training people."""


class Style(NamedTuple):
    """A kind of hair, hat or bag in a colour. Kind ``none`` is drawn as nothing."""

    kind: str
    colour: Colour


class Pattern(NamedTuple):
    """The pattern of a fabric."""

    kind: str
    colour: Colour  # the second one
    scale: float  # 1 is usual
    place: float  # in [0, 1]


class Identity(NamedTuple):
    """One person; ``height`` in metres, ``girth`` relative to an average person."""

    height: float
    girth: float
    skin: Colour
    hair: Style
    hat: Style
    top: str
    top_colour: Colour
    top_pattern: Pattern
    inner_colour: Colour
    bottom: str
    bottom_colour: Colour
    shoes: Colour
    bag: Style


# Kinds and their relative frequencies. A jacket is open and shows the inner colour.
TOPS = {"t-shirt": 5, "shirt": 4, "jacket": 4, "coat": 2, "dress": 2}
BOTTOMS = {"trousers": 8, "shorts": 4, "skirt": 2}
HAIRS = {"short": 6, "bald": 1, "long": 5, "ponytail": 2}
HATS = {"none": 4, "cap": 2, "beanie": 2}
BAGS = {"none": 3, "backpack": 4, "satchel": 3, "handbag": 3}
PATTERNS = {"plain": 3, "hoops": 3, "pinstripes": 2, "checks": 3, "diamonds": 2, "band": 3, "blocks": 3, "logo": 3}

LOOK_ALIKE_ATTRIBUTES = ("top_pattern", "bag", "top_colour", "bottom_colour", "hat")
"""The attributes in which look-alikes differ, one at a time."""

LOOK_ALIKE_SHARE = 0.3
"""Share of the identities of each half (train, test) that have a look-alike in the same half."""

_SKINS = ((0.93, 0.76, 0.65), (0.86, 0.67, 0.53), (0.72, 0.52, 0.38), (0.50, 0.34, 0.24), (0.33, 0.22, 0.16))
_HAIRS = ((0.07, 0.06, 0.06), (0.22, 0.14, 0.09), (0.36, 0.23, 0.13), (0.62, 0.47, 0.28), (0.62, 0.61, 0.60))
_GREYS = ((0.07, 0.07, 0.08), (0.42, 0.42, 0.43), (0.68, 0.68, 0.67), (0.90, 0.90, 0.88))
_MUTED = (*_GREYS, (0.10, 0.13, 0.26), (0.20, 0.27, 0.42), (0.33, 0.42, 0.57), (0.70, 0.61, 0.47))


def choose(rng: np.random.Generator, weights: dict[str, int]) -> str:
    """Returns a key of ``weights`` with a probability in proportion to its value."""
    kinds = [kind for kind, weight in weights.items() for _ in range(weight)]
    return kinds[int(rng.integers(len(kinds)))]


def alike(first: Colour, second: Colour) -> bool:
    """Returns whether two colours may be mistaken for each other."""
    return math.dist(first, second) < 0.42


def _near(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    colour = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.9, 1.1) + rng.normal(0, 0.02, 3)
    red, green, blue = colour.clip(0.03, 0.96).round(4).tolist()
    return red, green, blue


def _cloth(rng: np.random.Generator, muted: float, ground: Optional[Colour] = None) -> Colour:
    """Returns a colour, with probability ``muted`` one of a few, that clearly differs from that of the ``ground``."""
    while True:
        bright = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.38, 0.9), rng.uniform(0.3, 0.92))
        colour = _near(rng, _MUTED if rng.random() < muted else [bright])
        if ground is None or not alike(colour, ground):
            return colour


def draw_identity(rng: np.random.Generator) -> Identity:
    """Returns a random person."""
    top_colour = _cloth(rng, 0.3)
    return Identity(
        height=min(max(rng.normal(1.71, 0.1), 1.48), 1.98),
        girth=min(max(rng.normal(1.0, 0.13), 0.78), 1.4),
        skin=_near(rng, _SKINS),
        hair=Style(choose(rng, HAIRS), _near(rng, _HAIRS)),
        hat=Style(choose(rng, HATS), _cloth(rng, 0.4)),
        top=choose(rng, TOPS),
        top_colour=top_colour,
        top_pattern=Pattern(
            choose(rng, PATTERNS), _cloth(rng, 0.4, top_colour), scale=rng.uniform(0.7, 1.4), place=rng.random()
        ),
        inner_colour=_cloth(rng, 0.5, top_colour),
        bottom=choose(rng, BOTTOMS),
        bottom_colour=_cloth(rng, 0.5),
        shoes=_cloth(rng, 0.5),
        bag=Style(choose(rng, BAGS), _cloth(rng, 0.4)),
    )


def draw_look_alike(partner: Identity, rng: np.random.Generator) -> Identity:
    """Returns a person who clearly differs from ``partner`` in one of :data:`LOOK_ALIKE_ATTRIBUTES`."""
    while True:
        attribute = LOOK_ALIKE_ATTRIBUTES[rng.integers(len(LOOK_ALIKE_ATTRIBUTES))]
        old, new = getattr(partner, attribute), getattr(draw_identity(rng), attribute)
        if attribute.endswith("colour"):
            colour, clear = new, not alike(old, new) and (attribute, partner.top) != ("bottom_colour", "dress")
        else:  # a logo is not seen from behind
            colour, clear = new.colour, new.kind not in (old.kind, "none", "logo") and not alike(old.colour, new.colour)
        if clear and not alike(partner.top_colour, colour):
            return partner._replace(**{attribute: new})


def is_look_alike(rank: int) -> bool:
    """Returns whether the ``rank``-th identity (0-based) of a half is a look-alike of the one before it."""
    # A pair has one look-alike, so that half of LOOK_ALIKE_SHARE, evenly spread, are look-alikes.
    step = LOOK_ALIKE_SHARE / 2
    return int((rank + 1) * step) > int(rank * step)


@lru_cache(maxsize=4096)
def identity_of(seed: int, pid: int) -> Identity:
    """Returns the person ``pid``, whose look-alike, if there is one, has the next pid."""
    rng = np.random.default_rng((seed, 1, pid))
    if is_look_alike(pid - (FIRST_TEST_PID if pid >= FIRST_TEST_PID else FIRST_TRAIN_PID)):
        return draw_look_alike(identity_of(seed, pid - 1), rng)
    return draw_identity(rng)
