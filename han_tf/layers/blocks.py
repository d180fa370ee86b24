"""The blocks of the global and the local branch (Fig. 4a and b), by building block unit (Table 12)."""

from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from han_tf.layers.units import DepthwiseUnit

DOWNSAMPLING = 2
"""Each block halves the map, whichever of its units carries the stride."""


class GlobalBlock(tf.keras.layers.Layer):
    """A level of the global branch (Fig. 4b): three depthwise units.

    Args:
      filters: number of output channels d_l.
      strides: the units' strides (s_1, s_2, s_3) of Table 1; their product is 2.
    """

    def __init__(self, filters: int, strides: Sequence[int] = (2, 1, 1), **kwargs):
        super().__init__(**kwargs)
        # Half the width in the 1×1 convolutions: with it the FLOPs are those of Table 1.
        self.units = [
            DepthwiseUnit(filters, stride, filters // 2, name=f"unit{number}")
            for number, stride in enumerate(strides, start=1)
        ]

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, height/2, width/2, filters]``, rounded up."""
        for unit in self.units:
            inputs = unit(inputs, training=training)
        return inputs


class LocalBlock(tf.keras.layers.Layer):
    """A level of the local branch (Fig. 4a): one depthwise unit of stride 2, shared by all T streams.

    The streams of an image come as rows of one batch, in training and moving statistics alike.

    Args:
      filters: number of output channels d_l.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        # Three quarters of the width in the 1×1 convolution: see GlobalBlock.
        self.unit = DepthwiseUnit(filters, DOWNSAMPLING, 3 * filters // 4, name="unit")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch·T, height, width, channels]`` to ``[batch·T, height/2, width/2, filters]``, rounded up."""
        return self.unit(inputs, training=training)


BLOCKS = {"depthwise": (GlobalBlock, LocalBlock)}
"""Building block name -> (global block, local block)."""
