"""Areas of painted tubes against closed forms, and the parts of a body visible from each viewpoint."""

import numpy as np
import pytest

from han_tf.data.synthetic.body import Pose, figure
from han_tf.data.synthetic.camera import CAMERAS, expose
from han_tf.data.synthetic.drawing import OVAL, Canvas, Tube, interpolate, mix
from han_tf.data.synthetic.identity import BAGS, HATS, PATTERNS, TOPS, Pattern, Style, draw_identity
from han_tf.data.synthetic.scenery import SCENE_SCALE, SCENE_SIZE, SETTINGS, THINGS, half_width, scene, thing

RED, GREEN, BLUE, WHITE = (0.9, 0.05, 0.05), (0.05, 0.9, 0.05), (0.05, 0.05, 0.9), (1.0, 1.0, 1.0)


def _canvas(height=120, width=100, origin=(50, 110), value=0.0):
    """Returns a canvas of 100 pixels per metre in light from everywhere."""
    return Canvas(np.full((height, width, 3), value, np.float32), 100.0, origin, (0.0, 0.0, 0.0), 1.0)


def _area(canvas):
    """Returns the area painted in square metres; edge pixels count in full."""
    return float((canvas.rgb.sum(axis=-1) > 1e-3).sum()) / canvas.scale**2


@pytest.mark.parametrize("turn", [0.0, 0.7, np.pi / 2, 2.5])
def test_area_of_a_tube_is_that_of_a_rectangle_and_two_half_discs(turn):
    canvas = _canvas(200, 200, (100, 100))
    canvas.paint([Tube((0, 0), (0.6 * np.cos(turn), 0.6 * np.sin(turn)), (0.15, 0.15), WHITE)])
    assert _area(canvas) == pytest.approx(0.6 * 0.3 + np.pi * 0.15**2, rel=0.05)


def test_area_of_a_tapered_tube_with_flat_ends():
    canvas = _canvas()
    canvas.paint([Tube((0, 0), (0, 1), (0.3, 0.1), WHITE, ends=0)])
    assert _area(canvas) == pytest.approx(0.4, rel=0.05)


def test_area_of_an_oval():
    canvas = _canvas()
    canvas.paint([Tube((0, 0.1), (0, 0.9), [0.2 * width for width in OVAL], WHITE, ends=0)])
    assert _area(canvas) == pytest.approx(np.pi * 0.2 * 0.4, rel=0.06)


def test_nearer_tubes_hide_farther_ones_in_whatever_order_they_come():
    near, far = Tube((0, 0), (0, 1), (0.2, 0.2), RED, 1.0), Tube((0, 0), (0, 1), (0.2, 0.2), GREEN, -1.0)
    first, second = _canvas(), _canvas()
    first.paint([near, far])
    second.paint([far, near])
    np.testing.assert_array_equal(first.rgb, second.rgb)
    assert first.rgb[60, 50].argmax() == 0


def test_a_tube_of_half_opacity_is_half_seen():
    canvas = _canvas(value=0.8)
    canvas.paint([Tube((0, 0), (0, 1), (0.2, 0.2), (0.2, 0.2, 0.2), opacity=0.5)])
    np.testing.assert_allclose(canvas.rgb[60, 50], 0.5, atol=0.01)


@pytest.mark.parametrize("upside_down", [False, True])
def test_the_right_side_is_at_the_left_and_turns_with_the_tube(upside_down):
    ends = ((0, 1), (0, 0)) if upside_down else ((0, 0), (0, 1))
    for facing, left, right in (((1.0, 0.0), 0, 2), ((-1.0, 0.0), 2, 0)):
        canvas = _canvas()
        canvas.paint([Tube(*ends, (0.2, 0.2), lambda patch: mix(BLUE, RED, patch.side > 0), facing=facing)])
        assert (canvas.rgb[60, 40].argmax(), canvas.rgb[60, 60].argmax()) == (left, right)


def test_the_side_towards_the_light_is_brighter():
    canvas = _canvas()._replace(light=(1.0, 0.0, 0.0), ambient=0.2)
    canvas.paint([Tube((0, 0), (0, 1), (0.2, 0.2), WHITE)])
    assert canvas.rgb[60, 62, 0] > 2 * canvas.rgb[60, 38, 0] > 0


def test_tubes_beyond_the_border_are_cut_off_or_not_there():
    canvas = _canvas()
    canvas.paint([Tube((5, 5), (6, 6), (0.2, 0.2), RED), Tube((-9, 0), (-9, 1), (0.3, 0.3), RED)])
    assert not canvas.rgb.any()
    canvas.paint([Tube((0, 0.4), (0, 0.6), (0.3, 0.3), RED)], x=-0.5)
    assert canvas.rgb[60, 0, 0] > 0.5
    assert not canvas.rgb[:, 60:].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_interpolation_is_that_of_numpy(axis):
    values = np.random.default_rng(0).random((7, 9))
    places = np.linspace(-1, 10, 23)
    expected = np.apply_along_axis(lambda row: np.interp(places, np.arange(len(row)), row), axis, values)
    np.testing.assert_allclose(interpolate(values, places, axis), expected, atol=1e-12)


def _person(**attributes):
    grey = (0.4, 0.4, 0.4)
    plain = {name: Style("none", grey) for name in ("hair", "hat", "bag")}
    plain |= dict.fromkeys(("skin", "top_colour", "inner_colour", "bottom_colour", "shoes"), grey)
    plain |= {"top": "t-shirt", "bottom": "trousers", "top_pattern": Pattern("plain", grey, 1.0, 0.1)}
    return draw_identity(np.random.default_rng(4))._replace(**{**plain, **attributes})


def _seen(who, yaw, colour):
    """Returns how many pixels of ``colour`` (red, green or blue) are seen from ``yaw``."""
    canvas = _canvas(220, 200, (100, 205), 0.5)
    canvas.paint(figure(who, Pose(yaw, 0.1, 1.0, 0.3, ("swing", "swing"))))
    main = np.argmax(colour)
    others = np.delete(canvas.rgb, main, axis=-1).max(axis=-1)
    return int((canvas.rgb[..., main] - others > 0.25).sum())


def test_a_logo_is_seen_from_the_front_alone():
    who = _person(top_pattern=Pattern("logo", RED, 1.0, 0.1))
    assert _seen(who, 0.0, RED) > 60
    assert _seen(who, np.pi, RED) == 0


def test_a_backpack_is_seen_from_the_back_and_its_straps_from_the_front():
    who = _person(bag=Style("backpack", GREEN))
    back, side, front = (_seen(who, yaw, GREEN) for yaw in (np.pi, np.pi / 2, 0.0))
    assert back > side > front > 30


@pytest.mark.parametrize("kind", sorted(set(BAGS) - {"none", "backpack"}))
def test_other_bags_are_seen_from_their_side(kind):
    sides = [_seen(_person(bag=Style(kind, GREEN)), yaw, GREEN) for yaw in (np.pi / 2, -np.pi / 2)]
    assert max(sides) > 200
    assert _seen(_person(), np.pi / 2, GREEN) == _seen(_person(), -np.pi / 2, GREEN) == 0


@pytest.mark.parametrize("kind", sorted(set(HATS) - {"none"}))
def test_hats_are_seen_from_everywhere(kind):
    who = _person(hat=Style(kind, BLUE))
    assert min(_seen(who, yaw, BLUE) for yaw in np.linspace(0, 2 * np.pi, 8)) > 60


@pytest.mark.parametrize("kind", sorted(set(PATTERNS) - {"plain", "logo"}))
@pytest.mark.parametrize("top", TOPS)
def test_other_patterns_are_seen_from_every_side(kind, top):
    who = _person(top=top, top_pattern=Pattern(kind, RED, 1.0, 0.3))
    assert min(_seen(who, yaw, RED) for yaw in (0.0, np.pi / 2, np.pi, -np.pi / 2)) > 40


@pytest.mark.parametrize("stride", [0.0, 0.45])
def test_a_figure_is_as_tall_as_its_person_and_stands_on_the_ground(stride):
    for seed in range(6):
        who = draw_identity(np.random.default_rng(seed))._replace(hat=Style("none", RED), hair=Style("bald", RED))
        canvas = _canvas(240, 200, (100, 220))
        canvas.paint(figure(who, Pose(0.0, 0.0, np.pi / 2, stride, ("swing", "swing"))))
        rows = np.flatnonzero(canvas.rgb.sum(axis=(1, 2)) > 0)
        top, bottom = (220 - rows[0]) / 100, (220 - rows[-1]) / 100
        assert abs(bottom) < 0.06
        assert 0.90 * who.height < top < 1.06 * who.height


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_scenes_are_seeded(name):
    picture = scene(name, 3)
    assert picture.shape == (int(SCENE_SIZE[1] * SCENE_SCALE), int(SCENE_SIZE[0] * SCENE_SCALE), 3)
    assert 0 <= picture.min() < picture.max() <= 1
    scene.cache_clear()
    np.testing.assert_array_equal(scene(name, 3), picture)
    assert (scene(name, 4) != picture).any()


@pytest.mark.parametrize("kind", sorted(THINGS))
def test_things_stand_on_the_ground_and_are_as_wide_as_they_say(kind):
    canvas = _canvas(460, 600, (300, 440))
    canvas.paint(thing(kind, np.random.default_rng(1)))
    rows, columns = np.nonzero(canvas.rgb.sum(axis=-1) > 0.02)
    assert rows.max() == pytest.approx(440, abs=9)
    assert columns.max() - 300 == pytest.approx(100 * half_width(kind), abs=2)


def test_expose_keeps_layout_and_changes_colour():
    rgb = np.zeros((200, 100, 3), np.float32)
    rgb[:100], rgb[100:] = 0.7, 0.2
    for camera in CAMERAS:
        image = expose(rgb, camera, np.ones(3), (50, 100), np.random.default_rng(0))
        assert (image.mode, image.size) == ("RGB", (50, 100))
        values = np.asarray(image, np.float32)
        assert values[:45].mean() > values[55:].mean() + 40
