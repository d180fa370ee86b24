"""The Harmonious Attention module and its parts (Sec. 3.2, Fig. 2)."""

from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf

from han_tf.layers.units import ConvBNReLU

REDUCTION = 16
"""The rate r of the channel attention's bottleneck (Sec. 3.2)."""


class SpatialAttention(tf.keras.layers.Layer):
    """Soft spatial attention S (Fig. 2b, eq. 4), the same for all channels: 10 weights.

    Mean over channels, 3×3 conv of stride 2 (9 weights), bilinear resize back, 1×1 conv (1 weight)
    that learns the scale at which S meets the channel attention.

    Batch norm and ReLU follow both convolutions (caption of Fig. 2). The only filter decides the level's map: if its
    ReLU dies, the map is flat; from a random start the map may begin as edges, foreground or background. S therefore
    starts as the negated, smoothed mean activation, high where the block responds little: all three levels stay alive.
    With the opposite sign, attention amplifies what is large already: on drawn people the global branch hardly learns,
    on Market-1501 the soft map of level 1 becomes almost flat, at the same accuracy (experiments/notes/recipe.md).
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        even = tf.keras.initializers.Constant(-1 / 3)  # norm 1, like the scale
        self.conv = ConvBNReLU(1, 3, 2, kernel_initializer=even, name="conv")
        self.scale = ConvBNReLU(1, kernel_initializer="ones", name="scale")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to S, ``[batch, height, width, 1]``, ≥ 0."""
        mean = tf.reduce_mean(inputs, axis=-1, keepdims=True)
        resized = tf.image.resize(self.conv(mean, training=training), inputs.shape[1:3], "bilinear")
        return self.scale(resized, training=training)


class ChannelAttention(tf.keras.layers.Layer):
    """Soft channel attention C (Fig. 2c, eq. 6), the same for all positions: 2c²/r weights.

    Args:
      reduction: the bottleneck's rate r.
    """

    def __init__(self, reduction: int = REDUCTION, **kwargs):
        super().__init__(**kwargs)
        self.reduction = reduction

    def build(self, input_shape: tf.TensorShape) -> None:
        """Sizes the two convolutions for the ``channels`` of the signature.

        Raises:
          ValueError: the channels are no multiple of the reduction.
        """
        channels = input_shape[-1]
        if channels % self.reduction:
            raise ValueError(f"channels must be a multiple of the reduction {self.reduction}, got {channels}")
        self.squeeze = ConvBNReLU(channels // self.reduction, name="squeeze")
        self.excite = ConvBNReLU(channels, name="excite")
        super().build(input_shape)

    def call(self, signature: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps the channel signature of eq. (5), ``[batch, 1, 1, channels]``, to C of the same shape, ≥ 0."""
        return self.excite(self.squeeze(signature, training=training), training=training)


class SoftAttention(tf.keras.layers.Layer):
    """Soft spatial-channel attention A = S × C (Fig. 2a, eq. 3), blended by a 1×1 conv: c² weights more.

    If one of them is off, the map is made from the other alone.

    Args:
      spatial: whether spatial attention takes part.
      channel: whether channel attention takes part.
      reduction: the channel attention's bottleneck rate r.

    Raises:
      ValueError: both are off.
    """

    def __init__(self, spatial: bool = True, channel: bool = True, reduction: int = REDUCTION, **kwargs):
        super().__init__(**kwargs)
        if not (spatial or channel):
            raise ValueError("soft attention needs spatial or channel attention, got neither")
        self.spatial = SpatialAttention(name="spatial") if spatial else None
        self.channel = ChannelAttention(reduction, name="channel") if channel else None

    def build(self, input_shape: tf.TensorShape) -> None:
        """Sizes the blend for the map's channels."""
        self.blend = ConvBNReLU(input_shape[-1], name="blend")
        super().build(input_shape)

    def call(
        self, inputs: tf.Tensor, signature: tf.Tensor, training: Optional[bool] = None
    ) -> tuple[tf.Tensor, Optional[tf.Tensor]]:
        """Returns the soft map and S.

        Args:
          inputs: X, ``[batch, height, width, channels]``.
          signature: the mean of X over positions (eq. 5), ``[batch, 1, 1, channels]``.
          training: whether batch norm uses the batch's statistics.

        Returns:
          The soft map, ``[batch, height, width, channels]`` in [0.5, 1), a sigmoid of ReLU outputs; and S,
          ``[batch, height, width, 1]`` ≥ 0, or None without spatial attention.
        """
        spatial = None if self.spatial is None else self.spatial(inputs, training=training)
        channel = None if self.channel is None else self.channel(signature, training=training)
        if spatial is None or channel is None:
            attention = tf.ones_like(inputs) * (channel if spatial is None else spatial)
        else:
            attention = spatial * channel
        return tf.sigmoid(self.blend(attention, training=training)), spatial


def stacked_strips(regions: int) -> np.ndarray:
    """Returns (t_x, t_y) of ``regions`` horizontal strips that divide an image evenly, top to bottom.

    ``[regions, 2]`` float32; for four regions t_y = -0.75, -0.25, 0.25, 0.75.
    """
    centres = (2 * np.arange(regions) + 1) / regions - 1
    return np.stack([np.zeros(regions), centres], axis=-1).astype(np.float32)


class HardAttention(tf.keras.layers.Layer):
    """Hard regional attention (Fig. 2d, eq. 7): the positions of T regions; 2·T·c weights, always float32.

    The fully connected layer starts at T stacked strips: its kernel is 0, and tanh of its biases gives the strips'
    centres.

    Args:
      regions: the number of regions T.
    """

    def __init__(self, regions: int = 4, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.regions = regions
        self.localisation = tf.keras.layers.Dense(
            2 * regions,
            dtype="float32",
            kernel_initializer="zeros",
            bias_initializer=tf.keras.initializers.Constant(np.arctanh(stacked_strips(regions)).ravel()),
            name="localisation",
        )

    def call(self, signature: tf.Tensor) -> tf.Tensor:
        """Maps the signature of eq. (5), ``[batch, channels]``, to θ, ``[batch, T, 2]``: (t_x, t_y) in [-1, 1]."""
        return tf.reshape(tf.tanh(self.localisation(signature)), [-1, self.regions, 2])


class FixedRegions(tf.keras.layers.Layer):
    """Fixed regions in place of :class:`HardAttention`: the strips that it starts from."""

    def __init__(self, regions: int = 4, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.strips = stacked_strips(regions)

    def call(self, signature: tf.Tensor) -> tf.Tensor:
        """Returns θ, ``[batch, T, 2]``, which does not depend on the signature, ``[batch, channels]``."""
        return tf.tile(tf.constant(self.strips, signature.dtype)[None], [tf.shape(signature)[0], 1, 1])


class Attention(NamedTuple):
    """The outputs of a Harmonious Attention module.

    Attributes:
      attended: the block's output, X times the soft map; ``[batch, height, width, channels]``.
      soft: the soft map, same shape, in [0.5, 1); None without soft attention.
      theta: (t_x, t_y) of the regions, ``[batch, T, 2]`` in [-1, 1].
      spatial: S, ``[batch, height, width, 1]`` ≥ 0; None without soft spatial attention.
    """

    attended: tf.Tensor
    soft: Optional[tf.Tensor]
    theta: tf.Tensor
    spatial: Optional[tf.Tensor] = None


class HarmoniousAttention(tf.keras.layers.Layer):
    """The Harmonious Attention module: soft and hard attention learned from one feature map (Fig. 2).

    Args:
      regions: the number of regions T.
      spatial: whether soft spatial attention takes part.
      channel: whether soft channel attention takes part.
      hard: whether the regions are learned; otherwise they are fixed strips.
      reduction: the channel attention's bottleneck rate r.
    """

    def __init__(
        self,
        regions: int = 4,
        spatial: bool = True,
        channel: bool = True,
        hard: bool = True,
        reduction: int = REDUCTION,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.soft = SoftAttention(spatial, channel, reduction, name="soft") if spatial or channel else None
        self.hard = HardAttention(regions, name="hard") if hard else FixedRegions(regions, name="hard")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> Attention:
        """Returns the attention to X, ``[batch, height, width, channels]``, the output of the level's global block."""
        # eq. (5), shared by soft and hard attention
        signature = tf.reduce_mean(tf.cast(inputs, tf.float32), axis=[1, 2], keepdims=True)
        theta = self.hard(signature[:, 0, 0])
        if self.soft is None:
            return Attention(inputs, None, theta)
        soft, spatial = self.soft(inputs, signature, training=training)
        return Attention(inputs * soft, soft, theta, spatial)
