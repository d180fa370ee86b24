"""The convolutional units that HAN is built of (Fig. 4, Tables 1 and 12)."""

from collections.abc import Sequence
from typing import Optional, Union

import tensorflow as tf

from han_tf.layers.convolutions import Conv, DepthwiseConv
from han_tf.layers.norm import batch_norm

KERNEL_INITIALIZER = "he_normal"
"""He's variance suits a layer before a ReLU, and batch norm removes the scale of most layers anyway.

Two layers lack one or both: :class:`ResidualUnit` adds before its ReLU, and the depthwise half of a pair has neither.
For a depthwise kernel ``[k, k, C, 1]`` Keras counts a fan-in of k²C, not k², so that it starts smaller by √C. Batch
norm hides the scale, but the kernel's relative steps are larger; networks that start with a fan-in of k² learn slower.
"""


class ConvBN(tf.keras.layers.Layer):
    """Convolution without bias, then batch norm.

    Args:
      filters: number of output channels.
      kernel_size: side of the square kernel, in pixels.
      strides: the stride s, in pixels.
      depthwise_separable: a depthwise convolution with that kernel and stride, then a pointwise 1×1 convolution to
        ``filters`` channels, instead of a full convolution; batch norm follows the pair.
      norm_between: batch norm and ReLU between the two convolutions of such a pair, too.
      kernel_initializer: of the convolution (the pointwise one of a pair), as Keras takes it.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        depthwise_separable: bool = False,
        norm_between: bool = False,
        kernel_initializer: Union[str, tf.keras.initializers.Initializer] = KERNEL_INITIALIZER,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.depthwise: Optional[tf.keras.layers.Layer] = None
        self.depthwise_norm = batch_norm(name="depthwise_norm") if depthwise_separable and norm_between else None
        if depthwise_separable:
            self.depthwise = DepthwiseConv(
                kernel_size, strides, depthwise_initializer=KERNEL_INITIALIZER, name="depthwise"
            )
            kernel_size, strides = 1, 1
        self.conv = Conv(filters, kernel_size, strides, kernel_initializer=kernel_initializer, name="conv")
        self.norm = batch_norm(name="norm")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/s⌉, ⌈width/s⌉, filters]``."""
        if self.depthwise is not None:
            inputs = self.depthwise(inputs)
        if self.depthwise_norm is not None:
            inputs = tf.nn.relu(self.depthwise_norm(inputs, training=training))
        return self.norm(self.conv(inputs), training=training)


class ConvBNReLU(ConvBN):
    """:class:`ConvBN`, then ReLU."""

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/s⌉, ⌈width/s⌉, filters]``, ≥ 0."""
        return tf.nn.relu(super().call(inputs, training=training))


class DepthwiseUnit(tf.keras.layers.Layer):
    """The building block unit (Fig. 4c): a normal 1×1 conv, then a 3×3 depthwise separable conv.

    Args:
      filters: number of output channels d of the separable convolution.
      strides: its stride s.
      bottleneck: number of channels of the 1×1 convolution.
      norm_between: batch norm and ReLU after the depthwise convolution, too, as in Howard et al. (2017), whom the
        paper cites. Its "BN and ReLU on each conv layer" may mean either; multiply-adds differ by 0.2 %.
    """

    def __init__(self, filters: int, strides: int, bottleneck: int, norm_between: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.normal = ConvBNReLU(bottleneck, name="normal")
        self.separable = ConvBNReLU(
            filters, 3, strides, depthwise_separable=True, norm_between=norm_between, name="separable"
        )

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/s⌉, ⌈width/s⌉, filters]``."""
        return self.separable(self.normal(inputs, training=training), training=training)


class InceptionA(tf.keras.layers.Layer):
    """Inception-A unit, which keeps the map's size: four streams of a quarter of the filters each (Table 12).

    Three are a 1×1 and then a 3×3 conv, one is a 3×3 average pool and then a 1×1 conv. The paper only names the unit.
    The streams are those of HA-CNN (Li et al. 2018), the authors' earlier network; the FLOPs then match Table 12.

    Args:
      filters: number of output channels d.

    Raises:
      ValueError: the filters are no multiple of 4.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        width = _quarter(filters)
        self.convs = [
            [ConvBNReLU(width, name=f"stream{n}_conv1"), ConvBNReLU(width, 3, name=f"stream{n}_conv2")]
            for n in (1, 2, 3)
        ]
        self.pooled = ConvBNReLU(width, name="pooled")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, height, width, filters]``, ≥ 0."""
        streams = [_chained(convs, inputs, training) for convs in self.convs]
        streams.append(self.pooled(tf.nn.avg_pool2d(inputs, 3, 1, "SAME"), training=training))
        return tf.concat(streams, axis=-1)


class InceptionB(tf.keras.layers.Layer):
    """Inception-B unit, which halves the map: three streams (Table 12).

    Two have a quarter of the filters each: a 1×1, then a 3×3 conv of stride 2; and a 1×1, a 3×3, then a 3×3 conv of
    stride 2. The third has half of them: a 3×3 max pool of stride 2, then a 1×1 conv. See :class:`InceptionA`.

    Args:
      filters: number of output channels d.

    Raises:
      ValueError: the filters are no multiple of 4.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(**kwargs)
        width = _quarter(filters)
        self.convs = [
            [ConvBNReLU(width, name="stream1_conv1"), ConvBNReLU(width, 3, 2, name="stream1_conv2")],
            [
                ConvBNReLU(width, name="stream2_conv1"),
                ConvBNReLU(width, 3, name="stream2_conv2"),
                ConvBNReLU(width, 3, 2, name="stream2_conv3"),
            ],
        ]
        self.pooled = ConvBNReLU(2 * width, name="pooled")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/2⌉, ⌈width/2⌉, filters]``, ≥ 0."""
        streams = [_chained(convs, inputs, training) for convs in self.convs]
        streams.append(self.pooled(tf.nn.max_pool2d(inputs, 3, 2, "SAME"), training=training))
        return tf.concat(streams, axis=-1)


class ResidualUnit(tf.keras.layers.Layer):
    """Residual bottleneck unit (He et al. 2016; Table 12): 1×1, 3×3 and 1×1 conv beside a shortcut.

    The first two have half the filters; with them the FLOPs match Table 12. The 3×3 conv has the stride. The last
    conv's ReLU comes after the addition. The shortcut is the input, or a 1×1 conv of it if the unit changes the shape.

    Args:
      filters: number of output channels d.
      strides: the unit's stride s.
    """

    def __init__(self, filters: int, strides: int, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.reduce = ConvBNReLU(filters // 2, name="reduce")
        self.conv = ConvBNReLU(filters // 2, 3, strides, name="conv")
        self.expand = ConvBN(filters, name="expand")
        self.projection: Optional[ConvBN] = None

    def build(self, input_shape: tf.TensorShape) -> None:
        """Makes the projection if the stride is not 1 or ``channels`` differ from the filters."""
        if self.strides != 1 or input_shape[-1] != self.filters:
            self.projection = ConvBN(self.filters, 1, self.strides, name="projection")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, ⌈height/s⌉, ⌈width/s⌉, filters]``, ≥ 0."""
        residual = self.expand(_chained([self.reduce, self.conv], inputs, training), training=training)
        shortcut = inputs if self.projection is None else self.projection(inputs, training=training)
        return tf.nn.relu(shortcut + residual)


def _quarter(filters: int) -> int:
    if filters % 4:
        raise ValueError(f"an Inception unit's filters must be a multiple of 4, got {filters}")
    return filters // 4


def _chained(convs: Sequence[ConvBN], inputs: tf.Tensor, training: Optional[bool]) -> tf.Tensor:
    for conv in convs:
        inputs = conv(inputs, training=training)
    return inputs
