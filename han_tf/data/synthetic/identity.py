"""The identity of a pedestrian: the attributes that are the same in all of its images.

Colours are continuous RGB triples in [0, 1], so the number of identities is unbounded. A look-alike
is an identity that differs from its partner in one attribute only.
"""

import colorsys
from functools import lru_cache
from typing import NamedTuple

import numpy as np

Colour = tuple[float, float, float]


class Build(NamedTuple):
    """Body shape: ``height`` in metres; ``girth`` and ``shoulders`` relative to an average person."""

    height: float
    girth: float
    shoulders: float


class Style(NamedTuple):
    """A kind of thing in a colour: hair, hat, shoes or bag. Kind ``none`` is drawn as nothing."""

    kind: str
    colour: Colour


class Pattern(NamedTuple):
    """The pattern of a fabric: ``kind``, second ``colour``, relative ``scale`` and ``place`` in [0, 1]."""

    kind: str
    colour: Colour
    scale: float
    place: float


class Identity(NamedTuple):
    """The attributes of one person. A look-alike differs from its partner in exactly one of them."""

    build: Build
    skin: Colour
    hair: Style
    hat: Style
    top: str
    top_colour: Colour
    top_pattern: Pattern
    inner_colour: Colour
    bottom: str
    bottom_colour: Colour
    shoes: Style
    bag: Style


TOPS = {"t-shirt": 4, "shirt": 3, "hoodie": 2, "jacket": 4, "coat": 2, "vest": 1, "dress": 2}
"""Cuts of the upper garment and their relative frequencies. A jacket is open and shows the inner colour."""

BOTTOMS = {"trousers": 6, "leggings": 3, "shorts": 3, "skirt": 2}
HAIR_STYLES = {"short": 6, "cropped": 1, "bald": 1, "bob": 2, "long": 3, "ponytail": 2, "bun": 1, "afro": 1}
HATS = {"none": 10, "cap": 3, "beanie": 2, "sun hat": 1}
BAGS = {"none": 4, "backpack": 5, "satchel": 3, "handbag": 2, "carrier": 2, "trolley": 1}
SHOES = {"trainers": 3, "shoes": 3, "boots": 1}
ALL_ROUND_PATTERNS = {
    "plain": 4,
    "hoops": 3,
    "pinstripes": 2,
    "checks": 3,
    "dots": 2,
    "band": 2,
    "blocks": 3,
    "raglan": 2,
    "sash": 1,
}
"""Patterns that are visible from every side."""

PATTERNS = {**ALL_ROUND_PATTERNS, "logo": 3, "number": 1}
"""All patterns; a logo is on the chest and a number on the back."""

LOOK_ALIKE_ATTRIBUTES = ("top_pattern", "bag", "top_colour", "bottom_colour", "hat")
"""The attributes in which look-alikes differ, one at a time."""

LOOK_ALIKE_SHARE = 0.3
"""Share of the identities of each half (train, test) that have a look-alike in the same half."""

_SKINS = ((0.93, 0.76, 0.65), (0.86, 0.67, 0.53), (0.72, 0.52, 0.38), (0.50, 0.34, 0.24), (0.33, 0.22, 0.16))
_HAIRS = (
    (0.06, 0.05, 0.05),
    (0.10, 0.08, 0.07),
    (0.22, 0.14, 0.09),
    (0.36, 0.23, 0.13),
    (0.62, 0.47, 0.28),
    (0.50, 0.22, 0.12),
    (0.62, 0.61, 0.60),
)
_NEUTRALS = (
    (0.07, 0.07, 0.08),
    (0.16, 0.16, 0.18),
    (0.42, 0.42, 0.43),
    (0.68, 0.68, 0.67),
    (0.90, 0.90, 0.88),
    (0.10, 0.13, 0.26),
    (0.70, 0.61, 0.47),
    (0.36, 0.27, 0.20),
)
_DENIMS = ((0.20, 0.27, 0.42), (0.33, 0.42, 0.57), (0.12, 0.15, 0.24), (0.52, 0.60, 0.70))


def choose(rng: np.random.Generator, weights: dict[str, int]) -> str:
    """Returns a key of ``weights`` with a probability in proportion to its value."""
    kinds = list(weights)
    cumulative = np.cumsum([weights[kind] for kind in kinds])
    return kinds[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]


def contrast(first: Colour, second: Colour) -> float:
    """Returns the distance between two colours in [0, √3]."""
    return float(np.linalg.norm(np.subtract(first, second)))


def _near(rng: np.random.Generator, colours: tuple[Colour, ...], spread: float) -> Colour:
    colour = np.asarray(colours[rng.integers(len(colours))])
    return _colour(colour * rng.uniform(1 - 2 * spread, 1 + 2 * spread) + rng.normal(0, spread / 2, 3))


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = np.clip(values, 0.03, 0.96).round(4).tolist()
    return red, green, blue


def _fabric(rng: np.random.Generator, neutral: float) -> Colour:
    if rng.random() < neutral:
        return _near(rng, _NEUTRALS, 0.05)
    hsv = rng.random(), rng.uniform(0.38, 0.9), rng.uniform(0.3, 0.92)
    return _colour(np.asarray(colorsys.hsv_to_rgb(*hsv)))


def _trousers(rng: np.random.Generator) -> Colour:
    return _near(rng, _DENIMS, 0.08) if rng.random() < 0.35 else _fabric(rng, 0.5)


def _unlike(rng: np.random.Generator, others: tuple[Colour, ...], neutral: float, least: float) -> Colour:
    """Returns a fabric colour that is at least ``least`` away from all ``others``."""
    while True:
        colour = _fabric(rng, neutral)
        if min(contrast(colour, other) for other in others) >= least:
            return colour


def _pattern(rng: np.random.Generator, ground: Colour, kinds: dict[str, int]) -> Pattern:
    return Pattern(
        choose(rng, kinds),
        _unlike(rng, (ground,), 0.4, 0.45),
        float(rng.uniform(0.7, 1.4)),
        float(rng.random()),
    )


def draw_identity(rng: np.random.Generator) -> Identity:
    """Returns a random person."""
    top_colour = _fabric(rng, 0.3)
    return Identity(
        build=Build(
            float(np.clip(rng.normal(1.71, 0.1), 1.48, 1.98)),
            float(np.clip(rng.normal(1.0, 0.13), 0.78, 1.4)),
            float(np.clip(rng.normal(1.0, 0.06), 0.86, 1.14)),
        ),
        skin=_near(rng, _SKINS, 0.03),
        hair=Style(choose(rng, HAIR_STYLES), _near(rng, _HAIRS, 0.04)),
        hat=Style(choose(rng, HATS), _fabric(rng, 0.4)),
        top=choose(rng, TOPS),
        top_colour=top_colour,
        top_pattern=_pattern(rng, top_colour, PATTERNS),
        inner_colour=_unlike(rng, (top_colour,), 0.5, 0.35),
        bottom=choose(rng, BOTTOMS),
        bottom_colour=_trousers(rng),
        shoes=Style(choose(rng, SHOES), _fabric(rng, 0.7)),
        bag=Style(choose(rng, BAGS), _fabric(rng, 0.4)),
    )


def draw_look_alike(partner: Identity, rng: np.random.Generator) -> Identity:
    """Returns a person who differs from ``partner`` in one of :data:`LOOK_ALIKE_ATTRIBUTES`."""
    attributes = [a for a in LOOK_ALIKE_ATTRIBUTES if not (a == "bottom_colour" and partner.top == "dress")]
    attribute = attributes[rng.integers(len(attributes))]
    if attribute == "top_pattern":
        kinds = {k: w for k, w in ALL_ROUND_PATTERNS.items() if k != partner.top_pattern.kind}
        value = _pattern(rng, partner.top_colour, kinds)
    elif attribute == "bag":
        value = _other_style(rng, partner.bag, BAGS)
    elif attribute == "hat":
        value = _other_style(rng, partner.hat, HATS)
    elif attribute == "top_colour":
        value = _unlike(rng, (partner.top_colour, partner.top_pattern.colour), 0.4, 0.4)
    else:
        value = _unlike(rng, (partner.bottom_colour,), 0.5, 0.4)
    return partner._replace(**{attribute: value})


def _other_style(rng: np.random.Generator, style: Style, kinds: dict[str, int]) -> Style:
    """Returns another kind of hat or bag, or the same kind in a clearly different colour."""
    kind = choose(rng, {k: w for k, w in kinds.items() if k != "none" or style.kind != "none"})
    return Style(kind, _unlike(rng, (style.colour,), 0.4, 0.45))


def is_look_alike(rank: int) -> bool:
    """Returns whether the ``rank``-th identity (0-based) of a half is a look-alike of the one before it."""
    # A pair has one look-alike, so that half of LOOK_ALIKE_SHARE, evenly spread, are look-alikes.
    step = LOOK_ALIKE_SHARE / 2
    return int((rank + 1) * step) > int(rank * step)


@lru_cache(maxsize=4096)
def identity_of(seed: int, first_pid: int, pid: int) -> Identity:
    """Returns the person ``pid`` of the half whose pids start at ``first_pid``."""
    rng = np.random.default_rng((seed, 1, pid))
    if is_look_alike(pid - first_pid):
        return draw_look_alike(identity_of(seed, first_pid, pid - 1), rng)
    return draw_identity(rng)
