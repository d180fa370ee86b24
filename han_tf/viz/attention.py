"""Pictures of a network's attention as in Fig. 7: soft maps as heat, hard regions as boxes, level by level."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import matplotlib
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from han_tf.models.network import LevelAttention, ReIDNetwork
from han_tf.viz.drawing import FAINT, INK, fitted, font, new_sheet

REGION_COLOURS = (
    (230, 30, 40),
    (35, 95, 255),
    (20, 175, 65),
    (160, 60, 230),
    (255, 140, 0),
    (0, 185, 205),
    (235, 70, 175),
    (200, 170, 0),
    (130, 80, 40),
    (110, 110, 110),
)
"""RGB of the regions: red, blue, green and violet as in Fig. 7, then more; they start over after the last."""

BODY_PARTS = ("head and shoulders", "upper body", "upper legs", "lower legs")
"""The parts that the four regions cover (Fig. 7)."""

OUTSIDE = (226, 226, 230)
"""RGB of the area outside the image, where a crop reads 0."""

HEAT_COLOURS = "inferno"
"""matplotlib's colour map for soft maps; its lightness grows with attention, so it is readable in grey."""

HEAT_OPACITY = 0.5

_LINE = 1.5
_DASH = 5
_FLAT = 1e-6


class Margin(NamedTuple):
    """Width of the margins around an image that show boxes past its border, in image pixels."""

    x: int
    y: int


NO_MARGIN = Margin(0, 0)


def relative_attention(soft: np.ndarray) -> np.ndarray:
    """Returns how much a soft map attends to each position, relative to the others of that map.

    This is the mean over channels, stretched linearly to 0 at the least and 1 at the most attended position, since
    the means of one map often differ by a few hundredths only. Values of different maps must not be compared. A
    constant map gives 0.

    Args:
      soft: ``[height, width, channels]`` float, in [0.5, 1).

    Returns:
      ``[height, width]`` float32 in [0, 1].
    """
    mean = soft.astype(np.float64).mean(axis=-1)
    low, high = mean.min(), mean.max()
    # Smaller differences are rounding errors of float32.
    if high - low < _FLAT:
        return np.zeros(mean.shape, np.float32)
    return ((mean - low) / (high - low)).astype(np.float32)


def heat_overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Returns a grey image with attention as heat over it.

    The least attended position of the map is black-violet, the most attended one orange to pale yellow.

    Args:
      image: ``[height, width, 3]`` uint8, RGB.
      attention: ``[h, w]`` float in [0, 1], see :func:`relative_attention`; resized bilinearly to the
        image.

    Returns:
      ``[height, width, 3]`` uint8.
    """
    height, width = image.shape[:2]
    resized = Image.fromarray(attention.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    heat = matplotlib.colormaps[HEAT_COLOURS](np.clip(np.asarray(resized), 0, 1))[..., :3] * 255
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float64)[..., None]
    return np.rint((1 - HEAT_OPACITY) * grey + HEAT_OPACITY * heat).astype(np.uint8)


def margin_of(boxes: np.ndarray, image_size: Sequence[int]) -> Margin:
    """Returns the least margin that shows ``boxes`` completely, at most half the image's width and height.

    No region of HAN reaches further out.

    Args:
      boxes: ``[..., 4]`` float, (x_min, y_min, x_max, y_max) in image pixels.
      image_size: height and width, in pixels.
    """
    height, width = image_size
    beyond_x = max(-boxes[..., 0].min(), boxes[..., 2].max() - width)
    beyond_y = max(-boxes[..., 1].min(), boxes[..., 3].max() - height)
    # A hundredth of a pixel is not visible, and float32 boxes are not more exact.
    needed = np.ceil(np.array([beyond_x, beyond_y]) - 0.01)
    x, y = np.clip(needed, 0, [-(-width // 2), -(-height // 2)]).astype(int)
    return Margin(int(x), int(y))


def region_overlay(image: np.ndarray, boxes: np.ndarray, margin: Margin = NO_MARGIN, scale: int = 1) -> np.ndarray:
    """Returns an image with a grey margin and regions as coloured boxes.

    Where outlines overlap they alternate, so that no region hides another. Boxes are cut off at the margin.

    Args:
      image: ``[height, width, 3]`` uint8, RGB.
      boxes: ``[regions, 4]`` float, (x_min, y_min, x_max, y_max) in image pixels; x = 0 is the left edge
        of the first pixel. They may reach past the border.
      margin: width of the margins, in image pixels.
      scale: how many pixels an image pixel becomes, each way.

    Returns:
      ``[scale·(height + 2·margin.y), scale·(width + 2·margin.x), 3]`` uint8.
    """
    height, width = image.shape[:2]
    canvas = np.empty([scale * (height + 2 * margin.y), scale * (width + 2 * margin.x), 3], np.uint8)
    canvas[:] = OUTSIDE
    top, left = scale * margin.y, scale * margin.x
    canvas[top : top + scale * height, left : left + scale * width] = _enlarged(image, scale)

    edges = np.rint(scale * (boxes + np.tile(margin, 2))).astype(np.int64)
    x_min, y_min, x_max, y_max = (edge[:, None, None] for edge in edges.T)
    ys, xs = np.mgrid[: canvas.shape[0], : canvas.shape[1]]
    line = round(_LINE * scale)

    def within(inset: int) -> np.ndarray:
        across = (xs >= x_min + inset) & (xs < x_max - inset)
        return across & (ys >= y_min + inset) & (ys < y_max - inset)

    outlines = within(0) & ~within(line)
    meeting = outlines.sum(axis=0)
    turn = (xs + ys) // (_DASH * scale) % np.maximum(meeting, 1)
    place = np.cumsum(outlines, axis=0) - 1
    for region, outline in enumerate(outlines):
        canvas[outline & (place[region] == turn)] = region_colour(region)
    return canvas


def region_colour(region: int) -> tuple[int, int, int]:
    """Returns the RGB colour of a region, counted from 0."""
    return REGION_COLOURS[region % len(REGION_COLOURS)]


def attend(model: ReIDNetwork, images: np.ndarray) -> tuple[LevelAttention, ...]:
    """Returns each level's attention in NumPy arrays, first level first, from one forward pass.

    Args:
      model: the network.
      images: ``[n, height, width, 3]`` uint8, of the network's input size.
    """
    levels = model.branches(tf.constant(images), training=False).attention
    return tuple(LevelAttention(*(None if value is None else value.numpy() for value in level)) for level in levels)


def attention_panels(model: ReIDNetwork, images: np.ndarray, scale: int = 2) -> dict[str, np.ndarray]:
    """Returns pictures of each level's attention, for TensorBoard.

    Args:
      model: the network.
      images: ``[n, height, width, 3]`` uint8, of the network's input size.
      scale: how many pixels an image pixel becomes, each way.

    Returns:
      ``level1/regions``, ``level1/soft``, ``level2/regions``, … -> ``[n, h, w, 3]`` uint8. The margin around the
      images has room for any region of the network, so sizes stay the same during training. A level without regions
      has no ``regions``, one without soft attention no ``soft``.
    """
    panels = {}
    for number, level in enumerate(attend(model, images), start=1):
        if level.boxes is not None:
            sides = level.boxes[0, 0, 2:] - level.boxes[0, 0, :2]
            margin = Margin(*(int(np.ceil(side / 2 - 0.01)) for side in sides))
            panels[f"level{number}/regions"] = np.stack(
                [region_overlay(image, boxes, margin, scale) for image, boxes in zip(images, level.boxes)]
            )
        if level.soft is not None:
            panels[f"level{number}/soft"] = np.stack(
                [
                    heat_overlay(_enlarged(image, scale), relative_attention(soft))
                    for image, soft in zip(images, level.soft)
                ]
            )
    return panels


def attention_sheet(
    images: np.ndarray,
    levels: Sequence[LevelAttention],
    captions: Optional[Sequence[str]] = None,
    scale: int = 2,
) -> Image.Image:
    """Draws the sheet of Fig. 7: a row per image, with the image and each level's hard and soft attention.

    Regions are boxes, see :func:`region_overlay`. Soft attention is heat, see :func:`heat_overlay`; the two numbers
    under it are the least and the greatest mean over channels, between which that map's contrast is stretched.

    Args:
      images: ``[n, height, width, 3]`` uint8, RGB.
      levels: each level's attention, from :func:`attend`. Regions or soft attention that a level lacks have no column.
      captions: a line under each image.
      scale: how many pixels an image pixel becomes, each way.

    Returns:
      An RGB image.
    """
    count, height, width = images.shape[:3]
    boxes = [level.boxes for level in levels if level.boxes is not None]
    margin = margin_of(np.stack(boxes), (height, width)) if boxes else NO_MARGIN
    cell_width, cell_height = scale * width, scale * height
    region_width = cell_width + 2 * scale * margin.x
    edge, gap, level_gap, caption_height, heading_height = 20, 8, 22, 22, 46

    columns, right = [], edge + cell_width
    for number, level in enumerate(levels, start=1):
        before = level_gap
        for kind, shown, column_width in (("hard", level.boxes, region_width), ("soft", level.soft, cell_width)):
            if shown is not None:
                columns.append((number, kind, shown, right + before, column_width))
                right += before + column_width
                before = gap
    row_height = scale * margin.y + cell_height + max(scale * margin.y, caption_height)
    legend = _Legend(levels, right - edge)
    rows_end = heading_height + edge + count * row_height + (count - 1) * gap
    sheet, draw = new_sheet(edge + legend.width + edge, rows_end + legend.height + edge)

    _heading(draw, "image", "", edge, cell_width, edge)
    for number, kind, _, left, column_width in columns:
        _heading(draw, f"level {number}", kind, left, column_width, edge)

    for row in range(count):
        top = heading_height + edge + row * (row_height + gap)
        image_top = top + scale * margin.y
        enlarged = _enlarged(images[row], scale)
        sheet.paste(Image.fromarray(enlarged), (edge, image_top))
        if captions is not None:
            text = fitted(captions[row], font(11), cell_width)
            draw.text((edge + cell_width / 2, image_top + cell_height + 4), text, FAINT, font(11), anchor="ma")
        for _, kind, shown, left, _ in columns:
            if kind == "hard":
                sheet.paste(Image.fromarray(region_overlay(images[row], shown[row], margin, scale)), (left, top))
            else:
                heat = heat_overlay(enlarged, relative_attention(shown[row]))
                sheet.paste(Image.fromarray(heat), (left, image_top))
                below = left + cell_width / 2, image_top + cell_height + 4
                draw.text(below, _range_text(shown[row]), FAINT, font(11), anchor="ma")
    legend.draw(sheet, draw, edge, rows_end)
    return sheet


class _Legend:
    """The legend of the colours, in as many lines as its width needs."""

    def __init__(self, levels: Sequence[LevelAttention], least_width: int):
        regions = max((level.boxes.shape[1] for level in levels if level.boxes is not None), default=0)
        names = BODY_PARTS if regions == len(BODY_PARTS) else [f"region {n + 1}" for n in range(regions)]
        self.face = font(12)
        self.items = [(region_colour(region), name) for region, name in enumerate(names)]
        if regions:
            self.items.append((OUTSIDE, "outside the image"))
        if any(level.soft is not None for level in levels):
            self.items.append((None, "least to most attended position of each map"))
        lengths = [self._swatch(colour) + 6 + int(np.ceil(self.face.getlength(name))) for colour, name in self.items]
        self.width = max([least_width, *lengths])
        self.places, x, y = [], 0, 0
        for length in lengths:
            if x + length > self.width:
                x, y = 0, y + 22
            self.places.append((x, y))
            x += length + 22
        self.height = y + 30

    def draw(self, sheet: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """Draws the legend with its upper left corner at ``(left, top)``."""
        for (colour, name), (x, y) in zip(self.items, self.places):
            x, y = left + x, top + y + 14
            swatch = self._swatch(colour)
            if colour is None:
                steps = matplotlib.colormaps[HEAT_COLOURS](np.linspace(0, 1, swatch))[None, :, :3]
                bar = np.rint(255 * np.repeat(steps, 12, axis=0)).astype(np.uint8)
                sheet.paste(Image.fromarray(bar), (x, y))
            else:
                draw.rectangle((x, y, x + swatch - 1, y + 11), colour)
            draw.text((x + swatch + 6, y + 6), name, INK, self.face, anchor="lm")

    @staticmethod
    def _swatch(colour: Optional[tuple[int, int, int]]) -> int:
        return 72 if colour is None else 12


def _heading(draw: ImageDraw.ImageDraw, first: str, second: str, left: int, width: int, top: int) -> None:
    draw.text((left + width / 2, top), first, INK, font(14, bold=True), anchor="ma")
    draw.text((left + width / 2, top + 18), second, INK, font(13), anchor="ma")


def _range_text(soft: np.ndarray) -> str:
    mean = soft.astype(np.float64).mean(axis=-1)
    low, high = mean.min(), mean.max()
    if high - low < _FLAT:
        return f"{low:.3f}, flat"
    digits = 3 if high - low >= 0.005 else 5
    return f"{low:.{digits}f} – {high:.{digits}f}"


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((scale * width, scale * height), Image.Resampling.BICUBIC))
