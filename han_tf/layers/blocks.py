"""The blocks of the global and the local branch (Fig. 4a and b), by building block unit (Table 12)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional

import tensorflow as tf

from han_tf.layers.units import DepthwiseUnit, InceptionA, InceptionB, ResidualUnit

DOWNSAMPLING = 2
"""Total stride of each block, whichever of its units has the stride."""


class BuildingBlock(NamedTuple):
    """The units of the blocks.

    Attributes:
      strides: default strides of a global block's units.
      global_unit: makes a unit of a global block; called with filters, stride and ``name``.
      local_unit: makes the unit of a local block, likewise.
    """

    strides: tuple[int, ...]
    global_unit: Callable[..., tf.keras.layers.Layer]
    local_unit: Callable[..., tf.keras.layers.Layer]


def inception_unit(filters: int, strides: int, **kwargs: Any) -> tf.keras.layers.Layer:
    """Returns the Inception unit for a stride: A for 1, B for 2."""
    return {1: InceptionA, DOWNSAMPLING: InceptionB}[strides](filters, **kwargs)


def _depthwise_block(norm_between: bool) -> BuildingBlock:
    def unit(share: float) -> Callable[..., tf.keras.layers.Layer]:
        return lambda filters, strides, **kwargs: DepthwiseUnit(
            filters, strides, int(share * filters), norm_between, **kwargs
        )

    # The 1×1 convolutions have half the filters, three quarters in the local block, so that the FLOPs match Table 1.
    return BuildingBlock((2, 1, 1), unit(1 / 2), unit(3 / 4))


BLOCKS = {
    "depthwise": _depthwise_block(norm_between=False),
    "depthwise_norm": _depthwise_block(norm_between=True),
    "inception": BuildingBlock((1, DOWNSAMPLING), inception_unit, inception_unit),
    "residual": BuildingBlock((1, DOWNSAMPLING), ResidualUnit, ResidualUnit),
}
"""Building block name (Table 12) -> its units; ``depthwise_norm`` is the other reading of the depthwise unit."""


class GlobalBlock(tf.keras.layers.Layer):
    """A level of the global branch (Fig. 4b): a sequence of units.

    Args:
      filters: number of output channels d_l.
      strides: the units' strides, one unit for each, e.g. (s_1, s_2, s_3) of Table 1; one is 2, the others 1.
        None: the building block's default.
      unit: the building block, a key of :data:`BLOCKS`.

    Raises:
      ValueError: the strides are not a single 2 among 1s.
    """

    def __init__(self, filters: int, strides: Optional[Sequence[int]] = None, unit: str = "depthwise", **kwargs):
        super().__init__(**kwargs)
        block = BLOCKS[unit]
        strides = block.strides if strides is None else tuple(strides)
        if sorted(strides) != [1] * (len(strides) - 1) + [DOWNSAMPLING]:
            raise ValueError(f"strides must be a single {DOWNSAMPLING} among 1s, got {strides}")
        self.units = [
            block.global_unit(filters, stride, name=f"unit{number}") for number, stride in enumerate(strides, start=1)
        ]

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, height/2, width/2, filters]``, rounded up."""
        for unit in self.units:
            inputs = unit(inputs, training=training)
        return inputs


class LocalBlock(tf.keras.layers.Layer):
    """A level of the local branch (Fig. 4a): one unit of stride 2, shared by all T streams.

    The streams of an image are rows of one batch, so that batch norm's statistics are over all streams.

    Args:
      filters: number of output channels d_l.
      unit: the building block, a key of :data:`BLOCKS`.
    """

    def __init__(self, filters: int, unit: str = "depthwise", **kwargs):
        super().__init__(**kwargs)
        self.unit = BLOCKS[unit].local_unit(filters, DOWNSAMPLING, name="unit")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch·T, height, width, channels]`` to ``[batch·T, height/2, width/2, filters]``, rounded up."""
        return self.unit(inputs, training=training)
