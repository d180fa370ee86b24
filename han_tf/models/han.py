"""The Harmonious Attention Network (Fig. 1, Sec. 3.3)."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import tensorflow as tf

from han_tf.layers.attention import HarmoniousAttention
from han_tf.layers.blocks import BLOCKS, DOWNSAMPLING
from han_tf.layers.crop import AffineCrop, region_origins
from han_tf.layers.units import ConvBNReLU

IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_DEVIATION = (58.395, 57.12, 57.375)
"""ImageNet's per-channel statistics, RGB in [0, 255]: the field's habit, also without pre-training."""

STEM_STRIDE = 2


class LevelAttention(NamedTuple):
    """What one level attends to.

    Attributes:
      soft: soft attention, ``[batch, height, width, channels]`` in [0.5, 1); None where switched off.
      theta: (t_x, t_y) of each region, ``[batch, T, 2]`` in [-1, 1].
      boxes: the regions as (x_min, y_min, x_max, y_max), ``[batch, T, 4]``, in pixels of the input
        image; they may reach past its border.
    """

    soft: Optional[tf.Tensor]
    theta: tf.Tensor
    boxes: tf.Tensor


class Branches(NamedTuple):
    """What one forward pass gives.

    Attributes:
      global_feature: ``[batch, feature_dim / 2]``, not normalised.
      local_feature: ``[batch, feature_dim / 2]``, not normalised.
      attention: one :class:`LevelAttention` per level, first level first.
    """

    global_feature: tf.Tensor
    local_feature: tf.Tensor
    attention: tuple[LevelAttention, ...]


class FeatureHead(tf.keras.layers.Layer):
    """The fully connected feature layer that ends a branch: FC, batch norm, ReLU.

    Args:
      units: the feature's dimension.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.dense = tf.keras.layers.Dense(units, use_bias=False, name="fc")
        self.norm = tf.keras.layers.BatchNormalization(name="norm")

    def call(self, inputs: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps ``[batch, channels]`` to ``[batch, units]``, ≥ 0."""
        return tf.nn.relu(self.norm(self.dense(inputs), training=training))


class HAN(tf.keras.Model):
    """The Harmonious Attention Network.

    One conv layer feeds a global branch of three levels and a local branch of T streams with shared
    weights. Harmonious Attention at level l looks at the output of global block l: its soft map
    multiplies that output, its regions are cut out of that block's *input*. They are the local
    branch's input at level 1 and are added to it at the next levels (eq. 8).

    Called on a batch of images it returns the deployed feature, ``[batch, feature_dim]`` float32: the
    global and the local feature, each L2-normalised, side by side (Sec. 3.4). :meth:`branches` gives
    everything that a forward pass knows.

    Args:
      strides: the global units' strides (Table 1).
      num_classes: number of training identities; 0 for a network without classifiers.
      input_size: height and width of the images, in pixels.
      stem_width: filters of the first conv layer.
      widths: filters d_1, d_2, d_3 of the levels.
      regions: number T of regions and of local streams.
      region_scale: height and width of a region, as fractions of the map: 24×28 of 80×32.
      feature_dim: dimension of the joint feature, half for each branch.
      unit: the building block, a key of :data:`han_tf.layers.blocks.BLOCKS` (Table 12).
      spatial, channel, hard: the attention types in use (Table 9).
      interaction: cross-attention interaction learning, eq. (8) (Table 10).

    Raises:
      ValueError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        strides: Sequence[int] = (2, 1, 1),
        num_classes: int = 0,
        input_size: Sequence[int] = (160, 64),
        stem_width: int = 32,
        widths: Sequence[int] = (128, 256, 384),
        regions: int = 4,
        region_scale: Sequence[float] = (0.3, 0.875),
        feature_dim: int = 1024,
        unit: str = "depthwise",
        spatial: bool = True,
        channel: bool = True,
        hard: bool = True,
        interaction: bool = True,
        name: str = "han",
    ):
        super().__init__(name=name)
        if unit not in BLOCKS:
            raise ValueError(f"unit must be one of {sorted(BLOCKS)}, got {unit!r}")
        if feature_dim < 2 or feature_dim % 2:
            raise ValueError(f"feature_dim must be even and positive, got {feature_dim}")
        if regions < 1:
            raise ValueError(f"regions must be at least 1, got {regions}")
        smallest = STEM_STRIDE * DOWNSAMPLING ** len(widths)
        if min(input_size) < smallest:
            raise ValueError(f"input_size must be at least {smallest} pixels either way, got {input_size}")
        if not all(0 < scale <= 1 for scale in region_scale):
            raise ValueError(f"region_scale must lie in (0, 1], got {region_scale}")
        self._config = {
            "strides": list(strides),
            "num_classes": num_classes,
            "input_size": list(input_size),
            "stem_width": stem_width,
            "widths": list(widths),
            "regions": regions,
            "region_scale": list(region_scale),
            "feature_dim": feature_dim,
            "unit": unit,
            "spatial": spatial,
            "channel": channel,
            "hard": hard,
            "interaction": interaction,
        }
        self.input_size = tuple(input_size)
        self.regions = regions
        self.feature_dim = feature_dim
        self.interaction = interaction
        self.num_classes = num_classes
        self.map_sizes, self.region_sizes = _level_sizes(input_size, region_scale, len(widths))

        global_block, local_block = BLOCKS[unit]
        levels = range(1, len(widths) + 1)
        self.stem = ConvBNReLU(stem_width, 3, STEM_STRIDE, name="stem")
        self.global_blocks = [
            global_block(width, strides=strides, name=f"global_block{level}") for level, width in zip(levels, widths)
        ]
        self.attentions = [
            HarmoniousAttention(regions, spatial, channel, hard, name=f"attention{level}") for level in levels
        ]
        self.crops = [AffineCrop(size, name=f"crop{level}") for level, size in zip(levels, self.region_sizes)]
        self.local_blocks = [local_block(width, name=f"local_block{level}") for level, width in zip(levels, widths)]
        self.global_head = FeatureHead(feature_dim // 2, name="global_head")
        self.local_head = FeatureHead(feature_dim // 2, name="local_head")
        self.global_classifier = self.local_classifier = None
        if num_classes:
            self.global_classifier = tf.keras.layers.Dense(num_classes, use_bias=False, name="global_classifier")
            self.local_classifier = tf.keras.layers.Dense(num_classes, use_bias=False, name="local_classifier")

    def branches(self, images: tf.Tensor, training: Optional[bool] = None) -> Branches:
        """Runs both branches.

        Args:
          images: ``[batch, height, width, 3]`` uint8 or float, RGB in [0, 255], of ``input_size``.
          training: whether batch norm uses the batch's statistics.

        Returns:
          Both features before normalisation, and the attention of every level.

        Raises:
          ValueError: the images have another size.
        """
        if tuple(images.shape[1:]) != (*self.input_size, 3):
            raise ValueError(
                f"images must be [batch, {self.input_size[0]}, {self.input_size[1]}, 3], got {images.shape}"
            )
        pixels = (tf.cast(images, tf.float32) - IMAGE_MEAN) / IMAGE_DEVIATION
        features = self.stem(pixels, training=training)
        streams = None
        levels = []
        for global_block, attend, crop, local_block in zip(
            self.global_blocks, self.attentions, self.crops, self.local_blocks
        ):
            attention = attend(global_block(features, training=training), training=training)
            # Only the first level needs its crop when the branches do not interact (Table 10).
            if streams is None or self.interaction:
                regions = crop(features, attention.theta)
                regions = tf.reshape(regions, [-1, *regions.shape[2:]])
                streams = regions if streams is None else streams + regions  # eq. (8)
            levels.append(
                LevelAttention(
                    attention.soft,
                    attention.theta,
                    self._boxes(attention.theta, features.shape[1:3], crop.region_size),
                )
            )
            streams = local_block(streams, training=training)
            features = attention.attended

        pooled_streams = tf.reduce_mean(streams, axis=[1, 2])
        pooled_streams = tf.reshape(pooled_streams, [-1, self.regions * pooled_streams.shape[-1]])
        return Branches(
            self.global_head(tf.reduce_mean(features, axis=[1, 2]), training=training),
            self.local_head(pooled_streams, training=training),
            tuple(levels),
        )

    def call(self, images: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Maps images, as :meth:`branches` takes them, to ``[batch, feature_dim]`` float32 features."""
        return joint_feature(self.branches(images, training=training))

    def classify(self, branches: Branches) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the identity logits of the global and of the local branch (eq. 1).

        Each is ``[batch, num_classes]`` float32.

        Raises:
          ValueError: the network was made without classifiers.
        """
        if self.global_classifier is None:
            raise ValueError("this network has no classifiers: it was made with num_classes 0")
        return self.global_classifier(branches.global_feature), self.local_classifier(branches.local_feature)

    @property
    def localisation_variables(self) -> list[tf.Variable]:
        """The trainable variables that place the regions; empty with hard attention off."""
        return [variable for attend in self.attentions for variable in attend.hard.trainable_variables]

    def parts(self) -> dict[str, tf.Module]:
        """Returns the network's parts by name, in the order of Fig. 1."""
        parts = {"stem": self.stem}
        for level in range(len(self.global_blocks)):
            parts[f"global block {level + 1}"] = self.global_blocks[level]
            parts[f"attention {level + 1}"] = self.attentions[level]
            parts[f"affine crop {level + 1}"] = self.crops[level]
            parts[f"local block {level + 1}"] = self.local_blocks[level]
        parts.update({"global head": self.global_head, "local head": self.local_head})
        if self.num_classes:
            parts["global classifier"] = self.global_classifier
            parts["local classifier"] = self.local_classifier
        return parts

    def get_config(self) -> dict:
        """Returns the constructor's arguments, as JSON holds them."""
        return dict(self._config)

    def _boxes(self, theta: tf.Tensor, map_size: Sequence[int], region_size: Sequence[int]) -> tf.Tensor:
        origins = region_origins(theta, map_size, region_size)
        size = tf.constant(region_size[::-1], theta.dtype)
        scale = tf.constant([self.input_size[1] / map_size[1], self.input_size[0] / map_size[0]], theta.dtype)
        return tf.concat([origins * scale, (origins + size) * scale], axis=-1)


def joint_feature(branches: Branches) -> tf.Tensor:
    """L2-normalises each branch's feature and joins them: ``[batch, feature_dim]`` (Sec. 3.4)."""
    return tf.concat(
        [
            tf.math.l2_normalize(branches.global_feature, axis=-1),
            tf.math.l2_normalize(branches.local_feature, axis=-1),
        ],
        axis=-1,
    )


def _level_sizes(
    input_size: Sequence[int], region_scale: Sequence[float], levels: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns each level's map size and region size: 80×32 and 24×28, 40×16 and 12×14, 20×8 and 6×7.

    A region's size halves with each level as the local blocks halve their maps, so that the crops of
    a level always fit what they are added to.
    """
    map_size = tuple(-(-side // STEM_STRIDE) for side in input_size)
    region_size = tuple(max(1, round(scale * side)) for scale, side in zip(region_scale, map_size))
    map_sizes, region_sizes = [], []
    for _ in range(levels):
        map_sizes.append(map_size)
        region_sizes.append(region_size)
        map_size = tuple(-(-side // DOWNSAMPLING) for side in map_size)
        region_size = tuple(-(-side // DOWNSAMPLING) for side in region_size)
    return map_sizes, region_sizes
