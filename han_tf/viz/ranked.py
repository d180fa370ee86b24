"""Ranked lists: queries, each with its nearest gallery images."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image

from han_tf.viz.drawing import FAINT, INK, fitted, font, new_sheet

RIGHT = (24, 160, 72)
"""RGB of the frame of a gallery image that shows the query person."""

WRONG = (214, 40, 48)
"""RGB of the frame of a gallery image that shows another person."""

QUERY = (60, 60, 68)
"""RGB of the frame of a query."""

FRAME = 5
"""Width of a frame, in pixels of the sheet."""


class RankedList(NamedTuple):
    """One query and the top of its ranked gallery, nearest first.

    Images that the protocol does not rank for this query (junk; the same person seen by the same camera)
    must not be among them.

    Attributes:
      query: ``[height, width, 3]`` uint8, RGB.
      gallery: k images like it, of any sizes.
      distances: ``[k]`` float.
      correct: ``[k]`` bool, whether the image shows the query person.
      camids: ``[k]`` int, the cameras of the gallery images.
      caption: a few short lines under the query, e.g. its pid and camera.
    """

    query: np.ndarray
    gallery: Sequence[np.ndarray]
    distances: np.ndarray
    correct: np.ndarray
    camids: np.ndarray
    caption: Sequence[str] = ()


def ranked_sheet(
    lists: Sequence[RankedList], cell_size: Sequence[int] = (192, 96), title: Optional[str] = None
) -> Image.Image:
    """Draws ranked lists, a row each: the query, then the gallery, framed green (right) or red (wrong).

    Below each gallery image are its rank, a tick or a cross (readable without colours), its distance and its camera.

    Args:
      lists: at least one; they may be of different lengths.
      cell_size: height and width that every image is resized to, in pixels.
      title: a line over the sheet.

    Returns:
      An RGB image.
    """
    height, width = cell_size
    edge, gap, query_gap, row_gap, line = 22, 8, 26, 16, 16
    cell_width, cell_height = width + 2 * FRAME, height + 2 * FRAME
    lines = max(2, *(len(ranked.caption) for ranked in lists))
    row_height = cell_height + 6 + lines * line
    longest = max(len(ranked.gallery) for ranked in lists)
    first = edge + cell_width + query_gap
    title_height = 34 if title else 0
    sheet, draw = new_sheet(
        first + longest * (cell_width + gap) - gap + edge,
        2 * edge + title_height + len(lists) * (row_height + row_gap) - row_gap,
    )
    if title:
        text = fitted(title, font(16, bold=True), sheet.width - 2 * edge)
        draw.text((edge, edge), text, INK, font(16, bold=True), anchor="la")

    def place(image: np.ndarray, left: int, top: int, colour: tuple[int, int, int]) -> None:
        draw.rectangle((left, top, left + cell_width - 1, top + cell_height - 1), colour)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(resized, (left + FRAME, top + FRAME))

    for row, ranked in enumerate(lists):
        top = edge + title_height + row * (row_height + row_gap)
        below = top + cell_height + 6
        place(ranked.query, edge, top, QUERY)
        for number, text in enumerate(ranked.caption):
            face = font(12, bold=number == 0)
            shown = fitted(text, face, cell_width + query_gap - 4)
            draw.text((edge, below + number * line), shown, FAINT if number else INK, face, anchor="la")
        for rank, (image, distance, correct, camid) in enumerate(
            zip(ranked.gallery, ranked.distances, ranked.correct, ranked.camids), start=1
        ):
            left = first + (rank - 1) * (cell_width + gap)
            colour = RIGHT if correct else WRONG
            place(image, left, top, colour)
            mark = "✓" if correct else "✗"
            draw.text((left, below), f"{rank} {mark}", colour, font(12, bold=True), anchor="la")
            draw.text((left + cell_width, below), f"{distance:.3f}", INK, font(12), anchor="ra")
            draw.text((left, below + line), f"camera {camid}", FAINT, font(12), anchor="la")
    return sheet
