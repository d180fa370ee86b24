"""The synthetic data set: its people, the cameras that see them, and the images in their boxes."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.common.processes import end_with_parent
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID
from han_tf.data.synthetic.body import ARMS, Pose, figure
from han_tf.data.synthetic.camera import CAMERAS, Camera, expose, light_of
from han_tf.data.synthetic.drawing import Canvas, Shape, Tube
from han_tf.data.synthetic.identity import Identity, choose, draw_identity, identity_of
from han_tf.data.synthetic.images import LabelledImage
from han_tf.data.synthetic.scenery import SCENE_SCALE, SCENE_SIZE, THING_SCALE, THING_VARIANTS, THINGS, scene, thing

GENERATOR_VERSION = 1
"""Increased by every change after which the same arguments give other pixels."""

FIRST_TRAIN_PID, FIRST_TEST_PID = 1, 5001
"""First training and first test pid; fixed, so that test pids do not depend on the number of training people."""

_INDICES_PER_PART = 250_000
# Frame numbers reserved for each of training, test, distractor and junk images, for the same reason.

_OCCLUDERS = {"pole": 3, "bin": 3, "bicycle": 3, "car": 2, "bush": 2, "railing": 1, "sign": 2, "person": 5}


class Frame(NamedTuple):
    """The labels of an image to draw; the fields are those of :class:`LabelledImage`."""

    subset: str
    pid: int
    camid: int
    index: int


class SyntheticPedestrians:
    """A data set of drawn pedestrians seen by six cameras.

    Each image depends on (seed, pid, camid, index) alone, so images can be drawn in any order and in
    parallel, and adding identities does not change the people that were there. Every identity is seen by
    4 to 6 of the cameras. About 30 % of the identities have a look-alike in their half (train, test), who differs in
    one attribute.

    Args:
      seed: of the whole data set, ≥ 0.
      train_identities, test_identities: number of people, disjoint; 2 to 4,999 each.
      train_images_per_camera: images of a training person by each camera that sees it, ≥ 1.
      images_per_camera: images of a test person by each camera that sees it, ≥ 2: one query, the others
        in the gallery.
      multi_query_per_camera: further images of a test person per camera, for multi-query evaluation.
      distractors: gallery images of people who are in no query.
      junk: gallery images of body fragments or background.

    Raises:
      UserError: a number is out of its range.
    """

    def __init__(
        self,
        seed: int = 0,
        train_identities: int = 160,
        test_identities: int = 60,
        train_images_per_camera: int = 3,
        images_per_camera: int = 3,
        multi_query_per_camera: int = 2,
        distractors: int = 400,
        junk: int = 150,
    ):
        most_people, most_images = FIRST_TEST_PID - FIRST_TRAIN_PID - 1, _INDICES_PER_PART // len(CAMERAS)
        for name, value, least, most in (
            ("seed", seed, 0, 2**31 - 1),
            ("train_identities", train_identities, 2, most_people),
            ("test_identities", test_identities, 2, most_people),
            ("train_images_per_camera", train_images_per_camera, 1, most_images // max(train_identities, 1)),
            ("images_per_camera", images_per_camera, 2, most_images // max(test_identities, 1)),
            (
                "multi_query_per_camera",
                multi_query_per_camera,
                0,
                most_images // max(test_identities, 1) - images_per_camera,
            ),
            ("distractors", distractors, 0, _INDICES_PER_PART - 1),
            ("junk", junk, 0, _INDICES_PER_PART - 1),
        ):
            if not least <= value <= most:
                raise UserError(f"synthetic data: {name} is {value}, expected {least} to {most}")
        self.seed = seed
        self.train_identities = train_identities
        self.test_identities = test_identities
        self.train_images_per_camera = train_images_per_camera
        self.images_per_camera = images_per_camera
        self.multi_query_per_camera = multi_query_per_camera
        self.distractors = distractors
        self.junk = junk

    def arguments(self) -> dict[str, int]:
        """Returns the constructor's arguments by name."""
        return dict(vars(self))

    def identities(self) -> dict[int, Identity]:
        """Returns the people by pid."""
        pids = (
            *range(FIRST_TRAIN_PID, FIRST_TRAIN_PID + self.train_identities),
            *range(FIRST_TEST_PID, FIRST_TEST_PID + self.test_identities),
        )
        return {pid: identity_of(self.seed, _first_pid(pid), pid) for pid in pids}

    def frames(self) -> list[Frame]:
        """Returns the labels of all images, in the order of :meth:`images`."""
        frames: list[Frame] = []
        for rank in range(self.train_identities):
            pid = FIRST_TRAIN_PID + rank
            for camid in self._cameras(pid):
                first = (rank * len(CAMERAS) + camid - 1) * self.train_images_per_camera + 1
                frames += [Frame("train", pid, camid, first + k) for k in range(self.train_images_per_camera)]
        for rank in range(self.test_identities):
            pid = FIRST_TEST_PID + rank
            subsets = ["query"] + ["gallery"] * (self.images_per_camera - 1)
            subsets += ["multi_query"] * self.multi_query_per_camera
            for camid in self._cameras(pid):
                first = _INDICES_PER_PART + (rank * len(CAMERAS) + camid - 1) * len(subsets) + 1
                frames += [Frame(subset, pid, camid, first + k) for k, subset in enumerate(subsets)]
        for part, pid, count in ((2, DISTRACTOR_PID, self.distractors), (3, JUNK_PID, self.junk)):
            first = part * _INDICES_PER_PART + 1
            frames += [Frame("gallery", pid, k % len(CAMERAS) + 1, first + k) for k in range(count)]
        return frames

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.frames())

    def images(self, workers: int = 1) -> Iterator[LabelledImage]:
        """Yields the images one after the other; more than one of ``workers`` processes draw ahead of the caller.

        The images do not depend on ``workers``. Where processes are spawned rather than forked (macOS,
        Windows), a script that asks for several workers needs an ``if __name__ == "__main__"``.

        Raises:
          UserError: the system has killed one of the processes.
        """
        frames = self.frames()
        if workers == 1:
            yield from map(self.draw, frames)
            return
        try:
            with ProcessPoolExecutor(workers, initializer=_leave_signals_to_the_parent) as pool:
                yield from pool.map(self.draw, frames, chunksize=16)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that draws synthetic images was killed (is memory short?), expected it to finish"
            ) from error

    def draw(self, frame: Frame) -> LabelledImage:
        """Returns the image of one frame."""
        return LabelledImage(*frame, _draw(self.seed, frame))

    def _cameras(self, pid: int) -> list[int]:
        rng = np.random.default_rng((self.seed, 2, pid))
        seen = rng.permutation(len(CAMERAS))[: rng.integers(4, len(CAMERAS) + 1)]
        return sorted(int(c) + 1 for c in seen)


def _leave_signals_to_the_parent() -> None:
    """Makes a worker ignore Ctrl-C, which the parent handles, and end if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def _first_pid(pid: int) -> int:
    return FIRST_TEST_PID if pid >= FIRST_TEST_PID else FIRST_TRAIN_PID


class _Sighting(NamedTuple):
    """Parameters shared by the images of one person by one camera."""

    yaw: float
    stride: float
    arms: tuple[str, str]
    zoom: float
    place: float
    exposure: np.ndarray


def _sighting(camera: Camera, rng: np.random.Generator) -> _Sighting:
    yaw = camera.paths[rng.integers(len(camera.paths))] if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi)
    return _Sighting(
        yaw=float(yaw + rng.normal(0, 0.25)),
        stride=float(rng.uniform(0.24, 0.42)) if rng.random() < 0.85 else 0.03,
        arms=(choose(rng, ARMS), choose(rng, ARMS)),
        zoom=float(np.exp(rng.normal(0, 0.14))),
        place=float(rng.random()),
        exposure=np.exp(rng.normal(0, 0.07) + rng.normal(0, 0.02, 3)),
    )


def _pose(camera: Camera, sighting: _Sighting, rng: np.random.Generator) -> Pose:
    turned = rng.uniform(-np.pi, np.pi) if rng.random() < 0.1 else rng.normal(0, 0.22)
    arms = sighting.arms if rng.random() < 0.75 else (choose(rng, ARMS), choose(rng, ARMS))
    return Pose(
        yaw=float(sighting.yaw + turned),
        pitch=float(max(camera.pitch + rng.normal(0, 0.03), 0.02)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=sighting.stride,
        arms=arms,
        head=float(rng.normal(0, 0.25)),
    )


class _Box(NamedTuple):
    """A detection box in metres; the ground point of the person is at (0, 0), y points up."""

    left: float
    right: float
    bottom: float
    top: float

    def size(self) -> tuple[float, float]:
        return self.right - self.left, self.top - self.bottom


def _extent(shapes: list[Shape]) -> _Box:
    lefts, rights, bottoms, tops = [], [], [], []
    for shape in shapes:
        if isinstance(shape, Tube):
            reach = max(shape.half_widths)
            (x0, y0), (x1, y1) = shape.start, shape.end
            lefts.append(min(x0, x1) - reach)
            rights.append(max(x0, x1) + reach)
            bottoms.append(min(y0, y1) - 0.3 * reach)
            tops.append(max(y0, y1) + 0.3 * reach)
        else:
            x, y = shape.centre
            lefts.append(x - shape.half_width)
            rights.append(x + shape.half_width)
            bottoms.append(y - shape.half_height)
            tops.append(y + shape.half_height)
    return _Box(min(lefts), max(rights), min(bottoms), max(tops))


def _detect(person: _Box, rng: np.random.Generator, junk: bool) -> _Box:
    """Returns an imperfect detection box around ``person``; one that mostly misses the person if ``junk``."""
    width, height = person.size()
    height *= rng.uniform(1.02, 1.14)
    width = max(height * rng.uniform(0.38, 0.5), width * rng.uniform(0.9, 1.1))
    x = (person.left + person.right) / 2 + width * rng.normal(0, 0.035)
    y = (person.top + person.bottom) / 2 + height * rng.normal(0, 0.015)
    fault = rng.random()
    if junk:
        factor = rng.uniform(0.3, 0.75)
        width, height = width * factor, height * factor
        x += width * rng.uniform(0.35, 0.9) * rng.choice((-1, 1))
        y += height * rng.uniform(-0.7, 0.7)
    elif fault < 0.07:
        factor = rng.uniform(1.15, 1.45)
        width, height = width * factor, height * factor
    elif fault < 0.13:
        factor = rng.uniform(0.74, 0.9)
        width, height = width * factor, height * factor
    elif fault < 0.19:
        x += width * rng.uniform(0.12, 0.28) * rng.choice((-1, 1))
        y += height * rng.uniform(-0.12, 0.12)
    elif fault < 0.23:
        # The upper body only, as if the legs were hidden or out of the frame.
        share = rng.uniform(0.52, 0.72)
        y, height = y + height * (1 - share) / 2, height * share
        width *= 0.85
    return _Box(x - width / 2, x + width / 2, y - height / 2, y + height / 2)


def _draw(seed: int, frame: Frame) -> Image.Image:
    camera = CAMERAS[frame.camid - 1]
    rng = np.random.default_rng((seed, 3, frame.pid + 1, frame.camid, frame.index))
    if frame.pid > 0:
        who = identity_of(seed, _first_pid(frame.pid), frame.pid)
        sighting = _sighting(camera, np.random.default_rng((seed, 4, frame.pid, frame.camid)))
    else:
        who = draw_identity(rng)
        sighting = _sighting(camera, rng)
    pose = _pose(camera, sighting, rng)
    shapes = figure(who, pose)
    box = _detect(_extent(shapes), rng, frame.pid == JUNK_PID)
    pixels_per_metre = camera.person_height / 1.7 * sighting.zoom * np.exp(rng.normal(0, 0.06))
    width, height = (int(np.clip(round(s * pixels_per_metre), low, 260)) for s, low in zip(box.size(), (20, 40)))
    # Small boxes are drawn at twice the resolution, large ones at 1.5 times: there the shapes' soft edges are enough.
    finer = 2.0 if height <= 120 else 1.5
    scale = finer * height / box.size()[1]
    light = light_of(camera, rng)
    place = float(np.clip(sighting.place + rng.normal(0, 0.05), 0, 1))
    canvas = Canvas(
        _background(camera, seed, box, (round(width * finer), round(height * finer)), place, rng),
        scale,
        (-box.left * scale, box.top * scale),
        light,
        tuple(rng.integers(0, 500, 2).tolist()),
    )
    if rng.random() < 0.2:
        _passer_by(canvas, camera, rng, behind=True)
    if frame.pid != JUNK_PID or rng.random() < 0.6:
        _stand(canvas, shapes, 0.0, 0.0, rng)
    if rng.random() < 0.25:
        _occlude(canvas, camera, rng)
    exposure = sighting.exposure * np.exp(rng.normal(0, 0.05))
    return expose(canvas.rgb, camera, exposure, (width, height), rng)


def _background(
    camera: Camera, seed: int, box: _Box, size: tuple[int, int], place: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns [h, w, 3] float32 of the camera's scene behind ``box``."""
    wide, high = SCENE_SIZE
    width, height = box.size()
    left = place * (wide - width)
    # The feet are in the lower part of the scene, unless the box would leave the scene then.
    top = np.clip(rng.uniform(2.5, 3.9) - box.top, 0, high - height)
    window = tuple(float(v) * SCENE_SCALE for v in (left, top, left + width, top + height))
    cut = scene(camera.scene, seed).resize(size, Image.Resampling.BILINEAR, box=window)
    return np.asarray(cut, np.float32) / 255


def _stand(canvas: Canvas, shapes: list[Shape], x: float, y: float, rng: np.random.Generator) -> None:
    """Paints a person with its ground point at (x, y), and its shadow."""
    there = Canvas(
        canvas.rgb,
        canvas.scale,
        (canvas.origin[0] + x * canvas.scale, canvas.origin[1] - y * canvas.scale),
        canvas.light,
        tuple(rng.integers(0, 500, 2).tolist()),
    )
    lx = canvas.light.direction[0]
    there.darken((-0.25 * lx, 0.0), (0.34 + 0.2 * abs(lx), 0.09), 0.55)
    there.paint(shapes)


def _passer_by(canvas: Canvas, camera: Camera, rng: np.random.Generator, behind: bool) -> None:
    shapes = figure(draw_identity(rng), _pose(camera, _sighting(camera, rng), rng))
    x = rng.choice((-1, 1)) * (rng.uniform(0.35, 0.75) if behind else rng.uniform(0.25, 0.5))
    y = rng.uniform(0.02, 0.4) if behind else -rng.uniform(0.05, 0.3)
    _stand(canvas, shapes, float(x), float(y), rng)


def _occlude(canvas: Canvas, camera: Camera, rng: np.random.Generator) -> None:
    """Paints a thing or another person in front."""
    kind = choose(rng, _OCCLUDERS)
    if kind == "person":
        _passer_by(canvas, camera, rng, behind=False)
        return
    wide, high = THINGS[kind]
    x = rng.uniform(-0.35, 0.35)
    if wide > 1:
        # One end of a wide thing reaches into the box.
        x += rng.choice((-1, 1)) * 0.5 * wide
    y = -rng.uniform(0.05, 0.35)
    piece = thing(kind, int(rng.integers(THING_VARIANTS)))
    strength = (canvas.light.ambient + 0.6 * canvas.light.diffuse) * rng.uniform(0.85, 1.1)
    _paste(canvas, piece, float(x - wide / 2), float(y + high), float(strength))


def _paste(canvas: Canvas, piece: Image.Image, left: float, top: float, strength: float) -> None:
    """Blends an RGBA thing whose upper left corner is at (left, top) metres."""
    ratio = canvas.scale / THING_SCALE
    x0, y0 = canvas.origin[0] + left * canvas.scale, canvas.origin[1] - top * canvas.scale
    height, width = canvas.rgb.shape[:2]
    first_x, last_x = max(int(x0), 0), min(int(x0 + piece.width * ratio), width)
    first_y, last_y = max(int(y0), 0), min(int(y0 + piece.height * ratio), height)
    if first_x >= last_x or first_y >= last_y:
        return
    window = ((first_x - x0) / ratio, (first_y - y0) / ratio, (last_x - x0) / ratio, (last_y - y0) / ratio)
    window = tuple(float(np.clip(v, 0, limit)) for v, limit in zip(window, (*piece.size, *piece.size)))
    cut = piece.resize((last_x - first_x, last_y - first_y), Image.Resampling.BILINEAR, box=window)
    values = np.asarray(cut, np.float32) / 255
    under = canvas.rgb[first_y:last_y, first_x:last_x]
    under += values[..., 3:] * (values[..., :3] * np.float32(strength) - under)
