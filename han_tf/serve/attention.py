"""Attention overlays for the page: heat of soft attention, boxes of hard attention."""

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.runs.folder import LoadedRun, load_run
from han_tf.runtimes.keras import network_checksum
from han_tf.serve.images import encode
from han_tf.serve.limits import Refusal
from han_tf.viz.attention import heat_overlay, region_overlay, relative_attention

KINDS = ("soft", "regions", "both")
Kind = Literal["soft", "regions", "both"]
"""What is drawn: soft attention as heat, the regions of hard attention as boxes, or the boxes over the heat."""

SCALE = 3
"""Pixels of an overlay per pixel of the network's input, each way: 160×64 becomes 480×192."""


class Level(NamedTuple):
    """The attention of one level in one image.

    Attributes:
      heat: relative soft attention, float32 ``[h, w]`` in [0, 1]; None where switched off.
      boxes: the regions as (x_min, y_min, x_max, y_max), float32 ``[T, 4]``, in pixels of the network's input;
        None at a level without regions.
    """

    heat: Optional[np.ndarray]
    boxes: Optional[np.ndarray]


class AttentionModel:
    """The Keras network of a run, for its attention maps.

    Exported networks return only features, so overlays need the run.

    Args:
      run: the run, or its folder.

    Attributes:
      checksum: hex SHA-256 of the network, as of :class:`han_tf.FeatureExtractor`.
      levels: how many levels the network has.
      kinds: those of :data:`KINDS` that it can draw.
      input_size: height and width of the images it takes.

    Raises:
      UserError: there is no such run; its network has no attention.
    """

    def __init__(self, run: Union[str, os.PathLike, LoadedRun]):
        run = run if isinstance(run, LoadedRun) else load_run(run)
        model = run.model
        self.run_dir = run.run_dir
        self.checksum = network_checksum(model, run.config)
        self.input_size = model.input_size

        @tf.function(input_signature=[tf.TensorSpec([None, *self.input_size, 3], tf.uint8)], autograph=False)
        def attend(images: tf.Tensor) -> list:
            levels = model.branches(images, training=False).attention
            # The mean over channels is all that is drawn of a soft map, and 1/128 or less of its size.
            return [
                (None if level.soft is None else tf.reduce_mean(level.soft, -1, keepdims=True), level.boxes)
                for level in levels
            ]

        self._attend = attend
        first = self(np.zeros([1, *self.input_size, 3], np.uint8))[0]
        self.levels = len(first)
        has_heat = any(level.heat is not None for level in first)
        has_boxes = any(level.boxes is not None for level in first)
        self.kinds = tuple(k for k, has in zip(KINDS, (has_heat, has_boxes, has_heat and has_boxes)) if has)
        if not self.kinds:
            raise UserError(f"{self.run_dir}: a network without attention, expected a HAN with any of it on")

    def __call__(self, images: Sequence[np.ndarray]) -> list[tuple[Level, ...]]:
        """Returns the attention of each level, for each image.

        Args:
          images: uint8 ``[height, width, 3]`` each, RGB, of ``input_size``.
        """
        found = [
            Level(
                None if soft is None else np.stack([relative_attention(one) for one in soft.numpy()]),
                None if boxes is None else boxes.numpy(),
            )
            for soft, boxes in self._attend(tf.constant(np.stack(images)))
        ]
        return [
            tuple(Level(*(None if part is None else part[index] for part in level)) for level in found)
            for index in range(len(images))
        ]


def draw_overlay(image: np.ndarray, levels: Sequence[Level], kind: Kind, level: int) -> bytes:
    """Draws the attention of one level over an image, as PNG.

    Regions are clipped to the image, so that overlay and image have the same size.

    Args:
      image: ``[height, width, 3]`` uint8, RGB, of the network's input size.
      levels: what :class:`AttentionModel` gave for it.
      kind: what to draw.
      level: which level, from 1.

    Raises:
      Refusal: 422, there is no such level; it has no such attention.
    """
    if not 1 <= level <= len(levels):
        raise Refusal(422, f"level is {level}, expected 1 to {len(levels)}")
    heat, boxes = levels[level - 1]
    if (kind != "regions" and heat is None) or (kind != "soft" and boxes is None):
        raise Refusal(422, f"level {level} of this network has no attention of kind {kind!r}")
    if kind == "soft":
        height, width = image.shape[:2]
        enlarged = Image.fromarray(image).resize((SCALE * width, SCALE * height), Image.Resampling.BICUBIC)
        return encode(heat_overlay(np.asarray(enlarged), heat), "PNG")
    return encode(region_overlay(image if kind == "regions" else heat_overlay(image, heat), boxes, scale=SCALE), "PNG")
