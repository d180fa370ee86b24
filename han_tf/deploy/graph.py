"""The graph that is exported: a network's inference with fewer operations and the same features.

Batch norm is folded (:mod:`han_tf.deploy.folding`). In a HAN, two modules are also computed differently:

- The soft map is a 1×1 convolution of S × C, one number per position times one per channel. As W(S × C) = S × (WC),
  one product with the c × c kernel per image is enough instead of one per position; it saves 15 % of HAN Small's
  multiply-adds.
- The crop gathers the two rows and the two columns around each sample, instead of multiplying with matrices that are
  nearly all 0.
"""

from collections.abc import Sequence
from typing import Optional

import numpy as np
import tensorflow as tf

from han_tf.deploy.folding import fold_batch_norm
from han_tf.layers.attention import SoftAttention
from han_tf.layers.crop import region_origins
from han_tf.models.han import HAN
from han_tf.models.network import IMAGE_DEVIATION, IMAGE_MEAN, ReIDNetwork

INPUT, OUTPUT = "images", "features"
"""Names of input and output of all exported graphs."""


class FactoredSoftAttention(tf.keras.layers.Layer):
    """Soft attention (eq. 3) whose 1×1 convolution is applied only to the channels' factor.

    Layers that act on one vector per image are matrix products over the batch.

    Args:
      soft: the module it replaces, with folded batch norms.
    """

    def __init__(self, soft: SoftAttention, **kwargs):
        super().__init__(**kwargs)
        self.soft = soft

    def call(
        self, inputs: tf.Tensor, signature: tf.Tensor, training: Optional[bool] = None
    ) -> tuple[tf.Tensor, Optional[tf.Tensor]]:
        """Makes the soft map, see :meth:`SoftAttention.call`."""
        channels = signature.shape[-1]
        vector = tf.reshape(signature, [-1, channels])
        if self.soft.channel is None:
            vector = tf.ones_like(vector)
        else:
            for layer in (self.soft.channel.squeeze, self.soft.channel.excite):
                # layer.norm.call: Keras' own call would accept only a map.
                vector = tf.nn.relu(layer.norm.call(tf.matmul(vector, layer.conv.kernel[0, 0])))
        blended = tf.matmul(vector, self.soft.blend.conv.kernel[0, 0])
        blended = tf.reshape(blended, [-1, 1, 1, channels])
        spatial = None
        if self.soft.spatial is not None:
            spatial = self.soft.spatial(inputs)
            blended *= spatial
        return tf.sigmoid(tf.nn.relu(self.soft.blend.norm(blended))), spatial


class GatheredCrop(tf.keras.layers.Layer):
    """The affine crop (eq. 7) by gathering rows and then columns, see :class:`han_tf.layers.crop.AffineCrop`.

    Args:
      region_size: height and width of a region, in pixels of the map.
      flat: whether the rows of all images are gathered from one list, by indices that count through the batch.
        OpenVINO's reader of TensorFlow graphs needs this; TFLite needs shapes that do not depend on the batch.
    """

    def __init__(self, region_size: Sequence[int], flat: bool, **kwargs):
        super().__init__(**kwargs)
        self.region_size = tuple(region_size)
        self.flat = flat

    def call(self, feature_map: tf.Tensor, theta: tf.Tensor) -> tf.Tensor:
        """Crops, see :meth:`han_tf.layers.crop.AffineCrop.call`."""
        _, height, width, channels = feature_map.shape
        region_height, region_width = self.region_size
        regions = theta.shape[1]
        origins = region_origins(theta, (height, width), self.region_size)

        rows = tf.reshape(feature_map, [-1, height, width * channels])
        rows = self._sampled(rows, origins[..., 1], region_height)
        columns = tf.reshape(rows, [-1, width, channels])
        origin = tf.repeat(origins[..., :1], region_height, axis=-1)
        columns = self._sampled(columns, tf.reshape(origin, [-1, 1]), region_width)
        return tf.reshape(columns, [-1, regions, region_height, region_width, channels])

    def _sampled(self, lines: tf.Tensor, origin: tf.Tensor, length: int) -> tf.Tensor:
        """Samples points at unit spacing from lines of pixels, with linear interpolation; outside a line is 0.

        Args:
          lines: ``[n, size, width]``, lines of ``size`` pixels of ``width`` numbers.
          origin: ``[n, m]``, positions of the first samples, in pixels.
          length: number of samples from each origin.

        Returns:
          ``[n, m·length, width]``, or with ``flat`` ``[n·m·length, width]``.
        """
        size, width = lines.shape[1:]
        first = tf.floor(origin)
        # TFLite's int8 keeps floormod in float. The difference, quantised, would abort if every origin is a whole
        # number, as in an untrained network: its scale would be 0.
        fraction = (tf.math.floormod(origin, 1.0) if not self.flat else origin - first)[..., None]
        near = first[..., None] + tf.range(length, dtype=origin.dtype)
        total = 0.0
        for position, weight in ((near, 1 - fraction), (near + 1, fraction)):
            inside = tf.logical_and(position >= 0, position < size)
            weight = weight * tf.cast(inside, origin.dtype)
            index = tf.cast(tf.clip_by_value(position, 0, size - 1), tf.int32)
            if self.flat:
                index += size * tf.range(tf.shape(lines)[0])[:, None, None]
                gathered = tf.gather(tf.reshape(lines, [-1, width]), tf.reshape(index, [-1]))
                total += gathered * tf.reshape(weight, [-1, 1])
            else:
                samples = origin.shape[1] * length
                gathered = tf.gather(lines, tf.reshape(index, [-1, samples]), axis=1, batch_dims=1)
                total += gathered * tf.reshape(weight, [-1, samples, 1])
        return total


def deployment_function(model: ReIDNetwork, flat: bool) -> tf.types.experimental.ConcreteFunction:
    """Returns the graph of ``model`` for export; ``model`` itself cannot be used afterwards.

    Args:
      model: a trained network.
      flat: see :class:`GatheredCrop`.

    Returns:
      A function of ``images``, ``[n, height, width, 3]`` uint8, n any number, to a dictionary of ``features``,
      ``[n, feature_dim]`` float32.
    """
    model = model.deployed()
    fold_batch_norm(model)
    if isinstance(model, HAN):
        _fold_deviation(model)
        for attention in model.attentions:
            if attention.soft is not None:
                attention.soft = FactoredSoftAttention(attention.soft)
        model.crops = [GatheredCrop(crop.region_size, flat) for crop in model.crops]
    function = tf.function(
        lambda images: {OUTPUT: model(images, training=False)},
        [tf.TensorSpec([None, *model.input_size, 3], tf.uint8, name=INPUT)],
        autograph=False,
    )
    concrete = function.get_concrete_function()
    concrete.network = model  # a graph alone does not keep its variables
    return concrete


def _fold_deviation(model: HAN) -> None:
    """Moves the division of the pixels by their deviation into the stem's kernel."""
    kernel = model.stem.conv.kernel
    kernel.assign(kernel / np.reshape(IMAGE_DEVIATION, [3, 1]).astype(np.float32))
    # The mean stays: beyond the border the kernel has to read 0, which is the mean.
    model.normalised = lambda images: tf.cast(images, tf.float32) - IMAGE_MEAN  # type: ignore[method-assign]
