"""The shapes of an identity in a pose: its body, clothes and belongings as a camera sees them.

The body is built in its own frame (right, up, forward; metres; the ground point at the origin) and
projected in parallel onto a plane that faces the camera. The geometry alone decides whether face, logo or backpack
are visible.
"""

from typing import NamedTuple, Optional

import numpy as np

from han_tf.data.synthetic.drawing import Ellipsoid, Shape, Surface, Tube, plain
from han_tf.data.synthetic.identity import Colour, Identity, Pattern


class Pose(NamedTuple):
    """A person's pose relative to the camera.

    Attributes:
      yaw: 0 faces the camera, π/2 walks to the image's right, π shows the back; radians.
      pitch: angle by which the camera looks down, radians.
      phase: of the gait, radians.
      stride: amplitude of the legs' swing in radians; 0 stands still.
      arms: pose of the (left, right) arm: ``swing``, ``pocket``, ``phone`` or ``strap``.
      head: yaw of the head relative to the body, radians.
    """

    yaw: float
    pitch: float
    phase: float
    stride: float
    arms: tuple[str, str]
    head: float


ARMS = {"swing": 7, "pocket": 2, "phone": 1, "strap": 1}

# The depths of the legs are scaled into a thin layer behind the trunk: in mid-stride a thigh may be nearer than the
# coat that covers it.
_LEGS, _NARROW = -0.06, 0.15

_SOLE: Colour = (0.85, 0.85, 0.83)


def figure(identity: Identity, pose: Pose) -> list[Shape]:
    """Returns the shapes of ``identity`` in ``pose``; the point between the feet is at (0, 0)."""
    return _Figure(identity, pose).shapes()


class _Figure:
    """Collects the shapes; legs first, since they determine the height of the hip, on which the trunk rests."""

    def __init__(self, identity: Identity, pose: Pose):
        self.who = identity
        self.pose = pose
        self.h = identity.build.height
        self.girth = identity.build.girth
        self.cos_yaw, self.sin_yaw = np.cos(pose.yaw), np.sin(pose.yaw)
        self.cos_pitch, self.sin_pitch = np.cos(pose.pitch), np.sin(pose.pitch)
        self.shoulder_half = 0.108 * self.h * identity.build.shoulders * (0.8 + 0.2 * self.girth)
        self.out: list[Shape] = []

    def shapes(self) -> list[Shape]:
        self._legs()
        self._torso()
        self._arms()
        self._head()
        self._bag()
        return self.out

    # -- geometry ----------------------------------------------------------------------------------

    def at(self, right: float, up: float, forward: float) -> tuple[float, float]:
        """Returns the image point (x, y) of a body point."""
        x = forward * self.sin_yaw - right * self.cos_yaw
        return x, up * self.cos_pitch - self.toward(right, forward) * self.sin_pitch

    def toward(self, right: float, forward: float) -> float:
        """Returns how far a body point lies towards the camera."""
        return right * self.sin_yaw + forward * self.cos_yaw

    def turned(self, half_width: float, half_depth: float) -> tuple[float, float]:
        """Returns half the visible width and the mid azimuth of an elliptical cross-section."""
        a, b = half_width * self.cos_yaw, half_depth * self.sin_yaw
        return float(np.hypot(a, b)), float(np.arctan2(b, a))

    def tube(self, start, end, widths, surface: Surface, bias: float = 0.0, spread: float = 1.0, **options) -> None:
        """Adds a tube of round cross-section between two body points."""
        depth = (self.toward(start[0], start[2]) + self.toward(end[0], end[2])) / 2 * spread + bias
        options.setdefault("azimuth", self.pose.yaw)
        self.out.append(Tube(self.at(*start), self.at(*end), tuple(widths), surface, depth, **options))

    def trunk(self, bottom, top, widths, depth_ratio: float, surface, bias: float, **options) -> None:
        """Adds an upright tube of elliptical cross-section, ``depth_ratio`` as deep as wide."""
        factor, azimuth = self.turned(1.0, depth_ratio)
        widths = [w * factor for w in widths]
        self.tube(bottom, top, widths, surface, bias, azimuth=azimuth, **options)

    # -- legs --------------------------------------------------------------------------------------

    def _legs(self) -> None:
        h, who, stride = self.h, self.who, self.pose.stride
        thigh, shin = 0.245 * h, 0.225 * h
        joints = []
        for side in (-1, 1):
            phase = self.pose.phase + (0 if side < 0 else np.pi)
            swing = stride * np.sin(phase) + 0.03
            bend = 0.12 * stride + 1.5 * stride * max(0.0, np.cos(phase)) ** 1.5
            knee = (-thigh * np.cos(swing), thigh * np.sin(swing))
            ankle = (knee[0] - shin * np.cos(swing - bend), knee[1] + shin * np.sin(swing - bend))
            joints.append((side, knee, ankle, swing - bend))
        self.hip_up = 0.04 * h - min(ankle[0] for _, _, ankle, _ in joints)
        self.knee_span = max(abs(knee[1]) for _, knee, _, _ in joints)
        bare_thigh = who.top == "dress" or who.bottom == "skirt"
        bare_shin = bare_thigh or who.bottom == "shorts"
        skin = plain(who.skin)
        cloth = _trouser_surface(who.bottom_colour, who.bottom)
        slim = 0.82 if who.bottom == "leggings" or bare_thigh else 1.0
        boots = who.shoes.kind == "boots"
        for side, knee, ankle, tilt in joints:
            right = side * 0.052 * h * self.girth
            hip = (right, self.hip_up, 0.0)
            knee_at = (right * 0.95, self.hip_up + knee[0], knee[1])
            ankle_at = (right * 0.9, self.hip_up + ankle[0], ankle[1])
            g = self.girth * slim
            upper, middle, lower = 0.053 * h * g, 0.039 * h * g, (0.030 if slim == 1.0 else 0.021) * h * g
            calf = skin if bare_shin else cloth
            folds = 0.0 if bare_shin else 0.10
            if bare_shin:
                lower = 0.021 * h * g
            self._foot(ankle_at, tilt)
            self.tube(
                ankle_at,
                knee_at,
                (lower, (lower + middle) / 2 * 1.08, middle),
                calf,
                _LEGS,
                _NARROW,
                folds=folds,
                round_start=0.3,
            )
            if boots:
                shaft = _between(ankle_at, knee_at, 0.55)
                self.tube(
                    ankle_at, shaft, (lower * 1.2, middle * 1.08), plain(who.shoes.colour), _LEGS + 0.004, _NARROW
                )
            thigh_cloth = skin if bare_thigh else cloth
            self.tube(
                knee_at, hip, (middle, upper), thigh_cloth, _LEGS + 0.002, _NARROW, folds=0.0 if bare_thigh else 0.10
            )
            if bare_shin and not bare_thigh:
                hem = _between(hip, knee_at, 0.92)
                self.tube(
                    hem, hip, (middle * 1.35, upper * 1.02), cloth, _LEGS + 0.004, _NARROW, folds=0.1, round_start=0.15
                )

    def _foot(self, ankle, tilt: float) -> None:
        h, who = self.h, self.who
        right, up, forward = ankle
        length = 0.105 * h
        toe_drop = np.clip(-0.6 * tilt, 0.0, 0.7)
        splay = 0.12 * np.sign(right)
        toe = (
            right + splay * length,
            up - 0.022 * h - length * 0.75 * np.sin(toe_drop),
            forward + length * np.cos(toe_drop),
        )
        heel = (right, up - 0.012 * h, forward - 0.022 * h)
        sole = _SOLE if who.shoes.kind == "trainers" else tuple(0.5 * c for c in who.shoes.colour)
        low = 0.012 * h
        self.tube(
            (heel[0], heel[1] - low, heel[2]),
            (toe[0], toe[1] - low * 0.6, toe[2]),
            (0.017 * h, 0.015 * h),
            plain(sole),
            _LEGS,
            _NARROW,
        )
        self.tube(heel, toe, (0.022 * h, 0.016 * h), plain(who.shoes.colour), _LEGS + 0.003, _NARROW)

    # -- trunk -------------------------------------------------------------------------------------

    def _torso(self) -> None:
        h, who, g = self.h, self.who, self.girth
        hip_half, depth_ratio = 0.096 * h * (0.35 + 0.65 * g), 0.62 * (0.7 + 0.3 * g)
        if who.top != "dress":
            self.trunk(
                (0, self.hip_up - 0.035 * h, 0),
                (0, self.hip_up + 0.08 * h, 0),
                (hip_half * 0.86, hip_half, hip_half * 0.97),
                depth_ratio,
                _trouser_surface(who.bottom_colour, who.bottom),
                0.01,
                folds=0.1,
                round_start=0.35,
                round_end=0.1,
            )
        if who.bottom == "skirt" and who.top != "dress":
            self._skirt(self.hip_up + 0.05 * h, 0.30 * h, hip_half, plain(who.bottom_colour))
        hem = self.hip_up + {"coat": -0.14, "dress": -0.02, "jacket": 0.01, "shirt": -0.01}.get(who.top, 0.02) * h
        chest = self.shoulder_half
        puff = 1.1 if who.top in ("coat", "hoodie") else 1.05 if who.top == "jacket" else 1.0
        belly = hip_half * (0.94 if g < 1.1 else 1.08)
        self.torso_top = self.hip_up + 0.335 * h
        profile = np.interp(
            np.linspace(0, 1, 24),
            [0, 0.3, 0.55, 0.76, 0.9, 0.96, 1.0],
            [hip_half * 1.06, belly * 1.02, chest * 0.93, chest * 1.02, chest * 0.99, chest * 0.78, chest * 0.42],
        )
        length = self.torso_top - hem
        self.torso_depth = chest * puff * depth_ratio
        surface = self._garment(hem, length, chest * puff, depth_ratio)
        if who.top == "coat":
            self._skirt(hem + 0.16 * h, 0.16 * h, hip_half * 1.1, surface, flare=1.12, whole=(hem, length))
        self.trunk(
            (0, hem, 0),
            (0, self.torso_top, 0),
            profile * puff,
            depth_ratio,
            surface,
            0.02,
            folds=0.12,
            round_start=0.25,
            round_end=0.35,
        )
        if who.top == "dress":
            self._skirt(self.hip_up + 0.06 * h, 0.27 * h, hip_half, surface, whole=(hem, length))

    def _skirt(
        self,
        top: float,
        length: float,
        half: float,
        surface: Surface,
        flare: float = 1.35,
        whole: Optional[tuple[float, float]] = None,
    ) -> None:
        """Adds a skirt; with ``whole`` (hem, length) its fabric continues that of the garment above."""
        bottom = top - length
        span = np.hypot(flare * half, 0.7 * self.knee_span)

        def continued(azimuth: np.ndarray, place: np.ndarray) -> np.ndarray:
            return surface(azimuth, (bottom + place * length - whole[0]) / whole[1])

        self.trunk(
            (0, bottom, 0.2 * self.knee_span),
            (0, top, 0),
            (span, 0.5 * (span + half), half),
            0.75,
            continued if whole else surface,
            0.015,
            folds=0.12,
            round_start=0.15,
            round_end=0.2,
        )

    def _garment(self, hem: float, length: float, half: float, depth_ratio: float) -> Surface:
        """Returns the surface of the upper garment, with its opening, neckline and bag straps."""
        who = self.who
        fabric = _fabric_surface(who.top_colour, who.top_pattern, half, length, body=True)
        inner = np.asarray(who.inner_colour, np.float32)
        skin = np.asarray(who.skin, np.float32)
        strap = np.asarray(who.bag.colour, np.float32)
        worn = who.bag.kind

        def surface(azimuth: np.ndarray, place: np.ndarray) -> np.ndarray:
            rgb = np.broadcast_to(fabric(azimuth, place), (*place.shape, 3)).copy()
            x, front = half * np.sin(azimuth), np.cos(azimuth)
            if who.top == "jacket":
                gap = 0.028 + 0.05 * place
                _over(rgb, inner, (np.abs(x) < gap) & (front > 0))
                _over(rgb, skin, (np.abs(x) < 0.9 * (place - 0.9)) & (front > 0))
            elif who.top in ("coat", "shirt"):
                _over(rgb, rgb * 0.6, (np.abs(x) < 0.007) & (front > 0))
                _over(rgb, inner, (np.abs(x) < 0.5 * (place - 0.84)) & (front > 0))
            elif who.top == "hoodie":
                _over(rgb, rgb * 0.72, (np.abs(place - 0.93) < 0.05) & (front < 0.3))
                _over(rgb, rgb * 0.8, (np.abs(x) < 0.09) & (np.abs(place - 0.3) < 0.012) & (front > 0))
            else:
                depth = 0.62 if who.top in ("vest", "dress") else 0.85
                _over(rgb, skin, (np.abs(x) < 0.8 * (place - depth) - 0.05 * (1 - depth)) & (front > 0) & (place > 0.9))
            if worn == "backpack":
                _over(rgb, strap, (np.abs(np.abs(x) - 0.62 * half) < 0.026) & (front > 0.1) & (place > 0.42))
            elif worn == "satchel":
                slope = np.abs(x / half + 1.9 * (place - 0.5) * np.sign(front + 1e-6))
                _over(rgb, strap, slope < 0.16)
            return rgb

        return surface

    # -- arms --------------------------------------------------------------------------------------

    def _arms(self) -> None:
        h, who, g = self.h, self.who, 0.75 + 0.25 * self.girth
        skin = plain(who.skin)
        puff = 1.18 if who.top in ("coat", "hoodie", "jacket") else 1.0
        upper, lower = 0.165 * h, 0.145 * h
        up = self.torso_top - 0.05 * h
        self.hands = {}
        for side, action in zip((-1, 1), self.pose.arms):
            phase = self.pose.phase + (np.pi if side < 0 else 0)
            swing = 0.75 * self.pose.stride * np.sin(phase)
            bend = 0.18 + 0.5 * self.pose.stride * (1 + np.sin(phase)) / 2
            spread, inward = 0.10 + 0.06 * self.girth, 0.0
            if side < 0 and who.bag.kind in ("handbag", "carrier"):
                bend, swing = 0.1, 0.5 * swing
            elif side > 0 and who.bag.kind == "trolley":
                swing, bend = -0.5, 0.05
            elif action == "pocket":
                swing, bend, spread, inward = -0.35, 0.75, 0.3, 0.25
            elif action == "phone":
                swing, bend, inward = 0.25, 2.0, 0.35
            elif action == "strap":
                swing, bend, inward = 0.1, 2.3, 0.15
            shoulder = (side * self.shoulder_half * 0.9, up, 0.0)
            elbow = (
                shoulder[0] + side * upper * np.sin(spread),
                up - upper * np.cos(swing) * np.cos(spread),
                upper * np.sin(swing),
            )
            wrist = (
                elbow[0] + side * lower * (0.3 * np.sin(spread) - np.sin(inward)),
                elbow[1] - lower * np.cos(swing + bend),
                elbow[2] + lower * np.sin(swing + bend),
            )
            hand = _between(elbow, wrist, 1.22)
            self.hands[side] = hand
            thick, mid, thin = 0.031 * h * g, 0.026 * h * g, 0.018 * h * g
            # The nearer arm is painted over the torso, the farther one under it.
            bias = 0.03 if self.toward(side, 0) >= -0.3 else -0.03
            sleeve = self._sleeve(upper + lower, thick)
            self.tube(wrist, hand, (thin, thin * 0.9), skin, bias + 0.012)
            if who.top in ("t-shirt", "dress", "vest"):
                self.tube(wrist, elbow, (thin, mid * 1.03), skin, bias + 0.01)
                self.tube(elbow, shoulder, (mid, thick), skin, bias)
                if who.top != "vest":
                    cuff = _between(shoulder, elbow, 0.62)
                    self.tube(
                        cuff, shoulder, (thick * 1.2, thick * 1.15), sleeve, bias + 0.004, folds=0.1, round_start=0.1
                    )
            else:
                self.tube(
                    wrist,
                    elbow,
                    (thin * 1.25 * puff, mid * 1.15 * puff),
                    sleeve,
                    bias + 0.01,
                    folds=0.12,
                    round_start=0.15,
                )
                self.tube(elbow, shoulder, (mid * 1.15 * puff, thick * 1.1 * puff), sleeve, bias, folds=0.12)

    def _sleeve(self, length: float, half: float) -> Surface:
        pattern = self.who.top_pattern
        if pattern.kind == "raglan":
            return plain(pattern.colour)
        if pattern.kind in ("logo", "number", "sash"):
            return plain(self.who.top_colour)
        if pattern.kind in ("band", "blocks"):
            # On the sleeve the colours change at the same height as on the body.
            pattern = pattern._replace(place=0.2 + 0.6 * pattern.place)
        return _fabric_surface(self.who.top_colour, pattern, half, length / 2, body=False)

    # -- head --------------------------------------------------------------------------------------

    def _head(self) -> None:
        h, who = self.h, self.who
        skin, hair = np.asarray(who.skin, np.float32), np.asarray(who.hair.colour, np.float32)
        forward = 0.018 * h
        centre_up = self.torso_top + 0.086 * h
        half_w, half_h = 0.048 * h, 0.068 * h
        self.tube(
            (0, self.torso_top - 0.03 * h, 0.0),
            (0, centre_up - 0.02 * h, forward * 0.6),
            (0.034 * h, 0.029 * h),
            plain(tuple(0.82 * c for c in who.skin)),
            0.015,
        )
        style, hat = who.hair.kind, who.hat.kind
        covered = np.asarray(who.hat.colour, np.float32)

        def surface(azimuth: np.ndarray, place: np.ndarray) -> np.ndarray:
            rgb = np.broadcast_to(skin, (*place.shape, 3)).copy()
            front = np.cos(azimuth)
            side = np.sin(azimuth)
            _over(rgb, skin * 0.62, (front > 0.55) & (np.abs(place - 0.52) < 0.05) & (np.abs(side) > 0.12))
            _over(rgb, hair * 0.6 + skin * 0.25, (front > 0.5) & (np.abs(place - 0.60) < 0.025) & (np.abs(side) > 0.15))
            _over(rgb, skin * np.float32([0.78, 0.55, 0.55]), (front > 0.85) & (np.abs(place - 0.22) < 0.03))
            _over(rgb, skin * 0.85, (front > 0.97) & (place > 0.3) & (place < 0.5))
            if style != "bald":
                line = {"cropped": 0.3, "bob": 0.05, "long": 0.05, "afro": 0.15}.get(style, 0.2)
                edge = np.where(front > 0.45, 0.76, np.where(front > -0.1, 0.45, line))
                if style in ("bob", "long", "afro"):
                    edge = np.where(front > 0.55, 0.74, line)
                _over(rgb, hair, place > edge)
            if hat in ("cap", "beanie"):
                _over(rgb, covered, place > np.where(front > 0.2, 0.66, 0.52 if hat == "cap" else 0.42))
            return rgb

        turn = self.pose.yaw + self.pose.head
        centre = (0.0, centre_up, forward)
        nearest = self.toward(0, forward) + 0.05
        # From the side a head is deeper than wide.
        wide = half_w * (1 + 0.16 * np.sin(turn) ** 2)
        self.out.append(Ellipsoid(self.at(*centre), wide, half_h, surface, nearest, azimuth=turn))
        nose = _rotate(0.0, half_w * 1.08, self.pose.head)
        if np.cos(turn) > -0.2:
            self.tube(
                (nose[0], centre_up - 0.012 * h, forward + nose[1] * 0.95),
                (nose[0], centre_up + 0.008 * h, forward + nose[1] * 0.85),
                (0.008 * h, 0.005 * h),
                plain(tuple(0.97 * c for c in who.skin)),
                0.06,
            )
        self._hair(centre, wide, half_h, nearest)
        self._hat(centre, wide, half_h, nearest, turn)

    def _hair(self, centre, wide: float, high: float, nearest: float) -> None:
        h, style = self.h, self.who.hair.kind
        hair = plain(self.who.hair.colour)
        _, up, forward = centre
        back = _rotate(0.0, -0.62 * wide, self.pose.head)
        behind = (back[0], up, forward + back[1])
        depth = self.toward(behind[0], behind[2])
        if style == "afro" and self.who.hat.kind == "none":
            self.out.append(
                Ellipsoid(self.at(*_shift(behind, 0.018 * h)), wide * 1.5, high * 1.15, hair, nearest - 0.06, folds=0.3)
            )
        elif style in ("bob", "long"):
            length = 0.075 * h if style == "bob" else 0.19 * h
            self.tube(
                _shift(behind, -length),
                _shift(behind, 0.02 * h),
                (0.9 * wide, 1.12 * wide, 1.08 * wide),
                hair,
                0.09 if depth > 0 else -0.02,
                folds=0.22,
                round_start=0.4,
            )
        elif style == "ponytail":
            root = (back[0] * 1.5, up + 0.02 * h, forward + back[1] * 1.6)
            tip = (back[0] * 1.9, up - 0.13 * h, forward + back[1] * 2.0)
            self.tube(tip, root, (0.009 * h, 0.02 * h, 0.016 * h), hair, 0.06 if depth > -0.02 else -0.08, folds=0.2)
        elif style == "bun":
            root = (back[0] * 1.5, up + 0.055 * h, forward + back[1] * 1.2)
            bias = 0.06 if depth > 0 else -0.1
            self.out.append(Ellipsoid(self.at(*root), 0.027 * h, 0.025 * h, hair, nearest + bias, folds=0.2))

    def _hat(self, centre, wide: float, high: float, nearest: float, turn: float) -> None:
        kind, h = self.who.hat.kind, self.h
        if kind == "none":
            return
        colour = plain(self.who.hat.colour)
        _, up, forward = centre
        if kind == "beanie":
            crown = self.at(0, up + 0.45 * high, forward)
            self.out.append(Ellipsoid(crown, wide * 1.1, high * 0.75, colour, nearest + 0.015, folds=0.1))
            dark = plain(tuple(0.75 * c for c in self.who.hat.colour))
            rim = up + 0.16 * high
            self.tube(
                (0, rim, forward),
                (0, rim + 0.3 * high, forward),
                (wide * 1.12, wide * 1.14),
                dark,
                0.07,
                round_start=0.15,
                round_end=0.1,
            )
            return
        crown = self.at(0, up + 0.5 * high, forward)
        self.out.append(Ellipsoid(crown, wide * 1.08, high * 0.62, colour, nearest + 0.015))
        if kind == "cap":
            peak = _rotate(0.0, 1.0, self.pose.head)
            brim = 0.075 * h
            start = (peak[0] * wide * 0.7, up + 0.36 * high, forward + peak[1] * wide * 0.7)
            end = (peak[0] * (wide + brim) * 0.9, up + 0.26 * high, forward + peak[1] * (wide + brim) * 0.9)
            dark = plain(tuple(0.8 * c for c in self.who.hat.colour))
            half = wide * (0.35 + 0.5 * abs(np.cos(turn)))
            x, y = self.at(*_between(start, end, 0.5))
            flat = 0.012 * h + 0.5 * brim * abs(np.sin(self.pose.pitch)) + 0.004 * h
            reach = np.hypot(half * np.cos(turn), brim * 0.75 * np.sin(turn))
            self.out.append(Ellipsoid((x, y), reach, flat, dark, nearest + (0.02 if np.cos(turn) > -0.3 else -0.03)))
        else:
            x, y = self.at(0, up + 0.34 * high, forward)
            flat = 0.018 * h + wide * 1.9 * abs(self.sin_pitch) * 0.8
            self.out.append(Ellipsoid((x, y), wide * 2.0, flat, colour, nearest + 0.012))

    # -- belongings --------------------------------------------------------------------------------

    def _bag(self) -> None:
        kind, h = self.who.bag.kind, self.h
        colour = np.asarray(self.who.bag.colour, np.float32)
        if kind == "backpack":
            self._backpack(colour)
        elif kind == "satchel":
            side = 1
            right = side * self.shoulder_half * 1.02
            up = self.hip_up + 0.03 * h
            self._box((right, up - 0.07 * h, -0.03), 0.16 * h, 0.06 * h, 0.14 * h, colour, 0.06)
        elif kind in ("handbag", "carrier"):
            side = -1
            hand = self.hands[side]
            drop = 0.05 * h
            size = (0.17, 0.05, 0.12) if kind == "handbag" else (0.19, 0.08, 0.2)
            for shift in (-0.03, 0.03):
                self.tube(
                    (hand[0], hand[1] - drop * 1.3, hand[2] + shift),
                    (hand[0], hand[1], hand[2]),
                    (0.006, 0.006),
                    plain(tuple(0.8 * colour)),
                    0.05,
                )
            self._box(
                (hand[0], hand[1] - drop - size[2] * h, hand[2]),
                size[0] * h,
                size[1] * h,
                size[2] * h,
                colour,
                0.05,
                soft=kind == "carrier",
            )
        elif kind == "trolley":
            right, back = 0.14 * h, -0.26 * h
            self.tube(
                (right, 0.32 * h, back),
                (self.hands[1][0], self.hands[1][1], self.hands[1][2]),
                (0.009, 0.009),
                plain((0.3, 0.3, 0.32)),
                0.0,
            )
            self._box((right, 0.02 * h, back), 0.2 * h, 0.13 * h, 0.3 * h, colour, 0.0)

    def _backpack(self, colour: np.ndarray) -> None:
        h = self.h
        up = self.torso_top - 0.05 * h
        half, deep, high = 0.092 * h, 0.055 * h, 0.25 * h
        back = -self.torso_depth * 0.9 - deep * 0.6

        def surface(azimuth: np.ndarray, place: np.ndarray) -> np.ndarray:
            rgb = np.broadcast_to(colour, (*place.shape, 3)).copy()
            behind, x = np.cos(azimuth) < 0, np.abs(np.sin(azimuth))
            _over(rgb, colour * 0.72, behind & (place > 0.12) & (place < 0.46) & (x < 0.66))
            _over(rgb, colour * 0.45, behind & (np.abs(place - 0.47) < 0.012) & (x < 0.66))
            _over(rgb, colour * 0.5, np.abs(place - 0.74 - 0.08 * (1 - x)) < 0.012)
            return rgb

        self.trunk(
            (0, up - high, back),
            (0, up, back),
            (half * 0.95, half * 1.05, half, half * 0.8),
            0.62,
            surface,
            0.0,
            folds=0.08,
            round_start=0.25,
            round_end=0.45,
        )

    def _box(self, at, length: float, width: float, height: float, colour, bias: float, soft: bool = False) -> None:
        """Adds a bag that hangs with its long side along the walking direction."""

        def surface(azimuth: np.ndarray, place: np.ndarray) -> np.ndarray:
            rgb = np.broadcast_to(colour, (*place.shape, 3)).copy()
            if soft:
                _over(rgb, colour * 0.86, np.sin(9 * azimuth + 7 * place) > 0.6)
            else:
                _over(rgb, colour * 0.65, np.abs(place - 0.62) < 0.03)
            return rgb

        half, azimuth = self.turned(width / 2, length / 2)
        right, up, forward = at
        swell = (1.04, 1.08, 0.98) if not soft else (0.95, 1.12, 0.7)
        self.tube(
            at,
            (right, up + height, forward),
            [half * s for s in swell],
            surface,
            bias,
            azimuth=azimuth,
            folds=0.25 if soft else 0.05,
            round_start=0.2,
            round_end=0.2,
        )


def _between(start, end, share: float):
    return tuple(a + share * (b - a) for a, b in zip(start, end))


def _shift(point, up: float):
    return point[0], point[1] + up, point[2]


def _rotate(right: float, forward: float, yaw: float) -> tuple[float, float]:
    """Returns (right, forward) rotated by ``yaw``, in the same direction as a pose's yaw."""
    return right * np.cos(yaw) - forward * np.sin(yaw), right * np.sin(yaw) + forward * np.cos(yaw)


def _over(rgb: np.ndarray, colour: np.ndarray, where: np.ndarray) -> None:
    np.copyto(rgb, colour, where=where[..., None])


def _trouser_surface(colour: Colour, kind: str) -> Surface:
    base = np.asarray(colour, np.float32)
    if kind != "trousers":
        return plain(colour)
    # Worn cloth is paler on the thigh and the knee.
    return lambda azimuth, place: base * (1 + 0.12 * np.cos(azimuth) * (place - 0.2))[..., None].astype(np.float32)


def _fabric_surface(colour: Colour, pattern: Pattern, half: float, length: float, body: bool) -> Surface:
    """Returns a patterned fabric on a tube of half-width ``half`` and ``length`` metres.

    ``body`` is true for the trunk, false for a sleeve.
    """
    ground = np.asarray(colour, np.float32)
    figure_colour = np.asarray(pattern.colour, np.float32)
    kind, scale, place_of = pattern.kind, pattern.scale, pattern.place
    if kind == "plain" or (kind == "raglan" and body):
        return plain(colour)

    def share(azimuth: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Returns how much of the second colour shows, [h, w] in [0, 1]."""
        arc, high = half * azimuth, length * place
        if kind == "hoops":
            return _wave(high, 0.085 * scale, 0.5)
        if kind == "pinstripes":
            return _wave(arc, 0.075 * scale, 0.42)
        if kind == "checks":
            return 0.5 * _wave(high, 0.1 * scale, 0.5) + 0.5 * _wave(arc, 0.1 * scale, 0.5)
        if kind == "dots":
            step = 0.095 * scale
            row = np.floor(high / step)
            dx = (arc / step + 0.5 * (row % 2)) % 1 - 0.5
            dy = (high / step) % 1 - 0.5
            return np.clip((0.34 - np.hypot(dx, dy)) * 9, 0, 1)
        if kind == "band":
            return _edge(0.09 * scale - np.abs(high - length * (0.35 + 0.35 * place_of)))
        if kind == "blocks":
            return _edge(high - length * (0.42 + 0.25 * place_of))
        front, x = np.cos(azimuth), half * np.sin(azimuth)
        if kind == "sash":
            return _edge(0.055 * scale - np.abs(0.7 * x * np.sign(front + 1e-6) + 0.7 * (high - 0.55 * length)))
        if kind == "number":
            y = high - 0.58 * length
            bars = _edge(0.11 - np.abs(y)) * _edge(0.022 - np.abs(np.abs(x) - 0.05))
            return np.where(front < 0, np.maximum(bars, _edge(0.02 - np.abs(y - 0.13)) * _edge(0.11 - np.abs(x))), 0)
        y, size = high - 0.62 * length, 0.075 * scale
        if place_of < 0.34:
            motif = _edge(size - np.hypot(x, y))
        elif place_of < 0.67:
            motif = _edge(size * 0.7 - np.abs(y)) * _edge(size * 1.3 - np.abs(x))
        else:
            motif = _edge(size - np.abs(x) - np.abs(y) * 0.8)
        return np.where(front > 0, motif, 0)

    def surface(azimuth: np.ndarray, place: np.ndarray) -> np.ndarray:
        return ground + share(azimuth, place)[..., None].astype(np.float32) * (figure_colour - ground)

    return surface


def _wave(position: np.ndarray, period: float, duty: float) -> np.ndarray:
    """Returns a square wave with softened edges, 1 for ``duty`` of each period."""
    return np.clip((np.abs(position / period % 1 - 0.5) - (0.5 - duty / 2)) * 12 + 0.5, 0, 1)


def _edge(distance: np.ndarray) -> np.ndarray:
    """Returns 1 inside (positive metres), 0 outside, with a centimetre of softness."""
    return np.clip(distance * 100 + 0.5, 0, 1)
