"""The tubes of an identity in a pose: its body, clothes and belongings as a camera sees them.

The body is built in its own frame (right, up, forward; in units of the person's height; the point between the feet at
the origin) and projected in parallel onto a plane that faces the camera. The geometry alone decides whether face, logo
or backpack are visible.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from han_tf.data.synthetic import surfaces
from han_tf.data.synthetic.drawing import OVAL, Surface, Tube, scaled
from han_tf.data.synthetic.identity import Identity

Point = tuple[float, float, float]


class Pose(NamedTuple):
    """A person's pose relative to the camera; angles in radians."""

    yaw: float  # 0 faces the camera, π/2 walks to the image's right, π shows the back
    pitch: float  # by which the camera looks down
    phase: float  # of the gait
    stride: float  # amplitude of the legs' swing; 0 stands still
    arms: tuple[str, str]  # left and right: keys of ARMS


ARMS = {"swing": 7, "pocket": 2, "phone": 2}
"""Poses of an arm and their relative frequencies."""

_HELD = {"pocket": (-0.35, 0.75, 0.25), "phone": (0.25, 2.0, 0.35)}
# Swing of the upper arm, bend of the elbow and inward turn of the forearm, in radians.

_HEMS = {"t-shirt": 0.02, "shirt": -0.01, "jacket": 0.01, "coat": -0.2, "dress": -0.23}
_SHOULDER = 0.335
# Lower end of each top and upper end of all, above the hip.


def figure(identity: Identity, pose: Pose) -> list[Tube]:
    """Returns the tubes of ``identity`` in ``pose``; the point between the feet is at (0, 0)."""
    return _Figure(identity, pose).tubes


class _Figure:
    """Collects the tubes; legs first, since they determine the height of the hip, on which the trunk rests."""

    def __init__(self, who: Identity, pose: Pose):
        self.who, self.pose = who, pose
        self.tubes: list[Tube] = []
        self.chest = 0.108 * (0.8 + 0.2 * who.girth)
        self._legs()
        self._trunk()
        self._arms()
        self._head()

    def toward(self, right: float, forward: float) -> float:
        """Returns how far a body point lies towards the camera."""
        return right * math.sin(self.pose.yaw) + forward * math.cos(self.pose.yaw)

    def project(self, point: Point) -> tuple[float, float]:
        """Returns the image point (x, y) of a body point, in metres."""
        right, up, forward = point
        x = forward * math.sin(self.pose.yaw) - right * math.cos(self.pose.yaw)
        y = up * math.cos(self.pose.pitch) - self.toward(right, forward) * math.sin(self.pose.pitch)
        return self.who.height * x, self.who.height * y

    def tube(
        self, start: Point, end: Point, widths: Sequence[float], surface: Surface, depth: float,
        *, spread: float = 1.0, flat: float = 1.0, **options: float,
    ) -> None:  # fmt: skip
        """Adds a tube between two body points.

        ``depth`` is added to how near it is, which counts ``spread`` times. The cross-section is ``flat`` times as deep
        as wide.
        """
        cosine, sine = math.cos(self.pose.yaw), flat * math.sin(self.pose.yaw)
        seen = math.hypot(cosine, sine)
        depth += spread * self.toward((start[0] + end[0]) / 2, (start[2] + end[2]) / 2)
        widths = [self.who.height * seen * width for width in widths]
        facing = cosine / seen, sine / seen
        self.tubes.append(Tube(self.project(start), self.project(end), widths, surface, depth, facing, **options))

    def limb(
        self, joints: Sequence[Point], widths: Sequence[float], covered: float, cloth: Sequence[Surface], depth: float,
        **options: float,
    ) -> None:  # fmt: skip
        """Adds an arm or a leg of an upper and a lower part, of which the upper share ``covered`` is in ``cloth``."""
        for part in (1, 0):
            upper, lower, wide, narrow = *joints[part : part + 2], *widths[part : part + 2]
            share = min(max(2 * covered - part, 0.0), 1.0)
            if share < 1:
                self.tube(lower, upper, (narrow, wide), self.who.skin, depth, **options)
            if share > 0:
                hem = (wide + share * (narrow - wide)) * (1.25 if share < 1 else 1.1)
                end, depth = _between(upper, lower, share), depth + 0.003
                self.tube(end, upper, (hem, 1.1 * wide), cloth[part], depth, ends=0.4, folds=0.1, **options)

    def _legs(self) -> None:
        who, stride = self.who, self.pose.stride
        legs = []
        for side in (-1, 1):
            phase = self.pose.phase + (math.pi if side > 0 else 0.0)
            swing = stride * math.sin(phase) + 0.03
            shin = swing - 0.12 * stride - 1.5 * stride * max(0.0, math.cos(phase)) ** 2
            knee = -0.245 * math.cos(swing), 0.245 * math.sin(swing)
            legs.append((side, shin, knee, (knee[0] - 0.225 * math.cos(shin), knee[1] + 0.225 * math.sin(shin))))
        self.hip = 0.04 - min(ankle[0] for *_, ankle in legs)
        self.step = max(abs(knee[1]) for _, _, knee, _ in legs)
        skirted = who.top == "dress" or who.bottom == "skirt"
        covered = 0.0 if skirted else 0.45 if who.bottom == "shorts" else 1.0
        widths = [who.girth * width for width in (0.053, 0.039, 0.028 if covered == 1 else 0.022)]
        # Legs lie in a thin layer behind the trunk: in mid-stride a thigh may be nearer than the coat that covers it.
        layer = {"depth": -0.06, "spread": 0.15}
        for side, shin, knee, ankle in legs:
            right, drop = 0.052 * side * who.girth, min(max(-0.6 * shin, 0.0), 0.7)
            joints = [(right, self.hip + up, forward) for up, forward in ((0.0, 0.0), knee, ankle)]
            heel = right, joints[2][1] - 0.018, ankle[1] - 0.022
            toe = right * 1.25, heel[1] - 0.08 * math.sin(drop), heel[2] + 0.13 * math.cos(drop)
            self.tube(heel, toe, (0.023, 0.017), who.shoes, **layer)
            self.limb(joints, widths, covered, [who.bottom_colour] * 2, **layer)

    def _trunk(self) -> None:
        who, hem, (kind, colour) = self.who, _HEMS[self.who.top], self.who.bag
        flat = 0.62 * (0.7 + 0.3 * who.girth)
        if who.top != "dress":
            self._wrap(-0.25 if who.bottom == "skirt" else -0.04, 0.08, who.bottom_colour, 0.01, flat)
        cloth = surfaces.garment(who, self.chest * who.height, (_SHOULDER - hem) * who.height)
        self._wrap(hem, _SHOULDER, cloth, 0.02, flat)
        if kind == "backpack":
            top, back, widths = self.hip + _SHOULDER - 0.05, -0.95 * flat * self.chest - 0.035, (0.085, 0.096, 0.074)
            ends = (0, top - 0.25, back), (0, top, back)
            self.tube(*ends, widths, surfaces.bag(colour), 0.0, flat=0.62, ends=0.35, folds=0.08)
        elif kind == "satchel":
            ends = [(1.02 * self.chest, self.hip + up, -0.03) for up in (-0.04, 0.1)]
            self.tube(*ends, (0.031, 0.03), surfaces.bag(colour), 0.06, flat=2.7, ends=0.2)

    def _wrap(self, low: float, high: float, surface: Surface, depth: float, flat: float) -> None:
        """Adds what is around the trunk between two heights above the hip."""
        hip = 0.096 * (0.35 + 0.65 * self.who.girth)
        heights = (-0.25, 0.0, 0.1, 0.18, 0.25, 0.30, 0.322, _SHOULDER)
        chest = [self.chest * share for share in (0.93, 1.02, 0.99, 0.78, 0.42)]
        outline = [math.hypot(1.3 * hip, 0.7 * self.step), hip * 1.06, hip * 0.98, *chest]
        widths = np.interp(np.linspace(low, high, 24), heights, outline).tolist()
        ends = (0, self.hip + low, 0.2 * self.step if low < -0.1 else 0.0), (0, self.hip + high, 0)
        self.tube(*ends, widths, surface, depth, flat=flat, ends=0.3, folds=0.12)

    def _arms(self) -> None:
        who = self.who
        short, padded = who.top in ("t-shirt", "dress"), who.top in ("coat", "jacket")
        thickness = (0.75 + 0.25 * who.girth) * (1.15 if padded else 1.0)
        sleeves = [surfaces.fabric(who, 0.05, 0.28, 0.28 * part) for part in (0, 1)]
        if who.top_pattern.kind == "logo":
            sleeves = [who.top_colour] * 2
        for side, action in zip((-1, 1), self.pose.arms):
            walk, holds = math.sin(self.pose.phase + (math.pi if side < 0 else 0.0)), who.bag.kind if side < 0 else ""
            swing, bend, inward = 0.75 * self.pose.stride * walk, 0.18 + 0.25 * self.pose.stride * (1 + walk), 0.0
            if action in _HELD and holds != "handbag":
                swing, bend, inward = _HELD[action]
            spread = 0.3 if action == "pocket" else 0.1 + 0.06 * who.girth
            shoulder = right, up, _ = 0.9 * side * self.chest, self.hip + _SHOULDER - 0.05, 0.0
            right += 0.165 * side * math.sin(spread)
            elbow = right, up - 0.165 * math.cos(swing) * math.cos(spread), 0.165 * math.sin(swing)
            right += 0.145 * side * (0.3 * math.sin(spread) - math.sin(inward))
            bent = swing + bend
            wrist = right, elbow[1] - 0.145 * math.cos(bent), elbow[2] + 0.145 * math.sin(bent)
            # The nearer arm is painted over the trunk, the farther one under it.
            depth = 0.03 if self.toward(side, 0.0) >= -0.3 else -0.03
            hand = right, up, forward = _between(elbow, wrist, 1.22)
            self.tube(wrist, hand, (0.018, 0.016), who.skin, depth + 0.012)
            widths = [thickness * width for width in (0.032, 0.027, 0.02)]
            self.limb((shoulder, elbow, wrist), widths, 0.32 if short else 1.0, sleeves, depth)
            if holds == "handbag":
                ends = (right, up - 0.18, forward), (right, up - 0.05, forward)
                self.tube(ends[1], hand, (0.02, 0.006), scaled(who.bag.colour, 0.8), 0.05)
                self.tube(*ends, (0.03, 0.026), surfaces.bag(who.bag.colour), 0.06, flat=3.0, ends=0.2)

    def _head(self) -> None:
        who, neck, near = self.who, self.hip + _SHOULDER, math.cos(self.pose.yaw)  # near is the face, or negative
        skull = [0.048 * width for width in OVAL]
        self.tube((0, neck - 0.03, 0), (0, neck + 0.07, 0.01), (0.034, 0.029), scaled(who.skin, 0.82), 0.015)
        self.tube((0, neck + 0.018, 0.018), (0, neck + 0.154, 0.018), skull, surfaces.head(who), 0.05, flat=1.16)
        if near > -0.2:
            self.tube((0, neck + 0.073, 0.07), (0, neck + 0.088, 0.064), (0.008, 0.005), who.skin, 0.05)
        depth = 0.09 if near < 0 else -0.02
        if who.hair.kind == "long":
            ends = (0, neck - 0.07, -0.012), (0, neck + 0.118, -0.012)
            self.tube(*ends, (0.043, 0.054, 0.05), who.hair.colour, depth, ends=0.4, folds=0.22)
        elif who.hair.kind == "ponytail":
            ends = (0, neck - 0.03, -0.072), (0, neck + 0.108, -0.037)
            self.tube(*ends, (0.012, 0.022, 0.016), who.hair.colour, depth, folds=0.22)
        if who.hat.kind != "none":
            ends = (0, neck + 0.108, 0.018), (0, neck + 0.14, 0.018)
            self.tube(*ends, (0.054, 0.047), who.hat.colour, 0.06, ends=0.4)
        if who.hat.kind == "cap":
            ends, widths = ((0, neck + 0.116, 0.068), (0, neck + 0.108, 0.128)), (0.03 * abs(near) + 0.012, 0.01)
            self.tube(*ends, widths, scaled(who.hat.colour, 0.8), 0.03, ends=0.3)


def _between(start: Point, end: Point, share: float) -> Point:
    right, up, forward = (a + share * (b - a) for a, b in zip(start, end))
    return right, up, forward
