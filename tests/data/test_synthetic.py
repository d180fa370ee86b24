"""The people and images of the synthetic data set: seeded, disjoint, and as difficult as intended."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from han_tf.common.errors import UserError
from han_tf.data.records import DISTRACTOR_PID, JUNK_PID
from han_tf.data.synthetic import GENERATOR_VERSION, SyntheticPedestrians
from han_tf.data.synthetic.body import Pose, figure
from han_tf.data.synthetic.camera import CAMERAS
from han_tf.data.synthetic.drawing import Canvas
from han_tf.data.synthetic.identity import (
    FIRST_TEST_PID,
    FIRST_TRAIN_PID,
    LOOK_ALIKE_ATTRIBUTES,
    LOOK_ALIKE_SHARE,
    is_look_alike,
)

SMALL = {"train_identities": 3, "test_identities": 2, "distractors": 3, "junk": 7}


def _pixels(images):
    return [(*image[:4], image.image.size, image.image.tobytes()) for image in images]


def _pairs(people):
    """Returns (partner, look-alike) of both halves."""
    pairs = []
    for first in (FIRST_TRAIN_PID, FIRST_TEST_PID):
        half = [who for pid, who in sorted(people.items()) if (pid >= FIRST_TEST_PID) == (first == FIRST_TEST_PID)]
        pairs += [(half[rank - 1], half[rank]) for rank in range(len(half)) if is_look_alike(rank)]
    return pairs


def test_same_seed_same_bytes_other_seed_other_bytes():
    first = _pixels(SyntheticPedestrians(seed=3, **SMALL).images())
    again = _pixels(SyntheticPedestrians(seed=3, **SMALL).images())
    other = _pixels(SyntheticPedestrians(seed=4, **SMALL).images())
    assert first == again
    assert not {pixels for *_, pixels in first} & {pixels for *_, pixels in other}


def test_images_depend_neither_on_order_nor_on_workers():
    pedestrians = SyntheticPedestrians(seed=1, **SMALL)
    in_order = _pixels(pedestrians.images())
    assert _pixels(pedestrians.images(workers=2)) == in_order
    backwards = _pixels(pedestrians.draw(frame) for frame in reversed(pedestrians.frames()))
    assert backwards[::-1] == in_order


def test_these_are_the_images_of_this_generator_on_any_machine():
    """Python 3.10 to 3.13, NumPy 1.23 to 2.5 and Pillow 9.5 to 13 drew the same, with and without AVX2."""
    assert GENERATOR_VERSION == 2
    pedestrians = SyntheticPedestrians(seed=1, **SMALL)
    pixels = b"".join(pedestrians.draw(frame).image.tobytes() for frame in pedestrians.frames()[::6])
    assert hashlib.sha256(pixels).hexdigest() == "bc96e11af3022e185d557a370b71c889ee636918a79fc170cf6b2c1dbe92a449"


def test_more_people_leave_the_others_as_they_were():
    few = SyntheticPedestrians(seed=5, train_identities=4, test_identities=3, distractors=2, junk=2)
    many = SyntheticPedestrians(seed=5, train_identities=9, test_identities=12, distractors=5, junk=9)
    assert set(few.frames()) < set(many.frames())
    assert few.identities().items() <= many.identities().items()


def test_every_image_is_a_plausible_detection():
    images = list(SyntheticPedestrians(seed=2, **SMALL).images())
    sizes = np.array([image.image.size for image in images])
    assert all(image.image.mode == "RGB" for image in images)
    assert sizes[:, 0].min() >= 20
    assert sizes[:, 1].min() >= 40
    assert len({tuple(size) for size in sizes}) > 20
    assert 90 < np.median(sizes[:, 1]) < 170
    # No image is blank: even background crops have structure.
    assert min(np.asarray(image.image, np.float32).std() for image in images) > 2


def test_plan_of_the_default_set():
    pedestrians = SyntheticPedestrians()
    frames = pedestrians.frames()
    assert len(pedestrians) == len(frames)
    assert len({frame.index for frame in frames}) == len(frames)
    people = {subset: {f.pid for f in frames if f.subset == subset} for subset in ("train", "query", "gallery")}
    assert people["train"] == set(range(1, 161))
    assert len(people["query"]) == 60
    assert not people["train"] & (people["query"] | people["gallery"])
    assert people["gallery"] == people["query"] | {DISTRACTOR_PID, JUNK_PID}
    counts = Counter(f.pid for f in frames if f.subset == "gallery")
    assert (counts[DISTRACTOR_PID], counts[JUNK_PID]) == (400, 150)
    assert {f.camid for f in frames} == {1, 2, 3, 4, 5, 6}
    # 60 people seen by 4 to 6 cameras.
    queries = [(f.pid, f.camid) for f in frames if f.subset == "query"]
    assert 240 <= len(queries) == len(set(queries)) <= 360
    for subset, per_camera in (("train", 3), ("gallery", 2), ("multi_query", 2)):
        seen = Counter((f.pid, f.camid) for f in frames if f.subset == subset and f.pid > 0)
        assert set(seen.values()) == {per_camera}
        assert subset == "train" or set(seen) == set(queries)


def test_every_query_has_a_match_by_another_camera():
    frames = SyntheticPedestrians(seed=9, images_per_camera=2).frames()
    gallery = {(f.pid, f.camid) for f in frames if f.subset == "gallery"}
    for query in (f for f in frames if f.subset == "query"):
        assert sum(pid == query.pid and camid != query.camid for pid, camid in gallery) >= 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_look_alikes_differ_in_exactly_one_attribute(seed):
    people = SyntheticPedestrians(seed=seed).identities()
    pairs = _pairs(people)
    assert 2 * len(pairs) / len(people) == pytest.approx(LOOK_ALIKE_SHARE, abs=0.02)
    changed = Counter()
    for partner, look_alike in pairs:
        different = [n for n, a, b in zip(partner._fields, partner, look_alike) if a != b]
        assert len(different) == 1
        changed.update(different)
    assert set(changed) <= set(LOOK_ALIKE_ATTRIBUTES)
    assert len(changed) >= 4


def test_people_who_are_no_look_alikes_differ_in_several_attributes():
    people = list(SyntheticPedestrians(seed=0).identities().values())
    alike = {frozenset(pair) for pair in _pairs(dict(SyntheticPedestrians(seed=0).identities()))}
    for i, one in enumerate(people):
        for other in people[:i]:
            if frozenset((one, other)) not in alike:
                assert sum(a != b for a, b in zip(one, other)) >= 4


def test_the_difference_of_look_alikes_can_be_seen():
    def portraits(who):
        views = []
        for yaw in (0.0, np.pi / 2, np.pi, -np.pi / 2):
            canvas = Canvas(np.full((130, 100, 3), 0.5, np.float32), 60.0, (50, 122), (0.0, 0.3, 0.4), 0.6)
            canvas.paint(figure(who, Pose(yaw, 0.15, 0.9, 0.3, ("swing", "swing"))))
            views.append(canvas.rgb)
        return np.stack(views)

    for partner, look_alike in _pairs(SyntheticPedestrians(seed=0).identities()):
        changed = np.abs(portraits(partner) - portraits(look_alike)).max(axis=-1) > 0.15
        # At least about 20 of the 2,000 pixels of a person differ in the best view.
        assert changed.sum(axis=(1, 2)).max() >= 20, (partner, look_alike)


def test_cameras_have_six_scenes_and_render_one_grey_in_six_ways():
    assert len({camera.scene for camera in CAMERAS}) == len(CAMERAS) == 6
    tones = [tuple(round(float(np.clip(0.5 * g, 0, 1) ** camera.gamma), 2) for g in camera.gains) for camera in CAMERAS]
    assert len(set(tones)) == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("train_identities", 1),
        ("train_identities", 5000),
        ("test_identities", 0),
        ("train_images_per_camera", 0),
        ("images_per_camera", 1),
        ("multi_query_per_camera", -1),
        ("distractors", -2),
        ("junk", 250_000),
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(UserError, match=rf"^synthetic data: {name} is {value}, expected \d+ to \d+$"):
        SyntheticPedestrians(**{name: value})


def test_largest_numbers_keep_frame_numbers_unique_and_six_digits():
    pedestrians = SyntheticPedestrians(train_identities=4999, test_identities=2, train_images_per_camera=8)
    indices = [frame.index for frame in pedestrians.frames()]
    assert len(set(indices)) == len(indices)
    assert max(indices) < 10**6
    with pytest.raises(UserError, match="train_images_per_camera is 9"):
        SyntheticPedestrians(train_identities=4999, test_identities=2, train_images_per_camera=9)
