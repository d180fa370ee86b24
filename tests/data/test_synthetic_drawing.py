"""Areas of painted shapes against closed forms, and the parts of a body visible from each viewpoint."""

import numpy as np
import pytest

from han_tf.data.synthetic.body import Pose, figure
from han_tf.data.synthetic.camera import CAMERAS, expose
from han_tf.data.synthetic.drawing import Canvas, Ellipsoid, Light, Tube, plain
from han_tf.data.synthetic.identity import Pattern, Style, draw_identity
from han_tf.data.synthetic.scenery import SCENE_SCALE, SCENE_SIZE, SETTINGS, THING_SCALE, THINGS, scene, thing

FLAT = Light((0.0, 0.0, 1.0), 1.0, 0.0)
RED, GREEN, BLUE = (0.9, 0.05, 0.05), (0.05, 0.9, 0.05), (0.05, 0.05, 0.9)


def _canvas(height=120, width=100, scale=100.0, origin=(50, 110)):
    return Canvas(np.zeros((height, width, 3), np.float32), scale, origin, FLAT)


def _area(canvas):
    """Returns the area painted in square metres; edge pixels count in part."""
    painted = canvas.rgb.sum(axis=-1)
    return float((painted > 1e-3).sum()) / canvas.scale**2


@pytest.mark.parametrize("turn", [0.0, 0.7, np.pi / 2, 2.5])
def test_area_of_a_tube_is_that_of_a_rectangle_and_two_half_discs(turn):
    canvas = _canvas(200, 200, 100.0, (100, 100))
    end = 0.6 * np.cos(turn), 0.6 * np.sin(turn)
    canvas.paint([Tube((0, 0), end, (0.15, 0.15), plain((1.0, 1.0, 1.0)), 0.0)])
    assert _area(canvas) == pytest.approx(0.6 * 0.3 + np.pi * 0.15**2, rel=0.05)


def test_area_of_a_tapered_tube_with_flat_ends():
    canvas = _canvas()
    canvas.paint([Tube((0, 0), (0, 1), (0.3, 0.1), plain((1.0, 1.0, 1.0)), 0.0, round_start=0, round_end=0)])
    assert _area(canvas) == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("tilt", [0.0, 0.5])
def test_area_of_an_ellipsoid(tilt):
    canvas = _canvas()
    canvas.paint([Ellipsoid((0, 0.5), 0.2, 0.4, plain((1.0, 1.0, 1.0)), 0.0, tilt=tilt)])
    assert _area(canvas) == pytest.approx(np.pi * 0.2 * 0.4, rel=0.06)


def test_nearer_shapes_hide_farther_ones_in_whatever_order_they_come():
    near = Tube((0, 0), (0, 1), (0.2, 0.2), plain(RED), 1.0)
    far = Tube((0, 0), (0, 1), (0.2, 0.2), plain(GREEN), -1.0)
    first, second = _canvas(), _canvas()
    first.paint([near, far])
    second.paint([far, near])
    np.testing.assert_array_equal(first.rgb, second.rgb)
    assert first.rgb[60, 50].argmax() == 0


@pytest.mark.parametrize("upside_down", [False, True])
def test_azimuth_grows_to_the_left_and_turns_with_the_tube(upside_down):
    def halves(azimuth, place):
        return np.where((np.sin(azimuth) > 0)[..., None], RED, BLUE)

    ends = ((0, 1), (0, 0)) if upside_down else ((0, 0), (0, 1))
    for mid, left, right in ((0.0, 0, 2), (np.pi, 2, 0)):
        canvas = _canvas()
        canvas.paint([Tube(*ends, (0.2, 0.2), halves, 0.0, azimuth=mid)])
        assert (canvas.rgb[60, 40].argmax(), canvas.rgb[60, 60].argmax()) == (left, right)


def test_shapes_beyond_the_border_are_cut_off_or_not_there():
    canvas = _canvas()
    canvas.paint([Tube((5, 5), (6, 6), (0.2, 0.2), plain(RED), 0.0), Ellipsoid((-9, 0), 0.3, 0.3, plain(RED), 0.0)])
    canvas.darken((7, 7), (0.3, 0.1), 0.5)
    assert not canvas.rgb.any()
    canvas.paint([Ellipsoid((-0.5, 0.5), 0.3, 0.3, plain(RED), 0.0)])
    assert canvas.rgb[60, 0, 0] > 0.5


def _person(**attributes):
    who = draw_identity(np.random.default_rng(4))
    grey = (0.4, 0.4, 0.4)
    return who._replace(
        **{
            "skin": (0.7, 0.55, 0.45),
            "hair": Style("short", (0.1, 0.1, 0.1)),
            "hat": Style("none", grey),
            "top": "t-shirt",
            "top_colour": grey,
            "top_pattern": Pattern("plain", grey, 1.0, 0.1),
            "bottom": "trousers",
            "bottom_colour": grey,
            "shoes": Style("shoes", grey),
            "bag": Style("none", grey),
            **attributes,
        }
    )


def _seen(who, yaw, colour):
    """Returns how many pixels of ``colour`` (red, green or blue) are seen from ``yaw``."""
    canvas = Canvas(np.full((220, 200, 3), 0.5, np.float32), 100.0, (100, 205), FLAT)
    canvas.paint(figure(who, Pose(yaw, 0.1, 1.0, 0.3, ("swing", "swing"), 0.0)))
    main = np.argmax(colour)
    others = np.delete(canvas.rgb, main, axis=-1).max(axis=-1)
    return int((canvas.rgb[..., main] - others > 0.25).sum())


def test_a_logo_is_seen_from_the_front_and_a_number_from_the_back():
    for kind, visible, hidden in (("logo", 0.0, np.pi), ("number", np.pi, 0.0)):
        who = _person(top_pattern=Pattern(kind, RED, 1.2, 0.1))
        assert _seen(who, visible, RED) > 60
        assert _seen(who, hidden, RED) == 0


def test_a_backpack_is_seen_from_the_back_and_its_straps_from_the_front():
    who = _person(bag=Style("backpack", GREEN))
    back, side, front = (_seen(who, yaw, GREEN) for yaw in (np.pi, np.pi / 2, 0.0))
    assert back > side > front > 30


@pytest.mark.parametrize("kind", ["satchel", "handbag", "carrier", "trolley"])
def test_other_bags_are_seen_from_their_side(kind):
    who = _person(bag=Style(kind, GREEN))
    sides = [_seen(who, yaw, GREEN) for yaw in (np.pi / 2, -np.pi / 2)]
    assert max(sides) > 200
    assert _seen(_person(), np.pi / 2, GREEN) == _seen(_person(), -np.pi / 2, GREEN) == 0


@pytest.mark.parametrize("kind", ["cap", "beanie", "sun hat"])
def test_hats_are_seen_from_everywhere(kind):
    who = _person(hat=Style(kind, BLUE))
    assert min(_seen(who, yaw, BLUE) for yaw in np.linspace(0, 2 * np.pi, 8)) > 60


@pytest.mark.parametrize("kind", ["hoops", "pinstripes", "checks", "dots", "band", "blocks", "raglan", "sash"])
@pytest.mark.parametrize("top", ["t-shirt", "shirt", "hoodie", "jacket", "coat", "dress"])
def test_all_round_patterns_are_seen_from_every_side(kind, top):
    who = _person(top=top, top_pattern=Pattern(kind, RED, 1.0, 0.3))
    assert min(_seen(who, yaw, RED) for yaw in (0.0, np.pi / 2, np.pi, -np.pi / 2)) > 40


@pytest.mark.parametrize("stride", [0.0, 0.45])
def test_a_figure_is_as_tall_as_its_person_and_stands_on_the_ground(stride):
    for seed in range(6):
        who = draw_identity(np.random.default_rng(seed))._replace(hat=Style("none", RED), hair=Style("bald", RED))
        canvas = Canvas(np.zeros((240, 200, 3), np.float32), 100.0, (100, 220), FLAT)
        canvas.paint(figure(who, Pose(0.0, 0.0, np.pi / 2, stride, ("swing", "swing"), 0.0)))
        rows = np.flatnonzero(canvas.rgb.sum(axis=(1, 2)) > 0)
        top, bottom = (220 - rows[0]) / 100, (220 - rows[-1]) / 100
        assert abs(bottom) < 0.06
        assert 0.90 * who.build.height < top < 1.06 * who.build.height


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_scenes_are_seeded(name):
    image = scene(name, 3)
    assert image.size == tuple(int(s * SCENE_SCALE) for s in SCENE_SIZE)
    scene.cache_clear()
    assert scene(name, 3).tobytes() == image.tobytes()
    assert scene(name, 4).tobytes() != image.tobytes()


@pytest.mark.parametrize("kind", sorted(THINGS))
def test_things_are_partly_transparent_pictures_of_their_size(kind):
    picture = thing(kind, 0)
    wide, high = THINGS[kind]
    assert picture.mode == "RGBA"
    assert np.allclose(picture.size, (wide * THING_SCALE, high * THING_SCALE), atol=1.5)
    assert np.asarray(picture)[..., 3].max() == 255


def test_expose_keeps_layout_and_changes_colour():
    rgb = np.zeros((200, 100, 3), np.float32)
    rgb[:100], rgb[100:] = 0.7, 0.2
    for camera in CAMERAS:
        image = expose(rgb, camera, np.ones(3), (50, 100), np.random.default_rng(0))
        assert (image.mode, image.size) == ("RGB", (50, 100))
        values = np.asarray(image, np.float32)
        assert values[:45].mean() > values[55:].mean() + 40
