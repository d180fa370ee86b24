"""Depthwise convolution, in a precision in which it is fast."""

from typing import Any, Optional

import tensorflow as tf


def depthwise_conv(kernel_size: int, strides: int, **kwargs: Any) -> tf.keras.layers.DepthwiseConv2D:
    """Returns a depthwise convolution without bias whose border is padded; all networks use this function.

    Args:
      kernel_size: side of the square kernel, in pixels.
      strides: its stride, in pixels.
      **kwargs: as for Keras' layer.
    """
    dtype = depthwise_dtype(strides)
    return tf.keras.layers.DepthwiseConv2D(kernel_size, strides, padding="same", use_bias=False, dtype=dtype, **kwargs)


def depthwise_dtype(strides: int) -> Optional[str]:
    """Returns float32 for a strided depthwise convolution in bfloat16, else None: the global policy decides.

    On CPUs the gradient of a strided one takes about 15 times as long in bfloat16 as in float32 (TensorFlow 2.15 and
    2.21), and would take most of a training step.
    """
    in_bfloat16 = tf.keras.mixed_precision.global_policy().compute_dtype == "bfloat16"
    return "float32" if strides > 1 and in_bfloat16 else None
