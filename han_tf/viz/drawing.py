"""Fonts, colours, shortened text and PNG files for the sheets."""

import os
from functools import cache
from pathlib import Path
from typing import Union

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from han_tf.common.files import atomic_open

INK = (28, 28, 32)
FAINT = (118, 118, 126)
PAPER = (255, 255, 255)


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Returns matplotlib's DejaVu Sans, ``size`` pixels high."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    # The other engine is not in every build of Pillow and sets text slightly differently.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def new_sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns a white sheet of this size in pixels, and its drawing context."""
    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def fitted(text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    """Returns ``text``, shortened in its middle if it is wider than ``width`` pixels.

    The end is kept, since names of image files mostly differ there. Characters that cannot be printed become question
    marks.
    """
    text = "".join(character if character.isprintable() else "?" for character in text)
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]
        if face.getlength(short) <= width:
            return short
    return "…"


def save_png(path: Union[str, os.PathLike], sheet: Image.Image) -> None:
    """Writes ``sheet`` to ``path`` as PNG, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    with atomic_open(path) as stream:
        sheet.save(stream, "PNG", optimize=True)
