"""Ranked lists, pixel by pixel."""

import numpy as np
import pytest

from han_tf.viz.ranked import FRAME, QUERY, RIGHT, WRONG, RankedList, ranked_sheet

CELL = (40, 20)


def plain(value):
    return np.full([*CELL, 3], value, np.uint8)


def ranked(correct, query=10, caption=()):
    """A list whose gallery images have grey values 101, 102, ... by rank."""
    count = len(correct)
    return RankedList(
        plain(query),
        [plain(100 + rank) for rank in range(1, count + 1)],
        np.linspace(0.1, 1, count),
        np.array(correct),
        np.arange(count),
        caption,
    )


def cell_of(sheet, value):
    """Returns the left, top, right and bottom (inclusive) of the image with a grey value on a sheet."""
    rows, columns = np.nonzero((sheet == value).all(axis=-1))
    box = int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())
    assert (box[3] - box[1] + 1, box[2] - box[0] + 1) == CELL
    return box


def frame_colours(sheet, value):
    left, top, right, bottom = cell_of(sheet, value)
    rows = slice(top - FRAME, bottom + FRAME + 1)
    columns = slice(left - FRAME, right + FRAME + 1)
    inside = np.zeros(sheet.shape[:2], bool)
    inside[rows, columns] = True
    inside[top : bottom + 1, left : right + 1] = False
    return {tuple(colour) for colour in sheet[inside].tolist()}


def test_frames_tell_right_from_wrong():
    sheet = np.asarray(ranked_sheet([ranked([True, False, True])], CELL))
    assert frame_colours(sheet, 10) == {QUERY}
    assert [frame_colours(sheet, value) for value in (101, 102, 103)] == [{RIGHT}, {WRONG}, {RIGHT}]


def test_query_is_left_and_ranks_go_right():
    sheet = np.asarray(ranked_sheet([ranked([True] * 5)], CELL))
    cells = [cell_of(sheet, value) for value in (10, 101, 102, 103, 104, 105)]
    assert [cell[0] for cell in cells] == sorted(cell[0] for cell in cells)
    assert len({cell[1] for cell in cells}) == 1
    steps = np.diff([cell[0] for cell in cells])
    assert steps[0] > steps[1]
    assert len(set(steps[1:])) == 1


def test_lists_are_rows_and_may_differ_in_length():
    short = ranked([False, False], query=20)._replace(gallery=[plain(201), plain(202)])
    sheet = np.asarray(ranked_sheet([ranked([True] * 4), short], CELL))
    upper, lower = cell_of(sheet, 10), cell_of(sheet, 20)
    assert upper[0] == lower[0]
    assert upper[3] < lower[1]
    assert cell_of(sheet, 201)[0] == cell_of(sheet, 101)[0]
    assert cell_of(sheet, 202)[0] == cell_of(sheet, 102)[0]


def test_margins_are_white():
    lists = [ranked([True, False], caption=["a very long caption"] * 5)]
    sheet = np.asarray(ranked_sheet(lists, (192, 96), title="t" * 500))
    for border in (sheet[:20], sheet[-20:], sheet[:, :20], sheet[:, -20:]):
        assert (border == 255).all()


def test_images_of_any_size_fill_their_cells():
    small = ranked([True])._replace(gallery=[np.full([7, 9, 3], 101, np.uint8)])
    cell_of(np.asarray(ranked_sheet([small], CELL)), 101)


def test_every_image_has_text_of_its_frames_colour_below():
    sheet = np.asarray(ranked_sheet([ranked([True, False])], (192, 96)).convert("RGB"))
    for value, colour in ((101, RIGHT), (102, WRONG)):
        rows, columns = np.nonzero((sheet == value).all(axis=-1))
        below = sheet[rows.max() + FRAME + 2 : rows.max() + FRAME + 22, columns.min() - FRAME : columns.max()]
        assert (below == colour).all(axis=-1).sum() > 5


@pytest.mark.parametrize("change", ["distances", "camids", "caption"])
def test_distance_camera_and_caption_are_written(change):
    one = ranked([True], caption=["pid 1"])
    other = one._replace(**{change: ["pid 2"] if change == "caption" else getattr(one, change) + 3})
    first, second = (np.asarray(ranked_sheet([each], CELL)) for each in (one, other))
    assert first.shape == second.shape
    rows = np.nonzero((first != second).any(axis=(1, 2)))[0]
    assert rows.min() > cell_of(first, 101)[3] + FRAME


def test_captions_of_many_lines_make_room():
    low, high = (ranked_sheet([ranked([True], caption=["x"] * lines)], CELL) for lines in (2, 4))
    assert high.height == low.height + 32
