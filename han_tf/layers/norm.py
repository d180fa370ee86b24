"""Batch norm, over the images of one device or over those of all devices that train together."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Optional

import tensorflow as tf

MOMENTUM = 0.9
"""How much batch norm keeps of its running statistics at a step, in every network.

At the first learning rate the weights move on before Keras' 0.99 has forgotten. HAN Small after 20 epochs at that rate
on Market-1501 at 80x32 reaches 61.7 / 37.9 (rank-1 / mAP) with the statistics of 0.99, 66.5 / 42.7 with those of 0.9,
and 66.9 / 42.9 with plain means over 64 batches. At the end of a schedule they are about equal: 61.4 / 47.3 and
60.3 / 47.2 on drawn people (experiments/RESULTS.md).
"""

_SYNCHRONISED = ContextVar("synchronised", default=False)


class SynchronisedBatchNorm(tf.keras.layers.BatchNormalization):
    """Batch norm whose statistics are those of the images of all devices.

    It computes in float32, whatever the precision of the network: Keras adds up the squares of all positions in the
    precision of the layer, and bfloat16 has eight bits. The results have the precision of the network again. The
    moving variance is that of the images, not of the population (1/n, not 1/(n - 1), as on one device).

    Args:
      dtype: of the results; that of the global policy's computations if None.
    """

    def __init__(self, dtype: Optional[str] = None, **kwargs: Any):
        super().__init__(synchronized=True, dtype="float32", **kwargs)
        self.result_dtype = dtype or tf.keras.mixed_precision.global_policy().compute_dtype

    def call(self, inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Maps ``[batch, …, channels]`` to the same shape."""
        return tf.cast(super().call(inputs, *args, **kwargs), self.result_dtype)


@contextmanager
def synchronised_batch_norm() -> Iterator[None]:
    """Makes :func:`batch_norm` return :class:`SynchronisedBatchNorm` for as long as the block runs."""
    token = _SYNCHRONISED.set(True)
    try:
        yield
    finally:
        _SYNCHRONISED.reset(token)


def batch_norm(**kwargs: Any) -> tf.keras.layers.BatchNormalization:
    """Returns a batch norm layer; every network's come from here.

    Args:
      **kwargs: as for Keras' layer; ``momentum`` is :data:`MOMENTUM` unless given.
    """
    kind = SynchronisedBatchNorm if _SYNCHRONISED.get() else tf.keras.layers.BatchNormalization
    return kind(**{"momentum": MOMENTUM, **kwargs})


def with_own_batch_norm(body: tf.keras.Model) -> tf.keras.Model:
    """Returns a network of ``tf.keras.applications`` with the layers of :func:`batch_norm` in the place of Keras'."""
    for layer in body.submodules:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    if not _SYNCHRONISED.get():
        return body

    def copy(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        if not isinstance(layer, tf.keras.layers.BatchNormalization):
            return layer.__class__.from_config(layer.get_config())
        told = ("name", "axis", "momentum", "epsilon", "center", "scale")
        return batch_norm(**{name: value for name, value in layer.get_config().items() if name in told})

    return tf.keras.models.clone_model(body, clone_function=copy)
