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
"""Kinds of overlays: soft attention as heat, the regions of hard attention as boxes, or the boxes over the heat."""

SCALE = 3
"""Factor by which an overlay is larger than the network's input: 160×64 becomes 480×192."""


class Level(NamedTuple):
    """The attention of one level in one image.

    Attributes:
      heat: relative soft attention, float32 ``[h, w]`` in [0, 1]; None if it is switched off.
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
      levels: number of levels of the network.
      kinds: those of :data:`KINDS` that can be drawn.
      input_size: height and width of the input images.

    Raises:
      UserError: there is no such run, or its network has no attention.
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
            # Overlays show the mean of a soft map over its channels, which is 1/128 of its size or less.
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
    """Returns an image with the attention of one level drawn over it, as PNG.

    Regions are clipped to the image, so that the overlay has its aspect ratio.

    Args:
      image: ``[height, width, 3]`` uint8, RGB, of the network's input size.
      levels: the result of :class:`AttentionModel` for this image.
      kind: what to draw.
      level: number of the level, from 1.

    Raises:
      Refusal: 422, there is no such level, or it has no such attention.
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
