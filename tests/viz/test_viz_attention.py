"""Attention pictures, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

from han_tf.models import create_model
from han_tf.models.network import LevelAttention
from han_tf.viz.attention import (
    OUTSIDE,
    REGION_COLOURS,
    Margin,
    attend,
    attention_panels,
    attention_sheet,
    heat_overlay,
    margin_of,
    region_overlay,
    relative_attention,
)
from tests.conftest import TINY_ARGS

RED, BLUE, GREEN, VIOLET = REGION_COLOURS[:4]
GREY = np.full([40, 20, 3], 128, np.uint8)


def tiny(**switches):
    return create_model("han_small", input_size=(80, 32), **TINY_ARGS, **switches)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 256, [2, 80, 32, 3], np.uint8)


def pixel(picture, x, y):
    return tuple(int(value) for value in np.asarray(picture)[y, x])


class TestRelativeAttention:
    def test_is_the_stretched_mean_over_channels(self):
        soft = np.zeros([2, 2, 2], np.float32)
        soft[0, 0] = 0.5, 0.5
        soft[0, 1] = 0.5, 0.7
        soft[1, 0] = 0.9, 0.7
        soft[1, 1] = 0.9, 0.9
        np.testing.assert_allclose(relative_attention(soft), [[0, 0.25], [0.75, 1]], atol=1e-6)

    def test_hides_scale_and_offset(self):
        soft = np.random.default_rng(0).uniform(0.5, 1, [10, 4, 16])
        np.testing.assert_allclose(relative_attention(soft), relative_attention(0.3 + 0.05 * soft), atol=1e-5)

    def test_a_flat_map_prefers_nothing(self):
        soft = np.full([5, 3, 7], 0.73, np.float32)
        soft[0, 0, 0] += np.float32(1e-7)
        assert not relative_attention(soft).any()


class TestHeatOverlay:
    def test_grows_lighter_with_attention(self):
        attention = np.tile(np.linspace(0, 1, 20), (40, 1))
        lightness = np.asarray(Image.fromarray(heat_overlay(GREY, attention)).convert("L"), int)
        assert (np.diff(lightness, axis=1) >= 0).all()
        assert lightness[0, -1] > lightness[0, 0] + 60

    def test_shows_a_map_where_it_belongs(self):
        attention = np.zeros([10, 5])
        attention[7, 1] = 1  # rows 28 to 31, columns 4 to 7 of the image
        lightness = heat_overlay(GREY, attention).sum(axis=-1)
        rows, columns = np.nonzero(lightness == lightness.max())
        assert (rows.mean(), columns.mean()) == (29.5, 5.5)

    def test_colours_are_attention_only(self):
        image = np.zeros([40, 20, 3], np.uint8)
        image[:20, :, 0], image[20:, :, 2] = 255, 255
        cold = heat_overlay(image, np.zeros([10, 5])).astype(int)
        assert np.ptp(cold, axis=-1).max() <= 4

    def test_keeps_the_image_visible(self):
        image = GREY.copy()
        image[10:20] = 200
        picture = heat_overlay(image, np.full([10, 5], 0.5)).astype(int)
        assert (picture[15] > picture[30] + 20).all()


class TestMarginOf:
    def test_reaches_to_the_outermost_edge(self):
        boxes = np.array([[[-3.2, 5, 10, 15]], [[2, 5, 21.5, 46.1]]])
        assert margin_of(boxes, (40, 20)) == (4, 7)

    def test_is_nothing_for_boxes_inside(self):
        assert margin_of(np.array([[0, 0, 20, 40.0000038]]), (40, 20)) == (0, 0)

    def test_is_at_most_half_the_image(self):
        assert margin_of(np.array([[-1000, -1000, 1000, 1000]]), (41, 20)) == (10, 21)


class TestRegionOverlay:
    def test_edges_have_the_regions_colours(self):
        boxes = np.array([[2, 1, 18, 9], [2, 11, 18, 19], [2, 21, 18, 29], [2, 31, 18, 39]], float)
        picture = region_overlay(GREY, boxes)
        for (left, top, right, bottom), colour in zip(boxes.astype(int), (RED, BLUE, GREEN, VIOLET)):
            for x, y in ((left, top), (right - 1, top), (left, bottom - 1), (right - 1, bottom - 1), (10, top)):
                assert pixel(picture, x, y) == colour
            assert pixel(picture, left - 1, top) == pixel(picture, left, top - 1) == (128, 128, 128)
            assert pixel(picture, right, top) == pixel(picture, left, bottom) == (128, 128, 128)
            assert pixel(picture, 10, (top + bottom) // 2) == (128, 128, 128)

    def test_enlarges_and_pads(self):
        picture = region_overlay(GREY, np.array([[-4, -2, 10, 30.0]]), Margin(5, 3), scale=3)
        assert picture.shape == (3 * (40 + 6), 3 * (20 + 10), 3)
        assert pixel(picture, 0, 0) == pixel(picture, 89, 137) == OUTSIDE
        assert pixel(picture, 3 * (5 - 4), 3 * (3 - 2)) == RED
        assert pixel(picture, 3 * (5 - 4) - 1, 3 * (3 - 2)) == OUTSIDE
        assert pixel(picture, 3 * (5 + 10) - 1, 3 * (3 + 30) - 1) == RED
        assert pixel(picture, 3 * 5 + 45, 3 * 3 + 60) == (128, 128, 128)

    def test_what_lies_past_the_margin_is_cut_off(self):
        whole = region_overlay(GREY, np.array([[-50, 10, 70, 30.0]]))
        assert pixel(whole, 0, 10) == pixel(whole, 19, 29) == RED
        assert pixel(whole, 0, 20) == (128, 128, 128)
        gone = region_overlay(GREY, np.array([[100, 100, 120, 120.0]]))
        np.testing.assert_array_equal(gone, GREY)

    def test_regions_on_one_spot_all_show(self):
        picture = region_overlay(GREY, np.tile([[2.0, 2, 18, 38]], (4, 1)), scale=2)
        shown = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
        assert {RED, BLUE, GREEN, VIOLET} <= shown
        counts = [(picture == colour).all(axis=-1).sum() for colour in (RED, BLUE, GREEN, VIOLET)]
        assert max(counts) < 2 * min(counts)

    def test_more_regions_than_colours_start_over(self):
        boxes = np.array([[0, 3 * n, 20, 3 * n + 3.0] for n in range(12)])
        picture = region_overlay(GREY, boxes)
        assert pixel(picture, 0, 0) == pixel(picture, 0, 30) == RED
        assert pixel(picture, 0, 12) == REGION_COLOURS[4]


def levels_of(soft=True, count=2, regions=4):
    """Soft maps whose warm spot is at the top, in the middle and at the bottom, by level."""
    levels = []
    boxes = np.array([[4, 8.0 * n, 28, 8.0 * n + 8] for n in range(regions)])
    for level, (height, width) in enumerate(((20, 8), (10, 4), (5, 2))):
        mean = np.full([count, height, width, 3], 0.5)
        mean[:, level * height // 3 + height // 6] = 0.9
        levels.append(LevelAttention(mean if soft else None, np.zeros([count, regions, 2]), np.stack([boxes] * count)))
    return levels


def find(sheet, picture):
    """Returns (x, y) of every place where a picture stands on a sheet, left to right."""
    sheet = np.asarray(sheet)
    height, width = picture.shape[:2]
    hits = np.argwhere((sheet == picture[0, 0]).all(axis=-1))
    places = {
        (int(x), int(y))
        for y, x in hits
        if sheet[y : y + height, x : x + width].shape == picture.shape
        and (sheet[y : y + height, x : x + width] == picture).all()
    }
    return sorted(places)


class TestAttentionSheet:
    def test_columns_are_those_of_figure_7(self, images):
        levels = levels_of()
        sheet = attention_sheet(images, levels, scale=1)
        for row in range(2):
            (original,) = find(sheet, images[row])
            hard = find(sheet, region_overlay(images[row], levels[0].boxes[row]))
            soft = [find(sheet, heat_overlay(images[row], relative_attention(level.soft[row]))) for level in levels]
            assert [len(places) for places in (hard, *soft)] == [3, 1, 1, 1]
            order = [original, hard[0], *soft[0], hard[1], *soft[1], hard[2], *soft[2]]
            assert [x for x, _ in order] == sorted(x for x, _ in order)
            assert len({y for _, y in order}) == 1

    def test_rows_are_images_in_order(self, images):
        sheet = attention_sheet(images, levels_of(), scale=1)
        (first,), (second,) = find(sheet, images[0]), find(sheet, images[1])
        assert first[0] == second[0]
        assert first[1] + 80 < second[1]

    def test_images_line_up_when_regions_reach_outside(self, images):
        levels = levels_of()
        levels[1].boxes[1, 0] += [-9, -6, -9, -6]  # from (4, 0) to (-5, -6)
        sheet = attention_sheet(images, levels, scale=1)
        (original,) = find(sheet, images[0])
        padded = find(sheet, region_overlay(images[0], levels[0].boxes[0], Margin(5, 6)))
        assert len(padded) == 3
        assert {y for _, y in padded} == {original[1] - 6}

    def test_is_white_between(self, images):
        sheet = np.asarray(attention_sheet(images, levels_of()))
        assert (sheet[:10] == 255).all()
        assert (sheet[:, :10] == 255).all()
        assert (sheet[:, -10:] == 255).all()
        assert (sheet[-10:] == 255).all()

    def test_without_soft_attention(self, images):
        levels = levels_of(soft=False)
        sheet = attention_sheet(images, levels, scale=1)
        assert sheet.width < attention_sheet(images, levels_of(), scale=1).width
        assert len(find(sheet, region_overlay(images[0], levels[0].boxes[0]))) == 3

    def test_levels_without_regions_have_no_column_for_them(self, images):
        levels = levels_of()
        lacking = [levels[0]] + [level._replace(theta=None, boxes=None) for level in levels[1:]]
        # As wide as the legend at scale 1.
        assert attention_sheet(images, lacking).width < attention_sheet(images, levels).width
        sheet = attention_sheet(images, lacking, scale=1)
        assert len(find(sheet, region_overlay(images[0], levels[0].boxes[0]))) == 1
        softs = [find(sheet, heat_overlay(images[0], relative_attention(level.soft[0]))) for level in levels]
        assert [len(places) for places in softs] == [1, 1, 1]

    def test_no_regions_at_all(self, images):
        sheet = attention_sheet(images, [level._replace(theta=None, boxes=None) for level in levels_of()], scale=1)
        assert len(find(sheet, images[0])) == 1
        for colour in (RED, BLUE, GREEN, VIOLET, OUTSIDE):
            assert not (np.asarray(sheet) == colour).all(axis=-1).any()

    @pytest.mark.parametrize("regions", [1, 4, 11])
    def test_names_every_region_within_the_sheet(self, images, regions):
        sheet = np.asarray(attention_sheet(images, levels_of(soft=False, regions=regions)[:1], scale=1))
        (place,) = find(sheet, images[1])
        legend = sheet[place[1] + 100 :]
        for colour in REGION_COLOURS[:regions]:
            assert (legend == colour).all(axis=-1).sum() >= 144
        assert (sheet[:, -10:] == 255).all()

    def test_scale_enlarges_and_captions_keep_the_size(self, images):
        plain = attention_sheet(images, levels_of(), scale=2)
        named = attention_sheet(images, levels_of(), ["a" * 99, "β.jpg"], scale=2)
        assert plain.size == named.size
        assert plain.width > 1.5 * attention_sheet(images, levels_of(), scale=1).width
        assert np.any(np.asarray(plain) != np.asarray(named))


class TestAttend:
    def test_is_what_the_network_attends_to(self, model, images):
        levels = attend(model, images)
        expected = model.branches(images).attention
        assert [level.soft.shape for level in levels] == [(2, 20, 8, 16), (2, 10, 4, 32), (2, 5, 2, 48)]
        for level, tensors in zip(levels, expected):
            assert isinstance(level.boxes, np.ndarray)
            np.testing.assert_array_equal(level.soft, tensors.soft.numpy())
            np.testing.assert_array_equal(level.boxes, tensors.boxes.numpy())

    def test_without_interaction_later_levels_have_no_regions(self, images):
        """Table 10, and Table 9's first row on top of it: two levels with nothing at all."""
        alone = tiny(interaction=False)
        levels = attend(alone, images)
        assert [level.boxes is None for level in levels] == [False, True, True]
        assert list(attention_panels(alone, images)) == ["level1/regions"] + [f"level{n}/soft" for n in (1, 2, 3)]
        bare = tiny(interaction=False, spatial=False, channel=False, hard=False)
        assert list(attention_panels(bare, images)) == ["level1/regions"]
        sheet = attention_sheet(images, attend(bare, images), scale=1)
        assert len(find(sheet, region_overlay(images[0], attend(bare, images)[0].boxes[0], Margin(0, 2)))) == 1

    def test_with_fixed_regions(self, images):
        """Hard attention off: the strips are the same on every image, and all of them show."""
        fixed = tiny(hard=False)
        levels = attend(fixed, images)
        sheet = attention_sheet(images, levels, scale=1)
        # 12 of 40 rows and 14 of 16 columns, on pixels twice as large; centred at 1/8, 3/8, 5/8 and 7/8 of the height.
        strips = np.array([[2, centre - 12, 30, centre + 12] for centre in (10, 30, 50, 70)], float)
        for level in levels[:2]:
            np.testing.assert_allclose(level.boxes, [strips, strips], atol=1e-4)
        for row in range(2):
            assert len(find(sheet, region_overlay(images[row], strips, Margin(0, 2)))) == 2

    def test_without_soft_attention(self, images):
        bare = tiny(spatial=False, channel=False)
        assert [level.soft for level in attend(bare, images)] == [None] * 3
        assert set(attention_panels(bare, images)) == {f"level{level}/regions" for level in (1, 2, 3)}


class TestAttentionPanels:
    def test_is_one_stack_per_level_and_kind(self, model, images):
        panels = attention_panels(model, images, scale=2)
        assert list(panels) == [f"level{n}/{kind}" for n in (1, 2, 3) for kind in ("regions", "soft")]
        assert {panel.dtype for panel in panels.values()} == {np.dtype(np.uint8)}
        assert {panels[f"level{n}/soft"].shape for n in (1, 2, 3)} == {(2, 160, 64, 3)}
        # Regions are 24 × 28 pixels, so that 12 × 14 may lie outside; 24 × 32 at level 3, by rounding up.
        assert [panels[f"level{n}/regions"].shape for n in (1, 2, 3)] == [
            (2, 208, 120, 3),
            (2, 208, 120, 3),
            (2, 208, 128, 3),
        ]

    def test_size_does_not_depend_on_where_the_regions_are(self, images):
        moved = tiny()
        before = attention_panels(moved, images)
        for attention in moved.attentions:
            attention.hard.localisation.bias.assign([9, 9, -9, -9, 9, -9, -9, 9])
        after = attention_panels(moved, images)
        assert {name: panel.shape for name, panel in before.items()} == {
            name: panel.shape for name, panel in after.items()
        }
        corner = after["level1/regions"][0]
        assert pixel(corner, -1, -1) == RED
        assert pixel(corner, 0, 0) == BLUE
        assert pixel(corner, -1, 0) == GREEN
        assert pixel(corner, 0, -1) == VIOLET
