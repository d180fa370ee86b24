"""Fonts and text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.viz.drawing import fitted, font, new_sheet, save_png


@given(st.text(max_size=60), st.integers(20, 200))
def test_fitted_text_fits_and_keeps_both_ends(text, width):
    face = font(11)
    short = fitted(text, face, width)
    assert face.getlength(short) <= width
    assert len(short) <= len(text)
    if text.isprintable() and short != text:
        cut = (len(short) - 1) // 2
        assert short[cut] == "…"
        assert text.startswith(short[:cut])
        assert text.endswith(short[cut + 1 :])


def test_fitted_text_can_be_drawn_whatever_the_file_is_called():
    assert fitted("a\x1eb\nc\udcff", font(11), 500) == "a?b?c?"


def test_fitted_keeps_what_fits():
    assert fitted("0002_c1s1_000451_03.jpg", font(11), 500) == "0002_c1s1_000451_03.jpg"


def test_the_font_has_the_marks_of_ranked_lists():
    boxes = {mark: bytes(font(12).getmask(mark)) for mark in "✓✗\uffff"}
    assert len(set(boxes.values())) == 3


def test_png_is_written_whole(tmp_path):
    sheet, draw = new_sheet(30, 20)
    draw.point((3, 4), (1, 2, 3))
    save_png(tmp_path / "new" / "a.png", sheet)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.size == (30, 20)
        assert image.getpixel((3, 4)) == (1, 2, 3)
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_png_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_png(tmp_path / "file" / "a.png", new_sheet(1, 1)[0])
