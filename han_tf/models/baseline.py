"""The networks HAN is compared with (Tables 5, 6 and 7, Fig. 6): a backbone with the head of HAN's branches."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Optional

import tensorflow as tf

from han_tf.models.network import LevelAttention, ReIDNetwork, mean_over_positions

SMALLEST_SIDE = 32
"""Smallest height and width of images, in pixels: all backbones halve their maps five times."""


class Baseline(ReIDNetwork):
    """A backbone, the mean over positions, and one branch, called global; no attention.

    A subclass implements :meth:`backbone` and :meth:`body_parts`, and calls :meth:`add_heads`.

    Args:
      num_classes: number of training identities; 0 for a network without classifiers.
      input_size: height and width of the images, in pixels.
      feature_dim: dimension of the feature.
      name: Keras' name.
      **config: the subclass' own arguments, as JSON holds them.

    Raises:
      ValueError: an argument does not fit; the message names it.
    """

    def __init__(self, num_classes: int, input_size: Sequence[int], feature_dim: int, name: str, **config: Any):
        super().__init__(num_classes, input_size, feature_dim, name)
        if min(input_size) < SMALLEST_SIDE:
            raise ValueError(f"input_size must be at least {SMALLEST_SIDE} pixels either way, got {input_size}")
        # Keras would make a plain dict part of the checkpoints.
        self._config = MappingProxyType(
            {"num_classes": num_classes, "input_size": list(input_size), "feature_dim": feature_dim, **config}
        )

    def backbone(self, pixels: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, 3]`` normalised pixels to a map, ``[batch, height/32, width/32, channels]``."""
        raise NotImplementedError

    def pooled(
        self, pixels: tf.Tensor, training: Optional[bool] = None
    ) -> tuple[dict[str, tf.Tensor], tuple[LevelAttention, ...]]:
        """Runs the backbone and takes the mean over positions, see :meth:`ReIDNetwork.pooled`."""
        return {"global": mean_over_positions(self.backbone(pixels, training=training))}, ()

    def get_config(self) -> dict:
        """Returns the constructor's arguments, as JSON holds them."""
        return dict(self._config)
