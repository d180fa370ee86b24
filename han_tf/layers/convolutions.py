"""Convolutions whose gradients are fast in bfloat16; all networks use these layers.

In bfloat16, oneDNN computes two gradients slowly on CPUs (TensorFlow 2.15 and 2.21): that of the kernel of a 1×1
convolution takes 2 to 6 times as long as the matrix product that it is, and that of the input of a strided depthwise
convolution 10 to 40 times as long as in float32. Together they took about half of HAN Small's training step. In float32
these layers are Keras' own.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


class Conv(tf.keras.layers.Conv2D):
    """Convolution without bias whose border is padded.

    Args:
      filters: number of output channels.
      kernel_size: side of the square kernel, in pixels.
      strides: its stride, in pixels.
      **kwargs: as for Keras' layer.
    """

    def __init__(self, filters: int, kernel_size: Any, strides: Any = 1, **kwargs: Any):
        super().__init__(filters, kernel_size, strides, **{"padding": "same", "use_bias": False, **kwargs})

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves ``[batch, height, width, channels]`` with the kernel."""
        kernel = tf.convert_to_tensor(kernel)
        if kernel.dtype == tf.bfloat16 and {*self.kernel_size, *self.strides, self.groups} == {1}:
            return _pointwise(inputs, kernel)
        return super().convolution_op(inputs, kernel)


class DepthwiseConv(tf.keras.layers.DepthwiseConv2D):
    """Depthwise convolution without bias whose border is padded.

    Args:
      kernel_size: side of the square kernel, in pixels.
      strides: its stride, in pixels.
      **kwargs: as for Keras' layer.
    """

    def __init__(self, kernel_size: Any, strides: Any = 1, **kwargs: Any):
        super().__init__(kernel_size, strides, **{"padding": "same", "use_bias": False, **kwargs})

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/s⌉, ⌈width/s⌉, channels]``."""
        kernel = tf.convert_to_tensor(self.depthwise_kernel)
        if kernel.dtype == tf.bfloat16 and max(self.strides) > 1 and not self.use_bias:
            return _strided_depthwise(max(self.strides), self.padding.upper())(inputs, kernel)
        return super().call(inputs)


Gradients = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@tf.custom_gradient
def _pointwise(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradients]:
    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        by_inputs = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(inputs), 1, "SAME")
        pixels, values = (tf.reshape(maps, [-1, maps.shape[-1]]) for maps in (inputs, upstream))
        return by_inputs, tf.reshape(tf.matmul(pixels, values, transpose_a=True), kernel.shape)

    return tf.nn.conv2d(inputs, kernel, 1, "SAME"), gradients


def _strided_depthwise(stride: int, padding: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    settings = {"strides": [1, stride, stride, 1], "padding": padding}

    @tf.custom_gradient
    def convolve(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Gradients]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            by_inputs = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(inputs),
                filter=tf.cast(kernel, tf.float32),
                out_backprop=tf.cast(upstream, tf.float32),
                **settings,
            )
            by_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=inputs, filter_sizes=kernel.shape, out_backprop=upstream, **settings
            )
            return tf.cast(by_inputs, inputs.dtype), by_kernel

        return tf.nn.depthwise_conv2d(inputs, kernel, **settings), gradients

    return convolve
