"""One image of one person: pose, detection box, background, occlusion, exposure."""

import math

import numpy as np
from PIL import Image

from han_tf.data.records import JUNK_PID
from han_tf.data.synthetic.body import ARMS, Pose, figure
from han_tf.data.synthetic.camera import CAMERAS, Camera, expose
from han_tf.data.synthetic.drawing import Canvas, Tube, interpolate
from han_tf.data.synthetic.identity import choose, draw_identity, identity_of
from han_tf.data.synthetic.images import Frame
from han_tf.data.synthetic.scenery import SCENE_SCALE, SCENE_SIZE, half_width, scene, shadow, thing

_OCCLUDERS = {"pole": 3, "bin": 3, "bicycle": 3, "car": 2, "bush": 2, "railing": 1, "tree": 1, "person": 5}


def draw_frame(seed: int, frame: Frame) -> Image.Image:
    """Returns the image of a person by a camera, in an imperfect detection box."""
    _, pid, camid, index = frame
    camera, junk = CAMERAS[camid - 1], pid == JUNK_PID
    own = np.random.default_rng((seed, 3, pid + 1, camid, index))
    # What the images of a person by a camera have in common: gait, arms, size, place, exposure.
    shared = np.random.default_rng((seed, 4, pid, camid)) if pid > 0 else own
    who = identity_of(seed, pid) if pid > 0 else draw_identity(own)
    pose = _pose(camera, shared, own)
    zoom, place = math.exp(shared.normal(0, 0.14) + own.normal(0, 0.06)), shared.random() + own.normal(0, 0.05)
    exposure = 1 + shared.normal(0, 0.07) + shared.normal(0, 0.02, 3) + own.normal(0, 0.05)
    tubes = figure(who, pose)
    x, y, wide, high = _detect(tubes, own, junk)
    scale = camera.person_height / 1.7 * zoom
    size = min(max(round(wide * scale), 20), 260), min(max(round(high * scale), 40), 260)
    # Small boxes are drawn at twice the resolution, large ones at 1.5 times: there the tubes' soft edges are enough.
    columns, rows = (round(pixels * (2.0 if size[1] <= 120 else 1.5)) for pixels in size)
    # The feet are in the lower part of the scene, unless the box would leave the scene then.
    left = min(max(place, 0.0), 1.0) * (SCENE_SIZE[0] - wide)
    top = min(max(own.uniform(2.5, 3.9) - y - high / 2, 0.0), SCENE_SIZE[1] - high)
    background = scene(camera.scene, seed)
    for axis, first, metres, count in ((1, left, wide, columns), (0, top, high, rows)):
        places = (first + (np.arange(count) + 0.5) * metres / count) * SCENE_SCALE - 0.5
        background = interpolate(background, places, axis)
    origin, wrinkles = ((wide / 2 - x) * rows / high, (high / 2 + y) * rows / high), own.integers(0, 500, 2).tolist()
    canvas = Canvas(background, rows / high, origin, camera.light, camera.ambient, wrinkles)
    if own.random() < 0.15:
        _pass_by(canvas, camera, own.uniform(0.35, 0.75), own.uniform(0.02, 0.4), own)
    if not junk or own.random() < 0.6:
        _stand(canvas, tubes, 0.0, 0.0)
    if own.random() < 0.18:
        kind = choose(own, _OCCLUDERS)
        if kind == "person":
            _pass_by(canvas, camera, own.uniform(0.25, 0.5), own.uniform(-0.3, -0.05), own)
        else:  # one end of it reaches into the box
            x = _sign(own) * (half_width(kind) + own.uniform(-0.35, 0.25))
            canvas.paint(thing(kind, own), x, own.uniform(-0.35, -0.05))
    return expose(canvas.rgb, camera, exposure, size, own)


def _sign(rng: np.random.Generator) -> int:
    return int(rng.integers(2)) * 2 - 1


def _pose(camera: Camera, shared: np.random.Generator, own: np.random.Generator) -> Pose:
    path = camera.paths[shared.integers(len(camera.paths))]
    yaw = (path if shared.random() < 0.8 else shared.uniform(-math.pi, math.pi)) + shared.normal(0, 0.25)
    turned = own.uniform(-math.pi, math.pi) if own.random() < 0.1 else own.normal(0, 0.22)
    usual, other = ((choose(rng, ARMS), choose(rng, ARMS)) for rng in (shared, own))
    return Pose(
        yaw=yaw + turned,
        pitch=max(camera.pitch + own.normal(0, 0.03), 0.02),
        phase=own.uniform(0, 2 * math.pi),
        stride=shared.uniform(0.24, 0.42) if shared.random() < 0.85 else 0.03,
        arms=usual if own.random() < 0.75 else other,
    )


def _detect(tubes: list[Tube], rng: np.random.Generator, junk: bool) -> tuple[float, float, float, float]:
    """Returns (x, y, width, height) of the centre and size, in metres, of a box around a person.

    23 % of the boxes are too large, too small, shifted or show the upper body only.
    """
    reaches = [(max(tube.widths), *zip(tube.start, tube.end)) for tube in tubes]
    left, right = min(min(x) - reach for reach, x, _ in reaches), max(max(x) + reach for reach, x, _ in reaches)
    bottom, top = min(min(y) for _, _, y in reaches), max(max(y) for _, _, y in reaches)
    high = (top - bottom) * rng.uniform(1.04, 1.16)
    wide = max(high * rng.uniform(0.38, 0.5), (right - left) * rng.uniform(0.9, 1.1))
    x, y = (left + right) / 2 + wide * rng.normal(0, 0.035), (top + bottom) / 2 + high * rng.normal(0, 0.015)
    fault, factor = rng.random(), 1.0
    if junk:
        factor = rng.uniform(0.3, 0.75)
        x, y = x + factor * wide * rng.uniform(0.35, 0.9) * _sign(rng), y + factor * high * rng.uniform(-0.7, 0.7)
    elif fault < 0.13:
        factor = rng.uniform(1.15, 1.45) if fault < 0.07 else rng.uniform(0.74, 0.9)
    elif fault < 0.19:
        x, y = x + wide * rng.uniform(0.12, 0.28) * _sign(rng), y + high * rng.uniform(-0.12, 0.12)
    elif fault < 0.23:
        share = rng.uniform(0.52, 0.72)
        y, high, wide = y + high * (1 - share) / 2, high * share, wide * 0.85
    return x, y, wide * factor, high * factor


def _stand(canvas: Canvas, tubes: list[Tube], x: float, y: float) -> None:
    """Paints a person with its ground point at (x, y), and its shadow."""
    canvas.paint([shadow(0.25 + 0.2 * abs(canvas.light[0]))], x - 0.35 * canvas.light[0], y)
    canvas.paint(tubes, x, y)


def _pass_by(canvas: Canvas, camera: Camera, aside: float, y: float, rng: np.random.Generator) -> None:
    """Paints somebody else to the left or right, behind or, if ``y`` is negative, in front."""
    _stand(canvas, figure(draw_identity(rng), _pose(camera, rng, rng)), aside * _sign(rng), y)
