"""Batch norm, over the images of one device or over those of all devices that train together."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Optional

import tensorflow as tf

MOMENTUM = 0.9
"""Momentum of batch norm's running statistics, in every network.

At the first learning rate the weights change faster than statistics with Keras' 0.99 can follow. HAN Small after 20
epochs at that rate on Market-1501 at 80x32 reaches 61.7 / 37.9 (rank-1 / mAP) with 0.99, 66.5 / 42.7 with 0.9, and
66.9 / 42.9 with plain means over 64 batches. At the end of a schedule 0.99 and 0.9 are about equal: 61.4 / 47.3 and
60.3 / 47.2 on drawn people (experiments/RESULTS.md).
"""

_SYNCHRONISED = ContextVar("synchronised", default=False)


class SynchronisedBatchNorm(tf.keras.layers.BatchNormalization):
    """Batch norm with statistics over the images of all devices.

    It computes in float32: Keras sums the squares of all positions in the layer's precision, and bfloat16 has eight
    significant bits. The results have the network's precision. The moving variance is divided by n, while on one
    device it is divided by n - 1.

    Args:
      dtype: of the results; None: the global policy's compute dtype.
    """

    def __init__(self, dtype: Optional[str] = None, **kwargs: Any):
        super().__init__(synchronized=True, dtype="float32", **kwargs)
        self.result_dtype = dtype or tf.keras.mixed_precision.global_policy().compute_dtype

    def call(self, inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Maps ``[batch, …, channels]`` to the same shape."""
        return tf.cast(super().call(inputs, *args, **kwargs), self.result_dtype)


@contextmanager
def synchronised_batch_norm() -> Iterator[None]:
    """Makes :func:`batch_norm` return :class:`SynchronisedBatchNorm` within the block."""
    token = _SYNCHRONISED.set(True)
    try:
        yield
    finally:
        _SYNCHRONISED.reset(token)


def batch_norm(**kwargs: Any) -> tf.keras.layers.BatchNormalization:
    """Returns a batch norm layer; all networks use this function.

    Args:
      **kwargs: as for Keras' layer; ``momentum`` is :data:`MOMENTUM` unless given.
    """
    kind = SynchronisedBatchNorm if _SYNCHRONISED.get() else tf.keras.layers.BatchNormalization
    return kind(**{"momentum": MOMENTUM, **kwargs})
