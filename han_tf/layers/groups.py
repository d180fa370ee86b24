"""Group convolutions of ShuffleNet (Zhang et al. 2018), and CondenseNet's learned ones (Huang et al. 2018)."""

import functools

import numpy as np
import tensorflow as tf

from han_tf.layers.units import KERNEL_INITIALIZER

_TINY = 1e-12


def channel_shuffle(inputs: tf.Tensor, groups: int) -> tf.Tensor:
    """Spreads the channels of each group over all groups (ShuffleNet, Sec. 3.1).

    Args:
      inputs: ``[batch, height, width, channels]``, channels ordered by group.
      groups: number of groups; the channels are a multiple of it.

    Returns:
      The same shape; the first channel of every group, then the second of every group, ...
    """
    _, height, width, channels = inputs.shape
    grouped = tf.reshape(inputs, [-1, height, width, groups, channels // groups])
    return tf.reshape(tf.transpose(grouped, [0, 1, 2, 4, 3]), [-1, height, width, channels])


class GroupConv(tf.keras.layers.Conv2D):
    """Convolution in groups, without bias: each group of filters sees its own part of the input channels.

    It calls TensorFlow's kernel; Keras would compile it with XLA, which is many times slower on a CPU. Where that
    kernel has no gradient, as on a CPU without oneDNN, each group is a separate convolution, with the same results.

    Args:
      filters: number of output channels, a multiple of ``groups``.
      kernel_size: side of the square kernel, in pixels.
      groups: number of groups; the input channels are a multiple of it.

    Raises:
      ValueError: filters or input channels are no multiple of the groups.
    """

    def __init__(self, filters: int, kernel_size: int = 1, groups: int = 1, **kwargs):
        super().__init__(
            filters,
            kernel_size,
            padding="same",
            groups=groups,
            use_bias=False,
            kernel_initializer=KERNEL_INITIALIZER,
            **kwargs,
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, height, width, filters]``, group by group."""
        if self.groups == 1 or grouped_kernel_has_gradient(tf.as_dtype(inputs.dtype)):
            return tf.nn.conv2d(inputs, self.kernel, 1, "SAME")
        parts = zip(tf.split(inputs, self.groups, -1), tf.split(self.kernel, self.groups, -1))
        return tf.concat([tf.nn.conv2d(part, kernel, 1, "SAME") for part, kernel in parts], -1)


@functools.cache
def grouped_kernel_has_gradient(dtype: tf.DType) -> bool:
    """Returns whether TensorFlow's group convolution has a gradient on this machine; tries it on one pixel.

    oneDNN computes it in float32 on all processors, in shorter types on those with instructions for them.
    """
    with tf.init_scope():
        pixel = tf.zeros([1, 1, 1, 2], dtype)
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=[1, 1, 1, 2], filter=pixel, out_backprop=pixel, strides=[1, 1, 1, 1], padding="SAME"
            )
        except tf.errors.OpError:
            return False
    return True


class LearnedGroupConv(tf.keras.layers.Conv2D):
    """Learned group convolution in its training form (CondenseNet, Sec. 3): 1×1, without bias.

    It starts as a plain convolution whose filters are in groups. Condensing removes a group's least important input
    channels, for all its filters at once; other groups may keep them. Its deployed form is :class:`IndexedGroupConv`.

    Args:
      filters: number of output channels, a multiple of ``groups``.
      groups: number G of filter groups.
      condensation: the factor C; after all stages each group has 1/C of its input connections.

    Raises:
      ValueError: the filters are no multiple of the groups, or the input channels no multiple of the condensation.
    """

    def __init__(self, filters: int, groups: int, condensation: int, **kwargs):
        super().__init__(filters, 1, use_bias=False, kernel_initializer=KERNEL_INITIALIZER, **kwargs)
        if filters % groups:
            raise ValueError(f"filters must be a multiple of the groups {groups}, got {filters}")
        self.filter_groups = groups
        self.condensation = condensation

    def build(self, input_shape: tf.TensorShape) -> None:
        """Makes the kernel and the mask of connections, ``[channels, groups]`` float32 of 0 and 1."""
        self.channels = _condensable(input_shape[-1], self.condensation)
        super().build(input_shape)
        self.mask = self.add_weight("mask", [self.channels, self.filter_groups], initializer="ones", trainable=False)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, height, width, filters]``, ordered by group."""
        mask = tf.repeat(self.mask, self.filters // self.filter_groups, axis=1)
        return tf.nn.conv2d(inputs, self.kernel * mask, 1, "SAME")

    def condense(self, stages: int) -> None:
        """Removes connections until (C − stages)/C of each group's are left.

        It removes those whose weights have the smallest L1 norm, averaged over the group's filters (Sec. 3.1).

        Args:
          stages: how many of the C − 1 stages have ended. Connections that are removed stay removed.
        """
        left = self.channels // self.condensation * (self.condensation - stages)
        importance = tf.reduce_mean(tf.abs(self._grouped_kernel()), axis=-1).numpy()
        importance[self.mask.numpy() == 0] = -1
        order = np.argsort(-importance, axis=0, kind="stable")
        mask = np.zeros_like(importance)
        np.put_along_axis(mask, order[:left], 1, axis=0)
        self.mask.assign(mask)

    def group_lasso(self) -> tf.Tensor:
        """Returns Σ over groups and input channels of the L2 norm of their weights (Sec. 3.1); scalar."""
        squares = tf.reduce_sum(tf.square(self._grouped_kernel()), axis=-1)
        # The square root has no derivative at 0.
        return tf.reduce_sum(self.mask * tf.sqrt(tf.maximum(squares, _TINY)))

    def condensed(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the weights of the equivalent :class:`IndexedGroupConv`: kernel and index.

        Raises:
          ValueError: not all condensing stages have ended.
        """
        mask, kernel = self.mask.numpy(), self._grouped_kernel().numpy()
        left = self.channels // self.condensation
        if (mask.sum(axis=0) != left).any():
            raise ValueError(f"{self.name} has {mask.sum(axis=0).max():.0f} connections per group, expected {left}")
        index = [np.flatnonzero(column) for column in mask.T]
        kernels = [kernel[channels, group] for group, channels in enumerate(index)]
        return np.concatenate(kernels, axis=-1)[None, None], np.concatenate(index).astype(np.int32)

    def _grouped_kernel(self) -> tf.Tensor:
        """``[channels, groups, filters per group]``."""
        return tf.reshape(self.kernel, [self.channels, self.filter_groups, -1])


class IndexedGroupConv(tf.keras.layers.Layer):
    """Learned group convolution in its deployed form: an index layer, then a standard 1×1 group convolution.

    :meth:`LearnedGroupConv.condensed` returns its weights.

    Args:
      filters, groups, condensation: as in :class:`LearnedGroupConv`.
    """

    def __init__(self, filters: int, groups: int, condensation: int, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.condensation = condensation
        self.conv = GroupConv(filters, groups=groups, name="conv")

    def build(self, input_shape: tf.TensorShape) -> None:
        """Makes the index of the groups' input channels, group after group."""
        selected = self.groups * (_condensable(input_shape[-1], self.condensation) // self.condensation)
        self.index = self.add_weight("index", [selected], tf.int32, initializer="zeros", trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps ``[batch, height, width, channels]`` to ``[batch, height, width, filters]``, ordered by group."""
        return self.conv(tf.gather(inputs, self.index, axis=-1))


def _condensable(channels: int, condensation: int) -> int:
    if channels % condensation:
        raise ValueError(f"channels must be a multiple of the condensation factor {condensation}, got {channels}")
    return channels
