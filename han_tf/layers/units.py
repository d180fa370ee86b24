"""The convolutional units that HAN is built of (Fig. 4, Table 1)."""

from typing import Optional

import tensorflow as tf

KERNEL_INITIALIZER = "he_normal"
"""Every conv layer is followed by batch norm and ReLU, for which He's variance is the right one."""


class ConvBNReLU(tf.keras.layers.Layer):
    """Convolution without bias, batch normalisation, ReLU.

    Args:
      filters: number of output channels.
      kernel_size: side of the square kernel, in pixels.
      strides: step of the kernel, in pixels.
      depthwise_separable: a depthwise convolution that carries kernel and stride, then a pointwise
        1×1 convolution to ``filters`` channels, instead of a full convolution; batch norm and ReLU
        stand after the pair.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        depthwise_separable: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.depthwise: Optional[tf.keras.layers.Layer] = None
        if depthwise_separable:
            self.depthwise = tf.keras.layers.DepthwiseConv2D(
                kernel_size,
                strides,
                padding="same",
                use_bias=False,
                depthwise_initializer=KERNEL_INITIALIZER,
                name="depthwise",
            )
            kernel_size, strides = 1, 1
        self.conv = tf.keras.layers.Conv2D(
            filters,
            kernel_size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer=KERNEL_INITIALIZER,
            name="conv",
        )
        self.norm = tf.keras.layers.BatchNormalization(name="norm")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/s⌉, ⌈width/s⌉, filters]``, ≥ 0."""
        if self.depthwise is not None:
            inputs = self.depthwise(inputs)
        return tf.nn.relu(self.norm(self.conv(inputs), training=training))


class DepthwiseUnit(tf.keras.layers.Layer):
    """The building block unit (Fig. 4c): a normal 1×1 conv, then a 3×3 depthwise separable conv.

    Args:
      filters: number of output channels d of the separable convolution.
      strides: its stride s.
      bottleneck: number of channels of the 1×1 convolution.
    """

    def __init__(self, filters: int, strides: int, bottleneck: int, **kwargs):
        super().__init__(**kwargs)
        self.normal = ConvBNReLU(bottleneck, name="normal")
        self.separable = ConvBNReLU(filters, 3, strides, depthwise_separable=True, name="separable")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/s⌉, ⌈width/s⌉, filters]``."""
        return self.separable(self.normal(inputs, training=training), training=training)
